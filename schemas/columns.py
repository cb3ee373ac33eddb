"""Rows to Arrow's columns and back, a column at a time: Arrow makes and reads columns many times faster than rows."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Sequence
from itertools import accumulate, chain
from operator import attrgetter
from typing import Any

import pyarrow as pa

# Arrow types of the scalars that rows may have.
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


def columns_of(rows: Sequence[Any], row_type: Any) -> list[pa.Array | pa.ChunkedArray]:
    """The columns of rows, in the order of the schema; what rows of a subclass have beyond `row_type` is left out."""
    return [
        _array(values, hint)
        for values, (_, hint) in zip(_field_values(rows, row_type), field_hints(row_type), strict=True)
    ]


def rows_of(columns: Sequence[pa.Array], row_type: Any) -> list[Any]:
    """The rows whose first fields have these columns, of which there is one; the others have their defaults."""
    fields = field_hints(row_type)[: len(columns)]
    values = [_values(column, hint) for column, (_, hint) in zip(columns, fields, strict=True)]
    if not _takes_keywords_alone(row_type):
        return list(map(row_type, *values))
    names = [name for name, _ in fields]
    return [row_type(**dict(zip(names, each, strict=True))) for each in zip(*values, strict=True)]


@functools.cache
def field_hints(row_type: Any) -> tuple[tuple[str, Any], ...]:
    """The names and types of the fields of a dataclass."""
    hints = typing.get_type_hints(row_type)
    return tuple((field.name, hints[field.name]) for field in dataclasses.fields(row_type))


@functools.cache
def without_none(hint: Any) -> tuple[Any, bool]:
    """`X` and True of `X | None`; any other type and False."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        members = [m for m in typing.get_args(hint) if m is not type(None)]
        if len(members) == 1:
            return members[0], True
    return hint, False


def _array(values: Sequence[Any], hint: Any) -> pa.Array | pa.ChunkedArray:
    """Values of a type as an array; in chunks where their text is too long for one."""
    inner, _ = without_none(hint)
    arrow_type = _arrow_type(inner)
    if inner in _SCALARS or typing.get_origin(inner) is typing.Literal:
        return pa.array(values, arrow_type)
    whole = None
    if not any(value is None for value in values):
        whole = _structs(values, inner, arrow_type) if dataclasses.is_dataclass(inner) else _lists(values, inner)
    return pa.array([_plain(value) for value in values], arrow_type) if whole is None else whole


def _structs(rows: Sequence[Any], row_type: Any, arrow_type: pa.DataType) -> pa.Array | None:
    """Rows as structs; None where the text of a column is too long for one array."""
    columns = columns_of(rows, row_type)
    if any(isinstance(column, pa.ChunkedArray) for column in columns):
        return None
    return pa.StructArray.from_arrays(columns, fields=list(arrow_type))


def _lists(values: Sequence[Any], hint: Any) -> pa.Array | None:
    """Tuples as lists; None as in `_structs`."""
    items, arrow_type = _array([*chain.from_iterable(values)], typing.get_args(hint)[0]), _arrow_type(hint)
    if isinstance(items, pa.ChunkedArray):
        return None
    if pa.types.is_fixed_size_list(arrow_type):
        return pa.FixedSizeListArray.from_arrays(items, type=arrow_type)
    ends = pa.array([0, *accumulate(map(len, values))], pa.int32())
    return pa.ListArray.from_arrays(ends, items, type=arrow_type)


def _field_values(rows: Sequence[Any], row_type: Any) -> list[Sequence[Any]]:
    """The values of each field."""
    names = [name for name, _ in field_hints(row_type)]
    if not rows:
        return [() for _ in names]
    if len(names) == 1:
        return [[*map(attrgetter(*names), rows)]]
    return [*zip(*map(attrgetter(*names), rows), strict=True)]


def _values(array: pa.Array, hint: Any) -> Sequence[Any]:
    """The values of an array, of which each is what `hint` says."""
    inner, _ = without_none(hint)
    is_row = dataclasses.is_dataclass(inner)
    if not is_row and typing.get_origin(inner) is not tuple:
        return list(array.to_pylist())
    if array.null_count:
        there = iter(_values(array.drop_null(), hint))
        return [next(there) if is_there else None for is_there in array.is_valid().to_pylist()]
    if is_row:
        return rows_of(array.flatten(), typing.cast(Any, inner))
    items = _values(array.flatten(), typing.get_args(inner)[0])
    if pa.types.is_fixed_size_list(array.type):
        each = iter(items)
        return [*zip(*[each] * array.type.list_size, strict=True)]
    ends = [*accumulate(array.value_lengths().to_pylist())]
    return [tuple(items[start:end]) for start, end in zip([0, *ends], ends, strict=False)]


@functools.cache
def _takes_keywords_alone(row_type: Any) -> bool:
    return any(field.kw_only for field in dataclasses.fields(row_type))


def _fields(row_type: Any) -> list[pa.Field]:
    return [_field(name, hint) for name, hint in field_hints(row_type)]


def _field(name: str, hint: Any) -> pa.Field:
    inner, nullable = without_none(hint)
    return pa.field(name, _arrow_type(inner), nullable=nullable)


@functools.cache
def _arrow_type(hint: Any) -> pa.DataType:
    if hint in _SCALARS:
        return _SCALARS[hint]
    if typing.get_origin(hint) is typing.Literal:
        return pa.string()
    if dataclasses.is_dataclass(hint):
        return pa.struct(_fields(hint))
    if typing.get_origin(hint) is tuple:
        inner, *rest = typing.get_args(hint)
        item = _field("item", inner)
        return pa.list_(item) if rest == [Ellipsis] else pa.list_(item, 1 + len(rest))
    raise TypeError(f"no Arrow type for {hint!r}")


def _plain(value: Any) -> Any:
    """A value as plain Python, which Arrow reads one by one: slow, and without a limit of size."""
    if dataclasses.is_dataclass(value):
        return {name: _plain(getattr(value, name)) for name, _ in field_hints(typing.cast(Any, type(value)))}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value
