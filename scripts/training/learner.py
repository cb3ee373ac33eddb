"""A model of the demo world in training: Muon for the matrices of its hidden layers, AdamW for everything else.

Muon makes the momentum of a matrix orthogonal before it is applied (Jordan, "Muon: an optimizer for hidden layers in
neural networks", 2024), with steps as large as AdamW's (Liu et al., "Muon is scalable for LLM training", 2025).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from maskmine.schemas.errors import InputError
from maskmine.tuning.training.log import Losses
from maskmine.tuning.training.optim import Trainable, parameter_group

BatchT = TypeVar("BatchT")

MUON_RATE = 3e-3  # at most: both rates are as high as a short training bears
ADAMW_RATE = 1e-3


@dataclass
class DemoLearner(Generic[BatchT]):
    """Everything that the next step depends on.

    `forward` takes a batch to its loss, and to what the log averages. `means` are running means over about
    1 / (1 − `memory`) batches; a batch that has no value leaves a mean as it is.
    """

    module: Any
    hidden: Trainable
    rest: Trainable
    forward: Callable[[BatchT], tuple[Tensor, Losses]]
    max_gradient_norm: float
    memory: float
    means: Losses = field(default_factory=dict)

    def step(self, batch: BatchT, *, rate_share: float) -> Losses:
        """Take one step at this share of the full learning rates; the running means."""
        for trainable in (self.hidden, self.rest):
            trainable.start_step(rate_share=rate_share)
        loss, values = self.forward(batch)
        if not math.isfinite(loss.item()):
            return {"loss": loss.item()}
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_([*self.hidden.parameters, *self.rest.parameters], self.max_gradient_norm)
        for trainable in (self.hidden, self.rest):
            trainable.apply_gradients()
        for name, value in values.items():
            self.means[name] = self.memory * self.means.get(name, value) + (1 - self.memory) * value
        return dict(self.means)

    def loss(self, batch: BatchT) -> float:
        """The loss of a batch with the weights as they are."""
        was_training = self.module.training
        self.module.eval()  # running statistics stay as they are
        with torch.no_grad():
            loss, _ = self.forward(batch)
        self.module.train(was_training)
        return loss.item()

    def state(self) -> dict[str, Any]:
        """What the next step depends on."""
        return {"hidden": self.hidden.state(), "rest": self.rest.state(), "means": dict(self.means)}

    def load(self, state: dict[str, Any]) -> None:
        """Return to a state of before."""
        self.hidden.load(state["hidden"])
        self.rest.load(state["rest"])
        self.means = dict(state["means"])


def new_learner(
    module: nn.Module,
    forward: Callable[[BatchT], tuple[Tensor, Losses]],
    *,
    is_hidden: Callable[[str], bool],
    without_decay: str,
    weight_decay: float,
    max_gradient_norm: float,
    memory: float,
) -> DemoLearner[BatchT]:
    """A learner of `module`: Muon for matrices whose name `is_hidden`, AdamW for the rest.

    Vectors, and parameters with `without_decay` in their name, do not decay. Raises InputError when torch has no Muon.
    """
    if not hasattr(torch.optim, "Muon"):
        raise InputError(f"torch {torch.__version__} has no Muon; install torch 2.9 or newer for this training")
    hidden: dict[str, Tensor] = {}
    decaying, plain = [], []
    for name, value in module.named_parameters():
        if value.ndim < 2 or without_decay in name:
            plain.append(value)
        elif value.ndim == 2 and is_hidden(name):
            hidden[name] = value
        else:
            decaying.append(value)
    muon = torch.optim.Muon(
        [parameter_group(hidden.values(), learning_rate=MUON_RATE, weight_decay=weight_decay)],  # type: ignore[arg-type]
        adjust_lr_fn="match_rms_adamw",
    )
    groups = [(decaying, weight_decay), (plain, 0.0)]
    adamw = torch.optim.AdamW(
        [parameter_group(values, learning_rate=ADAMW_RATE, weight_decay=decay) for values, decay in groups],
        betas=(0.9, 0.98),
        fused=True,
    )
    tensors = dict([*module.named_parameters(), *module.named_buffers()])
    kept = module.state_dict().keys() - hidden.keys()  # no constants, such as CLIP's causal mask, which holds −∞
    rest = {name: value for name, value in tensors.items() if name in kept}
    device = next(module.parameters()).device
    return DemoLearner(
        module=module,
        hidden=Trainable(hidden, muon, device),
        rest=Trainable(rest, adamw, device),
        forward=forward,
        max_gradient_norm=max_gradient_norm,
        memory=memory,
    )
