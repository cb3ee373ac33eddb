"""Semantic inference: from proposals with class probabilities to a label map.

Every function is pure and runs on the device of its tensors. The formulas are those of OVSeg (arXiv 2210.04150,
section 3.1) and of MaskFormer (arXiv 2107.06278, section 3.4); docs/segment.md shows them side by side.

Shapes: N proposals of one image, C requested classes, K classes of the proposer, D width of CLIP's embeddings; H, W
height and width of the image in pixels, h, w those of the proposer's grid, P pixels, flat, U distinct sets of masks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from maskmine.mining.text.labels import label_names, plain_words
from maskmine.schemas.errors import InputError
from maskmine.tuning.segmentation.confusion import IGNORE

BACKGROUND = "others"
"""The class of everything else: it gets votes like any other, and its pixels have no label."""

_ROUNDING = 1e-5  # relative error of sums that are equal in exact arithmetic
_BITS = 36  # masks that are packed beside the number of a set in 63 bits; there are no more sets than pixels
_BAND_PX = 1 << 20  # of a picture that is painted at once; what is sorted for it fits a cache
_CHUNK_VALUES = 1 << 22  # 16 MiB of float32, which stays in the cache of a CPU


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
    the sum of resized masks but resizes fewer: only the classes that can win a pixel. Of equal sums the first class
    wins; IGNORE where every sum is 0.
    """
    candidates_K = _candidates(votes_NC, soft_Nhw)
    votes_NK = votes_NC[:, candidates_K]
    best_HW = torch.zeros(size_px, device=votes_NC.device)
    labels_HW = torch.full(size_px, IGNORE, device=votes_NC.device)
    step = max(1, _CHUNK_VALUES // (size_px[0] * size_px[1]))
    for start in range(0, len(candidates_K), step):
        sums_chw = torch.einsum("nc,nhw->chw", votes_NK[:, start : start + step], soft_Nhw)
        part_cHW = interpolate(sums_chw[None], size=size_px, mode="bilinear", align_corners=False)[0]
        if len(part_cHW) == 1:  # of a large picture: nothing but what the next class is compared with is kept
            labels_HW.masked_fill_(part_cHW[0] > best_HW, int(candidates_K[start]))
            torch.maximum(best_HW, part_cHW[0], out=best_HW)
            continue
        sum_HW, class_HW = part_cHW.max(dim=0)
        better_HW = sum_HW > best_HW
        best_HW = torch.where(better_HW, sum_HW, best_HW)
        labels_HW = torch.where(better_HW, candidates_K[class_HW + start], labels_HW)
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
    covers_NU, set_P = _sets_of_masks(masks_NHW.flatten(1))
    labels_U = torch.empty(covers_NU.shape[1], dtype=torch.long, device=votes_NC.device)
    step = max(1, _CHUNK_VALUES // max(1, *votes_NC.shape))
    for start in range(0, len(labels_U), step):
        sums_CU = votes_NC.T @ covers_NU[:, start : start + step].float()
        sum_U, class_U = sums_CU.max(dim=0)
        labels_U[start : start + step] = torch.where(sum_U > 0, class_U, IGNORE)
    return labels_U[set_P].view(masks_NHW.shape[1:])


def _candidates(votes_NC: Tensor, soft_Nhw: Tensor) -> Tensor:
    """The numbers of the classes that can win a pixel in `paint_soft`, ascending, int64 [K].

    A pixel's sums are weighted means of those of its four neighbours on the grid. So a class can win only where its
    greatest sum among the four reaches the least one of every other class: of hundreds of classes a few are left.
    """
    if not len(votes_NC):
        return torch.empty(0, dtype=torch.long, device=votes_NC.device)
    step = max(1, _CHUNK_VALUES // soft_Nhw[0].numel())

    def sums() -> Iterator[Tensor]:
        for start in range(0, votes_NC.shape[1], step):
            yield torch.einsum("nc,nhw->chw", votes_NC[:, start : start + step], soft_Nhw)

    least_hw = torch.stack([_of_fours(sums_chw, torch.minimum).amax(dim=0) for sums_chw in sums()]).amax(dim=0)
    reached_hw = least_hw * (1 - _ROUNDING)
    reach = [(_of_fours(sums_chw, torch.maximum) >= reached_hw).flatten(1).any(dim=1) for sums_chw in sums()]
    return torch.cat(reach).nonzero().flatten()


def _of_fours(values_chw: Tensor, which: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The minimum or maximum of every four neighbours; of two in a grid of one row or column."""
    if values_chw.shape[1] > 1:
        values_chw = which(values_chw[:, 1:], values_chw[:, :-1])
    return which(values_chw[:, :, 1:], values_chw[:, :, :-1]) if values_chw.shape[2] > 1 else values_chw


def _sets_of_masks(masks_NP: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct sets of masks that cover a pixel [N, U], and the index of every pixel's set [P]."""
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
