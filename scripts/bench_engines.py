"""What the engines cost and gain on this machine: start-up, time, speed-up, work repeated after a kill, memory.

Every worker has one thread. The load is the demo world, its scenes listed as often as the run is to be long, with all
five captions, its exact masks as proposals, and CLIP of a small architecture with random weights.

- *start-up*: from the call of the engine until a worker opens its first job (loads spaCy, say);
- *after start-up*: from there until the engine returns;
- *speed-up*: cells a second of a stage alone (only its cells are missing), while all workers are at work;
- *made twice*: cells that were begun more often than once, when a worker is killed with SIGKILL in mid-run and the
  command is run again where the engine did not go on by itself;
- *memory*: resident bytes of driver and workers within a stage; the stage in which they grow most is shown.

All runs of the load must write the same bytes, or the bench fails.
"""

from __future__ import annotations

import os
import signal
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

import psutil

from schemas.errors import InputError
from scripts.bench_mining import save_random_clip
from scripts.demo_world import draw_world
from scripts.engine_load import CLIP, FEWEST_PARTS, Load, calibrate, cells_for, images_for, make_load
from scripts.engine_runs import TWO_PROCESSES, Event, complete_run, is_incomplete, new_events, read_events, start_run
from scripts.measures import Measure

SECTIONS = ("start-up", "time", "kills", "memory")
ENGINES = ("ray", "beam")
FULL_MINUTES = 3.0
SCENES = 64  # few, since all of them are in `vocabulary`, which is made by one worker
PARTS, QUICK_PARTS, MEMORY_PARTS = 100, 40, 2000
_SAMPLE_S = 0.1
_KILLED_CELL_S = 2.0


def bench_engines(*, minutes: float = FULL_MINUTES, sections: Sequence[str] = SECTIONS) -> Iterator[Measure]:
    """All figures, as they are found; two processes without an engine take at least `minutes` for the load of `time`.

    Raises InputError.
    """
    with tempfile.TemporaryDirectory(prefix="maskmine-engines-") as scratch, _one_thread():
        folder = Path(scratch)
        draw_world(folder / "world", scenes=SCENES, seed=7, workers=2)
        save_random_clip(folder / "clip.safetensors", model=CLIP)
        if "start-up" in sections:
            yield from _start_ups(folder)
        if "time" in sections or "kills" in sections:
            print("  calibrating", flush=True)
            per_image_s = calibrate(folder)
        if "time" in sections:
            yield from _runs_of_load(folder, minutes=minutes, per_image_s=per_image_s)
        if "kills" in sections:
            yield from _kills(folder, images_per_part=max(1, round(_KILLED_CELL_S / per_image_s["regions"])))
        if "memory" in sections:
            parts = max(FEWEST_PARTS, min(MEMORY_PARTS, round(MEMORY_PARTS * minutes / FULL_MINUTES)))
            yield from _memory(folder, parts=parts)


def _start_ups(folder: Path) -> Iterator[Measure]:
    """A run of one small part."""
    load = make_load(folder, name="start-up", images=2, images_per_part=2, with_clip=False)
    local_s = 0.0
    for engine in ("local", *ENGINES):
        print(f"  {engine}: a run of one small part", flush=True)
        events = complete_run(load.config(engine), engine, workers=2, log=load.log(engine))
        whole_s = _span(events, "start", "return")
        local_s = local_s or whole_s
        yield Measure(f"{engine}: start-up", _span(events, "start", "open"), "s", "", None)
        if engine != "local":
            yield Measure(f"{engine}: one small part, beyond local's", whole_s - local_s, "s", "", None)


def _runs_of_load(folder: Path, *, minutes: float, per_image_s: Mapping[str, float]) -> Iterator[Measure]:
    """Time and speed-up on the run folders of one load; `nouns` and `shards` are too quick and have their own."""
    images = images_for(minutes=minutes, per_image_s=sum(per_image_s.values()), workers=2)
    load = make_load(folder, name="load", images=images, images_per_part=-(-images // PARTS), with_clip=True)
    measures, cell_s = _whole_runs(load, images=images, minutes=minutes)
    yield from measures
    for stage in ("nouns", "shards"):
        many = images_for(minutes=minutes / 4, per_image_s=per_image_s[stage], workers=1)
        per_part = -(-many // QUICK_PARTS)
        quick = make_load(folder, name=stage, images=many, images_per_part=per_part, with_clip=False)
        for engine in ENGINES:
            if stage == "shards":
                print(f"  {engine}: what shards are made from, {many:,} images", flush=True)
                complete_run(quick.config(engine), engine, workers=2, log=quick.log(engine))
            yield _speed_up(quick, engine, stage, parts=QUICK_PARTS)
    parts = cells_for(20 * minutes, cell_s=cell_s["regions"], cells=load.parts(ENGINES[0]))
    for engine in ENGINES:
        yield _speed_up(load, engine, "regions", parts=parts)


def _kills(folder: Path, *, images_per_part: int) -> Iterator[Measure]:
    images = FEWEST_PARTS * images_per_part
    load = make_load(folder, name="kills", images=images, images_per_part=images_per_part, with_clip=True)
    for engine in (TWO_PROCESSES, *ENGINES):
        complete_run(load.config(engine), engine, workers=2, log=load.log(engine))
        load.check_bytes(engine, "shards")
        yield _repeated(load, engine)


def _whole_runs(load: Load, *, images: int, minutes: float) -> tuple[list[Measure], dict[str, float]]:
    """The whole load with two workers; also the seconds that a cell of each stage takes."""
    seconds: dict[str, float] = {}
    cell_s: dict[str, float] = {}
    for engine in (TWO_PROCESSES, *ENGINES):
        print(f"  {engine}: {images:,} images with two workers", flush=True)
        events = complete_run(load.config(engine), engine, workers=2, log=load.log(engine))
        print(f"    {_spent(events)}", flush=True)
        seconds[engine], cell_s = _span(events, "open", "return"), cell_s or seconds_per_cell(events)
        load.check_bytes(engine, "shards")
    measures = [_least(f"{TWO_PROCESSES}: {images:,} images", seconds[TWO_PROCESSES], "s", 60 * minutes)]
    for engine in ENGINES:
        measures.append(Measure(f"{engine}: after start-up", seconds[engine], "s", "", None))
        measures.append(_most(f"{engine} / {TWO_PROCESSES}", seconds[engine] / seconds[TWO_PROCESSES], "×", 1.1))
    return measures, cell_s


def _speed_up(load: Load, engine: str, stage: str, *, parts: int) -> Measure:
    """The first parts of a stage, with one worker and with two."""
    rates = []
    for workers in (1, 2):
        print(f"  {engine}: {parts} parts of {stage} with {workers} workers", flush=True)
        load.forget(engine, [stage], parts=parts)
        events = complete_run(load.config(engine), engine, workers=workers, log=load.log(engine), only=stage)
        print(f"    {_spent(events)}", flush=True)
        rates.append(cells_per_s(events))
        load.check_bytes(engine, stage)
    return _least(f"{engine}: {stage}, 1 → 2 workers", rates[1] / rates[0], "×", 1.8)


def _repeated(load: Load, engine: str) -> Measure:
    """Kill a worker in mid-run, and count the cells that were begun more than once until all is made again."""
    print(f"  {engine}: {FEWEST_PARTS} parts of regions, pairs and shards, and a worker that is killed", flush=True)
    load.forget(engine, ["regions", "pairs", "shards"], parts=FEWEST_PARTS)
    log = load.log(engine)
    process = start_run(load.config(engine), engine, workers=2, log=log)
    os.kill(_worker_in_mid_run(process, log, after=FEWEST_PARTS // 2), signal.SIGKILL)
    process.join()
    for _ in range(3):
        if not is_incomplete(process):
            break
        process = start_run(load.config(engine), engine, workers=2, log=log)
        process.join()
    load.check_bytes(engine, "shards")
    return _most(f"{engine}: cells made twice after a kill", made_twice(read_events(log)), "cells", 2)


def made_twice(events: Sequence[Event]) -> int:
    """How often a cell was begun that had been begun before."""
    begun = Counter((event.stage, event.part) for event in events if event.what == "begin")
    return begun.total() - len(begun)


def cells_per_s(events: Sequence[Event]) -> float:
    """Cells a second of a stage while all of its processes are at work; a cell that is partly then counts in part."""
    spans: dict[int, list[tuple[float, float]]] = {}
    begun: dict[tuple[int, int], float] = {}
    for event in events:
        if event.what == "begin":
            begun[event.pid, event.part] = event.at_s
        if event.what == "end":
            spans.setdefault(event.pid, []).append((begun[event.pid, event.part], event.at_s))
    since = max(own[0][0] for own in spans.values())
    until = min(own[-1][1] for own in spans.values())
    within = [
        max(0.0, min(end, until) - max(begin, since)) / (end - begin) for own in spans.values() for begin, end in own
    ]
    return sum(within) / (until - since)


def seconds_per_cell(events: Sequence[Event]) -> dict[str, float]:
    """The mean time of a stage's cells, from begin to end."""
    begun: dict[tuple[str, int, int], float] = {}
    taken: dict[str, list[float]] = {}
    for event in events:
        key = (event.stage, event.part, event.pid)
        if event.what == "begin":
            begun[key] = event.at_s
        if event.what == "end":
            taken.setdefault(event.stage, []).append(event.at_s - begun[key])
    return {stage: statistics.mean(times) for stage, times in taken.items()}


class Sample(NamedTuple):
    """The resident memory of a process at a time."""

    pid: int
    at_s: float
    rss_bytes: int


class Growth(NamedTuple):
    """Mean resident memory of a process over 20–30 % and over 90–100 % of a stage's parts."""

    stage: str
    early_bytes: float
    late_bytes: float

    @property
    def ratio(self) -> float:
        return self.late_bytes / self.early_bytes


def _memory(folder: Path, *, parts: int) -> Iterator[Measure]:
    load = make_load(folder, name="memory", images=parts, images_per_part=1, with_clip=False)
    for engine in ("local", *ENGINES):
        print(f"  {engine}: memory over {parts:,} parts", flush=True)
        process = start_run(load.config(engine), engine, workers=2, log=(log := load.log(engine)))
        samples = list(_sample_memory(process.pid or 0, log))
        process.join()
        if process.exitcode:
            raise InputError(f"bench: the run of {parts} parts by {engine} ended with exit code {process.exitcode}")
        events = read_events(log)
        workers = {event.pid for event in events if event.what == "begin"}
        roles = {"driver": {process.pid or 0}} | ({"worker": workers} if engine != "local" else {})
        for role, pids in roles.items():
            growths = [growth for pid in sorted(pids) for growth in growth_by_stage(events, samples, pid=pid)]
            yield from _shown(f"{engine}: {role}", max(growths, key=lambda growth: growth.ratio))
        load.check_bytes(engine, "shards")


def growth_by_stage(events: Sequence[Event], samples: Sequence[Sample], *, pid: int) -> Iterator[Growth]:
    """How the memory of a process grew within each stage; where no sample fell into a window, the nearest counts."""
    own = [sample for sample in samples if sample.pid == pid]
    for stage in dict.fromkeys(event.stage for event in events if event.what == "end"):
        ends = [event.at_s for event in events if event.what == "end" and event.stage == stage]
        means = []
        for low, high in ((0.2, 0.3), (0.9, 1.0)):
            since, until = (ends[min(len(ends) - 1, int(share * len(ends)))] for share in (low, high))
            nearest = min(own, key=lambda one: max(since - one.at_s, one.at_s - until, 0.0))
            means.append(
                statistics.mean([one.rss_bytes for one in own if since <= one.at_s <= until] or [nearest.rss_bytes])
            )
        yield Growth(stage, *means)


def _shown(name: str, growth: Growth) -> list[Measure]:
    return [
        Measure(f"{name}, {growth.stage}, at 20–30 % of the parts", growth.early_bytes / 1e6, "MB", "", None),
        Measure(f"{name}, {growth.stage}, at 90–100 % of the parts", growth.late_bytes / 1e6, "MB", "", None),
        _most(f"{name}, growth", growth.ratio, "×", 1.1),
    ]


def _sample_memory(driver_pid: int, log: Path) -> Iterator[Sample]:
    """Of the driver and of the processes that made cells, until the driver ends."""
    driver = psutil.Process(driver_pid)
    pids = {driver_pid}
    with log.open() as file:
        while driver.is_running() and driver.status() != psutil.STATUS_ZOMBIE:
            pids |= {event.pid for event in new_events(file)}
            for pid in pids:
                with suppress(psutil.NoSuchProcess):
                    yield Sample(pid, time.monotonic(), psutil.Process(pid).memory_info().rss)
            time.sleep(_SAMPLE_S)


def _worker_in_mid_run(run: BaseProcess, log: Path, *, after: int) -> int:
    """Wait until so many cells are made and another one is in hand; returns the process that has it."""
    while run.is_alive():
        events = read_events(log)
        ended = {(event.stage, event.part) for event in events if event.what == "end"}
        in_hand = [e for e in events if e.what == "begin" and (e.stage, e.part) not in ended]
        if len(ended) >= after and in_hand:
            return in_hand[-1].pid
        time.sleep(0.02)
    raise InputError("bench: the run ended before one of its workers was killed; give more --engine-minutes")


def _first(events: Sequence[Event], what: str) -> float:
    return min(event.at_s for event in events if event.what == what)


def _last(events: Sequence[Event], what: str) -> float:
    return max(event.at_s for event in events if event.what == what)


def _span(events: Sequence[Event], begin: str, end: str) -> float:
    return _first(events, end) - _first(events, begin)


def _spent(events: Sequence[Event]) -> str:
    """Where the time went: start-up, each stage from its first cell begun to its last one ended, the rest."""
    stages = dict.fromkeys(event.stage for event in events if event.what == "begin")
    spans = {
        stage: _last(own, "end") - _first(own, "begin")
        for stage in stages
        if (own := [event for event in events if event.stage == stage])
    }
    words = [f"start-up {_span(events, 'start', 'open'):.1f} s"]
    words += [f"{stage} {span:.1f} s" for stage, span in spans.items()]
    return ", ".join([*words, f"after the last cell {_last(events, 'return') - _last(events, 'end'):.1f} s"])


def _least(name: str, value: float, unit: str, goal: float) -> Measure:
    return Measure(name, value, unit, f"≥ {goal:g}", value >= goal)


def _most(name: str, value: float, unit: str, goal: float) -> Measure:
    return Measure(name, value, unit, f"≤ {goal:g}", value <= goal)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Processes that are started in the block have one thread for numerical work."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
