"""From the bytes of an image file to upright RGB pixels, or to the reason why not."""

from __future__ import annotations

import hashlib
import re
import struct
import threading
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Any, TypeVar

import numpy as np
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from maskmine.mining.images.file_blocks import gif_for_pixels, jpeg_fault
from maskmine.mining.images.orientation import Orientation, read_orientation, turn_upright
from maskmine.mining.images.png_chunks import open_png
from maskmine.schemas.rows import Rejection

Result = TypeVar("Result")

MAX_SIDE_PX = 16_383
"""The longest side of an image, and so of a crop: WebP holds no more (JPEG 65,500)."""


@dataclass(frozen=True, slots=True, eq=False)
class DecodedImage:
    """Upright pixels, uint8 of shape [H, W, 3], and the SHA-256 of the file's bytes.

    `orientation` is the turn or flip that the file asked for and that was applied: 1 is none, 5 to 8 swap the sides.
    `turned_by` says where it stood, as in `orientation.Orientation.source`; empty where there is none.
    """

    rgb_HW3: np.ndarray[Any, np.dtype[np.uint8]]
    sha256: str
    orientation: int
    turned_by: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class StoredImage:
    """Pixels as the file has them, not turned: [H, W] or [H, W, C] of the type that goes with Pillow's `mode`."""

    pixels: np.ndarray[Any, Any]
    mode: str
    format: str
    orientation: Orientation


@dataclass(frozen=True, slots=True)
class Header:
    """What stands before the pixels: `(height_px, width_px)` as they are stored and upright, and what turns them."""

    stored_px: tuple[int, int]
    upright_px: tuple[int, int]
    orientation: Orientation


def decode_image(data: bytes, *, max_pixels: int) -> DecodedImage | Rejection:
    """The image in the bytes of a file: JPEG, PNG, WEBP, GIF, BMP, TIFF, JPEG 2000 or AVIF.

    Of several frames it is the first. Transparent pixels are laid over white, 16 bits are scaled to 8, the colour
    profile is not applied. The turn is the one that `mining/images/orientation.py` finds. Whatever the bytes are, the
    answer is a value.
    """
    return _without_warnings(lambda: _decode(data, max_pixels=max_pixels))


def decode_stored(data: bytes, *, max_pixels: int, mode: str | None = None) -> StoredImage | Rejection:
    """The image as it is stored, for label maps, masks and crops; in Pillow's `mode`, by default in its own.

    Nothing beside the pixels of a PNG refuses it. Rejects as `decode_image`.
    """
    return _without_warnings(lambda: _decode_stored(data, max_pixels=max_pixels, mode=mode))


def read_header(data: bytes) -> Header | Rejection:
    """What stands before the pixels; a file that breaks off behind it has it too."""
    return _without_warnings(lambda: _read_header(data))


class _JpegFile(JpegImagePlugin.JpegImageFile):
    """A JPEG whose EXIF is left alone: Pillow would look up the resolution and warn about every broken EXIF."""

    def getexif(self) -> Image.Exif:
        return Image.Exif()


class _AvifFile(AvifImagePlugin.AvifImageFile):
    """An AVIF whose faults are those of other pictures: libavif's wrapper raises RuntimeError for some of them."""

    def _open(self) -> None:
        try:
            super()._open()
        except RuntimeError as error:
            raise SyntaxError(str(error)) from error

    def load(self) -> Any:
        try:
            return super().load()
        except RuntimeError as error:
            raise SyntaxError(str(error)) from error


_PNG = re.compile(rb"\x89PNG\r\n\x1a\n")
# `Image.open` is not used because it measures every image against Pillow's own limit, which is one number for the
# whole process and answers with a warning first; here the size is checked against the settings.
_READERS: tuple[tuple[re.Pattern[bytes], type[ImageFile.ImageFile]], ...] = (
    (re.compile(rb"\xff\xd8\xff"), _JpegFile),
    (_PNG, PngImagePlugin.PngImageFile),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), WebPImagePlugin.WebPImageFile),
    (re.compile(rb"GIF8[79]a"), GifImagePlugin.GifImageFile),
    (re.compile(rb"II[*+]\0|MM\0[*+]"), TiffImagePlugin.TiffImageFile),
    (re.compile(rb"BM"), BmpImagePlugin.BmpImageFile),
    (re.compile(rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  \r\n\x87\n"), Jpeg2KImagePlugin.Jpeg2KImageFile),
    (re.compile(rb"....ftyp(avif|avis|mif1|msf1)", re.DOTALL), _AvifFile),
)
_SIGNATURE_BYTES = 16  # the longest signature has 12
# What Pillow is known to raise on broken bytes. An OSError with an errno comes from the disk and is raised again.
_BROKEN = (
    *(OSError, EOFError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, AssertionError),
    *(AttributeError, NotImplementedError, struct.error, zlib.error, Image.DecompressionBombError),
)
_WARNINGS_LOCK = threading.Lock()  # the filters belong to the process, and images are decoded in threads


def _without_warnings(decode: Callable[[], Result]) -> Result:
    """`decode()`, also where warnings are errors: an image's fate must not depend on Python's warning filters.

    The filters belong to the whole process, so they are touched only where a warning was really raised.
    """
    try:
        return decode()
    except Warning:
        with _WARNINGS_LOCK, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return decode()


def _decode(data: bytes, *, max_pixels: int) -> DecodedImage | Rejection:
    image = _open_checked(data, max_pixels=max_pixels)
    if isinstance(image, Rejection):
        return image
    try:
        orientation = read_orientation(image)
        image.load()
        upright = _to_rgb(image)
        if image.format != "TIFF":  # Pillow turns a TIFF while it loads it
            upright = turn_upright(upright, orientation)
        rgb_HW3 = np.array(upright)
    except _BROKEN as error:
        return _broken(image.format, error)
    return DecodedImage(rgb_HW3, hashlib.sha256(data).hexdigest(), orientation.value, orientation.source)


def _decode_stored(data: bytes, *, max_pixels: int, mode: str | None) -> StoredImage | Rejection:
    image = _open_checked(data, max_pixels=max_pixels)
    if isinstance(image, Rejection):
        return image
    try:
        orientation = read_orientation(image)
        image.load()
        shown = image if mode in (None, image.mode) else image.convert(mode)
        return StoredImage(np.array(shown), shown.mode, image.format or "", orientation)
    except _BROKEN as error:
        return _broken(image.format, error)


def _read_header(data: bytes) -> Header | Rejection:
    image = _open_picture(data, pixels=False)
    if isinstance(image, Rejection):
        return image
    try:
        orientation = read_orientation(image)
    except _BROKEN as error:
        return _broken(image.format, error)
    stored_px = upright_px = image.height, image.width
    is_turned = isinstance(image, TiffImagePlugin.TiffImageFile) and orientation.source == "EXIF"  # by Pillow
    if orientation.swaps_sides and not is_turned:
        upright_px = image.width, image.height
    return Header(stored_px, upright_px, orientation)


def _open_checked(data: bytes, *, max_pixels: int) -> ImageFile.ImageFile | Rejection:
    """The image with its header read, of a size that is allowed."""
    image = _open_picture(data, pixels=True)
    if isinstance(image, Rejection):
        return image
    if image.width * image.height > max_pixels:
        return _too_large(image, max_pixels=max_pixels)
    if max(image.size) > MAX_SIDE_PX:
        return Rejection("image_too_large", f"{image.width} × {image.height}: a side of more than {MAX_SIDE_PX} pixels")
    return image


def _open_picture(data: bytes, *, pixels: bool) -> ImageFile.ImageFile | Rejection:
    """The image with its header read, its pixels not yet, and those of a PNG only if they are wanted."""
    if not data:
        return Rejection("decode_error", "empty file")
    for signature, reader in _READERS:
        if signature.match(data):
            try:
                return _open_as(reader, data, pixels=pixels)
            except _BROKEN as error:
                return _broken(reader.format, error)
    return Rejection("decode_error", f"not a picture: begins with {data[:_SIGNATURE_BYTES].decode('latin-1')!a}")


def _open_as(reader: type[ImageFile.ImageFile], data: bytes, *, pixels: bool) -> ImageFile.ImageFile:
    if reader is PngImagePlugin.PngImageFile:
        return open_png(BytesIO(data), pixels=pixels)
    if reader is GifImagePlugin.GifImageFile:
        data = gif_for_pixels(data)
    if reader is _JpegFile and (fault := jpeg_fault(data)):
        raise SyntaxError(fault)
    return reader(BytesIO(data))


def _broken(kind: str | None, error: Exception) -> Rejection:
    if isinstance(error, Image.DecompressionBombError):
        return Rejection("image_too_large", f"more pixels than Pillow reads of a {kind}")
    if isinstance(error, OSError) and error.errno is not None:
        raise error
    # an exception's text may show an object with its address, which is another one in every run
    text = re.sub(r" at 0x[0-9a-fA-F]+", "", str(error)).strip() or type(error).__name__
    return Rejection("decode_error", f"broken {kind}: {ascii(text)[1:-1][:120]}")


def _too_large(image: Image.Image, *, max_pixels: int) -> Rejection:
    pixels = f"{image.width} × {image.height} = {image.width * image.height:,} pixels"
    return Rejection("image_too_large", f"{pixels}, more than `max_image_pixels: {max_pixels}`")


def _to_rgb(image: Image.Image) -> Image.Image:
    """RGB pixels; raises ValueError for kinds of pixel whose range is not known (32-bit and floating point grey)."""
    if image.mode.startswith("I;16"):
        # Pillow's own conversion differs between its versions; 65535 must become 255
        grey_HW = (np.asarray(image).astype(np.uint32) + 128) // 257
        return Image.fromarray(grey_HW.astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"grey of mode {image.mode} has no known range")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")
