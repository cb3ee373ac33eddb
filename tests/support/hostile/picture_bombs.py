"""Pictures of some kilobytes that stand for gigabytes, for hours, or for nothing at all; each must cost itself alone.

`PICTURE_BOMBS` names them by their files. They are made, not stored: the largest has a few megabytes.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterable

import numpy as np
from PIL import Image

from tests.support.hostile.corrupt_images import (
    RGB,
    bomb,
    encoded,
    gif_of_comments,
    jpeg_of_scans,
    png_without_palette,
)

PIECE = 1 << 20
GIGABYTE_PIECES = 1 << 10


def deflated(pieces: int) -> bytes:
    """So many megabytes of zeros as zlib packs them, a thousandth of them."""
    packer = zlib.compressobj(wbits=-15)
    packed = packer.compress(bytes(PIECE)) + packer.flush(zlib.Z_FULL_FLUSH)
    adler = pieces * PIECE % 65_521 << 16 | 1
    return b"\x78\x9c" + packed * pieces + b"\3\0" + struct.pack(">I", adler)


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(*before: bytes, size: tuple[int, int] = (8, 8), depth: int = 8, kind: int = 2, pixels: bytes = b"") -> bytes:
    """A PNG of chunks; grey is kind 0, RGB 2. Without pixels it has those of 8 × 8 in RGB."""
    header = struct.pack(">IIBBBBB", *size, depth, kind, 0, 0, 0)
    content = pixels or zlib.compress(b"\0" * 8 * 25)
    ends = chunk(b"IDAT", content), chunk(b"IEND", b"")
    return b"".join([b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", header), *before, *ends])


def frames_without_end() -> bytes:
    """An APNG that says it has 4 billion frames."""
    return png(chunk(b"acTL", struct.pack(">II", (1 << 32) - 1, 0)))


def tiff(*tags: tuple[int, int, int, int], after: int = 0, more: bytes = b"") -> bytes:
    """A little TIFF: tags as (number, type, count, value), and where its next directory is; `more` lies behind them."""
    entries = b"".join(struct.pack("<HHII", *tag) for tag in sorted(tags))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", after) + more


def grey_tiff(width: int, height: int, *more: tuple[int, int, int, int], packed: int = 1) -> list[tuple[int, ...]]:
    return [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, packed), (262, 3, 1, 1), *more]


def tiff_of_deflate() -> bytes:
    """A strip that unfolds to a gigabyte, of a picture of 100 × 100."""
    packed = deflated(GIGABYTE_PIECES)
    tags = grey_tiff(100, 100, (273, 4, 1, 0), (277, 3, 1, 1), (278, 4, 1, 100), (279, 4, 1, len(packed)), packed=8)
    place = 8 + 2 + 12 * len(tags) + 4
    tags = [(*tag[:3], place) if tag[0] == 273 else tag for tag in tags]
    return tiff(*tags, more=packed)  # type: ignore[arg-type]


def tiff_of_many(number: int, kind: int, count: int) -> bytes:
    """A picture of which one tag has very many values, which are not there."""
    return tiff(*grey_tiff(100, 100), (number, kind, count, 8))  # type: ignore[arg-type]


def tiff_in_a_circle() -> bytes:
    """Its first directory is its own next one, and holds itself as that of EXIF."""
    return tiff(*grey_tiff(100, 100), (34665, 4, 1, 8), (330, 4, 1, 8), after=8)  # type: ignore[arg-type]


def exif_in_a_circle() -> bytes:
    content = b"Exif\0\0" + tiff((34665, 4, 1, 8), (34853, 4, 1, 8), (40965, 4, 1, 8), after=8)
    data = encoded(RGB, "JPEG")
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(content) + 2) + content + data[2:]


def exif_of_many_values() -> bytes:
    """Sixty segments of EXIF, each full of tags whose counts are of gigabytes."""
    tags = b"".join(struct.pack("<HHII", 1 + number, 12, 1 << 28, 8) for number in range(5000))
    content = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 5000) + tags + bytes(4)
    data = encoded(RGB, "JPEG")
    segment = b"\xff\xe1" + struct.pack(">H", len(content) + 2) + content
    return data[:2] + segment * 60 + data[2:]


def jpeg_of(width: int, height: int) -> bytes:
    """A JPEG whose header says another size than it has."""
    data = bytearray(encoded(RGB, "JPEG"))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def bmp_of_runs(width: int, height: int) -> bytes:
    """A BMP of that size whose runs of equal pixels are not there."""
    palette = bytes(1024)
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, 4, 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 0, 0, 0, 14 + 40 + 1024) + info + palette + b"\0\1\0\1"


def gif_of(width: int, height: int, *, frames: int = 1) -> bytes:
    """A GIF with a large screen and very many frames of a pixel."""
    data = encoded(Image.new("P", (1, 1)), "GIF")
    frame = data[data.index(b"\x2c") : -1]
    screen = bytearray(data[: data.index(b"\x2c")])
    screen[6:10] = struct.pack("<HH", width, height)
    return bytes(screen) + frame * frames + b"\x3b"


def webp_of(width: int, height: int) -> bytes:
    """A WebP of a large canvas with a frame of which nothing is there."""
    canvas = struct.pack("<I", 2) + struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    frame = bytes(6) + struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3] + bytes(4)
    parts = b"VP8X" + struct.pack("<I", 10) + canvas + b"ANIM" + struct.pack("<I", 6) + bytes(6)
    parts += b"ANMF" + struct.pack("<I", len(frame) + 8) + frame + b"VP8L" + bytes(4)
    return b"RIFF" + struct.pack("<I", len(parts) + 4) + b"WEBP" + parts


def jpeg_2000_of(width: int, height: int, *, tile: int) -> bytes:
    """A JPEG 2000 of so many tiles that their list alone has gigabytes, and none of them there."""
    sizes = struct.pack(">HIIIIIIII", 0, width, height, 0, 0, tile, tile, 0, 0)
    size = sizes + struct.pack(">H", 3) + b"\7\1\1" * 3
    return b"\xff\x4f\xff\x51" + struct.pack(">H", len(size) + 2) + size + b"\xff\x52\0\x0c\0\0\0\1\0\5\4\4\0\1\xff\xd9"


def avif_of(width: int, height: int) -> bytes:
    """An AVIF whose boxes say another size than its pixels have."""
    data = encoded(RGB, "AVIF")
    at = data.index(b"ispe") + 8
    return data[:at] + struct.pack(">II", width, height) + data[at + 8 :]


def blank(side: int, kind: str, **options: object) -> bytes:
    """A whole picture without anything on it, just small enough to be one."""
    return encoded(Image.new("L", (side, side)), kind, **options)


def noise_png() -> bytes:
    rng = np.random.default_rng(0)
    data = bytearray(encoded(RGB, "PNG"))
    for place in rng.integers(8, len(data), size=20):
        data[place] = rng.integers(256)
    return bytes(data)


TEXT = b"Comment\0\0"
PROFILE = b"icc\0\0"

PICTURE_BOMBS: dict[str, Callable[[], bytes]] = {
    "size.png": bomb,
    "longest.png": lambda: png(size=((1 << 31) - 1, 1), depth=1, kind=0),
    "blank.png": lambda: blank(7_000, "PNG"),
    "blank.tif": lambda: blank(7_000, "TIFF", compression="tiff_adobe_deflate"),
    "no_palette.png": png_without_palette,
    "more_than_its_size.png": lambda: png(pixels=deflated(GIGABYTE_PIECES)),
    "profile.png": lambda: png(chunk(b"iCCP", PROFILE + deflated(GIGABYTE_PIECES))),
    "text.png": lambda: png(chunk(b"zTXt", TEXT + deflated(GIGABYTE_PIECES))),
    "texts.png": lambda: png(*[chunk(b"zTXt", TEXT + deflated(1))] * 2_000),
    "utf8_text.png": lambda: png(chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + deflated(GIGABYTE_PIECES))),
    "chunks.png": lambda: png(*[chunk(b"tIME", bytes(7))] * 200_000),
    "exif.png": lambda: png(chunk(b"eXIf", bytes(3_000_000))),
    "frames.png": frames_without_end,
    "noise.png": noise_png,
    "cut.png": lambda: encoded(RGB, "PNG")[:-40],
    "size.jpg": lambda: jpeg_of(65_500, 65_500),
    "below_the_limit.jpg": lambda: jpeg_of(16_000, 3_000),
    "scans.jpg": jpeg_of_scans,
    "exif_circle.jpg": exif_in_a_circle,
    "exif_values.jpg": exif_of_many_values,
    "cut.jpg": lambda: encoded(RGB, "JPEG")[:400],
    "comments.gif": lambda: gif_of_comments(comments=1_000_000),
    "screen.gif": lambda: gif_of(65_535, 65_535),
    "frames.gif": lambda: gif_of(7_000, 7_000, frames=100_000),
    "deflate.tif": tiff_of_deflate,
    "strips.tif": lambda: tiff_of_many(273, 4, (1 << 30) - 1),
    "samples.tif": lambda: tiff_of_many(258, 3, 65_535),
    "profile.tif": lambda: tiff_of_many(34675, 7, (1 << 32) - 1),
    "circle.tif": tiff_in_a_circle,
    "canvas.webp": lambda: webp_of(16_383, 16_383),
    "blank.webp": lambda: blank(7_000, "WEBP", lossless=True),
    "cut.webp": lambda: encoded(RGB, "WEBP")[:60],
    "runs.bmp": lambda: bmp_of_runs(30_000, 30_000),
    "runs_below_the_limit.bmp": lambda: bmp_of_runs(7_000, 7_000),
    "tiles.jp2": lambda: jpeg_2000_of(7_000, 7_000, tile=1),
    "size.jp2": lambda: jpeg_2000_of((1 << 31) - 1, (1 << 31) - 1, tile=1 << 16),
    "size.avif": lambda: avif_of(16_383, 3_000),
    "nothing.jpg": lambda: b"",
    "page.jpg": lambda: b"<html><body>404</body></html>",
}


LIGHT = (
    *("size.png", "no_palette.png", "profile.png", "scans.jpg", "exif_circle.jpg", "cut.jpg", "screen.gif"),
    *("deflate.tif", "canvas.webp", "tiles.jp2", "nothing.jpg", "page.jpg"),
)
"""Those that are dealt with at once, a few of each kind."""


def make_bombs(names: Iterable[str] = LIGHT) -> dict[str, bytes]:
    """Some of them, by their names."""
    return {name: PICTURE_BOMBS[name]() for name in names}
