"""What a person entered on the page, and whether it is a choice: every fault is one line, at its field."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import cast, get_args

from pipelines.serving import Choice, Offer, Paint, Rule, Served, Tower, named_once
from tuning.segmentation_rules import BACKGROUND

MOST_LETTERS = 200
"""So long a name may be: CLIP reads about as much of it."""

_SHOWN_LETTERS = 60
_SEPARATOR = re.compile(r"[,，、،\r\n]")


@dataclass(frozen=True, slots=True)
class Entered:
    """The fields of the form as text; an empty one was left to its default."""

    classes: str = ""
    example: str = ""
    segmenter: str = ""
    tower: str = ""
    rule: str = ""
    clip_weight: str = ""
    paint: str = ""
    granularity: str = ""


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with a field, and what to do."""

    field: str
    line: str


@dataclass(frozen=True, slots=True)
class Checked:
    """A choice, or the faults that are in its way; `notes` are said either way."""

    choice: Choice | None
    faults: tuple[Fault, ...]
    notes: tuple[str, ...]


def read_entered(form: Mapping[str, object]) -> Entered:
    """The fields of the form that are text."""
    values = {field.name: form.get(field.name, "") for field in fields(Entered)}
    return Entered(**{name: value.strip() for name, value in values.items() if isinstance(value, str)})


def first_entered(served: Served) -> Entered:
    """The defaults: of the first segmenter, and of the first example where there is one."""
    example = served.examples[0] if served.examples else None
    entered = Entered(classes=", ".join(example.classes), example="0") if example else Entered()
    return with_defaults(entered, served)


def with_defaults(entered: Entered, served: Served) -> Entered:
    """What was left out gets the default of its segmenter."""
    name = entered.segmenter or next(iter(served.offers))
    settings = served.offers.get(name, next(iter(served.offers.values()))).settings
    defaults = {
        "segmenter": name,
        "tower": "plain",
        "rule": settings.rule,
        "clip_weight": f"{settings.clip_weight:g}",
        "paint": settings.paint,
        "granularity": f"{settings.granularity:g}",
    }
    return Entered(**{field: value or defaults.get(field, "") for field, value in asdict(entered).items()})


def check_entered(entered: Entered, served: Served) -> Checked:
    """The choice that was entered, with every default filled in."""
    entered = with_defaults(entered, served)
    classes, faults, notes = _read_classes(entered.classes, most=served.settings.max_classes)
    offer = served.offers.get(entered.segmenter)
    if offer is None:
        faults.append(_unknown("segmenter", entered.segmenter, list(served.offers)))
    else:
        faults += _check_offered(entered, offer)
    if entered.paint not in get_args(Paint):
        faults.append(_unknown("paint", entered.paint, get_args(Paint)))
    clip_weight, granularity = _number(entered.clip_weight), _number(entered.granularity)
    if not 0 < clip_weight < 1:
        faults.append(
            Fault("clip_weight", f"λ lies between 0 and 1, without either, not at {_shown(entered.clip_weight)}")
        )
    if not 0 <= granularity <= 1:
        faults.append(Fault("granularity", f"Granularity goes from 0 to 1, not to {_shown(entered.granularity)}"))
    if faults:
        return Checked(None, tuple(faults), notes)
    choice = Choice(
        segmenter=entered.segmenter,
        tower=cast(Tower, entered.tower),
        rule=cast(Rule, entered.rule),
        clip_weight=clip_weight,
        paint=cast(Paint, entered.paint),
        granularity=granularity if entered.paint == "best_per_class" else 1.0,
        classes=classes,
    )
    return Checked(choice, (), notes)


def _check_offered(entered: Entered, offer: Offer) -> list[Fault]:
    faults = []
    if entered.tower not in offer.towers:
        faults.append(_unknown("tower", entered.tower, list(offer.towers)))
    if entered.rule in get_args(Rule) and entered.rule not in offer.rules:
        line = f"The masks of {entered.segmenter} come without a classifier of their own; let CLIP alone decide"
        faults.append(Fault("rule", line))
    elif entered.rule not in offer.rules:
        faults.append(_unknown("rule", entered.rule, offer.rules))
    return faults


def _read_classes(text: str, *, most: int) -> tuple[tuple[str, ...], list[Fault], tuple[str, ...]]:
    """The names in a text, commas or lines between them; what is wrong with them; what should be known of them."""
    named, repeated = named_once([name for name in _SEPARATOR.split(text) if name.strip()])
    faults = []
    if all(name.casefold() == BACKGROUND for name in named):
        beside = f" beside {_shown(named[0])}" if named else ""
        faults.append(Fault("classes", f"No class is named{beside}: give at least one, such as: dog, tree"))
    elif len(named) > most:
        faults.append(Fault("classes", f"{len(named):,} classes are too many: at most {most:,} are taken at once"))
    elif long := next((name for name in named if len(name) > MOST_LETTERS), None):
        line = f"The name {_shown(long)} has {len(long):,} letters: at most {MOST_LETTERS} are taken"
        faults.append(Fault("classes", line))
    notes = []
    if repeated:
        more = f" and {len(repeated) - 3} more" if len(repeated) > 3 else ""
        notes.append(f"Named more than once, and taken once: {', '.join(map(_shown, repeated[:3]))}{more}.")
    if named and not all(name.isascii() for name in named):
        notes.append("Most CLIPs learnt from English: other languages may be hardly understood.")
    return named, faults, tuple(notes)


def _number(text: str) -> float:
    """NaN, which lies in no range, for what is no number."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def _unknown(field: str, value: str, known: tuple[str, ...] | list[str]) -> Fault:
    return Fault(field, f"{_shown(value)} is not offered here: choose one of {', '.join(known)}")


def _shown(text: str) -> str:
    return f"“{text if len(text) <= _SHOWN_LETTERS else text[:_SHOWN_LETTERS] + '…'}”"
