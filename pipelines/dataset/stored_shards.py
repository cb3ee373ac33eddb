"""The shards of a set in its manifest or in the table beside it, and their sizes for loaders: written as they come."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import islice

import pyarrow as pa

from maskmine.pipelines.dataset.sums import hash_file
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.pipelines.run_folder.hashes import parts_by_name
from maskmine.schemas import shard_entries
from maskmine.schemas.shard_entries import (
    SHARDS_TABLE,
    ShardEntry,
    Shards,
    ShardsInTable,
    TableOfShards,
    entries_of,
    shards_table,
    write_shards_table,
)

SIZES_FILE = "shards/sizes.json"
_ENTRIES_AT_ONCE = 1024


def store_shards(run: RunFolder, tables: Iterable[pa.Table], *, count: int) -> Shards:
    """So many shards, from tables of them, as a manifest takes them: where they are many, in the table, which is
    written."""
    if count <= shard_entries.MOST_LISTED:
        run.delete(SHARDS_TABLE)
        return tuple(entries_of(tables))
    with run.write(SHARDS_TABLE) as file:
        rows = write_shards_table(tables, file)
    named = TableOfShards(table="shards.parquet", rows=rows, sha256=hash_file(run, SHARDS_TABLE))
    return ShardsInTable(named, path=run.path(SHARDS_TABLE), open_file=run.open)


def in_tables(entries: Iterable[ShardEntry]) -> Iterator[pa.Table]:
    """Shards as tables of some of them."""
    remaining = iter(entries)
    while held := list(islice(remaining, _ENTRIES_AT_ONCE)):
        yield shards_table(held)


def describing_files(shards: Shards) -> tuple[str, ...]:
    """The files that say which shards there are, beside the manifest."""
    return (SIZES_FILE, SHARDS_TABLE) if isinstance(shards, ShardsInTable) else (SIZES_FILE,)


def write_sizes(run: RunFolder, shards: Shards) -> None:
    """Write how many samples each shard has, as open_clip reads it."""
    with run.write(*SIZES_FILE.split("/")) as file:
        file.writelines(sizes_lines(shards))


def sizes_lines(shards: Shards) -> Iterator[bytes]:
    """The content of that file, the form of which is that of all JSON files of a folder."""
    between = "{\n"
    for number in parts_by_name(len(shards)):
        shard = shards[number]
        yield f"{between}  {json.dumps(shard.name, ensure_ascii=False)}: {shard.samples}".encode()
        between = ",\n"
    yield b"\n}\n" if shards else b"{}\n"
