"""The initial model of the training of an open-vocabulary MaskFormer, and its losses.

The MaskFormer is transformers' own, and so are matching and losses.

Shapes: B images, Q queries, L classes and "no object", h × w the grid of the masks, C classes that one image shows.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskmine.mining.models.foreign_code import check_described, nothing_is_run
from maskmine.mining.models.pretrained import load_pretrained, without_progress_bars
from maskmine.mining.proposers.maskformer import PLAIN
from maskmine.mining.proposers.open_vocabulary_checkpoint import BODY_FILE
from maskmine.schemas.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

CLASS_WEIGHT, MASK_WEIGHT, DICE_WEIGHT, NO_OBJECT_WEIGHT = 1.0, 20.0, 1.0, 0.1

_IMAGENET_MEAN, _IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
# What transformers' MaskFormer calls weights of its Swin, and what its Swin does since version 5.
_SWIN_NAMES = {
    "attention.self.relative_position_bias_table": "attention.relative_position_bias.relative_position_bias_table",
    "attention.self.query": "attention.q_proj",
    "attention.self.key": "attention.k_proj",
    "attention.self.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}
_STAGES = ["stage1", "stage2", "stage3", "stage4"]

LayerOutput = tuple["Tensor", "Tensor"]
"""Of a layer of the decoder: class logits [B, Q, L] and mask logits [B, Q, h, w]."""

MaskLosses = Callable[[list[LayerOutput], list["Tensor"], list["Tensor"]], dict[str, "Tensor"]]
"""From the outputs of all layers, the masks [C, H, W] of each image and their classes [C] to weighted losses by name.

`class`, `mask` and `dice` are the last layer's.
"""


@dataclass(frozen=True, slots=True)
class Body:
    """A MaskFormer and the image processor to save beside it; `folder` where it was whole already."""

    network: Any
    processor: Any
    folder: Path | None


def from_maskformer(checkpoint: str) -> Body:
    """The MaskFormer of a folder, or of a name on the hub. Raises InputError when it cannot be had."""
    loaded = load_pretrained(checkpoint, revision=None, family=PLAIN)
    whole = (Path(checkpoint) / BODY_FILE).is_file()
    return Body(loaded.network, loaded.processor, Path(checkpoint) if whole else None)


def from_backbone(backbone: str, *, decoder: dict[str, Any], short_side_px: int, long_side_px: int) -> Body:
    """A new MaskFormer around a trained Swin or ResNet; `decoder` is its decoder's configuration.

    Raises InputError when the backbone cannot be had, or lacks weights that the network needs.
    """
    import transformers

    try:
        if Path(backbone).is_dir():
            check_described(Path(backbone), name=backbone, setting="start.backbone")
        with nothing_is_run(backbone, setting="start.backbone"), without_progress_bars():
            shape = transformers.AutoConfig.from_pretrained(backbone, trust_remote_code=False)
            donor = transformers.AutoModel.from_pretrained(backbone, trust_remote_code=False, weights_only=True)
    except (OSError, ValueError, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"start.backbone: `{backbone}` cannot be had ({reason}); check the name") from error
    if shape.model_type not in ("swin", "resnet"):
        raise InputError(f"start.backbone: `{backbone}` is a {shape.model_type}; give a swin or a resnet")
    width = decoder["d_model"]
    sizes: dict[str, Any] = {
        "backbone_config": {**_without_outputs(shape), "out_features": _STAGES},
        "decoder_config": {"model_type": "detr", **decoder},
        "fpn_feature_size": width,
        "mask_feature_size": width,
        "num_labels": 1,
    }
    network: Any = transformers.MaskFormerForInstanceSegmentation(transformers.MaskFormerConfig(**sizes))
    _fill_encoder(network.model.pixel_level_module.encoder, donor.state_dict(), backbone=backbone)
    processor = transformers.MaskFormerImageProcessor(
        size={"shortest_edge": short_side_px, "longest_edge": long_side_px},
        image_mean=_IMAGENET_MEAN,
        image_std=_IMAGENET_STD,
        size_divisor=32,
    )
    return Body(network, processor, None)


def save_body(folder: Path, body: Body, *, half: bool) -> None:
    """Write the MaskFormer and its image processor as transformers does; with `half` as float16."""
    with without_progress_bars():
        network = copy.deepcopy(body.network).cpu()
        (network.half() if half else network).save_pretrained(folder)
        body.processor.save_pretrained(folder)


def new_losses(*, classes: int, device: torch.device) -> MaskLosses:
    """The matching and losses of MaskFormer for this number of classes."""
    from transformers.models.maskformer.modeling_maskformer import MaskFormerHungarianMatcher, MaskFormerLoss

    weights = {"loss_cross_entropy": CLASS_WEIGHT, "loss_mask": MASK_WEIGHT, "loss_dice": DICE_WEIGHT}
    names = {"loss_cross_entropy": "class", "loss_mask": "mask", "loss_dice": "dice"}
    matcher = MaskFormerHungarianMatcher(cost_class=CLASS_WEIGHT, cost_mask=MASK_WEIGHT, cost_dice=DICE_WEIGHT)
    criterion: Any = MaskFormerLoss(classes, matcher=matcher, weight_dict=weights, eos_coef=NO_OBJECT_WEIGHT)
    criterion.to(device)

    def losses(outputs: list[LayerOutput], masks: list[Tensor], labels: list[Tensor]) -> dict[str, Tensor]:
        *inner, (logits_BQL, masks_BQhw) = outputs
        auxiliary = [{"class_queries_logits": logits, "masks_queries_logits": drawn} for logits, drawn in inner]
        weighted = {}
        for name, loss in criterion(masks_BQhw, logits_BQL, masks, labels, auxiliary).items():
            kind = next(kind for kind in weights if name.startswith(kind))
            weighted[names[kind] + name.removeprefix(kind)] = weights[kind] * loss
        return weighted

    return losses


def _without_outputs(shape: Any) -> dict[str, Any]:
    """The configuration without which of its maps a backbone gives out."""
    return {name: value for name, value in shape.to_dict().items() if name not in ("out_features", "out_indices")}


def _swin_name(name: str) -> str:
    old = next((old for old in _SWIN_NAMES if f".{old}" in name), None)
    return name if old is None else name.replace(old, _SWIN_NAMES[old])


def _fill_encoder(encoder: Any, donated: dict[str, Tensor], *, backbone: str) -> None:
    """Copy the weights of a Swin or ResNet; the norms after its stages, which no such model has, stay random."""
    import torch

    missing = []
    with torch.no_grad():
        for name, value in (*encoder.named_parameters(), *encoder.named_buffers()):
            given = donated.get(name.removeprefix("model."), donated.get(_swin_name(name.removeprefix("model."))))
            if given is not None and given.shape == value.shape:
                value.copy_(given)
            elif isinstance(value, torch.nn.Parameter) and "hidden_states_norms" not in name:
                missing.append(name)
    if missing:
        raise InputError(
            f"start.backbone: `{backbone}` lacks {len(missing)} weights that a MaskFormer needs, such as {missing[0]}; "
            "give a plain Swin or ResNet of transformers"
        )
