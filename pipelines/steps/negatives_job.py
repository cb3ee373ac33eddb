"""The job of the negatives: nouns that the images of a part do not show."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Any

import pyarrow.compute as pc

from maskmine.mining.negatives import ImageToSearch, Negatives
from maskmine.mining.scores.noun_tables import NounTables
from maskmine.mining.scores.scale import LevelScale
from maskmine.pipelines.run_folder.cells import Cells
from maskmine.pipelines.steps.cells_of_run import RunCells, refuse_mixed
from maskmine.pipelines.steps.jobs import MakeCell, PartReport, Tick
from maskmine.pipelines.steps.ties import Input, identities, remember_once
from maskmine.schemas.rows import NegativesRow


@dataclass(frozen=True)
class NegativesJob:
    """captions, nouns, regions, vocabulary, levels → negatives.

    Where something is appended to a set, its negatives are nouns of the set's `base`, of which enough images tell.
    """

    device = None
    cells: RunCells
    output: Cells[NegativesRow]
    settings: Negatives
    base: RunCells | None = None

    @property
    def inputs(self) -> Sequence[Input]:
        cells = self.cells
        of_base = (self.base.vocabulary, self.base.levels) if self.base is not None else ()
        return tuple(map(Input, (cells.nouns, *cells.regions, cells.vocabulary, cells.levels, *of_base)))

    def open(self) -> MakeCell:
        cells, read = self.cells, remember_once(self.inputs)
        among = _tables(self.base) if self.base is not None else None
        find = self.settings.open(_tables(cells), among=among)

        def make(part: int, tick: Tick) -> PartReport:
            start_s, made_from = time.monotonic(), identities(self.inputs, part, read=read)
            said = pc.struct_field(pc.list_flatten(cells.nouns.read_table(part)["nouns"]), "text")
            images = made = 0

            def rows() -> Iterator[NegativesRow]:
                nonlocal images, made
                for row in find(self._images(part), said):
                    images += 1
                    made += len(row.negatives)
                    tick(1)
                    yield row

            self.output.write(part, rows(), made_from=made_from)
            seconds = time.monotonic() - start_s
            return PartReport(step=self.output.step, part=part, images=images, rejected=0, made=made, seconds=seconds)

        return make

    def _images(self, part: int) -> Iterator[ImageToSearch]:
        cells = self.cells
        rows: Iterator[tuple[Any, ...]] = zip_longest(
            cells.nouns.read_rows(part),
            cells.read_captions(part),
            chain.from_iterable(cells.read_regions(part)),
        )
        for row in rows:
            if len({one and one.image_id for one in row}) != 1:
                refuse_mixed(cells, part)
            yield ImageToSearch(*row)


def _tables(cells: RunCells) -> NounTables:
    scale = LevelScale.read(cells.levels.read_metadata())
    return NounTables.open(scale, cells.levels.read_groups(), cells.vocabulary.read_groups())
