"""The local engine: a loop in this process. No service, no copy of anything; the default for one machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from maskmine.pipelines.engines.engine import RunObserver, reports_by_step
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
        todo = {step.name: step.todo() for step in steps}
        left = {name: set(parts) for name, parts in todo.items()}
        started: set[str] = set()

        def start(step: Step) -> None:
            if step.name not in started:
                started.add(step.name)
                observer.on_step_start(step, todo[step.name])

        for step in steps:
            if not todo[step.name]:
                continue
            start(step)
            if parts := sorted(left[step.name]):  # an earlier step may have made some in its pass
                make = step.job.open()
                for part in parts:
                    for report, of in reports_by_step(make(part, _Ticks(observer, step.name)), steps):
                        start(of)
                        if of is not step:
                            observer.on_records(of.name, report.images)
                        observer.on_part_done(report)
                        left[of.name].discard(part)
            observer.on_step_done(step)
