"""The plan of a training of the tiny CLIP: hours turned into steps, a precision chosen, both kept for its return."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mining.devices import open_device
from schemas.errors import InputError
from scripts.demo_nouns import openmoji_version
from scripts.demo_seeds import TRAINING_SEEDS
from scripts.train_clip_model import tiny_clip
from scripts.train_clip_steps import Plan, Precision, seconds_a_step

BATCH_SIZE = 256

_OTHER_WORK_SHARE = 0.06  # of the time: batches, validation, checkpoints
_USUAL_TOKENS = 2_000
_TIMED_BATCH_SIZE = 32  # where precisions are compared: one that is not the machine's own may be very slow
_PRECISIONS: dict[str, tuple[Precision, ...]] = {
    "auto": ("float32", "bf16"),
    "float32": ("float32",),
    "bf16": ("bf16",),
}


def make_plan(
    *, seed: int, hours: float, steps: int | None, scenes: int, precision: str, threads: int, device: str
) -> Plan:
    """A plan for so many hours on this machine, or for so many steps; a few steps are timed for what is left open.

    Raises InputError for what is out of range, and when the font is missing.
    """
    if not 0 <= seed < len(TRAINING_SEEDS):
        raise InputError(f"seed {seed}: seeds of a training go from 0 to {len(TRAINING_SEEDS) - 1}")
    if not hours > 0 or threads < 1 or (steps is not None and steps < 1):
        raise InputError(f"hours {hours}, steps {steps}, threads {threads}: each must be more than 0")
    if scenes < 1:
        raise InputError(f"scenes {scenes}: there must be some")
    if precision not in _PRECISIONS:
        raise InputError(f"precision {precision}: use auto, float32 or bf16")
    torch.set_num_threads(threads)
    where, config = str(open_device(device)), tiny_clip(_USUAL_TOKENS)
    plan = Plan(seed, 1, BATCH_SIZE, scenes, "float32", threads, where, openmoji_version(), torch.__version__)
    plans = [replace(plan, precision=choice) for choice in _PRECISIONS[precision]]
    if len(plans) > 1:
        plans.sort(key=lambda one: seconds_a_step(config, replace(one, batch_size=_TIMED_BATCH_SIZE)))
    if steps is None:
        steps = max(1, round(hours * 3600 * (1 - _OTHER_WORK_SHARE) / seconds_a_step(config, plans[0])))
    return replace(plans[0], steps=steps)


def read_plan(path: Path) -> Plan | None:
    """The plan of a training that was begun, or None. Raises InputError for a file that is none."""
    if not path.exists():
        return None
    try:
        return Plan(**json.loads(path.read_text("utf-8")))
    except (ValueError, TypeError) as error:
        raise InputError(f"{path} is no plan of this training; name a new folder") from error


def check_plan(plan: Plan, asked: dict[str, Any], folder: Path) -> None:
    """Raise InputError where a training that was begun differs from what is asked for, or from what is installed."""
    here = asked | {"openmoji": openmoji_version(), "torch": torch.__version__}
    for name, value in here.items():
        if getattr(plan, name) != value:
            raise InputError(
                f"{folder} was begun with {name} {getattr(plan, name)}, not {value}: give that, or name a new folder"
            )
