"""The font of what is drawn for people."""

from __future__ import annotations

from functools import cache

import matplotlib
from PIL import ImageFont


@cache
def dejavu(size_px: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib and has Latin, Greek, Cyrillic, Arabic and more."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/{name}", size_px)
