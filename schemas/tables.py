"""Rows to Arrow and back: the Arrow schema is derived from the row type, so there is one definition of what flows."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import IO, Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from maskmine.schemas import columns
from maskmine.schemas.columns import columns_of, field_hints, rows_of, without_none
from maskmine.schemas.errors import IncompleteError
from maskmine.schemas.sample import KEY_PATTERN
from maskmine.schemas.seal import check_and_open, open_sealed, own_metadata, write_sealed
from maskmine.schemas.shard_entries import ShardEntry

Row = TypeVar("Row")

MAX_GROUP_BYTES = 64 << 20
"""Bytes of text and binary values in a row group: a reader of a cell has so much in memory at a time."""
MAX_GROUP_ROWS = 4096
_LARGE_GROUP_BYTES = 4 << 20
PIECE_ROWS = 16
"""Rows that are made a table at a time; divides MAX_GROUP_ROWS."""

arrow_schema = columns.arrow_schema
"""The schema of the tables below; see `schemas/columns.py`."""
_DECODED_BYTES = 1 << 20  # of columns that are made rows at a time


def to_table(rows: Iterable[Any], row_type: Any) -> pa.Table:
    """Rows as an Arrow table, one row each, in order. What rows of a subclass have beyond `row_type` is left out."""
    return pa.Table.from_arrays(columns_of(list(rows), row_type), schema=arrow_schema(row_type))


def from_table(table: pa.Table, row_type: type[Row]) -> list[Row]:
    """The rows of a table that `to_table` made. Raises ValueError when its columns are others.

    Last columns that an earlier version of the row did not have are filled with the fields' defaults.
    """
    return list(from_pieces(table, row_type))


def from_pieces(table: pa.Table, row_type: type[Row]) -> Iterator[Row]:
    """`from_table`, a few rows in memory at a time."""
    row: Any = row_type
    if not (table.schema.equals(arrow_schema(row)) or _holds(table.schema, row)):
        raise ValueError(f"the table does not hold {row_type.__name__} rows: {table.schema.names}")
    return _decoded(table, row_type)


def _decoded(table: pa.Table, row_type: type[Row]) -> Iterator[Row]:
    rows = max(PIECE_ROWS, _DECODED_BYTES * len(table) // max(1, table.nbytes))
    for batch in table.to_batches(max_chunksize=rows):
        yield from rows_of(batch.columns, row_type)


def rows_in_order(table: pa.Table, order: Sequence[int]) -> Iterator[pa.Table]:
    """The rows of these numbers, in tables of PIECE_ROWS.

    Row by row, as Arrow's `take` joins all that a column holds, of which lists of more than 2 GiB do not fit.
    """
    return in_pieces(table.slice(row, 1) for row in order)


def in_pieces(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Tables of one row each as tables of PIECE_ROWS."""
    iterator = iter(tables)
    return (pa.concat_tables(piece) for piece in iter(lambda: list(islice(iterator, PIECE_ROWS)), []))


def row_groups(
    rows: Iterable[Any], row_type: Any, *, max_bytes: int = MAX_GROUP_BYTES, max_rows: int = MAX_GROUP_ROWS
) -> Iterator[pa.Table]:
    """Rows as tables of at most `max_rows` rows; of those that pass `max_bytes`, only the last `PIECE_ROWS` do.

    Arrow reads no row group whose bytes in one column pass 2 GiB, and a table of any size by its row groups.
    """
    iterator = iter(rows)
    pieces = (to_table(piece, row_type) for piece in iter(lambda: list(islice(iterator, PIECE_ROWS)), []))
    return in_groups(pieces, max_bytes=max_bytes, max_rows=max_rows)


def write_parquet(
    table: pa.Table,
    file: IO[bytes],
    *,
    metadata: Mapping[str, str] | None = None,
    max_bytes: int = MAX_GROUP_BYTES,
) -> None:
    """Write sealed Parquet whose bytes depend on the content alone; `metadata` goes into the file's footer.

    Row groups are those of `row_groups`.
    """
    pieces = (table.slice(start, PIECE_ROWS) for start in range(0, len(table), PIECE_ROWS))
    write_sealed(in_groups(pieces, max_bytes=max_bytes), file, table.schema, metadata=metadata)


def write_parquet_pieces(
    pieces: Iterable[pa.Table],
    file: IO[bytes],
    row_type: Any,
    *,
    metadata: Mapping[str, str] | None = None,
    max_bytes: int = MAX_GROUP_BYTES,
) -> None:
    """`write_parquet` of tables of PIECE_ROWS rows as they come."""
    write_sealed(in_groups(pieces, max_bytes=max_bytes), file, arrow_schema(row_type), metadata=metadata)


def write_parquet_rows(
    rows: Iterable[Any],
    file: IO[bytes],
    row_type: Any,
    *,
    metadata: Mapping[str, str] | None = None,
    max_bytes: int = MAX_GROUP_BYTES,
) -> None:
    """`write_parquet` of rows as they come: one row group is in memory at a time."""
    write_sealed(row_groups(rows, row_type, max_bytes=max_bytes), file, arrow_schema(row_type), metadata=metadata)


def read_blocks(parquet: pq.ParquetFile, *, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """The row groups of a Parquet file, one after the other, or some columns of them; damage is found as in
    `open_sealed`, which opened it."""
    for number in range(parquet.num_row_groups):
        yield _own(_read_group(parquet, number, columns))


def read_parquet(file: IO[bytes]) -> pa.Table:
    """Read a whole Parquet file, every byte of it checked; its footer's metadata is in `table.schema.metadata`.

    Raises DamagedFileError, or ArrowInvalid and OSError as Arrow does.
    """
    _, parquet = check_and_open(file)
    groups = [_read_group(parquet, number) for number in range(parquet.num_row_groups)]
    return _own(pa.concat_tables(groups) if groups else parquet.read())


def read_columns(file: IO[bytes], names: Sequence[str]) -> pa.Table:
    """Some columns of a Parquet file, of which the others are not read; those that it does not have are left out.

    Damage is found as in `open_sealed`.
    """
    parquet = open_sealed(file)
    size_bytes = sum(parquet.metadata.row_group(group).total_byte_size for group in range(parquet.num_row_groups))
    return parquet.read(columns=list(names), use_threads=size_bytes > _LARGE_GROUP_BYTES)


def read_verified(content: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """A Parquet file whose bytes were checked as a whole, or those of some columns that it has, without its metadata.

    Nothing of them is checked again, which takes most of the time that a small file needs. Raises as Arrow does.
    """
    parquet = pq.ParquetFile(pa.BufferReader(content), pre_buffer=False)
    wanted = None if columns is None else list(columns)
    return parquet.read(columns=wanted, use_threads=len(content) > _LARGE_GROUP_BYTES).replace_schema_metadata(None)


def _read_group(parquet: pq.ParquetFile, number: int, columns: Sequence[str] | None = None) -> pa.Table:
    """A row group; a small one by this thread alone, as others that wait for a busy core cost more than they save."""
    is_large = parquet.metadata.row_group(number).total_byte_size > _LARGE_GROUP_BYTES
    return parquet.read_row_group(number, columns=columns and list(columns), use_threads=is_large)


def with_later_columns(table: pa.Table, row_type: Any) -> pa.Table:
    """A table of an earlier version of a row, with the last columns that it does not have, all null."""
    for field in list(arrow_schema(row_type))[table.num_columns :]:
        table = table.append_column(field, pa.nulls(len(table), field.type))
    return table


def in_groups(
    pieces: Iterable[pa.Table], *, max_bytes: int = MAX_GROUP_BYTES, max_rows: int = MAX_GROUP_ROWS
) -> Iterator[pa.Table]:
    """Tables of PIECE_ROWS rows as row groups, see `row_groups`."""
    held: list[pa.Table] = []
    size_bytes = rows = 0
    for piece in pieces:
        held.append(piece)
        size_bytes, rows = size_bytes + _content_bytes(piece), rows + len(piece)
        if size_bytes >= max_bytes or rows >= max_rows:
            yield pa.concat_tables(held).combine_chunks()
            held, size_bytes, rows = [], 0, 0
    if held:
        yield pa.concat_tables(held).combine_chunks()


def _content_bytes(table: pa.Table) -> int:
    """Bytes of all text and binary values, which do not depend on how a table lies in memory."""
    return sum(_value_bytes(chunk) for column in table.columns for chunk in column.chunks)


def _value_bytes(values: pa.Array) -> int:
    if pa.types.is_list(values.type):
        return _value_bytes(values.flatten())
    if pa.types.is_struct(values.type):
        return sum(map(_value_bytes, values.flatten()))
    if pa.types.is_string(values.type) or pa.types.is_binary(values.type):
        return pc.sum(pc.binary_length(values)).as_py() or 0
    return 0


def _own(table: pa.Table) -> pa.Table:
    return table.replace_schema_metadata(own_metadata(table.schema.metadata))


def _holds(fields: Iterable[pa.Field], row_type: Any) -> bool:
    """Whether Arrow fields are those of a dataclass, of which last ones with a default may be missing, at any depth."""
    found, wanted = list(fields), list(arrow_schema(row_type))
    with_default = [field.default is not dataclasses.MISSING for field in dataclasses.fields(row_type)]
    if len(found) > len(wanted) or not all(with_default[len(found) :]):
        return False
    return all(
        a.name == b.name and a.nullable == b.nullable and (a.type.equals(b.type) or _older(a.type, hint))
        for a, b, (_, hint) in zip(found, wanted, field_hints(row_type), strict=False)
    )


def _older(found: pa.DataType, hint: Any) -> bool:
    """Whether a type is that of an earlier version of a dataclass, or a list of such."""
    inner, _ = without_none(hint)
    if typing.get_origin(inner) is tuple and pa.types.is_list(found):
        return _older(found.value_type, typing.get_args(inner)[0])
    return dataclasses.is_dataclass(inner) and pa.types.is_struct(found) and _holds(found, inner)


INDEX_COLUMNS = ("key", "shard", "offset", "size_bytes")
"""The columns of an index that `check_index` looks at."""


def check_index(table: pa.Table, *, shard: ShardEntry, path: str) -> None:
    """Whether an index names samples of its own shard alone, by keys of `sample_key`, within its bytes.

    A key becomes the name of a file, so one that leads elsewhere is no key. Raises IncompleteError.
    """
    end = pc.subtract(shard.size_bytes, table["size_bytes"])
    sound = (
        pc.match_substring_regex(table["key"], KEY_PATTERN),
        pc.equal(table["shard"], shard.name),
        pc.and_(pc.greater_equal(table["offset"], 0), pc.less_equal(table["offset"], end)),
        pc.and_(pc.greater(table["size_bytes"], 0), pc.less_equal(table["size_bytes"], shard.size_bytes)),
    )
    if not all(pc.all(each, min_count=0).as_py() for each in sound):  # of an empty shard, too
        raise IncompleteError(
            f"{path}: names samples that no run writes to {shard.name}; do not trust this folder, or delete the file "
            "and run `maskmine mine` again, which writes it again"
        )
