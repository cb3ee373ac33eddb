"""How well maps of classes agree with the truth: pixels counted in a confusion matrix, and what is read off it.

A map has the class of every pixel as a number from 0, and NOTHING where there is none. Pixels without a class in the
truth are not counted at all. Pixels without one in the prediction are missed: they count against the class that they
have in truth, and for no other.

The mean IoU is taken as in OVSeg's evaluation: the sum of the IoUs divided by the number of classes that have a pixel
in the truth or in the prediction. So a class that was predicted but is not there counts as 0, and a class of which
nobody spoke is left out.

Shapes: H, W height and width of a map; K classes; L = K + 1, the classes and NOTHING.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

NOTHING = -1

Labels = np.ndarray[Any, np.dtype[np.integer[Any]]]
Counts = np.ndarray[Any, np.dtype[np.int64]]
Floats = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, slots=True, eq=False)
class SegmentationScores:
    """All from 0 to 1; None and NaN are figures of no pixel.

    `iou_K` is intersection over union; NaN for a class with neither true nor predicted pixels. `accuracy_K` is the
    share of a class's true pixels that were found, its recall; NaN for a class that is not there. `mean_iou` and
    `mean_accuracy` (mIoU and mACC) are the means of those that are numbers, `weighted_iou` (fwIoU) the mean of the
    IoUs weighted by true pixels, `pixel_accuracy` (pACC) the share of right pixels.
    """

    iou_K: Floats
    accuracy_K: Floats
    mean_iou: float | None
    weighted_iou: float | None
    mean_accuracy: float | None
    pixel_accuracy: float | None


@dataclass(slots=True, eq=False)
class Confusion:
    """A sum over maps: `pixels_KL` has a row for each true class and a column for each predicted one, NOTHING last.

    Whole numbers only, so neither the order of the maps nor how they are shared out among workers matters:
    confusions of parts are added with `+`.
    """

    pixels_KL: Counts

    @staticmethod
    def of_classes(classes: int) -> Confusion:
        """The confusion of no map."""
        return Confusion(np.zeros((classes, classes + 1), np.int64))

    def add(self, predicted_HW: Labels, *, truth_HW: Labels) -> None:
        """Count a map.

        Raises ValueError when the two differ in shape or hold a number that is neither a class nor NOTHING: other
        codes for unlabelled pixels, such as 255, are for the caller to translate.
        """
        classes = len(self.pixels_KL)
        if predicted_HW.shape != truth_HW.shape:
            raise ValueError(f"a map of shape {predicted_HW.shape} was held against a truth of {truth_HW.shape}")
        for name, labels_HW in (("predicted", predicted_HW), ("true", truth_HW)):
            if labels_HW.size and not (labels_HW.min() >= NOTHING and labels_HW.max() < classes):
                raise ValueError(f"{name} classes go from 0 to {classes - 1}, or are {NOTHING}")
        known_HW = truth_HW != NOTHING
        truth_P, predicted_P = truth_HW[known_HW].astype(np.int64), predicted_HW[known_HW].astype(np.int64)
        cell_P = truth_P * (classes + 1) + predicted_P % (classes + 1)  # NOTHING is the last column
        np.add.at(self.pixels_KL.reshape(-1), cell_P, 1)

    def __add__(self, other: Confusion) -> Confusion:
        return Confusion(self.pixels_KL + other.pixels_KL)

    def scores(self) -> SegmentationScores:
        """What the counts amount to."""
        right_K = self.pixels_KL[:, :-1].diagonal().astype(np.float64)
        true_K, predicted_K = self.pixels_KL.sum(1), self.pixels_KL[:, :-1].sum(0)
        union_K = true_K + predicted_K - right_K
        iou_K, accuracy_K = _ratio(right_K, union_K), _ratio(right_K, true_K)
        total = int(true_K.sum())
        there_K = true_K > 0
        return SegmentationScores(
            iou_K=iou_K,
            accuracy_K=accuracy_K,
            mean_iou=_mean(iou_K),
            weighted_iou=float((iou_K[there_K] * true_K[there_K]).sum() / total) if total else None,
            mean_accuracy=_mean(accuracy_K),
            pixel_accuracy=float(right_K.sum() / total) if total else None,
        )


def _ratio(part_K: Floats, whole_K: np.ndarray[Any, Any]) -> Floats:
    """Part of whole by class; NaN where there is no whole."""
    ratio_K: Floats = np.divide(part_K, whole_K, out=np.full(len(part_K), np.nan), where=whole_K > 0)
    return ratio_K


def _mean(values_K: Floats) -> float | None:
    """The mean of the numbers among some values."""
    numbers = values_K[~np.isnan(values_K)]
    return float(numbers.mean()) if len(numbers) else None
