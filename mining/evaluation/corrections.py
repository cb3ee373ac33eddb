"""What reviewers put in place of a pair's noun or mask, and what the pair and its region are then.

A corrected pair has no scores: they were measured on another noun or mask. Its rank and the proposal's score stay as
they were mined. The lemma of a corrected noun is the noun itself.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from maskmine.schemas.annotation_tools import PairId
from maskmine.schemas.mask import Mask
from maskmine.schemas.rows import Pair, Proposal

MOST_NOUN_CHARS = 100
"""The longest noun that a reviewer can give."""

_SCORES = ("similarity", "margin", "lift", "lead", "gap", "agreement", "separability", "evidence", "confidence")
_MOST_PIXELS = 1 << 31  # as pycocotools counts
_UNPRINTABLE = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")  # control and format characters, halves, unassigned ones


@dataclass(frozen=True, slots=True)
class Correction:
    """A noun, a mask, or both in place of a pair's own; None where that stays."""

    noun: str | None
    mask: Mask | None

    @property
    def names(self) -> tuple[str, ...]:
        """What of the pair is replaced, as `SampleRow.corrected` has it."""
        named = (("mask", self.mask), ("noun", self.noun))
        return tuple(name for name, value in named if value is not None)


NOTHING_CORRECTED = Correction(None, None)


@dataclass(frozen=True)
class Decisions:
    """What verdicts decide: the pairs that are `wrong` are left out, and those with `corrections` are written so."""

    wrong: frozenset[PairId] = frozenset()
    corrections: Mapping[PairId, Correction] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.wrong or self.corrections)


def checked_noun(text: str) -> str:
    """A noun as a run has it: in small letters, a run of space one space.

    Raises ValueError for one that is empty, too long, or has characters that nobody sees.
    """
    if any(unicodedata.category(character) in _UNPRINTABLE and not character.isspace() for character in text):
        raise ValueError("a corrected noun has control characters")
    noun = " ".join(unicodedata.normalize("NFC", text).lower().split())
    if not noun:
        raise ValueError("a corrected noun is empty")
    if len(noun) > MOST_NOUN_CHARS:
        raise ValueError(f"a corrected noun is longer than {MOST_NOUN_CHARS} characters")
    return noun


def checked_mask(segmentation: Any, *, height_px: int, width_px: int) -> Mask:
    """A corrected mask from any of COCO's forms, for an image of this size. Nothing is unfolded here.

    Raises ValueError for one that is none, of another size, or without a pixel.
    """
    if not all(type(side) is int and side > 0 for side in (height_px, width_px)) or height_px * width_px > _MOST_PIXELS:
        raise ValueError("a corrected mask of no size that an image has")
    mask = Mask.from_coco(segmentation, height_px=height_px, width_px=width_px)
    if not mask.area_px:
        raise ValueError("a corrected mask has no pixel")
    return mask


def corrected_pair(pair: Pair, correction: Correction, *, caption: str) -> Pair:
    """The pair with its correction: without scores, a corrected noun where the caption says it first.

    Where the caption does not say it the span is empty, `start == end == 0`.
    """
    unscored: Any = dict.fromkeys(_SCORES)
    changed = replace(pair, **unscored)
    if correction.noun is None:
        return changed
    start, end = span_of(correction.noun, caption)
    return replace(changed, noun=correction.noun, lemma=correction.noun, start=start, end=end)


def corrected_region(region: Proposal, correction: Correction) -> Proposal:
    """The region with the corrected mask, from which box and area follow."""
    mask = correction.mask
    if mask is None:
        return region
    return Proposal(mask=mask, box_xyxy=mask.box_xyxy, area_px=mask.area_px, score=region.score, label=region.label)


def span_of(noun: str, caption: str) -> tuple[int, int]:
    """Where a caption first says a noun as whole words, in characters; `(0, 0)` where it does not."""
    words = r"\s+".join(re.escape(word) for word in noun.split())
    found = re.search(rf"(?<!\w){words}(?!\w)", caption, re.IGNORECASE)
    if found is None or " ".join(found[0].lower().split()) != noun:
        return 0, 0
    return found.start(), found.end()
