"""A plan, its steps and reports of parts, for what looks on at a run; what stands in a table for the terminal."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from maskmine.pipelines.planning.plan import Plan
from maskmine.pipelines.run_folder.cells import Cells
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.pipelines.steps.grid import Step
from maskmine.pipelines.steps.jobs import NounsJob, PartReport
from maskmine.schemas.rows import SampleRow

PARTS, PART_IMAGES = 40, 100


PLAN = Plan(PARTS * PART_IMAGES, PARTS, "", "", {}, None)


def make_step(name: str = "proposals", *, parts: int = PARTS, once: bool = False) -> Step:
    label = {"shards": "samples", "vocabulary": "nouns", "proposals": "regions"}.get(name, name)
    cells: Cells[Any] = Cells(RunFolder(""), name, SampleRow, once=once)
    return Step(cells, NO_JOB, parts, label)


def report(part: int, seconds: float, step: str = "proposals", **changes: Any) -> PartReport:
    counts = {"images": PART_IMAGES, "rejected": 1, "made": 3 * PART_IMAGES}
    return PartReport(step=step, part=part, seconds=seconds, **{**counts, **changes})


NO_JOB: Any = NounsJob.__new__(NounsJob)  # a watch is not to touch the job


def texts_of(table: Table, column: int) -> list[str]:
    """The cells of a column, from the top; its header is not among them."""
    return [str(cell) for cell in table.columns[column].cells]
