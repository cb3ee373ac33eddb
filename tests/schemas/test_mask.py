"""Masks survive every form that they are kept in."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco_mask

from maskmine.schemas.mask import Mask, _read_compressed, mask_iou

SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=24)
ARRAYS = hnp.arrays(np.bool_, SHAPES)


@given(ARRAYS)
def test_a_mask_survives_its_run_lengths(array_HW: np.ndarray) -> None:
    np.testing.assert_array_equal(Mask.from_array(array_HW).to_array(), array_HW)


@given(hnp.arrays(np.bool_, hnp.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=12)))
def test_many_masks_at_once_are_each_mask_alone(arrays_NHW: np.ndarray) -> None:
    assert Mask.from_arrays(arrays_NHW) == [Mask.from_array(array_HW) for array_HW in arrays_NHW]


@given(ARRAYS)
def test_area_and_box_are_those_of_the_pixels(array_HW: np.ndarray) -> None:
    mask = Mask.from_array(array_HW)
    assert mask.area_px == array_HW.sum()
    if array_HW.any():
        ys, xs = np.nonzero(array_HW)
        assert mask.box_xyxy == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
    else:
        assert mask.box_xyxy == (0, 0, 0, 0)


@given(st.data(), SHAPES)
def test_iou_is_that_of_the_pixels(data: st.DataObject, shape: tuple[int, int]) -> None:
    left, right = (data.draw(hnp.arrays(np.bool_, shape)) for _ in range(2))
    union = (left | right).sum()
    expected = (left & right).sum() / union if union else 0.0
    assert mask_iou([Mask.from_array(left)], [Mask.from_array(right)])[0, 0] == pytest.approx(expected)


def test_any_value_but_zero_is_foreground() -> None:
    assert Mask.from_array(np.array([[0, 255], [7, 0]])).to_array().tolist() == [[0, 1], [1, 0]]


def test_coco_polygons_and_both_kinds_of_run_lengths_give_the_same_mask() -> None:
    square = [[1.0, 1.0, 4.0, 1.0, 4.0, 3.0, 1.0, 3.0]]
    polygon = Mask.from_coco(square, height_px=5, width_px=6)
    assert polygon.area_px == 6
    compressed = {"size": [5, 6], "counts": polygon.counts.decode("ascii")}
    runs, value = [], 0
    for pixel in polygon.to_array().T.flat:
        if pixel != value or not runs:
            runs += [0] if not runs and pixel else []
            runs.append(0)
            value = pixel
        runs[-1] += 1
    assert Mask.from_coco(compressed, height_px=5, width_px=6) == polygon
    assert Mask.from_coco({"size": [5, 6], "counts": runs}, height_px=5, width_px=6) == polygon


@pytest.mark.parametrize(
    "segmentation", [[], [[1, 2, 3, 4]], None, 7, {"size": [9, 9], "counts": "x"}, {"size": [5, 6]}, "polygon"]
)
def test_what_is_no_coco_segmentation_is_a_value_error(segmentation: object) -> None:
    with pytest.raises(ValueError, match=r"polygons|run lengths|size"):
        Mask.from_coco(segmentation, height_px=5, width_px=6)


@pytest.mark.parametrize(
    "segmentation",
    [
        {"size": [5, 6], "counts": [7, 2]},  # too short: what lies behind them in memory would be shown
        {"size": [5, 6], "counts": [31]},
        {"size": [5, 6], "counts": [-1, 31]},
        {"size": [5, 6], "counts": "0"},
        {"size": [5, 6], "counts": "`"},  # breaks off within a number
        {"size": [5, 6], "counts": "\x7f\x80"},
        [[0, 0, 1e30, 0, 0, 4]],
        [[0, 0, float("nan"), 0, 0, 4]],
        [[0, 0, "three", 0, 0, 4]],
    ],
)
def test_what_pycocotools_would_believe_to_its_harm_is_a_value_error(segmentation: object) -> None:
    with pytest.raises(ValueError, match=r"run lengths do not cover|far outside|size"):
        Mask.from_coco(segmentation, height_px=5, width_px=6)


@given(ARRAYS)
def test_compressed_run_lengths_are_read_back_from_coco(array_HW: np.ndarray) -> None:
    mask = Mask.from_array(array_HW)
    height_px, width_px = array_HW.shape
    for counts in (mask.counts, mask.counts.decode("ascii")):
        segmentation = {"size": [height_px, width_px], "counts": counts}
        assert Mask.from_coco(segmentation, height_px=height_px, width_px=width_px) == mask


@given(st.lists(st.integers(0, 10_000_000), min_size=1, max_size=12))
def test_compressed_runs_are_read_as_pycocotools_writes_them(runs: list[int]) -> None:
    encoded = coco_mask.frPyObjects({"size": [1, sum(runs)], "counts": runs}, 1, sum(runs))
    assert _read_compressed(encoded["counts"].decode()) == runs


def test_no_masks_have_an_empty_iou_matrix() -> None:
    assert mask_iou([], [Mask(1, 1, b"")]).shape == (0, 1)
