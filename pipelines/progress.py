"""What a person sees while a run goes on: bars on a terminal, one line a part elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from pipelines.cells import PartReport
from pipelines.grid import Stage
from pipelines.plan import Plan

_MADE = {"nouns": "nouns", "regions": "regions", "pairs": "pairs", "shards": "samples", "vocabulary": "nouns"}


@dataclass
class ProgressBars:
    """A bar a stage, counting images, with the rate and the time left."""

    console: Console
    plan: Plan
    _progress: Progress = field(init=False)
    _tasks: dict[str, TaskID] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description:<10}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=self.console,
        )

    def __enter__(self) -> ProgressBars:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def stage_begins(self, stage: Stage, todo: Sequence[int]) -> None:
        total = None if stage.once else sum(self.plan.part_size(part) for part in todo)
        self._tasks[stage.name] = self._progress.add_task(stage.name, total=total, rate="")

    def tick(self, step: str, records: int) -> None:
        task = self._tasks[step]
        self._progress.advance(task, records)
        speed = self._progress.tasks[task].speed
        self._progress.update(task, rate=f"{speed:,.0f}/s" if speed else "")

    def part_ends(self, report: PartReport) -> None:
        pass

    def stage_ends(self, stage: Stage) -> None:
        task = self._tasks[stage.name]
        done = self._progress.tasks[task].completed
        self._progress.update(task, total=done, completed=done)


@dataclass
class PartLines:
    """One line a part, for logs and pipes."""

    console: Console
    plan: Plan

    def __enter__(self) -> PartLines:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def stage_begins(self, stage: Stage, todo: Sequence[int]) -> None:
        pass

    def tick(self, step: str, records: int) -> None:
        pass

    def part_ends(self, report: PartReport) -> None:
        made = f"{report.made:,} {_MADE.get(report.step, 'rows')}"
        rejected = f", {report.rejected} images rejected" if report.rejected else ""
        rate = report.images / report.seconds if report.seconds else 0
        self.console.print(
            f"{report.step} {report.part:05d}: {report.images:,} → {made}{rejected}, "
            f"{report.seconds:.1f} s, {rate:,.0f}/s",
            soft_wrap=True,
            highlight=False,
        )

    def stage_ends(self, stage: Stage) -> None:
        pass
