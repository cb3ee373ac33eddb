"""Which pairs a report shows: the most and the least similar ones, random ones, and those to look up.

They are chosen while blocks of parts go by; what is held of a pair is its key and its shard, and the chosen ones are
read at the end.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from maskmine.mining.storage.query import query_cells
from maskmine.mining.storage.tally import Growth
from maskmine.pipelines.dataset.finished_run import FinishedRun
from maskmine.pipelines.reports.figures import NounCounter
from maskmine.schemas.rows import SampleRow

_SIMILAR = {"best": "DESC", "worst": "ASC"}


@dataclass(frozen=True, slots=True)
class Chosen:
    """Samples to show: the most and the least similar pairs (one of each noun), a gallery, and those to look up."""

    best: tuple[SampleRow, ...]
    worst: tuple[SampleRow, ...]
    gallery: tuple[SampleRow, ...]
    search: tuple[SampleRow, ...]


class SampleChooser:
    """Chooses samples, which follow from the index tables alone; random ones by their keys' hash.

    For looking up: one of each noun, the commonest nouns first, then a second of each, as far as `search` goes.
    """

    def __init__(self, db: Any, nouns: NounCounter, *, pairs: int, gallery: int, search: int) -> None:
        self._db, self._nouns = db, nouns
        self._pairs, self._gallery, self._search = pairs, gallery, search
        self._turns, self._growth = search, Growth()
        for name in (*_SIMILAR, "gallery", "found"):
            db.execute(f"CREATE TEMP TABLE {name} (key VARCHAR, shard VARCHAR, noun VARCHAR, similarity DOUBLE)")

    def add(self) -> None:
        """Choose among the view `sample` of a block, whose nouns were counted."""
        for name, order in _SIMILAR.items():
            self._keep(
                name,
                "WHERE similarity IS NOT NULL QUALIFY row_number() OVER"
                f" (PARTITION BY noun ORDER BY similarity {order}, key) = 1"
                f" ORDER BY similarity {order}, key LIMIT {self._pairs}",
            )
        self._keep("gallery", f"ORDER BY sha256(key) LIMIT {self._gallery}")
        of_block = f"SELECT key, shard, noun, similarity FROM sample QUALIFY {_turn()} <= {self._turns}"
        (more,) = self._db.execute(f"INSERT INTO found {of_block}").fetchall()[0]
        if self._growth.is_due(more):
            self._drop_late_turns()

    def result(self, finished: FinishedRun) -> Chosen:
        """The samples, read from the indexes. Raises IncompleteError when one cannot be read."""
        chosen = self.places()
        rows = _rows(finished, {place for places in chosen.values() for place in places})
        return Chosen(**{name: tuple(rows[key] for key, _ in places) for name, places in chosen.items()})

    def places(self) -> dict[str, list[tuple[str, str]]]:
        """Key and shard of the samples of each field of `Chosen`, in their order."""
        orders = {"best": "similarity DESC, key", "worst": "similarity, key", "gallery": "sha256(key)"}
        chosen = {name: f"SELECT key, shard FROM {name} ORDER BY {order}" for name, order in orders.items()}
        self._nouns.sum_up()
        of_noun = f"SELECT key, shard, noun, n, {_turn()} AS turn FROM found JOIN counted USING (noun)"
        order = f"ORDER BY turn, n DESC, encode(noun), key LIMIT {self._search}"
        chosen["search"] = f"SELECT key, shard FROM ({of_noun}) {order}"
        return {name: self._db.execute(query).fetchall() for name, query in chosen.items()}

    def _keep(self, name: str, choice: str) -> None:
        """Choose among what a table has and the samples of the block."""
        columns = "key, shard, noun, similarity"
        both = f"(SELECT {columns} FROM {name} UNION ALL SELECT {columns} FROM sample)"
        self._db.execute(f"CREATE OR REPLACE TEMP TABLE {name} AS SELECT * FROM {both} {choice}")

    def _drop_late_turns(self) -> None:
        """Forget the samples that cannot be among those to look up: of each noun so many come before them."""
        self._nouns.sum_up()
        low, high = 1, max(1, self._turns)
        while low < high:
            middle = (low + high) // 2
            (found,) = self._db.execute(f"SELECT sum(least(n, {middle})) FROM counted").fetchall()[0]
            low, high = (low, middle) if found >= self._search else (middle + 1, high)
        self._turns = low
        kept = f"SELECT * FROM found QUALIFY {_turn()} <= {self._turns}"
        self._db.execute(f"CREATE OR REPLACE TEMP TABLE found AS {kept}")
        (rows,) = self._db.execute("SELECT count(*) FROM found").fetchall()[0]
        self._growth.left(rows)


def read_samples(db: Any, query: str, **parameters: Any) -> tuple[SampleRow, ...]:
    """The rows of the index that a query of DuckDB returns."""
    result = db.execute(query, parameters)
    names = [column[0] for column in result.description]
    rows = (dict(zip(names, values, strict=True)) for values in result.fetchall())
    boxes = ("box_xyxy", "crop_xyxy")
    return tuple(SampleRow(**{**row, **{name: tuple(row[name]) for name in boxes}}) for row in rows)


def _turn() -> str:
    """The place of a sample among those of its noun, from 1."""
    return "row_number() OVER (PARTITION BY noun ORDER BY sha256(key))"


def _rows(finished: FinishedRun, places: Iterable[tuple[str, str]]) -> dict[str, SampleRow]:
    """The rows of the index of these keys and shards, by their keys."""
    places = sorted(places)
    parts = sorted({int(shard.partition(".")[0]) for _, shard in places})
    paths = [finished.cell_path(part, SampleRow) for part in parts]
    with query_cells(paths) as (db, cells):
        query = "SELECT * FROM read_parquet($cells) WHERE key IN (SELECT unnest($keys))"
        rows = read_samples(db, query, cells=cells, keys=[key for key, _ in places])
    return {row.key: row for row in rows}
