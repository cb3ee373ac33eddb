"""A MaskFormer whose queries live in the space of CLIP's texts: it proposes masks, and can say what any class is to it.

Shapes: Q queries, D width of CLIP's embeddings, K classes that it was trained on, L these and "no object",
h × w the grid of the masks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from maskmine.mining.models.devices import (
    PROPOSALS_ON_GPU,
    DeviceKind,
    open_device,
    resolve_precision,
    settled_precision,
)
from maskmine.mining.models.pretrained import load_pretrained, pretrained_contents, tried
from maskmine.mining.proposers.maskformer import PLAIN
from maskmine.mining.proposers.open_vocabulary_checkpoint import (
    HEAD_FILE,
    OpenRecord,
    body_folder,
    load_head,
    read_head,
    read_record,
)
from maskmine.mining.proposers.proposals import Proposer
from maskmine.mining.proposers.queries import labels_of, prepared_pixels, propose_from_queries, read_queries
from maskmine.mining.storage.content_hash import file_sha256, weights_sha256
from maskmine.schemas.errors import InputError
from maskmine.schemas.manifest import ModelRecord
from maskmine.schemas.settings import AnyPath, RecordOnly, Settings, fingerprint

if TYPE_CHECKING:
    from torch import Tensor


_COMPARED = 8  # classes of the training by which two CLIPs are compared; other CLIPs differ in each of them
_SAME_COSINE = 0.98  # half precision moves the text embedding of a class by less than 0.001


@dataclass(frozen=True, slots=True, eq=False)
class TextSpace:
    """Where the queries of a model live: the unit vectors of its classes [K, D] and the vector of "no object" [D]."""

    record: OpenRecord
    classes_KD: Tensor
    no_object_D: Tensor

    def refuse_other_clip(self, clip: str, embed: Callable[[Sequence[str]], Tensor], *, otherwise: str = "") -> None:
        """Raises InputError unless a CLIP, of this name, is the one of the training.

        `embed` gives its unit vectors of names. They are compared, and not files, so one in another format or precision
        is the same CLIP. `otherwise` is what the user may do instead of naming that CLIP.
        """
        import torch

        trained_KD = self.classes_KD[:_COMPARED]
        given_KD = embed(self.record.classes[:_COMPARED])
        if given_KD.shape == trained_KD.shape and torch.linalg.vecdot(given_KD, trained_KD).min() >= _SAME_COSINE:
            return
        sha256 = f" with SHA-256 {self.record.clip_sha256[:16]}…" if self.record.clip_sha256 else ""
        raise InputError(
            f"clip: the proposals were trained in the text space of `{self.record.clip}`{sha256}, and `{clip}` "
            f"has another one; set `clip` to that model{otherwise}"
        )


class OpenMaskFormer(Settings):
    """Which open-vocabulary MaskFormer, and how it runs."""

    kind: Literal["open_maskformer"]
    """A MaskFormer that `maskmine train-proposals` made, whose classifier takes any names."""
    checkpoint: AnyPath
    """The folder that `maskmine train-proposals` wrote."""
    mask_threshold: float = Field(default=0.5, gt=0, lt=1)
    """Probability above which a pixel belongs to a mask."""
    max_proposals: int = Field(default=100, ge=1)
    """Masks of an image, the best ones, that are brought to its size."""
    short_side_px: int | None = Field(default=None, ge=32)
    """Short side of the model's input in pixels, the long side at most 5/3 of it; null takes the checkpoint's."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of the model; `auto` is bfloat16 on a GPU and float32 on a CPU."""
    licence: Annotated[str | None, RecordOnly()] = None
    """Licence of the weights (SPDX) where it is not known."""

    def weights_bytes(self) -> int:
        """The size of its weights, of another MaskFormer's below its head too; 0 where they are not there."""
        files = Path(self.checkpoint).rglob("*.safetensors")
        return sum(file.stat().st_size for file in files)

    def open(self, *, device: str) -> Proposer:
        """Load the model; returns a function from images of one size, on its device, to their proposals.

        Scores and labels are by the classes that it was trained on; of a head on another MaskFormer, that one's,
        which has the better judgement of what is an object; `queries_ND` serve any classes. Raises InputError when the
        checkpoint cannot be had, or lacks weights.
        """
        import torch

        from maskmine.mining.proposers.text_head import class_logits, last_answer

        target, folder = open_device(device), Path(self.checkpoint)
        record = read_record(folder)
        loaded = load_pretrained(str(body_folder(folder, record)), revision=None, family=PLAIN)
        network = loaded.network.to(target)
        head = load_head(folder, record, network=network).to(target)
        dtype = getattr(torch, resolve_precision(self.precision, target, on_gpu=PROPOSALS_ON_GPU))

        def predict(images: Sequence[Tensor]) -> tuple[Tensor, ...]:
            with torch.inference_mode(), torch.autocast(target.type, dtype, enabled=dtype != torch.float32):
                pixels_B3HW = prepared_pixels(images, processor=loaded.processor, short_side_px=self.short_side_px)
                queries_BQD, masks_BQhw, classes_BQK = last_answer(network, head, pixels_B3HW)
            if record.body is None:  # then the class layer has no meaning
                classes_BQK = class_logits(
                    queries_BQD, head.classes_KD, head.no_object_D, logit_scale=record.logit_scale
                )
            return classes_BQK, masks_BQhw, queries_BQD

        on_trial = partial(tried, name=self.checkpoint, setting="proposals.checkpoint")
        labels = record.classes if record.body is None else on_trial(labels_of)(network)
        read = partial(
            read_queries, labels=labels, mask_threshold=self.mask_threshold, max_proposals=self.max_proposals
        )
        return propose_from_queries(on_trial(predict), read, device=target)

    def text_space(self) -> TextSpace:
        """What is needed to ask for other classes. Raises InputError when the checkpoint cannot be had."""
        record = read_record(Path(self.checkpoint))
        tensors = read_head(Path(self.checkpoint))
        return TextSpace(record, tensors["classes_KD"], tensors["no_object_D"])

    def contents(self) -> dict[str, Any]:
        """The checkpoint by the hashes of its record, its head, and the MaskFormer below it, wherever that lies."""
        folder = Path(self.checkpoint)
        named: dict[str, Any] = {"name": folder.name, "sha256": None}
        try:
            record = read_record(folder)
            body = pretrained_contents(str(body_folder(folder, record)), revision=None, family=PLAIN)
            named["sha256"] = fingerprint(
                [asdict(replace(record, body=None)), file_sha256(folder / HEAD_FILE), body["sha256"]]
            )
        except (InputError, OSError):  # said when it is opened
            pass
        return {"checkpoint": named}

    def settled(self, kind: DeviceKind) -> OpenMaskFormer:
        """The same model with the precision that it has on a kind of device."""
        precision = settled_precision(self.precision, kind, on_gpu=PROPOSALS_ON_GPU)
        return self.model_copy(update={"precision": precision})

    def fetch(self) -> None:
        """There is nothing to fetch: the folder is here."""

    def record(self) -> ModelRecord:
        """The weights and their licence; the hash is that of the folder, whose JSON has that of a body elsewhere.

        Raises InputError for a folder that is none.
        """
        read_record(Path(self.checkpoint))
        return ModelRecord(
            role="proposals",
            name=Path(self.checkpoint).name,
            sha256=weights_sha256(self.checkpoint),
            licence=self.licence or "unknown",
        )
