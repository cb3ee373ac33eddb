"""An answer, as the readers of all tools give it: nothing of it is held against a run yet, and no mask is unfolded."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np

from maskmine.mining.evaluation.corrections import checked_mask
from maskmine.mining.evaluation.verdict_tables import as_utc, verdict_word
from maskmine.schemas.annotation_tools import UNJUDGED, PairId, parse_pair_line
from maskmine.schemas.mask import Mask
from maskmine.schemas.rows import Verdict

UnfoldMask = Callable[[int, int], Mask]
"""The mask of an answer for an image of this height and width. Raises ValueError where it is none, or of another
size."""

MAX_REVIEWER_CHARS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What one person says of a pair; `place` is where it stands in the file.

    The pair is known by `pair`, or by the `key` of its sample. None: nothing is said. `noun` and `mask` may be the
    pair's own; `refused_noun` says why a noun that was given cannot be. `at` is empty where the file has no time,
    `reviewer` where it names nobody.
    """

    place: str
    pair: PairId | None
    key: str = ""
    verdict: Verdict | None = None
    noun: str | None = None
    mask: UnfoldMask | None = None
    reviewer: str = ""
    at: str = ""
    seconds: float | None = None
    refused_noun: str = ""


@dataclass(frozen=True, slots=True)
class Fault:
    """An entry that cannot be read, and why."""

    place: str
    what: str


def pair_in(value: Any) -> PairId | None:
    """The pair of a `pair_line`; None for anything else."""
    return parse_pair_line(value) if isinstance(value, str) else None


def given_verdict(value: Any) -> Verdict | None:
    """The verdict of an attribute; None where nobody has judged. Raises ValueError for a word that is none."""
    if not isinstance(value, str) or not value.strip() or value.strip() == UNJUDGED:
        return None
    word: Any = verdict_word(value)
    return word  # type: ignore[no-any-return]


def coco_mask(segmentation: Any, *, size_px: tuple[int, int] | None = None) -> UnfoldMask:
    """A mask in one of COCO's forms; `size_px` is the image's `(height, width)` as the file has it, if it does."""

    def unfold(height_px: int, width_px: int) -> Mask:
        refuse_other_size(size_px, height_px, width_px)
        return checked_mask(segmentation, height_px=height_px, width_px=width_px)

    return unfold


def refuse_other_size(size_px: tuple[int, int] | None, height_px: int, width_px: int) -> None:
    """Raises ValueError where a file says that an image is of another size than the run has it."""
    if size_px is not None and size_px != (height_px, width_px):
        raise ValueError(f"a mask for {size_px[0]} × {size_px[1]} pixels, the image has {height_px} × {width_px}")


def mask_of(mask_HW: np.ndarray[Any, Any]) -> Mask:
    """Raises ValueError for one without a pixel."""
    if not mask_HW.any():
        raise ValueError("a corrected mask has no pixel")
    return Mask.from_array(mask_HW)


def reviewer_in(value: Any) -> str:
    """A person's name as a tool has it, short and in one line; empty for what is none."""
    if isinstance(value, dict):
        value = value.get("email") or value.get("username") or value.get("id")
    if not isinstance(value, str | int) or isinstance(value, bool):
        return ""
    visible = (character if unicodedata.category(character)[0] != "C" else " " for character in str(value))
    return " ".join("".join(visible).split())[:MAX_REVIEWER_CHARS]


def time_in(value: Any) -> str:
    """A time as `VerdictRow.at` has it; empty for what is none."""
    try:
        return as_utc(datetime.fromisoformat(value)) if isinstance(value, str) and value else ""
    except ValueError:
        return ""
