"""The program of the child process that reads Parquet of strangers (see `parquet_child.py`, its parent).

A damaged footer ends the process that parses it, and a page of some kilobytes can unfold to any size; neither can be
told before. So this process, under the kernel's limits of memory and time, is the one that reads.
"""

from __future__ import annotations

import io
import json
import os
import resource
import signal
import struct
import sys
from collections import OrderedDict
from collections.abc import Iterator
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

# Frames from the child: a kind and the length of what follows.
FRAME = struct.Struct("<cQ")
READY, WANTS, ABOUT, ROWS, LONG, DONE, FAULT, MEMORY = (bytes([byte]) for byte in b"rwabldfm")
PLACE = struct.Struct("<QQ")  # of a WANTS: offset and number of bytes; the parent answers with as many, or fewer
LENGTH = struct.Struct("<Q")

_BUFFER_BYTES = 1 << 20
_MAX_GROUPS, _MAX_DEPTH = 100_000, 100
_BATCH_BYTES = 1 << 25  # of rows that are read at once, by what the footer says
# Of the last files: one is as long as the file has row groups, so it is not parsed for each of them.
_FOOTERS: OrderedDict[str, Any] = OrderedDict()
_FOOTERS_KEPT = 4
# What damaged files raise in pyarrow, beside its own errors and those of memory.
_DAMAGED = (pa.ArrowException, OSError, ValueError, LookupError, TypeError, OverflowError, NotImplementedError)


def main() -> None:
    """Answer requests, a line of JSON each, until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # the kernel ends the process, whatever code it is in
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # libraries write their last words there
        os.dup2(nothing, stream)
    _send(answers, READY, b"")
    while line := requests.readline():
        request = json.loads(line)
        _limit_memory(request["memory_bytes"])
        try:
            for kind, content in _answers(request, _Remote(requests, answers, request["size_bytes"])):
                signal.setitimer(signal.ITIMER_PROF, 0)
                _send(answers, kind, content)
                signal.setitimer(signal.ITIMER_PROF, request["timeout_s"])
        except (MemoryError, pa.ArrowMemoryError):
            _send(answers, MEMORY, b"")
        except _DAMAGED as error:
            _send(answers, FAULT, " ".join(str(error).split())[:200].encode("utf-8", "replace"))
        except BrokenPipeError:
            return
        signal.setitimer(signal.ITIMER_PROF, 0)


def _answers(request: dict[str, Any], remote: _Remote) -> Iterator[tuple[bytes, bytes]]:
    signal.setitimer(signal.ITIMER_PROF, request["timeout_s"])
    footer = _FOOTERS.pop(request["file"], None)
    table = pq.ParquetFile(remote, metadata=footer, buffer_size=_BUFFER_BYTES, pre_buffer=False)
    _FOOTERS[request["file"]] = table.metadata
    while len(_FOOTERS) > _FOOTERS_KEPT:
        _FOOTERS.popitem(last=False)
    if request["op"] == "about":
        yield ABOUT, json.dumps(_about(table, request["columns"])).encode()
    else:
        yield from _rows(table, request)
    yield DONE, b""


def _about(table: Any, columns: list[str]) -> dict[str, Any]:
    """The names of the columns; of the wanted ones the leaves, and of each row group its rows and the leaves' sizes."""
    footer, schema = table.metadata, table.schema
    if footer.num_row_groups > _MAX_GROUPS:
        raise ValueError(f"{footer.num_row_groups:,} row groups")
    leaves = [schema.column(number) for number in range(len(schema.names))]
    deep = max((leaf.path.count(".") for leaf in leaves), default=0)
    if deep > _MAX_DEPTH:
        raise ValueError(f"columns nested in {deep} levels")
    wanted = [number for number, leaf in enumerate(leaves) if _is_of(leaf.path, columns)]
    groups = []
    for group in range(footer.num_row_groups):
        about = footer.row_group(group)
        chunks = {leaves[number].path: _chunk(about.column(number)) for number in wanted}
        groups.append({"rows": about.num_rows, "leaves": chunks})
    kinds = {leaves[n].path: (leaves[n].physical_type, leaves[n].logical_type.type) for n in wanted}
    return {"columns": table.schema_arrow.names, "leaves": kinds, "groups": groups}


def _is_of(leaf: str, columns: list[str]) -> bool:
    return any(leaf == column or leaf.startswith(f"{column}.") for column in columns)


def _chunk(chunk: Any) -> dict[str, Any]:
    statistics = chunk.statistics
    known = statistics is not None and statistics.has_null_count
    return {"size_bytes": chunk.total_uncompressed_size, "nulls": statistics.null_count if known else None}


def _rows(table: Any, request: dict[str, Any]) -> Iterator[tuple[bytes, bytes]]:
    """Batches, each before the numbers of its rows that are too long and so null; `whole` is a row group in one."""
    groups, columns = request["groups"], request["columns"]
    groups = range(table.num_row_groups) if groups is None else groups
    for group in groups:
        size = request["rows"] if request["whole"] else min(request["rows"], _fitting(table, group, columns))
        for batch in table.iter_batches(size, row_groups=[group], columns=columns, use_threads=False):
            batch, long = _without_long(_decoded(batch), request["max_cell_bytes"])
            if long:
                yield LONG, json.dumps(long).encode()
            yield ROWS, _packed(batch)


def _fitting(table: Any, group: int, columns: list[str]) -> int:
    """How many rows of a group are read at once, by their usual length."""
    about = table.metadata.row_group(group)
    chunks = (about.column(number) for number in range(about.num_columns))
    size = sum(max(0, one.total_uncompressed_size) for one in chunks if _is_of(one.path_in_schema, columns))
    return max(1, _BATCH_BYTES * max(1, int(about.num_rows)) // max(1, int(size)))


def _decoded(batch: Any) -> Any:
    """The batch with the values of columns that are numbers of values: here is where memory is limited."""
    columns = [one.dictionary_decode() if pa.types.is_dictionary(one.type) else one for one in batch.columns]
    return pa.record_batch(columns, names=batch.schema.names)


def _without_long(batch: Any, max_bytes: int) -> tuple[Any, list[tuple[int, str, int]]]:
    """The batch with null for cells that are too long, which are `(row, column, bytes)`."""
    if batch.nbytes <= max_bytes:
        return batch, []
    long: list[tuple[int, str, int]] = []
    columns = []
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        sizes = [column.slice(row, 1).nbytes for row in range(len(column))] if column.nbytes > max_bytes else []
        rows = {row: size for row, size in enumerate(sizes) if size > max_bytes}
        long += [(row, name, size) for row, size in rows.items()]
        kept = [None if row in rows else row for row in range(len(column))]
        columns.append(column.take(pa.array(kept, pa.int64())) if rows else column)
    return pa.record_batch(columns, names=batch.schema.names), long


def _packed(batch: Any) -> Any:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue()


class _Remote(io.RawIOBase):
    """The file, which the parent reads: it alone knows the stores that files lie on."""

    def __init__(self, requests: IO[bytes], answers: IO[bytes], size_bytes: int) -> None:
        self._requests, self._answers = requests, answers
        self._size_bytes, self._at = size_bytes, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0, /) -> int:
        self._at = offset + (0, self._at, self._size_bytes)[whence]
        return self._at

    def read(self, size_bytes: int = -1, /) -> bytes:
        left = max(0, self._size_bytes - self._at)
        size_bytes = left if size_bytes < 0 else min(size_bytes, left)
        _send(self._answers, WANTS, PLACE.pack(self._at, size_bytes))
        (length,) = LENGTH.unpack(self._exactly(LENGTH.size))
        content = self._exactly(length)
        self._at += length
        return content

    def _exactly(self, length: int) -> bytes:
        content = self._requests.read(length)
        if len(content) < length:  # the parent is gone
            os._exit(0)
        return content


def _send(answers: IO[bytes], kind: bytes, content: Any) -> None:
    view = memoryview(content)
    answers.write(FRAME.pack(kind, view.nbytes))
    answers.write(view)
    answers.flush()


def _limit_memory(max_bytes: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    max_bytes = max_bytes if hard == resource.RLIM_INFINITY else min(max_bytes, hard)
    resource.setrlimit(resource.RLIMIT_AS, (max_bytes, hard))


if __name__ == "__main__":
    main()
