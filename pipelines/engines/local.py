"""The local engine: a loop in this process. No service, no copy of anything; the default for one machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from maskmine.pipelines.engines.engine import RunObserver
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.pipelines.steps.grid import Step
from maskmine.schemas.settings import Settings


@dataclass(frozen=True, slots=True)
class _Ticks:
    """Passes on how many records of a step are finished, and how many there will be."""

    observer: RunObserver
    step: str

    def __call__(self, records: int) -> None:
        self.observer.on_records(self.step, records)

    def expect(self, records: int) -> None:
        self.observer.on_total(self.step, records)


class LocalEngine(Settings):
    """Makes cells in this process, step after step and part after part."""

    models_run_here: ClassVar[bool] = True

    def run(self, run: RunFolder, steps: Sequence[Step], observer: RunObserver) -> None:
        """Make every missing cell."""
        for step in steps:
            todo = step.todo()
            if not todo:
                continue
            observer.on_step_start(step, todo)
            make = step.job.open()
            for part in todo:
                observer.on_part_done(make(part, _Ticks(observer, step.name)))
            observer.on_step_done(step)
