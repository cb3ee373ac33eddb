"""Metrics of mined pairs: precision, recall, and precision against coverage as a threshold rises.

Precision is measured twice: of all pairs, where a noun that names no category of the truth counts as wrong, and of the
labelled ones, whose nouns name one. In both, pairs that a crowd makes undecidable are left out.

Everything is a sum of integers, so the order of images and parts does not matter. Memory is bounded by the vocabulary,
not by the number of pairs.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Literal, get_args

from maskmine.mining.evaluation.pair_matching import ImageMatches, MatchOutcome
from maskmine.schemas.rows import Pair

ScoreName = Literal["similarity", "margin", "lift", "evidence", "confidence"]
"""The scores of a pair that have a threshold in the settings: fields of `Pair`, which may be None."""
SCORES: tuple[ScoreName, ...] = get_args(ScoreName)
GroupsOf = Callable[[str, str], Sequence[str]]
LABELLED: tuple[MatchOutcome, ...] = ("correct", "wrong_object", "background")
"""The outcomes of labelled pairs: the noun names a category, and the mask can be judged."""
DECIDED: tuple[MatchOutcome, ...] = (*LABELLED, "unlabelled")
"""The outcomes of all pairs that are right or wrong."""

_MILLION = 1_000_000  # IoUs are summed as integers of this precision
_BINS_OF_ONE = 10_000  # thresholds have four digits; scores have six


@dataclass(frozen=True, slots=True)
class Share:
    """`count` of `of`."""

    count: int
    of: int

    @property
    def value(self) -> float | None:
        """The share, 0–1; None of nothing."""
        return self.count / self.of if self.of else None

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % confidence interval; from 0 to 1 when there is no sample."""
        return wilson_interval(self.count, of=self.of)


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """Pairs at a threshold: `kept` of `pairs` reach it, and `correct` of these are correct."""

    threshold: float
    kept: int
    correct: int
    pairs: int

    @property
    def coverage(self) -> float:
        """The share of the pairs that is kept."""
        return self.kept / self.pairs

    @property
    def precision(self) -> Share:
        """The share of the kept pairs that is correct."""
        return Share(self.correct, self.kept)


@dataclass(frozen=True, slots=True)
class Curve:
    """Precision against coverage; `half` is the highest threshold that keeps half of the pairs.

    Where fewer than half have the score, `half` keeps those that have it.
    """

    score: ScoreName
    points: tuple[CurvePoint, ...]
    half: CurvePoint

    @property
    def setting(self) -> str:
        """The setting that takes the thresholds."""
        return f"pairs.min_{self.score}"


@dataclass(frozen=True, slots=True)
class GroupMetrics:
    """Precision and recall over the nouns of a group."""

    name: str
    precision: Share
    recall: Share


@dataclass
class ScoreCounts:
    """How many pairs have a score, and how many of them are correct, by ten-thousandths."""

    pairs: Counter[int] = field(default_factory=Counter)
    correct: Counter[int] = field(default_factory=Counter)
    without_score: int = 0

    def add(self, score: float | None, *, correct: bool) -> None:
        """Count a pair; one without the score reaches no threshold."""
        if score is None:
            self.without_score += 1
            return
        bin_ = round(score * _MILLION) // (_MILLION // _BINS_OF_ONE)
        self.pairs[bin_] += 1
        self.correct[bin_] += correct

    def curve(self) -> list[CurvePoint]:
        """A point for each threshold that makes a difference, the highest first, so that coverage rises.

        It rises to 1 where every pair has the score; where none has it there is no point.
        """
        points = []
        kept = correct = 0
        pairs = self.pairs.total() + self.without_score
        for bin_ in sorted(self.pairs, reverse=True):
            kept += self.pairs[bin_]
            correct += self.correct[bin_]
            points.append(CurvePoint(bin_ / _BINS_OF_ONE, kept, correct, pairs))
        return points


def _no_counts() -> dict[ScoreName, ScoreCounts]:
    return {score: ScoreCounts() for score in SCORES}


@dataclass
class PairMetrics:
    """Counts over images; `groups` has counts of `pairs`, `correct`, `mentions` and `recalled` by group of nouns.

    `scores` and `groups` are of labelled pairs, `scores_of_all` of all pairs.
    """

    outcomes: Counter[MatchOutcome] = field(default_factory=Counter)
    iou_millionths: Counter[MatchOutcome] = field(default_factory=Counter)
    without_object: int = 0
    mentions: int = 0
    recalled: int = 0
    unlabelled_nouns: Counter[str] = field(default_factory=Counter)
    groups: dict[str, Counter[str]] = field(default_factory=dict)
    scores: dict[ScoreName, ScoreCounts] = field(default_factory=_no_counts)
    scores_of_all: dict[ScoreName, ScoreCounts] = field(default_factory=_no_counts)

    def add(self, image: ImageMatches, *, groups_of: GroupsOf = lambda text, lemma: ()) -> None:
        """Count an image; `groups_of` returns the groups of a noun from its text and lemma."""
        for match in image.pairs:
            pair, correct = match.pair, match.outcome == "correct"
            self.outcomes[match.outcome] += 1
            self.iou_millionths[match.outcome] += round(match.iou * _MILLION)
            if match.outcome == "unlabelled":
                self.unlabelled_nouns[pair.noun] += 1
            if match.outcome in DECIDED:
                _count_scores(self.scores_of_all, pair, correct=correct)
            if match.outcome not in LABELLED:
                continue
            self.without_object += match.without_object
            self._count_in(groups_of(pair.noun, pair.lemma), pairs=1, correct=int(correct))
            _count_scores(self.scores, pair, correct=correct)
        for mention in image.mentions:
            self.mentions += 1
            self.recalled += mention.recalled
            groups = groups_of(mention.noun.text, mention.noun.lemma)
            self._count_in(groups, mentions=1, recalled=int(mention.recalled))

    @property
    def labelled(self) -> int:
        """The number of labelled pairs."""
        return sum(self.outcomes[outcome] for outcome in LABELLED)

    @property
    def precision_of_all(self) -> Share:
        """The share of all pairs that is correct: a lower bound where the truth does not annotate every object."""
        return Share(self.outcomes["correct"], sum(self.outcomes[outcome] for outcome in DECIDED))

    @property
    def precision(self) -> Share:
        """The share of the labelled pairs that is correct."""
        return self.share("correct")

    @property
    def recall(self) -> Share:
        """The share of the mentions of annotated objects that have a correct pair."""
        return Share(self.recalled, self.mentions)

    def share(self, outcome: MatchOutcome) -> Share:
        """The share of the labelled pairs that has an outcome."""
        return Share(self.outcomes[outcome], self.labelled)

    def mean_iou(self, *outcomes: MatchOutcome) -> float | None:
        """The mean, over pairs of these outcomes, of the best IoU with what the noun names; None over no pair."""
        pairs = sum(self.outcomes[outcome] for outcome in outcomes)
        millionths = sum(self.iou_millionths[outcome] for outcome in outcomes)
        return millionths / _MILLION / pairs if pairs else None

    def group(self, name: str) -> GroupMetrics:
        """The metrics of a group; shares of nothing when no noun belonged to it."""
        counts = self.groups.get(name, Counter())
        precision, recall = Share(counts["correct"], counts["pairs"]), Share(counts["recalled"], counts["mentions"])
        return GroupMetrics(name, precision, recall)

    def _count_in(self, groups: Sequence[str], **counts: int) -> None:
        for name in groups:
            self.groups.setdefault(name, Counter()).update(counts)


def _count_scores(scores: Mapping[ScoreName, ScoreCounts], pair: Pair, *, correct: bool) -> None:
    for score, counts in scores.items():
        counts.add(getattr(pair, score), correct=correct)


def wilson_interval(count: int, *, of: int, confidence: float = 0.95) -> tuple[float, float]:
    """The score interval of a share of `count` in `of` independent trials (E. B. Wilson, "Probable inference, the law
    of succession, and statistical inference", Journal of the American Statistical Association 22, 1927, p. 209–212).

    Unlike the share ± its standard error it stays within 0–1, and holds for small samples and shares near 0 and 1.
    """
    if not of:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share, scale = count / of, 1 + z * z / of
    centre = (share + z * z / (2 * of)) / scale
    half_width = z / scale * math.sqrt(share * (1 - share) / of + z * z / (4 * of * of))
    return max(0.0, centre - half_width), min(1.0, centre + half_width)


def at_least(curve: Sequence[CurvePoint], *, kept: int) -> CurvePoint | None:
    """The highest threshold that keeps at least `kept` pairs; None when there are fewer."""
    return next((point for point in curve if point.kept >= kept), None)


def thin(curve: Sequence[CurvePoint], *, max_points: int = 200) -> list[CurvePoint]:
    """At most `max_points` points of a curve, evenly over its coverage; the last one stays."""
    chosen: dict[float, CurvePoint] = {}
    wanted = 1
    for point in curve:
        if point.kept * max_points >= wanted * point.pairs:
            chosen[point.threshold] = point
            wanted = point.kept * max_points // point.pairs + 1
    chosen.update((point.threshold, point) for point in curve[-1:])
    return list(chosen.values())
