"""Pictures: from a path to upright RGB pixels, or to the reason why not.

Shapes: H, W height and width in pixels of the upright picture. A size is always `(height_px, width_px)`.
"""

from __future__ import annotations

import errno
import hashlib
import os
import posixpath
import re
import stat
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
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from mining.fetch import URL_SCHEMES, Fetch, fetch_url
from mining.places import Cell, Slice, parse_place
from mining.stores import OBJECT_STORES, describe, fault_line, fetch, plain_path, scheme_of
from schemas.errors import IncompleteError, InputError
from schemas.rows import Rejection

Result = TypeVar("Result")

MAX_SIDE_PX = 16_383
"""The longest side of a picture, and so of a crop: WebP holds no more (JPEG 65,500)."""


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """Upright pixels, uint8 of shape [H, W, 3], and the SHA-256 of the file's bytes.

    `orientation` is the turn or flip that EXIF asked for and that was applied: 1 is none, 5 to 8 swap the sides.
    """

    rgb_HW3: np.ndarray[Any, np.dtype[np.uint8]]
    sha256: str
    orientation: int


def read_image(path: str | None, *, max_pixels: int) -> Picture | Rejection:
    """The picture at `path`: a plain path, `file://`, an object store (`s3://`, `gs://`), or a place in a tar or table
    on one of these (`mining/places.py`).

    Rejected are `missing_file`, `decode_error` and, from the header alone, `image_too_large`. Raises OSError for a
    fault of the disk, IncompleteError for one of an object store, and InputError when the library for such a store is
    not installed.
    """
    data = read_bytes(path, most_bytes=most_bytes(max_pixels))
    return data if isinstance(data, Rejection) else decode_image(data, max_pixels=max_pixels)


def read_bytes(path: str | None, *, most_bytes: int = 1 << 30, urls: Fetch | None = None) -> bytes | Rejection:
    """The bytes of the file at `path`, `missing_file`, or `image_too_large` beyond `most_bytes`; raises as above.

    A URL is read when `urls` allows it, and may be `fetch_failed` or `fetch_refused`.
    """
    data: bytes | Rejection
    if path is not None and urls is not None and urls.allow and scheme_of(path) in URL_SCHEMES:
        data = fetch_url(path, fetch=urls)
    else:
        data = _with_file(path, lambda file: file.read(most_bytes + 1))
    if isinstance(data, bytes) and len(data) > most_bytes:
        return Rejection("image_too_large", f"a file of more than {most_bytes:,} bytes")
    return data


def read_head(path: str | None) -> bytes | Rejection:
    """The first bytes of the file at `path`, enough for nearly every header; rejects and raises as `read_image`."""
    return _with_file(path, lambda file: file.read(_HEAD_BYTES), most=_HEAD_BYTES)


def most_bytes(max_pixels: int) -> int:
    """The largest file that a picture of so many pixels may have."""
    return max_pixels * _MOST_BYTES_A_PIXEL + _HEADER_BYTES


def decode_image(data: bytes, *, max_pixels: int) -> Picture | Rejection:
    """The picture in the bytes of a file: JPEG, PNG, WEBP, GIF, BMP or TIFF; of several frames the first.

    Transparent pixels are laid over white, 16 bits are scaled to 8, the colour profile is not applied. The turn is
    the one that EXIF states before the pixels. Whatever the bytes are, the answer is a value.
    """
    return _without_warnings(lambda: _decode(data, max_pixels=max_pixels))


def image_size(source: str | bytes | None) -> tuple[int, int] | Rejection:
    """The size of the upright picture from the header alone; `source` is a path or a file's bytes.

    A file that breaks off behind its header has a size, and only `read_image` tells.
    """
    if isinstance(source, bytes):
        return _without_warnings(lambda: _header_size(BytesIO(source)))
    return _with_file(source, lambda file: _without_warnings(lambda: _header_size(file)))


class _JpegFile(JpegImagePlugin.JpegImageFile):
    """A JPEG whose EXIF is left alone: Pillow would look up the resolution and warn about every broken EXIF."""

    def getexif(self) -> Image.Exif:
        return Image.Exif()


# `Image.open` is not used because it measures every picture against Pillow's own limit, which is one number for the
# whole process and answers with a warning first; here the size is checked against the settings.
_READERS: tuple[tuple[re.Pattern[bytes], type[ImageFile.ImageFile]], ...] = (
    (re.compile(rb"\xff\xd8\xff"), _JpegFile),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), PngImagePlugin.PngImageFile),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), WebPImagePlugin.WebPImageFile),
    (re.compile(rb"GIF8[79]a"), GifImagePlugin.GifImageFile),
    (re.compile(rb"II[*+]\0|MM\0[*+]"), TiffImagePlugin.TiffImageFile),
    (re.compile(rb"BM"), BmpImagePlugin.BmpImageFile),
)
_SIGNATURE_BYTES = 16
_HEAD_BYTES = 1 << 18  # a camera's EXIF and colour profile are 64 kB each at most

# What Pillow is known to raise on broken bytes. An OSError with an errno comes from the disk and is raised again.
_BROKEN = (
    *(OSError, EOFError, SyntaxError, ValueError, TypeError, LookupError, OverflowError),
    *(struct.error, zlib.error, Image.DecompressionBombError),
)

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION_TAG = 0x0112
# No picture needs more: four channels of 16 bits without compression, and what cameras write beside the pixels.
_MOST_BYTES_A_PIXEL, _HEADER_BYTES = 8, 64_000_000
_INTEGERS = {1: "B", 3: "H", 4: "L"}  # TIFF field type → struct code

_WARNINGS_LOCK = threading.Lock()


def _with_file(path: str | None, read: Callable[[IO[bytes]], Result], *, most: int | None = None) -> Result | Rejection:
    """What `read` makes of the open file; a file that cannot be had is `missing_file`.

    From an object store no more than `most` bytes are fetched, by default as many as a picture may have. That such a
    store fails is no fault of the image: it raises IncompleteError.
    """
    if path is None:
        return Rejection("missing_file", "the captions name this image, the image list does not")
    place = parse_place(path)
    if isinstance(place, Rejection):
        return place
    path = place if isinstance(place, str) else place.file
    name = re.split(r"[/\\]", path)[-1]
    try:
        file = _open_place(place, most=most)
        if isinstance(file, Rejection):
            return file
        if isinstance(file, str):
            return Rejection("missing_file", f"{name}: {file}")
        with file:
            return read(file)
    except (FileNotFoundError, NotADirectoryError):
        return Rejection("missing_file", f"{name}: no such file")
    except IsADirectoryError:
        return Rejection("missing_file", f"{name}: a folder")
    except PermissionError:
        if scheme_of(path) in OBJECT_STORES:
            _refuse_if_all_is_refused(path)
        return Rejection("missing_file", f"{name}: not readable")
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            return Rejection("missing_file", f"{name[:80]}: no such file")
        if scheme_of(path) in OBJECT_STORES:
            raise IncompleteError(fault_line(error, path)) from error
        raise


def _open_place(place: str | Slice | Cell, *, most: int | None) -> IO[bytes] | Rejection | str:
    """The bytes that a place stands for as an open file, or why there are none. Of a slice, no more than it is read."""
    if isinstance(place, str):
        return _open_file(place, most=most)
    if isinstance(place, Cell):
        from mining.table_cells import read_cell  # Arrow is large, and decoders have no use for it

        data = read_cell(place)
        return data if isinstance(data, Rejection) else BytesIO(data)
    size_bytes = min(place.size_bytes, most or most_bytes(MAX_SIDE_PX**2))
    if scheme_of(place.file) != "file":
        return BytesIO(fetch(place.file, start=place.offset, most_bytes=size_bytes))
    file = _open_local(plain_path(place.file))
    if isinstance(file, str):
        return file
    with file:
        file.seek(place.offset)
        return BytesIO(file.read(size_bytes))


def _open_file(path: str, *, most: int | None) -> IO[bytes] | str:
    """The open file, or why it is not to be opened."""
    if scheme_of(path) == "file":
        return _open_local(plain_path(path))
    if scheme_of(path) not in OBJECT_STORES or "::" in path:
        return "nothing is fetched from a URL unless the user allows it"
    # a picture with a side of more pixels is rejected, so a file with more bytes is none that is wanted
    return BytesIO(fetch(path, most_bytes=most or most_bytes(MAX_SIDE_PX**2)))


def _refuse_if_all_is_refused(path: str) -> None:
    """One object may be locked, and is missing; but where the whole folder is refused, the credentials are at fault."""
    try:
        describe(posixpath.dirname(path))
    except InputError as error:
        raise IncompleteError(str(error)) from error


def _open_local(path: str) -> IO[bytes] | str:
    try:
        mode = os.stat(path).st_mode
    except ValueError:  # a name that no file can have
        return "no such file"
    if stat.S_ISDIR(mode):
        return "a folder"
    return open(path, "rb") if stat.S_ISREG(mode) else "not a regular file"


def _without_warnings(decode: Callable[[], Result]) -> Result:
    """`decode()`, also where warnings are errors: a picture's fate must not depend on Python's warning filters.

    The filters belong to the whole process, so they are touched only where a warning was really raised.
    """
    try:
        return decode()
    except Warning:
        with _WARNINGS_LOCK, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return decode()


def _decode(data: bytes, *, max_pixels: int) -> Picture | Rejection:
    image = _open_picture(BytesIO(data))
    if isinstance(image, Rejection):
        return image
    if image.width * image.height > max_pixels:
        return _too_large(image, max_pixels=max_pixels)
    if max(image.size) > MAX_SIDE_PX:
        return Rejection("image_too_large", f"{image.width} × {image.height}: a side of more than {MAX_SIDE_PX} pixels")
    orientation = _orientation(image)
    try:
        image.load()
        upright = _to_rgb(image)
    except _BROKEN as error:
        return _broken(image.format, error)
    if orientation in _TURNS and image.format != "TIFF":  # Pillow turns a TIFF while it loads it
        upright = upright.transpose(_TURNS[orientation])
    return Picture(np.array(upright), hashlib.sha256(data).hexdigest(), orientation)


def _header_size(file: IO[bytes]) -> tuple[int, int] | Rejection:
    image = _open_picture(file)
    if isinstance(image, Rejection):
        return image
    if _orientation(image) >= 5 and image.format != "TIFF":
        return image.width, image.height
    return image.height, image.width


def _open_picture(file: IO[bytes]) -> ImageFile.ImageFile | Rejection:
    """The picture with its header read, its pixels not yet."""
    file.seek(0)
    start = file.read(_SIGNATURE_BYTES)
    file.seek(0)
    if not start:
        return Rejection("decode_error", "empty file")
    for signature, reader in _READERS:
        if signature.match(start):
            try:
                return reader(file)
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


def _orientation(image: ImageFile.ImageFile) -> int:
    """The EXIF orientation, 1 to 8; 1 where there is none or it cannot be read.

    Reads the one tag of the first directory (TIFF 6.0, section 2) and nothing else, so broken EXIF does no harm.
    """
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        value = image.tag_v2.get(_ORIENTATION_TAG, 1)
        return value if value in _TURNS else 1
    exif = image.info.get("exif")
    if not isinstance(exif, bytes):
        return 1
    exif = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(f"{order}L", exif, 4)
        (count,) = struct.unpack_from(f"{order}H", exif, start)
        for offset in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(f"{order}HH", exif, offset)
            if tag == _ORIENTATION_TAG and kind in _INTEGERS:
                (value,) = struct.unpack_from(f"{order}{_INTEGERS[kind]}", exif, offset + 8)
                return value if value in _TURNS else 1
    except struct.error:
        pass
    return 1
