"""The checkpoint of a training: everything that its next step depends on, in one file that is whole or absent.

`checkpoint.pt` is a dictionary that `torch.load` reads with `weights_only`: `fingerprint` of the run, `stage` (number
of the phase), `step` (number of steps done) and `values` (the learner's state, None before the first step).
"""

from __future__ import annotations

import io
import pickle
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from maskmine.mining.storage.files import regular, write_whole
from maskmine.schemas.errors import InputError, OtherPlanError
from maskmine.tuning.training.processes import Processes

CHECKPOINT_FILE = "checkpoint.pt"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """`step` steps of phase `phase` (counted from 0) are done; `state` is the learner's."""

    phase: int = 0
    step: int = 0
    state: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """The checkpoint of the run in `folder`, whose settings and inputs have this fingerprint.

    It is written every `every` steps. Of several processes the main one writes.
    """

    folder: Path
    fingerprint: str
    every: int
    is_main: bool = True

    def claim(self, processes: Processes) -> Checkpoint:
        """The checkpoint, or that of a new run, which claims its folder by writing one. Raises what `read` does."""
        checkpoint = self.read()
        processes.wait()  # until every process has read
        if checkpoint is None:
            checkpoint = Checkpoint()
            self.write(checkpoint)
        return checkpoint

    def read(self) -> Checkpoint | None:
        """The checkpoint, None for a new run.

        Raises OtherPlanError when another run is in the folder, InputError for a file that cannot be read.
        """
        path = self.folder / CHECKPOINT_FILE
        if not path.exists():
            return None
        try:
            stored = torch.load(regular(path), map_location="cpu", weights_only=True)
            checkpoint = Checkpoint(stored["stage"], stored["step"], stored["values"])
            fingerprint = stored["fingerprint"]
        except (OSError, RuntimeError, EOFError, LookupError, TypeError, pickle.UnpicklingError) as error:
            raise InputError(
                f"{path}: cannot be read as a checkpoint ({type(error).__name__}); delete it to start again, or go on "
                "with the version of maskmine that wrote it"
            ) from error
        if fingerprint != self.fingerprint:
            raise OtherPlanError(
                f"{self.folder}: holds a run of other settings, another CLIP or other shards or maps; choose another "
                "`out`, or delete it"
            )
        return checkpoint

    def is_due(self, step: int, *, steps: int) -> bool:
        """Whether there is a checkpoint after step `step` of `steps`, in every process."""
        return step % self.every == 0 or step == steps

    def write(self, checkpoint: Checkpoint) -> None:
        """Replace the checkpoint; the one before stays until the new one is whole.

        Raises IncompleteError when the disk is full.
        """
        if not self.is_main:
            return
        buffer = io.BytesIO()
        stored = {
            "fingerprint": self.fingerprint,
            "stage": checkpoint.phase,
            "step": checkpoint.step,
            "values": checkpoint.state,
        }
        torch.save(_without_identities(stored), buffer)
        write_whole(self.folder / CHECKPOINT_FILE, buffer.getbuffer())


def _without_identities(value: Any) -> Any:
    """The same values as a tree of objects of their own, and each text as one object wherever it stands.

    Pickle notes which objects are the same; those of a state that was loaded are others than those that made it.
    """
    if isinstance(value, dict):
        return {_without_identities(key): _without_identities(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)([_without_identities(inner) for inner in value])
    return sys.intern(value) if type(value) is str else value
