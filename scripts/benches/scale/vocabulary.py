"""What each step that meets the vocabulary takes with 50,000, 500,000 and five million nouns.

Its memory is to stay within a bound, its time to grow as the nouns.

Each step is a process of its own, which runs the job of a run on made-up cells (`many_nouns.py`). Its own memory is
what the system cannot take back: files that are mapped into memory count where nothing else wants it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from maskmine.pipelines.steps.jobs import each_report, no_tick
from maskmine.schemas.errors import InputError
from maskmine.scripts.benches.scale.many_nouns import ManyNouns
from maskmine.scripts.measures import Measure, at_most

SIZES = (50_000, 500_000, 5_000_000)
"""Nouns, where nothing else is asked for."""
STEPS = (
    "vocabulary",
    "levels",
    "pairs",
    "negatives",
    "shards",
    "vocabulary, appended",
    "levels, appended",
    "pairs, appended",
    "shards, appended",
)
"""In the order of a run: each reads what those before it wrote."""
_DIM, _WIDE = 64, 768  # of the embeddings: those that are measured at all sizes, and those of a large CLIP
_MOST_MB, _MOST_TIME = 1_500, 1.20
_LOOKED_EVERY_S = 0.02


@dataclass(frozen=True, slots=True)
class Taken:
    """CPU seconds that a job took to open and to make a cell, and the most memory that its process had of its own."""

    seconds: float
    own_mb: float


def bench_vocabulary(
    *, most: int = SIZES[-1], steps: Sequence[str] = STEPS, folder: Path | None = None
) -> Iterator[Measure]:
    """Each step with 50,000, 500,000 … nouns up to `most`, whose embeddings are 64 wide, and with 50,000 of 768.

    What a row group takes grows with the width, and nothing else: so memory is reckoned for `most` nouns of 768. Files
    lie in `folder` where one is given, those of one number of nouns at a time.
    """
    sizes = [size for size in SIZES if size < most] + [most]
    taken: dict[str, dict[tuple[int, int], Taken]] = {step: {} for step in steps}
    for nouns, dim in [(sizes[0], _WIDE), *((size, _DIM) for size in sizes)]:
        with tempfile.TemporaryDirectory(prefix="maskmine-bench-", dir=folder) as scratch:
            run = ManyNouns(Path(scratch), nouns, dim)
            run.write()
            for step in steps:
                taken[step][nouns, dim] = measure(run, step)
    for step in steps:
        yield from _measures(step, taken[step], sizes)


def measure(run: ManyNouns, step: str) -> Taken:
    """What a step takes, in a process of its own. Raises InputError when it fails."""
    words = [str(run.folder), str(run.nouns), str(run.dim), step]
    program = [sys.executable, "-m", "maskmine.scripts.benches.scale.vocabulary", *words]
    done = subprocess.run(program, capture_output=True, text=True)
    if done.returncode:
        raise InputError(f"bench: {step}: {done.stderr.strip().splitlines()[-1:]}")
    return Taken(**json.loads(done.stdout.splitlines()[-1]))


def _measures(step: str, taken: Mapping[tuple[int, int], Taken], sizes: Sequence[int]) -> Iterator[Measure]:
    for (nouns, dim), one in taken.items():
        yield Measure(f"{step}: {nouns:,} nouns × {dim}", one.seconds, "CPU s")
        yield Measure(f"{step}: {nouns:,} nouns × {dim}, own memory", one.own_mb, "MB")
    few, many = sizes[-2:]
    wide_mb = taken[sizes[0], _WIDE].own_mb - taken[sizes[0], _DIM].own_mb
    most_mb = taken[many, _DIM].own_mb + max(0.0, wide_mb)
    yield at_most(f"{step}: own memory reckoned at {many:,} × {_WIDE}", most_mb, "MB", _MOST_MB)
    per_noun = [taken[nouns, _DIM].seconds / nouns for nouns in (few, many)]
    yield at_most(f"{step}: time of a noun at {many:,} / {few:,}", per_noun[1] / per_noun[0], "×", _MOST_TIME)


@contextmanager
def _own_memory() -> Iterator[list[int]]:
    """The most bytes that this process has of its own meanwhile, as the last element of a list."""
    most, ended = [_own_bytes()], threading.Event()

    def look() -> None:
        while not ended.wait(_LOOKED_EVERY_S):
            most[0] = max(most[0], _own_bytes())

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield most
    finally:
        ended.set()
        thread.join()


def _own_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("RssAnon:")[2].split()[0])


def _main(folder: str, nouns: str, dim: str, step: str) -> None:
    """Run a step, and print what it took, last."""
    job, part = ManyNouns(Path(folder), int(nouns), int(dim)).job(step)
    with _own_memory() as most:
        begin = time.process_time()
        reports = each_report(job.open()(part, no_tick))
        seconds = time.process_time() - begin
    sys.stderr.write(f"{reports}\n")
    sys.stdout.write(f"\n{json.dumps({'seconds': seconds, 'own_mb': most[0] / 2**20})}\n")


if __name__ == "__main__":
    _main(*sys.argv[1:])
