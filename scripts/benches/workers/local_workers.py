"""Local workers against one process, and runs beside each other against one run, on two cores."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from maskmine.schemas.errors import InputError
from maskmine.scripts.demo_world.on_disk import find_world
from maskmine.scripts.measures import Measure, at_most

_CONFIG = Path(__file__).resolve().parents[3] / "configs" / "demo-models.yaml"
_SCENES, _CORES = 200, 2
_AT_ONCE = {2: 2.2, 4: 4.4}  # runs at once, and how many times as long as one run they may take
_SLOWEST_S = 3600.0


def bench_side_by_side(*, scenes: int = _SCENES) -> list[Measure]:
    """One, two and four runs of the demo world at once, each a process of its own, with the tiny models on the CPU.

    They cannot take less than as many times the work of one run; a run alone leaves a core free for some of its time.
    """
    cores = two_cores()
    with tempfile.TemporaryDirectory() as scratch:
        world = find_world(Path(scratch, "world"), scenes=scenes, seed=7)
        seconds = {runs: _at_once(world, Path(scratch), runs, cores=cores) for runs in (1, *_AT_ONCE)}
    return [
        Measure("scenes", scenes, "images"),
        *[Measure(f"{runs} runs at once" if runs > 1 else "one run", taken, "s") for runs, taken in seconds.items()],
        *[at_most(f"{n} runs at once", seconds[n] / seconds[1], "× one run", most) for n, most in _AT_ONCE.items()],
    ]


def bench_local_workers(*, scenes: int = _SCENES) -> list[Measure]:
    """A run of two local workers against the same run in one process, each step from nothing; the bytes are compared.

    The tiny models of the demo world use both cores by themselves, so the gain is in what runs no model, and is held
    down by the second start of Python, spaCy and PyTorch.
    """
    cores = two_cores()
    with tempfile.TemporaryDirectory() as scratch:
        world = find_world(Path(scratch, "world"), scenes=scenes, seed=7)
        seconds = {}
        for workers in (1, _CORES):
            start = time.perf_counter()
            options = ["--engine-opt", f"workers={workers}"]
            _finish([_start(world, Path(scratch, f"workers-{workers}"), cores=cores, options=options)])
            seconds[workers] = time.perf_counter() - start
        sums = {Path(scratch, f"workers-{workers}", "SHA256SUMS").read_text() for workers in seconds}
    return [
        Measure("scenes", scenes, "images"),
        Measure("one process", seconds[1], "s"),
        Measure("two workers", seconds[_CORES], "s"),
        Measure("two workers", seconds[1] / seconds[_CORES], "× as fast"),
        Measure("the same bytes", len(sums) == 1, "", "= 1", len(sums) == 1),
    ]


def two_cores() -> set[int]:
    """Two of the cores that this process may use. Raises InputError where it has fewer."""
    mine = sorted(os.sched_getaffinity(0))
    if len(mine) < _CORES:
        have = f"this process may use {len(mine)} core, and workers are measured on {_CORES}"
        raise InputError(f"bench: {have}; run it where it has more")
    return set(mine[:_CORES])


def _at_once(world: Path, scratch: Path, runs: int, *, cores: set[int]) -> float:
    """Seconds until so many runs that start together are finished."""
    start = time.perf_counter()
    _finish([_start(world, scratch / f"run-{number}-of-{runs}", cores=cores) for number in range(runs)])
    return time.perf_counter() - start


def _start(world: Path, out: Path, *, cores: set[int], options: Sequence[str] = ()) -> subprocess.Popen[bytes]:
    names = {"annotations": world / "captions.json", "images": world / "images"}
    captions = [f"captions.{name}={path}" for name, path in names.items()]
    sets = [word for value in (*captions, f"out={out}") for word in ("--set", value)]
    command = [sys.executable, "-m", "maskmine", "mine", str(_CONFIG), "--quiet", *sets, *options]
    started = subprocess.Popen(command, cwd=_CONFIG.parents[1], stdout=subprocess.DEVNULL)
    os.sched_setaffinity(started.pid, cores)
    return started


def _finish(started: Sequence[subprocess.Popen[bytes]]) -> None:
    codes = [process.wait(timeout=_SLOWEST_S) for process in started]
    if any(codes):
        raise InputError(f"bench: a run ended with exit code {max(codes)}; its own line says why")
