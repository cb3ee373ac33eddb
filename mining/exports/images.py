"""Images of an export: stored crops cut to the region, filled, resized and encoded again, or copied.

Shapes: H and W height and width of a crop.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from PIL import Image
from pydantic import Field

from maskmine.mining.images.child_decoder import Decoding
from maskmine.mining.images.crops import grow_box
from maskmine.mining.images.decode import MAX_SIDE_PX
from maskmine.mining.images.encode import encode_image, encode_mask, encode_png
from maskmine.mining.storage.urls import Fetch
from maskmine.schemas.errors import IncompleteError
from maskmine.schemas.mask import Box
from maskmine.schemas.rows import Rejection
from maskmine.schemas.sample import ImageFormat, StoredSample
from maskmine.schemas.settings import AddedLater, ExecutionOnly, Settings

CLIP_MEAN_PX = (123, 117, 104)  # the mean colour of OpenAI's training images, 0 after normalisation
_DECODING = Decoding()
Fill = Literal["mean", "zero", "none"]


class Pictures(Settings):
    """How the images of an export are written."""

    image_format: ImageFormat | None = None
    """Format of the images; null keeps that of the run."""
    quality: Annotated[int, Field(ge=1, le=100)] = 95
    """Quality of jpg and webp, 1–100; images that are copied keep theirs."""
    max_side_px: Annotated[int, Field(ge=8)] | None = None
    """Longer side in pixels to which larger images are reduced; null keeps their size. None is enlarged."""
    fill: Fill = "mean"
    """Colour around the mask in exports of masked crops: CLIP's `mean` colour, `zero` (black) or `none` (the image)."""
    expand_ratio: Annotated[float, Field(ge=1.0, le=10.0)] = 1.0
    """Factor by which masked crops grow the tight box of the mask; the run's `shards.expand_ratio` at most."""
    photographs: Annotated[Literal["refer", "copy"], AddedLater()] = "refer"
    """Whether exports for annotation tools `refer` to the photographs, or `copy` them, upright, as JPEG."""
    prefix: Annotated[str, AddedLater()] = ""
    """What stands before the names of photographs in Label Studio's tasks, such as the URL of their folder."""
    threads: Annotated[int, ExecutionOnly(), Field(ge=1, le=64)] = 2
    """Threads that encode images at the same time."""
    fetch: Annotated[Fetch, ExecutionOnly()] = Fetch()
    """Whether and how photographs are read from URLs, in forms that hold them whole."""

    def keeps(self, sample: StoredSample) -> bool:
        """Whether a stored crop can be copied: it has the format and the size that are asked for."""
        if self.image_format not in (None, sample.image_format):
            return False
        x0, y0, x1, y1 = sample.row.crop_xyxy
        return self.max_side_px is None or max(x1 - x0, y1 - y0) <= self.max_side_px

    def encode(self, image: Image.Image, image_format: ImageFormat) -> bytes:
        """An image as a file of the given format."""
        if image_format == "png":
            return encode_png(np.asarray(image))
        return encode_image(image, image_format, quality=self.quality)

    def files(self, sample: StoredSample) -> tuple[ImageFormat, bytes, bytes]:
        """The format of a whole crop, and the crop and its mask as files: the stored ones, or encoded again."""
        if self.keeps(sample):
            return sample.image_format, sample.image, sample.mask_png
        cutout = shrink(decode(sample), max_side_px=self.max_side_px)
        image_format = self.image_format or sample.image_format
        return image_format, self.encode(cutout.image, image_format), encode_mask(cutout.mask_array())

    @property
    def are_stored(self) -> bool:
        """Whether all stored crops can be copied."""
        return self.image_format is None and self.max_side_px is None

    @property
    def workers(self) -> int:
        """Threads that encode; none where files are copied, which takes less time than handing them over."""
        return 0 if self.are_stored else self.threads


@dataclass(frozen=True, slots=True)
class Cutout:
    """A decoded crop (RGB) and its mask (L, 0 or 255); `crop_xyxy` is its box in the whole image, before resizing.

    Images of Pillow and not arrays: Pillow cuts, fills and encodes fast, and converting to arrays and back is slow.
    """

    image: Image.Image
    mask: Image.Image
    crop_xyxy: Box

    def mask_array(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """The mask as a boolean array of shape [H, W]."""
        return np.asarray(self.mask) > 0


def decode(sample: StoredSample) -> Cutout:
    """A stored crop and its mask. Raises IncompleteError when they cannot be decoded."""
    return Cutout(decode_crop(sample), _read(sample, sample.mask_png, mode="L"), sample.row.crop_xyxy)


def decode_crop(sample: StoredSample) -> Image.Image:
    """A stored crop, RGB. Raises IncompleteError when it cannot be decoded."""
    return _read(sample, sample.image, mode="RGB")


def decode_mask(sample: StoredSample) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """A stored mask, [H, W]. Raises IncompleteError when it cannot be decoded."""
    return np.asarray(_read(sample, sample.mask_png, mode="L")) > 0


def _read(sample: StoredSample, content: bytes, *, mode: str) -> Image.Image:
    """A member of a shard as pixels. Shards are handed on between teams, so it is decoded as any other image is."""
    stored = _DECODING.decode_stored(content, max_pixels=MAX_SIDE_PX**2, mode=mode)
    x0, y0, x1, y1 = sample.row.crop_xyxy
    fault = stored.detail if isinstance(stored, Rejection) else "of another size than the index says"
    if isinstance(stored, Rejection) or stored.pixels.shape[:2] != (y1 - y0, x1 - x0):
        raise IncompleteError(
            f"shards/{sample.row.shard}: the pictures of sample {sample.row.key} cannot be read ({fault}); "
            "delete the tar and run `maskmine mine` again, which writes it again"
        )
    return Image.fromarray(stored.pixels)


def cut_to_region(cutout: Cutout, box_crop_xyxy: Box, *, expand_ratio: float) -> Cutout:
    """The part of a crop around its region: the tight box (in the crop's frame) grown, as far as the crop reaches."""
    width_px, height_px = cutout.mask.size
    x0, y0, x1, y1 = box = grow_box(box_crop_xyxy, ratio=expand_ratio, height_px=height_px, width_px=width_px)
    left, top = cutout.crop_xyxy[:2]
    return Cutout(cutout.image.crop(box), cutout.mask.crop(box), (left + x0, top + y0, left + x1, top + y1))


def shrink(cutout: Cutout, *, max_side_px: int | None) -> Cutout:
    """The crop with a longer side of at most `max_side_px`; the mask as `shrink_mask` makes it."""
    size = smaller_size(cutout.mask.size, max_side_px=max_side_px)
    if size == cutout.mask.size:
        return cutout
    mask_HW = shrink_mask(cutout.mask_array(), size)
    image = cutout.image.resize(size, Image.Resampling.BICUBIC)
    return Cutout(image, Image.fromarray(mask_HW.astype(np.uint8) * 255), cutout.crop_xyxy)


def smaller_size(size: tuple[int, int], *, max_side_px: int | None) -> tuple[int, int]:
    """Width and height of an image whose longer side has become `max_side_px`; its own where that is not more."""
    if max_side_px is None or max(size) <= max_side_px:
        return size
    ratio = max_side_px / max(size)
    return max(1, round(size[0] * ratio)), max(1, round(size[1] * ratio))


def shrink_mask(
    mask_HW: np.ndarray[Any, np.dtype[np.bool_]], size: tuple[int, int]
) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """The mask at a smaller size (width, height). A pixel belongs to it where half of its area did.

    Where that leaves nothing of a thin mask, it belongs to it where any of its area did.
    """
    share_HW = np.array(Image.fromarray(mask_HW.astype(np.float32)).resize(size, Image.Resampling.BOX))
    smaller_HW = share_HW >= 0.5
    return smaller_HW if smaller_HW.any() else share_HW > 0


def fill_background(cutout: Cutout, fill: Fill) -> Image.Image:
    """The image with CLIP's mean colour, black, or unchanged outside the mask."""
    if fill == "none":
        return cutout.image
    return paint_background(cutout, CLIP_MEAN_PX if fill == "mean" else (0, 0, 0))


def paint_background(cutout: Cutout, colour: tuple[int, int, int]) -> Image.Image:
    """The image with one colour outside the mask."""
    painted = Image.new("RGB", cutout.image.size, colour)
    painted.paste(cutout.image, mask=cutout.mask)
    return painted
