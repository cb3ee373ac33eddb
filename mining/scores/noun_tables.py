"""What a run knows of its nouns, for the nouns of one part at a time: a million of them do not fit each worker.

Vocabulary and levels are copied to a temporary file, which is mapped into memory and has no name any more: its pages
belong to the system, which drops them when memory is short. What stays is what scores every pair: 1,000 competitors.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Generic, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from maskmine.mining.scores.features import Scorer, may_compete
from maskmine.mining.scores.scale import LevelScale
from maskmine.mining.storage.ownership import SCRATCH, owned_prefix
from maskmine.schemas.columns import arrow_schema
from maskmine.schemas.rows import LevelRow, VocabularyRow
from maskmine.schemas.tables import from_table

Value = TypeVar("Value")


@dataclass(frozen=True)
class NounTables:
    """Vocabulary and levels as tables of the same nouns in the same order, and a scorer that knows no noun yet."""

    vocabulary: pa.Table
    levels: pa.Table
    scorer: Scorer

    @classmethod
    def open(
        cls,
        scale: LevelScale,
        levels: Iterable[pa.Table],
        vocabulary: Iterable[pa.Table],
        *,
        among: tuple[Iterable[pa.Table], Iterable[pa.Table]] | None = None,
    ) -> NounTables:
        """From the row groups of both. `among` are those of the nouns among which the ones that compete are chosen,
        where they are not these. Raises ValueError where the tables are not of the same nouns."""
        stored_levels, stored = _on_disk(levels, LevelRow), _on_disk(vocabulary, VocabularyRow)
        if not stored["noun"].equals(stored_levels["noun"]):
            raise ValueError("levels and vocabulary are not of the same nouns")
        competitors = _competitors(*among) if among is not None else _competitors([stored_levels], [stored])
        return cls(stored, stored_levels, Scorer.open(scale, competitors))

    def of_nouns(self, nouns: pa.Array) -> tuple[dict[str, bytes], Scorer]:
        """The embeddings of some nouns, which may be given more than once, and a scorer of their pairs."""
        wanted = pc.is_in(self.vocabulary["noun"], value_set=pc.unique(nouns))
        rows = from_table(self.vocabulary.filter(wanted), VocabularyRow)
        scorer = self.scorer.with_nouns(from_table(self.levels.filter(wanted), LevelRow), rows)
        return {row.noun: row.embedding for row in rows if row.embedding is not None}, scorer


@dataclass(frozen=True)
class NounValues(Generic[Value]):
    """A value of each noun in one or several tables, for the nouns of one part at a time."""

    tables: Sequence[pa.Table]

    @classmethod
    def open(cls, tables: Iterable[Iterable[pa.Table]], row_type: type, columns: tuple[str, str]) -> NounValues[Value]:
        """From the row groups of tables, which have these columns of a row: the noun and the value."""
        return cls([_on_disk((group.select(columns) for group in one), row_type, columns) for one in tables])

    def of_nouns(self, nouns: pa.Array) -> Iterator[tuple[str, Value]]:
        """The values of some nouns, table by table; nouns may be given more than once."""
        wanted = pc.unique(nouns)
        for table in self.tables:
            found = table.filter(pc.is_in(table[0], value_set=wanted))
            yield from zip(found[0].to_pylist(), found[1].to_pylist(), strict=True)


def _competitors(
    levels: Iterable[pa.Table], vocabulary: Iterable[pa.Table]
) -> Iterator[tuple[LevelRow, VocabularyRow]]:
    """The rows of nouns that may compete. They are few: images of the sample say them."""
    chosen = [row for table in levels for row in from_table(table.filter(may_compete(table)), LevelRow)]
    nouns = pa.array([level.noun for level in chosen], pa.string())
    known = (table.filter(pc.is_in(table["noun"], value_set=nouns)) for table in vocabulary)
    rows = {row.noun: row for table in known for row in from_table(table, VocabularyRow)}
    if len(rows) != len(chosen):
        raise ValueError("levels and vocabulary are not of the same nouns")
    return ((level, rows[level.noun]) for level in chosen)


def _on_disk(tables: Iterable[pa.Table], row_type: type, columns: Sequence[str] | None = None) -> pa.Table:
    """One table of several of these rows, or of some of their columns, mapped from a temporary file."""
    left = iter(tables)
    whole = arrow_schema(row_type).empty_table()
    first = next(left, whole.select(columns) if columns else whole)
    with tempfile.NamedTemporaryFile(prefix=owned_prefix(SCRATCH)) as file:
        with pa.ipc.new_file(file, first.schema) as writer:
            for table in chain([first], left):
                writer.write_table(table)
        file.flush()
        with pa.memory_map(file.name) as mapped:
            return pa.ipc.open_file(mapped).read_all()
