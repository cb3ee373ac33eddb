"""Segment Anything through transformers, SAM, SAM 2 and SAM 3: a mask for whatever lies under each point of a grid.

The way is that of the paper's automatic mask generation (Segment Anything, arXiv 2304.02643, section 5 and appendix B):
every point of the grid gives three masks, the whole, a part and a smaller part; those that the model itself thinks
little of are dropped, then those that change with the threshold, then the worse of two with nearly the same box.

transformers' own `mask-generation` pipeline is not used. It brings all masks of a batch to 1024 × 1024 before it drops
any, and for SAM 2, whose input is the image stretched to a square, it lays the grid as if the image were padded, so
that a part of every image that is not square has no points. For SAM the masks are the same
(tests/mining/proposers/test_sam.py).

Shapes: P points of the grid, M masks of a batch of points, N proposals; h × w the grid of the model's masks (a quarter
of its input), H × W the image's height and width in pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from maskmine.mining.images.crops import tight_boxes
from maskmine.mining.models.devices import PROPOSALS_ON_GPU, open_device, resolve_precision
from maskmine.mining.models.pretrained import Family, FromTransformers
from maskmine.mining.proposers.proposals import LoadedImage, Proposals, Proposer, not_too_thin
from maskmine.schemas.errors import InputError
from maskmine.schemas.settings import NameOrPath, RecordOnly

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_CHUNK_VALUES = 1 << 24  # 64 MiB of float32: 16 masks at the size of SAM's input


def _needed(network: Any) -> Iterator[str]:
    """All weights, also those that no training changes: the directions of the points' places are random numbers."""
    yield from network.state_dict()


_FAMILY = Family(
    classes={
        "sam": ("SamModel", "SamImageProcessor"),
        "sam2": ("Sam2Model", "Sam2ImageProcessor"),
        "sam2_video": ("Sam2Model", "Sam2ImageProcessor"),  # as SAM 2 is published
        "sam3_tracker": ("Sam3TrackerModel", "Sam3ImageProcessor"),
        "sam3_video": ("Sam3TrackerModel", "Sam3ImageProcessor"),  # as SAM 3 is published
    },
    pickles=False,
    needed=_needed,
)


class Sam(FromTransformers):
    """Which Segment Anything, and which of its masks are proposals. The defaults are those of its authors.

    The size of the model's input, 1024 pixels on the long side, of SAM 3 1008, is fixed by its weights.
    """

    family = _FAMILY

    kind: Literal["sam"]
    """Segment Anything 1, 2 or 3 by transformers; of SAM 3 the part that points are shown to."""
    checkpoint: NameOrPath
    """A folder saved by transformers, or a name on the Hugging Face hub such as `facebook/sam-vit-large` or
    `facebook/sam2.1-hiera-large` or `facebook/sam3`, with weights as safetensors."""
    revision: Annotated[str | None, RecordOnly()] = None
    """Branch, tag or commit on the hub; null is what is on this machine, else the newest."""
    points_per_side: int = Field(default=32, ge=1, le=256)
    """Side of the grid of points that the model is prompted with; time grows with its square."""
    points_per_batch: int = Field(default=64, ge=1)
    """Points that the model answers at once; fewer need less memory."""
    min_predicted_iou: float = Field(default=0.88, ge=0, le=1)
    """Lowest IoU that the model predicts for a mask of its own."""
    min_stability: float = Field(default=0.95, ge=0, le=1)
    """Lowest stability of a mask: the pixels above the raised threshold over those above the lowered one."""
    stability_offset: float = Field(default=1.0, gt=0)
    """How far, in logits, the threshold is raised and lowered to measure stability."""
    max_box_iou: float = Field(default=0.7, ge=0, le=1)
    """Of two masks whose boxes overlap more, the one of the lower predicted IoU is dropped as a duplicate."""
    max_proposals: int = Field(default=200, ge=1)
    """Masks of an image, the best ones, that are proposed."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of the image encoder; `auto` is bfloat16 on a GPU and float32 on a CPU."""
    licence: Annotated[str | None, RecordOnly()] = None
    """Licence of the weights (SPDX) where it is not known, such as that of a folder."""

    def open(self, *, device: str) -> Proposer:
        """Load the model; returns a function from images of one size, on its device, to their proposals.

        The score of a proposal is its predicted IoU, no more than 1; there are no labels. Images go through the model
        one by one, which fill it anyway, so an image's masks depend on no neighbour, to the last bit.
        Raises InputError when the checkpoint cannot be had, is of another kind, or lacks weights.
        """
        target = open_device(device)
        model = self.tried(_load)(self, device=target)
        generate = self.tried(_generate)

        def propose(images: Sequence[LoadedImage], *, min_score: float) -> Iterator[Proposals]:
            for image in images:
                yield generate(image.rgb_3HW, model=model, settings=self, min_score=min_score)

        return propose


@dataclass(frozen=True, slots=True)
class _Model:
    """`input_px`: the side of its input. `precision` is that of the encoder: points lose accuracy in less."""

    network: Any
    processor: Any
    input_px: int
    device: torch.device
    precision: str


@dataclass(frozen=True, slots=True)
class _View:
    """An image as the model sees it: what the encoder made of it, its size in the model's input and its own."""

    embedding: Any
    input_size_px: tuple[int, int]
    size_px: tuple[int, int]


@dataclass(frozen=True, slots=True)
class _Candidates:
    """Masks that are good enough: logits [M, h, w], predicted IoUs [M], boxes [M, 4] in pixels of the image."""

    logits_Mhw: Tensor
    iou_M: Tensor
    boxes_M4: Tensor


def stability(logits_MHW: Tensor, *, offset: float) -> Tensor:
    """How little masks change with the threshold, float32 [M]: |logit > offset| / |logit > −offset|.

    That is the IoU of the two masks, as one lies in the other. Not a number where both are empty.
    """
    inner_M = (logits_MHW > offset).flatten(1).sum(dim=1)
    outer_M = (logits_MHW > -offset).flatten(1).sum(dim=1)
    return inner_M / outer_M


def point_grid(points_per_side: int) -> Tensor:
    """The middles of the cells of a square grid, row by row: x and y as shares of the image, float32 [P, 2]."""
    import torch

    along = (torch.arange(points_per_side) + 0.5) / points_per_side
    y_SS, x_SS = torch.meshgrid(along, along, indexing="ij")
    return torch.stack([x_SS, y_SS], dim=-1).flatten(0, 1)


def _generate(rgb_3HW: Tensor, *, model: _Model, settings: Sam, min_score: float) -> Proposals:
    import torch
    from torchvision.ops import nms  # type: ignore[import-untyped, unused-ignore]

    with torch.inference_mode():
        view = _look(rgb_3HW, model=model)
        candidates = _join(list(_answers(view, model=model, settings=settings, min_score=min_score)))
        best_N = nms(candidates.boxes_M4.float(), candidates.iou_M, settings.max_box_iou)[: settings.max_proposals]
        masks_NHW = torch.empty(len(best_N), *view.size_px, dtype=torch.bool, device=rgb_3HW.device)
        done = 0
        for logits_MHW in _upsampled(candidates.logits_Mhw[best_N], view=view, model=model):
            torch.gt(logits_MHW, 0, out=masks_NHW[done : done + len(logits_MHW)])
            done += len(logits_MHW)
        return Proposals(masks_NHW, candidates.iou_M[best_N].clamp(0, 1), (None,) * len(best_N))


def _look(rgb_3HW: Tensor, *, model: _Model) -> _View:
    """Resize, normalise and encode an image as the checkpoint says."""
    import torch

    size_px = (rgb_3HW.shape[1], rgb_3HW.shape[2])
    prepared = model.processor(
        images=[not_too_thin(rgb_3HW, input_px=model.input_px)],
        return_tensors="pt",
        device=rgb_3HW.device,
        input_data_format="channels_first",
    )
    pixels_13HW = prepared["pixel_values"]
    reshaped = prepared.get("reshaped_input_sizes")  # the rest of SAM's input is padding; SAM 2 and 3 have none
    height_px, width_px = pixels_13HW.shape[2:] if reshaped is None else reshaped[0].tolist()
    dtype = getattr(torch, model.precision)
    with torch.autocast(model.device.type, dtype=dtype, enabled=dtype != torch.float32):
        encoded = model.network.get_image_embeddings(pixels_13HW)
    # SAM 2 and 3 have three maps of different sizes
    embedding = [level.float() for level in encoded] if isinstance(encoded, list) else encoded.float()
    return _View(embedding, (height_px, width_px), size_px)


def _answers(view: _View, *, model: _Model, settings: Sam, min_score: float) -> Iterator[_Candidates]:
    """The good masks of the points, batch by batch. Raises InputError when the answers are no numbers."""
    import torch

    height_px, width_px = view.input_size_px
    points_P2 = point_grid(settings.points_per_side) * point_grid(1).new_tensor([width_px, height_px])
    for points_p2 in torch.split(points_P2.to(model.device), settings.points_per_batch):
        outputs = model.network(
            image_embeddings=view.embedding, input_points=points_p2[None, :, None], multimask_output=True
        )
        logits_Mhw, iou_M = outputs.pred_masks[0].flatten(0, 1), outputs.iou_scores[0].flatten()
        if not bool(iou_M.isfinite().all()) or bool(logits_Mhw.isnan().any()):
            raise InputError("proposals.precision: the model's answers are not finite; use bfloat16 or float32")
        good_M = iou_M >= max(settings.min_predicted_iou, min_score)
        yield _stable(_Candidates(logits_Mhw[good_M], iou_M[good_M], iou_M.new_empty(0, 4)), view, model, settings)


def _stable(candidates: _Candidates, view: _View, model: _Model, settings: Sam) -> _Candidates:
    """Those that have a pixel and do not change much with the threshold, with their boxes."""
    import torch

    stable, boxes = [candidates.iou_M.new_empty(0, dtype=torch.bool)], [candidates.boxes_M4.long()]
    for logits_MHW in _upsampled(candidates.logits_Mhw, view=view, model=model):
        masks_MHW = logits_MHW > 0
        stable_M = stability(logits_MHW, offset=settings.stability_offset) >= settings.min_stability
        stable.append(stable_M & masks_MHW.flatten(1).any(dim=1))
        boxes.append(tight_boxes(masks_MHW))
    keep_M = torch.cat(stable)
    return _Candidates(candidates.logits_Mhw[keep_M], candidates.iou_M[keep_M], torch.cat(boxes)[keep_M])


def _join(parts: Sequence[_Candidates]) -> _Candidates:
    import torch

    return _Candidates(
        torch.cat([part.logits_Mhw for part in parts]),
        torch.cat([part.iou_M for part in parts]),
        torch.cat([part.boxes_M4 for part in parts]),
    )


def _upsampled(logits_Mhw: Tensor, *, view: _View, model: _Model) -> Iterator[Tensor]:
    """The logits at the image's size, some masks at a time: without the padding, then bilinearly."""
    at_once = max(1, _CHUNK_VALUES // max(model.input_px**2, view.size_px[0] * view.size_px[1]))
    for start in range(0, len(logits_Mhw), at_once):
        (logits_1MHW,) = model.processor.post_process_masks(
            [logits_Mhw[None, start : start + at_once]],
            [view.size_px],
            reshaped_input_sizes=[view.input_size_px],
            binarize=False,
        )
        yield logits_1MHW[0]


def _load(settings: Sam, *, device: torch.device) -> _Model:
    loaded = settings.load()
    side_px, prepared_px = loaded.network.config.prompt_encoder_config.image_size, loaded.processor.size
    if side_px not in (prepared_px.longest_edge, prepared_px.height):
        raise InputError(
            f"proposals.checkpoint: the image processor of `{settings.checkpoint}` makes another size than the "
            f"{side_px} pixels that the model takes; save the processor again"
        )
    precision = resolve_precision(settings.precision, device, on_gpu=PROPOSALS_ON_GPU)
    return _Model(loaded.network.to(device), loaded.processor, side_px, device, precision)
