"""Label maps: read as downloads store them, renumbered, resized and written as they are evaluated.

A fault of a file is a value, a text that describes it, so it costs that image alone.

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

from maskmine.mining.images.child_decoder import Decoding
from maskmine.schemas.errors import InputError
from maskmine.schemas.rows import Rejection
from maskmine.tuning.benchmarks.classes import ClassList

IGNORE_8, IGNORE_16 = 255, 65_535
"""The number of a pixel that is not counted, in maps of 8 and 16 bits."""

Numbers = np.ndarray[Any, np.dtype[np.integer[Any]]]

_MAX_PIXELS = 100_000_000  # six times the largest image of the sets
_FOREIGN = -1
_INDEX_MODES = ("L", "P", "I;16", "I;16B", "I")
_BROKEN = (OSError, EOFError, SyntaxError, ValueError, TypeError, LookupError, zlib.error)


@dataclass(frozen=True, slots=True)
class Numbering:
    """From the numbers of a download to those of classes.

    `void` are numbers of no class, and so are those up to `others` that are not in the list; any other number is a
    fault. Maps have 8 bits where `ignore` is 255, otherwise 16.
    """

    classes: ClassList
    ignore: int
    void: frozenset[int]
    others: int = 0


def void_number(ignore: int | None, *, classes: int, setting: str, first: int = 0) -> int:
    """The number of pixels that are not counted, in maps whose `classes` are numbered from `first`.

    Where None is given it is 255, or 65535 where a class has that number. Raises InputError, which names the `setting`,
    for the number of a class, which would vanish.
    """
    numbers = range(first, first + classes)
    if ignore is None:
        return IGNORE_16 if IGNORE_8 in numbers else IGNORE_8
    if ignore in numbers:
        raise InputError(
            f"{setting} {ignore}: is also the number of one of the {classes} classes, {first} to {numbers[-1]}; give "
            "the number of pixels that are none of them"
        )
    return ignore


def renumber(stored_HW: Numbers, numbering: Numbering) -> Numbers | str:
    """The map with numbers of classes and `ignore`, uint8 or uint16 [H, W]; a text names the lowest unknown number."""
    table = _table(numbering)
    foreign = len(table) - 1
    index_HW = stored_HW.astype(np.int64)
    labels_HW = table[np.where((index_HW < 0) | (index_HW > foreign), foreign, index_HW)]
    if (foreign_HW := labels_HW == _FOREIGN).any():
        return f"its map has the number {stored_HW[foreign_HW].min()}, which is no class"
    return labels_HW.astype(np.uint8 if numbering.ignore == IGNORE_8 else np.uint16)


def read_index_map(path: Path) -> Numbers | str:
    """A map with a number per pixel, as grey or as the index of a palette."""
    return _read(path, _INDEX_MODES, "its map is in colour ({}), so it is none of numbers")


def read_ade_map(path: Path) -> Numbers | str:
    """The objects of a `*_seg.png` of the full ADE20K: ⌊red ÷ 10⌋ · 256 + green."""
    rgb_HW3 = _read(path, ("RGB", "RGBA"), "its map is not in colour ({}), so it is none of the full ADE20K")
    if isinstance(rgb_HW3, str):
        return rgb_HW3
    red_HW, green_HW = (rgb_HW3[..., channel].astype(np.int32) for channel in (0, 1))
    return red_HW // 10 * 256 + green_HW


def read_mat_map(path: Path) -> Numbers | str:
    """The `LabelMap` in a MATLAB file of PASCAL Context."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        variables = loadmat(path, variable_names=["LabelMap"])
    except (*_BROKEN, MatReadError, NotImplementedError) as error:
        return f"its map cannot be read ({_one_line(error)})"
    labels_HW = variables.get("LabelMap")
    if labels_HW is None or labels_HW.ndim != 2 or labels_HW.dtype.kind not in "ui" or not labels_HW.size:
        return "its map has no whole numbers `LabelMap`"
    return np.asarray(labels_HW)


def shrunk_size(size: tuple[int, int], short_side_px: int) -> tuple[int, int]:
    """The height and width with a shorter side of `short_side_px`; the size itself where that is not longer."""
    height, width = size
    if min(size) <= short_side_px:
        return size
    if width >= height:
        return short_side_px, round(width / height * short_side_px)
    return round(height / width * short_side_px), short_side_px


def shrink_map(labels_HW: Numbers, size: tuple[int, int]) -> Numbers:
    """The map at another height and width: each pixel has the number of the one at or before its position.

    As OpenCV's INTER_NEAREST computes it, with which MaskFormer's script made the maps of published results: its
    positions fall short of whole ones by rounding (`resizeNN` in modules/imgproc/src/resize.cpp).
    """
    rows, columns = (_nearest(old, new) for new, old in zip(size, labels_HW.shape, strict=True))
    shrunk: Numbers = labels_HW[rows[:, None], columns]
    return shrunk


def _nearest(old: int, new: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """⌊i · (1 ÷ (new ÷ old))⌋ in double precision."""
    positions: np.ndarray[Any, np.dtype[np.int64]] = np.floor(np.arange(new) * (1.0 / (new / old))).astype(np.int64)
    return positions.clip(max=old - 1)


def shrink_image(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The image at another height and width, linear between the four nearest pixels, as OpenCV resizes.

    Pillow's `resize` would average over all pixels that fall into one, which is smoother.
    """
    height, width = size
    scale = (image.width / width, 0, 0, 0, image.height / height, 0)
    return image.transform((width, height), Image.Transform.AFFINE, scale, Image.Resampling.BILINEAR)


def encode_map(labels_HW: Numbers) -> bytes:
    """A map as a file: a PNG of 8 bits, a TIFF of 16."""
    content = BytesIO()
    if labels_HW.dtype == np.uint8:
        Image.fromarray(labels_HW).save(content, "PNG")
    else:
        Image.fromarray(labels_HW).save(content, "TIFF", compression="tiff_lzw")
    return content.getvalue()


@functools.lru_cache(maxsize=8)
def _table(numbering: Numbering) -> np.ndarray[Any, np.dtype[np.int32]]:
    """The new number of every old one; the last entry, for all greater ones, is foreign."""
    greatest = max(*numbering.classes.stored, *numbering.void, numbering.others)
    table = np.full(greatest + 2, _FOREIGN, np.int32)
    table[: numbering.others + 1] = numbering.ignore
    table[list(numbering.void)] = numbering.ignore
    table[list(numbering.classes.stored)] = np.arange(len(numbering.classes.stored))
    return table


def _read(path: Path, modes: tuple[str, ...], other_mode: str) -> Numbers | str:
    """The pixels of an image of these modes; `other_mode` is the message for another one."""
    stored = Decoding().read_stored(str(path), max_pixels=_MAX_PIXELS)
    if isinstance(stored, Rejection):
        if stored.reason == "image_too_large":
            return "its map is too large"
        return f"its map cannot be read ({stored.detail})"
    return stored.pixels if stored.mode in modes else other_mode.format(stored.mode)


def _one_line(error: BaseException) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:120]
