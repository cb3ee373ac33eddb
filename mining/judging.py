"""Verdicts: what the truth says of a pair, and of a mention that no pair answers.

A pair is right when its mask has an IoU of at least 0.5 with an object that its noun names, or with all of these
objects of the image together. Both count, because people mean both: a mask for "dogs" may be that of one of them or
that of all.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mining.pairs import first_mentions
from mining.truth import Naming, TruthObject
from schemas.mask import Mask, mask_iou
from schemas.rows import Noun, NounsRow, Pair, RegionsRow

RIGHT_IOU = 0.5

Outcome = Literal[
    "right",  # the mask is that of what the noun names
    "other",  # it is that of something else
    "none",  # it is that of no object
    "crowd",  # it lies in a group that the noun names and that was drawn as one: nobody can say
    "unknown",  # the noun names no category of the truth
]


@dataclass(frozen=True, slots=True)
class JudgedPair:
    """A pair and its outcome. `iou` is the best with what the noun names; `absent` says that the image has no such."""

    pair: Pair
    outcome: Outcome
    iou: float
    absent: bool


@dataclass(frozen=True, slots=True)
class NameableMention:
    """A noun of an image that has an object which it names; `found` says that it has a right pair."""

    noun: Noun
    found: bool


@dataclass(frozen=True, slots=True)
class JudgedImage:
    """All pairs of an image, and the mentions that should have one: every noun counts once, as in `pairs`."""

    pairs: tuple[JudgedPair, ...]
    mentions: tuple[NameableMention, ...]


def judge_image(
    nouns: NounsRow, regions: RegionsRow, pairs: Sequence[Pair], *, objects: Sequence[TruthObject], naming: Naming
) -> JudgedImage:
    """Hold the pairs of an image against its objects, whose masks have the size of its regions.

    A crowd is an object that a pair can get right, and part of all objects together. But as its members were not drawn,
    a mask that lies in it for more than half is not counted as wrong, and a mention that it alone answers is not
    counted as missed.
    """
    shapes = functools.cache(functools.partial(_shapes, objects))
    judged = tuple(
        _judge_pair(
            pair, regions.regions[pair.region].mask, objects=objects, named=naming(pair.noun, pair.lemma), shapes=shapes
        )
        for pair in pairs
    )
    right = {one.pair.noun for one in judged if one.outcome == "right"}
    drawn = {one.category for one in objects if not one.crowd}
    mentions = tuple(
        NameableMention(noun, noun.text in right)
        for noun in first_mentions(nouns.nouns)
        if not drawn.isdisjoint(naming(noun.text, noun.lemma))
    )
    return JudgedImage(judged, mentions)


def _judge_pair(
    pair: Pair,
    mask: Mask,
    *,
    objects: Sequence[TruthObject],
    named: frozenset[str],
    shapes: Callable[[frozenset[str]], list[Mask]],
) -> JudgedPair:
    if not named:
        return JudgedPair(pair, "unknown", 0.0, absent=False)
    iou = _best_iou(mask, shapes(named))
    others = {one.category for one in objects} - named
    outcome: Outcome = "none"
    if iou >= RIGHT_IOU:
        outcome = "right"
    elif any(_best_iou(mask, shapes(frozenset({category}))) >= RIGHT_IOU for category in others):
        outcome = "other"
    elif _lies_in(mask, [one.mask for one in objects if one.crowd and one.category in named]):
        outcome = "crowd"
    return JudgedPair(pair, outcome, iou, absent=not shapes(named))


def _shapes(objects: Sequence[TruthObject], categories: frozenset[str]) -> list[Mask]:
    """The objects of some categories one by one, and all of them together."""
    masks = [one.mask for one in objects if one.category in categories]
    return [*masks, _union(masks)] if len(masks) > 1 else masks


def _union(masks: Sequence[Mask]) -> Mask:
    return Mask.from_array(np.any([mask.to_array() for mask in masks], axis=0))


def _best_iou(mask: Mask, shapes: Sequence[Mask]) -> float:
    return float(mask_iou([mask], shapes).max(initial=0.0))


def _lies_in(mask: Mask, crowds: Sequence[Mask]) -> bool:
    """Whether more than half of a mask is in the crowds."""
    if not crowds:
        return False
    inside_px = int((mask.to_array() & _union(crowds).to_array()).sum())
    return 2 * inside_px > mask.area_px
