"""Mined pairs matched with the annotated objects of their image: which pairs are correct, which mentions are recalled.

A pair is correct when its mask has an IoU of at least 0.5 with an object that its noun names, or with the union of all
such objects in the image. Both count, because captions mean both: a mask for "dogs" may show one of them or all.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from maskmine.mining.evaluation.annotations import AnnotatedObject
from maskmine.mining.text.labels import Naming
from maskmine.mining.text.units import first_mentions
from maskmine.schemas.mask import Mask, mask_iou
from maskmine.schemas.rows import Noun, NounsRow, Pair, RegionsRow

# The threshold of COCO's AP50 and of PASCAL VOC.
CORRECT_IOU = 0.5

MatchOutcome = Literal[
    "correct",  # the mask is that of an object which the noun names
    "wrong_object",  # it is that of an object of another category
    "background",  # it is that of no object
    "crowd",  # it lies in a group which the noun names and which was annotated as one: it cannot be decided
    "unlabelled",  # the noun names no category of the annotations
]


@dataclass(frozen=True, slots=True)
class PairMatch:
    """A pair and its outcome.

    `iou` is the best with the objects that the noun names; `without_object` says that the image has none of these.
    """

    pair: Pair
    outcome: MatchOutcome
    iou: float
    without_object: bool


@dataclass(frozen=True, slots=True)
class MentionMatch:
    """A noun of an image that names one of its objects; `recalled` says that it has a correct pair."""

    noun: Noun
    recalled: bool


@dataclass(frozen=True, slots=True)
class ImageMatches:
    """All pairs of an image, and the mentions that should have one: every noun counts once, as in `pairs`."""

    pairs: tuple[PairMatch, ...]
    mentions: tuple[MentionMatch, ...]


def match_image(
    nouns: NounsRow, regions: RegionsRow, pairs: Sequence[Pair], *, objects: Sequence[AnnotatedObject], naming: Naming
) -> ImageMatches:
    """Match the pairs of an image with its objects, whose masks have the size of its regions.

    A crowd is an object that a pair can match, and part of the union of all objects. But as its members were not
    annotated, a mask with more than half of its area in it is not counted as wrong, and a mention that only a crowd
    answers is not counted as missed.
    """
    masks_of = functools.cache(functools.partial(_masks_of, objects))
    # What each pair is.
    matches = tuple(
        _match_pair(
            pair,
            regions.regions[pair.region].mask,
            objects=objects,
            named=naming(pair.noun, pair.lemma),
            masks_of=masks_of,
        )
        for pair in pairs
    )
    # Which mentions should have a pair, and whether they have.
    correct = {match.pair.noun for match in matches if match.outcome == "correct"}
    single = {annotated.category for annotated in objects if not annotated.crowd}
    mentions = tuple(
        MentionMatch(noun, noun.text in correct)
        for noun in first_mentions(nouns.nouns)
        if not single.isdisjoint(naming(noun.text, noun.lemma))
    )
    return ImageMatches(matches, mentions)


def _match_pair(
    pair: Pair,
    mask: Mask,
    *,
    objects: Sequence[AnnotatedObject],
    named: frozenset[str],
    masks_of: Callable[[frozenset[str]], list[Mask]],
) -> PairMatch:
    if not named:
        return PairMatch(pair, "unlabelled", 0.0, without_object=False)
    iou = _best_iou(mask, masks_of(named))
    others = {annotated.category for annotated in objects} - named
    outcome: MatchOutcome = "background"
    if iou >= CORRECT_IOU:
        outcome = "correct"
    elif any(_best_iou(mask, masks_of(frozenset({category}))) >= CORRECT_IOU for category in others):
        outcome = "wrong_object"
    elif _lies_in(mask, [annotated.mask for annotated in objects if annotated.crowd and annotated.category in named]):
        outcome = "crowd"
    return PairMatch(pair, outcome, iou, without_object=not masks_of(named))


def _masks_of(objects: Sequence[AnnotatedObject], categories: frozenset[str]) -> list[Mask]:
    """The masks of the objects of some categories, and their union."""
    masks = [annotated.mask for annotated in objects if annotated.category in categories]
    return [*masks, _union(masks)] if len(masks) > 1 else masks


def _union(masks: Sequence[Mask]) -> Mask:
    return Mask.from_array(np.any([mask.to_array() for mask in masks], axis=0))


def _best_iou(mask: Mask, others: Sequence[Mask]) -> float:
    return float(mask_iou([mask], others).max(initial=0.0))


def _lies_in(mask: Mask, crowds: Sequence[Mask]) -> bool:
    """Whether more than half of a mask is in the crowds."""
    if not crowds:
        return False
    inside_px = int((mask.to_array() & _union(crowds).to_array()).sum())
    return 2 * inside_px > mask.area_px
