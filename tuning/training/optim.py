"""Learning rate schedules, precision, and the tensors that an optimizer updates.

A schedule gives the multiplier of the full learning rates for a step counted from 0. The full rate of a parameter
group is its `full_lr`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from maskmine.tuning.training.settings import Precision

_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def warmup_cosine(step: int, *, steps: int, warmup_steps: int) -> float:
    """A linear rise, then half a cosine down to 0."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, steps - warmup_steps)))


def warmup_poly(step: int, *, steps: int, power: float, warmup_steps: int, warmup_factor: float) -> float:
    """(1 − step/steps)^`power`, times a linear rise from `warmup_factor`."""
    decay = math.pow(1 - step / steps, power)
    if step >= warmup_steps:
        return decay
    progress = step / warmup_steps
    return decay * (warmup_factor * (1 - progress) + progress)


def parameter_group(parameters: Iterable[nn.Parameter], *, learning_rate: float, weight_decay: float) -> dict[str, Any]:
    """A group of an optimizer whose rate follows a schedule."""
    return {"params": list(parameters), "lr": learning_rate, "full_lr": learning_rate, "weight_decay": weight_decay}


def open_precision(precision: Precision, device: torch.device) -> torch.dtype:
    """The type that a model computes in; `auto` is bfloat16 on a GPU that has it, float32 elsewhere."""
    if precision == "auto":
        half = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if half else torch.float32
    return _TYPES[precision]


@dataclass
class Trainable:
    """The tensors that training changes, by name, and the optimizer of those that are parameters.

    `dtype` is what the model computes in: gradients of float16 are scaled. Gradients whose norm is above
    `max_gradient_norm` are clipped.
    """

    tensors: Mapping[str, Tensor]
    optimizer: torch.optim.Optimizer
    device: torch.device
    dtype: torch.dtype = torch.float32
    max_gradient_norm: float | None = None
    scaler: torch.amp.GradScaler = field(init=False)

    def __post_init__(self) -> None:
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The tensors that have gradients; the others are buffers."""
        return [value for value in self.tensors.values() if isinstance(value, nn.Parameter)]

    def start_step(self, *, rate_share: float) -> None:
        """Set the learning rates and forget the gradients of the step before."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate_share * group["full_lr"]
        self.optimizer.zero_grad(set_to_none=True)

    def fill_gradients(self) -> None:
        """Give parameters without a gradient one of zeros: every process must take part in a sum of gradients."""
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)

    def apply_gradients(self) -> float | None:
        """Clip the gradients and update the parameters; the norm before clipping, None without a limit."""
        norm = None
        self.scaler.unscale_(self.optimizer)
        if self.max_gradient_norm is not None:
            norm = nn.utils.clip_grad_norm_(self.parameters, self.max_gradient_norm).item()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return norm

    def state(self) -> dict[str, Any]:
        """What the next step depends on, for a checkpoint."""
        return {
            "weights": {name: tensor.detach().cpu() for name, tensor in self.tensors.items()},
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Return to a state of before."""
        with torch.no_grad():
            for name, tensor in self.tensors.items():
                tensor.copy_(state["weights"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
