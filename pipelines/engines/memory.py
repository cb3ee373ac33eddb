"""Whether the memory of a machine holds so many workers, told before any of them starts."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rich.filesize import decimal

from maskmine.pipelines.engines.scheduler import OPEN_JOBS
from maskmine.pipelines.steps.job_models import weights_bytes
from maskmine.pipelines.steps.jobs import Job
from maskmine.schemas.errors import InputError
from maskmine.schemas.wording import counted

WORKER_BYTES = 700_000_000
"""What a process has that has loaded PyTorch and decodes images, beside its models."""
_OF_WEIGHTS = 2  # times their bytes on the disk: they and what they calculate with
_MEMORY_LIMITS = (
    "/sys/fs/cgroup/memory.max",
    "/sys/fs/cgroup/memory/memory.limit_in_bytes",
)  # of containers, v2 and v1


def worker_bytes(jobs: Iterable[Job]) -> int:
    """What a worker takes that makes the cells of these jobs, by the models of those that it keeps open together."""
    return WORKER_BYTES + _OF_WEIGHTS * _models_bytes(jobs)


def refuse_too_many(workers: int, jobs: Iterable[Job], *, gpus: int = 0, on_gpu: Iterable[Job] = ()) -> None:
    """Raises InputError where so many workers do not fit into the memory that is free now, by the size of the models
    that each of them loads. Nothing is said where either is not known.

    `gpus` are workers beside them, which alone load what is made on GPUs; weights pass through memory on their way.
    """
    free_bytes = free_memory_bytes()
    if free_bytes is None:
        return
    jobs = list(jobs)
    each, beside = worker_bytes(jobs), gpus * worker_bytes(on_gpu)
    if workers * each + beside > free_bytes:
        models = f"models of {decimal(_models_bytes(jobs))}" if _models_bytes(jobs) else "no model"
        of_gpus = f" beside {counted(gpus, 'GPU worker')} of {decimal(beside // gpus)}" if gpus else ""
        fit = max(1, (free_bytes - beside) // each)
        raise InputError(
            f"workers: {workers} of about {decimal(each)} each ({models}){of_gpus} do not fit into "
            f"{decimal(free_bytes)} of free memory; choose {fit} at most"
        )


def free_memory_bytes() -> int | None:
    """What the kernel calls available, and not more than the limit of the container; None where it does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    known = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    for limit in _MEMORY_LIMITS:
        try:
            said = Path(limit).read_text().strip()
        except OSError:
            continue
        known += [int(said)] if said.isdecimal() else []
    return min(known, default=None)


def _models_bytes(jobs: Iterable[Job]) -> int:
    """The weights of the largest jobs that a worker has open at the same time."""
    return sum(sorted(map(weights_bytes, jobs))[-OPEN_JOBS:])
