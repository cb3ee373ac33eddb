"""EoMT through transformers: a plain ViT that answers with masks (Encoder-only Mask Transformer, arXiv 2503.19108).

Its input is a square of fixed size: a picture is resized to its long side and padded to the right and below. The
padding is cut off the masks before they are read. Checkpoints for semantic segmentation ask for pictures in square
pieces; here every picture is shown whole, as a mask that ends where a piece ends is no object.

Shapes: B images of one size, Q queries, K classes and "no object", h × w the grid of the masks of the whole square,
h' × w' of that of a picture in it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from maskmine.mining.models.devices import PROPOSALS_ON_GPU, resolve_precision
from maskmine.mining.models.pretrained import Family
from maskmine.mining.proposers.proposals import not_too_thin
from maskmine.mining.proposers.queries import QueryProposer, labels_of
from maskmine.schemas.settings import NameOrPath, RecordOnly

if TYPE_CHECKING:
    import torch

    from maskmine.mining.proposers.queries import Predict

_SURE_LOGIT = 80.0  # a sigmoid of 1 in float32; of infinite logits nothing can be interpolated


def _needed(network: Any) -> Iterator[str]:
    """All weights but those of the loss; so also `attn_mask_probs`, without which attention would be masked."""
    return (name for name in network.state_dict() if not name.startswith("criterion."))


_FAMILY = Family(
    classes={
        "eomt": ("EomtForUniversalSegmentation", "EomtImageProcessor"),
        "eomt_dinov3": ("EomtDinov3ForUniversalSegmentation", "EomtImageProcessor"),
    },
    pickles=True,
    needed=_needed,
)


class Eomt(QueryProposer):
    """Which EoMT, and how it runs. The size of its input is fixed by its weights."""

    family = _FAMILY

    kind: Literal["eomt"]
    """EoMT by transformers, on DINOv2 or DINOv3."""
    checkpoint: NameOrPath
    """A folder saved by transformers, or a name on the Hugging Face hub such as
    `tue-mps/coco_panoptic_eomt_large_640`."""
    revision: Annotated[str | None, RecordOnly()] = None
    """Branch, tag or commit on the hub; null is what is on this machine, else the newest."""
    mask_threshold: float = Field(default=0.5, gt=0, lt=1)
    """Probability above which a pixel belongs to a mask."""
    max_proposals: int = Field(default=100, ge=1)
    """Masks of an image, the best ones, that are brought to its size."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of the model; `auto` is bfloat16 on a GPU and float32 on a CPU."""
    licence: Annotated[str | None, RecordOnly()] = None
    """Licence of the weights (SPDX) where it is not known, such as that of a folder."""

    def open_model(self, device: torch.device) -> tuple[Predict, tuple[str | None, ...]]:
        """See `QueryProposer`."""
        return _load(self, device=device)


def without_padding(masks_BQhw: torch.Tensor, *, shown: tuple[float, float]) -> torch.Tensor:
    """The logits of a picture that covers these shares of the height and width of a square, from its upper left corner.

    Float32 [B, Q, h', w'], bilinearly, where h' and w' are the cells of the square's grid that the picture touches: its
    last row and column of cells are seldom covered whole.
    """
    import torch
    from torch.nn.functional import grid_sample

    coordinates = []
    for share, cells in zip(shown, masks_BQhw.shape[2:], strict=True):
        count = math.ceil(share * cells)
        middles = (torch.arange(count, device=masks_BQhw.device) + 0.5) / count
        coordinates.append(2 * share * middles - 1)  # the square reaches from −1 to 1
    y_hw, x_hw = torch.meshgrid(*coordinates, indexing="ij")
    grid_Bhw2 = torch.stack([x_hw, y_hw], dim=-1).expand(len(masks_BQhw), -1, -1, -1)
    logits_BQhw = masks_BQhw.float().clamp(-_SURE_LOGIT, _SURE_LOGIT)
    return grid_sample(logits_BQhw, grid_Bhw2, mode="bilinear", padding_mode="border", align_corners=False)


def _load(settings: Eomt, *, device: torch.device) -> tuple[Predict, tuple[str | None, ...]]:
    """The model, and the names of its classes."""
    import torch
    from transformers.image_transforms import get_size_with_aspect_ratio

    loaded = settings.load()
    network, processor, side_px = loaded.network.to(device), loaded.processor, loaded.network.config.image_size
    network.attn_mask_probs.round_()  # between 0 and 1, in the middle of a training, transformers would throw dice
    dtype = getattr(torch, resolve_precision(settings.precision, device, on_gpu=PROPOSALS_ON_GPU))

    def predict(images: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        pictures = [not_too_thin(rgb_3HW, input_px=side_px) for rgb_3HW in images]
        prepared = processor(
            images=pictures,
            return_tensors="pt",
            device=pictures[0].device,
            input_data_format="channels_first",
            size={"shortest_edge": side_px, "longest_edge": side_px},
            do_resize=True,
            do_split_image=False,
            do_pad=True,
        )
        with torch.inference_mode(), torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            outputs = network(pixel_values=prepared["pixel_values"])
        height_px, width_px = get_size_with_aspect_ratio(tuple(pictures[0].shape[1:]), side_px, side_px)
        with torch.inference_mode():
            shown = (height_px / side_px, width_px / side_px)
            return outputs.class_queries_logits, without_padding(outputs.masks_queries_logits, shown=shown)

    return predict, labels_of(network)
