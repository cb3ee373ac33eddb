"""Demo scenes as maps of classes, with ordinary and true masks and classes: how good each combination is.

Every mask gives its pixels to the classes with certain votes, and a pixel takes the class that has most. Masks are
those of the MaskFormer (ordinary) or the true ones (oracle). Votes are CLIP's probabilities among all nouns of the demo
world for the mask's crop, blanked outside the mask or not, or all go to the true class (oracle): that of the object
which the mask overlaps most, with the overlap as their weight, so that of two masks the better one has its way.

Shapes: N masks, M objects, P pixels that belong to an object, U different sets of masks over pixels, K nouns, D width
of the embedding; H, W height and width of a picture.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mining.crops import Crop
from mining.embeddings import embed_regions, unpack
from mining.models.clip import ImageTower
from mining.precision import Share
from mining.segmentation_scores import NOTHING, Confusion, SegmentationScores
from schemas.mask import Mask, mask_iou
from schemas.rows import Region, RegionsRow
from scripts.clip_accuracy import MASKED, TIGHT
from scripts.demo_nouns import demo_nouns
from scripts.demo_scene import Scene

if TYPE_CHECKING:
    from torch import Tensor

Floats = np.ndarray[Any, np.dtype[np.float64]]
Numbers = np.ndarray[Any, np.dtype[np.int64]]
Bools = np.ndarray[Any, np.dtype[np.bool_]]

_SCALE = 100.0  # CLIP's logit scale at the end of its training
_SCENES_AT_ONCE = 100
_SET_BITS = 63  # masks of one scene beyond which the sets over its pixels would not fit in a number


@dataclass(frozen=True, slots=True)
class Case:
    """Whose masks, and who tells their classes."""

    masks: Literal["ordinary", "oracle"]
    classifier: Literal["masked crops", "unmasked crops", "oracle"]

    @property
    def name(self) -> str:
        """Such as "true masks, CLIP on masked crops"."""
        masks = {"ordinary": "MaskFormer's masks", "oracle": "true masks"}[self.masks]
        classes = "true classes" if self.classifier == "oracle" else f"CLIP on {self.classifier}"
        return f"{masks}, {classes}"


CASES = (
    Case("ordinary", "masked crops"),
    Case("oracle", "unmasked crops"),
    Case("oracle", "masked crops"),
    Case("ordinary", "oracle"),
    Case("oracle", "oracle"),
)


@dataclass(frozen=True, slots=True)
class Bar:
    """A case and what it came to. An object is right when most of its pixels have its class."""

    case: Case
    scores: SegmentationScores
    objects: Share

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "masks": self.case.masks,
            "classifier": self.case.classifier,
            "miou": self.scores.mean_iou,
            "mean_accuracy": self.scores.mean_accuracy,
            "pixel_accuracy": self.scores.pixel_accuracy,
            "objects_right": {"count": self.objects.count, "of": self.objects.of, "share": self.objects.value},
        }


def find_bottleneck(
    scenes: Iterable[tuple[str, Scene]],
    *,
    image: ImageTower,
    nouns_KD: Tensor,
    ordinary: Mapping[str, RegionsRow] | None,
) -> list[Bar]:
    """Every case on scenes with their image ids; `ordinary` are their MaskFormer masks, embedded by the same CLIP.

    `nouns_KD` are the unit vectors of all nouns of the demo world, which are the candidates. Pixels of no object are
    not counted. Without ordinary masks, their cases are left out.
    """
    words_KD = nouns_KD.cpu().numpy().astype(np.float64)
    sums = {case: _Sums() for case in CASES if ordinary is not None or case.masks == "oracle"}
    scenes = iter(scenes)
    while some := list(itertools.islice(scenes, _SCENES_AT_ONCE)):
        masked, unmasked = (_votes(image, words_KD, [scene for _, scene in some], crop) for crop in (MASKED, TIGHT))
        for (image_id, scene), masked_MK, unmasked_MK in zip(some, masked, unmasked, strict=True):
            truth = _Truth.of(scene)
            found = {
                Case("oracle", "masked crops"): (truth.masks_MP, masked_MK),
                Case("oracle", "unmasked crops"): (truth.masks_MP, unmasked_MK),
                Case("oracle", "oracle"): (truth.masks_MP, truth.votes(truth.objects)),
            }
            if ordinary is not None:
                found |= _ordinary_cases(ordinary[image_id].regions, truth, words_KD)
            for case, (masks_NP, votes_NK) in found.items():
                sums[case].add(paint(masks_NP, votes_NK=votes_NK), truth)
    return [Bar(case, one.confusion.scores(), Share(one.right, one.objects)) for case, one in sums.items()]


def paint(masks_NP: Bools, *, votes_NK: Floats) -> Numbers:
    """The class of every pixel, int64 [P]: that with the greatest sum of votes over the masks that cover it.

    Of equal sums the first class has it; NOTHING where no mask lies, or only masks without a vote.
    """
    labels_P = np.full(masks_NP.shape[1], NOTHING, np.int64)
    if not len(masks_NP):
        return labels_P
    first_U, set_P = _sets_of_masks(masks_NP)
    sums_UK = masks_NP[:, first_U].T.astype(np.float64) @ votes_NK
    best_U = np.where(sums_UK.max(1) > 0, sums_UK.argmax(1), NOTHING)
    labels_P[:] = best_U[set_P]
    return labels_P


@dataclass(frozen=True, slots=True)
class _Truth:
    """The objects of a scene: their nouns by number, whose every pixel is, and their masks over these pixels."""

    objects: list[Mask]
    nouns_M: Numbers
    inside_HW: Bools
    object_P: Numbers
    masks_MP: Bools

    @staticmethod
    def of(scene: Scene) -> _Truth:
        numbers = {noun: number for number, noun in enumerate(demo_nouns())}
        inside_HW: Bools = np.any(scene.masks_NHW, axis=0)
        masks_MP = scene.masks_NHW[:, inside_HW]
        nouns_M = np.array([numbers[noun] for noun in scene.nouns], np.int64)
        return _Truth(Mask.from_arrays(scene.masks_NHW), nouns_M, inside_HW, masks_MP.argmax(0), masks_MP)

    def votes(self, masks: Sequence[Mask]) -> Floats:
        """The votes of an oracle [N, K]: each mask's go to the noun of the object that it overlaps most."""
        iou_NM = mask_iou(masks, self.objects)
        best_N = iou_NM.argmax(1) if len(masks) else np.zeros(0, np.int64)
        votes_NK = np.zeros((len(masks), len(demo_nouns())))
        votes_NK[np.arange(len(masks)), self.nouns_M[best_N]] = iou_NM.max(1, initial=0.0)
        return votes_NK


@dataclass(slots=True)
class _Sums:
    """What a case has come to so far."""

    confusion: Confusion = field(default_factory=lambda: Confusion.of_classes(len(demo_nouns())))
    right: int = 0
    objects: int = 0

    def add(self, labels_P: Numbers, truth: _Truth) -> None:
        self.confusion.add(labels_P, truth_HW=truth.nouns_M[truth.object_P])
        for number, noun in enumerate(truth.nouns_M):
            votes_L = np.bincount(labels_P[truth.object_P == number] + 1)  # NOTHING is the first
            self.right += int(votes_L.argmax() - 1 == noun)
        self.objects += len(truth.nouns_M)


def _ordinary_cases(regions: Sequence[Region], truth: _Truth, words_KD: Floats) -> dict[Case, tuple[Bools, Floats]]:
    """The masks of a mined image over the true pixels, with the votes of CLIP and of the oracle."""
    masks_NP = np.zeros((len(regions), len(truth.object_P)), np.bool_)
    for number, region in enumerate(regions):
        masks_NP[number] = region.mask.to_array()[truth.inside_HW]
    packed = [region.embedding for region in regions if region.embedding is not None]
    regions_ND = unpack(packed, dim=words_KD.shape[1]).astype(np.float64)
    return {
        Case("ordinary", "masked crops"): (masks_NP, _probabilities(regions_ND, words_KD)),
        Case("ordinary", "oracle"): (masks_NP, truth.votes([region.mask for region in regions])),
    }


def _votes(image: ImageTower, words_KD: Floats, scenes: Sequence[Scene], crop: Crop) -> list[Floats]:
    """CLIP's probabilities for the true masks of some scenes, [M, K] each."""
    import torch

    pictures = [torch.from_numpy(scene.picture_HW3).permute(2, 0, 1) for scene in scenes]
    masks = [torch.from_numpy(scene.masks_NHW) for scene in scenes]
    embedded = embed_regions(pictures, masks, tower=image, crop=crop)
    return [_probabilities(array_MD.astype(np.float64), words_KD) for array_MD in embedded]


def _probabilities(regions_ND: Floats, words_KD: Floats) -> Floats:
    """The softmax over all nouns of 100 × cosine, [N, K]."""
    logits_NK = _SCALE * regions_ND @ words_KD.T
    exponentials_NK = np.exp(logits_NK - logits_NK.max(axis=1, keepdims=True))
    result: Floats = exponentials_NK / exponentials_NK.sum(axis=1, keepdims=True)
    return result


def _sets_of_masks(masks_NP: Bools) -> tuple[Numbers, Numbers]:
    """Which pixels lie under the same masks: a pixel of each set [U], and the set of every pixel [P]."""
    if len(masks_NP) > _SET_BITS:
        _, first_U, set_P = np.unique(masks_NP, axis=1, return_index=True, return_inverse=True)
        return first_U, set_P.reshape(-1)
    code_P = (1 << np.arange(len(masks_NP), dtype=np.int64)) @ masks_NP
    _, first_U, set_P = np.unique(code_P, return_index=True, return_inverse=True)
    return first_U, set_P
