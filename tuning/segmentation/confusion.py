"""A confusion matrix of pixels, and the metrics of semantic segmentation that follow from it.

A label map has the class of every pixel as a number from 0, and IGNORE where there is none. Pixels that the ground
truth ignores are not counted at all. Ignored pixels of the prediction are false negatives of their true class, and
false positives of none.

The mean IoU is that of OVSeg's evaluation: the sum of the IoUs divided by the number of classes that have a pixel in
the ground truth or in the prediction. So a class that is only predicted counts as 0, and a class in neither is left
out.

Shapes: H, W height and width of a map; K classes; L = K + 1, the classes and IGNORE.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

IGNORE = -1
"""The label of a pixel without a class: no class number is negative."""

Labels = np.ndarray[Any, np.dtype[np.integer[Any]]]
Counts = np.ndarray[Any, np.dtype[np.int64]]
Floats = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, slots=True, eq=False)
class SegmentationScores:
    """All from 0 to 1; None and NaN where there is no pixel to divide by.

    `iou_K` is intersection over union; NaN for a class with neither true nor predicted pixels. `accuracy_K` is the
    recall of each class; NaN without true pixels. `mean_iou` and `mean_accuracy` (mIoU and mACC) are means over the
    classes that are not NaN, `weighted_iou` (fwIoU) weights the IoUs by true pixels, `pixel_accuracy` (pACC) is the
    share of correct pixels.
    """

    iou_K: Floats
    accuracy_K: Floats
    mean_iou: float | None
    weighted_iou: float | None
    mean_accuracy: float | None
    pixel_accuracy: float | None


@dataclass(slots=True, eq=False)
class Confusion:
    """`pixels_KL` has a row for each true class and a column for each predicted one, IGNORE last.

    Integers only, so neither the order of the maps nor their distribution over workers changes a sum: confusions of
    parts are added with `+`.
    """

    pixels_KL: Counts

    @staticmethod
    def of_classes(classes: int) -> Confusion:
        """The confusion of no map."""
        return Confusion(np.zeros((classes, classes + 1), np.int64))

    def add(self, predicted_HW: Labels, *, gt_HW: Labels) -> None:
        """Count a map.

        Raises ValueError when the two differ in shape or hold a number that is neither a class nor IGNORE: callers
        translate other codes for ignored pixels, such as 255.
        """
        classes = len(self.pixels_KL)
        if predicted_HW.shape != gt_HW.shape:
            raise ValueError(f"a map of shape {predicted_HW.shape} was compared with annotations of {gt_HW.shape}")
        for name, labels_HW in (("predicted", predicted_HW), ("true", gt_HW)):
            if labels_HW.size and not (labels_HW.min() >= IGNORE and labels_HW.max() < classes):
                raise ValueError(f"{name} classes go from 0 to {classes - 1}, or are {IGNORE}")
        known_HW = gt_HW != IGNORE
        gt_P, predicted_P = gt_HW[known_HW].astype(np.int64), predicted_HW[known_HW].astype(np.int64)
        cell_P = gt_P * (classes + 1) + predicted_P % (classes + 1)  # IGNORE, which is -1, is the last column
        self.pixels_KL += np.bincount(cell_P, minlength=self.pixels_KL.size).reshape(self.pixels_KL.shape)

    def __add__(self, other: Confusion) -> Confusion:
        return Confusion(self.pixels_KL + other.pixels_KL)

    def scores(self) -> SegmentationScores:
        """The metrics of all counted pixels."""
        tp = self.pixels_KL[:, :-1].diagonal().astype(np.float64)
        pos_gt, pos_pred = self.pixels_KL.sum(1), self.pixels_KL[:, :-1].sum(0)
        union = pos_gt + pos_pred - tp
        iou, accuracy = _ratio(tp, union), _ratio(tp, pos_gt)
        total = int(pos_gt.sum())
        valid = pos_gt > 0
        return SegmentationScores(
            iou_K=iou,
            accuracy_K=accuracy,
            mean_iou=_mean(iou),
            weighted_iou=float((iou[valid] * pos_gt[valid]).sum() / total) if total else None,
            mean_accuracy=_mean(accuracy),
            pixel_accuracy=float(tp.sum() / total) if total else None,
        )


def _ratio(part_K: Floats, whole_K: np.ndarray[Any, Any]) -> Floats:
    """By class; NaN where the whole is 0."""
    ratio_K: Floats = np.divide(part_K, whole_K, out=np.full(len(part_K), np.nan), where=whole_K > 0)
    return ratio_K


def _mean(values_K: Floats) -> float | None:
    """The mean of the values that are not NaN."""
    numbers = values_K[~np.isnan(values_K)]
    return float(numbers.mean()) if len(numbers) else None
