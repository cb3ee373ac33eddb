"""A SHA-256 for each part, in temporary files without names: nothing in memory grows with the parts, and a killed
process leaves nothing behind."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from types import TracebackType
from typing import Final

_BYTES: Final = 32
_AHEAD: Final = 1024  # read at a time
_NONE: Final = bytes(_BYTES)  # what a file of holes reads as, and no SHA-256 is
_LAST_OF_FIVE_DIGITS: Final = 100_000


class PartHashes:
    """A column of SHA-256 by part. Threads may write and read at once."""

    def __init__(self) -> None:
        self._opened = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 (closed by `close`)
        self._file = self._opened.fileno()
        self.end = 0
        """One more than the largest part that has one."""

    def put(self, part: int, sha256: str) -> None:
        """Set that of a part. Raises ValueError for what is no SHA-256 in hex digits."""
        content = bytes.fromhex(sha256)
        if len(content) != _BYTES:
            raise ValueError(f"{sha256!r} is no SHA-256")
        os.pwrite(self._file, content, part * _BYTES)
        self.end = max(self.end, part + 1)

    def get(self, part: int) -> str | None:
        """That of a part; None where none was set."""
        content = os.pread(self._file, _BYTES, part * _BYTES)
        return content.hex() if len(content) == _BYTES and content != _NONE else None

    def by_name(self) -> Iterator[tuple[int, str]]:
        """`(part, SHA-256)` of those that have one, in the order of the names of their cells."""
        kept: dict[int, bytes] = {}
        for part in parts_by_name(self.end):
            block, place = divmod(part, _AHEAD)
            if block not in kept:
                while len(kept) > 4:  # numbers of so many lengths lie beside each other
                    del kept[next(iter(kept))]
                kept[block] = os.pread(self._file, _AHEAD * _BYTES, block * _AHEAD * _BYTES)
            content = kept[block][place * _BYTES : (place + 1) * _BYTES]
            if len(content) == _BYTES and content != _NONE:
                yield part, content.hex()

    def close(self) -> None:
        """Give the file back."""
        self._opened.close()


class HashColumns:
    """Columns of SHA-256 by their names; a context, which closes their files."""

    def __init__(self) -> None:
        self._columns: dict[tuple[str, ...], PartHashes] = {}

    def __enter__(self) -> HashColumns:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for column in self._columns.values():
            column.close()

    def column(self, *name: str) -> PartHashes:
        """The column of a name, new where there was none."""
        if name not in self._columns:
            self._columns[name] = PartHashes()
        return self._columns[name]

    def get(self, *name: str) -> PartHashes | None:
        """The column of a name; None where there is none."""
        return self._columns.get(name)

    def names(self) -> list[tuple[str, ...]]:
        """The names of the columns, sorted."""
        return sorted(self._columns)


def parts_by_name(parts: int) -> Iterator[int]:
    """The numbers of so many parts in the order of the names of their cells, which have five digits or more."""

    def longer(part: int) -> Iterator[int]:
        yield part
        if part >= _LAST_OF_FIVE_DIGITS // 10:
            for other in range(part * 10, min(part * 10 + 10, parts)):
                yield from longer(other)

    if parts <= _LAST_OF_FIVE_DIGITS:
        yield from range(parts)
        return
    for part in range(_LAST_OF_FIVE_DIGITS):
        yield from longer(part)
