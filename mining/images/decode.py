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
from typing import IO, Any, TypeVar

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

from maskmine.mining.images.orientation import read_orientation, turn_upright
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


def decode_image(data: bytes, *, max_pixels: int) -> DecodedImage | Rejection:
    """The image in the bytes of a file: JPEG, PNG, WEBP, GIF, BMP, TIFF, JPEG 2000 or AVIF.

    Of several frames it is the first. Transparent pixels are laid over white, 16 bits are scaled to 8, the colour
    profile is not applied. The turn is the one that `mining/images/orientation.py` finds. Whatever the bytes are, the
    answer is a value.
    """
    return _without_warnings(lambda: _decode(data, max_pixels=max_pixels))


def header_size(file: IO[bytes]) -> tuple[int, int] | Rejection:
    """The size of the upright image from the header alone; a file that breaks off behind it has one."""
    return _without_warnings(lambda: _header_size(file))


def open_as_stored(file: IO[bytes]) -> ImageFile.ImageFile:
    """An image in its own mode and as it is stored, for label maps and masks: as `Image.open` and with its errors, but
    nothing beside the pixels of a PNG refuses it."""
    file.seek(0)
    signature = file.read(_SIGNATURE_BYTES)
    file.seek(0)
    if _PNG.match(signature):
        return open_png(file, pixels=True)
    return Image.open(file)


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
    *(OSError, EOFError, SyntaxError, ValueError, TypeError, LookupError, OverflowError),
    *(struct.error, zlib.error, Image.DecompressionBombError),
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
    image = _open_picture(BytesIO(data), pixels=True)
    if isinstance(image, Rejection):
        return image
    if image.width * image.height > max_pixels:
        return _too_large(image, max_pixels=max_pixels)
    if max(image.size) > MAX_SIDE_PX:
        return Rejection("image_too_large", f"{image.width} × {image.height}: a side of more than {MAX_SIDE_PX} pixels")
    orientation = read_orientation(image)
    try:
        image.load()
        upright = _to_rgb(image)
    except _BROKEN as error:
        return _broken(image.format, error)
    if image.format != "TIFF":  # Pillow turns a TIFF while it loads it
        upright = turn_upright(upright, orientation)
    return DecodedImage(np.array(upright), hashlib.sha256(data).hexdigest(), orientation.value, orientation.source)


def _header_size(file: IO[bytes]) -> tuple[int, int] | Rejection:
    image = _open_picture(file, pixels=False)
    if isinstance(image, Rejection):
        return image
    orientation = read_orientation(image)
    if isinstance(image, TiffImagePlugin.TiffImageFile) and orientation.source == "EXIF":  # Pillow swapped them
        return image.height, image.width
    return (image.width, image.height) if orientation.swaps_sides else (image.height, image.width)


def _open_picture(file: IO[bytes], *, pixels: bool) -> ImageFile.ImageFile | Rejection:
    """The image with its header read, its pixels not yet, and those of a PNG only if they are wanted."""
    file.seek(0)
    start = file.read(_SIGNATURE_BYTES)
    file.seek(0)
    if not start:
        return Rejection("decode_error", "empty file")
    for signature, reader in _READERS:
        if signature.match(start):
            try:
                return open_png(file, pixels=pixels) if reader is PngImagePlugin.PngImageFile else reader(file)
            except _BROKEN as error:
                return _broken(reader.format, error)
    return Rejection("decode_error", f"not a picture: begins with {start.decode('latin-1')!a}")


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
