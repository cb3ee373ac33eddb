"""The evidence for a pair: what its similarity is worth, from cells that exist already, without a model.

Shapes: N pairs, F features, K nouns of an image, R regions, C competing nouns, D the width of the CLIP embedding.

| feature | |
|---|---|
| `lift` | similarity minus the noun's level |
| `lead` | lift minus the best lift that another noun of the image has for the region, or 0 where that is negative |
| `gap` | lift minus a soft maximum of the lifts of the run's most frequent visible nouns for the region, and 0 |
| `agreement` | cosine of the region and the noun's prototype, which other images make; drawn towards the mean |
| `separability` | the noun's, see `mining/levels.py` |
| `score` | the proposal's |

Differences of cosines are worth different things with each CLIP. So `evidence` measures them in the run's mean spread.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from heapq import nsmallest
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from maskmine.mining.models.embeddings import unpack
from maskmine.mining.scores.scale import LevelScale
from maskmine.mining.scores.statistics import Array, unit
from maskmine.schemas.rows import LevelRow, Noun, Pair, Region, VocabularyRow

FEATURES = ("lift", "lead", "gap", "agreement", "separability", "score")
"""The columns of `feature_matrix`."""

COMPETITORS = 1000
"""Nouns that `gap` compares with."""

_VISIBLE = 0.75  # separability of a competitor at least
_COMPETITOR_IMAGES = 3  # of the sample that say it at least
_SOFTNESS = 0.4  # of the soft maximum, in spreads
_PRIOR_AGREEMENT = 1.0  # images' worth of the mean agreement that a noun's is drawn towards
# Weights of `evidence`, and what is subtracted: the coefficients of a logistic regression on four demo worlds of 1,000
# scenes, rounded. There it is the log odds that a pair is right; elsewhere its order counts alone. `lead` and `gap`
# contain the lift, which so has a weight of 0.65 in all.
_IN_SPREADS = {"lift": -1.5, "lead": 0.75, "gap": 1.4}
_AS_THEY_ARE = {"agreement": 6.0, "separability": 15.0, "score": 2.5}
_CONSTANT = 14.1


class NounScores(NamedTuple):
    """What is known of a noun: see `LevelRow`; the prototype as float64 [D]."""

    lemma: str
    level: float
    separability: float
    said: int
    prototype_D: Array | None
    weight: float


@dataclass(frozen=True, slots=True)
class ImageScores:
    """An image to score: the cosines of its nouns and regions, [K, R], and whether the levels were measured on it."""

    nouns: Sequence[Noun]
    regions: Sequence[Region]
    similarity_KR: Array
    measured: bool


@dataclass(frozen=True)
class Scorer:
    """Adds the evidence to pairs. `lemmas_C` and `levels_C` belong to the competing nouns of `text_CD`."""

    scale: LevelScale
    nouns: Mapping[str, NounScores]
    lemmas_C: np.ndarray[Any, Any]
    levels_C: Array
    text_CD: Array

    @classmethod
    def of(cls, scale: LevelScale, levels: Sequence[LevelRow], vocabulary: Sequence[VocabularyRow]) -> Scorer:
        """From the tables of a run, whose rows are those of the same nouns."""
        return cls.open(scale, zip(levels, vocabulary, strict=True)).with_nouns(levels, vocabulary)

    @classmethod
    def open(cls, scale: LevelScale, rows: Iterable[tuple[LevelRow, VocabularyRow]]) -> Scorer:
        """From the same rows one after the other, of which it keeps the competitors; it knows no other noun yet."""
        candidates = (candidate for level, row in rows if (candidate := _candidate(level, row)) is not None)
        chosen = nsmallest(COMPETITORS, candidates, key=lambda candidate: candidate[:2])
        packed = [embedding for _, _, embedding, _, _ in chosen]
        text_CD = unit(unpack(packed).astype(np.float64)) if packed else np.empty((0, len(scale.centre_D)))
        lemmas, levels = [lemma for *_, lemma, _ in chosen], [level for *_, level in chosen]
        return cls(scale, {}, np.array(lemmas, object), np.array(levels), text_CD)

    def with_nouns(self, levels: Sequence[LevelRow], vocabulary: Sequence[VocabularyRow]) -> Scorer:
        """The same for pairs of these nouns."""
        known = zip(levels, vocabulary, strict=True)
        nouns = {row.noun: scores for level, row in known if (scores := _noun_scores(level, row)) is not None}
        return replace(self, nouns=nouns)

    def score(self, pairs: Sequence[Pair], image: ImageScores) -> list[Pair]:
        """The pairs with their evidence; a noun without a level leaves its pair as it is."""
        chosen = sorted({pair.region for pair in pairs if pair.noun in self.nouns})
        region_RD = (
            unit(unpack([image.regions[r].embedding or b"" for r in chosen]).astype(np.float64)) if chosen else None
        )
        lifts_KR = image.similarity_KR - self._levels(image.nouns)[:, None]
        scored = []
        for pair in pairs:
            noun = self.nouns.get(pair.noun)
            if noun is None or pair.similarity is None or region_RD is None:
                scored.append(pair)
                continue
            region_D = region_RD[chosen.index(pair.region)]
            lift = round(pair.similarity - noun.level, 6)
            new = replace(
                pair,
                lift=lift,
                lead=round(lift - self._best_other(image, lifts_KR, noun.lemma, pair.region), 6),
                gap=round(lift - self._soft_maximum(region_D, noun.lemma), 6),
                agreement=self._agreement(noun, pair, image, region_D, lifts_KR),
                separability=noun.separability,
            )
            features_F = feature_matrix([new], [image.regions[pair.region].score])[0]
            scored.append(replace(new, evidence=self.evidence(dict(zip(FEATURES, features_F.tolist(), strict=True)))))
        return scored

    def evidence(self, features: Mapping[str, float]) -> float:
        """The weighted sum of a pair's features; differences of cosines count in the run's mean spread."""
        spread = self.scale.spread or 1.0
        total = sum(weight * features[name] / spread for name, weight in _IN_SPREADS.items())
        total += sum(weight * features[name] for name, weight in _AS_THEY_ARE.items())
        return round(total - _CONSTANT, 6)

    def _levels(self, nouns: Sequence[Noun]) -> Array:
        """The levels of an image's nouns; a noun without one competes with nobody."""
        return np.array([self.nouns[n.text].level if n.text in self.nouns else np.inf for n in nouns])

    def _best_other(self, image: ImageScores, lifts_KR: Array, lemma: str, region: int) -> float:
        others = [k for k, noun in enumerate(image.nouns) if noun.lemma != lemma]
        return float(lifts_KR[others, region].max(initial=0.0))

    def _soft_maximum(self, region_D: Array, lemma: str) -> float:
        """A smooth maximum of 0 and the lifts of the competitors of other lemmas for a region."""
        softness = _SOFTNESS * self.scale.spread
        if not len(self.text_CD) or not softness:
            return 0.0
        lifts_C = np.round(self.text_CD @ region_D, 6) - self.levels_C
        logits_C = lifts_C[self.lemmas_C != lemma] / softness
        top = logits_C.max(initial=0.0)
        return float(softness * (top + np.log(np.exp(-top) + np.exp(logits_C - top).sum())))

    def _agreement(self, noun: NounScores, pair: Pair, image: ImageScores, region_D: Array, lifts_KR: Array) -> float:
        """The mean cosine of the region and the noun's regions in other images, weighted by their lifts."""
        mean, said, weight, prototype_D = self.scale.agreement, noun.said, noun.weight, noun.prototype_D
        if prototype_D is not None and image.measured:
            # Leave out what this image gave to the prototype.
            k = next(k for k, other in enumerate(image.nouns) if other.text == pair.noun)
            best = int(image.similarity_KR[k].argmax())
            own = max(0.0, round(float(lifts_KR[k, best]), 6))
            prototype_D = prototype_D - own * self._centred(unpack([image.regions[best].embedding or b""])[0])
            said, weight = said - 1, weight - own
        if prototype_D is None or said < 1 or weight < self.scale.spread / 10:
            return mean
        cosine = float(self._centred(region_D) @ prototype_D) / weight
        return round((cosine * said + mean * _PRIOR_AGREEMENT) / (said + _PRIOR_AGREEMENT), 6)

    def _centred(self, region_D: Array) -> Array:
        return unit(unit(region_D.astype(np.float64)) - self.scale.centre_D)


def _noun_scores(level: LevelRow, row: VocabularyRow) -> NounScores | None:
    """What is known of a noun; None without a level."""
    if level.level is None or level.separability is None or row.embedding is None:
        return None
    prototype_D = None if level.prototype is None else np.frombuffer(level.prototype, "<f4").astype(np.float64)
    return NounScores(row.lemma or row.noun, level.level, level.separability, level.said, prototype_D, level.weight)


def may_compete(levels: pa.Table) -> pa.ChunkedArray:
    """Which rows of a table of levels may be of competitors, as booleans or null: all that `_candidate` takes are."""
    is_said = pc.greater_equal(levels["said"], _COMPETITOR_IMAGES)
    return pc.and_(is_said, pc.greater_equal(levels["separability"], _VISIBLE))


def _candidate(level: LevelRow, row: VocabularyRow) -> tuple[int, str, bytes, str, float] | None:
    """What is needed of a competitor, the best ones first by the first two values; None for a noun that is none."""
    if level.level is None or level.separability is None or row.embedding is None:
        return None
    if level.said < _COMPETITOR_IMAGES or level.separability < _VISIBLE:
        return None
    return -level.said, row.noun, row.embedding, row.lemma or row.noun, level.level


def feature_matrix(pairs: Sequence[Pair], scores: Sequence[float]) -> Array:
    """The features of pairs and of their proposals' `scores`, float64 [N, F]; NaN where a pair has none."""
    own = FEATURES[:-1]
    rows = [
        [*(np.nan if (value := getattr(pair, name)) is None else value for name in own), score]
        for pair, score in zip(pairs, scores, strict=True)
    ]
    return np.array(rows, np.float64).reshape(len(rows), len(FEATURES))
