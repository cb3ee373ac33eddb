"""Proposed regions of one image, and which of them to keep. Every function is pure and works where its tensors are.

Shapes: N proposals of one image, R of them by rank; H, W height and width in pixels of the upright image, h, w those
of the proposer's own grid; K the proposer's own classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np
from pydantic import Field, model_validator

from maskmine.schemas.mask import Mask, mask_iou
from maskmine.schemas.rows import Rejection
from maskmine.schemas.settings import Settings

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, eq=False)
class LoadedImage:
    """An upright image on the model's device: uint8 of shape [3, H, W]. The rest is as in `DecodedImage`.

    `file` is the name of its file, where it has one of its own.
    """

    image_id: str
    rgb_3HW: torch.Tensor
    orientation: int = 1
    turned_by: str = "EXIF"
    file: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Proposals:
    """Masks (bool, [N, H, W], the image's size), their scores (float32, [N]) and names, None where there is none.

    Where the proposer has them: `soft_Nhw` are the masks before a threshold, probabilities on the model's own grid
    (float32, [N, h, w]), and `classes_NK` what its classifier says (float32, [N, K]), of which `class_names` are the K
    columns; a rest to 1 is that of "no object". `queries_ND` are what an open-vocabulary proposer makes of them, unit
    vectors in the space of its CLIP's texts (float32, [N, D]). `left_out` says of each annotated mask that could not be
    read why.
    """

    masks_NHW: torch.Tensor
    scores_N: torch.Tensor
    labels: tuple[str | None, ...]
    soft_Nhw: torch.Tensor | None = None
    classes_NK: torch.Tensor | None = None
    class_names: tuple[str | None, ...] = ()
    queries_ND: torch.Tensor | None = None
    left_out: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)


class Proposer(Protocol):
    """What the `open()` of a proposer returns. All images of a call have the same size.

    Answers in the order of the images, one at a time: the masks of one image are a hundred times its size.
    """

    def __call__(self, images: Sequence[LoadedImage], *, min_score: float) -> Iterator[Proposals | Rejection]:
        """Proposals with a score below `min_score` may be left out: they will be dropped anyway."""
        ...


class Keep(Settings):
    """Which proposals become regions. Every region costs a CLIP crop, so weak and repeated ones are dropped here."""

    min_score: float = Field(default=0.1, ge=0, le=1)
    """Lowest score of the proposer; most of MaskFormer's 100 queries mean “no object”. 0 keeps every mask that has a
    pixel, as the paper does."""
    min_area_px: int = Field(default=256, ge=1)
    """Smallest mask in pixels; the default is 16 × 16, one patch of CLIP. The larger of this and `min_area_ratio`
    counts."""
    min_area_ratio: float = Field(default=0.0, ge=0, le=1)
    """Smallest mask as a share of the image, 0–1."""
    max_area_ratio: float = Field(default=0.95, gt=0, le=1)
    """Largest mask as a share of the image, 0–1; a mask of nearly everything is the image itself."""
    max_iou: float = Field(default=0.8, ge=0, le=1)
    """Of two masks whose IoU is higher, the one of the lower score is dropped as a duplicate; 1 keeps duplicates."""
    top: int = Field(default=100, ge=1)
    """Regions of an image at most, the best ones."""

    @model_validator(mode="after")
    def _something_is_left(self) -> Self:
        if self.min_area_ratio > self.max_area_ratio:
            raise ValueError("min_area_ratio is above max_area_ratio: nothing would be kept")
        return self


def keep_proposals(proposals: Proposals, *, keep: Keep) -> Proposals:
    """The proposals that `keep` asks for, best first. The order of the input does not matter.

    Empty masks are always dropped. The steps pass numbers of proposals on; masks are copied once, at the end.
    """
    height_px, width_px = proposals.masks_NHW.shape[1:]
    pixels = height_px * width_px
    areas_px = areas_px_of(proposals.masks_NHW)
    numbers = keep_by_score(proposals, list(range(len(proposals))), min_score=keep.min_score)
    numbers = keep_by_area(
        numbers,
        areas_px=areas_px,
        min_area_px=max(keep.min_area_px, keep.min_area_ratio * pixels),
        max_area_px=keep.max_area_ratio * pixels,
    )
    numbers = keep_distinct(proposals, sort_by_score(proposals, numbers, areas_px=areas_px), max_iou=keep.max_iou)
    return take(proposals, numbers[: keep.top])


def keep_by_score(proposals: Proposals, numbers: Sequence[int], *, min_score: float) -> list[int]:
    """Those with a score of at least `min_score`; a score that is not a number is never enough."""
    scores = proposals.scores_N.tolist()
    return [i for i in numbers if scores[i] >= min_score]


def keep_by_area(
    numbers: Sequence[int], *, areas_px: Sequence[int], min_area_px: float, max_area_px: float
) -> list[int]:
    """Those with at least `min_area_px` and at most `max_area_px` pixels, and never one without any."""
    return [i for i in numbers if max(1, min_area_px) <= areas_px[i] <= max_area_px]


def sort_by_score(proposals: Proposals, numbers: Sequence[int], *, areas_px: Sequence[int]) -> list[int]:
    """Best score first; of equal scores the larger mask first.

    Where these are equal too, the mask goes first that has the first pixel, in reading order, that the other has not,
    then the label decides: so the order of the result never depends on the order of the input.
    """
    scores = proposals.scores_N.tolist()
    keys: dict[int, tuple[float, int]] = {i: (-scores[i], -areas_px[i]) for i in numbers}
    how_often = Counter(keys.values())

    def key(i: int) -> tuple[float, int, bytes, str]:
        tied = how_often[keys[i]] > 1
        return (*keys[i], *((_reading_order(proposals.masks_NHW[i]), proposals.labels[i] or "") if tied else (b"", "")))

    return sorted(numbers, key=key)


def keep_distinct(proposals: Proposals, numbers: Sequence[int], *, max_iou: float) -> list[int]:
    """Without every one whose IoU with a kept one before it is above `max_iou`; `numbers` are best first.

    On a CPU by run lengths, which costs as much as the outlines are long; on a GPU by the pixels. Both are exact.
    """
    if max_iou >= 1:
        return list(numbers)
    if proposals.masks_NHW.device.type == "cpu":
        return _keep_distinct_runs(proposals.masks_NHW, numbers, max_iou=max_iou)
    iou_RR = pairwise_iou(proposals.masks_NHW, numbers).cpu().numpy()
    kept: list[int] = []
    for rank in range(len(numbers)):
        if not (iou_RR[rank, kept] > max_iou).any():
            kept.append(rank)
    return [numbers[rank] for rank in kept]


def _keep_distinct_runs(masks_NHW: torch.Tensor, numbers: Sequence[int], *, max_iou: float) -> list[int]:
    """`keep_distinct`, a few masks compared with all kept ones at a time."""
    kept, kept_masks = list[int](), list[Mask]()
    for start in range(0, len(numbers), _COMPARED_AT_ONCE):
        block = list(numbers[start : start + _COMPARED_AT_ONCE])
        masks = run_lengths(masks_NHW, block)
        distinct = ~(mask_iou(masks, kept_masks) > max_iou).any(axis=1)
        own_iou = mask_iou(masks, masks)
        chosen: list[int] = []
        for rank in np.flatnonzero(distinct):
            if not (own_iou[rank, chosen] > max_iou).any():
                chosen.append(int(rank))
        kept += [block[rank] for rank in chosen]
        kept_masks += [masks[rank] for rank in chosen]
    return kept


def run_lengths(masks_NHW: torch.Tensor, numbers: Sequence[int]) -> list[Mask]:
    """The masks of these numbers as run lengths; as many are in work at a time as have 32 million pixels, or one.

    Run lengths go down the columns, an order that torch makes some times faster than NumPy.
    """
    import torch

    if masks_NHW.device.type != "cpu":
        return find_changes(masks_NHW, numbers)()
    step = _masks_at_once(masks_NHW)
    masks = list[Mask]()
    for start in range(0, len(numbers), step):
        some_nHW = masks_NHW[list(numbers[start : start + step])]
        columns_nWH = some_nHW.view(torch.uint8).transpose(1, 2).contiguous()
        masks += Mask.from_arrays(columns_nWH.numpy().transpose(0, 2, 1))
    return masks


@dataclass(frozen=True, slots=True, eq=False)
class _Changes:
    """Where the pixels of n masks of one size change, in host memory; see `Mask.from_changes`."""

    changes: np.ndarray[Any, np.dtype[np.int64]]
    begins_n: np.ndarray[Any, np.dtype[np.bool_]]
    height_px: int
    width_px: int

    def masks(self) -> list[Mask]:
        """The masks as run lengths."""
        return Mask.from_changes(self.changes, self.begins_n, height_px=self.height_px, width_px=self.width_px)


def find_changes(masks_NHW: torch.Tensor, numbers: Sequence[int]) -> Callable[[], list[Mask]]:
    """A function that makes the run lengths of the masks of these numbers out of where they change.

    They are found where the masks are, so that a GPU's come to the host as places, which are few, and not as pixels.
    Run lengths go down the columns: a pixel is held against the one above it, and the first of a column against the
    last of the column before.
    """
    import torch

    height_px, width_px = masks_NHW.shape[1:]
    step = _masks_at_once(masks_NHW)
    found = []
    for start in range(0, len(numbers), step):
        some_nHW = masks_NHW[list(numbers[start : start + step])]
        changed_nHW = torch.zeros_like(some_nHW)
        torch.ne(some_nHW[:, 1:], some_nHW[:, :-1], out=changed_nHW[:, 1:])
        torch.ne(some_nHW[:, 0, 1:], some_nHW[:, -1, :-1], out=changed_nHW[:, 0, 1:])
        begins_n = some_nHW[:, 0, 0].cpu().numpy().copy()  # a view would hold all pixels in memory
        found.append(_Changes(_down_the_columns(changed_nHW), begins_n, height_px, width_px))
    return lambda: [mask for changes in found for mask in changes.masks()]


def _masks_at_once(masks_NHW: torch.Tensor) -> int:
    return max(1, _MAX_ENCODED_PX // max(1, masks_NHW.shape[1] * masks_NHW.shape[2]))


def _down_the_columns(changed_nHW: torch.Tensor) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The places of the true values in host memory, numbered down the columns, in order."""
    height_px, width_px = changed_nHW.shape[1:]
    if changed_nHW.device.type == "cpu":  # NumPy passes over what is false many times as fast
        places = np.flatnonzero(changed_nHW.numpy())
    else:
        places = changed_nHW.flatten().nonzero()[:, 0].cpu().numpy()
    of_mask, in_mask = np.divmod(places, height_px * width_px)
    row, column = np.divmod(in_mask, width_px)
    places = (of_mask * width_px + column) * height_px + row
    places.sort()
    return places


def take(proposals: Proposals, numbers: list[int]) -> Proposals:
    """The proposals of these numbers, in their order; masks are copied only when something changes."""
    if numbers == list(range(len(proposals))):
        return proposals
    return Proposals(
        proposals.masks_NHW[numbers],
        proposals.scores_N[numbers],
        tuple(proposals.labels[i] for i in numbers),
        None if proposals.soft_Nhw is None else proposals.soft_Nhw[numbers],
        None if proposals.classes_NK is None else proposals.classes_NK[numbers],
        proposals.class_names,
        None if proposals.queries_ND is None else proposals.queries_ND[numbers],
        proposals.left_out,
    )


def pairwise_iou(masks_NHW: torch.Tensor, numbers: Sequence[int]) -> torch.Tensor:
    """Intersection over union of every pair of the R masks of these numbers, float64 [R, R]; two empty masks have 0.

    Exact: the pixels of a chunk are counted in float32, which holds whole numbers up to 2**24, and chunks are smaller.
    """
    import torch

    masks_NP, wanted = masks_NHW.flatten(1), list(numbers)
    shared_RR = torch.zeros(len(wanted), len(wanted), dtype=torch.float64, device=masks_NP.device)
    step = max(1, _CHUNK_VALUES // max(1, len(wanted)))
    for start in range(0, masks_NP.shape[1], step):
        chunk_RP = masks_NP[:, start : start + step][wanted].float()
        shared_RR += chunk_RP @ chunk_RP.T
    area_R = shared_RR.diagonal()
    union_RR = area_R[:, None] + area_R[None, :] - shared_RR
    return shared_RR / union_RR.clamp(min=1)


def not_too_thin(rgb_3HW: torch.Tensor, *, input_px: int) -> torch.Tensor:
    """The image, or, where its short side would have no pixel in a square input of this side, its lines repeated."""
    height_px, width_px = rgb_3HW.shape[1:]
    least_px = -(-max(height_px, width_px) // input_px)
    for dim, side_px in ((1, height_px), (2, width_px)):
        if side_px < least_px:
            return rgb_3HW.repeat_interleave(-(-least_px // side_px), dim=dim)
    return rgb_3HW


_COMPARED_AT_ONCE = 64  # masks compared with those that are kept
_MAX_ENCODED_PX = 32_000_000  # of masks that are copied for their run lengths, each pixel a byte
_CHUNK_VALUES = 1 << 22  # 16 MiB of float32, and so never more pixels than float32 counts exactly


def areas_px_of(masks_NHW: torch.Tensor) -> list[int]:
    """How many pixels each boolean mask has."""
    if masks_NHW.device.type == "cpu":  # torch needs fifty times longer to sum booleans
        return [int(np.count_nonzero(mask_HW)) for mask_HW in masks_NHW.numpy()]
    areas_px: list[int] = masks_NHW.flatten(1).sum(dim=1).tolist()
    return areas_px


def _reading_order(mask_HW: torch.Tensor) -> bytes:
    """A key that sorts masks by their first differing pixel, foreground first."""
    return np.packbits(~mask_HW.cpu().numpy()).tobytes()
