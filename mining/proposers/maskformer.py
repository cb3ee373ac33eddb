"""MaskFormer and Mask2Former through transformers: masks for everything in an image, whatever its class.

Shapes: B images of one size, Q queries of the model, K its classes and "no object", h × w the grid of the model's masks
(a quarter of its input), N proposals, H × W the image's height and width in pixels.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field

from maskmine.mining.models.devices import (
    PROPOSALS_ON_GPU,
    DeviceKind,
    open_device,
    resolve_precision,
    settled_precision,
)
from maskmine.mining.models.pretrained import (
    Family,
    commit_of,
    fetch_pretrained,
    load_pretrained,
    pretrained_contents,
    pretrained_record,
)
from maskmine.mining.proposers.open_vocabulary_checkpoint import is_open
from maskmine.mining.proposers.proposals import LoadedImage, Proposals, Proposer
from maskmine.schemas.errors import InputError
from maskmine.schemas.manifest import ModelRecord
from maskmine.schemas.settings import NameOrPath, RecordOnly, Settings

if TYPE_CHECKING:
    import torch

    Predict = Callable[[Sequence[torch.Tensor]], tuple[torch.Tensor, ...]]
    """Uint8 images [3, H, W] of one size to logits [B, Q, K] and [B, Q, h, w], and any others of the queries."""

_LONG_TO_SHORT_SIDE = 5 / 3  # as in the published models, 1333 to 800
_CHUNK_VALUES = 1 << 22  # 16 MiB of float32: what is resized at once stays in the cache of a CPU


class MaskFormer(Settings):
    """Which MaskFormer or Mask2Former, and how it runs."""

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

    def open(self, *, device: str) -> Proposer:
        """Load the model; returns a function from images of one size, on its device, to their proposals.

        Raises InputError when the checkpoint cannot be had, is of another kind, or lacks weights.
        """
        target = open_device(device)
        predict, labels = _load(self, device=target)
        read = partial(
            read_queries, labels=labels, mask_threshold=self.mask_threshold, max_proposals=self.max_proposals
        )
        return propose_from_queries(predict, read, device=target)

    def contents(self) -> dict[str, Any]:
        """The checkpoint by the hash of what is loaded."""
        return {"checkpoint": pretrained_contents(self.checkpoint, revision=self.revision, family=FAMILY)}

    def settled(self, kind: DeviceKind) -> Self:
        """The same model, at the commit that is on this machine, with the precision that it has on a kind of device."""
        precision = settled_precision(self.precision, kind, on_gpu=PROPOSALS_ON_GPU)
        revision = commit_of(self.checkpoint, self.revision, family=FAMILY)
        return self.model_copy(update={"precision": precision, "revision": revision})

    def fetch(self) -> None:
        """Fetch from the hub what is not on this machine. Raises InputError when that cannot be had."""
        fetch_pretrained(self.checkpoint, revision=self.revision, family=FAMILY)

    def record(self) -> ModelRecord:
        """The weights and their licence, as in `pretrained_record`."""
        return pretrained_record(self.checkpoint, revision=self.revision, licence=self.licence, family=FAMILY)


def propose_from_queries(predict: Predict, read: Callable[..., Proposals], *, device: torch.device) -> Proposer:
    """A proposer that runs `predict` on batches of images and `read` on the answer for each image.

    Raises InputError when an answer is not finite.
    """

    def propose(images: Sequence[LoadedImage], *, min_score: float) -> Iterator[Proposals]:
        # A CPU gains nothing from batches, and one by one an image's masks do not depend on others, to the last bit.
        at_once = 1 if device.type == "cpu" else max(1, len(images))
        for start in range(0, len(images), at_once):
            batch = [image.rgb_3HW for image in images[start : start + at_once]]
            classes_BQK, masks_BQhw, *queries = predict(batch)
            sound = all(bool(answer.isfinite().all()) for answer in (classes_BQK, *queries))
            if not sound or bool(masks_BQhw.isnan().any()):  # an infinite logit is a sure pixel, NaN none at all
                raise InputError("proposals.precision: the model's answers are not finite; use bfloat16 or float32")
            size_px = (batch[0].shape[1], batch[0].shape[2])
            for of_image in zip(classes_BQK, masks_BQhw, *queries, strict=True):
                yield read(*of_image, size_px=size_px, min_score=min_score)

    return propose


def read_queries(
    classes_QK: torch.Tensor,
    masks_Qhw: torch.Tensor,
    queries_QD: torch.Tensor | None = None,
    *,
    labels: Sequence[str | None],
    size_px: tuple[int, int],
    mask_threshold: float,
    max_proposals: int,
    min_score: float,
) -> Proposals:
    """The proposals in an image's class logits (the last is "no object") and mask logits, best first.

    The score is (1 − p("no object")) × the mean probability of the mask's pixels, on the model's own grid: the
    confidence of the MaskFormer paper (arXiv 2107.06278, section 3.4) without asking for a class. The label is the
    likeliest class. Only what is returned is brought to the image's size: probabilities, bilinearly, then the mask.
    """
    import torch

    with torch.inference_mode():
        probability_QK = classes_QK.float().softmax(dim=-1)
        soft_Qhw = masks_Qhw.float().sigmoid()
        inside_Qhw = (soft_Qhw > mask_threshold).float()
        area_Q = inside_Qhw.sum(dim=(1, 2))
        mean_Q = (soft_Qhw * inside_Qhw).sum(dim=(1, 2)) / area_Q.clamp(min=1)
        score_Q = (1 - probability_QK[:, -1]) * mean_Q
        order_Q = score_Q.argsort(descending=True, stable=True)
        chosen_N = order_Q[((area_Q > 0) & (score_Q >= min_score))[order_Q]][:max_proposals]
        soft_Nhw, classes_NK = soft_Qhw[chosen_N], probability_QK[chosen_N, :-1]
        return Proposals(
            _upsampled(soft_Nhw, size_px=size_px, threshold=mask_threshold),
            score_Q[chosen_N],
            tuple(labels[k] for k in classes_NK.argmax(dim=1).tolist()),
            soft_Nhw,
            classes_NK,
            tuple(labels),
            None if queries_QD is None else queries_QD[chosen_N],
        )


def _upsampled(soft_Nhw: torch.Tensor, *, size_px: tuple[int, int], threshold: float) -> torch.Tensor:
    """Which pixels of the image are above the threshold, bool [N, H, W]; only a few masks at a time are floats."""
    import torch
    from torch.nn.functional import interpolate

    masks_NHW = torch.empty(len(soft_Nhw), *size_px, dtype=torch.bool, device=soft_Nhw.device)
    step = max(1, _CHUNK_VALUES // (size_px[0] * size_px[1]))
    for start in range(0, len(soft_Nhw), step):
        part_1nhw = soft_Nhw[None, start : start + step]
        part_1nHW = interpolate(part_1nhw, size=size_px, mode="bilinear", align_corners=False)
        torch.gt(part_1nHW[0], threshold, out=masks_NHW[start : start + step])
    return masks_NHW


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


def _load(settings: MaskFormer, *, device: torch.device) -> tuple[Predict, tuple[str | None, ...]]:
    """The model, and the names of its classes."""
    import torch

    if is_open(settings.checkpoint):
        raise InputError(
            f"proposals.checkpoint: `{settings.checkpoint}` is an open-vocabulary MaskFormer; use kind: open_maskformer"
        )
    loaded = load_pretrained(settings.checkpoint, revision=settings.revision, family=FAMILY)
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


def labels_of(network: Any) -> tuple[str | None, ...]:
    """What a network of transformers calls its classes; None where its configuration has no name."""
    names = network.config.id2label
    return tuple(_label(names.get(k)) for k in range(network.config.num_labels))


def prepared_pixels(images: Sequence[torch.Tensor], *, processor: Any, short_side_px: int | None) -> torch.Tensor:
    """The model's input, float32 [B, 3, H', W']: images resized and normalised as the checkpoint says, never padded."""
    from transformers.image_transforms import get_size_with_aspect_ratio

    short_px, long_px = processor.size.shortest_edge, processor.size.longest_edge
    if short_side_px is not None:
        short_px, long_px = short_side_px, int(short_side_px * _LONG_TO_SHORT_SIDE)
    size = {}
    if short_px and long_px:  # else the checkpoint's input has one fixed size
        height_px, width_px = get_size_with_aspect_ratio(tuple(images[0].shape[1:]), short_px, long_px)
        size = {"size": {"height": max(1, height_px), "width": max(1, width_px)}}  # 0 for an image like a thread
    prepared: torch.Tensor = processor(
        images=list(images),
        return_tensors="pt",
        device=images[0].device,
        input_data_format="channels_first",
        pad_size=None,  # images of a batch have one size; padding would only move the masks
        **size,
    )["pixel_values"]
    return prepared


def _label(name: str | None) -> str | None:
    """A class's name, None where transformers made one up."""
    return None if name is None or re.fullmatch(r"LABEL_\d+", name) else name
