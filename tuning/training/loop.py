"""The training loop: steps with the batches that are left, their log, and checkpoints to go on from.

CLIP, the open-vocabulary proposer and the models of the demo world are trained by it. What is a model's own comes as a
`Learner`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol, TypeVar

from maskmine.schemas.errors import InputError
from maskmine.tuning.training.batches import readers_may_die
from maskmine.tuning.training.checkpoints import Checkpoint, Checkpoints
from maskmine.tuning.training.log import Losses, StepLog

BatchT = TypeVar("BatchT")
BatchT_contra = TypeVar("BatchT_contra", contravariant=True)

_REMEDY_AT_FIRST = "the weights that it begins with are damaged, or precision float16 does not do; give others"
_REMEDY = "lower the learning rate, or use precision bfloat16 or float32"
_PATIENCE = 100  # steps, of which the first may overflow float16: its scale is still looked for


class Learner(Protocol[BatchT_contra]):
    """A model in training, with its optimizer."""

    def step(self, batch: BatchT_contra, *, rate_share: float) -> Losses:
        """Take one step at this share of the full learning rates; `loss` and what else the log needs.

        Nothing changes when the loss is not finite.
        """

    def loss(self, batch: BatchT_contra) -> float:
        """The loss of a batch with the weights as they are; nothing changes, and several processes call it together."""

    def state(self) -> dict[str, Any]:
        """What the next step depends on."""

    def load(self, state: dict[str, Any]) -> None:
        """Return to a state of before."""


def train(
    learner: Learner[BatchT],
    batches: Callable[[int], Iterable[BatchT]],
    *,
    steps: int,
    schedule: Callable[[int], float],
    start: Checkpoint,
    checkpoints: Checkpoints,
    log: StepLog,
    describe_batch: Callable[[int], str] = lambda step: "",
) -> float | None:
    """Take the steps that are left after the checkpoint `start`; the loss of the last one, None if there was none.

    `batches` gives those from a step on, `schedule` the share of the full learning rates; both count from 0.
    `describe_batch` says for an error message which batch a step had. Raises InputError for a loss that is not finite,
    for weights that are not, or whose loss is not, and for steps that taught nothing; no such weights are kept.
    IncompleteError when a process that reads batches dies.
    """
    if start.state is not None:
        refuse_diverged(start.state, done=start.step, remedy=f"delete {checkpoints.folder} and train again")
        learner.load(start.state)
    loss = None
    with readers_may_die(), log.open(done=start.step, steps=steps) as log_step:
        for done, batch in enumerate(batches(start.step), start.step + 1):
            losses = learner.step(batch, rate_share=schedule(done - 1))
            loss = losses["loss"]
            if not math.isfinite(loss):
                remedy = _REMEDY if done > 1 else _REMEDY_AT_FIRST  # nothing has been learnt before the first loss
                raise InputError(f"step {done}: the loss is {loss}; {describe_batch(done - 1)}{remedy}")
            log_step(done, losses)
            if checkpoints.is_due(done, steps=steps):
                state = learner.state()
                refuse_diverged(state, done=done, remedy=_REMEDY)
                if not math.isfinite(after := learner.loss(batch)):
                    raise InputError(f"step {done}: the loss of its batch is {after} after it; {_REMEDY}")
                if done == steps or done >= _PATIENCE:
                    _refuse_untaught(state, done=done)
                checkpoints.write(Checkpoint(start.phase, done, state))
    return loss


def refuse_diverged(state: Mapping[str, Any], *, done: int, remedy: str) -> None:
    """Raises InputError when a tensor of a learner's state after `done` steps is not finite."""
    broken = [name for name, value in _tensors(state) if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise InputError(
            f"step {done}: {len(broken)} tensors of the training are not finite after it, such as {broken[0]}; {remedy}"
        )


def _refuse_untaught(state: Mapping[str, Any], *, done: int) -> None:
    """Raises InputError when no gradient of any step reached a whole group of what an optimizer updates.

    An optimizer's means of gradients are then 0, or absent where every step overflowed.
    """
    for optimizer in _optimizers(state):
        for group in optimizer["param_groups"]:
            means = [value for number in group["params"] for value in _means(optimizer["state"].get(number, {}))]
            if group["params"] and not any(bool(value.any()) for value in means):
                why = "every gradient was 0" if means else "every step overflowed"
                raise InputError(
                    f"step {done}: {len(group['params'])} tensors that are trained learned nothing, {why}; there is "
                    "nothing to learn from in these data (no blank patch for prompts, no class in the maps, one noun), "
                    "or precision float16 does not do"
                )


def _optimizers(state: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The states of optimizers, as torch has them, anywhere in a learner's state."""
    if "param_groups" in state:
        yield state
        return
    for value in state.values():
        if isinstance(value, Mapping):
            yield from _optimizers(value)


def _means(moments: Mapping[str, Any]) -> Iterator[Any]:
    """What an optimizer remembers of a tensor's gradients: all but the number of steps."""
    return (value for name, value in moments.items() if name != "step" and hasattr(value, "any"))


def _tensors(state: Mapping[Any, Any], place: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in state.items():
        path = f"{place}.{name}" if place else str(name)
        if isinstance(value, Mapping):
            yield from _tensors(value, path)
        elif hasattr(value, "is_floating_point"):
            yield path, value
