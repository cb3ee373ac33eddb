"""One step of training an open-vocabulary MaskFormer: matching, losses, and the update.

Matching and losses are those of MaskFormer as transformers has them, by OVSeg's weights: cross-entropy 1, "no object"
counting 0.1, sigmoid focal loss 20 (alpha 0.25, gamma 2), dice loss 1, after every layer of the decoder. Each class
that an image shows is one target, all its objects in one mask.

Shapes: B images, S side of a crop in pixels, Q queries, D width of CLIP's embeddings, K classes, C those of one
image, h × w the grid of the masks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from maskmine.mining.proposers.text_head import TextHead, class_logits, layer_answers
from maskmine.tuning.open_vocabulary.data import MapBatch
from maskmine.tuning.open_vocabulary.initial_model import NO_OBJECT_WEIGHT, MaskLosses
from maskmine.tuning.open_vocabulary.settings import Optimizer
from maskmine.tuning.segmentation.confusion import IGNORE
from maskmine.tuning.training.log import Losses
from maskmine.tuning.training.optim import Trainable, parameter_group
from maskmine.tuning.training.processes import Processes

_BACKBONE = "model.pixel_level_module.encoder."
_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)
_EMBEDDINGS = ("relative_position_bias_table", "position_embeddings", "no_object_D")
_PARTS = ("class", "mask", "dice")  # of the last layer's loss, in the log


@dataclass(frozen=True, slots=True)
class MaskLearner:
    """A MaskFormer and its head in training. `mean_3` and `std_3` are those of colours from 0 to 1."""

    network: Any
    head: TextHead
    losses: MaskLosses
    mean_3: Tensor
    std_3: Tensor
    logit_scale: float
    trainable: Trainable
    processes: Processes
    seed: int

    def step(self, batch: MapBatch, *, rate_share: float) -> Losses:
        """Take one step at this share of the full learning rates. Nothing changes when the loss is not finite."""
        self.trainable.start_step(rate_share=rate_share)
        # Dropout follows from the number of the step, so that a training that was stopped goes on with the same values.
        torch.manual_seed(self.seed * 1_000_003 + batch.step * self.processes.count + self.processes.rank)
        losses = _losses_of(self, batch)
        loss = torch.stack(list(losses.values())).sum()
        reported = self._mean(losses)
        if not math.isfinite(reported["loss"]):
            return reported
        self.trainable.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self._average_gradients()
        norm = self.trainable.apply_gradients()
        return reported if norm is None else reported | {"gradient_norm": norm}

    def loss(self, batch: MapBatch) -> float:
        """The loss of the whole batch with the weights as they are, without dropout."""
        was_training = self.network.training
        self.network.eval()  # running statistics stay as they are
        with torch.no_grad():
            losses = _losses_of(self, batch)
        self.network.train(was_training)
        return self._mean(losses)["loss"]

    def state(self) -> dict[str, Any]:
        """What the next step depends on."""
        return self.trainable.state()

    def load(self, state: dict[str, Any]) -> None:
        """Return to a state of before."""
        self.trainable.load(state)

    def _mean(self, losses: Mapping[str, Tensor]) -> Losses:
        """The losses as the log has them, of all processes together; so all see one that is not finite."""
        own = torch.stack([torch.stack(list(losses.values())).sum(), *(losses[name] for name in _PARTS)])
        return dict(zip(("loss", *_PARTS), (self.processes.sum(own) / self.processes.count).tolist(), strict=True))

    def _average_gradients(self) -> None:
        """Replace the gradients by their means over all processes."""
        self.trainable.fill_gradients()
        for parameter in self.trainable.parameters:
            assert parameter.grad is not None  # they were filled
            parameter.grad /= self.processes.count
        self.processes.sum_gradients(self.trainable.parameters)


def changing_tensors(network: Any, head: TextHead) -> dict[str, Tensor]:
    """The tensors that training changes: the head, parameters that have gradients, and buffers in training mode."""
    tensors: dict[str, Tensor] = {f"head.{name}": value for name, value in head.named_parameters()}
    tensors |= {name: value for name, value in network.named_parameters() if value.requires_grad}
    return tensors | {name: value for name, value in network.named_buffers() if network.training}


def targets_of(labels_BSS: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """For each image a mask for every class that it shows, float32 [C, S, S], and these classes, int64 [C]."""
    classes = [torch.unique(labels_SS[labels_SS != IGNORE]).long() for labels_SS in labels_BSS]
    masks = [
        (labels_SS[None] == classes_C[:, None, None]).float()
        for labels_SS, classes_C in zip(labels_BSS, classes, strict=True)
    ]
    return masks, classes


def new_optimizer(network: Any, head: TextHead, *, optimizer: Optimizer) -> torch.optim.Optimizer:
    """AdamW with groups by backbone or not, and by decay or not."""
    without_decay = _without_decay(network) | _without_decay(head)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, value in (*network.named_parameters(), *head.named_parameters()):
        if value.requires_grad:
            rate = optimizer.learning_rate * (optimizer.backbone_multiplier if name.startswith(_BACKBONE) else 1.0)
            decay = 0.0 if name in without_decay else optimizer.weight_decay
            groups.setdefault((rate, decay), []).append(value)
    return torch.optim.AdamW(
        [parameter_group(values, learning_rate=rate, weight_decay=decay) for (rate, decay), values in groups.items()],
        lr=optimizer.learning_rate,
    )


def _losses_of(learner: MaskLearner, batch: MapBatch) -> dict[str, Tensor]:
    """The weighted losses of this process's part of a batch, by name; images without any class are left out.

    Their mean over all processes is the loss of the whole batch in one process.
    """
    device, dtype = learner.trainable.device, learner.trainable.dtype
    labels_BSS = batch.labels_BSS.to(device)
    labelled_B = (labels_BSS != IGNORE).flatten(1).any(1)
    labels_BSS, pixels_B3SS = labels_BSS[labelled_B], batch.pixels_B3SS.to(device)[labelled_B]
    masks, classes = targets_of(labels_BSS)
    shares = _shares(learner, [len(classes_C) for classes_C in classes])
    if not len(labels_BSS):
        return dict.fromkeys(_PARTS, learner.head.no_object_D.sum() * 0)
    pixels_B3SS = (pixels_B3SS.float() / 255 - learner.mean_3[:, None, None]) / learner.std_3[:, None, None]
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        answers = layer_answers(learner.network, learner.head, pixels_B3SS)
    classes_KD, no_object_D = learner.head.classes_KD, learner.head.no_object_D
    scored = [
        (class_logits(queries_BQD, classes_KD, no_object_D, logit_scale=learner.logit_scale), masks_BQhw.float())
        for queries_BQD, masks_BQhw in answers
    ]
    losses = learner.losses(scored, masks, classes)
    return {name: shares[name.partition("_")[0]] * loss for name, loss in losses.items()}


def _shares(learner: MaskLearner, masks_B: Sequence[int]) -> dict[str, Tensor]:
    """What this process's losses count in those of the whole batch, by name; 1 with one process.

    A loss is divided by a sum of weights: of masks (`masks_B` of each image here), or of queries, which count less
    where they are no object. As in MaskFormer's training the mean of that sum over all processes takes its place, so
    that an image counts alike wherever it is. Any mask anywhere makes the mean positive, so it has no lower limit.
    """
    queries = int(learner.network.config.decoder_config.num_queries)
    objects = sum(min(queries, count) for count in masks_B)
    own = torch.tensor(
        [objects + NO_OBJECT_WEIGHT * (queries * len(masks_B) - objects), sum(masks_B)],
        dtype=torch.float64,
        device=learner.trainable.device,
    )
    mean = learner.processes.sum(own) / learner.processes.count
    by_class, by_mask = (own / torch.where(mean > 0, mean, 1.0)).float()
    return {"class": by_class, "mask": by_mask, "dice": by_mask}


def _without_decay(network: nn.Module) -> set[str]:
    """The names of the weights of norms and embeddings."""
    names = {name for name, _ in network.named_parameters() if name.endswith(_EMBEDDINGS)}
    for path, module in network.named_modules():
        if isinstance(module, (*_NORMS, nn.Embedding)):
            names |= {f"{path}.{name}" for name, _ in module.named_parameters(recurse=False)}
    return names
