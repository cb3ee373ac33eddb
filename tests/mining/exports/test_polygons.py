"""Polygons of masks, filled as Ultralytics fills them: by `cv2.fillPoly`, with the points cut down to whole pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter, label

from maskmine.mining.exports.polygons import outline_of

cv2 = pytest.importorskip("cv2", reason="OpenCV needs OpenGL's library (libgl1)", exc_type=ImportError)
Array = np.ndarray[Any, Any]


@st.composite
def masks(draw: st.DrawFn) -> Array:
    """Noise, from single pixels to masks with many holes; every other one is smooth."""
    height_px, width_px = draw(st.integers(1, 24)), draw(st.integers(1, 24))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    noise_HW = rng.random((height_px, width_px))
    if draw(st.booleans()):
        noise_HW = gaussian_filter(noise_HW, 1.5)
    mask_HW = noise_HW <= np.quantile(noise_HW, draw(st.floats(0, 1)))
    assert mask_HW.any()
    return mask_HW


def filled(points_N2: Array, mask_HW: Array, *, between: int = 0) -> Array:
    """The polygon as Ultralytics reads it out of its text: shares of the sides as float32, `between` added points."""
    height_px, width_px = mask_HW.shape
    text = [f"{value:.6f}" for value in (points_N2 / (width_px, height_px)).ravel()]
    shares_N2 = np.array(text, np.float32).reshape(-1, 2)
    closed_N2 = np.concatenate([shares_N2, shares_N2[:1]])
    at = np.linspace(0, len(shares_N2), len(shares_N2) * (between + 1) + 1)
    more_N2 = np.stack([np.interp(at, np.arange(len(closed_N2)), closed_N2[:, axis]) for axis in (0, 1)], axis=1)
    pixels_N2 = (more_N2.astype(np.float32) * np.array([width_px, height_px], np.float32)).astype(np.int32)
    canvas_HW = np.zeros(mask_HW.shape, np.uint8)
    cv2.fillPoly(canvas_HW, [pixels_N2], 1)
    return canvas_HW > 0


@settings(max_examples=150)
@given(masks(), st.integers(0, 7))
def test_a_polygon_is_its_mask_and_what_lies_under_its_bridges(mask_HW: Array, between: int) -> None:
    outline = outline_of(mask_HW)
    read_HW = filled(outline.points_N2, mask_HW, between=between)
    assert (read_HW >= mask_HW).all()
    assert (read_HW & ~mask_HW).sum() == outline.bridge_px


@settings(max_examples=80)
@given(masks())
def test_a_mask_whose_parts_touch_is_exact_whatever_its_holes(mask_HW: Array) -> None:
    parts_HW, _ = label(mask_HW, np.ones((3, 3)))
    one_HW = parts_HW == np.bincount(parts_HW[parts_HW > 0]).argmax()
    outline = outline_of(one_HW)
    assert outline.bridge_px == 0
    assert (filled(outline.points_N2, one_HW) == one_HW).all()


@settings(max_examples=40)
@given(masks())
def test_points_lie_in_pixels_of_the_mask_or_under_a_bridge(mask_HW: Array) -> None:
    outline = outline_of(mask_HW)
    x, y = outline.points_N2.T.astype(int)
    outside = {(a, b) for a, b in zip(x.tolist(), y.tolist(), strict=True) if not mask_HW[b, a]}
    assert len(outside) <= outline.bridge_px
    assert (outline.points_N2 > 0).all()
    assert (outline.points_N2 < mask_HW.shape[::-1]).all()


def test_bridges_take_the_shortest_way() -> None:
    mask_HW = np.zeros((9, 20), bool)
    mask_HW[:3, :3] = mask_HW[5:8, 4:6] = mask_HW[1:8, 10:14] = True
    assert outline_of(mask_HW).bridge_px == 2 + 4  # two rows below the first, four columns beside the second
    joined_HW = np.eye(6, dtype=bool)[::-1]
    assert outline_of(joined_HW).bridge_px == 0


def test_a_box_around_the_points_is_that_of_the_mask() -> None:
    """Not that of the middles of its pixels: a column of one pixel has a width."""
    mask_HW = np.zeros((7, 9), bool)
    mask_HW[2:6, 4] = True
    points_N2 = outline_of(mask_HW).points_N2
    assert np.abs(points_N2.min(axis=0) - (4, 2)).max() < 0.03
    assert np.abs(points_N2.max(axis=0) - (5, 6)).max() < 0.03


def test_six_digits_are_enough_for_the_largest_image() -> None:
    mask_HW = np.zeros((2, 16_383), bool)
    mask_HW[0, 1::3] = mask_HW[1] = True
    assert (filled(outline_of(mask_HW).points_N2, mask_HW) == mask_HW).all()
