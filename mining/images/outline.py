"""The outline of a mask on an image, for people."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter

Colour = tuple[int, int, int]
"""Red, green and blue, 0–255."""


def draw_outline(
    image: Image.Image, mask: Image.Image, colour: Colour, *, width_px: int = 2, tinted: bool = True
) -> None:
    """Draw the contour of a mask (8 bits, of the image's size) with a white edge, which shows on any image.

    Both are `width_px` wide, one inside and one outside the mask. The mask is tinted unless its own colours matter.
    """
    if tinted:
        image.paste(colour, mask=mask.point(lambda value: value // 4))
    inside = mask.point(lambda value: 255 * (value > 127))
    nearby = np.asarray(inside.filter(ImageFilter.BoxBlur(width_px)))  # a mean, which is much faster than ranks
    middle = np.asarray(inside) > 0
    image.paste((255, 255, 255), mask=Image.fromarray(((nearby > 0) & ~middle).astype(np.uint8) * 160))
    image.paste(colour, mask=Image.fromarray((middle & (nearby < 255)).astype(np.uint8) * 255))
