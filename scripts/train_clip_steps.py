"""One step of training the tiny CLIP, what it depends on, and the checkpoint that lets it go on exactly.

Shapes: B pictures of a batch, T tokens of a text, S side in pixels.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import open_clip
import torch
from torch import Tensor

from scripts.train_clip_batches import shows_crops
from scripts.train_clip_model import MOST_SCALE, contrastive_loss, embed_pixels, embed_tokens, normalised
from scripts.train_muon import Muon

Precision = Literal["float32", "bf16"]

MUON_RATE = 3e-3
ADAMW_RATE = 1e-3
WEIGHT_DECAY = 0.1
MOST_GRADIENT = 1.0
WARMUP_SHARE = 0.05
"""Of all steps: so long the learning rates rise; then they fall as half a cosine."""

SMALL_SHARE = 2 / 3
"""Of the input's side: so large are the pictures of the first steps, which take less than half the time for it."""

SMALL_UNTIL = 0.75
"""Of all steps: so long pictures are small."""

_MEMORY = 0.95  # of the running means
_TIMED, _TIMED_STEPS = 5, 1_000


@dataclass(frozen=True, slots=True)
class Plan:
    """All that the weights follow from, but for the kind of processor."""

    seed: int
    steps: int
    batch_size: int
    scenes: int
    precision: Precision
    threads: int
    device: str
    openmoji: str
    torch: str


@dataclass
class State:
    """Everything that the next step depends on, and running means for the log."""

    model: Any
    optimizers: tuple[torch.optim.Optimizer, ...]
    step: int = 0
    loss: float = 0.0
    in_batch_top1: float = 0.0


def new_state(config: dict[str, Any], plan: Plan) -> State:
    """A model with random weights that follow from the seed."""
    torch.manual_seed(plan.seed)
    model = open_clip.CLIP(**copy.deepcopy(config["model_cfg"])).to(plan.device).train()
    return State(model, _optimizers(model))


def learn(state: State, pixels_BSS3: Tensor, tokens_BT: Tensor, *, plan: Plan, config: dict[str, Any]) -> None:
    """Take step `state.step` of the plan."""
    model, device = state.model, state.model.logit_scale.device
    rate = learning_rate_share(state.step, steps=plan.steps)
    for optimizer in state.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate * optimizer.defaults["lr"]
    tokens_BT = tokens_BT.to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=plan.precision == "bf16"):
        image_BD = embed_pixels(model, normalised(pixels_BSS3.to(device), config))
        text_BD = embed_tokens(model, tokens_BT)
    image_BD, text_BD = image_BD.float(), text_BD.float()
    loss = contrastive_loss(image_BD, text_BD, scale=model.logit_scale.exp())
    model.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), MOST_GRADIENT)
    for optimizer in state.optimizers:
        optimizer.step()
    with torch.no_grad():
        model.logit_scale.clamp_(0.0, math.log(MOST_SCALE))
        right = (image_BD @ text_BD.T).argmax(1).cpu() == torch.arange(len(image_BD))
    if shows_crops(state.step):
        memory = _MEMORY if state.loss else 0.0
        state.loss = memory * state.loss + (1 - memory) * loss.item()
        state.in_batch_top1 = memory * state.in_batch_top1 + (1 - memory) * right.float().mean().item()
    state.step += 1


def learning_rate_share(step: int, *, steps: int) -> float:
    """The part of the full learning rates that a step, counted from 0, has."""
    warmup = max(1, round(WARMUP_SHARE * steps))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def side_px(step: int, *, steps: int, config: dict[str, Any]) -> int:
    """The side of the pictures of a step, in pixels: whole patches."""
    full_px, patch_px = (config["model_cfg"]["vision_cfg"][key] for key in ("image_size", "patch_size"))
    if step >= SMALL_UNTIL * steps:
        return int(full_px)
    return int(patch_px * max(1, round(SMALL_SHARE * full_px / patch_px)))


def seconds_a_step(config: dict[str, Any], plan: Plan) -> float:
    """How long a step takes here when nothing disturbs it, in the mean of a training, without the work around it."""
    plan = dataclasses.replace(plan, steps=_TIMED_STEPS)
    state = new_state(config, plan)
    length = config["model_cfg"]["text_cfg"]["context_length"]
    tokens_BT = torch.ones(plan.batch_size, length, dtype=torch.long)
    tokens_BT[:, length * 2 // 3 :] = 0  # what the longest caption of a batch leaves free
    fastest_s = []
    for first in (0, _TIMED_STEPS - 1):
        side = side_px(first, steps=plan.steps, config=config)
        pixels_BSS3 = torch.randint(256, (plan.batch_size, side, side, 3), dtype=torch.uint8)
        seconds = []
        for _ in range(_TIMED):
            state.step, start_s = first, time.perf_counter()
            learn(state, pixels_BSS3, tokens_BT, plan=plan, config=config)
            seconds.append(time.perf_counter() - start_s)
        fastest_s.append(min(seconds))  # others may have had the processor for a while
    small_s, full_s = fastest_s
    return SMALL_UNTIL * small_s + (1 - SMALL_UNTIL) * full_s


def write_checkpoint(path: Path, state: State) -> None:
    """Keep the state, whole or not at all."""
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        torch.save(
            {
                "model": state.model.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in state.optimizers],
                "step": state.step,
                "loss": state.loss,
                "in_batch_top1": state.in_batch_top1,
            },
            file,
        )
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def read_checkpoint(path: Path, state: State) -> None:
    """Put the state where the checkpoint left off; without a checkpoint it stays as it is."""
    if not path.exists():
        return
    kept = torch.load(path, map_location=state.model.logit_scale.device, weights_only=True)
    state.model.load_state_dict(kept["model"])
    for optimizer, values in zip(state.optimizers, kept["optimizers"], strict=True):
        optimizer.load_state_dict(values)
    state.step, state.loss, state.in_batch_top1 = kept["step"], kept["loss"], kept["in_batch_top1"]


def _optimizers(model: Any) -> tuple[torch.optim.Optimizer, ...]:
    """Muon for the matrices of the blocks, AdamW for all else; as in CLIP, only matrices decay."""
    hidden: list[Tensor] = []
    matrices: list[Tensor] = []
    others: list[Tensor] = []
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2 or "embedding" in name:
            others.append(parameter)
        else:
            (hidden if "resblocks" in name else matrices).append(parameter)
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr=ADAMW_RATE, betas=(0.9, 0.98), eps=1e-8, fused=True)
    return Muon(hidden, lr=MUON_RATE, weight_decay=WEIGHT_DECAY), adamw
