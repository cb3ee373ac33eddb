"""Proposals and embeddings at full size on a GPU: how fast, and how busy the GPU is.

MaskFormer Swin-B, EoMT-B at 640 pixels and SAM 2 Hiera-B+, each with CLIP ViT-L/14, on images of 640 × 480; weights are
random, proposers run in bfloat16 and CLIP in float16. The paper's figure is 0.8 s an image on an RTX A5000, for
MaskFormer and CLIP together.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

from maskmine.mining.models.clip import RegionClip
from maskmine.mining.models.devices import open_device
from maskmine.mining.proposers.eomt import Eomt
from maskmine.mining.proposers.maskformer import MaskFormer
from maskmine.mining.proposers.proposals import Keep
from maskmine.mining.proposers.sam import Sam
from maskmine.mining.regions import AnyProposals, Regions
from maskmine.pipelines.steps.gpu_use import GpuUse, watch_gpu
from maskmine.schemas.rows import ImageRow
from maskmine.scripts.benches.fixtures import (
    HALF_OF_SAM_2,
    SWIN_B,
    drawn_photos,
    read_photo,
    save_random_clip,
    save_random_eomt,
    save_random_maskformer,
    save_random_sam2,
)
from maskmine.scripts.measures import Measure, at_least

BATCHES, IMAGES = 200, 64
_BUSY = 85.0


def bench_gpu(photos: Sequence[Path], *, batches: int = BATCHES, device: str = "cuda") -> Iterator[Measure]:
    """Images and crops a second with each proposer, and the GPU's use. Raises InputError without a GPU."""
    opened = open_device(device)
    if opened.type == "cuda":
        print(f"  {torch.cuda.get_device_name(opened)}", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        images = _save_images(photos, folder)
        clip = RegionClip(
            model="ViT-L-14", pretrained=str(save_random_clip(folder / "clip.safetensors", model="ViT-L-14"))
        )
        for title, proposals, share in _proposers(folder):
            # random weights score every proposal alike: keep as many as a trained model would
            keep = Keep(max_iou=1.0, top=30, min_score=0.0)
            regions = Regions(proposals=proposals, keep=keep, clip=clip, device=device)
            for measure in measure_regions(images, regions=regions, batches=max(1, batches // share)):
                yield replace(measure, name=f"{title}: {measure.name}")


def _proposers(folder: Path) -> Iterator[tuple[str, AnyProposals, int]]:
    """Each with the share of the batches that is enough of it: a grid of points takes a while."""
    maskformer = save_random_maskformer(folder / "maskformer", **SWIN_B)
    yield "MaskFormer Swin-B", MaskFormer(kind="maskformer", checkpoint=str(maskformer)), 1
    eomt = save_random_eomt(folder / "eomt", large=False)
    yield "EoMT-B 640", Eomt(kind="eomt", checkpoint=str(eomt)), 1
    sam = Sam(kind="sam", checkpoint=str(save_random_sam2(folder / "sam2", large=False)), **HALF_OF_SAM_2)
    yield "SAM 2 Hiera-B+", sam, 20


def measure_regions(paths: Sequence[str], *, regions: Regions, batches: int) -> list[Measure]:
    """The figures of proposals and embeddings in one pass over batches of these images, which are all of one size."""
    find = regions.open()
    rows = [ImageRow(f"image{n}", paths[n % len(paths)]) for n in range(batches * regions.batch_size)]
    find(rows[: 2 * regions.batch_size])  # kernels are chosen, memory is taken
    with watch_gpu(regions.device) as use:
        start = time.perf_counter()
        found = find(rows)
        whole_s = time.perf_counter() - start
    image_s, crops = whole_s / len(rows), sum(len(row.regions) for row in found)
    return [
        Measure("images a second", len(rows) / whole_s, "images/s"),
        Measure("seconds an image (the paper: 0.8)", image_s, "s"),
        Measure("crops a second", crops / whole_s, "crops/s"),
        Measure("crops an image", crops / len(rows), "crops"),
        *use_of_gpu(use, regions.device, goal=_BUSY),
    ]


def use_of_gpu(use: GpuUse, device: str, *, goal: float | None = None) -> list[Measure]:
    """The share of the time in which a kernel ran on the GPU, and the memory that was taken on it by all processes.

    Where NVML does not tell, there is none of them, and a line says so.
    """
    if use.percent is None or use.peak_bytes is None:
        print(f"  GPU busy: not known, as NVML tells nothing of `{device}`", file=sys.stderr)
        return []
    busy = Measure("GPU busy", use.percent, "%") if goal is None else at_least("GPU busy", use.percent, "%", goal)
    return [busy, Measure("peak memory of the GPU", use.peak_bytes / 2**30, "GiB")]


def _save_images(photos: Sequence[Path], folder: Path) -> list[str]:
    """Photographs, or noise where there are none, as JPEGs of one size."""
    if not photos:
        return [str(path) for path in drawn_photos(folder, photos=IMAGES)]
    paths = []
    for number in range(IMAGES):
        paths.append(str(folder / f"{number}.jpg"))
        pixels_HW3 = read_photo(photos[number % len(photos)]).permute(1, 2, 0).numpy()
        Image.fromarray(pixels_HW3).save(paths[-1], quality=90)
    return paths
