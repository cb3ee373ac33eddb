"""The shards of a set as its manifest has them: in it, or in a table beside it where they are many.

    manifest.json    "shards": [{…}, {…}, …]                              up to `MOST_LISTED` shards
    manifest.json    "shards": {"table": "shards.parquet", "rows": …}     beyond; the table is read in pieces

Both are a sequence of `ShardEntry` for whoever reads them.
"""

from __future__ import annotations

import hashlib
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import accumulate
from typing import IO, Any, Literal, overload

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from maskmine.schemas.errors import IncompleteError
from maskmine.schemas.memory import give_back_memory
from maskmine.schemas.sample import Writer
from maskmine.schemas.seal import open_sealed, write_sealed
from maskmine.schemas.settings import Settings

MOST_LISTED = 1000
"""Shards that a manifest lists itself; more stand in a table beside it."""
SHARDS_TABLE = "shards.parquet"
_ROWS_AT_ONCE = 4096  # of the table, as a row group: half a megabyte
_GROUPS_KEPT = 2  # in the order of names, part 10000 lies beside part 100000

OpenFile = Callable[[str], AbstractContextManager[IO[bytes]]]
"""Opens a file of a set's folder by its name."""


class ShardEntry(Settings):
    """A shard of the set, in the order of its number."""

    name: str
    """File name of the tar."""
    images: int
    """Images of its part."""
    samples: int
    """Samples in it."""
    size_bytes: int
    """Size of the tar."""
    sha256: str
    """SHA-256 of the tar."""
    index_sha256: str
    """SHA-256 of the Parquet index beside it."""


SHARDS_SCHEMA = pa.schema(
    [
        pa.field(name, pa.int64() if field.annotation is int else pa.string(), nullable=False)
        for name, field in ShardEntry.model_fields.items()
    ]
)


class TableOfShards(Settings):
    """What a manifest says of the table of its shards."""

    table: Literal["shards.parquet"]
    """Name of the table, a sealed Parquet file beside the manifest with the fields of `ShardEntry`."""
    rows: int = Field(ge=1)
    """How many shards it has."""
    sha256: str
    """SHA-256 of the table."""


class ShardsInTable(Sequence[ShardEntry]):
    """The shards of a set that stand in a table, of which a row group or two are in memory.

    The table is opened when the first shard is asked for, and its SHA-256 is checked then. Raises IncompleteError,
    here and later, when it is missing, damaged, or not the one that the manifest names.
    """

    def __init__(self, named: TableOfShards, *, path: str, open_file: OpenFile) -> None:
        self.named = named
        self._path, self._open_file = path, open_file
        self._starts: list[int] = []  # of row groups, and the end
        self._groups: OrderedDict[int, pa.Table] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self.named.rows

    @overload
    def __getitem__(self, index: int) -> ShardEntry: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[ShardEntry]: ...
    def __getitem__(self, index: int | slice) -> ShardEntry | Sequence[ShardEntry]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        with self._lock:
            self._open()
            group = bisect_right(self._starts, number) - 1
            return _entry(self._group(group), number - self._starts[group])

    def __iter__(self) -> Iterator[ShardEntry]:
        with self._lock:
            self._open()
        for group in range(len(self._starts) - 1):
            with self._lock:
                table = self._group(group)
            yield from _entries(table)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ShardsInTable) and self.named == other.named

    def __hash__(self) -> int:
        return hash(self.named.sha256)

    def __getstate__(self) -> dict[str, Any]:
        kept = ("named", "_path", "_open_file")
        return {name: value for name, value in vars(self).items() if name in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["named"], path=state["_path"], open_file=state["_open_file"])  # type: ignore[misc]

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        stored = core_schema.plain_serializer_function_ser_schema(lambda shards: shards.named.model_dump(mode="json"))
        return core_schema.is_instance_schema(cls, serialization=stored)

    def _open(self) -> None:
        """Check the table, once, and learn where its row groups start."""
        if self._starts:
            return
        with self._faults(), self._open_file(self.named.table) as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != self.named.sha256:  # type: ignore[arg-type]
                raise pa.ArrowInvalid("other content")
            whole = open_sealed(file)
            _check_columns(whole, rows=self.named.rows)
            sizes = (whole.metadata.row_group(group).num_rows for group in range(whole.num_row_groups))
            self._starts = [0, *accumulate(sizes)]

    def _group(self, group: int) -> pa.Table:
        if group not in self._groups:
            while len(self._groups) >= _GROUPS_KEPT:
                self._groups.popitem(last=False)
                give_back_memory()
            with self._faults(), self._open_file(self.named.table) as file:
                # by this thread alone: others would each keep memory of their own for it
                self._groups[group] = open_sealed(file).read_row_group(group, use_threads=False)
        self._groups.move_to_end(group)
        return self._groups[group]

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise IncompleteError(f"{self._path}: missing; {_AGAIN}") from error
        except (pa.ArrowInvalid, OSError) as error:
            raise IncompleteError(
                f"{self._path}: not the table that manifest.json names; delete it and {_AGAIN}"
            ) from error


_AGAIN = "run the command that made the set again"
Shards = tuple[ShardEntry, ...] | ShardsInTable
"""The shards of a set, in the order of their numbers."""


def shard_named(shards: Sequence[ShardEntry], name: str) -> ShardEntry:
    """The shard of a file name, which has its number. Raises IncompleteError where there is none."""
    number = name.partition(".")[0]
    if number.isdecimal() and int(number) < len(shards) and (shard := shards[int(number)]).name == name:
        return shard
    found = next((shard for shard in shards if shard.name == name), None)  # numbers with a gap
    if found is None:
        raise IncompleteError(f"manifest.json: has no shard {name}; {_AGAIN}")
    return found


def write_shards_table(tables: Iterable[pa.Table], file: Writer) -> int:
    """Write the table of shards from tables of `SHARDS_SCHEMA`, in order; returns how many there are."""
    rows = 0

    def groups() -> Iterator[pa.Table]:
        nonlocal rows
        for table in _regrouped(tables):
            rows += len(table)
            yield table

    write_sealed(groups(), file, SHARDS_SCHEMA)
    return rows


def shards_table(entries: Iterable[ShardEntry]) -> pa.Table:
    """Shards as a table of `SHARDS_SCHEMA`."""
    return pa.Table.from_pylist([entry.model_dump() for entry in entries], schema=SHARDS_SCHEMA)


def entries_of(tables: Iterable[pa.Table]) -> Iterator[ShardEntry]:
    """The shards in tables of `SHARDS_SCHEMA`."""
    for table in tables:
        yield from _entries(table)


def _regrouped(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The same rows in tables of `_ROWS_AT_ONCE`, whatever the tables that they come in."""
    held: list[pa.Table] = []
    rows = 0
    for table in tables:
        held.append(table)
        rows += len(table)
        while rows >= _ROWS_AT_ONCE:
            whole = pa.concat_tables(held)
            yield whole.slice(0, _ROWS_AT_ONCE).combine_chunks()
            held, rows = [whole.slice(_ROWS_AT_ONCE)], rows - _ROWS_AT_ONCE
    if rows:
        yield pa.concat_tables(held).combine_chunks()


def _check_columns(whole: pq.ParquetFile, *, rows: int) -> None:
    if whole.metadata.num_rows != rows or not whole.schema_arrow.equals(SHARDS_SCHEMA):
        raise pa.ArrowInvalid("other columns or rows")


def _entries(table: pa.Table) -> Iterator[ShardEntry]:
    for start in range(0, len(table), 256):
        for row in table.slice(start, 256).to_pylist():
            yield ShardEntry.model_construct(**row)


def _entry(table: pa.Table, row: int) -> ShardEntry:
    return ShardEntry.model_construct(**table.slice(row, 1).to_pylist()[0])
