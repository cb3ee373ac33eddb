"""One step of training the tiny MaskFormer, what it depends on, and the checkpoint that lets it go on exactly."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scripts.train_maskformer_batches import Batch
from scripts.train_maskformer_loss import HINTS, losses_of
from scripts.train_maskformer_model import new_model
from scripts.train_muon import Muon

MUON_RATE = 3e-3
ADAMW_RATE = 1e-3
WEIGHT_DECAY = 0.05
MOST_GRADIENT = 5.0
WARMUP_SHARE = 0.03
"""Of all steps: so long the learning rates rise; then they fall as half a cosine."""

SMALL_UNTIL = 0.65
"""Of all steps: so long pictures are small, which takes three quarters of the time."""

_MEMORY = 0.97  # of the running means


@dataclass(frozen=True, slots=True)
class Plan:
    """All that the weights follow from, but for the kind of processor."""

    seed: int
    steps: int
    batch_size: int
    scenes: int
    threads: int
    device: str
    openmoji: str
    torch: str


@dataclass
class State:
    """Everything that the next step depends on, and running means for the log."""

    model: Any
    hints: nn.Module
    optimizers: tuple[torch.optim.Optimizer, ...]
    step: int = 0
    means: dict[str, float] = field(default_factory=dict)


def new_state(config: dict[str, Any], plan: Plan) -> State:
    """A model with random weights that follow from the seed."""
    torch.manual_seed(plan.seed)
    model = new_model(config).to(plan.device, memory_format=torch.channels_last).train()
    hints = nn.Conv2d(config["mask_feature_size"], HINTS, 1).to(plan.device)
    return State(model, hints, _optimizers(model, hints))


def learn(state: State, batch: Batch, *, plan: Plan, config: dict[str, Any]) -> None:
    """Take step `state.step` of the plan."""
    share = learning_rate_share(state.step, steps=plan.steps)
    for optimizer in state.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = share * optimizer.defaults["lr"]
        optimizer.zero_grad()
    losses = losses_of(state.model, state.hints, batch, config=config)
    losses.total.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(state.model.parameters(), MOST_GRADIENT)
    for optimizer in state.optimizers:
        optimizer.step()
    for name, part in {"loss": losses.total, **losses.parts}.items():
        before = state.means.get(name, part.item())
        state.means[name] = _MEMORY * before + (1 - _MEMORY) * part.item()
    state.step += 1


def learning_rate_share(step: int, *, steps: int) -> float:
    """The part of the full learning rates that a step, counted from 0, has."""
    warmup = max(1, round(WARMUP_SHARE * steps))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def short_side_px(step: int, *, steps: int, config: dict[str, Any]) -> int:
    """The short side of the pictures of a step."""
    return int(config["small_short_side_px" if step < SMALL_UNTIL * steps else "short_side_px"])


def write_checkpoint(path: Path, state: State) -> None:
    """Keep the state, whole or not at all."""
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        torch.save(
            {
                "model": state.model.state_dict(),
                "hints": state.hints.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in state.optimizers],
                "step": state.step,
                "means": state.means,
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
    kept = torch.load(path, map_location=state.model.device, weights_only=True)
    state.model.load_state_dict(kept["model"])
    state.hints.load_state_dict(kept["hints"])
    for optimizer, values in zip(state.optimizers, kept["optimizers"], strict=True):
        optimizer.load_state_dict(values)
    state.step, state.means = kept["step"], kept["means"]


def _optimizers(model: Any, hints: nn.Module) -> tuple[torch.optim.Optimizer, ...]:
    """Muon for the hidden matrices, AdamW for all else; only matrices decay."""
    hidden: list[Tensor] = []
    matrices: list[Tensor] = [parameter for parameter in hints.parameters() if parameter.ndim > 1]
    others: list[Tensor] = [parameter for parameter in hints.parameters() if parameter.ndim < 2]
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2 or "queries_embedder" in name:
            others.append(parameter)
        elif "encoder.embedder" in name or "class_predictor" in name or "0.encoder_attn" in name:
            matrices.append(parameter)
        else:
            hidden.append(parameter)
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr=ADAMW_RATE, betas=(0.9, 0.98), eps=1e-8, fused=True)
    return Muon(hidden, lr=MUON_RATE, weight_decay=WEIGHT_DECAY), adamw
