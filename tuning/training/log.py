"""The log of a training: a JSON line every few steps, curves for TensorBoard and W&B, a progress bar on a terminal."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from maskmine.mining.storage.files import write_whole
from maskmine.schemas.errors import InputError, how_to_install
from maskmine.tuning.console import plain_progress, rate

LOG_FILE = "log.jsonl"
_LINES = 20  # of progress where there is no terminal: enough to see that a run moves, few enough for a log of a job
_NO_CURVE = {"stage", "step", "epoch", "images"}  # they only grow

Losses = dict[str, float]
"""What a step reports: `loss`, and its parts or other figures by name."""

Row = dict[str, Any]
"""A line of the log. `step` counts from 1; `stage` is the phase, where a training has phases."""


@dataclass(frozen=True, slots=True)
class StepLog:
    """Where and how the steps of a phase are reported; a process that is not the main one reports nothing.

    A row is written every `every` steps and after the last one. `row` makes it of the number of steps done, the losses
    of the last one and the mean speed in images a second since the row before.
    """

    folder: Path
    phase: str
    batch_size: int
    every: int
    row: Callable[[int, Losses, float], Row]
    console: Console
    is_main: bool = True
    wandb: str | None = None
    """A project of Weights & Biases that gets the curves too."""

    @contextmanager
    def open(self, *, done: int, steps: int) -> Iterator[Callable[[int, Losses], None]]:
        """A function that reports a step; `done` steps of `steps` were taken before."""
        if not self.is_main:
            yield lambda step, losses: None
            return
        speed = Speed()
        with (
            open_log(self.folder, phase=self.phase, step=done, console=self.console) as write_row,
            _open_wandb(self.wandb, self.folder, phase=self.phase) as write_curves,
            show_progress(self.console, name=self.phase, unit="step", done=done, total=steps) as advance,
        ):

            def report(step: int, losses: Losses) -> None:
                speed.add(self.batch_size)
                advance(1, f"loss {losses['loss']:.3f}, {rate(speed.now)} images/s")
                if step % self.every == 0 or step == steps:
                    row = self.row(step, losses, round(speed.take(), 1))
                    write_row(row)
                    write_curves(row)

            yield report


@contextmanager
def open_log(folder: Path, *, phase: str, step: int, console: Console) -> Iterator[Callable[[Row], None]]:
    """A function that appends rows to the log and the curves.

    Rows of this phase after `step` are dropped first: the run that wrote them stopped before its next checkpoint.
    """
    path = folder / LOG_FILE
    kept = [row for row in read_log(folder) if row.get("stage", phase) != phase or row["step"] <= step]
    write_whole(path, "".join(f"{json.dumps(row)}\n" for row in kept).encode())
    curves = _open_curves(folder / "tensorboard" / phase, step=step, console=console)
    with path.open("a", encoding="utf-8") as file:

        def write_row(row: Row) -> None:
            file.write(json.dumps(row) + "\n")
            file.flush()
            for name in row.keys() - _NO_CURVE if curves else ():
                curves.add_scalar(name, row[name], row["step"])

        try:
            yield write_row
        finally:
            if curves:
                curves.close()


def read_log(folder: Path) -> list[Row]:
    """The rows of a log; a last line that was cut off is left out."""
    path = folder / LOG_FILE
    lines = path.read_text("utf-8").split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


@contextmanager
def show_progress(
    console: Console, *, name: str, unit: str, total: int, done: int = 0
) -> Iterator[Callable[[int, str], None]]:
    """A bar with what is left, or twenty lines where the console is no terminal.

    The function takes how many more units are done, and a text to show beside the bar.
    """
    line_every = math.ceil(total / _LINES)
    with plain_progress(console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task(name, total=total, completed=done, state="")
        taken = done

        def advance(count: int, state: str) -> None:
            nonlocal taken
            before, taken = taken, taken + count
            progress.update(task, advance=count, state=state)
            if not console.is_terminal and (taken // line_every > before // line_every or taken == total):
                line = f"{name}: {unit} {taken:,} of {total:,}{', ' if state else ''}{state}"
                console.print(line, highlight=False, markup=False)

        yield advance


class Speed:
    """Images a second since the last call of `take`."""

    def __init__(self) -> None:
        self._since_s, self._images, self._last = time.perf_counter(), 0, 0.0

    def add(self, images: int) -> None:
        """Count images of a finished step."""
        self._images += images

    def take(self) -> float:
        """The speed since the last call."""
        now_s = time.perf_counter()
        self._last = self._images / max(1e-9, now_s - self._since_s)
        self._since_s, self._images = now_s, 0
        return self._last

    @property
    def now(self) -> float:
        """The speed so far in this interval; in its first second that of the interval before."""
        elapsed_s = time.perf_counter() - self._since_s
        return self._images / elapsed_s if self._images and elapsed_s > 1 else self._last


def _open_curves(folder: Path, *, step: int, console: Console) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        console.print(
            f"TensorBoard is not installed, so the curves are in {LOG_FILE} only; {how_to_install('tuning')}",
            markup=False,
        )
        return None
    return SummaryWriter(str(folder), purge_step=step + 1)


@contextmanager
def _open_wandb(project: str | None, folder: Path, *, phase: str) -> Iterator[Callable[[Row], None]]:
    """A function that sends the figures of a row to Weights & Biases; a training that goes on continues its run there.

    Raises InputError when it is asked for and not installed.
    """
    if project is None:
        yield lambda row: None
        return
    try:
        import wandb
    except ImportError as error:
        raise InputError(
            "wandb: Weights & Biases is not installed; pip install wandb, or leave the setting out"
        ) from error
    where = hashlib.sha256(f"{folder.resolve()}/{phase}".encode()).hexdigest()[:16]
    run = wandb.init(project=project, name=f"{folder.name}/{phase}", id=where, resume="allow", dir=str(folder))
    try:
        yield lambda row: run.log({name: row[name] for name in sorted(row.keys() - _NO_CURVE)}, step=row["step"])
    finally:
        run.finish()
