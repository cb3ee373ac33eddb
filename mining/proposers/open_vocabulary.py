"""A MaskFormer whose queries live in the space of CLIP's texts: it proposes masks, and can say what any class is to it.

Shapes: Q queries, D width of CLIP's embeddings, K classes that it was trained on, L these and "no object",
h × w the grid of the masks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from mining.devices import open_device
from mining.models.maskformer import PLAIN, labels_of, prepared_pixels, read_queries
from mining.models.open_checkpoint import OpenRecord, body_folder, load_head, read_head, read_record
from mining.models.pretrained import load_pretrained
from mining.proposals import LoadedImage, Proposals, Proposer
from mining.weights import weights_sha256
from schemas.errors import InputError
from schemas.models import ModelRecord
from schemas.settings import Settings

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class TextSpace:
    """Where the queries of a model live: the unit vectors of its classes [K, D] and the vector of "no object" [D]."""

    record: OpenRecord
    classes_KD: Tensor
    no_object_D: Tensor


class OpenMaskFormer(Settings):
    """Which open-vocabulary MaskFormer, and how it runs.

    `checkpoint`: a folder that `maskmine train-proposals` made. The other settings are those of `MaskFormer`.
    """

    kind: Literal["open_maskformer"]
    checkpoint: str
    mask_threshold: float = Field(default=0.5, gt=0, lt=1)
    max_proposals: int = Field(default=100, ge=1)
    short_side_px: int | None = Field(default=None, ge=32)
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    licence: str | None = None

    def open(self, *, device: str) -> Proposer:
        """Load the model; returns a function from images of one size, on its device, to their proposals.

        Scores and labels are by the classes that it was trained on; of a head on another MaskFormer, that one's,
        which has the better judgement of what is an object; `queries_ND` serve any classes. Raises InputError when the
        checkpoint cannot be had, or lacks weights.
        """
        import torch

        from mining.models.text_head import class_logits, last_answer

        target, folder = open_device(device), Path(self.checkpoint)
        record = read_record(folder)
        loaded = load_pretrained(str(body_folder(folder, record)), revision=None, family=PLAIN)
        network = loaded.network.to(target)
        head = load_head(folder, record, network=network).to(target)
        usual = {"cuda": "bfloat16"}.get(target.type, "float32")
        dtype = getattr(torch, usual if self.precision == "auto" else self.precision)

        def propose(images: Sequence[LoadedImage], *, min_score: float) -> Iterator[Proposals]:
            at_once = 1 if target.type == "cpu" else max(1, len(images))  # as for MaskFormer
            for start in range(0, len(images), at_once):
                pixels = [image.rgb_3HW for image in images[start : start + at_once]]
                with torch.inference_mode(), torch.autocast(target.type, dtype, enabled=dtype != torch.float32):
                    shown = prepared_pixels(pixels, processor=loaded.processor, short_side_px=self.short_side_px)
                    queries_BQD, masks_BQhw, classes_BQK = last_answer(network, head, shown)
                if record.body is None:  # then the class layer has no meaning
                    classes_BQK = class_logits(
                        queries_BQD, head.classes_KD, head.no_object_D, logit_scale=record.logit_scale
                    )
                if not bool(queries_BQD.isfinite().all()):
                    raise InputError("proposals.precision: the model's answers are not finite; use bfloat16 or float32")
                for queries_QD, masks_Qhw, classes_QK in zip(queries_BQD, masks_BQhw, classes_BQK, strict=True):
                    yield read_queries(
                        classes_QK,
                        masks_Qhw,
                        labels=record.classes if record.body is None else labels_of(network),
                        size_px=(pixels[0].shape[1], pixels[0].shape[2]),
                        mask_threshold=self.mask_threshold,
                        max_proposals=self.max_proposals,
                        min_score=min_score,
                        queries_QD=queries_QD,
                    )

        return propose

    def text_space(self) -> TextSpace:
        """What is needed to ask for other classes. Raises InputError when the checkpoint cannot be had."""
        record = read_record(Path(self.checkpoint))
        tensors = read_head(Path(self.checkpoint))
        return TextSpace(record, tensors["classes_KD"], tensors["no_object_D"])

    def record(self) -> ModelRecord:
        """The weights and their licence; the hash is that of the folder, whose JSON has that of a body elsewhere.

        Raises InputError for a folder that is none.
        """
        read_record(Path(self.checkpoint))
        return ModelRecord("proposals", self.checkpoint, weights_sha256(self.checkpoint), self.licence or "unknown")
