"""Keys that a set has twice, found in bounded memory: keys go to files by their checksum, of which one is read at a
time."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Iterator
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Final

from maskmine.mining.storage.ownership import SCRATCH, owned_prefix

_FILES: Final = 256  # a hundred million keys are 400,000 in each
_HELD: Final = 20_000  # keys in memory before they are written


class RepeatedKeys:
    """Keys with the numbers of the shards that they are in. A context, which has its files in a temporary folder."""

    def __init__(self) -> None:
        self._scratch = TemporaryDirectory(prefix=owned_prefix(SCRATCH))
        self._held: list[list[str]] = [[] for _ in range(_FILES)]
        self._count = 0

    def __enter__(self) -> RepeatedKeys:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._scratch.cleanup()

    def add(self, keys: Iterable[str], *, shard: int) -> None:
        """Note the keys of a shard."""
        for key in keys:
            self._held[zlib.crc32(key.encode()) % _FILES].append(json.dumps((key, shard)))
            self._count += 1
        if self._count >= _HELD:
            self._write()

    def found(self) -> Iterator[tuple[str, int]]:
        """`(key, shard)` for each time that a key is there once more, shards in order; keys are in no order that says
        anything, and in the same one each time."""
        self._write()
        for number in range(_FILES):
            yield from self._found_in(number)

    def _found_in(self, number: int) -> Iterator[tuple[str, int]]:
        if not os.path.exists(self._path(number)):
            return
        with open(self._path(number)) as file:
            entries = sorted((key, shard) for key, shard in map(json.loads, file))
        last = None
        for key, shard in entries:
            if key == last:
                yield key, shard
            last = key

    def _write(self) -> None:
        """Move what is in memory to the files."""
        for number, lines in enumerate(self._held):
            if lines:
                with open(self._path(number), "a") as file:
                    file.writelines(f"{line}\n" for line in lines)
                lines.clear()
        self._count = 0

    def _path(self, number: int) -> str:
        return os.path.join(self._scratch.name, f"{number:03d}")
