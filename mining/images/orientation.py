"""How a picture is turned, read in one place as Pillow's `ImageOps.exif_transpose` reads it (`Image.getexif`).

What states it is asked in this order: EXIF (a PNG's `eXIf` chunk or a text `exif`; in TIFF the file's own tags), then
a PNG's text "Raw profile type exif", where ImageMagick writes EXIF, and, where these do not state it, XMP
(`tiff:Orientation`). The answer holds which of them it was.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, TiffImagePlugin

# What brings an image of each orientation upright (EXIF 2.32, 4.6.4 A); 1 is upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ARRAY_TURNS: Mapping[int, Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]] = {
    2: np.fliplr,
    3: lambda stored: np.rot90(stored, 2),
    4: np.flipud,
    5: lambda stored: np.swapaxes(stored, 0, 1),
    6: lambda stored: np.rot90(stored, 3),
    7: lambda stored: np.swapaxes(stored, 0, 1)[::-1, ::-1],
    8: np.rot90,
}
RAW_PROFILE = "Raw profile type exif"
PNG_XMP = "XML:com.adobe.xmp"

_TAG = 0x0112  # of EXIF and TIFF
_INTEGERS = {1: "B", 3: "H", 4: "L"}  # TIFF field type → struct code
_IN_XMP = re.compile(rb'tiff:Orientation(="|>)([0-9])')
_EXIF_HEAD = b"Exif\0\0"


class Orientation(NamedTuple):
    """The turn or flip that brings a picture upright: 1 is none, 5 to 8 swap the sides.

    `source` is what asked for it: `EXIF`, `EXIF in PNG text` or `XMP`; empty where nothing did.
    """

    value: int = 1
    source: str = ""

    @property
    def swaps_sides(self) -> bool:
        """Whether the upright picture is as wide as the stored one is high."""
        return self.value >= 5


def read_orientation(image: Image.Image) -> Orientation:
    """The orientation of an opened image, by its tags (TIFF) and `info`; upright where it is absent or unreadable.

    A PNG may state it behind its pixels; `png_chunks.open_png` puts that into `info` too.
    """
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return _orientation(image.tag_v2.get(_TAG), "EXIF") or _from_xmp(image.info) or Orientation()
    return _from_exif(image.info) or _from_xmp(image.info) or Orientation()


def turn_upright(image: Image.Image, orientation: Orientation) -> Image.Image:
    """The image as it is seen; of a TIFF, Pillow has done this already when its pixels are loaded."""
    turn = _TURNS.get(orientation.value)
    return image if turn is None else image.transpose(turn)


def turn_upright_array(stored: np.ndarray[Any, Any], orientation: Orientation) -> np.ndarray[Any, Any]:
    """As `turn_upright`, for pixels of shape [H, W] or [H, W, C]."""
    turn = _ARRAY_TURNS.get(orientation.value)
    return stored if turn is None else np.ascontiguousarray(turn(stored))


def _orientation(value: object, source: str) -> Orientation | None:
    """None where nothing is stated. A value that means nothing is stated all the same, and turns nothing."""
    if value is None:
        return None
    return Orientation(value, source) if isinstance(value, int) and value in _TURNS else Orientation()


def _from_exif(info: Mapping[Any, Any]) -> Orientation | None:
    exif = info.get("exif")
    if exif is not None:
        return _orientation(_tag_value(exif), "EXIF") if isinstance(exif, bytes) else None
    profile = info.get(RAW_PROFILE)
    if not isinstance(profile, str):
        return None
    try:  # ImageMagick's head has an empty line, the name and the length
        exif = bytes.fromhex("".join(profile.split("\n")[3:]))
    except ValueError:
        return None
    return _orientation(_tag_value(exif), "EXIF in PNG text")


def _from_xmp(info: Mapping[Any, Any]) -> Orientation | None:
    xmp = info.get(PNG_XMP) or info.get("xmp")
    if isinstance(xmp, str):
        xmp = xmp.encode("utf-8", "replace")
    if not isinstance(xmp, bytes):
        return None
    match = _IN_XMP.search(xmp)
    return _orientation(int(match[2]), "XMP") if match else None


def _tag_value(exif: bytes) -> int | None:
    """The orientation in EXIF; None where it is absent or cannot be read.

    Reads the one tag of the first directory (TIFF 6.0, section 2) and nothing else, so broken EXIF does no harm.
    """
    while exif.startswith(_EXIF_HEAD):
        exif = exif.removeprefix(_EXIF_HEAD)
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return None
    try:
        (start,) = struct.unpack_from(f"{order}L", exif, 4)
        (count,) = struct.unpack_from(f"{order}H", exif, start)
        for offset in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(f"{order}HH", exif, offset)
            if tag == _TAG and kind in _INTEGERS:
                value: int = struct.unpack_from(f"{order}{_INTEGERS[kind]}", exif, offset + 8)[0]
                return value
    except struct.error:
        pass
    return None
