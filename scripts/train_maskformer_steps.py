"""One step of training the tiny MaskFormer, what it depends on, and the checkpoint that lets it go on exactly."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scripts.train_maskformer_batches import Batch
from scripts.train_maskformer_loss import HINTS, losses_of
from scripts.train_maskformer_model import new_model
from scripts.train_muon import muon_and_adamw
from scripts.training import read_checkpoint, write_checkpoint

WEIGHT_DECAY = 0.05
MOST_GRADIENT = 5.0
WARMUP_SHARE = 0.03
"""Of all steps: so long the learning rates rise."""

SMALL_UNTIL = 0.65
"""Of all steps: so long pictures are small, which takes about half of the time."""

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


def learn(state: State, batch: Batch, *, config: dict[str, Any]) -> None:
    """Take step `state.step` of a training, at the rates that the optimizers have."""
    for optimizer in state.optimizers:
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


def short_side_px(step: int, *, steps: int, config: dict[str, Any]) -> int:
    """The short side of the pictures of a step."""
    return int(config["small_short_side_px" if step < SMALL_UNTIL * steps else "short_side_px"])


def keep_state(path: Path, state: State) -> None:
    """Write a checkpoint."""
    write_checkpoint(path, state, hints=state.hints.state_dict(), means=state.means)


def restore_state(path: Path, state: State) -> None:
    """Put the state where the checkpoint left off; without a checkpoint it stays as it is."""
    if kept := read_checkpoint(path, state):
        state.hints.load_state_dict(kept["hints"])
        state.means = kept["means"]


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
    return muon_and_adamw(hidden=hidden, matrices=matrices, others=others, weight_decay=WEIGHT_DECAY)
