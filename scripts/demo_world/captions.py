"""Captions for demo scenes: varied English that is true, and that may leave something out.

What a caption says about an object holds in the image: its noun, its number, `small` and `large`, and where it is
relative to another. The names of places ("in the grass") are the setting's own.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from maskmine.schemas.mask import Box
from maskmine.scripts.demo_world.nouns import DemoNoun

CAPTIONS_PER_SCENE = 5
SMALL_SHARE = 0.022  # of the image: what is not larger may be called small
LARGE_SHARE = 0.13  # of the image: what is not smaller may be called large
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight")

_FIRST_SIZES = (0.02, 0.43, 0.35, 0.2)  # how often the first caption names 1, 2, 3, 4 sorts of things
_LATER_SIZES = (0.35, 0.4, 0.25)
_PICTURE_SHARE = 0.18  # how often a sentence begins with "a photo of" or the like
_LIVING = ("animal", "wild", "bird", "person", "fantasy")
_SMALL = ("small", "little", "tiny")
_LARGE = ("large", "big")


@dataclass(frozen=True, slots=True)
class Seen:
    """What a caption may know about an object: `aloft` is above the ground; `behind` numbers those that cover it."""

    noun: DemoNoun
    box_xyxy: Box
    area_share: float
    aloft: bool
    behind: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Places:
    """Phrases that say where things on the ground, and things in the air, are."""

    ground: tuple[str, ...]
    aloft: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Sort:
    """All objects of one noun, by their numbers in the scene."""

    noun: DemoNoun
    members: tuple[int, ...]
    share: float

    @property
    def many(self) -> bool:
        return len(self.members) > 1 or self.noun.number == "plural"


def write_captions(seen: Sequence[Seen], *, places: Places, rng: np.random.Generator) -> tuple[str, ...]:
    """Five captions; the first names two to four sorts of things where there are as many. At least one is `seen`."""
    sorts = _sorts(seen)
    sizes = (_FIRST_SIZES, *[_LATER_SIZES] * (CAPTIONS_PER_SCENE - 1))
    return tuple(_caption(seen, _choose(sorts, weights, rng), places, rng) for weights in sizes)


def relation(left: Seen, right: Seen, *, numbers: tuple[int, int]) -> tuple[str, ...]:
    """The phrases that truly say where `left` is relative to `right`; `numbers` are theirs in the scene.

    Sideways and above mean that the boxes do not share a column (row) and do share a row (column) in good part.
    """
    if numbers[1] in left.behind:
        return ("behind", "partly hidden behind")
    if numbers[0] in right.behind:
        return ("in front of",)
    gap_x, gap_y = (_gap(left.box_xyxy, right.box_xyxy, axis=axis) for axis in (0, 1))
    width_px = min(_side(left.box_xyxy, 0), _side(right.box_xyxy, 0))
    if gap_x >= 0 and gap_y < -0.3 * min(_side(left.box_xyxy, 1), _side(right.box_xyxy, 1)):
        sideways = (
            ("to the left of", "left of") if left.box_xyxy[0] < right.box_xyxy[0] else ("to the right of", "right of")
        )
        return (*sideways, "next to", "beside") if gap_x < width_px else sideways
    if gap_y >= 0 and gap_x < -0.3 * width_px:
        return ("above", "over") if left.box_xyxy[1] < right.box_xyxy[1] else ("below", "under")
    return ()


def with_article(phrase: str) -> str:
    """`a` or `an` before a singular phrase."""
    vowel = (phrase[0] in "aeiou" and not phrase.startswith("uni")) or phrase.startswith("hour")
    return f"{'an' if vowel else 'a'} {phrase}"


def _sorts(seen: Sequence[Seen]) -> list[_Sort]:
    numbers: dict[DemoNoun, list[int]] = {}
    for number, thing in enumerate(seen):
        numbers.setdefault(thing.noun, []).append(number)
    return [_Sort(noun, tuple(ns), max(seen[n].area_share for n in ns)) for noun, ns in numbers.items()]


def _choose(sorts: list[_Sort], weights: tuple[float, ...], rng: np.random.Generator) -> list[_Sort]:
    """A few sorts in random order, larger ones more often, as people do.

    The order of u ** (1 / weight), u uniform, is a weighted draw without replacement (Efraimidis and Spirakis, 2006).
    """
    wanted = 1 + bisect.bisect_left(tuple(itertools.accumulate(weights)), rng.random() * sum(weights))
    keys = [float(rng.random()) ** (1.0 / math.sqrt(sort.share)) for sort in sorts]
    ranked = sorted(range(len(sorts)), key=keys.__getitem__, reverse=True)
    return [sorts[number] for number in ranked[:wanted]]


def _caption(seen: Sequence[Seen], sorts: list[_Sort], places: Places, rng: np.random.Generator) -> str:
    text = _related(seen, sorts, places, rng) if rng.random() < 0.5 else ""
    text = text or _listed(seen, sorts, places, rng)
    if rng.random() < 0.15:
        return text
    text = text[0].upper() + text[1:]
    return text if rng.random() < 0.25 else text + "."


def _related(seen: Sequence[Seen], sorts: list[_Sort], places: Places, rng: np.random.Generator) -> str:
    """A sentence with a relation between two single objects, empty where none holds."""
    if len(sorts) < 2 or len(sorts[0].members) + len(sorts[1].members) > 2:
        return ""
    numbers = (sorts[0].members[0], sorts[1].members[0])
    relations = relation(seen[numbers[0]], seen[numbers[1]], numbers=numbers)
    if not relations:
        return ""
    first, second, *others = (_phrase(sort, rng) for sort in sorts)
    where = relations[int(rng.integers(len(relations)))]
    verb = "are" if sorts[0].many else "is"
    if others:
        rest = _join(others)
        endings = (f", and {rest}", f", with {rest}", f" and there {_verb(sorts[2])} also {rest}")
        return f"{first} {where} {second}{endings[int(rng.integers(len(endings)))]}"
    place, posture = _place(seen, sorts, places, rng), _posture(sorts[0], seen, rng)
    options = (
        f"{first}{posture} {where} {second}{place}",
        f"{first} {verb}{posture} {where} {second}{place}",
        f"there {verb} {first} {where} {second}{place}",
        f"there {verb} {first}{place} {where} {second}",
    )
    opening = _pick(rng, "a photo of ", "a picture of ") if rng.random() < _PICTURE_SHARE else ""
    return f"{opening}{first} {where} {second}{place}" if opening else _pick(rng, *options)


def _listed(seen: Sequence[Seen], sorts: list[_Sort], places: Places, rng: np.random.Generator) -> str:
    phrases = [_phrase(sort, rng) for sort in sorts]
    things, place = _join(phrases), _place(seen, sorts, places, rng)
    verb = "are" if len(sorts) > 1 or sorts[0].many else "is"
    if rng.random() < _PICTURE_SHARE:
        opening = _pick(
            rng, "a photo of", "a picture of", "an image of", "a view of", "a photo with", "a picture showing"
        )
        return f"{opening} {things}{place}"
    options = [f"{things}{place}", f"there {_verb(sorts[0])} {things}{place}"]
    if place:
        posture = _posture(sorts[0], seen, rng)
        options += [f"{things} {verb}{place}", f"{place.strip()} there {_verb(sorts[0])} {things}"]
        options += [f"{things} can be seen{place}", f"{phrases[0]}{posture}{place}"]
    if len(phrases) > 1:
        rest = _join(phrases[1:])
        options += [f"{phrases[0]} with {rest}{place}", f"{phrases[0]} together with {rest}{place}"]
        options += [f"{phrases[0]} along with {rest}", f"{rest} and also {phrases[0]}{place}"]
    return _pick(rng, *options)


def _phrase(sort: _Sort, rng: np.random.Generator) -> str:
    """Article or number, perhaps a true adjective, and the noun."""
    noun = sort.noun
    if len(sort.members) > 1:
        number = NUMBERS[len(sort.members)]
        if len(sort.members) > 2 and rng.random() < 0.3:
            number = _pick(rng, "several", "some", "a few")
        return f"{number} {noun.plural}"
    adjectives = _SMALL if sort.share <= SMALL_SHARE else _LARGE if sort.share >= LARGE_SHARE else ()
    name = f"{_pick(rng, *adjectives)} {noun.noun}" if adjectives and rng.random() < 0.4 else noun.noun
    return with_article(name) if noun.number == "count" else f"some {name}"


def _posture(sort: _Sort, seen: Sequence[Seen], rng: np.random.Generator) -> str:
    """What living things on the ground do, with a space before it; nothing for others."""
    if sort.noun.kind not in _LIVING or seen[sort.members[0]].aloft:
        return ""
    return " " + _pick(rng, "standing", "sitting", "resting")


def _place(seen: Sequence[Seen], sorts: list[_Sort], places: Places, rng: np.random.Generator) -> str:
    """A space and a phrase that is true of all of them, or nothing."""
    aloft = {seen[number].aloft for sort in sorts for number in sort.members}
    if len(aloft) > 1 or rng.random() < 0.35:
        return ""
    return " " + _pick(rng, *(places.aloft if aloft == {True} else places.ground))


def _verb(sort: _Sort) -> str:
    return "are" if sort.many else "is"


def _join(phrases: Sequence[str]) -> str:
    return phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def _pick(rng: np.random.Generator, *options: str) -> str:
    return options[int(rng.integers(len(options)))]


def _gap(left: Box, right: Box, *, axis: int) -> int:
    """Pixels between two boxes along an axis; negative where they overlap."""
    return max(left[axis], right[axis]) - min(left[axis + 2], right[axis + 2])


def _side(box: Box, axis: int) -> int:
    return box[axis + 2] - box[axis]
