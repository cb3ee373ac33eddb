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

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from heapq import nsmallest
from itertools import chain
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
_PAIRS_AT_ONCE = 256  # whose embeddings are in memory in full precision
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
        """The pairs of an image with their evidence; a noun without a level leaves its pair as it is."""
        return self.score_images([(pairs, image)])[0]

    def score_images(self, images: Iterable[tuple[Sequence[Pair], ImageScores]]) -> list[list[Pair]]:
        """`score` of several images, whose pairs are worked on together."""
        asked: list[_Asked] = []
        result: list[list[Pair]] = []
        places: list[tuple[int, int]] = []
        for pairs, image in images:
            levels = [self.nouns[n.text].level if n.text in self.nouns else np.inf for n in image.nouns]
            for number, pair in enumerate(pairs):
                noun = self.nouns.get(pair.noun)
                if noun is not None and pair.similarity is not None:
                    asked.append(_Asked(pair, pair.similarity, noun, image, levels))
                    places.append((len(result), number))
            result.append(list(pairs))
        parts = (asked[start : start + _PAIRS_AT_ONCE] for start in range(0, len(asked), _PAIRS_AT_ONCE))
        scored = chain.from_iterable(map(self._scored, parts))
        for (place, number), pair in zip(places, scored, strict=True):
            result[place][number] = pair
        return result

    def _scored(self, asked: Sequence[_Asked]) -> Iterator[Pair]:
        region_PD = self._unit_regions((one.image, one.pair.region) for one in asked)
        for one, region_D, agreement in zip(asked, region_PD, self._agreements(asked, region_PD), strict=True):
            pair, noun = one.pair, one.noun
            lift = round(one.similarity - noun.level, 6)
            features: dict[str, Any] = {
                "lift": lift,
                "lead": round(lift - one.best_other(), 6),
                "gap": round(lift - self._soft_maximum(region_D, noun.lemma), 6),
                "agreement": agreement,
                "separability": noun.separability,
            }
            score = one.image.regions[pair.region].score
            yield replace(pair, **features, evidence=self.evidence({**features, "score": score}))

    def evidence(self, features: Mapping[str, float]) -> float:
        """The weighted sum of a pair's features; differences of cosines count in the run's mean spread."""
        spread = self.scale.spread or 1.0
        total = sum(weight * features[name] / spread for name, weight in _IN_SPREADS.items())
        total += sum(weight * features[name] for name, weight in _AS_THEY_ARE.items())
        return round(total - _CONSTANT, 6)

    def _soft_maximum(self, region_D: Array, lemma: str) -> float:
        """A smooth maximum of 0 and the lifts of the competitors of other lemmas for a region."""
        softness = _SOFTNESS * self.scale.spread
        if not len(self.text_CD) or not softness:
            return 0.0
        lifts_C = np.round(self.text_CD @ region_D, 6) - self.levels_C
        logits_C = lifts_C[self._of_others(lemma)] / softness
        top = logits_C.max(initial=0.0)
        return float(softness * (top + np.log(np.exp(-top) + np.exp(logits_C - top).sum())))

    def _of_others(self, lemma: str) -> Any:
        """Which competitors have another lemma: all, for most lemmas."""
        own = self._places.get(lemma)
        if own is None:
            return slice(None)
        others_C = np.ones(len(self.levels_C), bool)
        others_C[own] = False
        return others_C

    @cached_property
    def _places(self) -> dict[str, list[int]]:
        """The numbers of the competitors of each lemma."""
        places: dict[str, list[int]] = {}
        for number, lemma in enumerate(self.lemmas_C):
            places.setdefault(lemma, []).append(number)
        return places

    def _agreements(self, asked: Sequence[_Asked], region_PD: Array) -> list[float]:
        """The mean cosine of each region and its noun's regions in other images, weighted by their lifts."""
        centred_PD, prototypes = self._centred(region_PD), [one.noun.prototype_D for one in asked]
        # Leave out what the image gave to the prototype itself.
        measured = [p for p, one in enumerate(asked) if prototypes[p] is not None and one.image.measured]
        best = [asked[p].best_region() for p in measured]
        own_MD = self._centred(
            self._unit_regions((asked[p].image, region) for p, (region, _) in zip(measured, best, strict=True))
        )
        given = dict(zip(measured, zip((lift for _, lift in best), own_MD, strict=True), strict=True))
        result = []
        for p, (one, prototype_D) in enumerate(zip(asked, prototypes, strict=True)):
            mean, said, weight = self.scale.agreement, one.noun.said, one.noun.weight
            if prototype_D is not None and p in given:
                own, own_D = given[p]
                prototype_D = prototype_D - own * own_D
                said, weight = said - 1, weight - own
            if prototype_D is None or said < 1 or weight < self.scale.spread / 10:
                result.append(mean)
                continue
            cosine = float(centred_PD[p] @ prototype_D) / weight
            result.append(round((cosine * said + mean * _PRIOR_AGREEMENT) / (said + _PRIOR_AGREEMENT), 6))
        return result

    def _unit_regions(self, regions: Iterable[tuple[ImageScores, int]]) -> Array:
        """The unit vectors of regions, float64 [N, D]."""
        packed = [image.regions[region].embedding or b"" for image, region in regions]
        return unit(unpack(packed, dim=len(self.scale.centre_D)).astype(np.float64))

    def _centred(self, unit_ND: Array) -> Array:
        return unit(unit(unit_ND) - self.scale.centre_D)


class _Asked(NamedTuple):
    """A pair to score, what is known of its noun, and its image with the levels of the image's nouns; a noun without
    one has infinity, and so competes with nobody."""

    pair: Pair
    similarity: float
    noun: NounScores
    image: ImageScores
    levels_K: Sequence[float]

    def best_other(self) -> float:
        """The best lift that a noun of another lemma has for the pair's region, 0 at least."""
        column_K = self.image.similarity_KR[:, self.pair.region].tolist()
        others = zip(self.image.nouns, column_K, self.levels_K, strict=True)
        lifts = (cosine - level for noun, cosine, level in others if noun.lemma != self.noun.lemma)
        best: float = max(chain((0.0,), lifts))
        return best

    def best_region(self) -> tuple[int, float]:
        """The noun's best region in the image, and its lift for that, 0 at least."""
        k = next(k for k, other in enumerate(self.image.nouns) if other.text == self.pair.noun)
        best = int(self.image.similarity_KR[k].argmax())
        return best, max(0.0, round(float(self.image.similarity_KR[k, best]) - self.noun.level, 6))


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
