"""How many objects of demo scenes have a proposal that fits them: by nouns seen in training or not, and by size.

Proposals are taken as mining takes them: from the JPEG, by the proposer's own function, and through the same choice.

Shapes: N proposals of a scene, M objects; H, W height and width of a picture in pixels.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from maskmine.mining.proposers.proposals import Keep, LoadedImage, Proposals, Proposer, keep_proposals
from maskmine.schemas.rows import Rejection
from maskmine.scripts.demo_world.draw import jpeg
from maskmine.scripts.demo_world.scene import Scene
from maskmine.scripts.demo_world.splits import is_seen

if TYPE_CHECKING:
    import torch

SIZES_PX = (24, 40, 64)
"""Where sizes change, as sides of a square with the object's area in pixels of the picture."""

SIZE_NAMES = ("tiny", "small", "medium", "large")


@dataclass(frozen=True, slots=True)
class Recall:
    """The number of objects, and the shares with a proposal of IoU at least 0.5 and 0.75; 0 where there is none."""

    objects: int
    at_50: float
    at_75: float


@dataclass(frozen=True, slots=True)
class ProposalRecall:
    """`sizes` goes from the smallest to the largest objects, one for each of SIZE_NAMES."""

    scenes: int
    proposals_a_scene: float
    all: Recall
    seen: Recall
    unseen: Recall
    sizes: dict[str, Recall]


@dataclass(frozen=True, slots=True)
class _Found:
    iou: float
    seen: bool
    side_px: float


def measure_proposals(
    proposer: Proposer, scenes: Iterable[Scene], *, most: int = 30, min_score: float = 0.05, min_area_px: int = 60
) -> ProposalRecall:
    """Recall with at most a number of proposals a scene, the best of those that mining keeps.

    `min_area_px` is that of the smallest objects of the demo world. Scenes may be drawn as they are needed.
    """
    keep = Keep(min_score=min_score, min_area_px=min_area_px, top=most)
    found: list[_Found] = []
    counts: list[int] = []
    for scene in scenes:
        masks_NHW = propose_scene(proposer, scene, keep)[1].masks_NHW.numpy()
        counts.append(len(masks_NHW))
        for noun, truth_HW, iou in zip(scene.nouns, scene.masks_NHW, best_iou(masks_NHW, scene.masks_NHW), strict=True):
            found.append(_Found(iou, is_seen(noun.noun), float(np.count_nonzero(truth_HW)) ** 0.5))
    limits = (0.0, *SIZES_PX, float("inf"))
    return ProposalRecall(
        scenes=len(counts),
        proposals_a_scene=round(sum(counts) / max(1, len(counts)), 2),
        all=_recall(found),
        seen=_recall([one for one in found if one.seen]),
        unseen=_recall([one for one in found if not one.seen]),
        sizes={
            name: _recall([one for one in found if low <= one.side_px < high])
            for name, (low, high) in zip(SIZE_NAMES, itertools.pairwise(limits), strict=True)
        },
    )


def best_iou(masks_NHW: np.ndarray[Any, Any], truth_MHW: np.ndarray[Any, Any]) -> list[float]:
    """For every object the intersection over union of the proposal that fits it best; 0 where there is none."""
    best: list[float] = iou_of(masks_NHW, truth_MHW).max(1, initial=0.0).tolist()
    return best


def iou_of(masks_NHW: np.ndarray[Any, Any], truth_MHW: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The intersection over union of every object with every proposal [M, N]."""
    pixels = truth_MHW.shape[1] * truth_MHW.shape[2]
    masks_NP, truth_MP = (masks.reshape(-1, pixels).astype(np.float32) for masks in (masks_NHW, truth_MHW))
    shared_MN = truth_MP @ masks_NP.T
    union_MN = truth_MP.sum(1)[:, None] + masks_NP.sum(1)[None] - shared_MN
    iou_MN: np.ndarray[Any, Any] = shared_MN / np.maximum(union_MN, 1)
    return iou_MN


def propose_scene(proposer: Proposer, scene: Scene, keep: Keep) -> tuple[torch.Tensor, Proposals]:
    """The pixels of a scene as mining reads them, uint8 [3, H, W], and the proposals that mining would keep."""
    import torch

    picture = Image.open(io.BytesIO(jpeg(Image.fromarray(scene.picture_HW3))))
    rgb_3HW = torch.from_numpy(np.array(picture).transpose(2, 0, 1).copy())
    (answer,) = proposer([LoadedImage("scene", rgb_3HW)], min_score=keep.min_score)
    assert not isinstance(answer, Rejection)  # a drawn scene can always be read
    return rgb_3HW, keep_proposals(answer, keep=keep)


def _recall(found: list[_Found]) -> Recall:
    at_50, at_75 = (sum(one.iou >= least for one in found) / max(1, len(found)) for least in (0.5, 0.75))
    return Recall(len(found), round(at_50, 4), round(at_75, 4))
