"""Which cells can be made next: the dependencies between single cells of the grid."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from maskmine.pipelines.run_folder.parts import Parts
from maskmine.pipelines.steps.grid import Step


class Cell(NamedTuple):
    """A cell of the grid, by the number of its step."""

    step: int
    part: int


class ReadyCells:
    """Cells that can be made, of which the first one is that of the least step and part."""

    def __init__(self) -> None:
        self._parts: dict[int, Parts] = {}

    def __len__(self) -> int:
        return sum(map(len, self._parts.values()))

    def push(self, cell: Cell) -> None:
        """Put a cell in."""
        self._parts.setdefault(cell.step, Parts()).add(cell.part)

    def pop(self) -> Cell:
        """Take the first one out. Raises IndexError when there is none."""
        for step in sorted(self._parts):
            if parts := self._parts[step]:
                cell = Cell(step, parts.first)
                parts.discard(cell.part)
                return cell
        raise IndexError("no cell is ready")


class CellQueue:
    """The cells to make: each waits for the cells that its step reads, directly or through other steps.

    A `once` step waits for all parts of what it reads, or for the first ones; a part waits for `once` steps and for the
    same part.
    """

    def __init__(self, steps: Sequence[Step], todo: Sequence[Iterable[int]]) -> None:
        self.steps = steps
        self.todo = [Parts(parts) for parts in todo]
        number = {step.name: index for index, step in enumerate(steps)}
        self._reads: list[set[int]] = []
        for step in steps:  # each stands after those that it reads
            direct = {number[name] for name in step.reads}
            self._reads.append(direct.union(*(self._reads[index] for index in direct)))
        self._left = [Parts(parts) for parts in self.todo]

    def ready(self) -> Iterator[Cell]:
        """The cells that can be made at the start."""
        return (
            Cell(index, part)
            for index, parts in enumerate(self._left)
            for part in parts
            if not self._is_blocked(index, part)
        )

    def finish(self, cell: Cell) -> Iterator[Cell]:
        """A cell is made; gives the cells that can be made now and waited for this one alone, for use at once."""
        if cell.part not in self._left[cell.step]:
            raise KeyError(cell)
        self._left[cell.step].discard(cell.part)
        readers = (index for index, reads in enumerate(self._reads) if cell.step in reads)
        return (
            Cell(index, part)
            for index in readers
            for part in self._waiting(index, cell)
            if part in self._left[index] and not self._is_blocked(index, part)
        )

    def is_complete(self, step: int) -> bool:
        """Whether all cells of a step are made."""
        return not self._left[step]

    def _waiting(self, index: int, cell: Cell) -> Iterable[int]:
        """The parts of a step that wait for a cell of another step, which it reads."""
        if self.steps[cell.step].once:
            return self.todo[index]
        if self.steps[index].once:
            return self.todo[index] if self._is_read(index, cell.part) else ()
        return (cell.part,)

    def _is_blocked(self, index: int, part: int) -> bool:
        """Whether a cell waits for others that are not made yet."""
        return any(self._waits_for(index, part, read) for read in self._reads[index])

    def _waits_for(self, index: int, part: int, read: int) -> bool:
        """Whether a cell waits for any of another step; the least part that is left tells for a step that runs once."""
        left = self._left[read]
        if self.steps[read].once:
            return bool(left)
        if self.steps[index].once:
            return bool(left) and self._is_read(index, left.first)
        return part in left

    def _is_read(self, index: int, part: int) -> bool:
        """Whether a `once` step reads a part."""
        first_parts = self.steps[index].first_parts
        return first_parts is None or part < first_parts
