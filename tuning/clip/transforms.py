"""From the bytes of a sample in a shard to what CLIP sees: the region cut out, filled, resized, and its mask.

Shapes: S side of the input in pixels, H and W height and width of the stored crop.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from maskmine.mining.images.child_decoder import Decoding
from maskmine.mining.images.crops import Crop, grow_box, squeeze_crop
from maskmine.mining.images.decode import MAX_SIDE_PX
from maskmine.schemas.errors import InputError
from maskmine.schemas.mask import Box
from maskmine.schemas.rows import Rejection
from maskmine.schemas.sample import sample_members
from maskmine.tuning.clip.settings import Jitter

_DECODING = Decoding()
_ATTEMPTS = 10  # to draw a part of the box that fits into it, as in torchvision's RandomResizedCrop


@dataclass(frozen=True, slots=True)
class StoredRegion:
    """A decoded sample: the crop as it was stored, the mask in its frame, the tight box of the whole region in it."""

    image_HW3: np.ndarray[Any, np.dtype[np.uint8]]
    mask_HW: np.ndarray[Any, np.dtype[np.bool_]]
    box_xyxy: Box


@dataclass(frozen=True, slots=True)
class View:
    """How regions are shown to a tower: `mean` and `std` are those of colours from 0 to 1; `jitter` may be None.

    Without jitter a region looks as mining shows it to CLIP (`maskmine.mining.images.crops.cut_regions`).
    """

    size_px: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop: Crop
    jitter: Jitter | None


def decode_sample(span: bytes, *, key: str, path: str) -> StoredRegion:
    """A sample from its bytes in the tar. Raises InputError when they are not those of the sample `key`."""
    try:
        _, encoded, mask_png, _, record_json = sample_members(span, key)
        image_HW3, mask_HW = _pixels(encoded, mode="RGB"), _pixels(mask_png, mode="L") > 0
        return StoredRegion(image_HW3, mask_HW, _box(json.loads(record_json), image_HW3, mask_HW))
    except (LookupError, TypeError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path}: sample {key} is not where the index has it ({type(error).__name__}); "
            "run `maskmine verify` on the folder"
        ) from error


def _box(
    record: dict[str, Any], image_HW3: np.ndarray[Any, np.dtype[np.uint8]], mask_HW: np.ndarray[Any, np.dtype[np.bool_]]
) -> Box:
    """The tight box of a sample. Raises ValueError where it, the crop and the mask are not of one frame."""
    x0, y0, x1, y1 = map(int, record["box_crop_xyxy"])
    height_px, width_px = mask_HW.shape
    if image_HW3.shape[:2] != mask_HW.shape or not (0 <= x0 < x1 <= width_px and 0 <= y0 < y1 <= height_px):
        raise ValueError("crop, mask and box differ in size")
    return x0, y0, x1, y1


def _pixels(content: bytes, *, mode: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Shards are handed on between teams, so they are decoded as any other image is. Raises ValueError."""
    stored = _DECODING.decode_stored(content, max_pixels=MAX_SIDE_PX**2, mode=mode)
    if isinstance(stored, Rejection):
        raise ValueError(stored.detail)
    return stored.pixels


def show_region(region: StoredRegion, *, view: View, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """The input of a tower: normalised pixels, float32 [3, S, S], and the mask, boolean [S, S].

    The box is jittered once for both, so they stay in step; the image is resized as mining does it after it
    was filled, the mask to the nearest pixel.
    """
    box = _seen_box(region, view)
    jittered = _jittered(box, view.jitter, rng) if view.jitter else box
    x0, y0, x1, y1 = jittered if _part(region.mask_HW, jittered).any() else box
    mask_HW = torch.from_numpy(region.mask_HW[y0:y1, x0:x1])
    pixels_3HW = torch.from_numpy(region.image_HW3[y0:y1, x0:x1]).permute(2, 0, 1).float()
    filled_3HW = _filled(pixels_3HW, mask_HW, view)
    size = (view.size_px, view.size_px)
    pixels_3SS = squeeze_crop(filled_3HW, size_px=view.size_px, crop=view.crop)
    mask_SS = interpolate(mask_HW[None, None].float(), size, mode="nearest")[0, 0] > 0
    return pixels_3SS, mask_SS


def jittered_part(jitter: Jitter, rng: np.random.Generator) -> tuple[float, float, float, float]:
    """A random part of the unit square as x0, y0, x1, y1; the whole of it when none fits in ten attempts.

    The aspect is relative to the box that it will be a part of, because that is squeezed to a square anyway.
    """
    for _ in range(_ATTEMPTS):
        area = rng.uniform(*jitter.scale)
        aspect = math.exp(rng.uniform(math.log(jitter.aspect[0]), math.log(jitter.aspect[1])))
        width, height = math.sqrt(area * aspect), math.sqrt(area / aspect)
        if width <= 1 and height <= 1:
            x0, y0 = rng.uniform(0, 1 - width), rng.uniform(0, 1 - height)
            return x0, y0, x0 + width, y0 + height
    return 0.0, 0.0, 1.0, 1.0


def _seen_box(region: StoredRegion, view: View) -> Box:
    height_px, width_px = region.mask_HW.shape
    return grow_box(region.box_xyxy, ratio=view.crop.expand_ratio, height_px=height_px, width_px=width_px)


def _jittered(box_xyxy: Box, jitter: Jitter, rng: np.random.Generator) -> Box:
    x0, y0, x1, y1 = box_xyxy
    left, top, right, bottom = jittered_part(jitter, rng)
    (x0, x1), (y0, y1) = _whole_px(x0, x1, left, right), _whole_px(y0, y1, top, bottom)
    return x0, y0, x1, y1


def _whole_px(start: int, stop: int, low: float, high: float) -> tuple[int, int]:
    """The part of a side in whole pixels, one at least."""
    length = stop - start
    first = min(round(low * length), length - 1)
    return start + first, start + max(first + 1, round(high * length))


def _part(array_HW: np.ndarray[Any, Any], box_xyxy: Sequence[int]) -> np.ndarray[Any, Any]:
    x0, y0, x1, y1 = box_xyxy
    return array_HW[y0:y1, x0:x1]


def _filled(pixels_3HW: Tensor, mask_HW: Tensor, view: View) -> Tensor:
    """Normalised pixels, with the colour of the fill outside the mask."""
    mean_3, std_3 = (255 * torch.tensor(values)[:, None, None] for values in (view.mean, view.std))
    normalised_3HW = (pixels_3HW - mean_3) / std_3
    if view.crop.fill == "none":
        return normalised_3HW
    fill_3 = torch.zeros_like(mean_3) if view.crop.fill == "mean" else -mean_3 / std_3
    return torch.where(mask_HW, normalised_3HW, fill_3)
