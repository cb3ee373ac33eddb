"""Sorting more rows than memory holds, by DuckDB, whose sort spills to temporary files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain

import pyarrow as pa
import pyarrow.compute as pc

# DuckDB gives up below a limit that grows slowly with the rows: 256 MB serve for 20 million, 512 MB for 100 million.
_MEMORY_LIMIT = "512MB"
_BATCH_ROWS = 10_000  # of a sorted table; larger ones fill memory, smaller ones cost time
_SPILLED = pa.ipc.IpcWriteOptions(compression="zstd")


@contextmanager
def spilling(path: str, *, schema: pa.Schema) -> Iterator[pa.ipc.RecordBatchStreamWriter]:
    """A temporary file that tables are written to."""
    with pa.OSFile(path, "wb") as file, pa.ipc.new_stream(file, schema, options=_SPILLED) as writer:
        yield writer


def spill(tables: Iterable[pa.Table], path: str, *, schema: pa.Schema) -> None:
    """Write tables to a temporary file."""
    with spilling(path, schema=schema) as writer:
        for table in tables:
            writer.write_table(table)


def read_spilled(path: str) -> Iterator[pa.Table]:
    """The tables of a temporary file, one at a time."""
    with pa.OSFile(path, "rb") as file, pa.ipc.open_stream(file) as reader:
        yield from (pa.Table.from_batches([batch]) for batch in reader)


def sorted_tables(tables: Iterable[pa.Table], scratch: str, *, by: Sequence[str]) -> Iterator[pa.Table]:
    """The rows of tables in ascending order of some columns, in tables of `_BATCH_ROWS`.

    DuckDB's temporary files lie in the folder `scratch`. All tables are read before the first row is yielded; what
    reading them raises is raised here.
    """
    import duckdb

    tables = iter(tables)
    first = next(tables, None)
    if first is None:
        return
    errors: list[BaseException] = []
    reader = pa.RecordBatchReader.from_batches(first.schema, _batches(chain([first], tables), errors))
    config: dict[str, str | bool | int | float | list[str]] = {
        "memory_limit": _MEMORY_LIMIT,
        "temp_directory": scratch,
        "threads": 1,
        "preserve_insertion_order": False,
    }
    columns = ", ".join(f'"{name}"' for name in by)
    with duckdb.connect(config=config) as connection:
        connection.register("rows", reader)
        try:
            batches = connection.sql(f"SELECT * FROM rows ORDER BY {columns}").to_arrow_reader(_BATCH_ROWS)
            # DuckDB forgets that columns and the items of lists are never null, and what these items are called.
            yield from (pa.Table.from_batches([batch]).cast(first.schema) for batch in batches)
        except duckdb.Error:
            if errors:
                raise errors[0] from None
            raise


def whole_groups(tables: Iterable[pa.Table], *, key: str) -> Iterator[pa.Table]:
    """The rows of sorted tables, cut so that all rows of one key are in one table."""
    held: pa.Table | None = None
    for table in tables:
        table = table if held is None else pa.concat_tables([held, table])
        end = pc.index(table[key], table[key][-1]).as_py()
        held = table.slice(end)
        if end:
            yield table.slice(0, end)
    if held is not None:
        yield held


def _batches(tables: Iterable[pa.Table], errors: list[BaseException]) -> Iterator[pa.RecordBatch]:
    """The batches of tables; an exception is kept, because DuckDB passes on its text alone."""
    try:
        for table in tables:
            yield from table.to_batches()
    except BaseException as error:
        errors.append(error)
        raise
