"""The local engine: a loop in this process, the default for one machine, or several worker processes on it.

No service, no copy of anything. With several workers a part moves on as soon as what it needs is there, and each GPU
has a worker of its own.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from maskmine.pipelines.engines.cell_queue import CellQueue
from maskmine.pipelines.engines.engine import RunObserver, reports_by_step
from maskmine.pipelines.engines.memory import refuse_too_many
from maskmine.pipelines.engines.processes import Processes
from maskmine.pipelines.engines.scheduler import Scheduler, WorkerPool
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.pipelines.run_folder.parts import Parts
from maskmine.pipelines.steps.grid import Step
from maskmine.pipelines.steps.job_models import runs_models
from maskmine.pipelines.steps.jobs import Job
from maskmine.schemas.errors import InputError
from maskmine.schemas.settings import Settings
from maskmine.schemas.wording import counted

_MAX_ATTEMPTS = 3  # at a part whose worker dies
_VISIBLE = "CUDA_VISIBLE_DEVICES"


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
    """Makes cells on this machine. The fields are what `--engine-opt name=value` sets.

    One worker is this process, which goes step after step and part after part. Several are processes of their own, and
    steps with models on GPUs have a worker for each GPU.
    """

    models_run_here: ClassVar[bool] = True

    workers: Annotated[int, Field(ge=1)] = 1
    """Processes that make cells; with GPUs, those beside the GPUs' own workers."""
    gpus: Annotated[int, Field(ge=1)] | None = None
    """How many GPUs of the machine run models, each with a worker of its own; null is one with a single worker, and all
    of them with several."""
    no_progress_timeout_s: Annotated[float, Field(gt=0)] | None = None
    """Seconds without a finished part after which a run of several workers ends, as where one was stopped, or waits for
    a dead disk; null waits."""

    def run(self, run: RunFolder, steps: Sequence[Step], observer: RunObserver) -> None:
        """Make every missing cell. What a worker raises is raised here, as it is.

        Raises InputError for more workers than the memory holds, or more GPUs than there are; IncompleteError for parts
        whose workers die, or when nothing is finished.
        """
        todo = [step.todo() for step in steps]
        jobs = {step.name: step.job for step, parts in zip(steps, todo, strict=True) if parts}
        if not jobs:
            return
        self.check_workers(jobs)
        gpus = self._gpus(jobs)
        if self._is_alone(gpus):
            _run_here(steps, {step.name: parts for step, parts in zip(steps, todo, strict=True)}, observer)
            return
        on_gpu = {name for name, job in jobs.items() if gpus and runs_models(job)}
        gpu_pool, cpu_pool = WorkerPool(len(gpus), {"gpu": True}), WorkerPool(self.workers, {"gpu": False})
        asking = {step.name: WorkerPool(1, {"gpu": False}) for step in steps if step.one_worker}
        pool_of = dict.fromkeys(on_gpu, gpu_pool) | asking
        scheduler = Scheduler(
            queue=CellQueue(steps, todo),
            observer=observer,
            workers=Processes(jobs, gpus=gpus),
            pools=[gpu_pool, cpu_pool, *asking.values()],
            pool_of=[pool_of.get(step.name, cpu_pool) for step in steps],
            max_attempts=_MAX_ATTEMPTS,
            no_progress_timeout_s=math.inf if self.no_progress_timeout_s is None else self.no_progress_timeout_s,
        )
        try:
            scheduler.run()
        finally:
            scheduler.kill_workers()

    def check_workers(self, jobs: Mapping[str, Job]) -> None:
        """Raises InputError for more workers than the memory holds, or more GPUs than there are."""
        gpus = self._gpus(jobs)
        if not self._is_alone(gpus):
            on_gpu = [job for job in jobs.values() if gpus and runs_models(job)]
            on_cpu = [job for job in jobs.values() if job not in on_gpu]
            refuse_too_many(self.workers, on_cpu, gpus=len(gpus), on_gpu=on_gpu)

    def _is_alone(self, gpus: Sequence[object]) -> bool:
        """Whether this process makes the cells itself."""
        return self.workers == 1 and len(gpus) <= 1

    def _gpus(self, jobs: Mapping[str, Job]) -> list[dict[str, str]]:
        """The environment of the worker of each GPU that is to run models, which then sees that one alone.

        Raises InputError for more GPUs than there are, or for any where models are to run on the CPU.
        """
        asked = {job.device for job in jobs.values() if runs_models(job)}
        if not asked:
            return []
        device = asked.pop() or "cpu"  # all are those of `regions`
        there = _gpus_here() if device != "cpu" else 0
        if self.gpus is not None and self.gpus > there:
            have = (
                "`regions.device` is cpu"
                if device == "cpu"
                else f"this machine has {counted(there, 'GPU') if there else 'no GPU'}"
            )
            fewer = f", or choose {there} at most" if there else ""
            raise InputError(f"gpus: {self.gpus} asked for, and {have}; leave gpus out{fewer}")
        if device.startswith("cuda:"):
            if (self.gpus or 1) > 1:
                raise InputError(f"gpus: {self.gpus} asked for, and `regions.device` is {device}; set it to cuda")
            return [{}]  # the index is of all that are there
        names = os.environ.get(_VISIBLE, ",".join(map(str, range(there)))).split(",")
        most = self.gpus or (there if self.workers > 1 else min(there, 1))
        return [{_VISIBLE: name} for name in names[:most]]


def _gpus_here() -> int:
    import torch

    return torch.cuda.device_count()


def _run_here(steps: Sequence[Step], todo: Mapping[str, Parts], observer: RunObserver) -> None:
    """Make every missing cell in this process, step after step."""
    left = {name: Parts(parts) for name, parts in todo.items()}
    started: set[str] = set()

    def start(step: Step) -> None:
        if step.name not in started:
            started.add(step.name)
            observer.on_step_start(step, todo[step.name])

    for step in steps:
        if not todo[step.name]:
            continue
        start(step)
        if parts := Parts(left[step.name]):  # an earlier step may have made some in its pass
            make = step.job.open()
            for part in parts:
                for report, of in reports_by_step(make(part, _Ticks(observer, step.name)), steps):
                    start(of)
                    if of is not step:
                        observer.on_records(of.name, report.images)
                    observer.on_part_done(report)
                    left[of.name].discard(part)
        observer.on_step_done(step)
