"""The regions of an earlier run, for a run with other captions, or of an earlier version of this one: rows by image,
however the two runs were cut."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from maskmine.pipelines.run_folder.cells import Cells
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.schemas.columns import arrow_schema
from maskmine.schemas.rows import ChecksRow, EmbeddingsRow, ProposalsRow, RegionsRow
from maskmine.schemas.sample import cell_name
from maskmine.schemas.tables import from_table, to_table

RowsOf = Callable[[Sequence[str]], pa.Table]

_AT_ONCE = 16
_CELLS_KEPT = 2


@dataclass(frozen=True)
class ReusedRun:
    """A run whose proposals were made by the same settings, and whose embeddings too where they are not None.

    Both are the same cells in a run of an earlier version. The first `given` of its `parts` were cut by a source, those
    behind them by the hash of the image ids; the last `appended` ones were appended later. `manifest_sha256` names what
    it holds; it is empty for an earlier version of the run itself. `difference` says why its embeddings are others.
    `checks` are those by the verifier that is asked for, of pairs that may be others.
    """

    run: RunFolder
    proposals: Cells[Any]
    embeddings: Cells[Any] | None
    parts: int
    given: int
    manifest_sha256: str = ""
    difference: str = ""
    checks: Cells[ChecksRow] | None = None
    appended: int = 0

    def open_proposals(self) -> RowsOf:
        """A function from image ids to what this run has of them, as a table of `ProposalsRow`, in any order.

        A cell or two are in memory at a time, and the ids of the images in parts that a source cut or
        that were appended. Raises
        IncompleteError when a cell is gone, or is made again meanwhile.
        """
        return self._open(self.proposals, ProposalsRow)

    def open_embeddings(self) -> RowsOf:
        """As `open_proposals`, a table of `EmbeddingsRow`; there is none of any image where they are others."""
        if self.embeddings is None:
            return lambda image_ids: arrow_schema(EmbeddingsRow).empty_table()
        return self._open(self.embeddings, EmbeddingsRow)

    def open_checks(self) -> RowsOf | None:
        """As `open_proposals`, a table of `ChecksRow`; None where no verifier is asked for."""
        return None if self.checks is None else self._open(self.checks, ChecksRow)

    def _open(self, cells: Cells[Any], row_type: type) -> RowsOf:
        part_of, there = self.open_parts(), cells.done()
        schema = arrow_schema(row_type)

        @lru_cache(maxsize=_CELLS_KEPT)
        def cell(part: int) -> pa.Table:
            table = cells.read_table(part)
            return _split(table, row_type) if cells.row_type is RegionsRow else table.cast(schema)

        def rows_of(image_ids: Sequence[str]) -> pa.Table:
            wanted = pa.array(image_ids, pa.string())
            parts = sorted(there & {part for part in map(part_of, image_ids) if part is not None})
            found = (cell(part) for part in parts)
            tables = [table.filter(pc.is_in(table["image_id"], value_set=wanted)) for table in found]
            return pa.concat_tables(tables) if tables else schema.empty_table()

        return rows_of

    def open_parts(self) -> Callable[[str], int | None]:
        """A function from an image's id to the only part that can have it."""
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            cells = pool.map(self._image_ids, range(self.parts))
            listed: dict[str, int] = {}
            first: list[tuple[str, bytes]] = []
            for part, image_ids in enumerate(cells):
                if part < self.given or part >= self.parts - self.appended:
                    listed.update(dict.fromkeys(image_ids.to_pylist(), part))
                elif len(image_ids):
                    first.append(_sort_key(image_ids[0].as_py()))

        def part_of(image_id: str) -> int | None:
            if image_id in listed:
                return listed[image_id]
            after = bisect_right(first, _sort_key(image_id))
            return self.given + after - 1 if after else None

        return part_of

    def _image_ids(self, part: int) -> pa.ChunkedArray:
        return self.run.read_table("images", cell_name(part))["image_id"]


def _split(table: pa.Table, row_type: type) -> pa.Table:
    """One half of a cell of an earlier version."""
    rows = from_table(table, RegionsRow)
    return to_table([row.embeddings() for row in rows] if row_type is EmbeddingsRow else rows, row_type)


def _sort_key(image_id: str) -> tuple[str, bytes]:
    """The key that the plan sorts images by."""
    encoded = image_id.encode("utf-8", "surrogatepass")
    return hashlib.sha256(encoded).hexdigest()[:16], encoded
