"""What ties a cell to the cells that it was made from: their identities, which its footer holds.

A fingerprint says which settings and inputs a cell belongs to; it does not say that a cell of `pairs`, which counts
regions by number, was made from the regions that are there now. An identity stands for every byte of a cell and costs
its reader a footer, so all ties of a run are compared without reading a row.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from maskmine.mining.storage.prefetch import map_in_order
from maskmine.pipelines.run_folder.cells import Cells, Ties
from maskmine.pipelines.run_folder.hashes import HashColumns
from maskmine.pipelines.run_folder.parts import Parts

_AT_ONCE = 16  # footers read at a time

ReadIdentity = Callable[[Cells[Any], int], str | None]


@dataclass(frozen=True)
class Input:
    """Cells that a job reads: of a step that runs once the file, of another the same part, or so many `parts` from the
    `first` on."""

    cells: Cells[Any]
    parts: int | None = None
    first: int = 0

    @property
    def numbers(self) -> range:
        """The parts that are read, where it is not the same part alone."""
        return range(self.first, self.first + (self.parts or 0))


def read_identity(cells: Cells[Any], part: int) -> str | None:
    """The identity of a cell, from its footer."""
    return cells.identity(part)


def identities(inputs: Sequence[Input], part: int, *, read: ReadIdentity = read_identity) -> dict[str, str] | None:
    """The identities of what the cell of a part is made from, by step; None when any of it is missing or damaged."""
    found: dict[str, str] = {}
    for one in inputs:
        if one.parts is not None:
            each = map_in_order(partial(read, one.cells), one.numbers, threads=_AT_ONCE)
            identity = _together(each)
        else:
            identity = read(one.cells, 0 if one.cells.once else part)
        if identity is None:
            return None
        found[one.cells.title] = identity
    return found


def remember_once(inputs: Sequence[Input]) -> ReadIdentity:
    """`read_identity` that reads those of steps that run once now, and not again: a worker loads them once."""
    fixed = {one.cells.title: one.cells.identity() for one in inputs if one.cells.once}
    return lambda cells, part: fixed[cells.title] if cells.title in fixed else cells.identity(part)


class TiesReader:
    """`Cells.ties` that reads each footer once, and keeps what later steps ask for: the identities, on the disk.

    A context, which closes their files. Threads may ask for different parts at once.
    """

    def __init__(self) -> None:
        self._known, self._lock = HashColumns(), threading.Lock()
        self._missing: dict[str, Parts] = {}

    def __enter__(self) -> TiesReader:
        return self

    def __exit__(self, *about: object) -> None:
        self._known.__exit__(None, None, None)

    def read(self, cells: Cells[Any], part: int) -> Ties:
        """The ties of a cell as they are now; nothing of one that was found to be missing."""
        if part in self._missing.get(cells.title, ()):
            return Ties(None, None)
        ties = cells.ties(part)
        self._note(cells, part, ties.identity)
        return ties

    def identity(self, cells: Cells[Any], part: int) -> str | None:
        """As `read_identity`, as it was when the cell was first read."""
        if part in self._missing.get(cells.title, ()):
            return None
        with self._lock:
            column = self._known.column(cells.title)
        return column.get(part) or self.read(cells, part).identity

    def delete(self, cells: Cells[Any], part: int) -> None:
        """Delete a cell; from here on it is missing."""
        cells.delete(part)
        self._note(cells, part, None)

    def _note(self, cells: Cells[Any], part: int, identity: str | None) -> None:
        with self._lock:
            if identity is None:
                self._missing.setdefault(cells.title, Parts()).add(part)
            else:
                self._known.column(cells.title).put(part, identity)


def _together(parts: Iterable[str | None]) -> str | None:
    """One identity for those of many parts, in their order."""
    digest, whole = hashlib.sha256(), True
    for identity in parts:
        whole = whole and identity is not None
        digest.update(f"{identity}\n".encode())
    return digest.hexdigest() if whole else None
