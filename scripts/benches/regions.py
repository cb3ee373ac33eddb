"""How fast regions are cut for CLIP beside the plain way, one mask at a time, and how near the two results are.

    python -m scripts.bench_regions [PHOTO …]

Thirty masks a picture of 640×480 pixels, as the filters of `regions` leave them. Pictures are noise unless photos are
given.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from mining.crops import Crop, cut_regions, tight_boxes
from scripts.measures import Measure

_WIDTH_PX, _HEIGHT_PX, _SIZE_PX = 640, 480, 224
_MASKS, _PICTURES, _ROUNDS = 30, 8, 7
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

Cut = Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]


def bench_region_cutting(photos: list[Path] | None) -> list[Measure]:
    """Time a picture and the largest difference, on the CPU with one thread and on a GPU if there is one.

    The two ways cut the same pictures by turns, so that a busy machine slows both; figures are medians over the turns.
    One thread: workers are many to a machine, and the ratio is then that of the work, not of the scheduler.
    """
    images = [read_photo(path) for path in photos[:_PICTURES]] if photos else noise(_PICTURES)
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
    # A GPU gets all pictures at once, as a part's batch does; on a CPU one is as good.
    groups = [(images, masks)] if where == "GPU" else [([i], [m]) for i, m in zip(images, masks, strict=True)]
    ways: tuple[Cut, Cut] = (_cut_ours, _cut_plainly)
    times_s: tuple[list[float], list[float]] = ([], [])
    for turn in range(_ROUNDS + 1):
        for way, way_s in zip(ways, times_s, strict=True):
            elapsed_s = sum(_seconds(way, *group) for group in groups)
            if turn > 0:
                way_s.append(elapsed_s / len(images))
    ours_s, plain_s = (statistics.median(way_s) for way_s in times_s)
    difference = max(float((_cut_ours(*group) - _cut_plainly(*group)).abs().max()) for group in groups)
    ratio = plain_s / ours_s
    return [
        Measure(f"cut {_MASKS} regions, {where}", ours_s * 1000, "ms an image", "", None),
        Measure(f"cut {_MASKS} regions one by one, {where}", plain_s * 1000, "ms an image", "", None),
        Measure(f"speed beside one by one, {where}", ratio, "×", f"at least {goal:g}", ratio >= goal),
        Measure(f"largest difference, {where}", difference, "of a standard deviation", "≤ 0.001", difference <= 1e-3),
    ]


def _seconds(cut: Cut, images: Sequence[Tensor], masks: Sequence[Tensor]) -> float:
    start_s = time.perf_counter()
    cut(images, masks)
    if images[0].is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start_s


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


def read_photo(path: Path) -> Tensor:
    """A photograph as uint8 [3, H, W], 640 × 480."""
    with Image.open(path) as photo:
        pixels = np.asarray(photo.convert("RGB").resize((_WIDTH_PX, _HEIGHT_PX)))
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).contiguous()


def noise(count: int) -> list[Tensor]:
    """Pictures of the same size where there are no photographs."""
    generator = torch.Generator().manual_seed(0)
    shape = (3, _HEIGHT_PX, _WIDTH_PX)
    return [torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator) for _ in range(count)]


def ellipses(count: int, *, seed: int) -> Tensor:
    """Masks of all sizes up to most of the picture, small ones more often, boolean [N, H, W]."""
    generator = torch.Generator().manual_seed(seed)
    draws_N4 = torch.rand(count, 4, generator=generator)
    x_W, y_H1 = torch.arange(_WIDTH_PX), torch.arange(_HEIGHT_PX)[:, None]
    masks = []
    for across, down, x, y in draws_N4.tolist():
        half_width_px, half_height_px = 8 + 0.45 * across**2 * _WIDTH_PX, 8 + 0.45 * down**2 * _HEIGHT_PX
        distance_HW = ((x_W - x * _WIDTH_PX) / half_width_px) ** 2 + ((y_H1 - y * _HEIGHT_PX) / half_height_px) ** 2
        masks.append(distance_HW < 1)
    return torch.stack(masks)


if __name__ == "__main__":
    for measure in bench_region_cutting([Path(argument) for argument in sys.argv[1:]] or None):
        verdict = {True: "reached", False: "MISSED", None: ""}[measure.reached]
        print(f"{measure.name:40} {measure.value:10.3g} {measure.unit:24} {measure.goal:12} {verdict}")
