"""Muon: momentum whose matrices are made orthogonal before they are applied, so that every direction learns alike.

Jordan, "Muon: an optimizer for hidden layers in neural networks" (2024); the size of a step is matched to AdamW's as in
Liu et al., "Muon is scalable for LLM training" (2025). `torch.optim.Muon` computes in bfloat16, which is many times
slower than float32 on processors that lack it, and takes the three matrices of an attention's input for one.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

MUON_RATE = 3e-3
ADAMW_RATE = 1e-3
MOMENTUM = 0.95

_ROUNDS = 5
_POLYNOMIAL = (3.4445, -4.775, 2.0315)  # Jordan's, tuned to lift small singular values fast
_SIZE = 0.2  # AdamW's usual root mean square of a step, in units of the learning rate


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov's momentum and decoupled weight decay, for matrices of hidden layers."""

    def __init__(self, matrices: Iterable[Tensor], *, lr: float, weight_decay: float) -> None:
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for matrix in group["params"]:
                mean = self.state[matrix].setdefault("mean", torch.zeros_like(matrix))
                mean.lerp_(matrix.grad, 1 - MOMENTUM)
                ahead = matrix.grad.lerp(mean, MOMENTUM)
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                matrix.add_(_step(ahead), alpha=-group["lr"])


def muon_and_adamw(
    *, hidden: list[Tensor], matrices: list[Tensor], others: list[Tensor], weight_decay: float
) -> tuple[torch.optim.Optimizer, ...]:
    """Muon for the hidden matrices, AdamW for all else; of that only the matrices decay."""
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr=ADAMW_RATE, betas=(0.9, 0.98), eps=1e-8, fused=True)
    return Muon(hidden, lr=MUON_RATE, weight_decay=weight_decay), adamw


def orthogonalised(matrix: Tensor) -> Tensor:
    """Nearly the orthogonal matrix that is nearest: the same singular vectors, singular values of about 1."""
    if matrix.shape[0] > matrix.shape[1]:
        return orthogonalised(matrix.T).T
    linear, cubic, quintic = _POLYNOMIAL
    found: Tensor = matrix / (matrix.norm() + 1e-7)
    for _ in range(_ROUNDS):
        square = found @ found.T
        found = linear * found + (cubic * square + quintic * square @ square) @ found
    return found


def _step(ahead: Tensor) -> Tensor:
    """The step for a matrix; an attention's input holds three square ones, each of which is made orthogonal.

    A convolution's weights are a matrix from all that a place sees to its outputs.
    """
    if ahead.ndim > 2:
        return _step(ahead.flatten(1)).view(ahead.shape)
    rows, columns = ahead.shape
    parts = torch.split(ahead, columns) if rows == 3 * columns else (ahead,)
    return torch.cat([orthogonalised(part) * (_SIZE * max(part.shape) ** 0.5) for part in parts])
