"""Fill the disk at several moments of a run, make room, run it again, and compare with an undisturbed run.

The disk is a small file system in memory, which only root may mount.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from maskmine.schemas.errors import Exit, InputError
from maskmine.scripts.crashes.trial import differences, hashes, keep_where_failed
from maskmine.scripts.demo_world.draw import draw_world
from maskmine.tuning.console import TextTable, plain_console

CONSOLE = plain_console(width=max(110, plain_console().width))
ENGINES: Mapping[str, tuple[str, ...]] = {
    "local": (),
    "workers": ("--engine-opt", "workers=2"),
    "ray": ("--engine", "ray", "--engine-opt", "cpu_workers=2"),
    "beam": ("--engine", "beam", "--engine-opt", "workers=2"),
}
_CONFIG = Path(__file__).resolve().parents[2] / "configs" / "demo-models.yaml"
_ENDS_WITHIN_S = 1500.0
_ROOMY_BYTES = 1 << 30


@dataclass
class Filled:
    """How a run on a disk of `share` of what it needs went: the seconds until it ended, and what was wrong."""

    engine: str
    share: float
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)


def main(
    engine: Annotated[list[str] | None, typer.Option(help="local, workers, ray, beam; all without it.")] = None,
    share: Annotated[list[float] | None, typer.Option(help="Of the bytes of a whole run; 0.2, 0.5, 0.8, 0.95.")] = None,
    scenes: Annotated[int, typer.Option(min=4, help="Images.")] = 40,
) -> None:
    """Fill, make room, run again, compare. Exit code 1 when a run did not end in one line, or bytes differ."""
    unknown = set(engine or ()) - set(ENGINES)
    if unknown:
        raise InputError(f"chaos: --engine {', '.join(sorted(unknown))}: unknown; known: {', '.join(ENGINES)}")
    scratch = Path(tempfile.mkdtemp(prefix="chaos-disk-"))
    failed = False
    try:
        draw_world(scratch / "world", scenes=scenes, seed=7)
        expected, whole_bytes = _undisturbed(scratch, scenes=scenes)
        filled = []
        for name in engine or ENGINES:
            for part in share or (0.2, 0.5, 0.8, 0.95):
                filled.append(_fill(scratch, name, part, whole_bytes, expected, scenes=scenes))
                what = "; ".join(filled[-1].faults) or "same bytes"
                CONSOLE.print(f"{name}, {part:.0%} of {whole_bytes:,} bytes: {what}", style="dim")
        CONSOLE.print(table_of(filled))
        failed = any(one.faults for one in filled)
    finally:
        keep_where_failed(scratch, failed=failed, console=CONSOLE)
    if failed:
        raise typer.Exit(1)


def faults_of(code: int, lines: Sequence[str], left: Sequence[str]) -> list[str]:
    """What is wrong with how a run ended on a full disk: its exit code, what it printed, and the files that it left."""
    faults = []
    if code != Exit.INCOMPLETE:
        faults.append(f"ended with {code}: {(list(lines) or ['no output'])[-1][:200]}")
    said = [line for line in lines if line.startswith("maskmine: ")]
    if len(said) != 1 or "the disk is full" not in said[0]:
        faults.append(f"says in {len(said)} lines why it ended: {' | '.join(said)[:200]}")
    return faults + [f"left {name}" for name in left]


def table_of(filled: Sequence[Filled]) -> TextTable:
    """A row for each run."""
    table = TextTable("engine", "disk", "ended after", "result", box=None, pad_edge=False)
    for one in filled:
        result = "; ".join(one.faults) or "one line, nothing half, same bytes"
        table.add_row(one.engine, f"{one.share:.0%}", f"{one.seconds:.0f} s", result)
    return table


def _undisturbed(scratch: Path, *, scenes: int) -> tuple[dict[str, str], int]:
    """The hashes of a run that has room, and the bytes that it takes on such a disk."""
    with _small_disk(scratch / "disk", _ROOMY_BYTES) as disk:
        code, lines = _mine(scratch, disk, scenes=scenes)
        if code:
            raise InputError(f"chaos: an undisturbed run ended with {code} ({(lines or ['no output'])[-1][:300]})")
        about = os.statvfs(disk)
        return hashes(disk / "run"), (about.f_blocks - about.f_bfree) * about.f_frsize


def _fill(
    scratch: Path, engine: str, share: float, whole_bytes: int, expected: Mapping[str, str], *, scenes: int
) -> Filled:
    filled = Filled(engine, share)
    with _small_disk(scratch / "disk", int(share * whole_bytes)) as disk:
        start_s = time.monotonic()
        code, lines = _mine(scratch, disk, *ENGINES[engine], scenes=scenes)
        filled.seconds = time.monotonic() - start_s
        left = [file.relative_to(disk).as_posix() for file in disk.rglob(".*") if file.is_file()]
        filled.faults += faults_of(code, lines, left)
        _mount("-o", f"remount,size={_ROOMY_BYTES}", str(disk))
        code, lines = _mine(scratch, disk, *ENGINES[engine], scenes=scenes)
        if code:
            filled.faults.append(f"with room, it ended with {code}: {(lines or ['no output'])[-1][:200]}")
        else:
            filled.faults += differences(hashes(disk / "run"), expected)[:5]
    return filled


def _mine(scratch: Path, disk: Path, *options: str, scenes: int) -> tuple[int, list[str]]:
    """The exit code of a run and what it printed. A run that does not end counts as one that was killed."""
    world, log = scratch / "world", scratch / "log.txt"
    changes = (
        f"captions.annotations={world / 'captions.json'}",
        f"captions.images={world / 'images'}",
        f"shards.images_per_part={max(1, scenes // 5)}",
        f"out={disk / 'run'}",
    )
    words = [sys.executable, "-m", "maskmine.pipelines.cli.main", "mine", str(_CONFIG), "--quiet"]
    words += [word for change in changes for word in ("--set", change)]
    with log.open("wb") as file:
        run = subprocess.Popen([*words, *options], stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT)
        try:
            code = run.wait(timeout=_ENDS_WITHIN_S)
        except subprocess.TimeoutExpired:
            code = -signal.SIGKILL
        finally:
            run.kill()
            run.wait()
    return code, log.read_text(errors="replace").splitlines()


@contextmanager
def _small_disk(place: Path, size_bytes: int) -> Iterator[Path]:
    """A file system of this size at a place, while the block runs."""
    place.mkdir(exist_ok=True)
    _mount("-t", "tmpfs", "-o", f"size={size_bytes}", "maskmine-chaos", str(place))
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def _mount(*words: str) -> None:
    done = subprocess.run(["mount", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(f"chaos: no small disk can be mounted ({done.stderr.strip()[:200]}); run it as root")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that what it started ends with it
    try:
        typer.run(main)
    except InputError as error:
        sys.exit(str(error))
