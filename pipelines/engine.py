"""The seam between the pipeline and where it runs: an engine is a map of stages over part numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from pipelines.cells import PartReport
from pipelines.grid import Stage
from pipelines.run_folder import RunFolder


class Watch(Protocol):
    """Whoever wants to see the work go on: a progress bar, a log."""

    def stage_begins(self, stage: Stage, todo: Sequence[int]) -> None:
        """A stage begins; `todo` are the parts that it will make."""

    def tick(self, step: str, records: int) -> None:
        """So many more images (nouns in `vocabulary`) are finished in a step that has begun."""

    def part_ends(self, report: PartReport) -> None:
        """A cell was made."""

    def stage_ends(self, stage: Stage) -> None:
        """All cells of the stage are there."""


class Engine(Protocol):
    """Makes the missing cells of all stages, each stage after those that it reads, and returns when they exist."""

    def __call__(self, run: RunFolder, stages: Sequence[Stage], watch: Watch) -> None: ...
