"""mIoU of a data set: each image is counted on its own, counts are added, and scores are read off by class.

The counts of an image are a row of integers, so the sum over images depends neither on their order nor on their
distribution over workers. Counting is that of `maskmine.tuning.segmentation.confusion`, which is OVSeg's rule.

Shapes: H, W height and width of a map; K classes of the set; L = K + 1, the classes and IGNORE.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from maskmine.schemas.errors import InputError
from maskmine.schemas.rows import Rejection
from maskmine.tuning.segmentation.confusion import IGNORE, Confusion, Labels, SegmentationScores
from maskmine.tuning.segmentation.semantic_inference import BACKGROUND


@dataclass(frozen=True, slots=True)
class CountedMap:
    """The nonzero cells of a map's confusion: `pixels[i]` pixels of class `true[i]` were predicted as `predicted[i]`.

    Classes are numbers; the number after the last class is IGNORE. `case` tells several maps of an image apart.
    """

    case: str
    true: tuple[int, ...]
    predicted: tuple[int, ...]
    pixels: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class EvaluatedRow:
    """An image and its counted maps; none where it was rejected."""

    image_id: str
    maps: tuple[CountedMap, ...]
    rejection: Rejection | None


def as_labels(stored_HW: np.ndarray[Any, np.dtype[Any]], *, classes: int, ignore: int, path: str) -> Labels:
    """A stored label map with IGNORE in place of `ignore`, int32 [H, W].

    Raises InputError, which names `path`, for numbers beyond the classes.
    """
    labels_HW = stored_HW.astype(np.int32)
    labels_HW[stored_HW == ignore] = IGNORE
    greatest = int(labels_HW.max(initial=IGNORE))
    if greatest >= classes or int(labels_HW.min(initial=0)) < IGNORE:
        raise InputError(
            f"{path}: has the label {greatest}, the {classes} classes are 0 to {classes - 1} and {ignore} is not "
            "counted; is the set prepared, are these its classes, is --ignore right?"
        )
    return labels_HW


def count_map(predicted_HW: Labels, *, gt_HW: Labels, classes: int, case: str) -> CountedMap:
    """Count a map; raises ValueError as `Confusion.add` does."""
    confusion = Confusion.of_classes(classes)
    confusion.add(predicted_HW, gt_HW=gt_HW)
    true, predicted = confusion.pixels_KL.nonzero()
    pixels = confusion.pixels_KL[true, predicted]
    return CountedMap(case, *(tuple(numbers.tolist()) for numbers in (true, predicted, pixels)))


def add_up(rows: Iterable[EvaluatedRow], *, classes: int) -> dict[str, Confusion]:
    """The confusion of each case, in the order in which cases first appear."""
    sums: dict[str, Confusion] = {}
    for counted in (counted for row in rows for counted in row.maps):
        confusion = sums.setdefault(counted.case, Confusion.of_classes(classes))
        true, predicted, pixels = np.array((counted.true, counted.predicted, counted.pixels), np.int64)
        confusion.pixels_KL[true, predicted] += pixels
    return sums


@dataclass(frozen=True, slots=True, eq=False)
class ClassMapping:
    """From a segmenter's classes to those of a set: each name once, in the set's order.

    Of classes with the same name, which no model can tell apart, the segmenter gets the first. `names` are those that
    a map may have, `numbers` their numbers in the set, IGNORE last. A class that is called like the background is
    passed to the segmenter as background, and has no label in a map.
    """

    names: tuple[str, ...]
    numbers: np.ndarray[Any, np.dtype[np.int32]]
    with_background: bool = False

    @staticmethod
    def of(classes: Sequence[str]) -> ClassMapping:
        """The mapping for the classes of a set."""
        first: dict[str, int] = {}
        for number, name in enumerate(classes):
            first.setdefault(_plain(name), number)
        named = [number for name, number in first.items() if name != BACKGROUND]
        names = tuple(classes[number] for number in named)
        return ClassMapping(names, np.array([*named, IGNORE], np.int32), BACKGROUND in first)

    @property
    def segmenter_classes(self) -> tuple[str, ...]:
        """The classes to give to a segmenter."""
        return (*self.names, BACKGROUND) if self.with_background else self.names

    def only_in(self, gt_HW: Labels) -> ClassMapping:
        """The same for those of its classes alone that a label map has."""
        present = set(np.unique(gt_HW).tolist())
        indices = [index for index, number in enumerate(self.numbers[:-1].tolist()) if number in present]
        return ClassMapping(tuple(self.names[index] for index in indices), self.numbers[[*indices, -1]])

    def to_set_labels(self, labels_HW: Labels) -> Labels:
        """A segmenter's map with the numbers of the set's classes."""
        labels: Labels = self.numbers[labels_HW]  # IGNORE, which is -1, picks the last entry
        return labels


def repeated_names(classes: Sequence[str]) -> tuple[str, ...]:
    """The classes whose name an earlier one has: no map shows them, so they count as never found."""
    seen: set[str] = set()
    repeated = []
    for name in classes:
        if _plain(name) in seen:
            repeated.append(name)
        seen.add(_plain(name))
    return tuple(repeated)


def _plain(name: str) -> str:
    return " ".join(name.split()).casefold()


@dataclass(frozen=True)
class SetScores:
    """The scores of a set. `seen` are the classes that the proposals were trained on, None where they are not known."""

    classes: tuple[str, ...]
    confusion: Confusion
    seen: frozenset[str] | None = None

    @cached_property
    def scores(self) -> SegmentationScores:
        """Over all classes."""
        return self.confusion.scores()

    @property
    def classes_in_mean(self) -> int:
        """The classes of which `mean_iou` is the mean: those with a pixel in the annotations or in a map."""
        return int((~np.isnan(self.scores.iou_K)).sum())

    @property
    def seen_iou(self) -> float | None:
        """The mean IoU of the seen classes; None without any of them."""
        return None if self.seen is None else self._mean_iou(self.seen)

    @property
    def unseen_iou(self) -> float | None:
        """The mean IoU of all other classes."""
        return None if self.seen is None else self._mean_iou(frozenset(self.classes) - self.seen)

    @property
    def harmonic_iou(self) -> float | None:
        """The harmonic mean of both; None where one is unknown."""
        seen, unseen = self.seen_iou, self.unseen_iou
        if seen is None or unseen is None:
            return None
        return 2 * seen * unseen / (seen + unseen) if seen + unseen else 0.0

    def figures(self) -> dict[str, float | None]:
        """The scores by their names in the field, from 0 to 1."""
        scores = self.scores
        figures = {
            "mIoU": scores.mean_iou,
            "fwIoU": scores.weighted_iou,
            "mACC": scores.mean_accuracy,
            "pACC": scores.pixel_accuracy,
        }
        if self.seen is not None:
            figures |= {"seen mIoU": self.seen_iou, "unseen mIoU": self.unseen_iou, "harmonic": self.harmonic_iou}
        return figures

    def by_class(self) -> list[ClassScores]:
        """A row for each class, in the set's order."""
        true_K, predicted_K = self.confusion.pixels_KL.sum(1), self.confusion.pixels_KL[:, :-1].sum(0)
        columns = (self.classes, self.scores.iou_K, self.scores.accuracy_K, true_K.tolist(), predicted_K.tolist())
        return [
            ClassScores(
                name,
                _or_none(iou),
                _or_none(accuracy),
                true,
                predicted,
                None if self.seen is None else name in self.seen,
            )
            for name, iou, accuracy, true, predicted in zip(*columns, strict=True)
        ]

    def _mean_iou(self, names: frozenset[str]) -> float | None:
        ious = [iou for name, iou in zip(self.classes, self.scores.iou_K, strict=True) if name in names]
        known = [float(iou) for iou in ious if not np.isnan(iou)]
        return sum(known) / len(known) if known else None


@dataclass(frozen=True, slots=True)
class ClassScores:
    """A class of a set: IoU and accuracy from 0 to 1 (None without a pixel to divide by), and its pixels."""

    name: str
    iou: float | None
    accuracy: float | None
    true_px: int
    predicted_px: int
    seen: bool | None


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
