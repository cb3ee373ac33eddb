"""Semantic inference: from proposals with class probabilities to a label map.

Every function is pure and runs on the device of its tensors. The formulas are those of OVSeg (arXiv 2210.04150,
section 3.1) and of MaskFormer (arXiv 2107.06278, section 3.4); docs/segment.md shows them side by side.

Shapes: N proposals of one image, C requested classes, K classes of the proposer, D width of CLIP's embeddings; H, W
height and width of the image in pixels, h, w those of the proposer's grid, P pixels, flat, R runs of them under the
same masks, U distinct sets of masks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from maskmine.mining.text.labels import label_names, plain_words
from maskmine.schemas.errors import InputError
from maskmine.tuning.segmentation.confusion import IGNORE

BACKGROUND = "others"
"""The class of everything else: it gets votes like any other, and its pixels have no label."""

_ROUNDING = 1e-5  # relative error of sums that are equal in exact arithmetic
_BITS = 36  # masks that are packed beside the number of a set in 63 bits; there are no more sets than pixels
_BAND_PX = 1 << 20  # of a picture that is painted at once; what is sorted for it fits a cache
_CHUNK_VALUES = 1 << 22  # 16 MiB of float32, which stays in the cache of a CPU
_TILE_SIDE, _LEAST_TILE_SIDE = 32, 8  # of the proposer's grid: few classes can win in a tile


def clip_probabilities(regions_ND: Tensor, classes_CD: Tensor, *, logit_scale: float) -> Tensor:
    """CLIP's class probabilities of each region, [N, C]: the softmax over classes of `logit_scale` × cosine.

    Both sides are unit vectors.
    """
    return (logit_scale * regions_ND @ classes_CD.T).softmax(dim=-1)


def proposal_probabilities(classes_NK: Tensor, *, names: Sequence[str | None], classes: Sequence[str]) -> Tensor:
    """The proposer's probabilities of the requested classes, [N, C]; not renormalised.

    A class gets the sum of the columns that it names ("wall" those of "wall-brick" and "wall-stone"), BACKGROUND that
    of the columns that no class names. Raises InputError for a class that the classifier does not know.
    """
    columns = {class_: _columns(class_, names) for class_ in classes if class_ != BACKGROUND}
    if unknown := [class_ for class_, numbers in columns.items() if not numbers]:
        raise InputError(f"rule: {_unknown(unknown[0], names)}")
    columns[BACKGROUND] = set(range(len(names))).difference(*columns.values())
    belongs_KC = torch.zeros(len(names), len(classes), device=classes_NK.device)
    for number, class_ in enumerate(classes):
        belongs_KC[sorted(columns[class_]), number] = 1.0
    return classes_NK @ belongs_KC


def ensemble(proposal_NC: Tensor, clip_NC: Tensor, *, clip_weight: float) -> Tensor:
    """The geometric ensemble, [N, C]: p^(1 − λ) · p̂^λ with p of the proposer, p̂ of CLIP, and λ `clip_weight`."""
    return proposal_NC ** (1 - clip_weight) * clip_NC**clip_weight


def best_masks(votes_NC: Tensor, *, classes: Sequence[str], granularity: float = 1.0) -> list[int]:
    """The proposals that are selected by any class but BACKGROUND, in their order.

    A class selects the one with its greatest vote, the first of equal ones; with `granularity` g below 1 also every one
    with a vote above g × that. So a smaller g never drops a mask, and 0 selects all with a vote.
    """
    if not len(votes_NC):
        return []
    best_C, number_C = votes_NC.max(dim=0)
    chosen_NC = votes_NC > granularity * best_C if granularity < 1 else torch.zeros_like(votes_NC, dtype=torch.bool)
    chosen_NC[number_C, torch.arange(len(classes), device=number_C.device)] = True
    named = [number for number, class_ in enumerate(classes) if class_ != BACKGROUND]
    chosen: list[int] = chosen_NC[:, named].any(dim=1).nonzero().flatten().tolist()
    return chosen


def paint_soft(votes_NC: Tensor, soft_Nhw: Tensor, *, size_px: tuple[int, int]) -> Tensor:
    """The class of every pixel, int64 [H, W]: the greatest sum over proposals of vote × probability of the pixel.

    S_c = Σ_q votes[q, c] · soft[q] is summed on the proposer's grid and resized to the image bilinearly, which equals
    the sum of resized masks but resizes fewer: tile by tile of the grid only the classes that can win a pixel of it. So
    the memory that this takes grows neither with the number of classes nor with the image. Of equal sums the first
    class wins; IGNORE where every sum is 0.
    """
    labels_HW = torch.full(size_px, IGNORE, device=votes_NC.device)
    if not len(votes_NC):
        return labels_HW
    rows, columns = (
        _sources(*sides, device=votes_NC.device) for sides in zip(soft_Nhw.shape[1:], size_px, strict=True)
    )
    side = min(_TILE_SIDE, max(_LEAST_TILE_SIDE, int((_CHUNK_VALUES / votes_NC.shape[1]) ** 0.5) - 1))
    for down in _tiles(rows, length=soft_Nhw.shape[1], side=side):
        for across in _tiles(columns, length=soft_Nhw.shape[2], side=side):
            sums_Chw = torch.einsum("nc,nhw->chw", votes_NC, soft_Nhw[:, down.grid, across.grid])
            labels_HW[down.pixels, across.pixels] = _paint_tile(sums_Chw, down, across)
    return labels_HW


def paint_hard(votes_NC: Tensor, masks_NHW: Tensor) -> Tensor:
    """`paint_soft` for boolean masks of the image's size: the sum of the votes of the masks that cover a pixel.

    Painted in bands of rows, so that the memory that this takes does not grow with the picture.
    """
    _, height_px, width_px = masks_NHW.shape
    labels_HW = torch.full((height_px, width_px), IGNORE, device=votes_NC.device)
    rows = max(1, _BAND_PX // max(1, width_px))
    for top in range(0, height_px if len(votes_NC) else 0, rows):
        labels_HW[top : top + rows] = _paint_band(votes_NC, masks_NHW[:, top : top + rows])
    return labels_HW


def _paint_band(votes_NC: Tensor, masks_NHW: Tensor) -> Tensor:
    """The labels of a band, by its runs: pixels in reading order between which no mask begins or ends."""
    masks_NP = masks_NHW.flatten(1)
    begin_R = _begins_of_runs(masks_NP)
    covers_NU, set_R = _sets_of_masks(masks_NP.index_select(1, begin_R))
    labels_U = torch.empty(covers_NU.shape[1], dtype=torch.long, device=votes_NC.device)
    step = max(1, _CHUNK_VALUES // max(1, *votes_NC.shape))
    for start in range(0, len(labels_U), step):
        sums_CU = votes_NC.T @ covers_NU[:, start : start + step].float()
        sum_U, class_U = sums_CU.max(dim=0)
        labels_U[start : start + step] = torch.where(sum_U > 0, class_U, IGNORE)
    length_R = begin_R.diff(append=begin_R.new_tensor([masks_NP.shape[1]]))
    labels_P = labels_U[set_R].repeat_interleave(length_R, output_size=masks_NP.shape[1])
    return labels_P.view(masks_NHW.shape[1:])


def _begins_of_runs(masks_NP: Tensor) -> Tensor:
    """The pixels that other masks cover than cover the one before, ascending, and the first, int64 [R]."""
    bytes_NP = masks_NP.view(torch.uint8)  # booleans are compared one by one
    begins_P = torch.ones(bytes_NP.shape[1], dtype=torch.uint8, device=masks_NP.device)
    begins_P[1:] = 0
    for byte_P in bytes_NP:
        begins_P[1:] |= byte_P[1:] ^ byte_P[:-1]
    return begins_P.nonzero().flatten()


@dataclass(frozen=True, slots=True)
class _Tile:
    """Neighbours on one side of the grid, and the pixels between them: of each the first of its two neighbours, counted
    from the tile's first, and the weight of the second."""

    grid: slice
    pixels: slice
    first_P: Tensor
    part_P: Tensor


def _sources(length: int, size_px: int, *, device: torch.device) -> tuple[Tensor, Tensor]:
    """For every pixel of a side that is resized from `length`: the first of its two neighbours, and the weight of the
    second, as `interpolate(mode="bilinear", align_corners=False)` has them."""
    scale = torch.tensor(length, dtype=torch.float32) / size_px
    middle_P = torch.arange(size_px, device=device) + 0.5
    place_P = (scale.to(device) * middle_P - 0.5).clamp(0, length - 1)
    first_P = place_P.long().clamp(max=max(0, length - 2))
    return first_P, place_P - first_P


def _tiles(source: tuple[Tensor, Tensor], *, length: int, side: int) -> Iterator[_Tile]:
    """A side of the grid in tiles of so many steps between neighbours."""
    first_P, part_P = source
    for start in range(0, max(1, length - 1), side):
        low, high = torch.searchsorted(first_P, torch.tensor([start, start + side], device=first_P.device)).tolist()
        if low < high:
            pixels = slice(low, high)
            yield _Tile(slice(start, start + side + 1), pixels, first_P[pixels] - start, part_P[pixels])


def _paint_tile(sums_Chw: Tensor, down: _Tile, across: _Tile) -> Tensor:
    """The labels of the pixels of a tile, from the sums of its neighbours on the grid."""
    size_px = (len(down.first_P), len(across.first_P))
    candidates_K = _candidates(sums_Chw)
    if len(candidates_K) == 1 < len(sums_Chw):  # it is ahead of all others, and so above 0, everywhere
        return candidates_K.expand(size_px)
    best_HW = torch.zeros(size_px, device=sums_Chw.device)
    labels_HW = torch.full(size_px, IGNORE, device=sums_Chw.device)
    step = max(1, _CHUNK_VALUES // (size_px[0] * size_px[1]))
    for numbers_k in candidates_K.split(step):
        wide_khW = _between(sums_Chw[numbers_k], across, dim=2)
        sum_HW, class_HW = _between(wide_khW, down, dim=1).max(dim=0)
        better_HW = sum_HW > best_HW
        best_HW = torch.where(better_HW, sum_HW, best_HW)
        labels_HW = torch.where(better_HW, numbers_k[class_HW], labels_HW)
    return labels_HW


def _between(values_khw: Tensor, tile: _Tile, *, dim: int) -> Tensor:
    """Values of the grid, resized linearly along one side of a tile."""
    second_P = (tile.first_P + 1).clamp(max=values_khw.shape[dim] - 1)
    part_P = tile.part_P if dim == 2 else tile.part_P[:, None]
    first = values_khw.index_select(dim, tile.first_P).mul_(1 - part_P)
    return first.add_(values_khw.index_select(dim, second_P).mul_(part_P))


def _candidates(sums_Chw: Tensor) -> Tensor:
    """The numbers of the classes that can win a pixel between these neighbours on the grid, ascending, int64 [K].

    A pixel's sums are weighted means of those of its four neighbours. So a class can win only where its greatest sum
    among the four reaches the least one of every other class: of hundreds of classes a few are left.
    """
    reached_hw = _of_fours(sums_Chw, torch.minimum).amax(dim=0) * (1 - _ROUNDING)
    return (_of_fours(sums_Chw, torch.maximum) >= reached_hw).flatten(1).any(dim=1).nonzero().flatten()


def _of_fours(values_chw: Tensor, which: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The minimum or maximum of every four neighbours; of two in a grid of one row or column."""
    if values_chw.shape[1] > 1:
        values_chw = which(values_chw[:, 1:], values_chw[:, :-1])
    return which(values_chw[:, :, 1:], values_chw[:, :, :-1]) if values_chw.shape[2] > 1 else values_chw


def _sets_of_masks(masks_NP: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct sets of masks that cover one of some pixels [N, U], and the index of every pixel's set [P]."""
    unique: Any = torch.unique  # it has no types
    set_P = torch.zeros(masks_NP.shape[1], dtype=torch.long, device=masks_NP.device)
    for start in range(0, len(masks_NP), _BITS):  # the sets of earlier masks and the next masks, packed into one number
        for mask_P in masks_NP[start : start + _BITS]:
            set_P.mul_(2).add_(mask_P)
        _, set_P = unique(set_P, return_inverse=True)
    pixel_U = torch.zeros(int(set_P.max()) + 1, dtype=torch.long, device=masks_NP.device)
    pixel_U[set_P] = torch.arange(len(set_P), device=masks_NP.device)  # any pixel of each set
    return masks_NP[:, pixel_U], set_P


def _columns(class_: str, names: Sequence[str | None]) -> set[int]:
    plain = plain_words(class_)
    return {
        number
        for number, name in enumerate(names)
        if name is not None and (plain == plain_words(name) or plain in label_names(name))
    }


def _unknown(class_: str, names: Sequence[str | None]) -> str:
    known = [name for name in names if name is not None]
    remedy = "use `rule: clip`, or proposals of a model that was trained on the classes"
    if not known:
        return f"the proposals come without a classifier that names its classes; {remedy}"
    return (
        f"the proposals' own classifier does not know `{class_}` (it knows {len(known)}, such as {known[0]}); {remedy}"
    )
