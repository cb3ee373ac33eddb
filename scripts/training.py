"""What the trainings of the demo world's two models share: steps, their log, checkpoints, and what they say at the end.

`take_steps` is the whole course of a training; what is a model's own in it comes as a `Course`.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mining.weights import weights_sha256
from scripts.demo_seeds import HELD_OUT_SEEDS, TRAINING_SEEDS, VALIDATION_SEEDS

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
    from matplotlib.axes import Axes

AnyBatch = TypeVar("AnyBatch")
Row = dict[str, Any]

ROWS = 600  # of the log of a whole training
CHECKPOINT_S = 120.0
CONSOLE = Console()


class State(Protocol):
    """What the next step of any training depends on; `step` is its number, counted from 0."""

    model: Any
    optimizers: tuple[torch.optim.Optimizer, ...]
    step: int


@dataclass(frozen=True, slots=True)
class Course(Generic[AnyBatch]):
    """What is a model's own in the course of its training.

    `learn` takes a step with a batch, `row` and `validate` give what the log says of it, `say` what the bar shows of
    the log, `keep` writes a checkpoint. `validations` is how often the model is validated, `warmup_share` for which
    part of all steps the learning rates rise.
    """

    learn: Callable[[AnyBatch], None]
    row: Callable[[], Row]
    validate: Callable[[], Row]
    validations: int
    warmup_share: float
    draw_curves: Callable[[Path, Sequence[Row]], None]
    say: Callable[[Sequence[Row]], str]
    keep: Callable[[Path], None]


def take_steps(
    state: State, *, out: Path, batches: Iterable[AnyBatch], course: Course[AnyBatch], steps: int, batch_size: int
) -> None:
    """Learn from all batches, which are those from `state.step` on, of `steps` in all.

    In the folder `out` this leaves the log, to which a line comes now and then, the curves and checkpoints.
    """
    log = out / "log.jsonl"
    rows = read_rows(log, upto_step=state.step)
    with _whole(log) as partial:
        partial.write_text("".join(map(_line, rows)), encoding="utf-8")
    kept_s, clock = time.monotonic(), _Clock(state.step)
    with progress_bar("training", unit="pictures", total=steps * batch_size, done=state.step * batch_size) as tick:
        for batch in batches:
            rate_share = learning_rate_share(state.step, steps=steps, warmup_share=course.warmup_share)
            _set_rates(state.optimizers, share=rate_share)
            course.learn(batch)
            tick(batch_size)
            if not _is_due(state.step, steps, times=ROWS):
                continue
            speed = round(batch_size * clock.steps_per_s(state.step), 1)
            head = {"step": state.step, "images": state.step * batch_size}
            tail = {"learning_rate_share": round(rate_share, 6), "images_per_s": speed}
            rows.append(head | course.row() | tail)
            if validated := _is_due(state.step, steps, times=course.validations):
                rows[-1] |= course.validate()
                course.draw_curves(out / "curve.png", rows)
            with log.open("a", encoding="utf-8") as file:
                file.write(_line(rows[-1]))
            said = course.say(rows)
            tick(said=said)
            if validated and not CONSOLE.is_terminal:
                CONSOLE.print(f"step {state.step:,} of {steps:,}: {said}", highlight=False)
            if time.monotonic() - kept_s > CHECKPOINT_S:
                course.keep(out / "checkpoint.pt")
                kept_s = time.monotonic()
    course.keep(out / "checkpoint.pt")


def made_ahead(
    make: Callable[[int, Executor], AnyBatch], *, first: int, steps: int, threads: int
) -> Iterator[AnyBatch]:
    """What `make` gives, with workers to help it, for every step from `first` on; the next one is made meanwhile."""
    with ThreadPoolExecutor(1) as ahead, ThreadPoolExecutor(threads) as workers:
        made = ahead.submit(make, first, workers)
        for step in range(first, steps):
            batch, made = made.result(), ahead.submit(make, step + 1, workers)
            yield batch


def learning_rate_share(step: int, *, steps: int, warmup_share: float) -> float:
    """The part of the full learning rates that a step, counted from 0, has.

    They rise for `warmup_share` of all steps, then they fall as half a cosine.
    """
    warmup = max(1, round(warmup_share * steps))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def read_rows(log: Path, *, upto_step: int) -> list[Row]:
    """The log's lines of steps that the checkpoint knows; a line that was cut off is none."""
    rows = []
    for line in log.read_text("utf-8").splitlines() if log.exists() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return [row for row in rows if row["step"] <= upto_step]


def write_checkpoint(path: Path, state: State, **more: Any) -> None:
    """Keep the state, and what a training has more, whole or not at all."""
    content = {
        "model": state.model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in state.optimizers],
        "step": state.step,
    }
    with _whole(path) as partial, partial.open("wb") as file:
        torch.save(content | more, file)
        file.flush()
        os.fsync(file.fileno())


def read_checkpoint(path: Path, state: State) -> dict[str, Any] | None:
    """Put the state where the checkpoint left off and return all that it holds; None without one."""
    if not path.exists():
        return None
    device = next(state.model.parameters()).device
    kept: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    state.model.load_state_dict(kept["model"])
    for optimizer, values in zip(state.optimizers, kept["optimizers"], strict=True):
        optimizer.load_state_dict(values)
    state.step = kept["step"]
    return kept


@contextmanager
def progress_bar(doing: str, *, unit: str, total: int, done: int = 0) -> Iterator[Callable[..., None]]:
    """A bar with the time left. What it gives is called with how many more are done, or with what is to be `said`."""
    columns = (
        TextColumn("{task.description:<9}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TextColumn("{task.fields[said]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=CONSOLE) as progress:
        task = progress.add_task(doing, total=total, completed=done, said="")
        yield lambda more=0, **said: progress.update(task, advance=more, **said)


@contextmanager
def two_plots(path: Path) -> Iterator[tuple[Axes, Axes]]:
    """Two plots beside each other over the pictures seen, for a picture as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    yield left, right
    for axes in (left, right):
        axes.set_xlabel("pictures seen")
        axes.grid(alpha=0.3)
    with _whole(path) as partial:
        figure.savefig(partial, format="png", dpi=120)


def series(rows: Sequence[Row], name: str) -> tuple[list[int], list[float]]:
    """The pictures seen, and a value, of each row that has it."""
    found = [(row["images"], row[name]) for row in rows if name in row]
    return [images for images, _ in found], [value for _, value in found]


def write_outcome(
    out: Path, plan: DataclassInstance, *, parameters: Any, weights: str, found: dict[str, Any]
) -> dict[str, Any]:
    """Write `training.json` in the folder `out`, and return what it says.

    That is the plan, the model's size, its file, the seeds of the worlds, so that everyone can see which it does not
    know, and what was `found` about it.
    """
    uses = {"training": TRAINING_SEEDS, "validation": VALIDATION_SEEDS, "held_out": HELD_OUT_SEEDS}
    outcome = {
        "plan": asdict(plan),
        "parameters": parameters,
        "weights": {"bytes": (out / weights).stat().st_size, "sha256": weights_sha256(out / weights)},
        "seeds": {use: [seeds[0], seeds[-1]] for use, seeds in uses.items()},
    }
    write_json(out / "training.json", outcome | found)
    return outcome | found


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file that people read, whole or not at all."""
    with _whole(path) as partial:
        partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _set_rates(optimizers: tuple[torch.optim.Optimizer, ...], *, share: float) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = share * optimizer.defaults["lr"]


@dataclass
class _Clock:
    """Speed since it was last asked."""

    step: int
    since_s: float = field(default_factory=time.monotonic)

    def steps_per_s(self, step: int) -> float:
        now_s = time.monotonic()
        speed = (step - self.step) / (now_s - self.since_s)
        self.step, self.since_s = step, now_s
        return speed


def _is_due(step: int, steps: int, *, times: int) -> bool:
    """Whether one of `times` evenly spread occasions has come with this step; the last comes with the last step."""
    return step * times // steps > (step - 1) * times // steps


def _line(row: Row) -> str:
    return json.dumps(row) + "\n"


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """Where to write a file that is to be at `path` whole or not at all."""
    partial = path.with_suffix(".partial")
    yield partial
    os.replace(partial, path)
