"""The plan of a training of the tiny MaskFormer: hours turned into steps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from mining.devices import open_device
from scripts.demo_nouns import openmoji_version
from scripts.train_maskformer_batches import Batch
from scripts.train_maskformer_model import input_size, mask_size, query_places, tiny_maskformer
from scripts.train_maskformer_steps import SMALL_UNTIL, Plan, learn, new_state, short_side_px
from scripts.training_plan import TIMED_STEPS, check_options, mean_step_s

BATCH_SIZE = 16

_OTHER_WORK_SHARE = 0.08  # of the time: batches, validation, checkpoints
_USUAL_SIZE_HW = (208, 256)
_USUAL_OBJECTS = 4


def make_plan(*, seed: int, hours: float, steps: int | None, scenes: int, threads: int, device: str) -> Plan:
    """A plan for so many hours on this machine, or for so many steps; a few steps are timed for what is left open.

    Raises InputError for what is out of range, and when the font is missing.
    """
    check_options(seed=seed, hours=hours, steps=steps, scenes=scenes, threads=threads)
    torch.set_num_threads(threads)
    where = str(open_device(device))
    plan = Plan(seed, 1, BATCH_SIZE, scenes, threads, where, openmoji_version(), torch.__version__)
    if steps is None:
        steps = max(1, round(hours * 3600 * (1 - _OTHER_WORK_SHARE) / seconds_a_step(tiny_maskformer(), plan)))
    return replace(plan, steps=steps)


def seconds_a_step(config: dict[str, Any], plan: Plan) -> float:
    """How long a step takes here, in the mean of a training."""
    plan = replace(plan, steps=TIMED_STEPS)
    state = new_state(config, plan)
    return mean_step_s(
        state,
        batch_of=lambda step: _some_batch(
            config, plan.batch_size, short_side_px(step, steps=plan.steps, config=config)
        ),
        learn=lambda batch: learn(state, batch, config=config),
        small_until=SMALL_UNTIL,
    )


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
