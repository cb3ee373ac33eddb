"""From proposals with probabilities of classes to a map: who votes, with what, and which class a pixel gets.

Every function is pure and works where its tensors are. The formulas are those of OVSeg (arXiv 2210.04150, section 3.1)
and of MaskFormer's semantic inference (arXiv 2107.06278, section 3.4); docs/segment.md has them side by side.

Shapes: N proposals of one picture, C classes asked for, K the proposer's own classes, D width of CLIP's embeddings;
H, W height and width of the picture in pixels, h, w those of the proposer's own grid, P pixels, flat.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from mining.labels import label_names, plain_words
from mining.segmentation_scores import NOTHING
from schemas.errors import InputError

BACKGROUND = "others"
"""The class of whatever is none of the classes asked for: it votes like any other, and its pixels have no class."""

_CHUNK_VALUES = 1 << 22  # 16 MiB of float32: what is summed at once stays in the cache of a CPU


def clip_probabilities(regions_ND: Tensor, classes_CD: Tensor, *, logit_scale: float) -> Tensor:
    """What CLIP says of each region, [N, C]: the softmax over the classes of `logit_scale` × cosine.

    Both sides are unit vectors.
    """
    return (logit_scale * regions_ND @ classes_CD.T).softmax(dim=-1)


def own_probabilities(classes_NK: Tensor, *, names: Sequence[str | None], classes: Sequence[str]) -> Tensor:
    """What the proposer's own classifier says of the classes asked for, [N, C]; never renormalised.

    A class has the sum of the columns that it names ("wall" those of "wall-brick" and "wall-stone"), BACKGROUND that of
    the columns which no class names. Raises InputError for a class that the classifier does not know.
    """
    columns = {class_: _columns(class_, names) for class_ in classes if class_ != BACKGROUND}
    if unknown := [class_ for class_, found in columns.items() if not found]:
        raise InputError(f"rule: {_unknown(unknown[0], names)}")
    columns[BACKGROUND] = set(range(len(names))).difference(*columns.values())
    belongs_KC = torch.zeros(len(names), len(classes), device=classes_NK.device)
    for number, class_ in enumerate(classes):
        belongs_KC[sorted(columns[class_]), number] = 1.0
    return classes_NK @ belongs_KC


def ensemble(own_NC: Tensor, clip_NC: Tensor, *, clip_weight: float) -> Tensor:
    """Both opinions in one, [N, C]: p^(1 − λ) · p̂^λ, where p is the proposer's, p̂ CLIP's, and λ `clip_weight`."""
    return own_NC ** (1 - clip_weight) * clip_NC**clip_weight


def best_masks(votes_NC: Tensor, *, classes: Sequence[str]) -> list[int]:
    """The proposals that are the best one of any class but BACKGROUND, in their order; of equal ones the first."""
    if not len(votes_NC):
        return []
    best_C = votes_NC.argmax(dim=0).tolist()
    return sorted({number for number, class_ in zip(best_C, classes, strict=True) if class_ != BACKGROUND})


def paint_soft(votes_NC: Tensor, soft_Nhw: Tensor, *, size_px: tuple[int, int]) -> Tensor:
    """The class of every pixel, int64 [H, W]: the greatest sum over proposals of vote × probability of the pixel.

    S_c = Σ_q votes[q, c] · soft[q]. It is summed on the proposer's grid, and S brought to the picture's size
    bilinearly, which is the same as the sum of resized masks and leaves fewer to resize. Of equal sums the first class
    has the pixel; NOTHING where every sum is 0.
    """
    best_HW = torch.zeros(size_px, device=votes_NC.device)
    labels_HW = torch.full(size_px, NOTHING, device=votes_NC.device)
    step = max(1, _CHUNK_VALUES // (size_px[0] * size_px[1]))
    for start in range(0, votes_NC.shape[1] if len(votes_NC) else 0, step):
        sums_chw = torch.einsum("nc,nhw->chw", votes_NC[:, start : start + step], soft_Nhw)
        part_cHW = interpolate(sums_chw[None], size=size_px, mode="bilinear", align_corners=False)[0]
        sum_HW, class_HW = part_cHW.max(dim=0)
        better_HW = sum_HW > best_HW
        best_HW = torch.where(better_HW, sum_HW, best_HW)
        labels_HW = torch.where(better_HW, class_HW + start, labels_HW)
    return labels_HW


def paint_hard(votes_NC: Tensor, masks_NHW: Tensor) -> Tensor:
    """`paint_soft` for boolean masks of the picture's size: the sum of the votes of the masks that cover a pixel."""
    masks_NP = masks_NHW.flatten(1)
    labels_P = torch.full((masks_NP.shape[1],), NOTHING, device=votes_NC.device)
    step = max(1, _CHUNK_VALUES // max(1, *votes_NC.shape))
    for start in range(0, len(labels_P) if len(votes_NC) else 0, step):
        sums_CP = votes_NC.T @ masks_NP[:, start : start + step].float()
        sum_P, class_P = sums_CP.max(dim=0)
        labels_P[start : start + step] = torch.where(sum_P > 0, class_P, NOTHING)
    return labels_P.view(masks_NHW.shape[1:])


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
