"""The pairs of a run that an audit looks at: those that were judged, and all of them for what a threshold keeps.

The cells of one part are in memory at a time, without embeddings. Shapes: N pairs of a part.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from maskmine.mining.evaluation.verdicts import PairId
from maskmine.mining.scores.calibration import Calibration
from maskmine.pipelines.dataset.finished_run import FinishedRun
from maskmine.schemas.mask import Mask
from maskmine.schemas.rows import Pair, PairsRow, RegionsRow

_STEPS = 10_000  # of confidence, for the counts by threshold


@dataclass(frozen=True, slots=True)
class FoundPair:
    """A pair of the run and the score of its region's proposal."""

    pair: Pair
    score: float


@dataclass(frozen=True)
class Kept:
    """What a threshold of confidence keeps of all pairs: how many, and how many of these are expected to be right."""

    threshold: float
    pairs: int
    expected_right: float

    @property
    def precision(self) -> float | None:
        """The expected share of right pairs; None where none is kept."""
        return self.expected_right / self.pairs if self.pairs else None


@dataclass(frozen=True)
class Confidences:
    """The confidences of all pairs of a run, counted in steps of 0.0001; `without` counts pairs that have none."""

    counts: tuple[int, ...]
    millionths: tuple[int, ...]
    without: int

    def kept(self, threshold: float) -> Kept:
        """What a threshold keeps; it is rounded to the steps."""
        first = round(threshold * _STEPS)
        return Kept(first / _STEPS, sum(self.counts[first:]), sum(self.millionths[first:]) / 1e6)

    def highest(self) -> Kept:
        """What the highest threshold keeps that keeps a pair at all."""
        return self.kept(max((step for step, count in enumerate(self.counts) if count), default=0) / _STEPS)

    def lowest_threshold(self, target_precision: float) -> Kept | None:
        """The lowest threshold whose expected precision reaches a target; None where none does.

        What is kept has a mean confidence that rises with the threshold, so the first one to reach it is the lowest.
        """
        pairs, millionths, best = 0, 0, None
        for step in range(_STEPS, -1, -1):
            pairs, millionths = pairs + self.counts[step], millionths + self.millionths[step]
            if pairs and millionths < target_precision * pairs * 1e6:
                break
            if self.counts[step]:
                best = Kept(step / _STEPS, pairs, millionths / 1e6)
        return best


def find_pairs(finished: FinishedRun, wanted: Mapping[str, frozenset[PairId]]) -> dict[PairId, FoundPair]:
    """Those of the `wanted` pairs, by image, that the run has. Raises IncompleteError when cells are missing."""
    found: dict[PairId, FoundPair] = {}
    for part in finished.parts:
        rows = finished.columns(part, PairsRow, ["image_id", "pairs"])
        here = [index for index, image_id in enumerate(rows["image_id"].to_pylist()) if image_id in wanted]
        if not here:
            continue
        names = ["regions.list.element.mask", "regions.list.element.score"]
        regions = finished.columns(part, RegionsRow, names)["regions"]
        for index in here:
            image_id = rows["image_id"][index].as_py()
            for values in rows["pairs"][index].as_py():
                region = regions[index][values["region"]].as_py()
                name = (image_id, values["noun"], Mask(**region["mask"]).digest)
                if name in wanted[image_id]:
                    found[name] = FoundPair(Pair(**values), region["score"])
    return found


def count_confidences(finished: FinishedRun, calibration: Calibration) -> Confidences:
    """The confidences of all pairs that the run's rule made. Raises IncompleteError when cells are missing."""
    counts_S, millionths_S, without = np.zeros(_STEPS + 1, np.int64), np.zeros(_STEPS + 1, np.int64), 0
    for part in finished.parts:
        found = list(_pairs_of_part(finished, part))
        with_confidence = calibration.add_confidence([one.pair for one in found], [one.score for one in found])
        confidences = [pair.confidence for pair in with_confidence]
        present_N = np.array([round(value * 1e6) for value in confidences if value is not None], np.int64)
        without += len(confidences) - len(present_N)
        step_N = present_N * _STEPS // 1_000_000
        np.add.at(counts_S, step_N, 1)
        np.add.at(millionths_S, step_N, present_N)
    return Confidences(tuple(counts_S.tolist()), tuple(millionths_S.tolist()), without)


def _pairs_of_part(finished: FinishedRun, part: int) -> Iterator[FoundPair]:
    pairs = finished.columns(part, PairsRow, ["pairs"])["pairs"]
    regions = finished.columns(part, RegionsRow, ["regions.list.element.score"])["regions"]
    for of_image, found in zip(pairs.to_pylist(), regions.to_pylist(), strict=True):
        for values in of_image:
            yield FoundPair(Pair(**values), found[values["region"]]["score"])
