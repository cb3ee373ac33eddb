"""MaskFormer and Mask2Former through transformers: masks for everything in an image, whatever its class.

Shapes: B images of one size, Q queries of the model, K its classes and "no object", h × w the grid of its masks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from maskmine.mining.models.devices import PROPOSALS_ON_GPU, resolve_precision
from maskmine.mining.models.pretrained import Family
from maskmine.mining.proposers.open_vocabulary_checkpoint import is_open
from maskmine.mining.proposers.queries import (
    QueryProposer,
    labels_of,
    prepared_pixels,
)
from maskmine.schemas.errors import InputError
from maskmine.schemas.settings import NameOrPath, RecordOnly

if TYPE_CHECKING:
    import torch

    from maskmine.mining.proposers.queries import Predict


def _needed(network: Any) -> Iterator[str]:
    """All parameters; but the encoder's last norm is in no published file, and unused."""
    return (name for name, _ in network.named_parameters() if ".encoder.model.layernorm." not in name)


FAMILY = Family(
    classes={
        "maskformer": ("MaskFormerForInstanceSegmentation", "MaskFormerImageProcessor"),
        "mask2former": ("Mask2FormerForUniversalSegmentation", "Mask2FormerImageProcessor"),
    },
    pickles=True,
    needed=_needed,
)

PLAIN = Family(classes={"maskformer": FAMILY.classes["maskformer"]}, pickles=False, needed=FAMILY.needed)
"""MaskFormer alone, and in safetensors: what an open-vocabulary one is made of."""


class MaskFormer(QueryProposer):
    """Which MaskFormer or Mask2Former, and how it runs."""

    family = FAMILY

    kind: Literal["maskformer"]
    """MaskFormer or Mask2Former by transformers."""
    checkpoint: NameOrPath
    """A folder saved by transformers, or a name on the Hugging Face hub such as
    `facebook/maskformer-swin-base-coco`."""
    revision: Annotated[str | None, RecordOnly()] = None
    """Branch, tag or commit on the hub; null is what is on this machine, else the newest."""
    mask_threshold: float = Field(default=0.5, gt=0, lt=1)
    """Probability above which a pixel belongs to a mask."""
    max_proposals: int = Field(default=100, ge=1)
    """Masks of an image, the best ones, that are brought to its size."""
    short_side_px: int | None = Field(default=None, ge=32)
    """Short side of the model's input in pixels, the long side at most 5/3 of it; null takes the checkpoint's. Larger
    finds smaller objects and is slower."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of the model; `auto` is bfloat16 on a GPU and float32 on a CPU."""
    licence: Annotated[str | None, RecordOnly()] = None
    """Licence of the weights (SPDX) where it is not known, such as that of a folder."""

    def open_model(self, device: torch.device) -> tuple[Predict, tuple[str | None, ...]]:
        """See `QueryProposer`."""
        return _load(self, device=device)


def _load(settings: MaskFormer, *, device: torch.device) -> tuple[Predict, tuple[str | None, ...]]:
    """The model, and the names of its classes."""
    import torch

    if is_open(settings.checkpoint):
        raise InputError(
            f"proposals.checkpoint: `{settings.checkpoint}` is an open-vocabulary MaskFormer; use kind: open_maskformer"
        )
    loaded = settings.load()
    network, processor = loaded.network.to(device), loaded.processor
    # Mask2Former cannot answer without its layers' masks; for MaskFormer they are a waste that no one reads
    network.config.use_auxiliary_loss = loaded.model_type == "mask2former"
    precision = resolve_precision(settings.precision, device, on_gpu=PROPOSALS_ON_GPU)

    def predict(images: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        dtype = getattr(torch, precision)
        with torch.inference_mode(), torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            pixels_B3HW = prepared_pixels(images, processor=processor, short_side_px=settings.short_side_px)
            outputs = network(pixel_values=pixels_B3HW)
        return outputs.class_queries_logits, outputs.masks_queries_logits

    return predict, labels_of(network)
