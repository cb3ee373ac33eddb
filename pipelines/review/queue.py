"""The pairs that a review asks about, in their order, and who looks at which of them now."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from pathlib import PurePath
from threading import Lock
from typing import Any, Literal, NamedTuple

from maskmine.mining.evaluation.pair_metrics import Share
from maskmine.mining.evaluation.verdicts import PairId
from maskmine.mining.storage.query import query_cells
from maskmine.pipelines.audit.sample import draw_pairs
from maskmine.pipelines.dataset.finished_run import FinishedRun
from maskmine.pipelines.review.store import Store
from maskmine.schemas.errors import InputError
from maskmine.schemas.mask import Mask
from maskmine.schemas.rows import CaptionsRow, ImageRow, Pair, PairsRow, RegionsRow
from maskmine.schemas.sample import sample_key
from maskmine.schemas.settings import fingerprint

Order = Literal["uncertain", "random"]
HELD_S = 600.0
"""How long a pair is kept for the reviewer who looks at it."""

_SCORES = ("confidence", "evidence", "similarity")  # the first that some pair has says how sure a pair is
_SURE_MIDDLE = 0.5  # of a probability


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """A pair to judge: its place in the run, the caption with the noun at `[start:end]`, the mask, the image's file.

    `token` names it in addresses, and differs between runs.
    """

    token: str
    key: str
    part: int
    image_id: str
    noun: str
    caption: str
    start: int
    end: int
    mask: Mask
    path: str | None
    sha256: str | None

    @property
    def pair(self) -> PairId:
        """As verdicts know it."""
        return self.image_id, self.noun, self.mask.digest


@dataclass(frozen=True, slots=True)
class Progress:
    """How many of the pairs are judged, and how many of those that could be judged are right."""

    judged: int
    of: int
    right: Share


class _Place(NamedTuple):
    """The part, the row of the image there, and the number of the pair in the image."""

    part: int
    row: int
    number: int


def choose_items(finished: FinishedRun, *, order: Order, size: int, seed: int) -> list[Item]:
    """The pairs to judge in their order: `random` is the sample of `maskmine audit`, `uncertain` the least sure first.

    Raises InputError when the run has no pair, or when nothing says how sure its pairs are; IncompleteError when cells
    are missing.
    """
    if order == "random":
        places = [_Place(p.part, p.index, p.number) for p in draw_pairs(finished, size=size, seed=seed)]
    else:
        places = _most_uncertain(finished, size=size, seed=seed)
    if not places:
        raise InputError(f"{finished.folder.root}: has no pair to judge; see `maskmine errors {finished.folder.root}`")
    items: dict[_Place, Item] = {}
    for part, of_part in groupby(sorted(places), key=attrgetter("part")):
        items.update(_read_items(finished, part, list(of_part)))
    return list({items[place].token: items[place] for place in places}.values())


class Queue:
    """Hands out pairs: each to one reviewer at a time as long as there are others, and none twice once it is judged."""

    def __init__(self, items: Sequence[Item], store: Store, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.items = {item.token: item for item in items}
        self._pairs = {item.token: item.pair for item in items}
        self._store, self._clock = store, clock
        self._held: dict[str, tuple[str, float]] = {}  # by reviewer the token of the pair, and since when
        self._lock = Lock()

    def take(self, reviewer: str) -> Item | None:
        """The pair that a reviewer looks at, or else the next one; None when all are judged."""
        with self._lock:
            token, _ = self._held.get(reviewer, (None, 0.0))
            if token is None or self._is_judged(token):
                token = next(self._free(reviewer), None) or next(self._open(), None)
            return self._hold(reviewer, token) if token else None

    def after(self, item: Item, *, reviewer: str) -> Item | None:
        """The pair that is likely to come next for a reviewer; it is not kept for them."""
        with self._lock:
            return next((self.items[token] for token in self._free(reviewer) if token != item.token), None)

    def give_again(self, reviewer: str, pair: PairId) -> None:
        """Show a reviewer a pair once more, if it is one of these."""
        with self._lock:
            token = next((token for token, other in self._pairs.items() if other == pair), None)
            if token is not None:
                self._held.pop(reviewer, None)
                self._hold(reviewer, token)

    def looked_at_s(self, reviewer: str, item: Item) -> float | None:
        """Since when a reviewer has had the pair, in seconds."""
        token, since = self._held.get(reviewer, ("", 0.0))
        return round(self._clock() - since, 3) if token == item.token else None

    def progress(self) -> Progress:
        """Of all reviewers together."""
        rows = [row for pair in self._pairs.values() if (row := self._store.latest(pair))]
        sure = [row for row in rows if row.verdict != "cannot_say"]
        return Progress(len(rows), len(self._pairs), Share(sum(row.verdict == "right" for row in sure), len(sure)))

    def _hold(self, reviewer: str, token: str) -> Item:
        if self._held.get(reviewer, ("",))[0] != token:
            self._held[reviewer] = (token, self._clock())
        return self.items[token]

    def _is_judged(self, token: str) -> bool:
        return self._store.latest(self._pairs[token]) is not None

    def _open(self) -> Iterator[str]:
        return (token for token in self.items if not self._is_judged(token))

    def _free(self, reviewer: str) -> Iterator[str]:
        """The tokens of pairs that are not judged, and that nobody else looks at."""
        now = self._clock()
        taken = {token for other, (token, since) in self._held.items() if other != reviewer and now - since < HELD_S}
        return (token for token in self._open() if token not in taken)


def _most_uncertain(finished: FinishedRun, *, size: int, seed: int) -> list[_Place]:
    """The pairs whose score is nearest to where right and wrong are equally likely, or to the filter, or the median."""
    with query_cells(finished.paths(PairsRow)) as (connection, cells):

        def rows(query: str, **values: Any) -> list[Any]:
            numbered = """
                WITH numbered AS (
                    SELECT filename, file_row_number AS index, image_id, unnest(pairs) AS pair,
                        generate_subscripts(pairs, 1) - 1 AS number
                    FROM read_parquet($cells, filename = true, file_row_number = true)
                )"""
            found: list[Any] = connection.execute(f"{numbered} {query}", {"cells": cells, **values}).fetchall()
            return found

        # A score that some pair has; the cells of earlier format versions do not know all of them.
        rows("SELECT unnest(pair) FROM numbered LIMIT 0")
        known = {name for name, *_ in connection.description}
        score = next((n for n in _SCORES if n in known and rows(f"SELECT count(pair.{n}) FROM numbered")[0][0]), None)
        if score is None:
            raise InputError(f"{finished.folder.root}: nothing says how sure its pairs are; use --next random")

        # Where it says least.
        middle = _SURE_MIDDLE if score == "confidence" else finished.manifest.setting("pairs").get(f"min_{score}")
        if middle is None:
            middle = rows(f"SELECT median(pair.{score}) FROM numbered")[0][0]
        nearest = rows(
            f"SELECT filename, index, number FROM numbered WHERE pair.{score} IS NOT NULL ORDER BY"
            f" abs(pair.{score} - $middle), sha256($seed || ' ' || image_id || ' ' || number) LIMIT {size}",
            middle=middle,
            seed=str(seed),
        )
    return [_Place(int(PurePath(file).stem), index, number) for file, index, number in nearest]


def _read_items(finished: FinishedRun, part: int, places: Sequence[_Place]) -> Iterator[tuple[_Place, Item]]:
    """The pairs of a part as their cells have them, each cell read once."""
    pairs = finished.columns(part, PairsRow, ["image_id", "pairs"])
    captions = finished.columns(part, CaptionsRow, ["captions"])["captions"]
    regions = finished.columns(part, RegionsRow, ["sha256", "regions.list.element.mask"])
    paths = finished.columns(part, ImageRow, ["path"])["path"]
    run = [finished.folder.root, finished.manifest.fingerprint]
    for place in places:
        image_id = pairs["image_id"][place.row].as_py()
        pair = Pair(**pairs["pairs"][place.row][place.number].as_py())
        mask = Mask(**regions["regions"][place.row][pair.region]["mask"].as_py())
        yield (
            place,
            Item(
                token=fingerprint([*run, image_id, pair.noun, mask.digest])[:16],
                key=sample_key(image_id, place.number),
                part=part,
                image_id=image_id,
                noun=pair.noun,
                caption=captions[place.row][pair.caption].as_py(),
                start=pair.start,
                end=pair.end,
                mask=mask,
                path=paths[place.row].as_py(),
                sha256=regions["sha256"][place.row].as_py(),
            ),
        )
