"""Sorting more rows than memory holds, by a key of 64 bits: spread over files by its first bits, each sorted alone.

Memory is that of one such file, however many rows there are. (DuckDB sorts in a given memory too, but not in one that
is small: with 64 MB it gives up at two million rows.)
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain

import numpy as np
import pyarrow as pa

_AT_ONCE_BYTES = 2_000_000
_FIRST_BITS, _MOST_BITS, _KEY_BITS = 5, 8, 64
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
    """The tables of a temporary file, some megabytes at a time."""
    with pa.OSFile(path, "rb") as file, pa.ipc.open_stream(file) as reader:
        yield from _some_at_once(pa.Table.from_batches([batch]) for batch in reader)


def sorted_tables(
    tables: Iterable[pa.Table],
    path: str,
    *,
    key: str,
    then: Sequence[str] = (),
    most_bytes: int = _AT_ONCE_BYTES,
    size_bytes: int | None = None,
    used_bits: int = 0,
) -> Iterator[pa.Table]:
    """The rows of tables by `key`, a column of unsigned 64-bit numbers, then by other columns.

    Rows of one key come in one table. What is more than `most_bytes` lies in files whose names begin with `path`, each
    deleted after its use; all tables are read before the first row comes. `size_bytes`: what they come to, if known.
    """
    ahead, ahead_bytes, tables = [], 0, iter(tables)
    for table in tables:
        ahead.append(table)
        ahead_bytes += table.nbytes
        if ahead_bytes > most_bytes and used_bits < _KEY_BITS:
            break
    else:
        if ahead:
            together = pa.concat_tables(ahead).combine_chunks()
            yield together.sort_by([(name, "ascending") for name in (key, *then)])
        return
    needed_bits = _FIRST_BITS if size_bytes is None else (size_bytes // most_bytes).bit_length()
    bits = min(needed_bits, _MOST_BITS, _KEY_BITS - used_bits)
    used_bits += bits
    for bucket, bucket_bytes in _split(chain(ahead, tables), path, key=key, bits=bits, used_bits=used_bits):
        rows = _deleted_after(bucket)
        yield from sorted_tables(
            rows, bucket, key=key, then=then, most_bytes=most_bytes, size_bytes=bucket_bytes, used_bits=used_bits
        )


def _deleted_after(path: str) -> Iterator[pa.Table]:
    yield from read_spilled(path)
    os.unlink(path)


def _some_at_once(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The same rows in tables of some megabytes."""
    ahead, ahead_bytes = [], 0
    for table in tables:
        ahead.append(table)
        ahead_bytes += table.nbytes
        if ahead_bytes > _AT_ONCE_BYTES:
            yield pa.concat_tables(ahead)
            ahead, ahead_bytes = [], 0
    if ahead:
        yield pa.concat_tables(ahead)


def _split(tables: Iterable[pa.Table], path: str, *, key: str, bits: int, used_bits: int) -> list[tuple[str, int]]:
    """Spread rows over files by the last `bits` of the `used_bits` first of the key; the files that got rows, in the
    order of these bits, with their rows' size in memory."""
    shift = np.uint64(_KEY_BITS - used_bits)
    sizes: dict[int, int] = {}
    writers: dict[int, pa.ipc.RecordBatchStreamWriter] = {}
    with ExitStack() as opened:
        for table in _some_at_once(tables):
            buckets_N = (table[key].to_numpy() >> shift) & np.uint64(2**bits - 1)
            order_N = np.argsort(buckets_N, kind="stable")
            together = table.combine_chunks().take(pa.array(order_N)).combine_chunks()
            numbers, starts = np.unique(buckets_N[order_N], return_index=True)
            for number, start, end in zip(numbers.tolist(), starts, [*starts[1:], len(table)], strict=True):
                rows = together.slice(int(start), int(end - start))
                if number not in writers:
                    writers[number] = opened.enter_context(spilling(f"{path}-{number:03d}", schema=table.schema))
                writers[number].write_table(rows)
                sizes[number] = sizes.get(number, 0) + rows.nbytes
    return [(f"{path}-{number:03d}", sizes[number]) for number in sorted(sizes)]
