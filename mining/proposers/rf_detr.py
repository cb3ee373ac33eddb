"""RF-DETR through transformers: a real-time detector whose queries have masks (arXiv 2511.09554).

Shapes: B images of one size, Q queries, K classes of things, h × w the grid of the masks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from maskmine.mining.models.devices import PROPOSALS_ON_GPU, resolve_precision
from maskmine.mining.models.pretrained import Family
from maskmine.mining.proposers.queries import (
    QueryProposer,
    labels_of,
    prepared_pixels,
)
from maskmine.schemas.settings import NameOrPath, RecordOnly

if TYPE_CHECKING:
    import torch

    from maskmine.mining.proposers.queries import Predict

_NEVER = -80.0  # a logarithm of nearly 0 that is a number in half precision too


def _needed(network: Any) -> Iterator[str]:
    """All weights but the one that only the backbone's own training used."""
    return (name for name in network.state_dict() if not name.endswith(".mask_token"))


_FAMILY = Family(
    classes={"rf_detr": ("RfDetrForInstanceSegmentation", "RfDetrImageProcessor")}, pickles=False, needed=_needed
)


class RfDetr(QueryProposer):
    """Which RF-DETR, and how it runs. The size of its input is the checkpoint's.

    A query has one class, its likeliest, whose probability × the mean probability of the mask's pixels is the score.
    """

    family = _FAMILY

    kind: Literal["rf_detr"]
    """RF-DETR for instance segmentation, by transformers."""
    checkpoint: NameOrPath
    """A folder saved by transformers, or a name on the Hugging Face hub such as `Roboflow/rf-detr-seg-medium`, with
    weights as safetensors."""
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


def one_class_each(logits_BQK: torch.Tensor) -> torch.Tensor:
    """Logits of a softmax over the classes and "no object", [B, Q, K + 1], from a detector's, each of a sigmoid.

    The likeliest class keeps its probability and the rest is "no object": that a query is something else as well is
    not said, as these probabilities do not add up.
    """
    import torch
    from torch.nn.functional import logsigmoid

    best_BQ1, class_BQ1 = logits_BQK.float().max(dim=-1, keepdim=True)
    classes_BQK = torch.full_like(logits_BQK, _NEVER, dtype=torch.float32).scatter(-1, class_BQ1, logsigmoid(best_BQ1))
    return torch.cat([classes_BQK, logsigmoid(-best_BQ1)], dim=-1)


def _load(settings: RfDetr, *, device: torch.device) -> tuple[Predict, tuple[str | None, ...]]:
    """The model, and the names of its classes."""
    import torch

    loaded = settings.load()
    network, processor = loaded.network.to(device), loaded.processor
    dtype = getattr(torch, resolve_precision(settings.precision, device, on_gpu=PROPOSALS_ON_GPU))

    def predict(images: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.inference_mode(), torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            outputs = network(pixel_values=prepared_pixels(images, processor=processor, short_side_px=None))
        with torch.inference_mode():
            return one_class_each(outputs.logits), outputs.pred_masks

    return predict, labels_of(network)
