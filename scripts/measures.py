"""A measured figure and the goal that it is held to, of which every benchmark returns a list; times taken in turns."""

from __future__ import annotations

import gc
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from maskmine.pipelines.engines.engine import RunObserver
from maskmine.pipelines.steps.jobs import PartReport


@dataclass(frozen=True, slots=True)
class Measure:
    """`reached` is None for a figure without a goal (`goal` is then empty)."""

    name: str
    value: float
    unit: str
    goal: str = ""
    reached: bool | None = None


def at_least(name: str, value: float, unit: str, goal: float) -> Measure:
    """A figure that is to reach a goal."""
    return Measure(name, value, unit, f"≥ {goal:g}", value >= goal)


def at_most(name: str, value: float, unit: str, goal: float) -> Measure:
    """A figure that is not to exceed a goal."""
    return Measure(name, value, unit, f"≤ {goal:g}", value <= goal)


def peak_bytes() -> int:
    """The most memory of this process: Linux's `ru_maxrss` begins with that of the process that started it."""
    status = Path("/proc/self/status")
    if status.exists():
        return 1024 * int(status.read_text().partition("VmHWM:")[2].split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def restart_peak_bytes() -> int:
    """Let `peak_bytes` begin anew, on Linux; returns what it begins with."""
    gc.collect()
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5")
    return peak_bytes()


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


@dataclass
class Seconds(RunObserver):
    """Adds up the seconds of each step, and counts what it made."""

    seconds: dict[str, float] = field(default_factory=dict)
    made: dict[str, int] = field(default_factory=dict)

    def on_part_done(self, report: PartReport) -> None:
        self.seconds[report.step] = self.seconds.get(report.step, 0.0) + report.seconds
        self.made[report.step] = self.made.get(report.step, 0) + report.made
