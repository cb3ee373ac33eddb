"""Pixels to image files: JPEG, WebP and PNG by Pillow, and two faster PNG encoders for masks and for RGB.

Shapes: H and W height and width; V the values of a row of pixels.
"""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

from maskmine.schemas.sample import ImageFormat


def encode_image(image: Image.Image, image_format: ImageFormat, *, quality: int) -> bytes:
    """An image as a file; `quality` (1 to 100) is for jpg and webp, png is lossless."""
    buffer = io.BytesIO()
    if image_format == "jpg":
        image.save(buffer, "JPEG", quality=quality)
    elif image_format == "webp":
        image.save(buffer, "WEBP", quality=quality, method=2)
    else:
        image.save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()


def encode_reduced(rgb_HW3: np.ndarray[Any, Any], *, max_side_px: int, quality: int) -> bytes:
    """An image of shape [H, W, 3] as JPEG; where its longer side is more than `max_side_px`, it is reduced to that."""
    image = Image.fromarray(rgb_HW3)
    scale = max_side_px / max(image.size)
    if scale < 1:
        image = image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.LANCZOS)
    return encode_image(image, "jpg", quality=quality)


def encode_mask(mask_HW: np.ndarray[Any, Any]) -> bytes:
    """A mask of shape [H, W], values 0 and 1, as an 8-bit grey PNG of 0 and 255.

    Written here and not by Pillow, which tries five filters on every row of a grey image: on masks that takes three
    quarters of the time and makes the file larger. Rows without a filter, deflated by their runs, are smaller still.
    """
    height_px, width_px = mask_HW.shape
    rows_HW = np.zeros((height_px, 1 + width_px), np.uint8)  # each row begins with its filter type, 0 for none
    rows_HW[:, 1:] = mask_HW
    rows_HW *= 255
    return _png_file(rows_HW.tobytes(), height_px=height_px, width_px=width_px, colour_type=0)


def encode_png(rgb_HW3: np.ndarray[Any, Any]) -> bytes:
    """An image of shape [H, W, 3] as PNG.

    Written here and not by Pillow, which tries five filters on every row, and deflated by its runs alone: a third of
    Pillow's time for 8 % more bytes.
    """
    height_px, width_px, _ = rgb_HW3.shape
    pixels_HV = rgb_HW3.reshape(height_px, 3 * width_px)
    rows_HV = np.empty((height_px, 1 + 3 * width_px), np.uint8)
    rows_HV[:, 0] = 1  # the filter: each value less that of the pixel before it
    rows_HV[:, 1:4] = pixels_HV[:, :3]
    np.subtract(pixels_HV[:, 3:], pixels_HV[:, :-3], out=rows_HV[:, 4:])
    return _png_file(rows_HV.tobytes(), height_px=height_px, width_px=width_px, colour_type=2)


def _png_file(rows: bytes, *, height_px: int, width_px: int, colour_type: int) -> bytes:
    """An 8-bit PNG from filtered rows, each with its filter's type before it; `colour_type` 0 is grey, 2 RGB."""
    deflate = zlib.compressobj(level=1, strategy=zlib.Z_RLE)
    header = struct.pack(">IIBBBBB", width_px, height_px, 8, colour_type, 0, 0, 0)  # not interlaced
    chunks = ((b"IHDR", header), (b"IDAT", deflate.compress(rows) + deflate.flush()), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_png_chunk(name, content) for name, content in chunks)


def _png_chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
