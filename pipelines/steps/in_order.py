"""Nouns looked up in stored tables of nouns, each gone through once: millions of them do not fit a process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from maskmine.pipelines.run_folder.cells import Cells
from maskmine.schemas.rows import LevelRow, VocabularyRow
from maskmine.schemas.tables import from_table


def known_embeddings(
    vocabularies: Sequence[Cells[VocabularyRow]],
) -> Callable[[Sequence[str]], Mapping[str, bytes]]:
    """A function from nouns to the embeddings that these vocabularies have of them, the last one first; they are asked
    for in their order, see `look_up`."""
    columns = ["noun", "embedding"]
    opened = [look_up(cells.read_groups(columns=columns)) for cells in vocabularies]

    def find(nouns: Sequence[str]) -> dict[str, bytes]:
        known: dict[str, bytes] = {}
        for find_in in opened:
            for table in find_in(nouns):
                rows = zip(*(table[name].to_pylist() for name in columns), strict=True)
                known |= {noun: embedding for noun, embedding in rows if embedding is not None}
        return known

    return find


def known_levels(levels: Cells[LevelRow]) -> Callable[[Sequence[str]], Mapping[str, LevelRow]]:
    """The same of levels and their rows."""
    find_in = look_up(levels.read_groups())
    return lambda nouns: {row.noun: row for table in find_in(nouns) for row in from_table(table, LevelRow)}


def look_up(groups: Iterable[pa.Table]) -> Callable[[Sequence[str]], Iterator[pa.Table]]:
    """A function from nouns to their rows in a table whose row groups come in the order of the nouns' UTF-8 bytes.

    Each call asks for nouns that follow those of the call before, in this order, so no row group is read twice, and one
    is in memory. Rows that are out of order may be passed by.
    """
    left = iter(groups)
    group = next(left, None)

    def find(nouns: Sequence[str]) -> Iterator[pa.Table]:
        nonlocal group
        wanted, last = pa.array(nouns, pa.string()), max((noun.encode() for noun in nouns), default=b"")
        while group is not None:
            yield group.filter(pc.is_in(group["noun"], value_set=wanted))
            if len(group) and group["noun"][-1].as_py().encode() > last:
                return
            group = next(left, None)

    return find
