"""A PNG without what is written beside its pixels: texts and colour profiles can refuse no picture.

Pillow unpacks every text and profile and refuses the whole file where one is long (`MAX_TEXT_CHUNK`, 1 MB) or damaged.
None of them is applied here but the orientation, so Pillow sees the pixels alone, and of the texts only those are
unpacked that may state an orientation.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from io import BytesIO
from typing import IO, Any, NamedTuple

from PIL import PngImagePlugin

from maskmine.mining.images.orientation import PNG_XMP, RAW_PROFILE

_SIGNATURE_BYTES = 8
_HEAD = struct.Struct(">L4s")
_CRC_BYTES = 4
# The palette and what is transparent, and the frames of an animation; besides all chunks that a reader must know, whose
# names begin with a capital.
_OF_THE_PIXELS = (b"tRNS", b"acTL", b"fcTL", b"fdAT")
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_KEYS = ("exif", RAW_PROFILE, PNG_XMP, "xmp")
_MOST_TEXT_BYTES = 1 << 26  # of a text that is unpacked; an orientation stands in the first few thousand


class _Chunk(NamedTuple):
    """A chunk's name and where its content lies."""

    name: bytes
    start: int
    length: int


def open_png(file: IO[bytes], *, pixels: bool) -> PngImagePlugin.PngImageFile:
    """The image with its header read, and in its `info` what may state its orientation, also behind the pixels.

    `pixels`: whether they are wanted too; without them the file is not read whole. Raises as Pillow does.
    """
    file.seek(0)
    kept = [file.read(_SIGNATURE_BYTES)]
    info: dict[Any, Any] = {}
    end = _SIGNATURE_BYTES
    for chunk in _chunks(file):
        end = chunk.start + chunk.length + _CRC_BYTES
        if chunk.name == b"eXIf" or chunk.name in _TEXTS:
            info |= _stated(chunk.name, _read(file, chunk.start, chunk.length))
        elif chunk.name in _OF_THE_PIXELS or chunk.name[:1].isupper():
            if chunk.name != b"IDAT" or pixels:
                kept.append(_read(file, chunk.start - _HEAD.size, _HEAD.size + chunk.length + _CRC_BYTES))
            elif not kept[-1].endswith(b"IDAT"):
                kept.append(_HEAD.pack(chunk.length, b"IDAT"))
    file.seek(end)
    kept.append(file.read() if pixels else file.read(1 << 16))  # what is no chunk: Pillow says what is wrong with it
    image = PngImagePlugin.PngImageFile(BytesIO(b"".join(kept)))
    image.info.update(info)
    return image


def _chunks(file: IO[bytes]) -> Iterator[_Chunk]:
    """The whole chunks of a file, to the last one or to the first that is none."""
    size_bytes = file.seek(0, os.SEEK_END)
    start = _SIGNATURE_BYTES
    while start + _HEAD.size <= size_bytes:
        length, name = _HEAD.unpack(_read(file, start, _HEAD.size))
        if not name.isalpha() or start + _HEAD.size + length + _CRC_BYTES > size_bytes:
            return
        yield _Chunk(name, start + _HEAD.size, length)
        if name == b"IEND":
            return
        start += _HEAD.size + length + _CRC_BYTES


def _read(file: IO[bytes], start: int, length: int) -> bytes:
    file.seek(start)
    return file.read(length)


def _stated(name: bytes, content: bytes) -> dict[Any, Any]:
    """What Pillow keeps in `info` of a chunk that may state an orientation; nothing of another text."""
    if name == b"eXIf":
        return {"exif": b"Exif\0\0" + content}
    key, _, rest = content.partition(b"\0")
    keyword = key.decode("latin-1")
    if keyword not in _KEYS:
        return {}
    if name == b"tEXt":
        return {keyword: rest if keyword == "exif" else rest.decode("latin-1")}
    if name == b"zTXt":
        return {keyword: _unpacked(rest[1:]).decode("latin-1")}
    flags, parts = rest[:2], rest[2:].split(b"\0", 2)  # the language, the key in it, the text
    if len(parts) < 3:
        return {}
    text = parts[2] if flags[:1] == b"\0" else _unpacked(parts[2])
    return {**({"xmp": text} if keyword == PNG_XMP else {}), keyword: text.decode("utf-8", "replace")}


def _unpacked(content: bytes) -> bytes:
    try:
        return zlib.decompressobj().decompress(content, _MOST_TEXT_BYTES)
    except zlib.error:
        return b""
