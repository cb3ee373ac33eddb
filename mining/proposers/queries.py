"""Models that answer with queries, each a mask and a class: their answers become proposals here, whatever the model.

Shapes: B images of one size, Q queries of the model, K its classes and, where it has one, "no object", h × w the grid
of the model's masks (a quarter of its input), N proposals, H × W the image's height and width in pixels.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from maskmine.mining.models.devices import open_device
from maskmine.mining.models.pretrained import FromTransformers
from maskmine.mining.proposers.proposals import LoadedImage, Proposals, Proposer, areas_px_of, take
from maskmine.schemas.errors import InputError

if TYPE_CHECKING:
    import torch

    Predict = Callable[[Sequence[torch.Tensor]], tuple[torch.Tensor, ...]]
    """Uint8 images [3, H, W] of one size to logits [B, Q, K] and [B, Q, h, w], and any others of the queries."""

_LONG_TO_SHORT_SIDE = 5 / 3  # as in the published models, 1333 to 800
_CHUNK_VALUES = 1 << 22  # 16 MiB of float32: what is resized at once stays in the cache of a CPU


class QueryProposer(FromTransformers):
    """Settings of a model whose answers are queries. The fields are theirs, in their own order."""

    if TYPE_CHECKING:
        mask_threshold: float
        max_proposals: int

    def open(self, *, device: str) -> Proposer:
        """Load the model; returns a function from images of one size, on its device, to their proposals.

        Raises InputError when the checkpoint cannot be had, is of another kind, or lacks weights.
        """
        target = open_device(device)
        predict, labels = self.tried(self.open_model)(target)
        read = partial(
            read_queries, labels=labels, mask_threshold=self.mask_threshold, max_proposals=self.max_proposals
        )
        return propose_from_queries(self.tried(predict), read, device=target)

    def open_model(self, device: torch.device) -> tuple[Predict, tuple[str | None, ...]]:
        """The model, and the names of its classes."""
        raise NotImplementedError


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
    likeliest class. Only what is returned is brought to the image's size: probabilities, bilinearly, then the mask,
    which has at least one pixel.
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
        found = Proposals(
            _upsampled(soft_Nhw, size_px=size_px, threshold=mask_threshold),
            score_Q[chosen_N],
            tuple(labels[k] for k in classes_NK.argmax(dim=1).tolist()),
            soft_Nhw,
            classes_NK,
            tuple(labels),
            None if queries_QD is None else queries_QD[chosen_N],
        )
        # a mask of a cell or two can fall between the pixels
        return take(found, [number for number, area_px in enumerate(areas_px_of(found.masks_NHW)) if area_px])


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
    """A class's name, None where transformers made one up, or the number is of no class."""
    return None if name is None or re.fullmatch(r"LABEL_\d+|N/A", name) else name
