"""What a noun's similarities mean: its level, spread, separability and prototype, measured on a sample of images.

Shapes: N images of the sample, R their regions, B nouns of a block, D the width of the CLIP embedding. Sums are of
millionths, as integers, so that they do not depend on the order of their terms.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from maskmine.mining.models.embeddings import unpack
from maskmine.schemas.rows import EmbeddingsRow, NounsRow, RegionsRow

Array = np.ndarray[Any, np.dtype[np.float64]]
Numbers = np.ndarray[Any, np.dtype[np.int64]]

UNSAID_IMAGES = 1000
"""Images that levels rest on: the standard error of a level is then 3 % of the noun's spread."""

_MILLION = 1_000_000
_PRIOR_UNSAID = 10  # images' worth of the mean level that each level is drawn towards
_PRIOR_SAID = 5  # images' worth of its head's separability, or the mean, that a noun's is drawn towards
_REGIONS_AT_ONCE = 4096  # of similarities in memory: 8 MB for a block of 256 nouns


@dataclass(frozen=True, slots=True)
class SampleImages:
    """Images with regions: `starts_N` is the first region of each in `regions_RD`, which has them as float16.

    `said` has, for each lemma, the numbers of the images that say it, in order.
    """

    regions_RD: np.ndarray[Any, np.dtype[np.float16]]
    starts_N: Numbers
    said: dict[str, Numbers]

    @classmethod
    def of(cls, rows: Iterable[tuple[NounsRow, RegionsRow | EmbeddingsRow]]) -> SampleImages:
        """The images that have regions with embeddings; what they say is known by lemma."""
        blocks: list[np.ndarray[Any, np.dtype[np.float16]]] = []
        starts: list[int] = []
        said: dict[str, list[int]] = {}
        regions = 0
        for nouns, found in rows:
            packed = _packed(found)
            if not packed:
                continue
            for lemma in {noun.lemma for noun in nouns.nouns}:
                said.setdefault(lemma, []).append(len(starts))
            starts.append(regions)
            blocks.append(unpack(packed).astype(np.float16))
            regions += len(packed)
        regions_RD = np.concatenate(blocks) if blocks else np.empty((0, 0), np.float16)
        return cls(regions_RD, np.array(starts, np.int64), {lemma: np.array(n, np.int64) for lemma, n in said.items()})

    @property
    def images(self) -> int:
        """The number of images."""
        return len(self.starts_N)

    def span(self, image: int) -> slice:
        """Where an image's regions stand."""
        end = self.starts_N[image + 1] if image + 1 < self.images else len(self.regions_RD)
        return slice(int(self.starts_N[image]), int(end))

    def embeddings(self, rows: slice | Numbers) -> Array:
        """The unit vectors of some regions."""
        return unit(self.regions_RD[rows].astype(np.float64))

    def centre(self) -> Array:
        """The mean of the regions' unit vectors, [D]: what all crops have in common."""
        total_D = np.zeros(self.regions_RD.shape[1])
        for start in range(0, len(self.regions_RD), _REGIONS_AT_ONCE):
            total_D += self.embeddings(slice(start, start + _REGIONS_AT_ONCE)).sum(axis=0)
        return (total_D / max(1, len(self.regions_RD))).astype(np.float32).astype(np.float64)


@dataclass(frozen=True, slots=True)
class NounCounts:
    """The sums over a noun's images, in millionths; `auc` is a separability without prior, None without images."""

    level_sum: int
    square_sum: int
    unsaid: int
    auc: float | None
    said: int

    def level(self, mean: float) -> float | None:
        """The shrunk mean of the unsaid similarities; None where there is none."""
        if not self.unsaid:
            return None
        total = self.level_sum / _MILLION + _PRIOR_UNSAID * mean
        return round(total / (self.unsaid + _PRIOR_UNSAID), 6)

    def spread(self) -> float | None:
        """The standard deviation of the unsaid similarities; None where there is none."""
        if not self.unsaid:
            return None
        mean = self.level_sum / self.unsaid
        return round(math.sqrt(max(0.0, self.square_sum / self.unsaid - mean * mean)) / _MILLION, 6)

    def separability(self, prior: float) -> float:
        """The AUC, drawn towards a prior as if that had been seen in `_PRIOR_SAID` images."""
        seen = self.said if self.auc is not None else 0
        return round(((self.auc or 0.0) * seen + _PRIOR_SAID * prior) / (seen + _PRIOR_SAID), 6)


@dataclass(frozen=True, slots=True)
class BestRegions:
    """A noun's best region in each image that says it: its number and similarity."""

    regions: Sequence[int]
    similarities: Sequence[float]


def unit(vectors_ND: Array) -> Array:
    """The vectors with length 1; a vector of zeros stays one."""
    norms = np.linalg.norm(vectors_ND, axis=-1, keepdims=True)
    result: Array = vectors_ND / np.where(norms > 0, norms, 1.0)
    return result


def best_unsaid(sample: SampleImages, text_BD: Array) -> Array:
    """The best similarity of each noun with any region of each of the first images, [B, N], N at most UNSAID_IMAGES."""
    images = min(sample.images, UNSAID_IMAGES)
    best_BN = np.empty((len(text_BD), images))
    first = 0
    while first < images:
        # As many whole images as fit, at least one.
        last = first + 1
        while last < images and sample.span(last).stop - sample.span(first).start <= _REGIONS_AT_ONCE:
            last += 1
        span = slice(sample.span(first).start, sample.span(last - 1).stop)
        similarity_BR = text_BD @ sample.embeddings(span).T
        best_BN[:, first:last] = np.maximum.reduceat(similarity_BR, sample.starts_N[first:last] - span.start, axis=1)
        first = last
    return np.round(best_BN, 6, out=best_BN)  # the best of the rounded ones is the best one, rounded


def best_said(sample: SampleImages, text_D: Array, images: Numbers) -> BestRegions:
    """A noun's best region in each of some images; the first of several."""
    regions: list[int] = []
    similarities: list[float] = []
    ends_N = np.append(sample.starts_N[1:], len(sample.regions_RD))
    for some in _together(images, ends_N[images] - sample.starts_N[images]):
        sizes = ends_N[some] - sample.starts_N[some]
        firsts = np.cumsum(sizes) - sizes  # of each image's regions among those of all
        rows = np.arange(int(sizes.sum())) + np.repeat(sample.starts_N[some] - firsts, sizes)
        similarity = np.round(sample.embeddings(rows) @ text_D, 6)
        best = np.maximum.reduceat(similarity, firsts)
        as_good = np.flatnonzero(similarity == np.repeat(best, sizes))
        regions += rows[as_good[np.searchsorted(as_good, firsts)]].tolist()
        similarities += best.tolist()
    return BestRegions(regions, similarities)


def _together(images: Numbers, sizes: Numbers) -> Iterator[Numbers]:
    """Images in order, as many at a time as have `_REGIONS_AT_ONCE` regions, at least one."""
    before = np.cumsum(sizes) - sizes
    start = 0
    while start < len(images):
        stop = int(np.searchsorted(before, before[start] + _REGIONS_AT_ONCE))
        yield images[start:stop]
        start = stop


def _packed(found: RegionsRow | EmbeddingsRow) -> Sequence[bytes]:
    if isinstance(found, EmbeddingsRow):
        return found.embeddings
    return [region.embedding for region in found.regions if region.embedding is not None]


def count_unsaid(best_BN: Array) -> list[NounCounts]:
    """The sums of nouns that no image of the sample says, from their best similarities."""
    millionths_BN = np.rint(best_BN * _MILLION).astype(np.int64)
    sums_B, squares_B = millionths_BN.sum(axis=1), (millionths_BN * millionths_BN).sum(axis=1)
    images = best_BN.shape[1]
    return [NounCounts(a, b, images, None, 0) for a, b in zip(sums_B.tolist(), squares_B.tolist(), strict=True)]


def count_noun(best_N: Array, said_images: Numbers, said: Sequence[float]) -> NounCounts:
    """The sums of a noun: `best_N` over the first images, of which `said_images` count not; `said` over the others.

    The AUC is that of Mann and Whitney ("On a test of whether one of two random variables is stochastically larger than
    the other", Annals of Mathematical Statistics 18, 1947, p. 50–60): ties count half.
    """
    unsaid = np.sort(np.rint(np.delete(best_N, said_images[said_images < len(best_N)]) * _MILLION).astype(np.int64))
    auc = None
    if len(unsaid) and len(said):
        values = np.rint(np.array(said) * _MILLION).astype(np.int64)
        below = np.searchsorted(unsaid, values, side="left")
        not_above = np.searchsorted(unsaid, values, side="right")
        auc = int((below + not_above).sum()) / (2 * len(unsaid) * len(said))
    return NounCounts(int(unsaid.sum()), int((unsaid * unsaid).sum()), len(unsaid), auc, len(said))
