"""One step of training an open-vocabulary MaskFormer: matching, losses, and what AdamW makes of them.

Matching and losses are those of MaskFormer as transformers has them, by OVSeg's weights: cross-entropy 1, "no object"
counting 0.1, sigmoid focal loss 20 (alpha 0.25, gamma 2), dice loss 1, after every layer of the decoder. Each class
that a picture shows is one target, all its objects in one mask.

Shapes: B pictures, S side of a crop in pixels, Q queries, D width of CLIP's embeddings, K classes, C those of one
picture, h × w the grid of the masks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mining.models.open_start import Answer
from mining.models.text_head import TextHead, class_logits, layer_answers
from mining.segmentation_scores import NOTHING
from tuning.processes import Processes
from tuning.proposal_data import MapBatch
from tuning.proposal_settings import Optimizer

_BACKBONE = "model.pixel_level_module.encoder."
_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)
_EMBEDDINGS = ("relative_position_bias_table", "position_embeddings", "no_object_D")
_PARTS = ("class", "mask", "dice")

ManyLosses = Callable[[list[Answer], list[Tensor], list[Tensor]], dict[str, Tensor]]
"""What `new_losses` of mining/models/open_start.py gives."""


@dataclass
class MaskLearner:
    """All that a step depends on, apart from the batch. `trained` are tensors that change, by name.

    `mean_3` and `std_3` are those of colours from 0 to 1.
    """

    network: Any
    head: TextHead
    losses: ManyLosses
    mean_3: Tensor
    std_3: Tensor
    logit_scale: float
    optimizer: torch.optim.Optimizer
    processes: Processes
    dtype: torch.dtype
    max_gradient_norm: float
    seed: int
    trained: dict[str, Tensor] = field(init=False)
    scaler: torch.amp.GradScaler = field(init=False)

    def __post_init__(self) -> None:
        self.scaler = torch.amp.GradScaler(self.processes.device.type, enabled=self.dtype == torch.float16)
        tensors: dict[str, Tensor] = {f"head.{name}": value for name, value in self.head.named_parameters()}
        tensors |= {name: value for name, value in self.network.named_parameters() if value.requires_grad}
        moving = {name: value for name, value in self.network.named_buffers() if self.network.training}
        self.trained = tensors | moving


def learn_masks(learner: MaskLearner, batch: MapBatch, *, rate_share: float) -> dict[str, float]:
    """Take one step at so much of the full learning rates; what the log says of it.

    Nothing moves where the loss is not finite.
    """
    for group in learner.optimizer.param_groups:
        group["lr"] = rate_share * group["full_lr"]
    learner.optimizer.zero_grad(set_to_none=True)
    # Dropout follows from the number of the step, so a training that was cut off goes on as if it had not been.
    torch.manual_seed(learner.seed * 1_000_003 + batch.step * learner.processes.count + learner.processes.rank)
    losses = losses_of(learner, batch)
    loss = torch.stack(list(losses.values())).sum()
    said = {"loss": loss.item(), **{name: losses[name].item() for name in _PARTS}}
    if not math.isfinite(said["loss"]):
        return said
    parameters = [value for value in learner.trained.values() if isinstance(value, nn.Parameter)]
    learner.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
    _average(parameters, learner.processes)
    learner.scaler.unscale_(learner.optimizer)
    norm = nn.utils.clip_grad_norm_(parameters, learner.max_gradient_norm)
    learner.scaler.step(learner.optimizer)
    learner.scaler.update()
    return said | {"gradient_norm": norm.item()}


def losses_of(learner: MaskLearner, batch: MapBatch) -> dict[str, Tensor]:
    """The weighted losses of a batch, by name; pictures that show no class at all teach nothing, and are left out."""
    device = learner.processes.device
    labels_BSS = batch.labels_BSS.to(device)
    shown = (labels_BSS != NOTHING).flatten(1).any(1)
    labels_BSS, pixels_B3SS = labels_BSS[shown], batch.pixels_B3SS.to(device)[shown]
    if not len(labels_BSS):
        return dict.fromkeys(_PARTS, learner.head.no_object_D.sum() * 0)
    pixels_B3SS = (pixels_B3SS.float() / 255 - learner.mean_3[:, None, None]) / learner.std_3[:, None, None]
    with torch.autocast(device.type, learner.dtype, enabled=learner.dtype != torch.float32):
        answers = layer_answers(learner.network, learner.head, pixels_B3SS)
    known_KD, no_object_D = learner.head.classes_KD, learner.head.no_object_D
    scored = [
        (class_logits(queries_BQD, known_KD, no_object_D, logit_scale=learner.logit_scale), masks_BQhw.float())
        for queries_BQD, masks_BQhw in answers
    ]
    return learner.losses(scored, *targets_of(labels_BSS))


def targets_of(labels_BSS: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """For each picture a mask for every class that it shows, float32 [C, S, S], and these classes, int64 [C]."""
    classes = [torch.unique(labels_SS[labels_SS != NOTHING]).long() for labels_SS in labels_BSS]
    masks = [
        (labels_SS[None] == classes_C[:, None, None]).float()
        for labels_SS, classes_C in zip(labels_BSS, classes, strict=True)
    ]
    return masks, classes


def warmup_poly(step: int, *, optimizer: Optimizer) -> float:
    """The part of the full learning rates for a step counted from 0."""
    share = math.pow(1 - step / optimizer.steps, optimizer.power)
    if step >= optimizer.warmup_steps:
        return share
    risen = step / optimizer.warmup_steps
    return share * (optimizer.warmup_factor * (1 - risen) + risen)


def new_optimizer(network: Any, head: TextHead, *, optimizer: Optimizer) -> torch.optim.Optimizer:
    """AdamW with groups by backbone or not, and by decay or not."""
    bare = _without_decay(network) | _without_decay(head)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, value in (*network.named_parameters(), *head.named_parameters()):
        if value.requires_grad:
            rate = optimizer.learning_rate * (optimizer.backbone_multiplier if name.startswith(_BACKBONE) else 1.0)
            groups.setdefault((rate, 0.0 if name in bare else optimizer.weight_decay), []).append(value)
    parameters: list[dict[str, Any]] = [
        {"params": values, "lr": rate, "full_lr": rate, "weight_decay": decay}
        for (rate, decay), values in groups.items()
    ]
    return torch.optim.AdamW(parameters, lr=optimizer.learning_rate)


def _without_decay(network: nn.Module) -> set[str]:
    """The names of the weights of norms and embeddings."""
    bare = {name for name, _ in network.named_parameters() if name.endswith(_EMBEDDINGS)}
    for place, module in network.named_modules():
        if isinstance(module, (*_NORMS, nn.Embedding)):
            bare |= {f"{place}.{name}" for name, _ in module.named_parameters(recurse=False)}
    return bare


def _average(parameters: list[nn.Parameter], processes: Processes) -> None:
    """Let every process have the mean of all gradients."""
    for value in parameters:
        if value.grad is None:  # every process must take part in the sum
            value.grad = torch.zeros_like(value)
        value.grad /= processes.count
    processes.sum_gradients(parameters)
