"""The checkpoint of a tuning run: all that the next step depends on, in one file that is whole or not there."""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from schemas.errors import InputError, OtherPlanError
from tuning.files import write_whole

CHECKPOINT_FILE = "checkpoint.pt"


class Learns(Protocol):
    """What a run changes: the tensors that it trains, by name, and what its optimizer remembers."""

    @property
    def trained(self) -> Mapping[str, Tensor]: ...
    @property
    def optimizer(self) -> torch.optim.Optimizer: ...
    @property
    def scaler(self) -> torch.amp.GradScaler: ...


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """So many steps of a stage (numbered from 0) are done; `values` are the learner's."""

    stage: int
    step: int
    values: dict[str, Any] | None


def write_checkpoint(folder: Path, learner: Learns | None, *, fingerprint: str, stage: int, step: int) -> None:
    """Keep where a run is; without a learner only that its stage begins. Raises IncompleteError when the disk is full.

    The checkpoint before stays until the new one is whole.
    """
    buffer = io.BytesIO()
    values = _values(learner) if learner else None
    torch.save({"fingerprint": fingerprint, "stage": stage, "step": step, "values": values}, buffer)
    write_whole(folder / CHECKPOINT_FILE, buffer.getbuffer())


def read_checkpoint(folder: Path, *, fingerprint: str) -> Checkpoint | None:
    """Where the run in a folder is, None for a new one. Raises OtherPlanError when another run is there."""
    path = folder / CHECKPOINT_FILE
    if not path.exists():
        return None
    try:
        kept = torch.load(path, map_location="cpu", weights_only=True)
        checkpoint = Checkpoint(kept["stage"], kept["step"], kept["values"])
        found = kept["fingerprint"]
    except (OSError, RuntimeError, EOFError, LookupError, TypeError, pickle.UnpicklingError) as error:
        raise InputError(
            f"{path}: cannot be read as a checkpoint ({type(error).__name__}); delete it to start anew"
        ) from error
    if found != fingerprint:
        raise OtherPlanError(
            f"{folder}: holds a run of other settings, another CLIP or other shards or maps; choose another `out`, or "
            "delete it"
        )
    return checkpoint


def restore(learner: Learns, values: dict[str, Any]) -> None:
    """Put a learner where `write_checkpoint` saw it."""
    with torch.no_grad():
        for name, tensor in learner.trained.items():
            tensor.copy_(values["weights"][name])
    learner.optimizer.load_state_dict(values["optimizer"])
    learner.scaler.load_state_dict(values["scaler"])


def _values(learner: Learns) -> dict[str, Any]:
    return {
        "weights": {name: tensor.detach().cpu() for name, tensor in learner.trained.items()},
        "optimizer": learner.optimizer.state_dict(),
        "scaler": learner.scaler.state_dict(),
    }
