"""Images inside Parquet files: a worker reads the row group that it needs once, and keeps the last few."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

import pyarrow as pa

from maskmine.mining.storage.bounded.parquet_child import StrangeParquet
from maskmine.mining.storage.locations import Cell
from maskmine.mining.storage.stores import open_store, os_errors
from maskmine.schemas.errors import InputError
from maskmine.schemas.rows import Rejection

MAX_GROUP_BYTES = 1 << 28
"""The limit for the images of a row group: they are read together, and as many bytes again stay cached."""

# The last row groups of this process, shared by its threads.
_LOCK = threading.Lock()
_KEPT: OrderedDict[tuple[str, int, str], Any] = OrderedDict()
# What was wrong with the last ones that could not be read.
_FAILED: OrderedDict[tuple[str, int, str], Rejection] = OrderedDict()
_FAILED_KEPT = 64
_ALL = 1 << 31  # rows


def read_cell(cell: Cell) -> bytes | Rejection:
    """The bytes in a cell. Rejected are `missing_file` (a null) and `broken_record`; raises OSError as files do."""
    if known := _FAILED.get((cell.file, cell.group, cell.column)):
        return known
    try:
        column = _column(cell)
        value = column[cell.row].as_py() if cell.row < len(column) else None
    except (pa.ArrowException, InputError, IndexError) as error:
        # also a group that needs more memory or time than is allowed, and a column that is not there
        return _failed(cell, f"the table cannot be read there: {' '.join(str(error).split())[:160]}")
    except OSError as error:
        if error.errno is not None or type(error) is not OSError:
            raise
        return _failed(cell, "the table cannot be read there")  # Arrow's word for bytes that are none
    if not isinstance(value, bytes):
        return Rejection("missing_file", "the record has no bytes of a picture")
    return value


def _failed(cell: Cell, detail: str) -> Rejection:
    """The rejection of all images of the cell's row group, which is not tried for each of them."""
    rejection = Rejection("broken_record", detail)
    with _LOCK:
        _FAILED[cell.file, cell.group, cell.column] = rejection
        while len(_FAILED) > _FAILED_KEPT:
            _FAILED.popitem(last=False)
    return rejection


def _column(cell: Cell) -> Any:
    """All images of a row group. One thread reads, the others wait for it: they most likely want the same."""
    key = (cell.file, cell.group, cell.column)
    with _LOCK:
        if key in _KEPT:
            _KEPT.move_to_end(key)
            return _KEPT[key]
        fs, path = open_store(cell.file)
        with os_errors(cell.file), fs.open(path, "rb") as file:
            read = StrangeParquet(file, cell.file, [cell.column]).batches(_ALL, group=cell.group, any_length=True)
            table = pa.Table.from_batches([batch for batch, _ in read])
        column = table.column(0)
        if pa.types.is_struct(column.type):
            column = pa.chunked_array([chunk.field(0) for chunk in column.chunks])
        _KEPT[key] = column
        while len(_KEPT) > 1 and sum(kept.nbytes for kept in _KEPT.values()) > MAX_GROUP_BYTES:
            _KEPT.popitem(last=False)
        return column
