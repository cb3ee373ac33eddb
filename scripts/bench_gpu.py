"""The step `regions` at full size on a GPU: how fast, how busy the GPU is, and which of its works take the time.

MaskFormer Swin-B and CLIP ViT-L/14 with random weights on pictures of 640 × 480. Each work is also timed alone on ready
inputs, so that a share says how much of the whole it would take by itself; works that overlap add up to more than 1.
The paper's figure is 0.8 s an image on an RTX A5000, for proposals and CLIP together.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from PIL import Image

from mining.crops import Crop, cut_regions
from mining.devices import open_device
from mining.images import Picture
from mining.models.clip import Clip, ImageTower
from mining.models.maskformer import MaskFormer
from mining.proposals import Keep, LoadedImage, Proposals, keep_proposals
from mining.regions import Regions
from pipelines.gpu_use import watch_gpu
from schemas.mask import Mask
from schemas.rows import ImageRow
from scripts.bench_mining import save_random_clip, save_random_maskformer
from scripts.measures import Measure

if TYPE_CHECKING:
    import torch

Result = TypeVar("Result")

HEIGHT_PX, WIDTH_PX = 480, 640
BATCHES, PICTURES = 200, 64
SWIN_B: dict[str, Any] = {"embed_dim": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32), "window_size": 12}


@dataclass(frozen=True)
class Alone:
    """Seconds an image of each work by itself, and the crops an image."""

    seconds: dict[str, float]
    crops: float


def bench_gpu(photos: Sequence[Path], *, batches: int = BATCHES, device: str = "cuda") -> list[Measure]:
    """Images and crops a second, the GPU's use, and each work alone. Raises InputError without a GPU."""
    open_device(device)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        regions = Regions(
            proposals=MaskFormer(
                kind="maskformer", checkpoint=str(save_random_maskformer(folder / "maskformer", **SWIN_B))
            ),
            # random weights score every proposal alike: keep as many as a trained model would
            keep=Keep(max_iou=1.0, top=30, min_score=0.0),
            clip=Clip(
                model="ViT-L-14", pretrained=str(save_random_clip(folder / "clip.safetensors", model="ViT-L-14"))
            ),
            device=device,
        )
        return measure_regions(_save_pictures(photos, folder), regions=regions, batches=batches)


def measure_regions(paths: Sequence[str], *, regions: Regions, batches: int) -> list[Measure]:
    """The figures of a step `regions` over so many batches of these pictures, which are all of one size."""
    find = regions.open()
    rows = [ImageRow(f"image{n}", paths[n % len(paths)]) for n in range(batches * regions.batch_size)]
    find(rows[: 2 * regions.batch_size])  # kernels are chosen, memory is taken
    with watch_gpu(regions.device) as use:
        start = time.perf_counter()
        found = find(rows)
        whole_s = time.perf_counter() - start
    image_s, crops = whole_s / len(rows), sum(len(row.regions) for row in found)
    alone = _each_alone([row.path for row in rows[: 8 * regions.batch_size] if row.path], regions=regions)
    busy = use.percent
    measures = [
        Measure("images a second", len(rows) / whole_s, "images/s", "", None),
        Measure("seconds an image (the paper: 0.8)", image_s, "s", "", None),
        Measure("crops a second", crops / whole_s, "crops/s", "", None),
        Measure("crops an image", crops / len(rows), "crops", "", None),
    ]
    if busy is not None:
        measures.append(Measure("GPU busy", busy, "%", "≥ 85", busy >= 85))
    measures += [
        Measure(f"{work}, alone: share of the whole", seconds / image_s, "", "", None)
        for work, seconds in alone.seconds.items()
    ]
    if alone.seconds["CLIP"]:
        clip_rate = (crops / whole_s) / (alone.crops / alone.seconds["CLIP"])
        measures.append(
            Measure("CLIP: rate in the step / rate alone on ready tensors", clip_rate, "", "≥ 0.8", clip_rate >= 0.8)
        )
    return measures


def _each_alone(paths: Sequence[str], *, regions: Regions) -> Alone:
    """Each work of the step on inputs that are ready, an image at a time counted over all of them."""
    import torch

    device = open_device(regions.device)
    read = partial(regions.decoding.read, max_pixels=regions.max_image_pixels)
    with ThreadPoolExecutor(regions.decode_threads) as pool:
        decode_s, answers = _timed(lambda: list(pool.map(read, paths)), device)
    pictures = [answer for answer in answers if isinstance(answer, Picture)]
    loaded = [
        LoadedImage(path, torch.from_numpy(picture.rgb_HW3).to(device).permute(2, 0, 1).contiguous())
        for path, picture in zip(paths, pictures, strict=True)
    ]
    propose = regions.proposals.open(device=regions.device)
    batches = [loaded[n : n + regions.batch_size] for n in range(0, len(loaded), regions.batch_size)]

    def propose_all() -> list[Proposals]:
        answers = [one for batch in batches for one in propose(batch, min_score=regions.keep.min_score)]
        return [keep_proposals(one, keep=regions.keep) for one in answers if isinstance(one, Proposals)]

    propose_s, kept = _timed(propose_all, device)
    seconds = {"decode": decode_s, "proposals and their filters": propose_s}
    seconds["RLE"], _ = _timed(lambda: [Mask.from_arrays(one.masks_NHW.cpu().numpy()) for one in kept], device)
    tower = regions.clip.open_image(device=regions.device) if regions.clip else None
    seconds |= _clip_alone(loaded, kept, tower=tower, crop=regions.crop) if tower else {"crops": 0.0, "CLIP": 0.0}
    return Alone(
        {work: spent / len(paths) for work, spent in seconds.items()}, sum(len(one) for one in kept) / len(paths)
    )


def _clip_alone(
    images: Sequence[LoadedImage], kept: Sequence[Proposals], *, tower: ImageTower, crop: Crop
) -> dict[str, float]:
    import torch

    def cut() -> list[torch.Tensor]:
        return [
            cut_regions(
                [image.rgb_3HW], [one.masks_NHW], size_px=tower.size_px, mean=tower.mean, std=tower.std, crop=crop
            )
            for image, one in zip(images, kept, strict=True)
            if len(one)
        ]

    cut_s, crops = _timed(cut, tower.device)
    ready_C3SS = torch.cat(crops)
    del crops
    tower.embed(ready_C3SS[: tower.batch_size])
    embed_s, _ = _timed(
        lambda: [tower.embed(chunk).cpu() for chunk in torch.split(ready_C3SS, tower.batch_size)], tower.device
    )
    return {"crops": cut_s, "CLIP": embed_s}


def _timed(work: Callable[[], Result], device: torch.device) -> tuple[float, Result]:
    """Seconds until all that `work` asked of the device is done, and what it gave."""
    import torch

    start = time.perf_counter()
    result = work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start, result


def _save_pictures(photos: Sequence[Path], folder: Path) -> list[str]:
    """Photographs, or noise where there are none, as JPEGs of one size."""
    chance = np.random.default_rng(0)
    paths = []
    for number in range(PICTURES):
        if photos:
            with Image.open(photos[number % len(photos)]) as photo:
                picture = photo.convert("RGB").resize((WIDTH_PX, HEIGHT_PX))
        else:
            small = Image.fromarray(chance.integers(0, 256, (HEIGHT_PX // 8, WIDTH_PX // 8, 3), np.uint8))
            picture = small.resize((WIDTH_PX, HEIGHT_PX), Image.Resampling.BICUBIC)
        paths.append(str(folder / f"{number}.jpg"))
        picture.save(paths[-1], quality=90)
    return paths
