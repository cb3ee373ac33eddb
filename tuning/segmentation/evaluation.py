"""What the maps of a set of pictures come to: counted picture by picture, added up, and read off class by class.

A picture's count is a row of whole numbers, so what pictures come to together depends neither on their order nor on how
they are shared out among workers. Counting is that of `mining.segmentation_scores`, which is OVSeg's rule.

Shapes: H, W height and width of a map; K classes of the set; L = K + 1, the classes and NOTHING.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from mining.segmentation_scores import NOTHING, Confusion, Labels, SegmentationScores
from schemas.errors import InputError
from schemas.rows import Rejection
from tuning.segmentation_rules import BACKGROUND


@dataclass(frozen=True, slots=True)
class CountedMap:
    """A map against the truth: `pixels[i]` pixels of class `true[i]` were taken for class `predicted[i]`.

    Classes are numbers; the number after the last class is NOTHING. `case` says which map of the picture it is.
    """

    case: str
    true: tuple[int, ...]
    predicted: tuple[int, ...]
    pixels: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class EvaluatedRow:
    """A picture and its counted maps, none where it was rejected."""

    image_id: str
    maps: tuple[CountedMap, ...]
    rejection: Rejection | None


def as_labels(stored_HW: np.ndarray[Any, np.dtype[Any]], *, classes: int, ignore: int, place: str) -> Labels:
    """A label map as it is stored, with NOTHING in the place of `ignore`, int32 [H, W].

    Raises InputError, which names `place`, for numbers beyond the classes.
    """
    labels_HW = stored_HW.astype(np.int32)
    labels_HW[stored_HW == ignore] = NOTHING
    greatest = int(labels_HW.max(initial=NOTHING))
    if greatest >= classes or int(labels_HW.min(initial=0)) < NOTHING:
        raise InputError(
            f"{place}: has the label {greatest}, the {classes} classes are 0 to {classes - 1} and {ignore} is not "
            "counted; is the set prepared, are these its classes, is --ignore right?"
        )
    return labels_HW


def count_map(predicted_HW: Labels, *, truth_HW: Labels, classes: int, case: str) -> CountedMap:
    """Count a map; raises ValueError as `Confusion.add` does."""
    confusion = Confusion.of_classes(classes)
    confusion.add(predicted_HW, truth_HW=truth_HW)
    true, predicted = confusion.pixels_KL.nonzero()
    pixels = confusion.pixels_KL[true, predicted]
    return CountedMap(case, *(tuple(numbers.tolist()) for numbers in (true, predicted, pixels)))


def add_up(rows: Iterable[EvaluatedRow], *, classes: int) -> dict[str, Confusion]:
    """The confusion of each case, in the order in which cases first appear."""
    sums: dict[str, Confusion] = {}
    for row in rows:
        for counted in row.maps:
            confusion = sums.setdefault(counted.case, Confusion.of_classes(classes))
            true, predicted, pixels = (
                np.array(numbers, np.int64) for numbers in (counted.true, counted.predicted, counted.pixels)
            )
            confusion.pixels_KL[true, predicted] += pixels
    return sums


@dataclass(frozen=True, slots=True, eq=False)
class Question:
    """What a segmenter is asked for, so that it names the classes of a set: every name once, in the set's order.

    Of classes that have one name, which nothing in a picture can tell apart, the first is asked for. `names` are those
    that a map may have, `numbers` theirs among the set's classes, and NOTHING. A class that has the name of the
    background is asked for as such, and has no label in a map.
    """

    names: tuple[str, ...]
    numbers: np.ndarray[Any, np.dtype[np.int32]]
    with_background: bool = False

    @staticmethod
    def about(classes: Sequence[str]) -> Question:
        """The question about the classes of a set."""
        first: dict[str, int] = {}
        for number, name in enumerate(classes):
            first.setdefault(" ".join(name.split()).casefold(), number)
        named = [number for name, number in first.items() if name != BACKGROUND]
        names = tuple(classes[number] for number in named)
        return Question(names, np.array([*named, NOTHING], np.int32), BACKGROUND in first)

    @property
    def asked(self) -> tuple[str, ...]:
        """What to give a segmenter as its classes."""
        return (*self.names, BACKGROUND) if self.with_background else self.names

    def only(self, truth_HW: Labels) -> Question:
        """The question about those of its classes alone that a map has."""
        present = set(np.unique(truth_HW).tolist())
        kept = [place for place, number in enumerate(self.numbers[:-1].tolist()) if number in present]
        return Question(tuple(self.names[place] for place in kept), self.numbers[[*kept, -1]])

    def as_set_labels(self, labels_HW: Labels) -> Labels:
        """A segmenter's map with the numbers of the set's classes."""
        labels: Labels = self.numbers[labels_HW]  # NOTHING, which is -1, finds the last entry
        return labels


@dataclass(frozen=True)
class SetScores:
    """What a set comes to. `seen` are the classes that the training of the proposals knew, None where nobody said."""

    classes: tuple[str, ...]
    confusion: Confusion
    seen: frozenset[str] | None = None

    @cached_property
    def scores(self) -> SegmentationScores:
        """Over all classes."""
        return self.confusion.scores()

    @property
    def seen_iou(self) -> float | None:
        """The mean IoU of the seen classes, by the same rule; None without any of them."""
        return None if self.seen is None else self._mean_iou(self.seen)

    @property
    def unseen_iou(self) -> float | None:
        """The same of all others."""
        return None if self.seen is None else self._mean_iou(frozenset(self.classes) - self.seen)

    @property
    def harmonic_iou(self) -> float | None:
        """The harmonic mean of both, which is low where one of them is; None where one is unknown."""
        seen, unseen = self.seen_iou, self.unseen_iou
        if seen is None or unseen is None:
            return None
        return 2 * seen * unseen / (seen + unseen) if seen + unseen else 0.0

    def figures(self) -> dict[str, float | None]:
        """The figures of the set by their names in the field, from 0 to 1."""
        scores = self.scores
        found = {
            "mIoU": scores.mean_iou,
            "fwIoU": scores.weighted_iou,
            "mACC": scores.mean_accuracy,
            "pACC": scores.pixel_accuracy,
        }
        if self.seen is not None:
            found |= {"seen mIoU": self.seen_iou, "unseen mIoU": self.unseen_iou, "harmonic": self.harmonic_iou}
        return found

    def by_class(self) -> list[ClassScores]:
        """A row for each class, in the set's order."""
        true_K, predicted_K = self.confusion.pixels_KL.sum(1), self.confusion.pixels_KL[:, :-1].sum(0)
        columns = (self.classes, self.scores.iou_K, self.scores.accuracy_K, true_K, predicted_K)
        return [
            ClassScores(
                name,
                None if np.isnan(iou) else float(iou),
                None if np.isnan(accuracy) else float(accuracy),
                int(true),
                int(predicted),
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
    """A class of a set: IoU and accuracy from 0 to 1 (None where they are of no pixel), and its pixels."""

    name: str
    iou: float | None
    accuracy: float | None
    true_px: int
    predicted_px: int
    seen: bool | None
