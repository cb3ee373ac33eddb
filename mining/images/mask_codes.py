"""Masks as annotation tools write them: Label Studio's brush, and the runs of CVAT's XML. Both lose no pixel.

Shapes: H and W height and width in pixels; N the values of an RGBA image, 4·H·W; B bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from maskmine.schemas.mask import Box

Array = np.ndarray[Any, Any]

# The brush is an RGBA image packed by https://github.com/thi-ng/umbrella/tree/develop/packages/rle-pack: 32 bits for
# the number of values, 5 for the bits of a value, four times 4 for the bits of a run's length, each less one; then
# runs. A run has a bit that says whether one value is repeated or each is written out, 2 bits that choose the bits of
# its length, the length less one, and the values.
_COUNT_BITS, _WORD_BITS, _SIZE_BITS = 32, 5, 4
_HEAD_BITS = _COUNT_BITS + _WORD_BITS + 4 * _SIZE_BITS
_LENGTH_BITS = (3, 4, 8, 16)  # as label-studio-sdk writes them
_VALUE_BITS = 8
_INSIDE_FROM = 128  # of 0–255: a pixel at the soft edge of a brush is inside where it is at least half so


def encode_brush(mask_HW: Array) -> list[int]:
    """A mask as the `rle` of a Label Studio region: bytes of a packed RGBA image, 255 inside and 0 outside."""
    lengths, first_is_inside = _runs(mask_HW.ravel())
    bits = [_binary(4 * mask_HW.size, _COUNT_BITS), _binary(_VALUE_BITS - 1, _WORD_BITS)]
    bits += [_binary(length_bits - 1, _SIZE_BITS) for length_bits in _LENGTH_BITS]
    inside = first_is_inside
    for length in lengths:
        value = "1" * _VALUE_BITS if inside else "0" * _VALUE_BITS
        bits += [_brush_run(part, value) for part in _parts(4 * length, most=1 << _LENGTH_BITS[-1])]
        inside = not inside
    text = "".join(bits)
    text += "0" * (8 - len(text) % 8)  # a whole byte where none is missing, as label-studio-sdk does
    return list(int(text, 2).to_bytes(len(text) // 8))


def decode_brush(packed: Sequence[int], *, height_px: int, width_px: int) -> Array:
    """The mask [H, W] of a Label Studio region, of an image of this size.

    Raises ValueError where the bytes are none, or are of another size: that is known before anything is unfolded.
    """
    stored = np.asarray(packed)
    if (
        stored.dtype.kind not in "iu"
        or stored.ndim != 1
        or not len(stored)
        or not (0 <= stored.min() <= stored.max() < 256)
    ):
        raise ValueError("the brush's `rle` is no list of bytes")
    bits_B = np.unpackbits(stored.astype(np.uint8))
    text = (bits_B + ord("0")).tobytes().decode("ascii")
    if len(text) < _HEAD_BITS:
        raise ValueError("the brush's `rle` breaks off")
    values = 4 * height_px * width_px
    if (count := int(text[:_COUNT_BITS], 2)) != values:
        raise ValueError(f"the brush is of {count / 4:,.0f} pixels, the image of {height_px} × {width_px}")
    word_bits = int(text[_COUNT_BITS : _COUNT_BITS + _WORD_BITS], 2) + 1
    sizes = range(_COUNT_BITS + _WORD_BITS, _HEAD_BITS, _SIZE_BITS)
    length_bits = [int(text[at : at + _SIZE_BITS], 2) + 1 for at in sizes]
    if word_bits != _VALUE_BITS:
        raise ValueError(f"the brush's `rle` has values of {word_bits} bits, not {_VALUE_BITS}")
    filled_N = np.zeros(values, np.uint8)
    _unpack(text, bits_B, length_bits, filled_N)
    alpha_HW = filled_N.reshape(height_px, width_px, 4)[:, :, 3]
    return alpha_HW >= _INSIDE_FROM


def encode_box_runs(mask_HW: Array, box_xyxy: Box) -> list[int]:
    """The part of a mask in a box as CVAT's runs: row after row, outside first: 0 where the first pixel is inside."""
    x0, y0, x1, y1 = box_xyxy
    lengths, first_is_inside = _runs(np.ascontiguousarray(mask_HW[y0:y1, x0:x1]).ravel())
    return [0, *lengths] if first_is_inside else lengths


def decode_box_runs(runs: Sequence[int], box_xyxy: Box, *, height_px: int, width_px: int) -> Array:
    """The mask [H, W] of CVAT's runs in a box. Raises ValueError where box or runs do not fit the image."""
    x0, y0, x1, y1 = box_xyxy
    if not (0 <= x0 < x1 <= width_px and 0 <= y0 < y1 <= height_px):
        raise ValueError(f"the mask's box {box_xyxy} does not lie in the image of {width_px} × {height_px}")
    if any(run < 0 for run in runs) or sum(runs) != (x1 - x0) * (y1 - y0):
        raise ValueError("the mask's runs do not fill its box")
    inside_N = np.repeat(np.arange(len(runs)) % 2 == 1, np.asarray(runs, np.int64))
    mask_HW = np.zeros((height_px, width_px), np.bool_)
    mask_HW[y0:y1, x0:x1] = inside_N.reshape(y1 - y0, x1 - x0)
    return mask_HW


def _runs(values_N: Array) -> tuple[list[int], bool]:
    """The lengths of equal values in a row, and whether the first of them are inside."""
    inside_N = values_N != 0
    ends = np.append(np.flatnonzero(inside_N[1:] != inside_N[:-1]), len(inside_N) - 1)
    return np.diff(ends, prepend=-1).tolist(), bool(inside_N[0])


def _parts(length: int, *, most: int) -> list[int]:
    full, rest = divmod(length, most)
    return [most] * full + ([rest] if rest else [])


def _brush_run(length: int, value: str) -> str:
    """A run of one value; the first of the lengths' bits that is enough."""
    number = next(n for n, bits in enumerate(_LENGTH_BITS) if length <= 1 << bits)
    return f"1{_binary(number, 2)}{_binary(length - 1, _LENGTH_BITS[number])}{value}"


def _binary(number: int, bits: int) -> str:
    return f"{number:0{bits}b}"


def _unpack(text: str, bits_B: Array, length_bits: Sequence[int], filled_N: Array) -> None:
    """Fill the values from the runs behind the head. Raises ValueError where they end too early or go too far."""
    at, done, values = _HEAD_BITS, 0, len(filled_N)
    while done < values:
        size = length_bits[int(text[at + 1 : at + 3] or "0", 2)]
        start = at + 3 + size
        if start > len(text):
            raise ValueError("the brush's `rle` breaks off")
        end = done + 1 + int(text[at + 3 : start], 2)
        is_repeated = text[at] == "1"
        at = start + _VALUE_BITS * (1 if is_repeated else end - done)
        if end > values or at > len(text):
            raise ValueError("the brush's `rle` breaks off" if at > len(text) else "the brush has too many values")
        filled_N[done:end] = np.packbits(bits_B[start:at])
        done = end
