"""A training of a demo world's model from its options to its files: plan, steps, validation, results.

```
out/
  plan.json               what the weights follow from
  checkpoint.pt           where the training is; run the same command again to go on
  log.jsonl tensorboard/  losses, speed, and now and then how well the model does on a validation world
  curve.png               the same as two plots
  training.json           at the end: the plan, the weights' hash, how well the model does
```
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
import typer

from maskmine.mining.storage.content_hash import weights_sha256
from maskmine.mining.storage.files import write_whole
from maskmine.schemas.errors import IncompleteError, InputError, OtherPlanError
from maskmine.schemas.settings import fingerprint
from maskmine.scripts.demo_world.scene import Scene, draw_scene
from maskmine.scripts.demo_world.splits import HELD_OUT_SEEDS, TRAINING_SEEDS, VALIDATION_SEEDS
from maskmine.scripts.training.learner import DemoLearner
from maskmine.scripts.training.plan import PLAN_FILE, Options, Plan, make_plan, read_plan, write_json
from maskmine.scripts.training.scenes import DrawnScenes, World, draw_scenes, open_scenes
from maskmine.tuning.console import plain_console
from maskmine.tuning.training.checkpoints import Checkpoint, Checkpoints
from maskmine.tuning.training.log import Losses, Row, StepLog, read_log, show_progress
from maskmine.tuning.training.loop import train
from maskmine.tuning.training.optim import warmup_cosine

BatchT = TypeVar("BatchT")

CONSOLE = plain_console()

_CHECKPOINT_EVERY = 50  # steps, of which the slowest model takes two minutes on a core
_LOG_ROWS = 600  # of a whole training: as many as a plot has pixels
_FIRST_FINAL_SCENE = 10_000  # of the validation world: those before may have decided something
_TIMED_STEPS = 1_000  # of the training whose steps are timed
_TIMES = 5  # a step is timed; the fastest counts, as others may have had the processor


@dataclass(frozen=True, slots=True)
class Plot:
    """A plot of values of the log by name, with their labels; its axis ends at `top`, if that is given."""

    ylabel: str
    labels: Mapping[str, str]
    top: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What is fixed for a model.

    Of all steps, the learning rates rise for `warmup_share`, and images are small for the first `small_share`. The
    model is validated `validations` times on `curve_scenes` scenes, and at the end on `final_scenes` others. `weights`
    is the file of weights that is written, relative to OUT.
    """

    batch_size: int
    warmup_share: float
    small_share: float
    validations: int
    curve_scenes: int
    final_scenes: int = 1_000
    weights: str
    plots: tuple[Plot, Plot]

    def is_small(self, step: int, *, steps: int) -> bool:
        """Whether a step, counted from 0, sees small images."""
        return step < self.small_share * steps

    def learning_rate_share(self, step: int, *, steps: int) -> float:
        """The share of the full learning rates that a step, counted from 0, has."""
        return warmup_cosine(step, steps=steps, warmup_steps=max(1, round(self.warmup_share * steps)))


class DemoTraining(Protocol[BatchT]):
    """What is a model's own in its training."""

    @property
    def recipe(self) -> Recipe:
        """What is fixed."""

    def new_learner(self, plan: Plan) -> DemoLearner[BatchT]:
        """A model with random weights that follow from the seed."""

    def make_batch(self, plan: Plan, step: int, workers: Executor) -> BatchT:
        """The batch of a step; it follows from the plan alone."""

    def save(self, out: Path, learner: DemoLearner[BatchT]) -> None:
        """Write the model in a folder of `out`."""

    def parameters(self, learner: DemoLearner[BatchT]) -> Any:
        """Their number, for `training.json`."""

    def measure(self, out: Path, scenes: Iterable[Scene], *, device: str) -> dict[str, Any]:
        """How well the model saved in `out` does, for `training.json`."""

    def summary(self, results: dict[str, Any]) -> dict[str, float]:
        """The shares among these results that the log and the plots show."""


def run_training(out: Path, options: Options, open_training: Callable[[], DemoTraining[Any]]) -> dict[str, Any]:
    """Begin the training in `out` or go on with it; what `training.json` says. `open_training` draws the scenes.

    Raises InputError when the options cannot be, or `out` was begun with others.
    """
    plan = read_plan(out, options)
    torch.set_num_threads(options.threads)
    training = open_training()
    if plan is None:
        recipe = training.recipe
        plan = make_plan(options, batch_size=recipe.batch_size, seconds_a_step=partial(seconds_a_step, training))
        write_json(out / PLAN_FILE, asdict(plan))
    CONSOLE.print(f"{plan.steps:,} steps of {plan.batch_size} images, {plan.precision}, {plan.threads} threads")
    return train_model(out, plan, training)


def train_model(out: Path, plan: Plan, training: DemoTraining[Any]) -> dict[str, Any]:
    """Train by a plan, from the checkpoint if there is one; what `training.json` says."""
    torch.set_num_threads(plan.threads)
    learner = training.new_learner(plan)
    checkpoints = Checkpoints(out, fingerprint(asdict(plan)), _CHECKPOINT_EVERY)
    train(
        learner,
        partial(_make_ahead, training, plan),
        steps=plan.steps,
        schedule=partial(training.recipe.learning_rate_share, steps=plan.steps),
        start=checkpoints.read() or Checkpoint(),
        checkpoints=checkpoints,
        log=_step_log(out, plan, training, learner),
    )
    training.save(out, learner)
    return _write_results(out, plan, training, learner)


def seconds_a_step(training: DemoTraining[Any], plan: Plan) -> float:
    """How long a step takes here when nothing disturbs it, in the mean of a training, without the work around it."""
    plan = replace(plan, steps=_TIMED_STEPS)
    learner, fastest_s = training.new_learner(plan), []
    with ThreadPoolExecutor(plan.threads) as workers:
        for step in (0, _TIMED_STEPS - 1):  # a small one and a full one
            batch, seconds = training.make_batch(plan, step, workers), []
            for _ in range(_TIMES):
                start_s = time.perf_counter()
                learner.step(batch, rate_share=0.0)
                seconds.append(time.perf_counter() - start_s)
            fastest_s.append(min(seconds))
    small_share = training.recipe.small_share
    return small_share * fastest_s[0] + (1 - small_share) * fastest_s[1]


def drawn_scenes(world: World, *, scenes: int, workers: int) -> DrawnScenes:
    """The first scenes of a world, of which `workers` processes draw what is missing.

    Raises InputError when the font is missing.
    """
    with counting("drawing", unit="scene", total=scenes) as tick:
        draw_scenes(world, scenes=scenes, workers=workers, tick=lambda drawn: tick(drawn, ""))
    return open_scenes(world, scenes=scenes)


def counting(name: str, *, unit: str, total: int) -> Any:
    """A progress bar for work that only counts."""
    return show_progress(CONSOLE, name=name, unit=unit, total=total)


@contextmanager
def expected_errors() -> Iterator[None]:
    """Errors that a user can mend end the program with one line."""
    try:
        yield
    except (InputError, IncompleteError, OtherPlanError) as error:
        CONSOLE.print(f"error: {error}", highlight=False)
        raise typer.Exit(2) from error


def _make_ahead(training: DemoTraining[BatchT], plan: Plan, start: int) -> Iterator[BatchT]:
    """The batches from step `start` on; the next one is made during the step, by `threads` workers."""
    with ThreadPoolExecutor(1) as ahead, ThreadPoolExecutor(plan.threads) as workers:
        future = ahead.submit(training.make_batch, plan, start, workers)
        for step in range(start, plan.steps):
            batch, future = future.result(), ahead.submit(training.make_batch, plan, step + 1, workers)
            yield batch


def _step_log(out: Path, plan: Plan, training: DemoTraining[Any], learner: DemoLearner[Any]) -> StepLog:
    recipe = training.recipe
    log_every = max(1, plan.steps // _LOG_ROWS)
    validate_every = log_every * max(1, plan.steps // log_every // recipe.validations)
    scenes = list(_validation_scenes(plan, range(recipe.curve_scenes)))

    def row(step: int, losses: Losses, images_per_s: float) -> Row:
        values: Row = {
            "step": step,
            "images": step * plan.batch_size,
            **{name: round(value, 4) for name, value in losses.items()},
            "learning_rate_share": round(recipe.learning_rate_share(step - 1, steps=plan.steps), 6),
            "images_per_s": images_per_s,
        }
        if step % validate_every == 0 or step == plan.steps:
            training.save(out / "current", learner)
            shares = training.summary(training.measure(out / "current", scenes, device=plan.device))
            values |= shares
            _draw_curves(out / "curve.png", [*read_log(out), values], recipe.plots)
            text = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
            CONSOLE.print(f"step {step:,} of {plan.steps:,}: {text}", highlight=False)
        return values

    return StepLog(out, "training", plan.batch_size, log_every, row, CONSOLE)


def _validation_scenes(plan: Plan, indices: Iterable[int]) -> Iterator[Scene]:
    return (draw_scene(VALIDATION_SEEDS[plan.seed], index=index) for index in indices)


def _draw_curves(path: Path, rows: Sequence[Row], plots: tuple[Plot, Plot]) -> None:
    """Two plots over the number of images seen, as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    for axes, plot in zip(figure.subplots(1, 2), plots, strict=True):
        for name, label in plot.labels.items():
            points = [(row["images"], row[name]) for row in rows if name in row]
            marker = "." if len(points) < len(rows) else ""
            axes.plot(*zip(*points, strict=True), marker=marker, label=label)
        axes.set(xlabel="images seen", ylabel=plot.ylabel, ylim=(0, plot.top))
        axes.legend(fontsize="small")
        axes.grid(alpha=0.3)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_whole(path, buffer.getbuffer())


def _write_results(out: Path, plan: Plan, training: DemoTraining[Any], learner: DemoLearner[Any]) -> dict[str, Any]:
    """Write `training.json`; the seeds of the worlds say which of them the model has not seen."""
    weights = out / training.recipe.weights
    scenes = _validation_scenes(plan, range(_FIRST_FINAL_SCENE, _FIRST_FINAL_SCENE + training.recipe.final_scenes))
    uses = {"training": TRAINING_SEEDS, "validation": VALIDATION_SEEDS, "held_out": HELD_OUT_SEEDS}
    results = {
        "plan": asdict(plan),
        "parameters": training.parameters(learner),
        "weights": {"bytes": weights.stat().st_size, "sha256": weights_sha256(weights)},
        "seeds": {use: [seeds[0], seeds[-1]] for use, seeds in uses.items()},
        **training.measure(out, scenes, device=plan.device),
    }
    write_json(out / "training.json", results)
    return results
