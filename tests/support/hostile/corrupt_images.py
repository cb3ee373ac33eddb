"""Pictures and captions that are broken, odd or hostile, each with what must become of it."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image

from tests.support import toy

SQUARE = toy.draw(("square",))


RGB = Image.fromarray(SQUARE)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def bomb() -> bytes:
    """A PNG of 100,000 × 100,000 pixels in its header, and hardly a byte of them."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def with_alpha() -> Image.Image:
    image = Image.fromarray(SQUARE).convert("RGBA")
    image.putalpha(Image.fromarray(toy.shape_mask("square").astype(np.uint8) * 255))
    return image


def turned() -> bytes:
    """The picture stored lying on its side, with the EXIF orientation that sets it upright."""
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned a quarter to the left
    return encoded(RGB.transpose(Image.Transpose.ROTATE_90), "JPEG", exif=exif)


GREY_16 = Image.fromarray(SQUARE[:, :, 0].astype(np.uint16) * 257)


def png_without_palette() -> bytes:
    """69 bytes: a PNG of 1 × 1 whose pixels are numbers of a palette that it lacks."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", 1, 1, 8, 3, 0, 0, 0)
    return b"".join(
        [b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b"\0\0")), chunk(b"IEND", b"")]
    )


def jpeg_of_scans(*, scans: int = 20_000) -> bytes:
    """A progressive JPEG that says its last scan again and again; each makes the decoder go over the whole picture."""
    data = encoded(Image.new("L", (1024, 1024), 90), "JPEG", progressive=True)
    last, end = data.rindex(b"\xff\xda"), data.rindex(b"\xff\xd9")
    return data[:end] + data[last:end] * scans + data[end:]


def gif_of_comments(*, comments: int = 200_000) -> bytes:
    """A GIF with comments of one letter before its picture; Pillow copies all of them for each further one."""
    data = encoded(RGB.convert("P"), "GIF")
    first = 13 + 3 * 2 ** (data[10] % 8 + 1)  # behind the palette
    return data[:first] + b"\x21\xfe\x01x\x00" * comments + data[first:]


HOSTILE: dict[str, Callable[[], bytes]] = {
    "no_palette.png": png_without_palette,
    "scans.jpg": jpeg_of_scans,
    "comments.gif": gif_of_comments,
}
"""Small pictures on which Pillow falls or hangs."""


PICTURES: dict[str, tuple[Callable[[], bytes] | None, str | None]] = {
    # what is in the file, and the reason of its rejection, None where it must give its pair
    "missing": (None, "missing_file"),
    "empty": (lambda: b"", "decode_error"),
    "truncated": (lambda: encoded(RGB.resize((640, 480)), "JPEG")[:900], "decode_error"),
    "html": (lambda: b"<html><body>404</body></html>", "decode_error"),
    "noise": (lambda: bytes(range(256)) * 4, "decode_error"),
    "bomb": (bomb, "image_too_large"),
    "one_pixel": (lambda: encoded(RGB.resize((1, 1)), "PNG"), "no_masks"),
    "cmyk": (lambda: encoded(RGB.convert("CMYK"), "JPEG"), None),
    "sixteen_bits": (lambda: encoded(GREY_16, "PNG"), None),
    "palette": (lambda: encoded(RGB.convert("P"), "PNG"), None),
    "alpha": (lambda: encoded(with_alpha(), "PNG"), None),
    "grey": (lambda: encoded(RGB.convert("L"), "JPEG"), None),
    "progressive": (lambda: encoded(RGB, "JPEG", progressive=True), None),
    "exif": (turned, None),
    "webp": (lambda: encoded(RGB, "WEBP"), None),
    "good": (lambda: encoded(RGB, "JPEG"), None),
}


CAPTIONS: dict[str, tuple[str, str | None]] = {
    "empty caption": ("", "no_caption"),
    "spaces": (" \n\t ", "no_caption"),
    "huge": ("a square " * 11_112, "no_caption"),
    "right to left": ("مربع أحمر صغير, a square", None),
    "surrogate": ("\ud83d a square", None),
    "null byte": ("a\0 square", None),
    "emoji": ("\N{LARGE RED SQUARE} a square", None),
    "two lines": ("a\nsquare", None),
}
