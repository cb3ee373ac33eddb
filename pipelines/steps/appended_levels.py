"""The job of the levels of what was appended to a set."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

import pyarrow.compute as pc

from maskmine.mining.levels import CommonLevels, measure_new_levels
from maskmine.mining.scores.scale import LevelScale
from maskmine.pipelines.steps.cells_of_run import RunCells
from maskmine.pipelines.steps.in_order import known_levels, look_up
from maskmine.pipelines.steps.jobs import MakeCell, PartReport, Tick, report_once, sampled
from maskmine.pipelines.steps.ties import Input, identities
from maskmine.schemas.rows import LevelRow, VocabularyRow
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
            start_s, made_from, nouns = time.monotonic(), identities(self.inputs, part), 0
            scale = LevelScale.read(self.base.levels.read_metadata())
            measured = chain.from_iterable(self._measure(scale)) if any(self._new()) else iter(())

            def rows() -> Iterator[LevelRow]:
                nonlocal nouns
                find = known_levels(self.base.levels)
                for block in self.cells.vocabulary.read_blocks():
                    known = find([row.noun for row in block])
                    yield from (known[row.noun] if row.noun in known else next(measured) for row in block)
                    nouns += len(block)
                    tick(len(block))

            self.cells.levels.write(part, rows(), metadata=scale.metadata(), made_from=made_from)
            return report_once("levels", part, nouns, start_s=start_s)

        return make

    def _measure(self, scale: LevelScale) -> Iterator[list[LevelRow]]:
        said = (table.filter(pc.greater(table["said"], 0)) for table in self.base.levels.read_groups())
        common = CommonLevels.of(scale, (row for table in said for row in from_table(table, LevelRow)))
        return measure_new_levels(sampled(self.base, self.first_parts), common, self._new)

    def _new(self) -> Iterator[list[VocabularyRow]]:
        """The nouns that the base does not know, a row group of the vocabulary at a time."""
        find = look_up(self.base.levels.read_groups(columns=["noun"]))
        for block in self.cells.vocabulary.read_blocks():
            tables = find([row.noun for row in block])
            known = {noun for table in tables for noun in table["noun"].to_pylist()}
            yield [row for row in block if row.noun not in known]
