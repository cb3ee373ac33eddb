"""A set of part numbers in a byte each, for a run may have a hundred thousand of them, and many such sets at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set
from itertools import islice


class Parts(Set[int]):
    """Numbers of parts, in order. It is a set that grows and shrinks, and compares as one."""

    __slots__ = ("_count", "_far", "_there")

    def __init__(self, parts: Iterable[int] = ()) -> None:
        self._there, self._count = bytearray(), 0
        self._far: set[int] = set()  # beyond what any run has: a file may be called anything
        if isinstance(parts, range) and parts.step == 1 and 0 < parts.stop <= _MOST:
            self._there = bytearray(parts.start) + b"\1" * len(parts)
            self._count = len(parts)
        else:
            for part in parts:
                self.add(part)

    def __contains__(self, part: object) -> bool:
        if not isinstance(part, int) or part < 0:
            return False
        return self._there[part] == 1 if part < len(self._there) else part in self._far

    def __iter__(self) -> Iterator[int]:
        part = self._there.find(1)
        while part >= 0:
            yield part
            part = self._there.find(1, part + 1)
        yield from sorted(self._far)

    def __len__(self) -> int:
        return self._count + len(self._far)

    def __repr__(self) -> str:
        shown = [*map(str, islice(self, 5)), *(["…"] if len(self) > 5 else [])]
        return f"Parts({', '.join(shown)})"

    def add(self, part: int) -> None:
        """Put a part in; nothing happens when it is there."""
        if part >= _MOST:
            self._far.add(part)
            return
        if part >= len(self._there):
            self._there.extend(bytes(max(part + 1 - len(self._there), len(self._there) // 8)))
        self._count += not self._there[part]
        self._there[part] = 1

    def discard(self, part: int) -> None:
        """Take a part out; nothing happens when it is not there."""
        if part >= _MOST:
            self._far.discard(part)
        elif part in self:
            self._there[part] = 0
            self._count -= 1

    @property
    def first(self) -> int:
        """The smallest of them; -1 when there is none."""
        return next(iter(self), -1)

    def within(self, numbers: range) -> Parts:
        """Those in a range of numbers that a run may have."""
        return self._of(bytes(numbers.start) + self._there[numbers.start : numbers.stop])

    def missing(self, numbers: range) -> Parts:
        """The numbers in a range that are not among them."""
        there = self._there[numbers.start : numbers.stop].ljust(len(numbers), b"\0")
        return self._of(bytes(numbers.start) + there.translate(_SWAPPED))

    @classmethod
    def _of(cls, there: bytes | bytearray) -> Parts:
        found = cls()
        found._there, found._count = bytearray(there), there.count(1)
        return found

    @classmethod
    def _from_iterable(cls, it: Iterable[int]) -> Parts:  # type: ignore[override]
        return cls(it)


_MOST = 1 << 24
_SWAPPED = bytes([1, 0]) + bytes(254)
