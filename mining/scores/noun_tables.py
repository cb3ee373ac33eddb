"""What a run knows of its nouns, for the nouns of one part at a time: a million of them do not fit each worker.

Vocabulary and levels are copied to a temporary file, which is mapped into memory and has no name any more: its pages
belong to the system, which drops them when memory is short. What stays is what scores every pair: 1,000 competitors.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from maskmine.mining.scores.features import Scorer
from maskmine.mining.scores.scale import LevelScale
from maskmine.mining.storage.ownership import SCRATCH, owned_prefix
from maskmine.schemas.rows import LevelRow, VocabularyRow
from maskmine.schemas.tables import from_pieces, from_table


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
        competitors: Iterable[tuple[LevelRow, VocabularyRow]] | None = None,
    ) -> NounTables:
        """From the row groups of both. `competitors` are the nouns among which those that compete are chosen, where
        they are not these. Raises ValueError where the tables are not of the same nouns."""
        stored_levels, stored = _on_disk(levels), _on_disk(vocabulary)
        if not stored["noun"].equals(stored_levels["noun"]):
            raise ValueError("levels and vocabulary are not of the same nouns")
        if competitors is None:
            competitors = zip(from_pieces(stored_levels, LevelRow), from_pieces(stored, VocabularyRow), strict=True)
        return cls(stored, stored_levels, Scorer.open(scale, competitors))

    def of_nouns(self, nouns: pa.Array) -> tuple[dict[str, bytes], Scorer]:
        """The embeddings of some nouns, which may be given more than once, and a scorer of their pairs."""
        wanted = pc.is_in(self.vocabulary["noun"], value_set=pc.unique(nouns))
        rows = from_table(self.vocabulary.filter(wanted), VocabularyRow)
        scorer = self.scorer.with_nouns(from_table(self.levels.filter(wanted), LevelRow), rows)
        return {row.noun: row.embedding for row in rows if row.embedding is not None}, scorer


def _on_disk(tables: Iterable[pa.Table]) -> pa.Table:
    """One table of several, mapped from a temporary file."""
    with tempfile.NamedTemporaryFile(prefix=owned_prefix(SCRATCH)) as file:
        writer = None
        for table in tables:
            writer = writer or pa.ipc.new_file(file, table.schema)
            writer.write_table(table)
        if writer is None:
            raise ValueError("no tables")
        writer.close()
        file.flush()
        with pa.memory_map(file.name) as mapped:
            return pa.ipc.open_file(mapped).read_all()
