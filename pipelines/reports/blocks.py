"""The cells of a finished run in blocks of some parts: whoever counts over all parts has one block in memory.

    parts      0 1 2 … 63 │ 64 65 … 127 │ …         as many as have `_IMAGES` images, `_PARTS` at most
    a block    one table for each type of row, of the columns that are wanted alone

Of a part with more images a block has that part alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from maskmine.pipelines.dataset.finished_run import FinishedRun
from maskmine.schemas.columns import arrow_schema
from maskmine.schemas.errors import IncompleteError
from maskmine.schemas.rows import OriginRow, SampleRow

_IMAGES, _PARTS = 16_384, 64  # of a block: more parts cost memory, fewer time
_READ_AT_ONCE = 4  # parts: object stores are slow

Columns = Mapping[type, Sequence[str]]
"""The columns that are wanted of each type of row; one inside a list is called `pairs.list.element.region`."""
Block = Mapping[type, pa.Table]
"""The tables of a block by type of row, each with the rows of its parts in their order."""


def read_blocks(finished: FinishedRun, columns: Columns) -> Iterator[Block]:
    """The cells of all parts, of which each is read once. Raises IncompleteError when one is missing, broken, or of
    another part: an index by its column `shard`, other cells by their images, where these columns are wanted.

    Columns that an earlier format version does not have are null.
    """
    with ThreadPoolExecutor(_READ_AT_ONCE) as pool:
        for parts in finished.groups_of_parts(images=_IMAGES, parts=_PARTS):
            read = list(pool.map(partial(_read, finished, columns), parts))
            yield {row_type: pa.concat_tables([one[row_type] for one in read]) for row_type in columns}
            del read
            pa.default_memory_pool().release_unused()  # else what many small tables leave free adds up


def _read(finished: FinishedRun, columns: Columns, part: int) -> Block:
    block = {
        row_type: _wanted(finished.columns(part, row_type, names), row_type, names)
        for row_type, names in columns.items()
    }
    _refuse_misplaced(finished, part, block)
    return block


def _refuse_misplaced(finished: FinishedRun, part: int, block: Block) -> None:
    """Raises IncompleteError where cells are of another part, as where files changed places."""
    index = block.get(SampleRow)
    if index is not None and "shard" in index.column_names:
        name = finished.manifest.shards[part].name
        if pc.any(pc.not_equal(index["shard"], name)).as_py():
            raise IncompleteError(
                f"{finished.cell_path(part, SampleRow)}: is not the index of {name}; delete it and {finished.again}"
            )
    images = {
        row_type: table["image_id"]
        for row_type, table in block.items()
        if row_type not in (SampleRow, OriginRow) and "image_id" in table.column_names
    }
    each = list(images.values())
    if not all(one.equals(each[0]) for one in each):
        finished.refuse_mixed(part, {row_type: ids.to_pylist() for row_type, ids in images.items()})


def _wanted(table: pa.Table, row_type: type, names: Sequence[str]) -> pa.Table:
    """A table with the columns of these names in their order, without what its footer says."""
    for name in dict.fromkeys(name.partition(".")[0] for name in names):
        if name not in table.column_names:
            field = arrow_schema(row_type).field(name)
            table = table.append_column(field.with_nullable(True), pa.nulls(len(table), field.type))
    return table.select(list(dict.fromkeys(name.partition(".")[0] for name in names))).replace_schema_metadata(None)
