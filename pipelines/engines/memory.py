"""Whether the memory of this machine holds so many workers, told before any of them starts."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rich.filesize import decimal

from maskmine.pipelines.steps.job_models import weights_bytes
from maskmine.pipelines.steps.jobs import Job
from maskmine.schemas.errors import InputError

WORKER_BYTES = 700_000_000
"""What a process has that has loaded PyTorch and decodes images, beside its models."""
_OF_WEIGHTS = 2  # times their bytes on the disk: they and what they calculate with


def refuse_too_many(workers: int, jobs: Iterable[Job]) -> None:
    """Raises InputError where so many workers do not fit into the memory that is free now, by the size of the models
    that each of them loads. Nothing is said where either is not known."""
    free_bytes = free_memory_bytes()
    if free_bytes is None:
        return
    weights = max(map(weights_bytes, jobs), default=0)
    each = WORKER_BYTES + _OF_WEIGHTS * weights
    if workers * each > free_bytes:
        fit = max(1, free_bytes // each)
        raise InputError(
            f"workers: {workers} of about {decimal(each)} each (models of {decimal(weights)}) do not fit into "
            f"{decimal(free_bytes)} of free memory; choose {fit} at most"
        )


def free_memory_bytes() -> int | None:
    """What the kernel calls available, and not more than the limit of the container; None where it does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    free_bytes = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        limit = "max"
    return min(free_bytes, int(limit)) if free_bytes is not None and limit.isdecimal() else free_bytes
