"""Pictures of an export: stored crops cut to the region, filled, resized, encoded again; or left as they are.

Shapes: H and W height and width of a crop; V the values of a row of pixels.
"""

from __future__ import annotations

import io
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError
from pydantic import Field

from mining.crops import grow_box
from mining.exports.stored import StoredSample
from mining.shards import png_file
from schemas.errors import IncompleteError
from schemas.mask import Box
from schemas.sample import ImageFormat
from schemas.settings import Settings

CLIP_MEAN_PX = (123, 117, 104)
Fill = Literal["mean", "zero", "none"]

In = TypeVar("In")
Out = TypeVar("Out")


class Pictures(Settings):
    """How pictures are written. `image_format` None is that of the run; `quality` (1–100) is for jpg and webp.

    `max_side_px` makes pictures smaller whose longer side is longer; none is made larger. `fill` and `expand_ratio` are
    for the exports of masked crops: the colour around the mask, and how far its tight box is grown, as far as the
    stored crop reaches.
    """

    image_format: ImageFormat | None = None
    quality: Annotated[int, Field(ge=1, le=100)] = 95
    max_side_px: Annotated[int, Field(ge=8)] | None = None
    fill: Fill = "mean"
    expand_ratio: Annotated[float, Field(ge=1.0, le=10.0)] = 1.0
    threads: Annotated[int, Field(ge=1, le=64)] = 2

    def keeps(self, sample: StoredSample) -> bool:
        """Whether a stored crop is already as it is to be written; its size is read from its header."""
        if self.image_format not in (None, sample.image_format):
            return False
        x0, y0, x1, y1 = sample.row.crop_xyxy
        return self.max_side_px is None or max(x1 - x0, y1 - y0) <= self.max_side_px

    def encode(self, rgb_HW3: np.ndarray[Any, Any], image_format: ImageFormat) -> bytes:
        """A picture as a file of the given format."""
        if image_format == "png":
            return encode_png(rgb_HW3)
        buffer, image = io.BytesIO(), Image.fromarray(rgb_HW3)
        if image_format == "jpg":
            image.save(buffer, "JPEG", quality=self.quality)
        else:
            image.save(buffer, "WEBP", quality=self.quality, method=2)
        return buffer.getvalue()

    @property
    def workers(self) -> int:
        """How many threads help: none where files are only copied, which takes less time than to hand them over."""
        return 0 if self.image_format is None and self.max_side_px is None else self.threads


@dataclass(frozen=True, slots=True)
class Cutout:
    """A decoded crop and its mask, boolean; `crop_xyxy` is where it lies in the photograph, before any resizing."""

    rgb_HW3: np.ndarray[Any, np.dtype[np.uint8]]
    mask_HW: np.ndarray[Any, np.dtype[np.bool_]]
    crop_xyxy: Box


def decode(sample: StoredSample) -> Cutout:
    """A stored crop and its mask. Raises IncompleteError when they are no pictures."""
    rgb_HW3 = _read(sample, sample.image, mode="RGB")
    return Cutout(rgb_HW3, decode_mask(sample), sample.row.crop_xyxy)


def decode_mask(sample: StoredSample) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """A stored mask, [H, W]. Raises IncompleteError when it is no picture."""
    return _read(sample, sample.mask_png, mode="L") > 0


def _read(sample: StoredSample, content: bytes, *, mode: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    try:
        with Image.open(io.BytesIO(content)) as image:
            return np.array(image.convert(mode))
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError) as error:  # Pillow's words for broken pictures
        raise IncompleteError(
            f"shards/{sample.row.shard}: the pictures of sample {sample.row.key} cannot be read ({error}); delete the "
            "tar and run `maskmine mine` again, which makes it anew"
        ) from error


def cut_to_region(cutout: Cutout, box_crop_xyxy: Box, *, expand_ratio: float) -> Cutout:
    """The part of a crop around its region: the tight box (in the crop's frame) grown, as far as the crop reaches."""
    height_px, width_px = cutout.mask_HW.shape
    x0, y0, x1, y1 = grow_box(box_crop_xyxy, ratio=expand_ratio, height_px=height_px, width_px=width_px)
    left, top = cutout.crop_xyxy[:2]
    place = (left + x0, top + y0, left + x1, top + y1)
    return Cutout(cutout.rgb_HW3[y0:y1, x0:x1], cutout.mask_HW[y0:y1, x0:x1], place)


def shrink(cutout: Cutout, *, max_side_px: int | None) -> Cutout:
    """The same with a longer side of `max_side_px` at most. A pixel is of the mask where half of its area was.

    Where that leaves nothing of a thin mask, a pixel is of the mask where any of its area was.
    """
    height_px, width_px = cutout.mask_HW.shape
    if max_side_px is None or max(height_px, width_px) <= max_side_px:
        return cutout
    ratio = max_side_px / max(height_px, width_px)
    size = (max(1, round(width_px * ratio)), max(1, round(height_px * ratio)))
    rgb_HW3 = np.array(Image.fromarray(cutout.rgb_HW3).resize(size, Image.Resampling.BICUBIC))
    share = Image.fromarray(cutout.mask_HW.astype(np.float32)).resize(size, Image.Resampling.BOX)
    share_HW = np.array(share)
    mask_HW = share_HW >= 0.5
    return Cutout(rgb_HW3, mask_HW if mask_HW.any() else share_HW > 0, cutout.crop_xyxy)


def fill_background(cutout: Cutout, fill: Fill) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The picture with CLIP's mean colour, black, or what is there outside the mask."""
    if fill == "none":
        return cutout.rgb_HW3
    colour = np.array(CLIP_MEAN_PX if fill == "mean" else (0, 0, 0), np.uint8)
    return np.where(cutout.mask_HW[..., None], cutout.rgb_HW3, colour)


def encode_png(rgb_HW3: np.ndarray[Any, Any]) -> bytes:
    """A picture of shape [H, W, 3] as PNG.

    Written here and not by Pillow, which tries five filters on every row: twice the time for 3 % of the size.
    """
    height_px, width_px, _ = rgb_HW3.shape
    pixels_HV = rgb_HW3.reshape(height_px, 3 * width_px)
    rows_HV = np.empty((height_px, 1 + 3 * width_px), np.uint8)
    rows_HV[:, 0] = 1  # the filter: each value less that of the pixel before it
    rows_HV[:, 1:4] = pixels_HV[:, :3]
    np.subtract(pixels_HV[:, 3:], pixels_HV[:, :-3], out=rows_HV[:, 4:])
    strategy = zlib.Z_DEFAULT_STRATEGY
    return png_file(rows_HV.tobytes(), height_px=height_px, width_px=width_px, colour_type=2, strategy=strategy)


def map_in_order(work: Callable[[In], Out], items: Iterable[In], *, threads: int) -> Iterator[Out]:
    """`work(item)` in the order of the items, made in threads a few items ahead; memory holds only these.

    Pictures are decoded and encoded outside of Python's lock. Without threads, items are worked on as they are taken.
    """
    if not threads:
        yield from map(work, items)
        return
    with ThreadPoolExecutor(threads) as pool:
        ahead: deque[Future[Out]] = deque()
        for item in items:
            ahead.append(pool.submit(work, item))
            if len(ahead) > 2 * threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
