"""The losses of the tiny MaskFormer: which queries speak for an object, their masks, and what each cell belongs to.

The last is predicted by a layer of its own that is dropped after the training: for each cell of the mask features,
whether it is an object's, and where the middle of that object is. It teaches the features to differ from object to
object long before the queries make use of them.

Shapes: B images, Q queries, N objects of a batch, P pairs of query and object, E mask features, h × w their grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from maskmine.scripts.training.maskformer.batches import Batch
from maskmine.scripts.training.maskformer.model import look, normalised

if TYPE_CHECKING:
    from torch import Tensor

SPEAK_WEIGHT, CELL_WEIGHT, DICE_WEIGHT, OBJECT_WEIGHT, MIDDLE_WEIGHT = 2.0, 10.0, 3.0, 1.0, 4.0
SILENT_WEIGHT = 0.3
"""Of a query that is to say nothing, in units of one that is to speak: there are many more of them."""

HINTS = 3
"""Channels of the layer that is dropped: an object's cell or not, its middle down and across."""


@dataclass(frozen=True, slots=True)
class Losses:
    """The weighted sum, for the gradient, and its parts without weights."""

    total: Tensor
    parts: dict[str, Tensor]


def losses_of(model: Any, hints: Any, batch: Batch, *, config: dict[str, Any]) -> Losses:
    """The losses of a batch; `hints` is the layer of HINTS channels."""
    import torch

    device = model.class_predictor.weight.device
    pixels_B3HW = normalised(torch.from_numpy(batch.pixels_BHW3).to(device), config)
    classes_BQ2, masks_BQE, features_BEhw = look(model, pixels_B3HW.contiguous(memory_format=torch.channels_last))
    cover_Nhw, middle_N2, image_N, speaker_N, query_P, object_P = (
        torch.from_numpy(array).to(device)
        for array in (
            batch.cover_Nhw,
            batch.middle_N2,
            batch.image_N,
            batch.speaker_N,
            batch.query_P,
            batch.object_P,
        )
    )
    flat_BEC = features_BEhw.flatten(2)
    logits_PC = (masks_BQE @ flat_BEC).flatten(0, 1)[query_P]
    cover_NC = cover_Nhw.flatten(1)
    share_P = 1 / torch.bincount(object_P, minlength=len(cover_NC)).float()[object_P] / len(cover_NC)
    cell, dice = mask_losses(logits_PC, cover_NC[object_P], share_P)
    there, middle = hint_losses(hints(features_BEhw).flatten(2), cover_NC, middle_N2, image_N)
    parts = {
        "speak": speak_loss(classes_BQ2.flatten(0, 1), speaker_N),
        "cell": cell,
        "dice": dice,
        "object": there,
        "middle": middle,
    }
    weights = (SPEAK_WEIGHT, CELL_WEIGHT, DICE_WEIGHT, OBJECT_WEIGHT, MIDDLE_WEIGHT)
    total = torch.stack([weight * part for weight, part in zip(weights, parts.values(), strict=True)]).sum()
    return Losses(total, {name: part.detach() for name, part in parts.items()})


def speak_loss(classes_Q2: Tensor, speaker_N: Tensor) -> Tensor:
    """Cross-entropy of the queries that are to speak (class 0) and all others ("no object")."""
    import torch
    from torch.nn.functional import cross_entropy

    target_Q = torch.ones(len(classes_Q2), dtype=torch.long, device=classes_Q2.device)
    target_Q[speaker_N] = 0
    return cross_entropy(classes_Q2, target_Q, weight=torch.tensor([1.0, SILENT_WEIGHT], device=classes_Q2.device))


def mask_losses(logits_PC: Tensor, cover_PC: Tensor, share_P: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy by cell and dice loss of masks, each pair weighed with its share."""
    from torch.nn.functional import binary_cross_entropy_with_logits

    cell_P = binary_cross_entropy_with_logits(logits_PC, cover_PC, reduction="none").mean(1)
    soft_PC = logits_PC.sigmoid()
    dice_P = 1 - (2 * (soft_PC * cover_PC).sum(1) + 1) / (soft_PC.sum(1) + cover_PC.sum(1) + 1)
    return (share_P * cell_P).sum(), (share_P * dice_P).sum()


def hint_losses(hints_B3C: Tensor, cover_NC: Tensor, middle_N2: Tensor, image_N: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of whether a cell is an object's, and how far off its object's middle is said to be."""
    import torch
    from torch.nn.functional import binary_cross_entropy_with_logits

    any_BC = torch.zeros_like(hints_B3C[:, 0]).index_add_(0, image_N, cover_NC).clamp_(max=1)
    middle_B2C = torch.zeros_like(hints_B3C[:, 1:])
    middle_B2C.index_add_(0, image_N, middle_N2[:, :, None] * cover_NC[:, None])
    middle_B2C /= any_BC[:, None].clamp(min=1e-3)
    off_BC = (hints_B3C[:, 1:] - middle_B2C).abs().sum(1)
    return (
        binary_cross_entropy_with_logits(hints_B3C[:, 0], any_BC),
        (off_BC * any_BC).sum() / any_BC.sum().clamp(min=1),
    )
