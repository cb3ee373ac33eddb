"""One step of tuning: the loss of the whole batch, its gradient, and what AdamW makes of it.

The loss of a batch needs all its embeddings at once, a process and its memory only see some. So (as GradCache does)
embeddings are made first; the loss gives a gradient for each of them; and each part of the batch carries its share of
that back through the tower, by itself, after a second forward pass where the batch was taken in more than one part.

Shapes: B pairs of this process, G those of all processes, M those of a micro-batch, V nouns of the vocabulary,
D width of the embedding, S side in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from tuning.data import Batch
from tuning.objective import Positives, contrastive_loss
from tuning.processes import Processes
from tuning.settings import Adam, Precision, Stage

MOST_SCALE = math.log(100.0)  # of the cosine, as in CLIP

_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_WITHOUT_DECAY = ("bn", "ln", "bias", "logit_scale")


@dataclass
class Learner:
    """All that a step depends on, apart from the batch. `trained` are the parameters that learn, by name.

    `embed` takes normalised pixels [M, 3, S, S] and masks [M, S, S] to embeddings [M, D] of any length.
    """

    embed: Callable[[Tensor, Tensor], Tensor]
    trained: dict[str, nn.Parameter]
    logit_scale: Tensor
    nouns_VD: Tensor
    positives: Positives
    optimizer: torch.optim.Optimizer
    processes: Processes
    dtype: torch.dtype
    micro_batch_size: int | None = None
    max_gradient_norm: float | None = None
    scaler: torch.amp.GradScaler = field(init=False)

    def __post_init__(self) -> None:
        self.scaler = torch.amp.GradScaler(self.processes.device.type, enabled=self.dtype == torch.float16)


def learn(learner: Learner, batch: Batch, *, rate_share: float) -> float:
    """Take one step at so much of the full learning rates; returns the loss, after which nothing moved if it is NaN."""
    for group in learner.optimizer.param_groups:
        group["lr"] = rate_share * group["full_lr"]
    learner.optimizer.zero_grad(set_to_none=True)
    loss = add_gradients(learner, batch)
    if not math.isfinite(loss):
        return loss
    learner.scaler.unscale_(learner.optimizer)
    if learner.max_gradient_norm is not None:
        nn.utils.clip_grad_norm_(learner.trained.values(), learner.max_gradient_norm)
    learner.scaler.step(learner.optimizer)
    learner.scaler.update()
    if "logit_scale" in learner.trained:
        with torch.no_grad():
            learner.logit_scale.clamp_(0.0, MOST_SCALE)
    return loss


def add_gradients(learner: Learner, batch: Batch) -> float:
    """Add the gradient of the whole batch's loss to every trained parameter, the same in every process; the loss."""
    parts = list(_parts(learner, batch))
    with torch.set_grad_enabled(len(parts) == 1):
        embedded_MD = [_unit_vectors(learner, *part) for part in parts]
    own_BD = torch.cat([part_MD.detach() for part_MD in embedded_MD]).requires_grad_()
    loss, gradient_BD = _loss_and_gradient(learner, own_BD, batch.nouns_G.to(own_BD.device))
    if not math.isfinite(loss):
        return loss
    gradients = torch.split(gradient_BD, [len(part_MD) for part_MD in embedded_MD])
    for part, part_MD, gradient_MD in zip(parts, embedded_MD, gradients, strict=True):
        again_MD = part_MD if len(parts) == 1 else _unit_vectors(learner, *part)
        torch.autograd.backward(again_MD, learner.scaler.scale(gradient_MD))
    for parameter in learner.trained.values():
        if parameter.grad is None:  # every process must take part in the sum
            parameter.grad = torch.zeros_like(parameter)
    learner.processes.sum_gradients(parameter for name, parameter in learner.trained.items() if name != "logit_scale")
    return loss


def rate_share(step: int, *, steps: int, warmup_steps: int) -> float:
    """The part of the full learning rate for a step counted from 0: a linear rise, then half a cosine."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, steps - warmup_steps)))


def new_optimizer(
    *,
    prompts: nn.Parameter | None,
    others: dict[str, nn.Parameter],
    prompt_stage: Stage,
    other_stage: Stage,
    adam: Adam,
) -> torch.optim.Optimizer:
    """AdamW with OVSeg's groups: prompts, what decays, and what does not (vectors, norms, biases, the scale)."""
    plain = {name: value for name, value in others.items() if not _decays(name, value)}
    decaying = [value for name, value in others.items() if name not in plain]
    groups = [
        ([prompts] if prompts is not None else [], prompt_stage.learning_rate, prompt_stage.weight_decay),
        (decaying, other_stage.learning_rate, other_stage.weight_decay),
        (list(plain.values()), other_stage.learning_rate, 0.0),
    ]
    parameters: list[dict[str, Any]] = [
        {"params": params, "lr": rate, "full_lr": rate, "weight_decay": decay}
        for params, rate, decay in groups
        if params
    ]
    return torch.optim.AdamW(parameters, betas=(adam.beta1, adam.beta2), eps=adam.epsilon)


def open_precision(precision: Precision, device: torch.device) -> torch.dtype:
    """The type that the tower computes in; `auto` is bfloat16 on a GPU that has it, float32 elsewhere."""
    if precision == "auto":
        half = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if half else torch.float32
    return _TYPES[precision]


def _decays(name: str, value: Tensor) -> bool:
    return value.ndim >= 2 and not any(word in name for word in _WITHOUT_DECAY)


def _parts(learner: Learner, batch: Batch) -> Iterator[tuple[Tensor, Tensor]]:
    size = learner.micro_batch_size or len(batch.pixels_B3SS)
    return zip(torch.split(batch.pixels_B3SS, size), torch.split(batch.masks_BSS, size), strict=True)


def _unit_vectors(learner: Learner, pixels_M3SS: Tensor, masks_MSS: Tensor) -> Tensor:
    device = learner.processes.device
    pixels_M3SS, masks_MSS = (values.to(device, non_blocking=True) for values in (pixels_M3SS, masks_MSS))
    with torch.autocast(device.type, learner.dtype, enabled=learner.dtype != torch.float32):
        features_MD = learner.embed(pixels_M3SS, masks_MSS)
    return normalize(features_MD.float(), dim=-1)


def _loss_and_gradient(learner: Learner, own_BD: Tensor, nouns_G: Tensor) -> tuple[float, Tensor]:
    """The loss, and its gradient by this process's embeddings; that by the scale is left at the scale.

    Every process computes the same loss of the same embeddings; gradients reach the tower through its own ones.
    """
    rows = learner.processes.gather(own_BD)
    rows[learner.processes.rank] = own_BD
    loss = contrastive_loss(
        torch.cat(rows),
        learner.nouns_VD[nouns_G],
        nouns_B=nouns_G,
        scale=learner.logit_scale.exp(),
        positives=learner.positives,
    )
    trained = [learner.logit_scale] if "logit_scale" in learner.trained else []
    gradient_BD, *of_scale = torch.autograd.grad(loss, [own_BD, *trained])
    for gradient in of_scale:
        learner.logit_scale.grad = learner.scaler.scale(gradient)
    return loss.item(), gradient_BD
