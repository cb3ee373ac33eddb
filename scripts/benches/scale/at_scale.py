"""What reads a finished run, at 1,000, 10,000 and 100,000 parts: its memory is to stay, its time to grow as the parts.

Each command runs in a process of its own on a simulated run (`simulate.py`). Its start-up, which is what it takes on
the smallest run that there is, is not counted as time of parts.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from maskmine.pipelines.cli.main import run_app
from maskmine.schemas.errors import InputError
from maskmine.scripts.benches.scale.simulate import simulate
from maskmine.scripts.benches.scale.templates import PARTS
from maskmine.scripts.measures import Measure, at_most, peak_bytes

SIZES = (1_000, 10_000, 100_000)
"""Parts of the simulated runs, where nothing else is asked for."""
_MOST_MEMORY, _MOST_TIME = 1.10, 1.20

CommandOf = Callable[[Path, Path], list[str]]
"""The words of a command from the folder of a run and one to write into."""


COMMANDS: dict[str, CommandOf] = {
    "status": lambda run, out: ["status", str(run)],
    "errors": lambda run, out: ["errors", str(run)],
    "show": lambda run, out: ["show", str(run), "--to", str(out / "sheet.png")],
    "report": lambda run, out: ["report", str(run), "--to", str(out / "report.html")],
    "export": lambda run, out: [
        "export",
        str(run),
        "--to",
        "parquet",
        "--nouns",
        "clock",
        "--out",
        str(out / "export"),
    ],
    "evaluate-pairs": lambda run, out: [
        *("evaluate-pairs", str(run), "--truth", str(run.parent / "world" / "instances.json")),
        *("--to", str(out / "evaluation")),
    ],
}
"""The commands that are measured, by name. The export is of one noun: its plan reads every part, and little is written.
"""
FLAT = frozenset({"errors", "show"})
"""Commands whose time does not grow with the parts, or with what is printed alone."""


@dataclass(frozen=True, slots=True)
class Taken:
    """Seconds and the most memory of a process."""

    seconds: float
    peak_bytes: int


def bench_at_scale(
    *, most: int = SIZES[-1], folder: Path | None = None, commands: dict[str, CommandOf] | None = None
) -> Iterator[Measure]:
    """Each command at 1,000, 10,000 … parts up to `most`. Runs stay in `folder` where one is given."""
    with tempfile.TemporaryDirectory(prefix="maskmine-bench-") as scratch:
        sizes = [size for size in SIZES if size < most] + [most]
        runs = {}
        for parts in (PARTS, *sizes):
            begin = time.monotonic()
            runs[parts] = Path(simulate(folder or Path(scratch), parts=parts).root)
            if parts == most:
                yield Measure(f"simulating a run of {parts:,} parts", time.monotonic() - begin, "s")
        for name, command in (commands or COMMANDS).items():
            yield from _measures(name, {parts: measure(command, run) for parts, run in runs.items()})


def measure(command: CommandOf, run: Path) -> Taken:
    """What a command takes, in a process of its own. Raises InputError when it fails."""
    with tempfile.TemporaryDirectory(prefix="maskmine-bench-") as out:
        words = command(run, Path(out))
        program = [sys.executable, "-m", "maskmine.scripts.benches.scale.at_scale", *words]
        begin = time.monotonic()
        done = subprocess.run(program, capture_output=True, text=True)
        seconds = time.monotonic() - begin
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        raise InputError(f"bench: {' '.join(words)}: {done.stderr.strip().splitlines()[-1:]}")
    return Taken(seconds, int(lines[-1]))


def _measures(name: str, taken: dict[int, Taken]) -> Iterator[Measure]:
    start_up = taken[min(taken)].seconds
    sizes = sorted(taken)[1:]
    for parts in sizes:
        yield Measure(f"{name}: {parts:,} parts", taken[parts].seconds, "s")
        yield Measure(f"{name}: {parts:,} parts, peak memory", taken[parts].peak_bytes / 2**20, "MB")
    few, many = sizes[0], sizes[-1]
    memory = taken[many].peak_bytes / taken[few].peak_bytes
    yield at_most(f"{name}: memory at {many:,} / {few:,} parts", memory, "×", _MOST_MEMORY)
    if name not in FLAT:
        each = [max(taken[parts].seconds - start_up, 1e-3) / (parts - PARTS) for parts in (few, many)]
        yield at_most(f"{name}: time of a part at {many:,} / {few:,} parts", each[1] / each[0], "×", _MOST_TIME)


def _main(words: Sequence[str]) -> int:
    """Run a command, and print the most memory that this process had, last."""
    code = run_app(list(words))
    sys.stdout.write(f"\n{peak_bytes()}\n")
    return code


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
