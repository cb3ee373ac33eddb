"""Levels: what a noun's similarities mean. Made once, from the images of the first parts; no model, no image.

CLIP gives every noun a similarity with every region, "photo" and "day" too. What counts is how much more a noun gets in
an image that says it than where nobody speaks of it:

- the noun's **level** is the mean, over images that do not say it, of its best similarity with any of their regions;
- its **separability** is how well that best similarity tells images that say it from images that do not: an AUC of 0.5
  for what cannot be seen, near 1 for what can. Rare nouns are drawn towards the separability of their head, the last
  word of the lemma ("whale right" towards "right"), or the mean of all nouns;
- its **prototype** is what its best regions in the images that say it have in common.

Parts are random samples of the images, so a few thousand images of the first parts stand for all. Memory holds their
regions and the nouns that they say; the vocabulary passes through.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from maskmine.mining.models.embeddings import unpack
from maskmine.mining.scores.scale import LevelScale
from maskmine.mining.scores.statistics import (
    Array,
    BestRegions,
    NounCounts,
    SampleImages,
    best_said,
    best_unsaid,
    count_noun,
    count_unsaid,
    unit,
)
from maskmine.schemas.rows import EmbeddingsRow, LevelRow, NounsRow, RegionsRow, VocabularyRow
from maskmine.schemas.settings import Settings

Sampled = tuple[NounsRow, RegionsRow | EmbeddingsRow]
"""The nouns of an image, and its regions or their embeddings alone."""
ReadVocabulary = Callable[[], Iterable[list[VocabularyRow]]]
"""The vocabulary in blocks of a few thousand rows; called twice."""

_NOUNS_AT_ONCE = 256  # of similarities in memory


class Levels(Settings):
    """How levels and separability of nouns are measured."""

    images: Annotated[int, Field(ge=1)] = 5000
    """Images that they are measured on, rounded up to whole parts: those of the first parts. More help rare nouns;
    the run's pairs wait for these parts."""

    def first_parts(self, images_per_part: float) -> int:
        """How many parts hold that many images, where parts have so many on average."""
        return math.ceil(self.images / images_per_part)


@dataclass(frozen=True, slots=True)
class _SaidNoun:
    """A noun that images of the sample say; `prototype_D` and `weight` as in `LevelRow`."""

    counts: NounCounts
    head: str
    prototype_D: Array
    weight: float


def measure_levels(
    sample: Iterable[Sampled], read_vocabulary: ReadVocabulary
) -> tuple[LevelScale, Iterator[list[LevelRow]]]:
    """Measure the levels of a vocabulary on the images of a sample.

    Returns what all nouns have in common, and the rows in the order of the vocabulary, in blocks. Nouns without an
    embedding, and all nouns where no image has a region, get no level.
    """
    images = SampleImages.of(sample)
    centre_D = images.centre()
    said, mean_level, spread, agreement = _measure_said(images, read_vocabulary, centre_D)
    prior = _mean((noun.counts.auc, noun.counts.said) for noun in said.values())
    bases = {name: noun.counts.separability(prior) for name, noun in said.items() if noun.counts.auc is not None}
    scale = LevelScale(images.images, spread, agreement, centre_D)
    return scale, _level_rows(images, read_vocabulary, said, bases=bases, prior=prior, mean=mean_level)


@dataclass(frozen=True, slots=True)
class CommonLevels:
    """What the levels of a run have in common, for nouns that come later: the `scale`, the mean level and separability
    of the nouns that its sample says, and the separability of each of these."""

    scale: LevelScale
    mean_level: float
    prior: float
    bases: Mapping[str, float]

    @classmethod
    def of(cls, scale: LevelScale, rows: Iterable[LevelRow]) -> CommonLevels:
        """From the rows of a run's levels."""
        said = [(row.noun, row.level, row.separability, row.said) for row in rows if row.said]
        return cls(
            scale,
            mean_level=_mean((level, count) for _, level, _, count in said),
            prior=_mean((separability, count) for *_, separability, count in said),
            bases={noun: separability for noun, _, separability, _ in said if separability is not None},
        )


def measure_new_levels(
    sample: Iterable[Sampled], common: CommonLevels, read_vocabulary: ReadVocabulary
) -> Iterator[list[LevelRow]]:
    """Measure nouns that a run did not know on the images of its own sample, so that they are comparable with those
    that it knows, whose levels stay. Rows in the order of the vocabulary, in blocks."""
    images = SampleImages.of(sample)
    counted = _count_said(images, _spoken(images, read_vocabulary))
    said, _ = _with_prototypes(images, counted, common.mean_level, common.scale.centre_D)
    return _level_rows(images, read_vocabulary, said, bases=common.bases, prior=common.prior, mean=common.mean_level)


_Counted = dict[str, tuple[VocabularyRow, BestRegions, NounCounts]]
"""Nouns with their best regions and sums."""


def _measure_said(
    images: SampleImages, read_vocabulary: ReadVocabulary, centre_D: Array
) -> tuple[dict[str, _SaidNoun], float, float, float]:
    """The nouns that images of the sample say, and the means over them of level, spread and agreement."""
    counted = _count_said(images, _spoken(images, read_vocabulary))
    mean_level = _mean((c.level_sum / 1e6 / c.unsaid if c.unsaid else None, c.said) for _, _, c in counted.values())
    spread = _mean((c.spread(), c.said) for _, _, c in counted.values())
    said, agreements = _with_prototypes(images, counted, mean_level, centre_D)
    return said, mean_level, spread, round(_mean(agreements), 6)


def _spoken(images: SampleImages, read_vocabulary: ReadVocabulary) -> list[VocabularyRow]:
    """The nouns with an embedding that images of the sample say."""
    rows = (row for block in read_vocabulary() for row in block)
    return [row for row in rows if row.embedding is not None and row.lemma in images.said]


def _count_said(images: SampleImages, spoken: list[VocabularyRow]) -> _Counted:
    """The best regions and sums of nouns that images of the sample say."""
    counted: _Counted = {}
    for start in range(0, len(spoken), _NOUNS_AT_ONCE):
        block = spoken[start : start + _NOUNS_AT_ONCE]
        text_BD = _text(block)
        for row, text_D, best_N in zip(block, text_BD, best_unsaid(images, text_BD), strict=True):
            numbers = images.said[str(row.lemma)]
            best = best_said(images, text_D, numbers)
            counted[row.noun] = (row, best, count_noun(best_N, numbers, best.similarities))
    return counted


def _with_prototypes(
    images: SampleImages, counted: _Counted, mean_level: float, centre_D: Array
) -> tuple[dict[str, _SaidNoun], list[tuple[float, int]]]:
    """The nouns with their prototypes, and how much their regions agree with those of the noun's other images, by the
    number of images."""
    said, agreements = {}, []
    for name, (row, best, counts) in counted.items():
        lifts = np.array(best.similarities) - (counts.level(mean_level) or 0.0)
        weights_S = np.maximum(np.round(lifts, 6), 0.0) if counts.unsaid else np.zeros(len(lifts))
        centred_SD = unit(unit(images.regions_RD[list(best.regions)].astype(np.float64)) - centre_D)
        prototype_D, weight = (weights_S[:, None] * centred_SD).sum(axis=0), float(weights_S.sum())
        said[name] = _SaidNoun(counts, head_of(str(row.lemma)), prototype_D, weight)
        own = float((weights_S * weights_S).sum())
        if len(weights_S) > 1 and weight * weight > own:
            mean = (float(prototype_D @ prototype_D) - own) / (weight * weight - own)
            agreements.append((mean, counts.said))
    return said, agreements


def _count_unsaid(images: SampleImages, rows: list[VocabularyRow]) -> dict[str, NounCounts]:
    """Counts of nouns that no image of the sample says."""
    counted: dict[str, NounCounts] = {}
    for start in range(0, len(rows), _NOUNS_AT_ONCE):
        block = rows[start : start + _NOUNS_AT_ONCE]
        counts = count_unsaid(best_unsaid(images, _text(block)))
        counted |= {row.noun: one for row, one in zip(block, counts, strict=True)}
    return counted


def _level_rows(
    images: SampleImages,
    read_vocabulary: ReadVocabulary,
    said: Mapping[str, _SaidNoun],
    *,
    bases: Mapping[str, float],
    prior: float,
    mean: float,
) -> Iterator[list[LevelRow]]:
    """The rows of a vocabulary in its order; nouns that are not `said` are measured as they pass."""
    for block in read_vocabulary():
        others = {row.noun: row for row in block if row.noun not in said and row.embedding is not None}
        counted = _count_unsaid(images, list(others.values()))
        yield [
            _level_row(row, said.get(row.noun), counted.get(row.noun), bases=bases, prior=prior, mean=mean)
            for row in block
        ]


def _level_row(
    row: VocabularyRow,
    said: _SaidNoun | None,
    unsaid: NounCounts | None,
    *,
    bases: Mapping[str, float],
    prior: float,
    mean: float,
) -> LevelRow:
    counts = said.counts if said else unsaid
    if counts is None:
        return LevelRow(
            noun=row.noun, level=None, spread=None, separability=None, said=0, unsaid=0, prototype=None, weight=0.0
        )
    head = said.head if said else head_of(row.lemma or row.noun)
    return LevelRow(
        noun=row.noun,
        level=counts.level(mean),
        spread=counts.spread(),
        separability=counts.separability(prior if head == row.noun else bases.get(head, prior))
        if counts.unsaid
        else None,
        said=counts.said,
        unsaid=counts.unsaid,
        prototype=said.prototype_D.astype("<f4").tobytes() if said and said.weight else None,
        weight=round(said.weight, 6) if said else 0.0,
    )


def head_of(lemma: str) -> str:
    """The head of a compound: its last word."""
    return lemma.rpartition(" ")[2]


def _text(rows: list[VocabularyRow]) -> Array:
    return unit(unpack([row.embedding for row in rows if row.embedding is not None]).astype(np.float64))


def _mean(weighted: Iterable[tuple[float | None, int]]) -> float:
    """The mean of values by weight; 0 of nothing."""
    total, weight = 0.0, 0
    for value, count in weighted:
        if value is not None:
            total, weight = total + value * count, weight + count
    return round(total / weight, 6) if weight else 0.0
