"""Maps of classes against the truth: figures known by hand, and the laws that hold for any maps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_jaccard_index

from maskmine.tuning.segmentation.confusion import IGNORE, Confusion

CLASSES = 4
maps = arrays.arrays(np.int64, (3, 5), elements=st.integers(IGNORE, CLASSES - 1))


def confusion(*pairs: tuple[Any, Any], classes: int = CLASSES) -> Confusion:
    """The confusion of some pairs of predicted and true maps."""
    counted = Confusion.of_classes(classes)
    for predicted, truth in pairs:
        counted.add(np.atleast_2d(np.array(predicted)), gt_HW=np.atleast_2d(np.array(truth)))
    return counted


def test_the_figures_of_a_small_map_are_those_known_by_hand() -> None:
    truth = [0, 0, 0, 0, 1, 1, IGNORE, IGNORE]
    predicted = [0, 0, 0, 1, 1, 2, 2, 0]
    scores = confusion((predicted, truth)).scores()
    # class 0: 3 right of 4 true and 3 predicted; class 1: 1 right of 2 and 2; class 2: not there, predicted once
    assert scores.iou_K.tolist() == pytest.approx([3 / 4, 1 / 3, 0, np.nan], nan_ok=True)
    assert scores.accuracy_K.tolist() == pytest.approx([3 / 4, 1 / 2, np.nan, np.nan], nan_ok=True)
    assert scores.mean_iou == pytest.approx((3 / 4 + 1 / 3 + 0) / 3)
    assert scores.weighted_iou == pytest.approx((4 * 3 / 4 + 2 * 1 / 3) / 6)
    assert scores.mean_accuracy == pytest.approx((3 / 4 + 1 / 2) / 2)
    assert scores.pixel_accuracy == pytest.approx(4 / 6)


def test_a_pixel_without_a_predicted_class_is_missed_and_harms_no_other_class() -> None:
    whole, half = confusion(([0, 0, 1, 1], [0, 0, 1, 1])).scores(), confusion(([0, -1, 1, 1], [0, 0, 1, 1])).scores()
    assert (whole.mean_iou, whole.pixel_accuracy) == (1, 1)
    assert half.iou_K[:2].tolist() == [0.5, 1]
    assert half.pixel_accuracy == 0.75


def test_a_truth_without_a_class_has_no_figures() -> None:
    scores = confusion(([0, 1], [IGNORE, IGNORE])).scores()
    assert (scores.mean_iou, scores.weighted_iou, scores.mean_accuracy, scores.pixel_accuracy) == (None,) * 4


def plain_mean_iou(predicted_HW: Any, gt_HW: Any) -> float | None:
    """The definition, class by class, over the pixels that have a class in the truth."""
    known_HW = gt_HW != IGNORE
    ious = []
    for number in range(CLASSES):
        found_HW, there_HW = (predicted_HW == number) & known_HW, gt_HW == number
        if (found_HW | there_HW).any():
            ious.append((found_HW & there_HW).sum() / (found_HW | there_HW).sum())
    return float(np.mean(ious)) if ious else None


@given(maps, maps)
def test_the_mean_iou_is_that_of_the_plain_definition(predicted_HW: Any, gt_HW: Any) -> None:
    assert confusion((predicted_HW, gt_HW)).scores().mean_iou == pytest.approx(plain_mean_iou(predicted_HW, gt_HW))


@given(st.lists(st.tuples(maps, maps), max_size=4), st.integers(0, 4))
def test_the_order_of_maps_does_not_matter_nor_how_they_are_shared_out(pairs: Any, cut: int) -> None:
    together = confusion(*pairs).pixels_KL
    assert (confusion(*pairs[::-1]).pixels_KL == together).all()
    assert ((confusion(*pairs[:cut]) + confusion(*pairs[cut:])).pixels_KL == together).all()


@given(maps)
def test_every_pixel_with_a_true_class_is_counted_once(gt_HW: Any) -> None:
    counted = confusion((np.full_like(gt_HW, 2), gt_HW)).pixels_KL
    assert counted.sum() == (gt_HW != IGNORE).sum()
    assert (counted[:, [0, 1, 3, 4]] == 0).all()


@pytest.mark.parametrize(
    ("predicted", "truth", "fault"),
    [
        ([0, 1], [0], "shape"),
        ([0, CLASSES], [0, 1], "predicted classes go from 0 to 3"),
        ([0, 1], [0, 255], "true classes go from 0 to 3"),
        ([-2, 1], [0, 1], "predicted classes"),
    ],
)
def test_maps_that_cannot_be_compared_are_refused(predicted: Any, truth: Any, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        confusion((predicted, truth))


def test_unsigned_maps_of_more_than_a_byte_are_counted() -> None:
    counted = Confusion.of_classes(847)
    counted.add(np.full((2, 2), 846, np.uint16), gt_HW=np.full((2, 2), 846, np.uint16))
    assert counted.scores().mean_iou == 1


# --- an independent evaluator -----------------------------------------------------------------------------------------
# torchmetrics knows no "nothing" among predictions: here that is a class more, which no truth has, and whose own row is
# left out. Its means go over the classes that have a pixel in truth or prediction, as our mean IoU does by OVSeg's.
# Our mean accuracy, by the same rule, goes over the classes that are there, while torchmetrics counts one that was only
# predicted as 0: so the two are compared class by class, and as means where every predicted class is there.

many = st.integers(1, 6).flatmap(
    lambda classes: st.tuples(
        st.just(classes),
        *[arrays.arrays(np.int64, (4, 7), elements=st.integers(IGNORE, classes - 1)) for _ in range(2)],
    )
)


@given(many)
def test_torchmetrics_finds_the_same_figures_with_ignored_pixels_and_absent_classes(maps_of_classes: Any) -> None:
    classes, predicted_HW, gt_HW = maps_of_classes
    scores = confusion((predicted_HW, gt_HW), classes=classes).scores()
    if scores.mean_iou is None:
        return
    predicted = torch.from_numpy(np.where(predicted_HW == IGNORE, classes, predicted_HW)).flatten()
    truth = torch.from_numpy(gt_HW).flatten()
    how: dict[str, Any] = {"num_classes": classes + 1, "ignore_index": IGNORE}
    iou_L = multiclass_jaccard_index(predicted, truth, average="none", **how).numpy()
    recall_L = multiclass_accuracy(predicted, truth, average="none", **how).numpy()
    there_K, spoken_K = (np.isin(range(classes), map_HW[gt_HW != IGNORE]) for map_HW in (gt_HW, predicted_HW))
    known_K = there_K | spoken_K
    assert (known_K == ~np.isnan(scores.iou_K)).all()
    assert (there_K == ~np.isnan(scores.accuracy_K)).all()
    assert scores.iou_K[known_K] == pytest.approx(iou_L[:-1][known_K], abs=1e-6)
    assert scores.accuracy_K[there_K] == pytest.approx(recall_L[:-1][there_K], abs=1e-6)
    assert scores.mean_iou == pytest.approx(iou_L[:-1][known_K].mean(), abs=1e-6)
    weighted = float(multiclass_jaccard_index(predicted, truth, average="weighted", **how))
    assert scores.weighted_iou == pytest.approx(weighted, abs=1e-6)
    right = float(multiclass_accuracy(predicted, truth, average="micro", **how))
    assert scores.pixel_accuracy == pytest.approx(right, abs=1e-6)


@given(many)
def test_torchmetrics_takes_the_same_means_where_it_counts_the_same_classes(maps_of_classes: Any) -> None:
    classes, predicted_HW, gt_HW = maps_of_classes
    predicted_HW = np.where(np.isin(predicted_HW, gt_HW[gt_HW != IGNORE]), predicted_HW, gt_HW)
    scores = confusion((predicted_HW, gt_HW), classes=classes).scores()
    if scores.mean_iou is None or (predicted_HW == IGNORE)[gt_HW != IGNORE].any():
        return
    predicted, truth = torch.from_numpy(predicted_HW).flatten(), torch.from_numpy(gt_HW).flatten()
    predicted[truth == IGNORE] = 0  # whatever it is
    how: dict[str, Any] = {"num_classes": max(2, classes), "ignore_index": IGNORE, "average": "macro"}
    assert scores.mean_iou == pytest.approx(float(multiclass_jaccard_index(predicted, truth, **how)), abs=1e-6)
    assert scores.mean_accuracy == pytest.approx(float(multiclass_accuracy(predicted, truth, **how)), abs=1e-6)
