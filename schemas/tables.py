"""Rows to Arrow and back: the Arrow schema is derived from the row type, so there is one definition of what flows."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Iterable, Mapping
from typing import IO, Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

Row = TypeVar("Row")

_SCALARS: dict[Any, pa.DataType] = {
    str: pa.string(),
    bytes: pa.binary(),
    int: pa.int64(),
    float: pa.float64(),
    bool: pa.bool_(),
}


@functools.cache
def arrow_schema(row_type: Any) -> pa.Schema:
    """The Arrow schema of a dataclass of scalars, optionals, tuples and further dataclasses.

    `tuple[X, ...]` is a list, `tuple[X, X, X]` a list of fixed length, `X | None` nullable, a dataclass a struct.
    Raises TypeError for anything else.
    """
    return pa.schema(_fields(row_type))


def to_table(rows: Iterable[Any], row_type: Any) -> pa.Table:
    """Rows as an Arrow table, one row each, in order."""
    return pa.Table.from_pylist([_plain(row) for row in rows], schema=arrow_schema(row_type))


def from_table(table: pa.Table, row_type: type[Row]) -> list[Row]:
    """The rows of a table that `to_table` made. Raises ValueError when its columns are others.

    Last columns that an earlier version of the row did not have are filled with the fields' defaults.
    """
    table = _with_defaults(table, typing.cast(Any, row_type))
    if not table.schema.equals(arrow_schema(typing.cast(Any, row_type)), check_metadata=False):
        raise ValueError(f"the table does not hold {row_type.__name__} rows: {table.schema.names}")
    build: Any = _builder(typing.cast(Any, row_type))
    return [build(values) for values in table.to_pylist()]


def write_parquet(table: pa.Table, file: IO[bytes], *, metadata: Mapping[str, str] | None = None) -> None:
    """Write Parquet whose bytes depend on the content alone; `metadata` goes into the file's footer."""
    table = table.replace_schema_metadata(dict(sorted((metadata or {}).items())))
    pq.write_table(table, file, compression="zstd", row_group_size=4096)


def read_parquet(file: IO[bytes]) -> pa.Table:
    """Read a whole Parquet file; its footer's metadata is in `table.schema.metadata`."""
    return pq.ParquetFile(file).read()


def _with_defaults(table: pa.Table, row_type: Any) -> pa.Table:
    schema = arrow_schema(row_type)
    for field in dataclasses.fields(row_type)[table.num_columns :]:
        if field.default is not dataclasses.MISSING:
            values = pa.array([_plain(field.default)] * len(table), schema.field(field.name).type)
            table = table.append_column(schema.field(field.name), values)
    return table


def _fields(row_type: type) -> list[pa.Field]:
    hints = typing.get_type_hints(row_type)
    return [_field(field.name, hints[field.name]) for field in dataclasses.fields(row_type)]


def _field(name: str, hint: Any) -> pa.Field:
    inner, nullable = _without_none(hint)
    return pa.field(name, _arrow_type(inner), nullable=nullable)


def _arrow_type(hint: Any) -> pa.DataType:
    if hint in _SCALARS:
        return _SCALARS[hint]
    if typing.get_origin(hint) is typing.Literal:
        return pa.string()
    if dataclasses.is_dataclass(hint):
        return pa.struct(_fields(typing.cast(type, hint)))
    if typing.get_origin(hint) is tuple:
        inner, *rest = typing.get_args(hint)
        item = _field("item", inner)
        return pa.list_(item) if rest == [Ellipsis] else pa.list_(item, 1 + len(rest))
    raise TypeError(f"no Arrow type for {hint!r}")


def _without_none(hint: Any) -> tuple[Any, bool]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        members = [m for m in typing.get_args(hint) if m is not type(None)]
        if len(members) == 1:
            return members[0], True
    return hint, False


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


@functools.cache
def _builder(hint: Any) -> Any:
    """A function from plain Python (dict, list, scalar) to what `hint` says."""
    inner, nullable = _without_none(hint)
    if nullable:
        build_inner = _builder(inner)
        return lambda value: None if value is None else build_inner(value)
    if dataclasses.is_dataclass(inner):
        hints = typing.get_type_hints(inner)
        builders = [(f.name, _builder(hints[f.name])) for f in dataclasses.fields(inner)]
        make: Any = inner
        return lambda value: make(*[build(value[name]) for name, build in builders])
    if typing.get_origin(inner) is tuple:
        build_item = _builder(typing.get_args(inner)[0])
        return lambda value: tuple(build_item(item) for item in value)
    return lambda value: value
