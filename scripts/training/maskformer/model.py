"""The tiny MaskFormer of the demo world: its shape, first weights that make it learn fast, and how it is saved.

It is a plain MaskFormer of transformers: a small ResNet, a feature pyramid, and a decoder whose queries look at the
ResNet's last map. What is unusual is its initialisation: each query has a reference point, on a grid over the image,
and attends first to what lies there. So each query has a target from the first step on, and nothing has to be matched.

Shapes: B images of a batch, Q queries, D width of the decoder, E of the mask features, h × w the grid of the masks (a
quarter of the input), H × W the input's pixels.
"""

from __future__ import annotations

import copy
import json
import math
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

_STRIDE_PX = 16  # of the ResNet's last map: inputs are stretched to whole cells of it
_LONG_TO_SHORT_SIDE = 5 / 3
_TEMPERATURE = 10_000.0  # of MaskFormer's position embeddings
_NEARNESS = 24.0  # of the first look: a cell beside the point counts e⁻³ as much as the one at it
_HALF_CELL = 0.05  # MaskFormer says of a cell where it ends
_CAUTION = 0.2  # of the first masks, which would else be sure of themselves


def tiny_maskformer() -> dict[str, Any]:
    """The shape of the model and of its input."""
    text = resources.files("maskmine.scripts").joinpath("data/tiny_maskformer.json").read_text("utf-8")
    config: dict[str, Any] = json.loads(text)
    return config


def input_size(size_hw: tuple[int, int], *, short_side_px: int) -> tuple[int, int]:
    """The input size that the saved image processor makes of an image's size."""
    from transformers.image_transforms import get_size_with_aspect_ratio

    size_hw = get_size_with_aspect_ratio(size_hw, short_side_px, int(short_side_px * _LONG_TO_SHORT_SIDE))
    height_px, width_px = (math.ceil(side_px / _STRIDE_PX) * _STRIDE_PX for side_px in size_hw)
    return height_px, width_px


def mask_size(input_hw: tuple[int, int]) -> tuple[int, int]:
    """The grid of the masks for an input of this size."""
    return input_hw[0] // 4, input_hw[1] // 4


def query_points(config: dict[str, Any]) -> Tensor:
    """The reference point of each query, as shares of height and width, float32 [Q, 2]."""
    import torch

    rows, columns = config["grid"]
    down_R, across_C = (torch.arange(count) / count + 0.5 / count for count in (rows, columns))
    return torch.cartesian_prod(down_R, across_C)


def new_model(config: dict[str, Any]) -> Any:
    """A MaskFormer with random weights, by torch's generator."""
    import transformers

    rows, columns = config["grid"]
    backbone = {"model_type": "resnet", **config["backbone"]}
    backbone["out_features"] = [f"stage{number}" for number in range(1, len(backbone["depths"]) + 1)]
    decoder = {"model_type": "detr", "num_queries": rows * columns, "encoder_layers": 0, "dropout": 0.0}
    shape: dict[str, Any] = {
        "backbone_config": backbone,
        "decoder_config": decoder | config["decoder"],
        "fpn_feature_size": config["fpn_feature_size"],
        "mask_feature_size": config["mask_feature_size"],
        "num_labels": 1,
    }
    model = transformers.MaskFormerForInstanceSegmentation(transformers.MaskFormerConfig(**shape))
    _start_evenly(model)
    _start_at_points(model, config)
    return model


def save_maskformer(folder: Path, model: Any, *, config: dict[str, Any]) -> None:
    """A folder that `maskmine.mining.proposers.maskformer` opens: configurations, and weights in half precision."""
    import transformers
    from transformers.utils import logging as transformers_logging

    logging: Any = transformers_logging
    logging.disable_progress_bar()  # it would cross the training's own
    short_px = config["short_side_px"]
    processor = transformers.MaskFormerImageProcessor(
        size={"shortest_edge": short_px, "longest_edge": int(short_px * _LONG_TO_SHORT_SIDE)},
        size_divisor=_STRIDE_PX,
        image_mean=config["mean"],
        image_std=config["std"],
    )
    copy.deepcopy(model).cpu().half().save_pretrained(folder)
    processor.save_pretrained(folder)


def normalised(pixels_BHW3: Tensor, config: dict[str, Any]) -> Tensor:
    """Pixels as the model wants them, float32 [B, 3, H, W], of uint8 [B, H, W, 3]."""
    import torch

    mean_3, std_3 = (torch.tensor(config[key], device=pixels_BHW3.device) for key in ("mean", "std"))
    return ((pixels_BHW3.float() / 255 - mean_3) / std_3).permute(0, 3, 1, 2)


def look(model: Any, pixels_B3HW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Class logits [B, Q, 2], mask embeddings [B, Q, E] and mask features [B, E, h, w]; a mask is their product."""
    pixel_level = model.model.pixel_level_module(pixels_B3HW)
    queries_BQD = model.model.transformer_module(pixel_level.encoder_last_hidden_state).last_hidden_state
    return model.class_predictor(queries_BQD), model.mask_embedder(queries_BQD), pixel_level.decoder_last_hidden_state


def _start_evenly(model: Any) -> None:
    """Weights of a size that neither drowns nor blows up what goes through them; transformers' are for fine-tuning."""
    import torch
    from torch import nn

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.ones_(module.weight)
            elif isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
            elif isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
        model.mask_embedder.layers[-1].layers[0].weight.mul_(_CAUTION)


def _start_at_points(model: Any, config: dict[str, Any]) -> None:
    """Give the queries the positions of their points, and have the first layer attend where positions agree.

    Its heads compare the high frequencies alone: the sum of the cosines of differences is largest at the point itself.
    Features start out in the other channels, so that they do not move the look.
    """
    import torch

    module = model.model.transformer_module
    width, heads = config["decoder"]["d_model"], config["decoder"]["decoder_attention_heads"]
    if module.input_projection is None:
        raise ValueError("the decoder's width must differ from that of the last map, or features have no projection")
    rates = width // heads // 4
    high = [axis * width // 2 + channel for axis in range(2) for channel in range(2 * rates)]
    with torch.no_grad():
        module.queries_embedder.weight.copy_(_positions(query_points(config) + _HALF_CELL, width))
        module.input_projection.weight[high] = 0.0
        attention = module.decoder.layers[0].encoder_attn
        for projection in (attention.q_proj, attention.k_proj):
            projection.weight.copy_(math.sqrt(_NEARNESS) * torch.eye(width)[high].repeat(heads, 1))
            projection.bias.zero_()


def _positions(points_Q2: Tensor, width: int) -> Tensor:
    """MaskFormer's position embedding of points, [Q, D]: first down, then across, sine and cosine of each frequency."""
    import torch

    rates_F = _TEMPERATURE ** (-torch.arange(width // 4) / (width // 4))
    angles_Q2F = (points_Q2 * 2 * math.pi)[:, :, None] * rates_F
    return torch.stack([angles_Q2F.sin(), angles_Q2F.cos()], dim=3).flatten(1)
