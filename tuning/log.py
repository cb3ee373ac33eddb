"""What a run tells while it goes on: a line of JSON every few steps, curves for TensorBoard, a bar on a terminal."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LOG_FILE = "log.jsonl"
_LINES = 20


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the log: step `step` of a stage, counted from 1, the epochs seen so far, and the mean speed lately."""

    stage: str
    step: int
    epoch: float
    loss: float
    learning_rate: float
    logit_scale: float
    images_per_s: float


@dataclass(frozen=True, slots=True)
class MaskRow:
    """`Row` for a training of masks: `class_loss`, `mask_loss` and `dice_loss` are the last layer's, weighted.

    `gradient_norm` is that before the gradient is cut.
    """

    stage: str
    step: int
    loss: float
    class_loss: float
    mask_loss: float
    dice_loss: float
    gradient_norm: float
    learning_rate: float
    images_per_s: float


class Tell(Protocol):
    """What keeps a row."""

    def __call__(self, row: Row | MaskRow) -> None: ...


@contextmanager
def open_log(folder: Path, *, stage: str, step: int, say: Callable[[str], None]) -> Iterator[Tell]:
    """A function that keeps rows; those of this stage after `step` are of a run that was cut off, and go.

    `say` is told when TensorBoard is not installed.
    """
    path = folder / LOG_FILE
    kept = [line for line in _lines(path) if not _is_after(json.loads(line), stage, step)]
    path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
    curves = _open_curves(folder / "tensorboard" / stage, step=step, say=say)
    with path.open("a", encoding="utf-8") as file:

        def tell(row: Row | MaskRow) -> None:
            values = asdict(row)
            file.write(json.dumps(values) + "\n")
            file.flush()
            for name in values.keys() - {"stage", "step", "epoch"} if curves else ():
                curves.add_scalar(name, values[name], row.step)

        try:
            yield tell
        finally:
            if curves:
                curves.close()


@contextmanager
def show_progress(console: Console, *, stage: str, done: int, steps: int) -> Iterator[Callable[[float, float], None]]:
    """A bar with loss, images a second and time left, or twenty lines where the console is no terminal.

    The function takes a finished step's loss and the speed.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[state]}"),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task(stage, total=steps, completed=done, state="")
        taken = done

        def advance(loss: float, images_per_s: float) -> None:
            nonlocal taken
            taken += 1
            state = f"loss {loss:.3f}, {images_per_s:,.0f} images/s"
            progress.update(task, advance=1, state=state)
            if not console.is_terminal and (taken % math.ceil(steps / _LINES) == 0 or taken == steps):
                console.print(f"{stage}: step {taken:,} of {steps:,}, {state}")

        yield advance


class Speed:
    """Images a second, since the last time that somebody asked."""

    def __init__(self) -> None:
        self._since_s, self._images, self._last = time.perf_counter(), 0, 0.0

    def add(self, images: int) -> None:
        """Count images that were just trained on."""
        self._images += images

    def take(self) -> float:
        """The speed since the last call."""
        now_s = time.perf_counter()
        self._last = self._images / max(1e-9, now_s - self._since_s)
        self._since_s, self._images = now_s, 0
        return self._last

    @property
    def now(self) -> float:
        """The speed so far in this interval; at its very beginning that of the one before."""
        elapsed_s = time.perf_counter() - self._since_s
        return self._images / elapsed_s if self._images and elapsed_s > 1 else self._last


def _lines(path: Path) -> list[str]:
    """Whole lines; a killed process may have left half a one."""
    if not path.exists():
        return []
    *whole, _ = path.read_text("utf-8").split("\n")
    return whole


def _is_after(row: dict[str, Any], stage: str, step: int) -> bool:
    return bool(row["stage"] == stage and row["step"] > step)


def _open_curves(folder: Path, *, step: int, say: Callable[[str], None]) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        say(f"TensorBoard is not installed (pip install 'maskmine[tuning]'), so the curves are in {LOG_FILE} only")
        return None
    return SummaryWriter(str(folder), purge_step=step + 1)
