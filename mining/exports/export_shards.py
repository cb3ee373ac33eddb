"""Shards of an export, each with consecutive samples of a split, and what the writers of all formats share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import IO, Protocol

import pyarrow as pa

from maskmine.mining.exports.images import Pictures
from maskmine.mining.storage.urls import Fetch
from maskmine.schemas.rows import Rejection, SampleRow
from maskmine.schemas.sample import CHECKED_VERSION, ImageFormat, StoredSample
from maskmine.schemas.tables import from_table

Tick = Callable[[int], None]

_BLOCK_BYTES = 1 << 20  # of a read: large enough for a disk to be fast


class Folder(Protocol):
    """Where an export goes: a file appears when the block ends well, and not at all otherwise."""

    def write(self, *names: str) -> AbstractContextManager[IO[bytes]]:
        """Open a file for writing, below the export's folder."""


class Run(Protocol):
    """The run that is exported."""

    def read(self, row: SampleRow) -> StoredSample:
        """The sample of a row; its shard is checked before anything of it is used. Raises IncompleteError."""

    def read_bytes(self, shard: str, offset: int, size_bytes: int) -> bytes:
        """Some bytes of a shard's tar, checked in the same way."""

    def photograph(self, row: SampleRow, *, fetch: Fetch) -> bytes | Rejection:
        """The file of the image that a sample is from, as the run read it, or why it is not to be had any more."""

    def file_name(self, row: SampleRow) -> str:
        """The name of the image that a sample is from: its path below the folder of its source, or its URL."""


@dataclass(frozen=True, slots=True)
class Totals:
    """The samples that passed the filters: counts for each split, in the order of the splits, and the nouns, sorted.

    `numbered` says whether every image id is a number, so that it can stand as one.
    """

    samples: dict[str, int]
    images: dict[str, int]
    nouns: tuple[str, ...]
    numbered: bool


@dataclass(frozen=True)
class ExportShard:
    """Shard `number` of the `of` shards of a split: `tables` of the index with a column `split`, read once, in order.

    `tick` is called with the number of samples that were written; `version` is the run's format version.
    Writers add to `counts` what could not be exported, and what is not exact; they end in `export.json` and the card.
    """

    split: str
    number: int
    of: int
    tables: Iterator[pa.Table]
    run: Run
    pictures: Pictures
    totals: Totals
    tick: Tick
    version: int
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def checked(self) -> bool:
        """Whether the pairs have `presence` and `agreement`."""
        return self.version >= CHECKED_VERSION

    def rows(self) -> Iterator[SampleRow]:
        """The samples' rows of the index."""
        for table in self.tables:
            yield from from_table(table.drop_columns(["split"]), SampleRow)

    def samples(self) -> Iterator[StoredSample]:
        """The samples, read from the run's shards."""
        return map(self.run.read, self.rows())

    def spans(self) -> Iterator[tuple[int, bytes]]:
        """The samples as stored in the run's shards: `(number, bytes)` of contiguous ones."""
        for table in self.tables:
            for shard, samples, start, end in _contiguous(table):
                yield samples, self.run.read_bytes(shard, start, end - start)

    @property
    def name(self) -> str:
        """`00017`."""
        return f"{self.number:05d}"


@dataclass(frozen=True, slots=True)
class ExportSummary:
    """What a format needs to write the files that describe the whole: samples of each shard, `tables` of a split.

    `image_format` is that of the images; `nouns` are all that are exported, sorted.
    """

    shards: Mapping[str, Sequence[int]]
    image_format: ImageFormat
    tables: Callable[[str], Iterator[pa.Table]]
    csv_prefix: str
    nouns: tuple[str, ...]


def _contiguous(table: pa.Table) -> Iterator[tuple[str, int, int, int]]:
    """`(shard, number, start, end)` of contiguous samples, about a block at a time."""
    columns = (table[name].to_pylist() for name in ("shard", "offset", "size_bytes"))
    last, samples, start, end = "", 0, 0, 0
    for shard, offset, size_bytes in zip(*columns, strict=True):
        if (shard, offset) != (last, end) or end - start >= _BLOCK_BYTES:
            if samples:
                yield last, samples, start, end
            last, samples, start = shard, 0, offset
        samples, end = samples + 1, offset + size_bytes
    if samples:
        yield last, samples, start, end
