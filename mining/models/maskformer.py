"""MaskFormer and Mask2Former through transformers: masks for everything in a picture, without asking what it is.

Shapes: B images of one size, Q queries of the model, K its classes and "no object", h × w the grid of the model's masks
(a quarter of its input), N proposals, H × W the picture's height and width in pixels.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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

# In the order of preference; the indexes belong to weights in several files.
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_SAFETENSORS = ["*.json", "model.safetensors", "model-*.safetensors"]
_PICKLES = ["*.json", "pytorch_model.bin", "pytorch_model-*.bin"]
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_LONG_TO_SHORT_SIDE = 5 / 3  # as in the published models, 1333 to 800
_CHUNK_VALUES = 1 << 22  # 16 MiB of float32: what is resized at once stays in the cache of a CPU


class MaskFormer(Settings):
    """Which MaskFormer or Mask2Former, and how it runs.

    `checkpoint`: a folder saved by transformers, or a name on the Hugging Face hub such as
    `facebook/maskformer-swin-base-coco`; `revision`: a branch, tag or commit there.
    `mask_threshold`: a pixel is in a mask when its probability is above.
    `max_proposals`: so many masks of an image, the best, are brought to the picture's size.
    `short_side_px`: short side of the model's input in place of the checkpoint's; the long side is at most 5/3 of it.
    `precision: auto` is bfloat16 on a GPU and float32 on a CPU.
    `licence` states what cannot be known: that of a folder.
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
        """Load the model; returns a function from images of one size, on its device, to their proposals.

        Raises InputError when the checkpoint cannot be had, is of another kind, or lacks weights.
        """
        target = open_device(device)
        model = _load(self, device=target)

        def propose(images: Sequence[LoadedImage], *, min_score: float) -> Iterator[Proposals]:
            # A CPU gains nothing from batches, and one by one an image's masks depend on no neighbour, to the last bit.
            at_once = 1 if target.type == "cpu" else max(1, len(images))
            for start in range(0, len(images), at_once):
                pixels = [image.rgb_3HW for image in images[start : start + at_once]]
                for classes_QK, masks_Qhw in zip(*model.predict(pixels), strict=True):
                    yield read_queries(
                        classes_QK,
                        masks_Qhw,
                        labels=model.labels,
                        size_px=(pixels[0].shape[1], pixels[0].shape[2]),
                        mask_threshold=self.mask_threshold,
                        max_proposals=self.max_proposals,
                        min_score=min_score,
                    )

        return propose

    def record(self) -> ModelRecord:
        """The weights and their licence; without a network, so `sha256` is None while a hub's weights are not here.

        The hash is that of a folder's weights and JSON files, or of the one file of weights from the hub. Raises
        InputError for settings that name nothing.
        """
        folder = _local_folder(self.checkpoint) or _snapshot(self.checkpoint, self.revision, local_files_only=True)
        return ModelRecord(
            role="proposals",
            name=f"{self.checkpoint}@{self.revision}" if self.revision else self.checkpoint,
            sha256=_sha256(folder, whole=folder == Path(self.checkpoint)) if folder else None,
            licence=self.licence or licence_of(self.checkpoint),
        )


def read_queries(
    classes_QK: torch.Tensor,
    masks_Qhw: torch.Tensor,
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
    likeliest class. Only what is returned is brought to the picture's size: probabilities, bilinearly, then the mask.
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
        )


def _upsampled(soft_Nhw: torch.Tensor, *, size_px: tuple[int, int], threshold: float) -> torch.Tensor:
    """Which pixels of the picture are above the threshold, bool [N, H, W]; only a few masks at a time are floats."""
    import torch
    from torch.nn.functional import interpolate

    masks_NHW = torch.empty(len(soft_Nhw), *size_px, dtype=torch.bool, device=soft_Nhw.device)
    step = max(1, _CHUNK_VALUES // (size_px[0] * size_px[1]))
    for start in range(0, len(soft_Nhw), step):
        part_1nhw = soft_Nhw[None, start : start + step]
        part_1nHW = interpolate(part_1nhw, size=size_px, mode="bilinear", align_corners=False)
        torch.gt(part_1nHW[0], threshold, out=masks_NHW[start : start + step])
    return masks_NHW


@dataclass(frozen=True, slots=True)
class _Model:
    """`predict` takes uint8 images [3, H, W] of one size to class logits [B, Q, K] and mask logits [B, Q, h, w]."""

    predict: Callable[[Sequence[torch.Tensor]], tuple[torch.Tensor, torch.Tensor]]
    labels: tuple[str | None, ...]


def _load(settings: MaskFormer, *, device: torch.device) -> _Model:
    import torch

    folder = _local_folder(settings.checkpoint) or _snapshot(settings.checkpoint, settings.revision)
    assert folder is not None  # a snapshot that may be fetched is there or raises
    network, processor = _from_folder(folder, name=settings.checkpoint)
    network.to(device)
    precision = {"cuda": "bfloat16"}.get(device.type, "float32") if settings.precision == "auto" else settings.precision

    def predict(images: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        dtype = getattr(torch, precision)
        with torch.inference_mode(), torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            pixels_B3HW = _prepared(images, processor=processor, short_side_px=settings.short_side_px)
            outputs = network(pixel_values=pixels_B3HW)
        if not bool(outputs.class_queries_logits.isfinite().all()):
            raise InputError("proposals.precision: the model's answers are not finite; use bfloat16 or float32")
        return outputs.class_queries_logits, outputs.masks_queries_logits

    names = network.config.id2label
    return _Model(predict, tuple(_label(names.get(k)) for k in range(network.config.num_labels)))


def _prepared(images: Sequence[torch.Tensor], *, processor: Any, short_side_px: int | None) -> torch.Tensor:
    """The model's input, float32 [B, 3, H', W']: images resized and normalised as the checkpoint says, never padded."""
    from transformers.image_transforms import get_size_with_aspect_ratio

    short_px, long_px = processor.size.shortest_edge, processor.size.longest_edge
    if short_side_px is not None:
        short_px, long_px = short_side_px, int(short_side_px * _LONG_TO_SHORT_SIDE)
    size = {}
    if short_px and long_px:  # else the checkpoint's input has one fixed size
        height_px, width_px = get_size_with_aspect_ratio(tuple(images[0].shape[1:]), short_px, long_px)
        size = {"size": {"height": max(1, height_px), "width": max(1, width_px)}}  # 0 for a picture like a thread
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


def _from_folder(folder: Path, *, name: str) -> tuple[Any, Any]:
    """The network, ready to predict, and the image processor."""
    import torch
    import transformers
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    kind = _model_type(folder, name=name)
    if not any((folder / weights).is_file() for weights in _WEIGHTS):
        raise InputError(f"proposals.checkpoint: `{name}` holds no weights; add them as {_WEIGHTS[0]}")
    classes: dict[str, tuple[Any, Any]] = {
        "maskformer": (transformers.MaskFormerForInstanceSegmentation, transformers.MaskFormerImageProcessor),
        "mask2former": (transformers.Mask2FormerForUniversalSegmentation, transformers.Mask2FormerImageProcessor),
    }
    network_class, processor_class = classes[kind]
    unreadable = (OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError, EOFError, ImportError)
    try:
        with _without_progress_bars():
            network, report = network_class.from_pretrained(
                folder, local_files_only=True, output_loading_info=True, dtype=torch.float32, weights_only=True
            )
        processor = processor_class.from_pretrained(folder, local_files_only=True)
    except (*unreadable, StrictDataclassError, SafetensorError, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"proposals.checkpoint: `{name}` cannot be loaded, save it again ({reason})") from error
    # transformers only warns and goes on with random weights; the encoder's last norm is in no published file
    wanted = {key for key, _ in network.named_parameters() if ".encoder.model.layernorm." not in key}
    if missing := sorted(wanted & set(report["missing_keys"])):
        raise InputError(
            f"proposals.checkpoint: `{name}` lacks {len(missing)} weights such as {missing[0]}; save the whole model"
        )
    # Mask2Former cannot answer without its layers' masks; for MaskFormer they are a waste that no one reads
    network.config.use_auxiliary_loss = kind == "mask2former"
    return network.eval().requires_grad_(False), processor


def _model_type(folder: Path, *, name: str) -> str:
    for file in ("config.json", "preprocessor_config.json"):
        if not (folder / file).is_file():
            raise InputError(
                f"proposals.checkpoint: `{name}` holds no {file}; give a folder saved with `save_pretrained` of the "
                "model and of its image processor"
            )
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
    except ValueError as error:
        raise InputError(f"proposals.checkpoint: config.json of `{name}` is not JSON; save the model again") from error
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind not in ("maskformer", "mask2former"):
        raise InputError(f"proposals.checkpoint: `{name}` is a {kind} model; give a maskformer or mask2former one")
    return str(kind)


def _local_folder(checkpoint: str) -> Path | None:
    """The folder of this name, None for a name on the hub."""
    path = Path(checkpoint)
    if path.is_dir():
        return path
    if path.is_file():
        raise InputError(f"proposals.checkpoint: `{checkpoint}` is a file; give the folder that it is in")
    if not _HUB_NAME.fullmatch(checkpoint):
        raise InputError(f"proposals.checkpoint: there is no folder `{checkpoint}`; check the path")
    return None


def _snapshot(checkpoint: str, revision: str | None, *, local_files_only: bool = False) -> Path | None:
    """The folder with a hub's files, fetched when they are not here; None when they are not and may not be.

    Files are fetched first and loaded as a folder then, because transformers would have the hub convert a checkpoint
    that has no safetensors.
    """
    from huggingface_hub import snapshot_download

    folder: Path | None = None
    for patterns in (_SAFETENSORS, _PICKLES):
        try:
            folder = Path(
                snapshot_download(
                    checkpoint, revision=revision, allow_patterns=patterns, local_files_only=local_files_only
                )
            )
        except (OSError, ValueError) as error:
            if local_files_only:
                return None
            reason = " ".join(str(error).split())[:200]
            raise InputError(
                f"proposals.checkpoint: `{checkpoint}` is no folder here and the hub does not give it ({reason}); "
                "check the name, or give a folder with the files"
            ) from error
        if any((folder / weights).is_file() for weights in _WEIGHTS):
            return folder
    return None if local_files_only else folder


def _sha256(folder: Path, *, whole: bool) -> str:
    """Of the folder, or of its file of weights: other programs may keep further files in a hub's folder."""
    files = [folder / weights for weights in _WEIGHTS if (folder / weights).is_file()]
    return weights_sha256(folder if whole or not files or files[0].suffix == ".json" else files[0])


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    """Loading from a disk takes a second; the bar would cross those of the command line."""
    from transformers.utils import logging as transformers_logging

    logging: Any = transformers_logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
