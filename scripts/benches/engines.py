"""What the engines cost and gain on this machine: start-up, time, speed-up, memory.

Every worker has one thread. The load is the demo world, its scenes listed as often as the run is to be long, with all
five captions, its exact masks as proposals, and CLIP of a small architecture with random weights.

- *start-up*: from the call of the engine until a worker opens its first job (loads spaCy, say);
- *after start-up*: from there until the engine returns;
- *speed-up*: cells of `regions` a second, with only its cells missing, while all workers are at work;
- *memory*: resident bytes of driver and workers within a step; the step in which they grow most is shown.

All runs of the load must write the same bytes, or the bench fails. What is made twice after a kill is counted by
`scripts/chaos`.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from maskmine.scripts.benches.engine_runs import (
    CLIP,
    FEWEST_PARTS,
    TWO_PROCESSES,
    Event,
    Load,
    calibrate,
    complete_run,
    images_for,
    make_load,
)
from maskmine.scripts.benches.fixtures import save_random_clip
from maskmine.scripts.benches.workers.local_workers import two_cores
from maskmine.scripts.demo_world.draw import draw_world
from maskmine.scripts.measures import Measure, at_least, at_most

SECTIONS = ("start-up", "time", "memory")
ENGINES = ("ray", "beam")
FULL_MINUTES = 3.0
SCENES = 64  # few, since all of them are in `vocabulary`, which is made by one worker
PARTS, MEMORY_PARTS = 100, 2000
_SPEED_UP_PARTS = 20  # an even number: two workers end together


def bench_engines(*, minutes: float = FULL_MINUTES, sections: Sequence[str] = SECTIONS) -> Iterator[Measure]:
    """All figures, as they are found; two processes without an engine take at least `minutes` for the load of `time`.

    Raises InputError, also for `time` on a single core, whose workers have none of their own.
    """
    if "time" in sections:
        two_cores()
    with tempfile.TemporaryDirectory(prefix="maskmine-engines-") as scratch, _one_thread():
        folder = Path(scratch)
        draw_world(folder / "world", scenes=SCENES, seed=7, workers=2)
        save_random_clip(folder / "clip.safetensors", model=CLIP)
        if "start-up" in sections:
            yield from _start_ups(folder)
        if "time" in sections:
            yield from _times(folder, minutes=minutes)
        if "memory" in sections:
            parts = max(FEWEST_PARTS, min(MEMORY_PARTS, round(MEMORY_PARTS * minutes / FULL_MINUTES)))
            yield from _memory(folder, parts=parts)


def _start_ups(folder: Path) -> Iterator[Measure]:
    """A run of one small part."""
    load = make_load(folder, name="start-up", images=2, images_per_part=2, with_clip=False)
    local_s = 0.0
    for engine in ("local", *ENGINES):
        events = _run(load, engine, "a run of one small part")
        whole_s = _span(events, "start", "return")
        local_s = local_s or whole_s
        yield Measure(f"{engine}: start-up", _span(events, "start", "open"), "s")
        if engine != "local":
            yield Measure(f"{engine}: one small part, beyond local's", whole_s - local_s, "s")


def _times(folder: Path, *, minutes: float) -> Iterator[Measure]:
    """The whole load with two workers, and `embeddings` alone with one and with two."""
    print("  calibrating", flush=True)
    images = images_for(minutes=minutes, per_image_s=calibrate(folder), workers=2)
    load = make_load(folder, name="load", images=images, images_per_part=-(-images // PARTS), with_clip=True)
    seconds = {}
    for engine in (TWO_PROCESSES, *ENGINES):
        events = _run(load, engine, f"{images:,} images with two workers")
        seconds[engine] = _span(events, "open", "return")
        load.check_bytes(engine, "shards")
    yield at_least(f"{TWO_PROCESSES}: {images:,} images", seconds[TWO_PROCESSES], "s", 60 * minutes)
    for engine in ENGINES:
        yield Measure(f"{engine}: after start-up", seconds[engine], "s")
        yield at_most(f"{engine} / {TWO_PROCESSES}", seconds[engine] / seconds[TWO_PROCESSES], "×", 1.1)
        yield _speed_up(load, engine)


def _speed_up(load: Load, engine: str) -> Measure:
    """The first parts of `embeddings`, with one worker and with two."""
    rates = []
    for workers in (1, 2):
        load.forget(engine, "embeddings", parts=_SPEED_UP_PARTS)
        events = _run(load, engine, f"embeddings with {workers} workers", workers=workers, only="embeddings")
        rates.append(cells_per_s(events))
        load.check_bytes(engine, "embeddings")
    return at_least(f"{engine}: embeddings, 1 → 2 workers", rates[1] / rates[0], "×", 1.8)


def _memory(folder: Path, *, parts: int) -> Iterator[Measure]:
    load = make_load(folder, name="memory", images=parts, images_per_part=1, with_clip=False)
    for engine in ("local", *ENGINES):
        events = _run(load, engine, f"memory over {parts:,} parts")
        load.check_bytes(engine, "shards")
        for role, what in {"driver": "report", "worker": "end"}.items():
            if role == "driver" or engine != "local":
                most = max(growths([event for event in events if event.what == what]), key=lambda growth: growth.ratio)
                name = f"{engine}: {role}, {most.step}"
                yield Measure(f"{name}, at 20–30 % of the parts", most.early_bytes / 1e6, "MB")
                yield Measure(f"{name}, at 90–100 % of the parts", most.late_bytes / 1e6, "MB")
                yield at_most(f"{engine}: {role}, growth", most.ratio, "×", 1.1)


class Growth(NamedTuple):
    """Mean resident memory of a process over 20–30 % and over 90–100 % of its parts of a step."""

    step: str
    early_bytes: float
    late_bytes: float

    @property
    def ratio(self) -> float:
        return self.late_bytes / self.early_bytes


def growths(events: Sequence[Event]) -> Iterator[Growth]:
    """How the memory of each process grew within each step."""
    rss: dict[tuple[int, str], list[int]] = {}
    for event in events:
        rss.setdefault((event.pid, event.step), []).append(event.rss_bytes)
    for (_, step), values in rss.items():
        early, late = (
            values[int(low * len(values)) : int(high * len(values)) + 1] for low, high in ((0.2, 0.3), (0.9, 1))
        )
        yield Growth(step, float(statistics.mean(early)), float(statistics.mean(late)))


def cells_per_s(events: Sequence[Event]) -> float:
    """Cells a second of a step while all of its processes are at work; a cell that is partly then counts in part."""
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


def _run(load: Load, engine: str, what: str, *, workers: int = 2, only: str = "") -> list[Event]:
    print(f"  {engine}: {what}", flush=True)
    return complete_run(load.config(engine), engine, workers=workers, log=load.log(engine), only=only)


def _span(events: Sequence[Event], begin: str, end: str) -> float:
    first: dict[str, float] = {event.what: event.at_s for event in reversed(events)}
    return first[end] - first[begin]


@contextmanager
def _one_thread() -> Iterator[None]:
    """Processes that are started in the block have one thread for numerical work."""
    before = dict(os.environ)
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
