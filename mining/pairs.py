"""Pairs: which region each noun names. A matrix product and a rule; no model, no picture.

Shapes: K different nouns of an image, R regions, D the width of the CLIP embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from mining.embeddings import unpack
from mining.labels import load_synonyms, names_label
from schemas.errors import InputError
from schemas.rows import Noun, NounsRow, Pair, PairsRow, RegionsRow, Rejection
from schemas.settings import Settings

Array = np.ndarray[Any, np.dtype[np.float64]]
MatchRows = Callable[[Sequence[NounsRow], Sequence[RegionsRow], Mapping[str, bytes]], list[PairsRow]]

_SOFTMAX_SCALE = 100.0  # CLIP's logit scale at the end of its training
_LEAST_COSINE = -1.0


class Filters(Settings):
    """Which pairs are written; applied when shards are made, so a change of these runs no model again.

    `min_count` is the least number of images that say the noun; `max_per_noun` keeps at most so many pairs of a noun,
    chosen by the hash of their keys, which is a random choice that every run makes alike.
    """

    min_count: Annotated[int, Field(ge=1)] = 1
    max_per_noun: Annotated[int, Field(ge=1)] | None = None


class ClipPairs(Filters):
    """Match nouns and regions by the cosine of their CLIP embeddings.

    `best_region_per_noun`: each noun takes the region that fits it best (the paper's rule; a region may serve several
    nouns). `mutual_best`: only where the noun is also the region's best noun. `one_to_one`: the assignment with the
    highest total, each region at most once (Kuhn 1955, by scipy).

    `score`: what is maximised: the `cosine`, or `softmax`, the softmax over the image's nouns of 100 × cosine, under
    which a region is judged by how much better a noun fits it than the other nouns do.
    """

    rule: Literal["best_region_per_noun", "mutual_best", "one_to_one"] = "best_region_per_noun"
    score: Literal["cosine", "softmax"] = "cosine"
    min_similarity: float | None = None
    min_margin: float | None = None

    def open(self) -> MatchRows:
        """A function from the nouns, regions and text embeddings of a part to its pairs."""

        def match(
            nouns: Sequence[NounsRow], regions: Sequence[RegionsRow], text: Mapping[str, bytes]
        ) -> list[PairsRow]:
            return [self._match_image(n, r, text) for n, r in zip(nouns, regions, strict=True)]

        return match

    def _match_image(self, nouns: NounsRow, regions: RegionsRow, text: Mapping[str, bytes]) -> PairsRow:
        if nouns.rejection or regions.rejection:
            return PairsRow(nouns.image_id, (), None)
        mentions = first_mentions(nouns.nouns)
        similarity_KR = cosine_similarity(
            _embeddings([text.get(noun.text) for noun in mentions]), _embeddings([r.embedding for r in regions.regions])
        )
        chosen = choose_regions(similarity_KR, rule=self.rule, score=self.score)
        pairs = tuple(_clip_pair(mentions[k], similarity_KR, k=k, r=r) for k, r in chosen)
        detail = f"{len(mentions)} nouns, {len(regions.regions)} regions"
        return PairsRow(nouns.image_id, pairs, None if pairs else Rejection("no_match", detail))


class LabelPairs(Filters):
    """Match nouns to the regions whose label they name, without CLIP; see `mining.labels`.

    `synonyms`: `coco`, a YAML file of one's own, or nothing. `take`: the `largest` region of that label, or `all`.
    """

    rule: Literal["labels"]
    synonyms: str | None = None
    take: Literal["largest", "all"] = "largest"

    def open(self) -> MatchRows:
        """As `ClipPairs.open`; the text embeddings are not used."""
        synonyms = load_synonyms(self.synonyms)

        def match(nouns: Sequence[NounsRow], regions: Sequence[RegionsRow], _: Mapping[str, bytes]) -> list[PairsRow]:
            return [self._match_image(n, r, synonyms) for n, r in zip(nouns, regions, strict=True)]

        return match

    def _match_image(self, nouns: NounsRow, regions: RegionsRow, synonyms: Mapping[str, frozenset[str]]) -> PairsRow:
        if nouns.rejection or regions.rejection:
            return PairsRow(nouns.image_id, (), None)
        pairs = []
        for noun in first_mentions(nouns.nouns):
            named = [
                index
                for index, region in enumerate(regions.regions)
                if region.label is not None and names_label(noun.text, noun.lemma, region.label, synonyms)
            ]
            named.sort(key=lambda index: (-regions.regions[index].area_px, index))
            for rank, index in enumerate(named if self.take == "all" else named[:1]):
                pairs.append(_pair(noun, region=index, similarity=None, margin=None, rank=rank))
        labels = sorted({region.label or "no label" for region in regions.regions})
        detail = f"no noun names one of: {', '.join(labels)}"
        return PairsRow(nouns.image_id, tuple(pairs), None if pairs else Rejection("no_match", detail))


def first_mentions(nouns: Sequence[Noun]) -> list[Noun]:
    """The image's different nouns, each where it is said first; case was folded when they were found."""
    first: dict[str, Noun] = {}
    for noun in nouns:
        first.setdefault(noun.text, noun)
    return list(first.values())


def cosine_similarity(text_KD: Array, region_RD: Array) -> Array:
    """Cosine of every noun and region, [K, R], rounded to six digits.

    Rounded, because the last bits of a matrix product depend on the machine, and pairs must not.
    """
    text_KD = text_KD / np.linalg.norm(text_KD, axis=1, keepdims=True)
    region_RD = region_RD / np.linalg.norm(region_RD, axis=1, keepdims=True)
    return np.round(text_KD @ region_RD.T, 6)


def choose_regions(
    similarity_KR: Array,
    *,
    rule: Literal["best_region_per_noun", "mutual_best", "one_to_one"],
    score: Literal["cosine", "softmax"],
) -> list[tuple[int, int]]:
    """The chosen `(noun, region)` indices in the order of the nouns; a tie goes to the earlier region or noun."""
    score_KR = similarity_KR if score == "cosine" else softmax_over_nouns(similarity_KR)
    best_K = score_KR.argmax(axis=1)
    if rule == "best_region_per_noun":
        return [(k, int(r)) for k, r in enumerate(best_K)]
    if rule == "mutual_best":
        return [(k, int(r)) for k, r in enumerate(best_K) if score_KR[:, r].argmax() == k]
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(score_KR, maximize=True)
    return [(int(k), int(r)) for k, r in zip(rows, columns, strict=True)]


def softmax_over_nouns(similarity_KR: Array) -> Array:
    """Softmax over the nouns of 100 × cosine, for each region, [K, R]."""
    logits_KR = _SOFTMAX_SCALE * similarity_KR
    exponentials_KR = np.exp(logits_KR - logits_KR.max(axis=0, keepdims=True))
    result: Array = np.round(exponentials_KR / exponentials_KR.sum(axis=0, keepdims=True), 9)
    return result


def _clip_pair(noun: Noun, similarity_KR: Array, *, k: int, r: int) -> Pair:
    others = np.delete(similarity_KR[k], r)
    next_best = float(others.max()) if len(others) else _LEAST_COSINE
    similarity = float(similarity_KR[k, r])
    rank = int((similarity_KR[:, r] > similarity).sum())
    return _pair(noun, region=r, similarity=similarity, margin=round(similarity - next_best, 6), rank=rank)


def _pair(noun: Noun, *, region: int, similarity: float | None, margin: float | None, rank: int) -> Pair:
    return Pair(
        noun=noun.text,
        lemma=noun.lemma,
        caption=noun.caption,
        start=noun.start,
        end=noun.end,
        region=region,
        similarity=similarity,
        margin=margin,
        rank=rank,
    )


def _embeddings(packed: Sequence[bytes | None]) -> Array:
    present = [vector for vector in packed if vector is not None]
    if len(present) != len(packed):
        raise InputError("pairs.rule: CLIP rules need embeddings; set `regions.clip`, or use `rule: labels`")
    return unpack(present).astype(np.float64)
