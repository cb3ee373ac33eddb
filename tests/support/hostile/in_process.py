"""Pictures decoded in this process, which the product never does: what its child processes are compared with."""

from __future__ import annotations

from maskmine.mining.images.decode import DecodedImage, decode_image, read_header
from maskmine.mining.images.read import max_bytes, read_bytes
from maskmine.schemas.rows import Rejection


def read_image(path: str | None, *, max_pixels: int) -> DecodedImage | Rejection:
    """The image at a path."""
    data = read_bytes(path, max_bytes=max_bytes(max_pixels))
    return data if isinstance(data, Rejection) else decode_image(data, max_pixels=max_pixels)


def image_size(source: str | bytes | None) -> tuple[int, int] | Rejection:
    """The size of the upright image; `source` is a path or a file's bytes."""
    data = source if isinstance(source, bytes) else read_bytes(source)
    header = data if isinstance(data, Rejection) else read_header(data)
    return header if isinstance(header, Rejection) else header.upright_px
