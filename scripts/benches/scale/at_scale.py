"""What reads a finished run, at 1,000, 10,000 and 100,000 parts: its memory is to stay, its time to grow as the parts.

Each command runs in a process of its own on a simulated run (`simulate.py`), with a copy of it where it writes. Time is
that of the processor, which does not depend on what else the machine does. Start-up is no time of parts, so rises are
compared: from the second run to the last one, beside that from the first to the second.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from maskmine.pipelines.cli.main import run_app
from maskmine.schemas.errors import InputError
from maskmine.scripts.benches.scale.commands import COMMANDS, Command
from maskmine.scripts.benches.scale.simulate import simulate
from maskmine.scripts.measures import Measure, at_most, peak_bytes

SIZES = (1_000, 10_000, 100_000)
"""Parts of the simulated runs, where nothing else is asked for."""
_MOST_MEMORY, _MOST_TIME = 1.10, 1.20
_NOISE_S = 0.3
"""What the time of one and the same start-up differs by."""
_TWICE_BELOW_S = 20.0
"""Commands that take less are run twice, and the smaller time is taken."""


@dataclass(frozen=True, slots=True)
class Taken:
    """Seconds of a process on the clock and of the processor, and the most memory that it had."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int


def bench_at_scale(
    *,
    most: int = SIZES[-1],
    folder: Path | None = None,
    only: Collection[str] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Iterator[Measure]:
    """Each command, or `only` some, at 1,000 parts and more up to `most`.

    Runs stay in `folder` where one is given, and are used again. `say` is told what is done. Raises InputError for a
    command that is not there, or fails.
    """
    if unknown := set(only or ()) - COMMANDS.keys():
        raise InputError(f"bench: at-scale has no command {', '.join(sorted(unknown))}; known: {', '.join(COMMANDS)}")
    if folder is not None and folder.exists() and not folder.is_dir():
        raise InputError(f"bench: --folder {folder}: not a folder; give one for the runs of at-scale")
    with tempfile.TemporaryDirectory(prefix="maskmine-bench-") as scratch:
        runs = {}
        for parts in sizes(most):
            begin = time.monotonic()
            runs[parts] = Path(simulate(folder or Path(scratch), parts=parts, say=say).root)
            yield Measure(f"a run of {parts:,} parts is there after", time.monotonic() - begin, "s")
        for name, command in COMMANDS.items():
            if not only or name in only:
                taken = {}
                for parts, run in runs.items():
                    taken[parts] = measure(command, run)
                    say(_line(name, parts, taken[parts]))
                yield from measures_of(name, taken, in_proportion=command.in_proportion)


def sizes(most: int) -> tuple[int, ...]:
    """Parts of the runs up to so many, at least three of them: two rises are compared."""
    if most <= SIZES[0]:
        raise InputError(f"bench: at-scale of {most:,} parts: give more than {SIZES[0]:,}")
    found = [*(size for size in SIZES if size < most), most]
    return tuple(found if len(found) > 2 else (found[0], (found[0] + most) // 2, most))


def measure(command: Command, run: Path) -> Taken:
    """What a command takes, in a process of its own. Raises InputError when it fails."""
    with ExitStack() as stack:
        out = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="maskmine-bench-")))
        target = stack.enter_context(copied(run)) if command.before else run
        first = _measure(command, target, out / "first")
        if first.cpu_seconds > _TWICE_BELOW_S:
            return first
        second = _measure(command, target, out / "second")
    return Taken(
        min(first.seconds, second.seconds),
        min(first.cpu_seconds, second.cpu_seconds),
        max(first.peak_bytes, second.peak_bytes),
    )


def measures_of(name: str, taken: dict[int, Taken], *, in_proportion: bool) -> Iterator[Measure]:
    """The figures of a command from those of runs of three sizes or more."""
    few, middle, many = min(taken), sorted(taken)[1], max(taken)
    for parts in sorted(taken):
        yield Measure(f"{name}: {parts:,} parts", taken[parts].cpu_seconds, "CPU s")
        yield Measure(f"{name}: {parts:,} parts, peak memory", taken[parts].peak_bytes / 2**20, "MB")
    memory = taken[many].peak_bytes / taken[few].peak_bytes
    yield at_most(f"{name}: memory at {many:,} / {few:,} parts", memory, "×", _MOST_MEMORY)
    first = max(taken[middle].cpu_seconds - taken[few].cpu_seconds, _NOISE_S) / (middle - few)
    second = max(taken[many].cpu_seconds - taken[middle].cpu_seconds, 0.0) / (many - middle)
    if in_proportion:
        yield at_most(f"{name}: time of a part from {middle:,} / up to {middle:,}", second / first, "×", _MOST_TIME)
    yield Measure(f"{name}: time of a part from {middle:,}", second * 1e3, "CPU ms")


def _measure(command: Command, run: Path, out: Path) -> Taken:
    out.mkdir()
    if command.before:
        command.before(run)
    words = command.words(run, out)
    program = [sys.executable, "-m", "maskmine.scripts.benches.scale.at_scale", *words]
    begin = time.monotonic()
    done = subprocess.run(program, capture_output=True, text=True)
    seconds = time.monotonic() - begin
    lines = done.stdout.splitlines()
    if done.returncode or not lines or command.says not in done.stdout:
        raise InputError(f"bench: {' '.join(words)}: {(done.stderr or done.stdout).strip().splitlines()[-1:]}")
    taken = json.loads(lines[-1])
    return Taken(seconds, taken["cpu_seconds"], taken["peak_bytes"])


@contextmanager
def copied(run: Path) -> Iterator[Path]:
    """A copy of a run by hard links, beside it: no file of a run is ever changed, only replaced."""
    with tempfile.TemporaryDirectory(prefix="maskmine-bench-", dir=run.parent) as scratch:
        yield Path(shutil.copytree(run, Path(scratch) / run.name, copy_function=_link_or_copy))


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a disk without links
        shutil.copyfile(source, target)


def _line(name: str, parts: int, taken: Taken) -> str:
    return (
        f"{name} at {parts:,} parts: {taken.seconds:,.1f} s, of the processor {taken.cpu_seconds:,.1f} s, "
        f"{taken.peak_bytes / 2**20:,.0f} MB"
    )


def _main(words: Sequence[str]) -> int:
    """Run a command, and print what this process took, last."""
    code = run_app(list(words))
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu_seconds = sum(one.ru_utime + one.ru_stime for one in used)
    sys.stdout.write(f"\n{json.dumps({'cpu_seconds': cpu_seconds, 'peak_bytes': peak_bytes()})}\n")
    return code


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
