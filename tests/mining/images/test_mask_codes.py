"""A mask survives the codes of annotation tools to the pixel, and codes that are none are told before they unfold."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from maskmine.mining.images.mask_codes import decode_box_runs, decode_brush, encode_box_runs, encode_brush

MASKS = hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, max_side=40))
DRAWN = np.array([[0, 0, 1, 1, 0, 0, 0], [1, 1, 1, 0, 0, 0, 1], [0, 0, 0, 0, 1, 0, 0]], bool)
# What label-studio-sdk 2.1.2 makes of DRAWN (`brush.mask2rle`).
PACKED = [0, 0, 0, 84, 57, 27, 252, 224, 19, 255, 219, 0, 183, 255, 108, 2, 63, 251, 224, 17, 255, 206, 0]
# And of it as a browser has it (`brush.encode_rle` of RGBA): in a colour, whose values stand one by one, with a pixel
# before the first that is inside by 100 of 255 and one behind the second by 128.
COLOURED = [
    *(0, 0, 0, 84, 57, 27, 252, 96, 0, 107, 0, 0, 4, 152, 12, 128, 107, 0, 0, 4, 152, 31, 224, 107, 0, 0, 4, 152, 31),
    *(224, 107, 0, 0, 4, 152, 16, 19, 128, 1, 172, 0, 0, 18, 96, 127, 129, 172, 0, 0, 18, 96, 127, 129, 172, 0, 0, 18),
    *(96, 127, 219, 0, 3, 88, 0, 0, 36, 192, 255, 190, 0, 6, 176, 0, 0, 73, 129, 255, 56, 0),
]


@given(MASKS)
def test_a_brush_keeps_every_pixel(mask_HW: np.ndarray[Any, Any]) -> None:
    height_px, width_px = mask_HW.shape
    found = decode_brush(encode_brush(mask_HW), height_px=height_px, width_px=width_px)
    np.testing.assert_array_equal(found, mask_HW)


@given(MASKS, st.data())
def test_runs_in_a_box_keep_every_pixel(mask_HW: np.ndarray[Any, Any], data: st.DataObject) -> None:
    height_px, width_px = mask_HW.shape
    x0, y0 = data.draw(st.integers(0, width_px - 1)), data.draw(st.integers(0, height_px - 1))
    box = (x0, y0, data.draw(st.integers(x0 + 1, width_px)), data.draw(st.integers(y0 + 1, height_px)))
    cut_HW = np.zeros_like(mask_HW)
    cut_HW[box[1] : box[3], box[0] : box[2]] = mask_HW[box[1] : box[3], box[0] : box[2]]
    found = decode_box_runs(encode_box_runs(mask_HW, box), box, height_px=height_px, width_px=width_px)
    np.testing.assert_array_equal(found, cut_HW)


def test_a_brush_is_packed_as_label_studio_packs_it() -> None:
    assert encode_brush(DRAWN) == PACKED
    large = np.zeros((300, 400), bool)
    large[:250] = True  # runs longer than 16 bits say
    np.testing.assert_array_equal(decode_brush(encode_brush(large), height_px=300, width_px=400), large)


def test_a_brush_of_a_browser_is_inside_where_it_is_at_least_half_so() -> None:
    soft = DRAWN.copy()
    soft[0, 4] = True  # and not [0, 1], at 100 of 255
    np.testing.assert_array_equal(decode_brush(COLOURED, height_px=3, width_px=7), soft)


def test_runs_begin_outside() -> None:
    assert encode_box_runs(DRAWN, (0, 0, 7, 3)) == [2, 2, 3, 3, 3, 1, 4, 1, 2]
    assert encode_box_runs(DRAWN, (0, 1, 3, 3)) == [0, 3, 3]


@pytest.mark.parametrize(
    ("packed", "words"),
    [
        ([], "no list of bytes"),
        ([1, 2, 256], "no list of bytes"),
        ([1, 2, -1], "no list of bytes"),
        ([0.5, 1], "no list of bytes"),
        (PACKED[:5], "breaks off"),
        (PACKED[:12], "breaks off"),
        ([255, 255, 255, 255, *PACKED[4:]], "of 1,073,741,824 pixels, the image of 3 × 7"),
        ([0, 0, 0, 88, *PACKED[4:]], "of 22 pixels"),
        ([0, 0, 0, 84, 57, 27, 252 | 3, 255, 255, 255, 255], "too many values"),
        ([0, 0, 0, 84, 121, *PACKED[5:]], "values of 16 bits"),
    ],
)
def test_a_brush_that_is_none_is_told(packed: Any, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        decode_brush(packed, height_px=3, width_px=7)


@pytest.mark.parametrize(
    ("runs", "box", "words"),
    [
        ([2, 2], (0, 0, 7, 3), "do not fill its box"),
        ([10**9, 21 - 10**9], (0, 0, 7, 3), "do not fill its box"),
        ([10**9], (0, 0, 7, 3), "do not fill its box"),
        ([21], (0, 0, 8, 3), "does not lie in the image of 7 × 3"),
        ([0], (3, 3, 3, 3), "does not lie in the image"),
        ([21], (-1, 0, 6, 3), "does not lie in the image"),
    ],
)
def test_runs_that_do_not_fit_are_told(runs: list[int], box: Any, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        decode_box_runs(runs, box, height_px=3, width_px=7)
