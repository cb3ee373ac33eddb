"""Label maps as downloads store them, and as they are evaluated: numbers read, changed, cut to size, written.

What is wrong with a file is a text that says so, and costs that picture alone.

Shapes: H, W height and width of a map; K classes.
"""

from __future__ import annotations

import functools
import zlib
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tuning.benchmark_classes import ClassList

IGNORE_8, IGNORE_16 = 255, 65_535
"""The number of a pixel that is not counted, in maps of 8 and of 16 bits."""

Numbers = np.ndarray[Any, np.dtype[np.integer[Any]]]

_MOST_PIXELS = 100_000_000
_FOREIGN = -1
_BROKEN = (OSError, EOFError, SyntaxError, ValueError, TypeError, LookupError, zlib.error, Image.DecompressionBombError)


@dataclass(frozen=True, slots=True)
class Numbering:
    """How the numbers of a download become those of classes.

    `void` are numbers that mean no class, and so do those up to `others` that are not in the list; any other number is
    a fault. Maps have 8 bits where `ignore` is 255, otherwise 16.
    """

    classes: ClassList
    ignore: int
    void: frozenset[int]
    others: int = 0


def renumber(stored_HW: Numbers, numbering: Numbering) -> Numbers | str:
    """The map with numbers of classes, and `ignore` where there is none: uint8 or uint16 [H, W].

    A text names the first number that is not in the list of classes.
    """
    table = _table(numbering)
    foreign = len(table) - 1
    places_HW = stored_HW.astype(np.int64)
    found_HW = table[np.where((places_HW < 0) | (places_HW > foreign), foreign, places_HW)]
    if (foreign_HW := found_HW == _FOREIGN).any():
        return f"its map has the number {stored_HW[foreign_HW].min()}, which is no class"
    return found_HW.astype(np.uint8 if numbering.ignore == IGNORE_8 else np.uint16)


def read_index_map(path: Path) -> Numbers | str:
    """A map with a number a pixel, as grey or as the index of a palette."""
    try:
        with Image.open(path) as image:
            if image.width * image.height > _MOST_PIXELS:
                return "its map is too large"
            if image.mode not in ("L", "P", "I;16", "I;16B", "I"):
                return f"its map is in colour ({image.mode}), so it is none of numbers"
            return np.asarray(image)
    except _BROKEN as error:
        return f"its map cannot be read ({_said(error)})"


def read_ade_map(path: Path) -> Numbers | str:
    """The objects of a `*_seg.png` of the full ADE20K: ⌊red ÷ 10⌋ · 256 + green."""
    try:
        with Image.open(path) as image:
            if image.width * image.height > _MOST_PIXELS:
                return "its map is too large"
            if image.mode not in ("RGB", "RGBA"):
                return f"its map is not in colour ({image.mode}), so it is none of the full ADE20K"
            rgb_HW3 = np.asarray(image.convert("RGB")).astype(np.int32)
    except _BROKEN as error:
        return f"its map cannot be read ({_said(error)})"
    found: Numbers = rgb_HW3[..., 0] // 10 * 256 + rgb_HW3[..., 1]
    return found


def read_mat_map(path: Path) -> Numbers | str:
    """The `LabelMap` of a file of PASCAL Context, which MATLAB wrote."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        found = loadmat(path, variable_names=["LabelMap"])
    except (*_BROKEN, MatReadError, NotImplementedError) as error:
        return f"its map cannot be read ({_said(error)})"
    labels_HW = found.get("LabelMap")
    if labels_HW is None or labels_HW.ndim != 2 or labels_HW.dtype.kind not in "ui" or not labels_HW.size:
        return "its map has no whole numbers `LabelMap`"
    return np.asarray(labels_HW)


def shrunk_size(size: tuple[int, int], short_side_px: int) -> tuple[int, int]:
    """The height and width with which the shorter side is `short_side_px`; the size itself where it is not longer."""
    height, width = size
    if min(size) <= short_side_px:
        return size
    if width >= height:
        return short_side_px, round(width / height * short_side_px)
    return round(height / width * short_side_px), short_side_px


def shrink_map(labels_HW: Numbers, size: tuple[int, int]) -> Numbers:
    """The map in another height and width: each pixel has the number of the one at or before its own place."""
    rows, columns = (np.arange(new) * old // new for new, old in zip(size, labels_HW.shape, strict=True))
    shrunk: Numbers = labels_HW[rows[:, None], columns]
    return shrunk


def shrink_picture(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The picture in another height and width, linear between the four nearest pixels, as OpenCV resizes.

    Pillow's own `resize` would average over all pixels that fall into one, and give a smoother picture.
    """
    height, width = size
    scale = (image.width / width, 0, 0, 0, image.height / height, 0)
    return image.transform((width, height), Image.Transform.AFFINE, scale, Image.Resampling.BILINEAR)


def encode_map(labels_HW: Numbers) -> bytes:
    """The bytes of a map: a PNG of 8 bits, a TIFF of 16."""
    content = BytesIO()
    if labels_HW.dtype == np.uint8:
        Image.fromarray(labels_HW).save(content, "PNG")
    else:
        Image.fromarray(labels_HW).save(content, "TIFF", compression="tiff_lzw")
    return content.getvalue()


@functools.lru_cache(maxsize=8)
def _table(numbering: Numbering) -> np.ndarray[Any, np.dtype[np.int32]]:
    """The new number of every old one; the last entry, for all that are greater, is foreign."""
    greatest = max(*numbering.classes.stored, *numbering.void, numbering.others)
    table = np.full(greatest + 2, _FOREIGN, np.int32)
    table[: numbering.others + 1] = numbering.ignore
    table[list(numbering.void)] = numbering.ignore
    table[list(numbering.classes.stored)] = np.arange(len(numbering.classes.stored))
    return table


def _said(error: BaseException) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:120]
