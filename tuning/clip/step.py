"""One training step of CLIP tuning: the loss of the whole batch, its gradients, and the update.

The loss of a batch needs all its embeddings at once; a process, and its memory, hold only some. As in GradCache,
embeddings are computed first, the loss gives a gradient for each of them, and each micro-batch goes through the
backward pass by itself, after a second forward pass where there is more than one.

Shapes: B pairs of this process, G those of all processes, M those of a micro-batch, V nouns of the vocabulary,
D width of the embedding, S side in pixels, K further nouns that a batch is held against.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from maskmine.tuning.clip.data import Batch
from maskmine.tuning.clip.loss import Negatives, Positives, contrastive_loss
from maskmine.tuning.clip.settings import Adam, Stage
from maskmine.tuning.training.log import Losses
from maskmine.tuning.training.optim import Trainable, parameter_group
from maskmine.tuning.training.processes import Processes

MAX_LOG_SCALE = math.log(100.0)  # of the cosine, as in CLIP

_WITHOUT_DECAY = ("bn", "ln", "bias", "logit_scale")  # parts of names, as in open_clip's trainer


@dataclass(frozen=True, slots=True)
class ClipLearner:
    """An image tower in training.

    `embed` takes normalised pixels [M, 3, S, S] and masks [M, S, S] to embeddings [M, D] of any length.
    """

    embed: Callable[[Tensor, Tensor], Tensor]
    logit_scale: Tensor
    nouns_VD: Tensor
    positives: Positives
    trainable: Trainable
    processes: Processes
    micro_batch_size: int | None = None

    @property
    def trains_scale(self) -> bool:
        """Whether the scale of the logits is trained, too."""
        return "logit_scale" in self.trainable.tensors

    def step(self, batch: Batch, *, rate_share: float) -> Losses:
        """Take one step at this share of the full learning rates. Nothing changes when the loss is not finite."""
        self.trainable.start_step(rate_share=rate_share)
        loss = _add_gradients(self, batch)
        if math.isfinite(loss):
            self.trainable.apply_gradients()
            if self.trains_scale:
                with torch.no_grad():
                    self.logit_scale.clamp_(0.0, MAX_LOG_SCALE)
        return {"loss": loss}

    def loss(self, batch: Batch) -> float:
        """The loss of the whole batch with the weights as they are."""
        with torch.no_grad():
            own_BD = torch.cat([_unit_vectors(self, *micro_batch) for micro_batch in _micro_batches(self, batch)])
            return _loss_of(self, own_BD, batch).item()

    def state(self) -> dict[str, Any]:
        """What the next step depends on."""
        return self.trainable.state()

    def load(self, state: dict[str, Any]) -> None:
        """Return to a state of before."""
        self.trainable.load(state)


def new_optimizer(
    *,
    prompts: nn.Parameter | None,
    others: dict[str, nn.Parameter],
    prompt_phase: Stage,
    other_phase: Stage,
    adam: Adam,
) -> torch.optim.Optimizer:
    """AdamW with OVSeg's groups: prompts, what decays, and what does not (vectors, norms, biases, the scale)."""
    plain = {name: value for name, value in others.items() if not _decays(name, value)}
    decaying = [value for name, value in others.items() if name not in plain]
    groups = [
        ([prompts] if prompts is not None else [], prompt_phase.learning_rate, prompt_phase.weight_decay),
        (decaying, other_phase.learning_rate, other_phase.weight_decay),
        (list(plain.values()), other_phase.learning_rate, 0.0),
    ]
    return torch.optim.AdamW(
        [parameter_group(values, learning_rate=rate, weight_decay=decay) for values, rate, decay in groups if values],
        betas=(adam.beta1, adam.beta2),
        eps=adam.epsilon,
    )


def _decays(name: str, value: Tensor) -> bool:
    return value.ndim >= 2 and not any(word in name for word in _WITHOUT_DECAY)


def _add_gradients(learner: ClipLearner, batch: Batch) -> float:
    """Add the gradient of the whole batch's loss to each parameter, the same in every process; the loss."""
    micro_batches = list(_micro_batches(learner, batch))
    with torch.set_grad_enabled(len(micro_batches) == 1):
        embedded_MD = [_unit_vectors(learner, *micro_batch) for micro_batch in micro_batches]
    own_BD = torch.cat([part_MD.detach() for part_MD in embedded_MD]).requires_grad_()
    loss, gradient_BD = _loss_and_gradient(learner, own_BD, batch)
    if not math.isfinite(loss):
        return loss
    # Propagate each micro-batch's part of the gradient through the tower.
    gradients = torch.split(gradient_BD, [len(part_MD) for part_MD in embedded_MD])
    for micro_batch, part_MD, gradient_MD in zip(micro_batches, embedded_MD, gradients, strict=True):
        again_MD = part_MD if len(micro_batches) == 1 else _unit_vectors(learner, *micro_batch)
        torch.autograd.backward(again_MD, learner.trainable.scaler.scale(gradient_MD))
    # The scale's gradient is already that of the whole batch.
    learner.trainable.fill_gradients()
    learner.processes.sum_gradients(value for value in learner.trainable.parameters if value is not learner.logit_scale)
    return loss


def _micro_batches(learner: ClipLearner, batch: Batch) -> Iterator[tuple[Tensor, Tensor]]:
    size = learner.micro_batch_size or len(batch.pixels_B3SS)
    return zip(torch.split(batch.pixels_B3SS, size), torch.split(batch.masks_BSS, size), strict=True)


def _unit_vectors(learner: ClipLearner, pixels_M3SS: Tensor, masks_MSS: Tensor) -> Tensor:
    device, dtype = learner.trainable.device, learner.trainable.dtype
    pixels_M3SS, masks_MSS = (values.to(device, non_blocking=True) for values in (pixels_M3SS, masks_MSS))
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        features_MD = learner.embed(pixels_M3SS, masks_MSS)
    return normalize(features_MD.float(), dim=-1)


def _loss_and_gradient(learner: ClipLearner, own_BD: Tensor, batch: Batch) -> tuple[float, Tensor]:
    """The loss and its gradient by this process's embeddings; the gradient by the scale is set at the scale.

    Every process computes the same loss of the same embeddings; gradients reach the tower through its own ones.
    """
    loss = _loss_of(learner, own_BD, batch)
    inputs = [own_BD, learner.logit_scale] if learner.trains_scale else [own_BD]
    gradient_BD, *scale_gradients = torch.autograd.grad(loss, inputs)
    for gradient in scale_gradients:
        learner.logit_scale.grad = learner.trainable.scaler.scale(gradient)
    return loss.item(), gradient_BD


def _loss_of(learner: ClipLearner, own_BD: Tensor, batch: Batch) -> Tensor:
    """The loss of the embeddings of all processes, of which `own_BD` are this one's."""
    nouns_G, negatives = batch.nouns_G.to(own_BD.device), None
    if batch.negatives is not None:
        columns = batch.negatives.to(own_BD.device)
        negatives = Negatives(learner.nouns_VD[columns.nouns_K], columns.hidden_GK)
    rows = learner.processes.gather(own_BD)
    rows[learner.processes.rank] = own_BD
    return contrastive_loss(
        torch.cat(rows),
        learner.nouns_VD[nouns_G],
        nouns_B=nouns_G,
        scale=learner.logit_scale.exp(),
        positives=learner.positives,
        negatives=negatives,
    )
