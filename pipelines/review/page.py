"""The HTML of `maskmine review`: who judges, the pair with its buttons, the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from maskmine.pipelines.dataset.render import render as render_template
from maskmine.pipelines.review.pictures import Pictures
from maskmine.pipelines.review.queue import Item, Order, Progress
from maskmine.schemas.rows import Verdict, VerdictRow


@dataclass(frozen=True, slots=True)
class Button:
    """A verdict as the page offers it, and the keys that give it."""

    verdict: Verdict
    label: str
    hint: str
    keys: tuple[str, str]


BUTTONS = (
    Button("right", "Right", "the mask shows it", ("1", "r")),
    Button("wrong_noun", "Wrong noun", "it is something else, or cannot be seen", ("2", "w")),
    Button("bad_mask", "Bad mask", "of nothing, or of too little or too much", ("3", "m")),
    Button("cannot_say", "Cannot say", "it does not count", ("4", "c")),
)
LABELS = {button.verdict: button.label for button in BUTTONS}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What the page is about: the run, in which order its pairs come, and how far the review is."""

    run: str
    order: Order
    progress: Progress


def render_name(shown: Shown, *, fault: str = "", entered: str = "") -> str:
    """The page that asks who judges."""
    return _render(shown, reviewer="", fault=fault, entered=entered)


def render_pair(
    shown: Shown, item: Item, pictures: Pictures, *, reviewer: str, last: VerdictRow | None, ahead: Sequence[Item]
) -> str:
    """The page of a pair. `last` is the reviewer's last verdict; the pictures of `ahead` are fetched in advance."""
    caption = (item.caption[: item.start], item.caption[item.start : item.end], item.caption[item.end :])
    return _render(shown, reviewer=reviewer, item=item, pictures=pictures, caption=caption, last=last, ahead=ahead)


def render_end(shown: Shown, *, reviewer: str, last: VerdictRow | None) -> str:
    """The page after the last pair."""
    return _render(shown, reviewer=reviewer, last=last)


def render_fault(shown: Shown, *, reviewer: str, line: str) -> str:
    """The page of a request that was refused."""
    return _render(shown, reviewer=reviewer, fault=line)


def _render(shown: Shown, **values: object) -> str:
    defaults: dict[str, object] = dict.fromkeys(("item", "pictures", "caption", "last"))
    defaults |= {"fault": "", "entered": "", "ahead": (), "shown": shown, "buttons": BUTTONS, "labels": LABELS}
    return render_template("maskmine.pipelines.review", "review.html.j2", **{**defaults, **values})
