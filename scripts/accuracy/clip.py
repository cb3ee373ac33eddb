"""How well a CLIP tells the demo world's nouns apart: zero-shot top-1 among all of them, on three kinds of crops.

Shapes: N objects of a scene, R crops, K nouns, D width of the embedding; H, W height and width of a picture in pixels.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from maskmine.mining.images.crops import Crop, cut_regions, grow_boxes, tight_boxes
from maskmine.mining.models.clip import ImageTower, TextTower
from maskmine.mining.models.prompt_templates import fill_template, load_templates
from maskmine.scripts.demo_world.nouns import demo_nouns
from maskmine.scripts.demo_world.scene import Scene

if TYPE_CHECKING:
    from torch import Tensor

SURROUNDINGS = Crop(fill="none", expand_ratio=1.5)
TIGHT = Crop(fill="none", expand_ratio=1.0)
MASKED = Crop(fill="mean", expand_ratio=1.0)

CROWD = 4
"""From this number of objects on, a scene is crowded."""

_ALONE_SHARE = 0.05  # of a crop: with more of other objects in it, it is not one of a single object
_SCENES_AT_ONCE = 100


@dataclass(frozen=True, slots=True)
class Accuracy:
    """The number of crops, and the shares with their noun first and among the first five; 0 where there is no crop."""

    crops: int
    top1: float
    top5: float


@dataclass(frozen=True, slots=True)
class ClipAccuracy:
    """`surroundings`: unmasked crops, 1.5 times the object's box, with next to nothing of other objects in them;
    `tight`: unmasked crops of the boxes in crowded scenes; `masked`: the same with all but the object blanked, as
    mining shows regions to CLIP.
    """

    surroundings: Accuracy
    tight: Accuracy
    masked: Accuracy


def measure_clip(image: ImageTower, text: TextTower, scenes: Iterable[Scene]) -> ClipAccuracy:
    """Zero-shot accuracy among all nouns of the demo world, each said in OVSeg's templates.

    Scenes are taken a hundred at a time, so that they may be drawn as they are needed.
    """
    nouns_KD = noun_embeddings(text)
    ranks: tuple[list[Tensor], ...] = ([], [], [])
    scenes = iter(scenes)
    while some := list(itertools.islice(scenes, _SCENES_AT_ONCE)):
        crowded = [scene for scene in some if len(scene.nouns) >= CROWD]
        ranks[0].append(ranks_of_crops(image, nouns_KD, some, SURROUNDINGS, alone=True))
        ranks[1].append(ranks_of_crops(image, nouns_KD, crowded, TIGHT))
        ranks[2].append(ranks_of_crops(image, nouns_KD, crowded, MASKED))
    return ClipAccuracy(*map(_accuracy, ranks))


def noun_embeddings(text: TextTower) -> Tensor:
    """A unit vector for every noun of the demo world, float32 [K, D]: the mean over OVSeg's templates."""
    from torch.nn.functional import normalize

    templates = load_templates("vild")
    sentences = [fill_template(template, noun.noun) for noun in demo_nouns() for template in templates]
    return normalize(text.embed(sentences).view(len(demo_nouns()), len(templates), -1).mean(1), dim=-1)


def alone_in_crop(masks_NHW: Tensor, *, crop: Crop) -> Tensor:
    """Which objects have a crop with next to nothing of the others in it, boolean [N]."""
    import torch

    height_px, width_px = masks_NHW.shape[1:]
    boxes_N4 = grow_boxes(tight_boxes(masks_NHW), ratio=crop.expand_ratio, height_px=height_px, width_px=width_px)
    any_HW = masks_NHW.any(0)
    alone = []
    for mask_HW, (left, top, right, bottom) in zip(masks_NHW, boxes_N4.tolist(), strict=True):
        others_px = int((any_HW & ~mask_HW)[top:bottom, left:right].sum())
        alone.append(others_px < _ALONE_SHARE * (right - left) * (bottom - top))
    return torch.tensor(alone, dtype=torch.bool)


def ranks_of_crops(
    image: ImageTower, nouns_KD: Tensor, scenes: Sequence[Scene], crop: Crop, *, alone: bool = False
) -> Tensor:
    """How many nouns come before each crop's own by their nearness, int64 [R]."""
    import torch

    from maskmine.tuning.evaluation.region_accuracy import ranks_of

    numbers = {noun: number for number, noun in enumerate(demo_nouns())}
    pictures, masks, truths = [], [], [torch.empty(0, dtype=torch.long)]
    for scene in scenes:
        masks_NHW, truth_N = torch.from_numpy(scene.masks_NHW), torch.tensor([numbers[noun] for noun in scene.nouns])
        keep_N = alone_in_crop(masks_NHW, crop=crop) if alone else torch.ones(len(truth_N), dtype=torch.bool)
        pictures.append(torch.from_numpy(scene.picture_HW3).permute(2, 0, 1))
        masks.append(masks_NHW[keep_N])
        truths.append(truth_N[keep_N])
    crops_R3SS = cut_regions(pictures, masks, size_px=image.size_px, mean=image.mean, std=image.std, crop=crop)
    similarity_RK = image.embed(crops_R3SS).cpu() @ nouns_KD.cpu().T
    return ranks_of(similarity_RK, torch.cat(truths))


def _accuracy(ranks: Sequence[Tensor]) -> Accuracy:
    import torch

    ranks_R = torch.cat(list(ranks)) if ranks else torch.empty(0)
    crops = len(ranks_R)
    return Accuracy(crops, *(round(int((ranks_R < most).sum()) / max(1, crops), 4) for most in (1, 5)))
