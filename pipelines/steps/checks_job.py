"""The job of the checks: what a verifier says of the pairs of a part, of which an earlier cell may know some."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, zip_longest
from typing import Any

from maskmine.mining.checks import Checks, ImageToCheck
from maskmine.mining.regions import Regions
from maskmine.pipelines.run_folder.cells import Cells
from maskmine.pipelines.run_folder.reused_regions import ReusedRun, RowsOf
from maskmine.pipelines.steps.cells_of_run import RunCells, refuse_mixed
from maskmine.pipelines.steps.jobs import Counts, MakeCell, PartReport, Tick, with_gpu_use
from maskmine.pipelines.steps.ties import Input, identities
from maskmine.schemas.rows import ChecksRow
from maskmine.schemas.tables import from_table

_LOOKED_UP = 64  # images of a part whose checks are taken from an earlier run together


@dataclass(frozen=True)
class ChecksJob:
    """images, proposals, pairs → checks.

    What an earlier cell of the part says of the same picture, noun and mask is taken over, and what a reused run says
    where there is no such cell. So new captions, another rule or another CLIP check what is new; where nothing is, no
    picture is decoded and no model loaded.
    """

    cells: RunCells
    output: Cells[ChecksRow]
    settings: Checks
    regions: Regions
    reused: ReusedRun | None = None

    @property
    def device(self) -> str:
        return self.regions.device

    @property
    def inputs(self) -> Sequence[Input]:
        return (Input(self.cells.proposals), Input(self.cells.pairs))

    def open(self) -> MakeCell:
        check = self.settings.open(self.regions)
        of_reused = self.reused.open_checks() if self.reused is not None else None

        def make(part: int, tick: Tick) -> PartReport:
            start_s, counts = time.monotonic(), Counts()
            made_from = identities(self.inputs, part)

            def rows() -> Iterator[ChecksRow]:
                for row in check(self._images(part, of_reused)):
                    yield row
                    tick(1)

            self.output.write(part, counts.of(rows(), lambda row: len(row.checks)), made_from=made_from)
            return counts.report(self.output.step, part, start_s=start_s)

        return with_gpu_use(make, device=self.device)

    def _images(self, part: int, of_reused: RowsOf | None) -> Iterator[ImageToCheck]:
        cells = self.cells
        earlier = {row.image_id: row for row in self.output.read_earlier(part)}
        rows: Iterator[tuple[Any, ...]] = zip_longest(
            cells.images.read_rows(part), cells.proposals.read_rows(part), cells.pairs.read_rows(part)
        )
        while block := list(islice(rows, _LOOKED_UP)):
            if any(len({one and one.image_id for one in row}) != 1 for row in block):
                refuse_mixed(cells, part)
            if of_reused is not None and not earlier:
                table = of_reused([image.image_id for image, *_ in block])
                known = {row.image_id: row for row in from_table(table, ChecksRow)}
            else:
                known = earlier
            for image, proposals, pairs in block:
                yield ImageToCheck(image, proposals, pairs, known.get(image.image_id))
