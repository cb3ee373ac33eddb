"""Which cells can be made next: the dependencies between single cells of the grid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from maskmine.pipelines.steps.grid import Step


class Cell(NamedTuple):
    """A cell of the grid, by the number of its step."""

    step: int
    part: int


class CellQueue:
    """The cells to make: each waits for the cells that its step reads, directly or through other steps.

    A `once` step waits for all parts of what it reads, or for the first ones; a part waits for `once` steps and for the
    same part.
    """

    def __init__(self, steps: Sequence[Step], todo: Sequence[Sequence[int]]) -> None:
        self.steps = steps
        self.todo = [sorted(parts) for parts in todo]
        number = {step.name: index for index, step in enumerate(steps)}
        self._reads: list[set[int]] = []
        for step in steps:  # each stands after those that it reads
            direct = {number[name] for name in step.reads}
            self._reads.append(direct.union(*(self._reads[index] for index in direct)))
        self._left = [set(parts) for parts in todo]
        self._blockers = {
            Cell(index, part): sum(self._blocking(index, part, read) for read in self._reads[index])
            for index, parts in enumerate(self.todo)
            for part in parts
        }

    def ready(self) -> list[Cell]:
        """The cells that can be made at the start."""
        return [cell for cell, blockers in self._blockers.items() if not blockers]

    def finish(self, cell: Cell) -> list[Cell]:
        """A cell is made; returns the cells that can be made now and waited for this one alone."""
        self._left[cell.step].remove(cell.part)
        freed = []
        for index, reads in enumerate(self._reads):
            if cell.step not in reads:
                continue
            for waiting in self._waiting(index, cell):
                if waiting in self._blockers and waiting.part in self._left[waiting.step]:
                    self._blockers[waiting] -= 1
                    if not self._blockers[waiting]:
                        freed.append(waiting)
        return freed

    def is_complete(self, step: int) -> bool:
        """Whether all cells of a step are made."""
        return not self._left[step]

    def _waiting(self, index: int, cell: Cell) -> list[Cell]:
        """The cells of a step that wait for a cell of another step, which it reads."""
        if self.steps[cell.step].once:
            return [Cell(index, part) for part in self.todo[index]]
        if self.steps[index].once:
            return [Cell(index, part) for part in self.todo[index] if self._is_read(index, cell.part)]
        return [Cell(index, cell.part)]

    def _blocking(self, index: int, part: int, read: int) -> int:
        if self.steps[read].once:
            return len(self._left[read])
        if self.steps[index].once:
            return sum(self._is_read(index, other) for other in self._left[read])
        return int(part in self._left[read])

    def _is_read(self, index: int, part: int) -> bool:
        """Whether a `once` step reads a part."""
        first_parts = self.steps[index].first_parts
        return first_parts is None or part < first_parts
