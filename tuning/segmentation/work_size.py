"""The size that an image is segmented at: large ones are reduced, and their maps enlarged again.

The masks of all proposals are in memory together, in the size of what is segmented. What proposes them sees an image at
a thousand pixels or so, and their grids are coarser still; so beyond some size only memory and time grow.

Shapes: H, W height and width of an image in pixels, h, w those that it is segmented at.
"""

from __future__ import annotations

from dataclasses import replace
from math import ceil, sqrt
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from maskmine.schemas.mask import Box
    from maskmine.tuning.segmentation.segmenter import NamedRegion, Segmentation


def work_size(size_px: tuple[int, int], *, most_pixels: int) -> tuple[int, int]:
    """Height and width of an image of `size_px` in at most so many pixels: its own, or nearly its aspect ratio."""
    height_px, width_px = size_px
    if height_px * width_px <= most_pixels:
        return size_px
    scale = sqrt(most_pixels / (height_px * width_px))
    height = min(most_pixels, max(1, int(height_px * scale)))
    return height, max(1, min(int(width_px * scale), most_pixels // height))


def reduced(rgb_HW3: np.ndarray[Any, Any], *, size_px: tuple[int, int]) -> np.ndarray[Any, Any]:
    """An image uint8 [H, W, 3] in another size; itself where it has that size."""
    if rgb_HW3.shape[:2] == size_px:
        return rgb_HW3
    height_px, width_px = size_px
    return np.asarray(Image.fromarray(rgb_HW3).resize((width_px, height_px), Image.Resampling.BICUBIC))


def enlarged(found: Segmentation, *, size_px: tuple[int, int]) -> Segmentation:
    """A map of h × w in the size of its image: of each pixel the nearest label; boxes and areas in its pixels."""
    (h, w), (height_px, width_px) = found.labels_HW.shape, size_px
    if (h, w) == size_px:
        return found
    rows_H = (2 * np.arange(height_px) + 1) * h // (2 * height_px)  # the middle of a pixel, on the smaller grid
    columns_W = (2 * np.arange(width_px) + 1) * w // (2 * width_px)
    labels_HW = found.labels_HW[rows_H[:, None], columns_W]
    regions = tuple(_enlarged_region(region, (h, w), size_px) for region in found.regions)
    return replace(found, labels_HW=labels_HW, regions=regions)


def _enlarged_region(region: NamedRegion, from_px: tuple[int, int], to_px: tuple[int, int]) -> NamedRegion:
    (h, w), (height_px, width_px) = from_px, to_px
    x0, y0, x1, y1 = region.box_xyxy
    box: Box = (x0 * width_px // w, y0 * height_px // h, ceil(x1 * width_px / w), ceil(y1 * height_px / h))
    return replace(region, box_xyxy=box, area_px=max(1, round(region.area_px * height_px * width_px / (h * w))))
