"""The job of the levels of what was appended to a set."""

from __future__ import annotations

import time
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from maskmine.mining.levels import CommonLevels, measure_new_levels
from maskmine.mining.scores.scale import LevelScale
from maskmine.pipelines.steps.cells_of_run import RunCells
from maskmine.pipelines.steps.jobs import MakeCell, PartReport, Tick, report_once, sampled
from maskmine.pipelines.steps.ties import Input, identities
from maskmine.schemas.rows import LevelRow
from maskmine.schemas.tables import from_table


@dataclass(frozen=True)
class AppendedLevelsJob:
    """vocabulary of what was appended, levels of the base → levels, once.

    A noun that the base knows has the base's row. Others are measured on the images that the base's were measured on,
    its `first_parts`: so evidence of pairs means the same in all versions. Without such nouns no region is read.
    """

    device = None
    cells: RunCells
    base: RunCells
    first_parts: int

    @property
    def inputs(self) -> tuple[Input, ...]:
        return Input(self.cells.vocabulary), Input(self.base.levels)

    def open(self) -> MakeCell:
        def make(part: int, tick: Tick) -> PartReport:
            start_s, made_from = time.monotonic(), identities(self.inputs, part)
            vocabulary = self.cells.vocabulary.read()
            known = self._known(pa.array([row.noun for row in vocabulary], pa.string()))
            scale = LevelScale.read(self.base.levels.read_metadata())
            new = [row for row in vocabulary if row.noun not in known]
            if new:
                common = CommonLevels.of(scale, self.base.levels.read_rows())
                rows = measure_new_levels(sampled(self.base, self.first_parts), common, new)
                known.update((row.noun, row) for row in rows)
            tick(len(vocabulary))
            levels = (known[row.noun] for row in vocabulary)
            self.cells.levels.write(part, levels, metadata=scale.metadata(), made_from=made_from)
            return report_once("levels", part, len(vocabulary), start_s=start_s)

        return make

    def _known(self, nouns: pa.Array) -> dict[str, LevelRow]:
        """The base's rows of these nouns."""
        known: dict[str, LevelRow] = {}
        for table in self.base.levels.read_groups():
            rows = from_table(table.filter(pc.is_in(table["noun"], value_set=nouns)), LevelRow)
            known.update((row.noun, row) for row in rows)
        return known
