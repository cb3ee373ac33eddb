"""How fast regions are cut for CLIP beside the plain way, one mask at a time, and how near the two results are.

Thirty masks an image of 640×480 pixels, as `regions.keep` leaves them. Images are noise unless photos are
given.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from maskmine.mining.images.crops import Crop, cut_regions, tight_boxes
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.pipelines.run_folder.region_cells import embeddings_cells
from maskmine.schemas.rows import EmbeddingsRow
from maskmine.scripts.benches.fixtures import ellipses, noise, read_photo
from maskmine.scripts.measures import Measure, at_least, at_most, in_turns, peak_bytes

_SIZE_PX = 224  # what most CLIPs take
_MASKS, _IMAGES, _ROUNDS = 30, 8, 7
_LARGE_PART = (1000, 1000, 1152)  # images, regions of each, dimensions of CLIP: 2.3 GB in one column
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

Cut = Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]


def bench_region_cutting(photos: list[Path] | None) -> list[Measure]:
    """Time an image and the largest difference, on the CPU with one thread and on a GPU if there is one.

    The two ways cut the same images by turns, so that a busy machine slows both; figures are medians over the turns.
    One thread: workers are many to a machine, and the ratio is then that of the work, not of the scheduler.
    """
    images = [read_photo(path) for path in photos[:_IMAGES]] if photos else noise(_IMAGES)
    masks = [ellipses(_MASKS, seed=number) for number in range(len(images))]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        measures = _compare(images, masks, where="CPU", goal=1.0)
    finally:
        torch.set_num_threads(threads)
    if torch.cuda.is_available():
        on_gpu = [[tensor.cuda() for tensor in tensors] for tensors in (images, masks)]
        measures += _compare(*on_gpu, where="GPU", goal=5.0)
    return measures


def _compare(images: Sequence[Tensor], masks: Sequence[Tensor], *, where: str, goal: float) -> list[Measure]:
    # A GPU gets all images at once, as a part's batch does; on a CPU one is as good.
    groups = [(images, masks)] if where == "GPU" else [([i], [m]) for i, m in zip(images, masks, strict=True)]
    ours_s, plain_s = (
        seconds / len(images)
        for seconds in in_turns(
            lambda: _cut_all(_cut_ours, groups), lambda: _cut_all(_cut_plainly, groups), rounds=_ROUNDS, warm_up=True
        )
    )
    difference = max(float((_cut_ours(*group) - _cut_plainly(*group)).abs().max()) for group in groups)
    return [
        Measure(f"cut {_MASKS} regions, {where}", ours_s * 1000, "ms an image"),
        Measure(f"cut {_MASKS} regions one by one, {where}", plain_s * 1000, "ms an image"),
        at_least(f"speed beside one by one, {where}", plain_s / ours_s, "×", goal),
        at_most(f"largest difference, {where}", difference, "of a standard deviation", 0.001),
    ]


def _cut_all(cut: Cut, groups: Sequence[tuple[Sequence[Tensor], Sequence[Tensor]]]) -> None:
    for images, masks in groups:
        cut(images, masks)
        if images[0].is_cuda:
            torch.cuda.synchronize()


def _cut_ours(images: Sequence[Tensor], masks: Sequence[Tensor]) -> Tensor:
    return cut_regions(images, masks, size_px=_SIZE_PX, mean=_MEAN, std=_STD, crop=Crop())


def _cut_plainly(images: Sequence[Tensor], masks: Sequence[Tensor]) -> Tensor:
    """Crop, fill, normalise and resize mask by mask; boxes are found by our faster way, so only the cutting differs."""
    mean_px, std_px = (255 * torch.tensor(values, device=images[0].device)[:, None, None] for values in (_MEAN, _STD))
    regions = []
    for image_3HW, masks_NHW in zip(images, masks, strict=True):
        for mask_HW, (x0, y0, x1, y1) in zip(masks_NHW, tight_boxes(masks_NHW).tolist(), strict=True):
            pixels = torch.where(mask_HW[y0:y1, x0:x1], image_3HW[:, y0:y1, x0:x1].float(), mean_px)
            pixels = (pixels - mean_px) / std_px
            regions.append(interpolate(pixels[None], size=(_SIZE_PX, _SIZE_PX), mode="bicubic", align_corners=False))
    return torch.cat(regions)


def bench_large_part() -> Iterator[Measure]:
    """A part whose embeddings pass the 2 GiB that Arrow reads of a column at once: written, read, and the memory."""
    program = "from maskmine.scripts.benches.regions import measure_large_part; measure_large_part()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    size, write_peak, read_peak, read, whole = map(float, done.stdout.split())
    images, regions, _ = _LARGE_PART
    yield Measure(f"cell of {images:,} images × {regions:,} regions", size / 2**30, "GiB")
    yield at_most("peak memory of writing it", write_peak / 2**20, "MB", 1500)
    yield at_most("peak memory of reading its rows", read_peak / 2**20, "MB", 1500)
    yield at_least("regions read of a hundred written, row by row", 100 * read / (images * regions), "", 100)
    yield at_least("and as one table", 100 * whole / (images * regions), "", 100)


def measure_large_part() -> None:
    """Print the cell's bytes, the peaks after writing and reading by rows, and the regions read in both ways."""
    images, regions, dim = _LARGE_PART

    def rows() -> Iterator[EmbeddingsRow]:
        for number in range(images):
            vectors = np.random.default_rng(number).normal(size=(regions, dim)).astype("<f2")
            yield EmbeddingsRow(str(number), tuple(vector.tobytes() for vector in vectors))

    with tempfile.TemporaryDirectory() as folder:
        cells = embeddings_cells(RunFolder(folder), "0" * 64)
        cells.write(0, rows())
        written = peak_bytes()
        read = sum(len(row.embeddings) for row in cells.read_rows(0))
        by_rows = peak_bytes()
        whole = int(pc.sum(pc.list_value_length(cells.read_table(0)["embeddings"])).as_py())
        size = Path(cells.path(0)).stat().st_size
    sys.stdout.write(f"{size} {written} {by_rows} {read} {whole}")
