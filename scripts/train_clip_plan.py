"""The plan of a training of the tiny CLIP: hours turned into steps, and a precision chosen."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mining.devices import open_device
from schemas.errors import InputError
from scripts.demo_nouns import openmoji_version
from scripts.train_clip_model import tiny_clip
from scripts.train_clip_steps import SMALL_UNTIL, Plan, Precision, learn, new_state, side_px
from scripts.training_plan import TIMED_STEPS, check_options, mean_step_s

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
    check_options(seed=seed, hours=hours, steps=steps, scenes=scenes, threads=threads)
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


def seconds_a_step(config: dict[str, Any], plan: Plan) -> float:
    """How long a step takes here, in the mean of a training."""
    plan = replace(plan, steps=TIMED_STEPS)
    state = new_state(config, plan)
    return mean_step_s(
        state,
        batch_of=lambda step: _some_batch(config, plan.batch_size, side_px(step, steps=plan.steps, config=config)),
        learn=lambda batch: learn(state, *batch, precision=plan.precision, config=config),
        small_until=SMALL_UNTIL,
    )


def _some_batch(config: dict[str, Any], pictures: int, side: int) -> tuple[Tensor, Tensor]:
    """Pictures of noise, and texts as long as the longest caption of a batch."""
    length = config["model_cfg"]["text_cfg"]["context_length"]
    tokens_BT = torch.ones(pictures, length, dtype=torch.long)
    tokens_BT[:, length * 2 // 3 :] = 0
    return torch.randint(256, (pictures, side, side, 3), dtype=torch.uint8), tokens_BT
