"""The plan of a training of the tiny MaskFormer: hours turned into steps, kept for its return."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mining.devices import open_device
from schemas.errors import InputError
from scripts.demo_nouns import openmoji_version
from scripts.demo_seeds import TRAINING_SEEDS
from scripts.train_maskformer_batches import Batch
from scripts.train_maskformer_model import input_size, mask_size, query_places, tiny_maskformer
from scripts.train_maskformer_steps import SMALL_UNTIL, Plan, learn, new_state, short_side_px

BATCH_SIZE = 16

_OTHER_WORK_SHARE = 0.08  # of the time: batches, validation, checkpoints
_USUAL_SIZE_HW = (208, 256)
_USUAL_OBJECTS = 4
_TIMED, _TIMED_STEPS = 5, 1_000


def make_plan(*, seed: int, hours: float, steps: int | None, scenes: int, threads: int, device: str) -> Plan:
    """A plan for so many hours on this machine, or for so many steps; a few steps are timed for what is left open.

    Raises InputError for what is out of range, and when the font is missing.
    """
    if not 0 <= seed < len(TRAINING_SEEDS):
        raise InputError(f"seed {seed}: seeds of a training go from 0 to {len(TRAINING_SEEDS) - 1}")
    if not hours > 0 or threads < 1 or (steps is not None and steps < 1):
        raise InputError(f"hours {hours}, steps {steps}, threads {threads}: each must be more than 0")
    if scenes < 1:
        raise InputError(f"scenes {scenes}: there must be some")
    torch.set_num_threads(threads)
    where = str(open_device(device))
    plan = Plan(seed, 1, BATCH_SIZE, scenes, threads, where, openmoji_version(), torch.__version__)
    if steps is None:
        steps = max(1, round(hours * 3600 * (1 - _OTHER_WORK_SHARE) / seconds_a_step(tiny_maskformer(), plan)))
    return replace(plan, steps=steps)


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


def seconds_a_step(config: dict[str, Any], plan: Plan) -> float:
    """How long a step takes here when nothing disturbs it, in the mean of a training, without the work around it."""
    plan = replace(plan, steps=_TIMED_STEPS)
    state = new_state(config, plan)
    fastest_s = []
    for first in (0, _TIMED_STEPS - 1):
        batch = _some_batch(config, plan.batch_size, short_side_px(first, steps=plan.steps, config=config))
        seconds = []
        for _ in range(_TIMED):
            state.step, start_s = first, time.perf_counter()
            learn(state, batch, plan=plan, config=config)
            seconds.append(time.perf_counter() - start_s)
        fastest_s.append(min(seconds))  # others may have had the processor for a while
    small_s, full_s = fastest_s
    return SMALL_UNTIL * small_s + (1 - SMALL_UNTIL) * full_s


def _some_batch(config: dict[str, Any], pictures: int, short_px: int) -> Batch:
    """A batch of noise of a usual size."""
    rng = np.random.default_rng(0)
    input_hw = input_size(_USUAL_SIZE_HW, short_side_px=short_px)
    objects, queries = pictures * _USUAL_OBJECTS, len(query_places(config))
    query_P = rng.choice(pictures * queries, min(5 * objects, pictures * queries), replace=False)
    return Batch(
        pixels_BHW3=rng.integers(256, size=(pictures, *input_hw, 3), dtype=np.uint8),
        cover_Nhw=rng.random((objects, *mask_size(input_hw)), np.float32),
        middle_N2=rng.random((objects, 2), np.float32),
        picture_N=np.repeat(np.arange(pictures), _USUAL_OBJECTS),
        speaker_N=query_P[:objects],
        query_P=query_P,
        object_P=np.arange(len(query_P)) % objects,
    )
