"""The seam between the pipeline and where it runs: an engine is a map of steps over part numbers."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol, runtime_checkable

from maskmine.mining.models.devices import DeviceKind, kind_of
from maskmine.pipelines.planning.plan import Plan
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.pipelines.steps.grid import Step
from maskmine.pipelines.steps.jobs import Job, PartReport, each_report


class RunObserver:
    """Sees a run go on and does nothing about it; progress bars, logs and metrics override what they need."""

    def on_plan(self, plan: Plan) -> None:
        """It is known how many images and parts there are; comes before any step."""

    def on_line(self, line: str) -> None:
        """What a person should know before the work begins; comes after the plan, before any step."""

    def on_step_start(self, step: Step, todo: Collection[int]) -> None:
        """A step begins; `todo` are the parts that it will make."""

    def on_total(self, step: str, records: int) -> None:
        """It is known how many nouns a step that runs once will go through."""

    def on_records(self, step: str, records: int) -> None:
        """`records` more images (nouns in `vocabulary`) are finished in a step that has begun."""

    def on_part_done(self, report: PartReport) -> None:
        """A cell was made."""

    def on_step_done(self, step: Step) -> None:
        """All cells of the step are there."""


class Engine(Protocol):
    """Where cells are made. `models_run_here`: in this process, which then needs the GPU itself."""

    @property
    def models_run_here(self) -> bool: ...

    def run(self, run: RunFolder, steps: Sequence[Step], observer: RunObserver) -> None:
        """Make the missing cells of all steps, each step after those that it reads; return when they exist."""


def reports_by_step(made: PartReport | Sequence[PartReport], steps: Sequence[Step]) -> list[tuple[PartReport, Step]]:
    """The reports of one pass, each with its step; those of steps that an engine was not given are left out."""
    by_name = {step.name: step for step in steps}
    return [(report, by_name[report.step]) for report in each_report(made) if report.step in by_name]


@runtime_checkable
class KnowsGpus(Protocol):
    """An engine whose workers are elsewhere, and which can tell whether they have GPUs."""

    def workers_have_gpus(self) -> bool | None:
        """None where the workers are on this machine."""


@runtime_checkable
class HasWorkers(Protocol):
    """An engine that can tell before it starts workers whether this machine holds them."""

    def check_workers(self, jobs: Mapping[str, Job]) -> None:
        """Raises InputError for more workers, or GPUs, than there is room for with the jobs of these steps."""


def device_kind(name: str, *, engine: Engine) -> DeviceKind:
    """The kind of a device, `auto` among them, where the engine's models run."""
    gpus = engine.workers_have_gpus() if name == "auto" and isinstance(engine, KnowsGpus) else None
    if gpus is None:
        return kind_of(name)
    return "cuda" if gpus else "cpu"
