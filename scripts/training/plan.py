"""How a training of the demo world's models is started: its options, and the plan that its folder keeps."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from maskmine.mining.models.devices import open_device
from maskmine.mining.storage.files import write_whole
from maskmine.schemas.errors import InputError
from maskmine.scripts.demo_world.nouns import openmoji_version
from maskmine.scripts.demo_world.splits import TRAINING_SEEDS

PLAN_FILE = "plan.json"

# Where precisions are compared, batches are small: one that is not the machine's own may be very slow.
_COMPARED_BATCH_SIZE = 32
_OTHER_WORK_SHARE = 0.07  # of the time: batches, validation, checkpoints
_PRECISIONS = {"auto": ("float32", "bf16"), "float32": ("float32",), "bf16": ("bf16",)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What is asked for; without `steps`, their number follows from `hours`."""

    seed: int
    hours: float
    steps: int | None
    scenes: int
    threads: int
    device: str
    precision: str = "float32"

    def check(self) -> None:
        """Raise InputError for what no training can be begun with."""
        if not 0 <= self.seed < len(TRAINING_SEEDS):
            raise InputError(f"seed {self.seed}: seeds of a training go from 0 to {len(TRAINING_SEEDS) - 1}")
        if not self.hours > 0 or self.threads < 1 or (self.steps is not None and self.steps < 1):
            raise InputError(f"hours {self.hours}, steps {self.steps}, threads {self.threads}: each must be above 0")
        if self.scenes < 1:
            raise InputError(f"scenes {self.scenes}: must be above 0")
        if self.precision not in _PRECISIONS:
            raise InputError(f"precision {self.precision}: use auto, float32 or bf16")
        open_device(self.device)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything that the weights follow from, except the kind of processor."""

    seed: int
    steps: int
    batch_size: int
    scenes: int
    threads: int
    device: str
    openmoji: str
    torch: str
    precision: str = "float32"


def read_plan(out: Path, options: Options) -> Plan | None:
    """The plan of the training that was begun in `out`, None for a new one.

    Raises InputError where the options cannot be, or differ from the plan; `auto`, no steps and the hours match any.
    """
    options.check()
    path = out / PLAN_FILE
    if not path.exists():
        return None
    try:
        plan = Plan(**json.loads(path.read_text("utf-8")))
    except (ValueError, TypeError) as error:
        raise InputError(f"{path} is no plan of this training; name a new folder") from error
    asked = asdict(options) | {"openmoji": openmoji_version(), "torch": torch.__version__}
    del asked["hours"]
    for name, value in asked.items():
        if value not in (None, "auto") and getattr(plan, name) != value:
            raise InputError(
                f"{out} was begun with {name} {getattr(plan, name)}, not {value}: give that, or name a new folder"
            )
    return plan


def make_plan(options: Options, *, batch_size: int, seconds_a_step: Callable[[Plan], float]) -> Plan:
    """A plan for the steps or hours asked for; steps are timed for what is left open.

    Raises InputError for options that cannot be.
    """
    options.check()
    plan = Plan(
        seed=options.seed,
        steps=options.steps or 1,
        batch_size=batch_size,
        scenes=options.scenes,
        threads=options.threads,
        device=str(open_device(options.device)),
        openmoji=openmoji_version(),
        torch=torch.__version__,
    )
    plans = [replace(plan, precision=precision) for precision in _PRECISIONS[options.precision]]
    if len(plans) > 1:
        plans.sort(key=lambda candidate: seconds_a_step(replace(candidate, batch_size=_COMPARED_BATCH_SIZE)))
    if options.steps is not None:
        return plans[0]
    seconds = options.hours * 3600 * (1 - _OTHER_WORK_SHARE)
    return replace(plans[0], steps=max(1, math.floor(seconds / seconds_a_step(plans[0]))))


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file that people read, whole or not at all."""
    write_whole(path, (json.dumps(content, indent=2) + "\n").encode())
