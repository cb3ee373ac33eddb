"""A measured figure and the goal that it is held to, of which every benchmark returns a list; times taken in turns."""

from __future__ import annotations

import gc
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Measure:
    """`reached` is None for a figure without a goal (`goal` is then empty)."""

    name: str
    value: float
    unit: str
    goal: str
    reached: bool | None


def peak_bytes() -> int:
    """The most memory of this process: Linux's `ru_maxrss` begins with that of the process that started it."""
    status = Path("/proc/self/status")
    if status.exists():
        return 1024 * int(status.read_text().partition("VmHWM:")[2].split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def in_turns(*works: Callable[[], object], rounds: int = 3, warm_up: bool = False) -> list[float]:
    """Median seconds of each, measured in turns, so that a slow spell of the machine meets all of them.

    With `warm_up` all do their work once more before, which is not counted.
    """
    times: list[list[float]] = [[] for _ in works]
    for work in works if warm_up else ():
        work()
    for _ in range(rounds):
        for work, taken in zip(works, times, strict=True):
            gc.collect()
            start = time.perf_counter()
            work()
            taken.append(time.perf_counter() - start)
    return [statistics.median(taken) for taken in times]
