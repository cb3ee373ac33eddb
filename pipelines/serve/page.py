"""The page of `maskmine serve`: the form as a user filled it in, its faults, and the HTML with a map or with them."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Literal, cast, get_args

from maskmine.pipelines.dataset.render import render as render_template
from maskmine.pipelines.serve.service import SHOWN_FILES, Answer, Choice, Paint, Rule, Service, Tower
from maskmine.tuning.segmentation.overlay import PlacedName, class_colour, class_shares
from maskmine.tuning.segmentation.semantic_inference import BACKGROUND

MAX_LETTERS = 200
"""The length of a class name: CLIP reads about as much of it."""
MAX_ROWS = 200
"""The legend has the classes with the most pixels, up to this number; the JSON has all."""

_AT_SIDE = 0.015  # of the map's width, between a name and the side
_SHOWN_LETTERS = 60  # of an entry that is quoted in a message
_SEPARATOR = re.compile(r"[,，、،\r\n]")  # commas of any script, and lines
_NAME_SCALE, _MAP_PX = 13 / 15, 300  # letters on the map beside those of the overlay, and a narrow map
_LINKS = {".labels.png": "Label map (PNG)", ".overlay.png": "Overlay (PNG)", ".json": "Figures (JSON)"}


@dataclass(frozen=True, slots=True)
class Entered:
    """The fields of the form as text."""

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
    """What is wrong with a field, and what to do; `field` is empty where it is none."""

    field: str
    line: str


@dataclass(frozen=True, slots=True)
class Checked:
    """A valid choice, or the faults; `notes` belong to either."""

    choice: Choice | None
    faults: tuple[Fault, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Shown:
    """A map to show: the name of its image, and the seconds that it waited for its turn."""

    name: str
    answer: Answer
    waited_s: float


@dataclass(frozen=True, slots=True)
class _Name:
    """A name on the map: the share of the width at which it begins, ends, or has its middle, and that of the height."""

    text: str
    x: float
    y: float
    anchor: Literal["start", "middle", "end"]


@dataclass(frozen=True, slots=True)
class _Row:
    """A class in the legend: its colour in the map (`#d55e00`), its confidence and its share of the image, 0 to 1."""

    name: str
    colour: str
    confidence: float | None
    share: float


def first_entered(service: Service) -> Entered:
    """The defaults: of the first segmenter, and of the first example where there is one."""
    if not service.examples:
        return _with_defaults(Entered(), service)
    return _with_defaults(Entered(classes=", ".join(service.examples[0].classes), example="0"), service)


def read_entered(form: Mapping[str, object], service: Service) -> Entered:
    """The text fields of the form; empty ones get the defaults of their segmenter."""
    values = {field.name: form.get(field.name) for field in fields(Entered)}
    entered = Entered(**{name: value.strip() for name, value in values.items() if isinstance(value, str)})
    return _with_defaults(entered, service)


def check_entered(entered: Entered, service: Service) -> Checked:
    """The choice, or one line for each field that has a fault."""
    classes, faults, notes = _read_classes(entered.classes, limit=service.settings.max_classes)

    # Fields with a closed list of values, which depends on the segmenter.
    offer = service.offers.get(entered.segmenter)
    offered: dict[str, Sequence[str]] = {"segmenter": list(service.offers)}
    if offer is not None:
        offered |= {"tower": list(offer.towers), "rule": offer.rules}
    offered["paint"] = get_args(Paint)
    for field, values in offered.items():
        value = getattr(entered, field)
        if field == "rule" and value in set(get_args(Rule)).difference(values):
            line = f"The masks of {entered.segmenter} come without a classifier of their own; let CLIP alone decide"
            faults.append(Fault(field, line))
        elif value not in values:
            faults.append(Fault(field, f"{_quoted(value)} is not offered here: choose one of {', '.join(values)}"))

    # Numbers. NaN is in no range.
    clip_weight, granularity = _number(entered.clip_weight), _number(entered.granularity)
    if not 0 < clip_weight < 1:
        line = f"λ lies between 0 and 1, without either, not at {_quoted(entered.clip_weight)}"
        faults.append(Fault("clip_weight", line))
    if not 0 <= granularity <= 1:
        faults.append(Fault("granularity", f"Granularity goes from 0 to 1, not to {_quoted(entered.granularity)}"))

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


def render(
    service: Service,
    entered: Entered,
    *,
    faults: Sequence[Fault] = (),
    notes: Sequence[str] = (),
    shown: Shown | None = None,
) -> str:
    """The whole page. Everything that was entered is escaped."""
    files = shown.answer.files if shown else {}
    return render_template(
        "maskmine.pipelines.serve",
        "serve.html.j2",
        service=service,
        settings=service.settings,
        entered=entered,
        faults=faults,
        faulty={fault.field for fault in faults},
        notes=notes,
        shown=shown,
        shown_files=SHOWN_FILES,
        rows=_rows(shown.answer) if shown else [],
        names=[_on_map(name) for name in shown.answer.names] if shown else [],
        max_rows=MAX_ROWS,
        links=[(file, label) for file in files for suffix, label in _LINKS.items() if file.endswith(suffix)],
        any_tuned=any("tuned" in offer.towers for offer in service.offers.values()),
        any_ensemble=any("ensemble" in offer.rules for offer in service.offers.values()),
    )


def _with_defaults(entered: Entered, service: Service) -> Entered:
    name = entered.segmenter or next(iter(service.offers))
    settings = service.offers.get(name, next(iter(service.offers.values()))).settings
    defaults = {
        "segmenter": name,
        "tower": "plain",
        "rule": settings.rule,
        "clip_weight": f"{settings.clip_weight:g}",
        "paint": settings.paint,
        "granularity": f"{settings.granularity:g}",
    }
    return Entered(**{field: value or defaults.get(field, "") for field, value in asdict(entered).items()})


def _read_classes(text: str, *, limit: int) -> tuple[tuple[str, ...], list[Fault], tuple[str, ...]]:
    """The class names in a text, each once (case and spaces apart), with faults and notes."""
    names = [" ".join(name.split()) for name in _SEPARATOR.split(text) if name.strip()]
    counts = Counter(name.casefold() for name in names)
    first = {name.casefold(): name for name in reversed(names)}
    classes = tuple(first[key] for key in counts)

    faults = []
    if all(key == BACKGROUND for key in counts):
        beside = f" beside {_quoted(classes[0])}" if classes else ""
        faults.append(Fault("classes", f"No class is named{beside}: give at least one, such as: dog, tree"))
    elif len(classes) > limit:
        faults.append(Fault("classes", f"{len(classes):,} classes are too many: at most {limit:,} are taken at once"))
    elif long := next((name for name in classes if len(name) > MAX_LETTERS), None):
        line = f"The name {_quoted(long)} has {len(long):,} letters: at most {MAX_LETTERS} are taken"
        faults.append(Fault("classes", line))

    notes = []
    if repeated := [_quoted(first[key]) for key, count in counts.items() if count > 1]:
        more = f" and {len(repeated) - 3} more" if len(repeated) > 3 else ""
        notes.append(f"Named more than once, and taken once: {', '.join(repeated[:3])}{more}.")
    if not all(name.isascii() for name in classes):
        notes.append("Most CLIPs learnt from English: other languages may be hardly understood.")
    return classes, faults, tuple(notes)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _quoted(text: str) -> str:
    return f"“{text if len(text) <= _SHOWN_LETTERS else text[:_SHOWN_LETTERS] + '…'}”"


def _on_map(name: PlacedName) -> _Name:
    """A name in letters of one size, whatever the size of the map; at a side it begins or ends there."""
    half = name.width_px * _NAME_SCALE / 2 / _MAP_PX
    if name.x - half < _AT_SIDE:
        return _Name(name.text, _AT_SIDE, name.y, "start")
    if name.x + half > 1 - _AT_SIDE:
        return _Name(name.text, 1 - _AT_SIDE, name.y, "end")
    return _Name(name.text, name.x, name.y, "middle")


def _rows(answer: Answer) -> list[_Row]:
    """All classes, the largest first."""
    shares = class_shares(answer.segmentation)
    colours = ["#{:02x}{:02x}{:02x}".format(*class_colour(share.number)) for share in shares]
    columns = zip(shares, colours, answer.segmentation.scores, strict=True)
    rows = [_Row(share.name, colour, score, share.share) for share, colour, score in columns]
    return sorted(rows, key=lambda row: -row.share)
