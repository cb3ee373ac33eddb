"""Sorting more rows than memory holds, by a key of 64 bits: spread over files by its first bits, each sorted alone.

Memory is that of one such file, however many rows there are. (DuckDB sorts in a given memory too, but not in one that
is small: with 64 MB it gives up at two million rows.)
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa

_AT_ONCE_BYTES = 8_000_000
_BITS, _KEY_BITS = 8, 64


def spill(tables: Iterable[pa.Table], path: str, *, schema: pa.Schema) -> int:
    """Write tables to a temporary file; returns their size in memory in bytes."""
    size_bytes = 0
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with pa.OSFile(path, "wb") as file, pa.ipc.new_stream(file, schema, options=options) as writer:
        for table in tables:
            size_bytes += table.nbytes
            writer.write_table(table)
    return size_bytes


def read_spilled(path: str) -> Iterator[pa.Table]:
    """The tables of a temporary file, some megabytes at a time."""
    with pa.OSFile(path, "rb") as file, pa.ipc.open_stream(file) as reader:
        ahead: list[pa.RecordBatch] = []
        for batch in reader:
            ahead.append(batch)
            if sum(one.nbytes for one in ahead) > _AT_ONCE_BYTES:
                yield pa.Table.from_batches(ahead)
                ahead = []
        if ahead:
            yield pa.Table.from_batches(ahead)


def sorted_tables(
    path: str,
    *,
    size_bytes: int,
    key: str,
    then: Sequence[str] = (),
    most_bytes: int = _AT_ONCE_BYTES,
    used_bits: int = 0,
) -> Iterator[pa.Table]:
    """The rows of a temporary file by `key`, a column of unsigned 64-bit numbers, then by other columns.

    Rows of one key come in one table. The file is deleted.
    """
    if size_bytes > most_bytes and used_bits < _KEY_BITS:
        for bucket, bucket_bytes in _split(path, key=key, used_bits=used_bits):
            yield from sorted_tables(
                bucket, size_bytes=bucket_bytes, key=key, then=then, most_bytes=most_bytes, used_bits=used_bits + _BITS
            )
        return
    tables = list(read_spilled(path))
    os.unlink(path)
    if tables:
        yield pa.concat_tables(tables).sort_by([(name, "ascending") for name in (key, *then)])


def _split(path: str, *, key: str, used_bits: int) -> list[tuple[str, int]]:
    """Spread a file over 256 by the next bits of the key; those that got rows, in the order of these bits."""
    shift = np.uint64(_KEY_BITS - _BITS - used_bits)
    sizes: dict[int, int] = {}
    files: dict[int, pa.OSFile] = {}
    writers: dict[int, pa.ipc.RecordBatchStreamWriter] = {}
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    for table in read_spilled(path):
        buckets_N = (table[key].to_numpy() >> shift) & np.uint64(2**_BITS - 1)
        order_N = np.argsort(buckets_N, kind="stable")
        together = table.take(pa.array(order_N)).combine_chunks()
        numbers, starts = np.unique(buckets_N[order_N], return_index=True)
        for number, start, end in zip(numbers.tolist(), starts, [*starts[1:], len(table)], strict=True):
            rows = together.slice(int(start), int(end - start))
            if number not in writers:
                files[number] = pa.OSFile(f"{path}-{number:03d}", "wb")
                writers[number] = pa.ipc.new_stream(files[number], table.schema, options=options)
            writers[number].write_table(rows)
            sizes[number] = sizes.get(number, 0) + rows.nbytes
    for number, writer in writers.items():
        writer.close()
        files[number].close()
    os.unlink(path)
    return [(f"{path}-{number:03d}", sizes[number]) for number in sorted(sizes)]
