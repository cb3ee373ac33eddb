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
_READ_AHEAD = 4
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

    def encode(self, image: Image.Image, image_format: ImageFormat) -> bytes:
        """A picture as a file of the given format."""
        if image_format == "png":
            return encode_png(np.asarray(image))
        buffer = io.BytesIO()
        if image_format == "jpg":
            image.save(buffer, "JPEG", quality=self.quality)
        else:
            image.save(buffer, "WEBP", quality=self.quality, method=2)
        return buffer.getvalue()

    @property
    def are_stored(self) -> bool:
        """Whether every stored crop is already as it is to be written."""
        return self.image_format is None and self.max_side_px is None

    @property
    def workers(self) -> int:
        """How many threads help: none where files are only copied, which takes less time than to hand them over."""
        return 0 if self.are_stored else self.threads


@dataclass(frozen=True, slots=True)
class Cutout:
    """A decoded crop (RGB) and its mask (L, 0 or 255); `crop_xyxy` is where it lies in the photograph, not resized.

    Pillow's pictures and not arrays: its cutting, filling and encoding is fast, the way to arrays and back is not.
    """

    image: Image.Image
    mask: Image.Image
    crop_xyxy: Box

    def mask_array(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """The mask as a boolean array of shape [H, W]."""
        return np.asarray(self.mask) > 0


def decode(sample: StoredSample) -> Cutout:
    """A stored crop and its mask. Raises IncompleteError when they are no pictures."""
    image, mask = _read(sample, sample.image, mode="RGB"), _read(sample, sample.mask_png, mode="L")
    return Cutout(image, mask, sample.row.crop_xyxy)


def decode_mask(sample: StoredSample) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """A stored mask, [H, W]. Raises IncompleteError when it is no picture."""
    return np.asarray(_read(sample, sample.mask_png, mode="L")) > 0


def _read(sample: StoredSample, content: bytes, *, mode: str) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(content))
        image.load()
        return image if image.mode == mode else image.convert(mode)
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError) as error:  # Pillow's words for broken pictures
        raise IncompleteError(
            f"shards/{sample.row.shard}: the pictures of sample {sample.row.key} cannot be read ({error}); delete the "
            "tar and run `maskmine mine` again, which makes it anew"
        ) from error


def cut_to_region(cutout: Cutout, box_crop_xyxy: Box, *, expand_ratio: float) -> Cutout:
    """The part of a crop around its region: the tight box (in the crop's frame) grown, as far as the crop reaches."""
    width_px, height_px = cutout.mask.size
    x0, y0, x1, y1 = box = grow_box(box_crop_xyxy, ratio=expand_ratio, height_px=height_px, width_px=width_px)
    left, top = cutout.crop_xyxy[:2]
    return Cutout(cutout.image.crop(box), cutout.mask.crop(box), (left + x0, top + y0, left + x1, top + y1))


def shrink(cutout: Cutout, *, max_side_px: int | None) -> Cutout:
    """The same with a longer side of `max_side_px` at most. A pixel is of the mask where half of its area was.

    Where that leaves nothing of a thin mask, a pixel is of the mask where any of its area was.
    """
    width_px, height_px = cutout.mask.size
    if max_side_px is None or max(height_px, width_px) <= max_side_px:
        return cutout
    ratio = max_side_px / max(height_px, width_px)
    size = (max(1, round(width_px * ratio)), max(1, round(height_px * ratio)))
    share_HW = np.array(Image.fromarray(cutout.mask_array().astype(np.float32)).resize(size, Image.Resampling.BOX))
    mask_HW = share_HW >= 0.5
    mask_HW = mask_HW if mask_HW.any() else share_HW > 0
    image = cutout.image.resize(size, Image.Resampling.BICUBIC)
    return Cutout(image, Image.fromarray(mask_HW.astype(np.uint8) * 255), cutout.crop_xyxy)


def fill_background(cutout: Cutout, fill: Fill) -> Image.Image:
    """The picture with CLIP's mean colour, black, or what is there outside the mask."""
    if fill == "none":
        return cutout.image
    return paint_background(cutout, CLIP_MEAN_PX if fill == "mean" else (0, 0, 0))


def paint_background(cutout: Cutout, colour: tuple[int, int, int]) -> Image.Image:
    """The picture with one colour outside the mask."""
    painted = Image.new("RGB", cutout.image.size, colour)
    painted.paste(cutout.image, mask=cutout.mask)
    return painted


def encode_png(rgb_HW3: np.ndarray[Any, Any]) -> bytes:
    """A picture of shape [H, W, 3] as PNG.

    Written here and not by Pillow, which tries five filters on every row, and deflated by its runs alone: a third of
    Pillow's time for 8 % more bytes.
    """
    height_px, width_px, _ = rgb_HW3.shape
    pixels_HV = rgb_HW3.reshape(height_px, 3 * width_px)
    rows_HV = np.empty((height_px, 1 + 3 * width_px), np.uint8)
    rows_HV[:, 0] = 1  # the filter: each value less that of the pixel before it
    rows_HV[:, 1:4] = pixels_HV[:, :3]
    np.subtract(pixels_HV[:, 3:], pixels_HV[:, :-3], out=rows_HV[:, 4:])
    return png_file(rows_HV.tobytes(), height_px=height_px, width_px=width_px, colour_type=2, strategy=zlib.Z_RLE)


def read_ahead(items: Iterator[In]) -> Iterator[In]:
    """The same items, none of them None; a thread takes the next few while one is used.

    Files are read, written and hashed outside of Python's lock.
    """
    with ThreadPoolExecutor(1) as pool:
        ahead = deque(pool.submit(next, items, None) for _ in range(_READ_AHEAD))
        while (item := ahead.popleft().result()) is not None:
            ahead.append(pool.submit(next, items, None))
            yield item


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
