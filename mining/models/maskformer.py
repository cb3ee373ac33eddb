"""MaskFormer and Mask2Former through transformers: masks for everything in a picture, without asking what it is.

Shapes: B images of one size, Q queries of the model, K classes, h × w the grid of the model's masks (a quarter of its
input), H × W the picture's height and width in pixels.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from mining.devices import open_device
from mining.proposals import LoadedImage, Proposals, Proposer
from mining.weights import licence_of, weights_sha256
from schemas.errors import InputError
from schemas.models import ModelRecord
from schemas.settings import Settings

if TYPE_CHECKING:
    import torch

_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_SAFETENSORS = ["*.json", "model*.safetensors"]
_PICKLES = ["*.json", "pytorch_model*.bin"]
_ARCHITECTURES = ("maskformer", "mask2former")
_LONG_TO_SHORT_SIDE = 5 / 3  # of the sizes that the published models take, 800 and 1333


class MaskFormer(Settings):
    """Which MaskFormer or Mask2Former, and how it runs.

    `checkpoint`: a folder saved by transformers, or a name on the Hugging Face hub such as
    `facebook/maskformer-swin-base-coco`, with `revision` a branch, tag or commit of it.
    `mask_threshold`: a pixel belongs to a mask when its probability is above.
    `max_proposals`: at most so many masks of an image, the best, are brought to the picture's size.
    `short_side_px`: the short side of the model's input instead of the checkpoint's; the long side is at most 5/3 of it.
    `precision: auto` is bfloat16 on a GPU and float32 on a CPU.
    `licence` states what cannot be known: that of a folder. It is stamped into the data that the masks end in.
    """

    kind: Literal["maskformer"]
    checkpoint: str
    revision: str | None = None
    mask_threshold: float = Field(default=0.5, gt=0, lt=1)
    max_proposals: int = Field(default=100, ge=1)
    short_side_px: int | None = Field(default=None, ge=32)
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    licence: str | None = None

    def open(self, *, device: str) -> Proposer:
        """Load the model; returns a function from images of one size to their proposals.

        A proposal's score is (1 − p("no object")) × the mean probability of the mask's pixels, both as the model sees
        them; its label is the likeliest class of the model's own list, None where the checkpoint does not name it.
        Raises InputError when the checkpoint cannot be had or is none.
        """
        model = _load(self, device=open_device(device))

        def propose(images: Sequence[LoadedImage], *, min_score: float) -> Iterator[Proposals]:
            pixels_B3HW = _stacked(images)
            outputs = model.predict(pixels_B3HW)
            height_px, width_px = pixels_B3HW.shape[-2:]
            for scores_QK, soft_Qhw in zip(*outputs, strict=True):
                chosen = _best(scores_QK, soft_Qhw, threshold=self.mask_threshold, min_score=min_score)
                chosen = _Chosen(*(part[: self.max_proposals] for part in chosen))
                masks_NHW = _upsampled(soft_Qhw[chosen.query_N], height_px, width_px, threshold=self.mask_threshold)
                yield Proposals(masks_NHW, chosen.score_N, tuple(model.labels[i] for i in chosen.class_N.tolist()))

        return propose
