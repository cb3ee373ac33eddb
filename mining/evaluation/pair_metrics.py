"""What judged pairs amount to: precision, recall, and precision against coverage as a threshold rises.

Sums of whole numbers only, so that the order of images and parts does not matter; what they take in memory is bounded
by the vocabulary, not by the number of pairs.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Literal

from mining.judging import JudgedImage, Outcome

ScoreName = Literal["similarity", "margin"]
GroupsOf = Callable[[str, str], Sequence[str]]
KNOWN: tuple[Outcome, ...] = ("right", "other", "none")
"""The outcomes that precision is a share of."""

_MILLION = 1_000_000
_STEPS_OF_ONE = 10_000  # thresholds are told to four digits; scores have six


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
        """The 95 % confidence interval of the share behind a sample; from 0 to 1 when there is no sample."""
        return wilson_interval(self.count, of=self.of)


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """What is left of the known pairs at a threshold: `kept` of `pairs`, of which `right` are right."""

    threshold: float
    kept: int
    right: int
    pairs: int

    @property
    def coverage(self) -> float:
        """The share of the known pairs that is kept."""
        return self.kept / self.pairs

    @property
    def precision(self) -> Share:
        """The share of the kept pairs that is right."""
        return Share(self.right, self.kept)


@dataclass(frozen=True, slots=True)
class GroupFigures:
    """Precision and recall over the nouns of a group."""

    name: str
    precision: Share
    recall: Share


@dataclass
class ScoreCounts:
    """How many known pairs have a score, and how many of them are right, by ten-thousandths."""

    pairs: Counter[int] = field(default_factory=Counter)
    right: Counter[int] = field(default_factory=Counter)

    def add(self, score: float, *, right: bool) -> None:
        """Count a pair."""
        step = round(score * _MILLION) // (_MILLION // _STEPS_OF_ONE)
        self.pairs[step] += 1
        self.right[step] += right

    def curve(self) -> list[CurvePoint]:
        """A point for each threshold that makes a difference, the highest first, so that coverage rises to 1."""
        points = []
        kept = right = 0
        for step in sorted(self.pairs, reverse=True):
            kept += self.pairs[step]
            right += self.right[step]
            points.append(CurvePoint(step / _STEPS_OF_ONE, kept, right, self.pairs.total()))
        return points


@dataclass
class Tally:
    """Sums over judged images."""

    outcomes: Counter[Outcome] = field(default_factory=Counter)
    iou_millionths: Counter[Outcome] = field(default_factory=Counter)
    absent: int = 0
    mentions: int = 0
    found: int = 0
    unknown_nouns: Counter[str] = field(default_factory=Counter)
    groups: dict[str, Counter[str]] = field(default_factory=dict)
    scores: dict[ScoreName, ScoreCounts] = field(
        default_factory=lambda: {"similarity": ScoreCounts(), "margin": ScoreCounts()}
    )

    def add(self, image: JudgedImage, *, groups_of: GroupsOf = lambda text, lemma: ()) -> None:
        """Count an image; `groups_of` tells of a noun's text and lemma which groups it belongs to."""
        for judged in image.pairs:
            pair, right = judged.pair, judged.outcome == "right"
            self.outcomes[judged.outcome] += 1
            self.iou_millionths[judged.outcome] += round(judged.iou * _MILLION)
            if judged.outcome == "unknown":
                self.unknown_nouns[pair.noun] += 1
            if judged.outcome not in KNOWN:
                continue
            self.absent += judged.absent
            self._count_in(groups_of(pair.noun, pair.lemma), pairs=1, right=int(right))
            if pair.similarity is not None and pair.margin is not None:
                self.scores["similarity"].add(pair.similarity, right=right)
                self.scores["margin"].add(pair.margin, right=right)
        for mention in image.mentions:
            self.mentions += 1
            self.found += mention.found
            groups = groups_of(mention.noun.text, mention.noun.lemma)
            self._count_in(groups, mentions=1, found=int(mention.found))

    @property
    def known(self) -> int:
        """The pairs that precision is a share of."""
        return sum(self.outcomes[outcome] for outcome in KNOWN)

    @property
    def recall(self) -> Share:
        """The share of the nameable mentions that have a right pair."""
        return Share(self.found, self.mentions)

    def share(self, outcome: Outcome) -> Share:
        """The share of the known pairs that has an outcome; that of `right` is the precision."""
        return Share(self.outcomes[outcome], self.known)

    def mean_iou(self, *outcomes: Outcome) -> float | None:
        """The mean, over pairs of these outcomes, of the best IoU with what the noun names; None over no pair."""
        pairs = sum(self.outcomes[outcome] for outcome in outcomes)
        millionths = sum(self.iou_millionths[outcome] for outcome in outcomes)
        return millionths / _MILLION / pairs if pairs else None

    def group(self, name: str) -> GroupFigures:
        """The figures of a group, all of nothing when no noun belonged to it."""
        counts = self.groups.get(name, Counter())
        return GroupFigures(name, Share(counts["right"], counts["pairs"]), Share(counts["found"], counts["mentions"]))

    def _count_in(self, groups: Sequence[str], **counts: int) -> None:
        for name in groups:
            self.groups.setdefault(name, Counter()).update(counts)


def wilson_interval(count: int, *, of: int, confidence: float = 0.95) -> tuple[float, float]:
    """The score interval of a share of `count` in `of` independent trials (E. B. Wilson, "Probable inference, the law
    of succession, and statistical inference", Journal of the American Statistical Association 22, 1927, p. 209–212).

    Unlike the share ± its standard error it stays within 0–1, and holds for small samples and shares near 0 and 1.
    """
    if not of:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share, grown = count / of, 1 + z * z / of
    centre = (share + z * z / (2 * of)) / grown
    reach = z / grown * math.sqrt(share * (1 - share) / of + z * z / (4 * of * of))
    return max(0.0, centre - reach), min(1.0, centre + reach)


def at_least(curve: Sequence[CurvePoint], *, kept: int) -> CurvePoint | None:
    """The point with the highest threshold that keeps so many pairs; None when there are not so many."""
    return next((point for point in curve if point.kept >= kept), None)


def thin(curve: Sequence[CurvePoint], *, most: int = 200) -> list[CurvePoint]:
    """At most so many points of a curve, evenly over its coverage; the last one stays."""
    chosen: dict[float, CurvePoint] = {}
    wanted = 1
    for point in curve:
        if point.kept * most >= wanted * point.pairs:
            chosen[point.threshold] = point
            wanted = point.kept * most // point.pairs + 1
    return list(chosen.values())
