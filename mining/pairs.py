"""Pairs: which region each noun names. A matrix product and a rule; no model, no image.

Shapes: K different nouns of an image, R regions, D the width of the CLIP embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from maskmine.mining.models.embeddings import unpack
from maskmine.mining.scores.calibration import Calibration, read_calibration
from maskmine.mining.scores.features import ImageScores, Scorer
from maskmine.mining.text.labels import load_synonyms, open_naming, synonyms_identity
from maskmine.mining.text.units import first_mentions
from maskmine.schemas.errors import InputError
from maskmine.schemas.rows import Noun, NounsRow, Pair, PairsRow, RegionsRow, Rejection
from maskmine.schemas.settings import AddedLater, AnyPath, ExecutionOnly, IsPath, Settings

Array = np.ndarray[Any, np.dtype[np.float64]]
MatchRows = Callable[[Sequence[NounsRow], Sequence[RegionsRow], "TextSide"], list[PairsRow]]

_SOFTMAX_SCALE = 100.0  # CLIP's logit scale at the end of its training
_LEAST_COSINE = -1.0  # stands for the next best region where there is no other


@dataclass(frozen=True, slots=True)
class TextSide:
    """What is known of the run's nouns: CLIP's embedding of each, and what scores pairs; nothing without CLIP.

    `measured` says whether levels were measured on the images in hand.
    """

    embeddings: Mapping[str, bytes]
    scorer: Scorer | None = None
    measured: bool = False


class Filters(Settings):
    """Which pairs are written. Applied when shards are made, so a change runs no model again."""

    min_count: Annotated[int, Field(ge=1)] = 1
    """Images whose captions must mention a noun before its pairs are written; raise it to drop rare nouns."""
    max_per_noun: Annotated[int, Field(ge=1)] | None = None
    """Pairs of a noun at most, chosen by the hash of their keys, which is random and reproducible; null writes all."""
    min_presence: Annotated[float | None, AddedLater(), Field(ge=0, le=1)] = None
    """Lowest presence of a written pair, which needs `checks`: whether the verifier finds the noun in the picture at
    all. Pairs of nouns that it cannot read are left out. null writes all."""
    min_agreement: Annotated[float | None, AddedLater(), Field(ge=0, le=1)] = None
    """Lowest agreement of a written pair, which needs `checks`: the best IoU of its region with what the verifier finds
    for the noun. Pairs of nouns that it cannot read are left out. null writes all."""


class ClipPairs(Filters):
    """Match nouns and regions by the cosine similarity of their CLIP embeddings."""

    rule: Literal["best_region_per_noun", "mutual_best", "one_to_one"] = "best_region_per_noun"
    """`best_region_per_noun`: each noun takes its most similar region (the paper's rule; a region may serve several
    nouns). `mutual_best`: only where the noun is also the region's best noun. `one_to_one`: the assignment of highest
    total, each region at most once."""
    score: Literal["cosine", "softmax"] = "cosine"
    """What is maximised: the `cosine` similarity, or `softmax` over the image's nouns of 100 × cosine, which compares a
    noun with the other nouns of the image."""
    min_similarity: float | None = None
    """Lowest cosine similarity of a written pair; null writes all. Higher is more precise and gives fewer pairs."""
    min_margin: float | None = None
    """Lowest lead of a pair's similarity over the noun's next best region; null writes all."""
    min_lift: float | None = None
    """Lowest lift of a written pair: similarity minus what its noun gets in images that do not say it. Pairs of nouns
    without a level, which every image says, are left out. null writes all."""
    min_evidence: float | None = None
    """Lowest evidence of a written pair, a weighted sum of lift, separability and four more scores; null writes all. On
    the demo world 0 is an even chance to be right, and 1.25 leaves 95 % right pairs; elsewhere its order counts."""
    min_separability: Annotated[float, Field(ge=0, le=1)] | None = None
    """Lowest separability of a noun whose pairs are written: how well CLIP tells images that say it from others, 0.5
    for what cannot be seen, near 1 for what can. null writes all; `nouns.skip_words` is a list made by hand instead."""
    calibration: AnyPath | None = None
    """A file of `maskmine audit`, which gives every pair a confidence: the probability that it is right. It is measured
    on the pictures of the run that was audited, and says nothing of others. null: pairs have no confidence."""
    foreign_calibration: Annotated[bool, ExecutionOnly()] = False
    """Use a `calibration` that was made with other models or another rule, which is refused otherwise. Manifest and
    dataset card then say so."""
    min_confidence: Annotated[float, Field(ge=0, le=1)] | None = None
    """Lowest confidence of a written pair, which needs a `calibration`; null writes all. Its file names the threshold
    for the precision that the audit was asked for."""
    proposal_weight: Annotated[float, Field(ge=0)] = 0.0
    """What a proposal's score of 1 adds to similarity when a noun's region is chosen, in mean spreads of the nouns. 0
    is the paper's rule; 0.75 takes whole objects where parts of them are nearly as similar."""

    @model_validator(mode="after")
    def _confidence_comes_from_a_calibration(self) -> ClipPairs:
        if self.min_confidence is not None and self.calibration is None:
            raise ValueError(
                "`pairs.min_confidence` needs `pairs.calibration`, a file that `maskmine audit --to` wrote"
            )
        return self

    def open(self) -> MatchRows:
        """A function from the nouns and regions of a part, and what is known of its nouns, to its pairs.

        Raises InputError when the calibration cannot be read.
        """
        calibration = read_calibration(self.calibration) if self.calibration is not None else None
        return partial(self._match_rows, calibration=calibration)

    def _match_rows(
        self,
        nouns: Sequence[NounsRow],
        regions: Sequence[RegionsRow],
        text: TextSide,
        *,
        calibration: Calibration | None,
    ) -> list[PairsRow]:
        matched = [
            None if n.rejection or r.rejection else self._match_image(n, r, text)
            for n, r in zip(nouns, regions, strict=True)
        ]
        found = [one for one in matched if one is not None]
        if text.scorer is not None:
            scored = iter(text.scorer.score_images(found))
        else:
            scored = iter([[*pairs] for pairs, _ in found])
        return [
            PairsRow(n.image_id, (), None)
            if one is None
            else self._row(n.image_id, next(scored), one[1], calibration=calibration)
            for n, one in zip(nouns, matched, strict=True)
        ]

    def _row(
        self, image_id: str, pairs: Sequence[Pair], image: ImageScores, *, calibration: Calibration | None
    ) -> PairsRow:
        if calibration is not None:
            scores = [image.regions[pair.region].score for pair in pairs]
            pairs = tuple(calibration.add_confidence(pairs, scores))
        detail = f"{len(image.nouns)} nouns, {len(image.regions)} regions"
        return PairsRow(image_id, tuple(pairs), None if pairs else Rejection("no_match", detail))

    def _match_image(self, nouns: NounsRow, regions: RegionsRow, text: TextSide) -> tuple[list[Pair], ImageScores]:
        """The pairs of an image, and what they are scored by."""
        mentions = first_mentions(nouns.nouns)
        similarity_KR = cosine_similarity(
            _embeddings([text.embeddings.get(noun.text) for noun in mentions]),
            _embeddings([r.embedding for r in regions.regions]),
        )
        chosen = choose_regions(self._preferred(similarity_KR, regions, text), rule=self.rule, score=self.score)
        pairs = [_clip_pair(mentions[k], similarity_KR, k=k, r=r) for k, r in chosen]
        return pairs, ImageScores(mentions, regions.regions, similarity_KR, text.measured)

    def _preferred(self, similarity_KR: Array, regions: RegionsRow, text: TextSide) -> Array:
        """The similarities by which regions are chosen: with the proposals' scores, where these have a weight."""
        if not self.proposal_weight or text.scorer is None:
            return similarity_KR
        scores_R = np.array([region.score for region in regions.regions])
        result: Array = np.round(similarity_KR + self.proposal_weight * text.scorer.scale.spread * scores_R, 6)
        return result


class LabelPairs(Filters):
    """Match nouns to the regions whose label they name, without CLIP."""

    rule: Literal["labels"]
    """A noun takes regions whose label is the noun or one of its synonyms."""
    synonyms: Annotated[str, IsPath(or_name=True, known=("auto", "coco"))] | None = "auto"
    """Nouns that stand for a label: `auto`, the shipped lists for the labels of COCO, COCO-Stuff, COCO panoptic and
    ADE20K-150; `coco`, of these that for COCO's 80; a YAML file of your own; or null for the labels alone."""
    take: Literal["largest", "all"] = "largest"
    """The `largest` region of that label, or `all` of them."""

    def contents(self) -> dict[str, Any]:
        """The synonyms by what they are. Raises InputError when a file of them cannot be read."""
        return {"synonyms": None if self.synonyms is None else synonyms_identity(self.synonyms)}

    def open(self) -> MatchRows:
        """As `ClipPairs.open`; the text embeddings are not used."""
        synonyms = load_synonyms(self.synonyms)
        return partial(_match_each, lambda nouns, regions, _: self._match_image(nouns, regions, synonyms))

    def _match_image(self, nouns: NounsRow, regions: RegionsRow, synonyms: Mapping[str, frozenset[str]]) -> PairsRow:
        pairs = []
        naming = open_naming(sorted({region.label for region in regions.regions if region.label}), synonyms)
        for noun in first_mentions(nouns.nouns):
            labels_named = naming(noun.text, noun.lemma)
            named = [index for index, region in enumerate(regions.regions) if region.label in labels_named]
            named.sort(key=lambda index: (-regions.regions[index].area_px, index))
            for rank, index in enumerate(named if self.take == "all" else named[:1]):
                pairs.append(_pair(noun, region=index, similarity=None, margin=None, rank=rank))
        labels = sorted({region.label or "no label" for region in regions.regions})
        detail = f"no noun names one of: {', '.join(labels)}"
        return PairsRow(nouns.image_id, tuple(pairs), None if pairs else Rejection("no_match", detail))


def cosine_similarity(text_KD: Array, region_RD: Array) -> Array:
    """Cosine of every noun and region, [K, R], rounded to six digits.

    Rounded, because the last bits of a matrix product depend on the machine, and pairs must not. Raises InputError for
    a vector without a direction: its cosines are no numbers, and the first region would be the most similar.
    """
    text_KD, region_RD = (_units(vectors_ND, of=of) for of, vectors_ND in (("nouns", text_KD), ("regions", region_RD)))
    return np.round(text_KD @ region_RD.T, 6)


def _units(vectors_ND: Array, *, of: str) -> Array:
    length_N1 = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    if not (np.isfinite(length_N1) & (length_N1 > 0)).all():
        raise InputError(
            f"pairs: CLIP's embeddings of {of} are not finite, or 0; make the cells of {of} again with other "
            "weights, or `regions.clip.precision: float32`"
        )
    result: Array = vectors_ND / length_N1
    return result


def choose_regions(
    similarity_KR: Array,
    *,
    rule: Literal["best_region_per_noun", "mutual_best", "one_to_one"],
    score: Literal["cosine", "softmax"],
) -> list[tuple[int, int]]:
    """The chosen `(noun, region)` indices in the order of the nouns; a tie goes to the earlier region or noun."""
    # The softmax says nothing of a noun alone: cosine chooses.
    softmax = score == "softmax" and len(similarity_KR) > 1
    score_KR = odds_over_nouns(similarity_KR) if softmax else similarity_KR
    best_K = score_KR.argmax(axis=1)
    if rule == "best_region_per_noun":
        return [(k, int(r)) for k, r in enumerate(best_K)]
    if rule == "mutual_best":
        return [(k, int(r)) for k, r in enumerate(best_K) if score_KR[:, r].argmax() == k]
    from scipy.optimize import linear_sum_assignment

    total_KR = _total(score_KR) if softmax else score_KR
    rows, columns = linear_sum_assignment(total_KR, maximize=True)
    return [(int(k), int(r)) for k, r in zip(rows, columns, strict=True)]


def odds_over_nouns(similarity_KR: Array) -> Array:
    """The softmax over the nouns of 100 × cosine for each region, as the logarithm of its odds, [K, R], of two nouns or
    more: log p / (1 − p), rounded to six digits.

    It orders regions as p does, and tells them apart where p rounds to 0 or 1: p itself, rounded, is the same 0 in
    every region for a noun that is nowhere the likeliest.
    """
    logits_KR = _SOFTMAX_SCALE * similarity_KR
    others_KR = np.empty_like(logits_KR)
    for k in range(len(logits_KR)):
        rest_KR = np.delete(logits_KR, k, axis=0)
        most_R = rest_KR.max(axis=0)
        others_KR[k] = most_R + np.log(np.exp(rest_KR - most_R).sum(axis=0))
    result: Array = np.round(logits_KR - others_KR, 6)
    return result


def _total(odds_KR: Array) -> Array:
    """What `one_to_one` adds up: the softmax, and where that is the same to eight digits, its odds."""
    result: Array = 1 / (1 + np.exp(-odds_KR)) + 1e-9 * odds_KR / _SOFTMAX_SCALE
    return result


def _match_each(
    match: Callable[[NounsRow, RegionsRow, TextSide], PairsRow],
    nouns: Sequence[NounsRow],
    regions: Sequence[RegionsRow],
    text: TextSide,
) -> list[PairsRow]:
    """The pairs of every image that an earlier step did not reject."""
    return [
        PairsRow(n.image_id, (), None) if n.rejection or r.rejection else match(n, r, text)
        for n, r in zip(nouns, regions, strict=True)
    ]


def _clip_pair(noun: Noun, similarity_KR: Array, *, k: int, r: int) -> Pair:
    of_noun_R = similarity_KR[k]
    next_best = (
        float(max(of_noun_R[:r].max(initial=-np.inf), of_noun_R[r + 1 :].max(initial=-np.inf)))
        if len(of_noun_R) > 1
        else _LEAST_COSINE
    )
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
