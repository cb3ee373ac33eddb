"""What the trainings of the demo world's two models are begun with: options, and the plan that is kept."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import torch
import typer

from schemas.errors import InputError
from scripts.demo_nouns import openmoji_version
from scripts.demo_seeds import TRAINING_SEEDS
from scripts.training import AnyBatch, State, write_json

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Out = Annotated[Path, typer.Argument(help="folder of the training; one that was begun goes on")]
Seed = Annotated[int, typer.Option(help="world to learn from, first weights, order")]
Hours = Annotated[float, typer.Option(help="how long to train, after drawing")]
Steps = Annotated[int | None, typer.Option(help="how many steps, rather than hours")]
SceneCount = Annotated[int, typer.Option(help="how many scenes to draw and learn from")]
Threads = Annotated[int, typer.Option(help="threads of the model; their number decides last bits")]
Device = Annotated[str, typer.Option(help="cpu, cuda or auto")]
Cache = Annotated[Path | None, typer.Option(help="where drawn scenes are kept; OUT/scenes if not given")]
Workers = Annotated[int, typer.Option(help="processes that draw; nothing depends on it")]

AnyPlan = TypeVar("AnyPlan", bound="DataclassInstance")

TIMED_STEPS = 1_000
"""Of the training whose steps `mean_step_s` times."""

_TIMED = 5


def open_plan(
    out: Path, plan_of: Callable[..., AnyPlan], *, make: Callable[[], AnyPlan], asked: dict[str, Any]
) -> AnyPlan:
    """The plan of the training in `out` if one was begun, else the one that `make` makes, which is kept there.

    Of what is `asked`, None and "auto" leave the choice. Raises InputError as `read_plan` and `check_plan` do.
    """
    plan = read_plan(out / "plan.json", plan_of)
    if plan is None:
        plan = make()
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "plan.json", asdict(plan))
    check_plan(plan, {name: value for name, value in asked.items() if value not in (None, "auto")}, out)
    return plan


def read_plan(path: Path, plan_of: Callable[..., AnyPlan]) -> AnyPlan | None:
    """The plan of a training that was begun, or None. Raises InputError for a file that is none."""
    if not path.exists():
        return None
    try:
        return plan_of(**json.loads(path.read_text("utf-8")))
    except (ValueError, TypeError) as error:
        raise InputError(f"{path} is no plan of this training; name a new folder") from error


def check_plan(plan: DataclassInstance, asked: dict[str, Any], folder: Path) -> None:
    """Raise InputError where a training that was begun differs from what is asked for, or from what is installed."""
    here = asked | {"openmoji": openmoji_version(), "torch": torch.__version__}
    for name, value in here.items():
        if getattr(plan, name) != value:
            raise InputError(
                f"{folder} was begun with {name} {getattr(plan, name)}, not {value}: give that, or name a new folder"
            )


def check_options(*, seed: int, hours: float, steps: int | None, scenes: int, threads: int) -> None:
    """Raise InputError for what no training can be begun with."""
    if not 0 <= seed < len(TRAINING_SEEDS):
        raise InputError(f"seed {seed}: seeds of a training go from 0 to {len(TRAINING_SEEDS) - 1}")
    if not hours > 0 or threads < 1 or (steps is not None and steps < 1):
        raise InputError(f"hours {hours}, steps {steps}, threads {threads}: each must be more than 0")
    if scenes < 1:
        raise InputError(f"scenes {scenes}: there must be some")


def mean_step_s(
    state: State, *, batch_of: Callable[[int], AnyBatch], learn: Callable[[AnyBatch], None], small_until: float
) -> float:
    """How long a step takes here when nothing disturbs it, in the mean of a training, without the work around it.

    Timed are the first and the last of TIMED_STEPS: pictures are small for the share `small_until` of all steps.
    """
    fastest_s = []
    for step in (0, TIMED_STEPS - 1):
        batch, seconds = batch_of(step), []
        for _ in range(_TIMED):
            state.step, start_s = step, time.perf_counter()
            learn(batch)
            seconds.append(time.perf_counter() - start_s)
        fastest_s.append(min(seconds))  # others may have had the processor for a while
    small_s, full_s = fastest_s
    return small_until * small_s + (1 - small_until) * full_s
