"""One step of training the tiny CLIP, what it depends on, and the checkpoint that lets it go on exactly.

Shapes: B pictures of a batch, T tokens of a text, S side in pixels.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import open_clip
import torch
from torch import Tensor

from scripts.train_clip_batches import shows_crops
from scripts.train_clip_model import MOST_SCALE, contrastive_loss, embed_pixels, embed_tokens, normalised
from scripts.train_muon import muon_and_adamw
from scripts.training import read_checkpoint, write_checkpoint

Precision = Literal["float32", "bf16"]

WEIGHT_DECAY = 0.1
MOST_GRADIENT = 1.0
WARMUP_SHARE = 0.05
"""Of all steps: so long the learning rates rise."""

SMALL_SHARE = 2 / 3
"""Of the input's side: so large are the pictures of the first steps, which take less than half the time for it."""

SMALL_UNTIL = 0.75
"""Of all steps: so long pictures are small."""

_MEMORY = 0.95  # of the running means


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


def learn(
    state: State, pixels_BSS3: Tensor, tokens_BT: Tensor, *, precision: Precision, config: dict[str, Any]
) -> None:
    """Take step `state.step` of a training, at the rates that the optimizers have."""
    model, device = state.model, state.model.logit_scale.device
    tokens_BT = tokens_BT.to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
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


def side_px(step: int, *, steps: int, config: dict[str, Any]) -> int:
    """The side of the pictures of a step, in pixels: whole patches."""
    full_px, patch_px = (config["model_cfg"]["vision_cfg"][key] for key in ("image_size", "patch_size"))
    if step >= SMALL_UNTIL * steps:
        return int(full_px)
    return int(patch_px * max(1, round(SMALL_SHARE * full_px / patch_px)))


def keep_state(path: Path, state: State) -> None:
    """Write a checkpoint."""
    write_checkpoint(path, state, loss=state.loss, in_batch_top1=state.in_batch_top1)


def restore_state(path: Path, state: State) -> None:
    """Put the state where the checkpoint left off; without a checkpoint it stays as it is."""
    if kept := read_checkpoint(path, state):
        state.loss, state.in_batch_top1 = kept["loss"], kept["in_batch_top1"]


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
    return muon_and_adamw(hidden=hidden, matrices=matrices, others=others, weight_decay=WEIGHT_DECAY)
