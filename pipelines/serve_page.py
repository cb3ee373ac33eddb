"""The page of `maskmine serve` as HTML: the form with what was entered; a map with its legend, or what was wrong."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from pipelines.serve_form import Entered, Fault
from pipelines.serving import SHOWN_FILES, Answer, Choice, Served
from tuning.segmentation_overlay import class_colour, class_shares

MOST_ROWS = 200
"""So many classes at most stand in the legend, those with the most pixels; the JSON has all."""

_MOST_NAMED = 6
_LINKS = {".labels.png": "Label map (PNG)", ".overlay.png": "Overlay (PNG)", ".json": "Figures (JSON)"}


@dataclass(frozen=True, slots=True)
class Row:
    """A class in the legend: its colour in the map (`#d55e00`), its confidence and its share of the picture, 0 to 1."""

    name: str
    colour: str
    confidence: float | None
    share: float

    @property
    def covers(self) -> str:
        """The share for people."""
        return "not found" if not self.share else f"{self.share:.1%}" if self.share >= 0.0005 else "< 0.1%"


@dataclass(frozen=True, slots=True)
class Shown:
    """A map as the page shows it. `alt` says in words what it shows."""

    name: str
    folder: str
    photo: str
    map: str
    alt: str
    width_px: int
    height_px: int
    rows: tuple[Row, ...]
    more_rows: int
    found: int
    classes: int
    blank: float
    kept: int
    proposed: int
    took_s: float
    waited_s: float
    links: tuple[tuple[str, str], ...]


def show(answer: Answer, *, name: str, waited_s: float) -> Shown:
    """What the page says of an answer; `name` is that of the picture, `waited_s` the time until it was its turn."""
    rows = sorted(_rows(answer), key=lambda row: -row.share)
    present = [row for row in rows if row.share]
    said = [f"{row.name} {row.covers}" for row in present[:_MOST_NAMED]]
    said += [f"{len(present) - _MOST_NAMED} more"] * (len(present) > _MOST_NAMED)
    height_px, width_px = answer.size_px
    return Shown(
        name=name,
        folder=f"results/{answer.key}",
        photo=SHOWN_FILES[1],
        map=SHOWN_FILES[0],
        alt=f"Map of {name}: {', '.join(said) or 'no class was found'}",
        width_px=width_px,
        height_px=height_px,
        rows=tuple(rows[:MOST_ROWS]),
        more_rows=max(0, len(rows) - MOST_ROWS),
        found=len(present),
        classes=len(rows),
        blank=1 - sum(row.share for row in rows),
        kept=len(answer.found.regions),
        proposed=answer.found.proposed,
        took_s=answer.took_s,
        waited_s=waited_s,
        links=tuple((file, _LINKS[ending]) for file in answer.files for ending in _LINKS if file.endswith(ending)),
    )


def render(
    served: Served,
    entered: Entered,
    *,
    faults: Sequence[Fault] = (),
    notes: Sequence[str] = (),
    shown: Shown | None = None,
    choice: Choice | None = None,
) -> str:
    """The whole page. Whatever a person entered is text in it."""
    return _template().render(
        served=served,
        settings=served.settings,
        entered=entered,
        faults=faults,
        faulty={fault.field for fault in faults},
        notes=notes,
        shown=shown,
        choice=choice,
        any_tuned=any("tuned" in offer.towers for offer in served.offers.values()),
        any_own=any("ensemble" in offer.rules for offer in served.offers.values()),
    )


def _rows(answer: Answer) -> Iterator[Row]:
    for one, confidence in zip(class_shares(answer.found), answer.found.scores, strict=True):
        red, green, blue = class_colour(one.number)
        yield Row(one.name, f"#{red:02x}{green:02x}{blue:02x}", confidence, one.share)


@cache
def _template() -> Template:
    loader = PackageLoader("pipelines", "data")
    environment = Environment(
        loader=loader, undefined=StrictUndefined, autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("serve.html.j2")
