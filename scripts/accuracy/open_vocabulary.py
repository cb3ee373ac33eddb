"""Who names the objects of demo scenes right: the open-vocabulary MaskFormer itself, CLIP, or both in an ensemble.

Asked is one proposal for every object, the one that fits it best, if its IoU is at least 0.5. Nouns are told apart
by whether the MaskFormer was trained on them, and asked for are all of the demo world's, or only those of the object's
kind: nothing in training keeps an object from the names of the other kind.

Shapes: N proposals of a scene, M objects that have a proposal, C nouns; H, W height and width of a picture in pixels.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from maskmine.mining.models.clip import Clip
from maskmine.mining.proposers.open_vocabulary import OpenMaskFormer
from maskmine.mining.proposers.proposals import Keep, Proposals
from maskmine.scripts.accuracy.proposals import iou_of, propose_scene
from maskmine.scripts.demo_world.nouns import OPENMOJI_LICENCE, demo_nouns
from maskmine.scripts.demo_world.scene import Scene
from maskmine.scripts.training.open_vocabulary.scenes import is_taught
from maskmine.tuning.segmentation.segmenter import Models, Segmenter

if TYPE_CHECKING:
    from torch import Tensor

LEAST_IOU = 0.5
CLIP_WEIGHTS = (0.3, 0.5, 0.7)
"""Of the ensemble, λ."""

OWN, CLIP = "MaskFormer's own", "CLIP"
TAUGHT, OTHER = "taught", "other"


@dataclass(frozen=True, slots=True)
class OpenAccuracy:
    """The number of objects, how many have a proposal, and the share of these that each way names right (0–1).

    `top1` is among all nouns, `top1_of_kind` among those that were taught, or among those that were not.
    """

    objects: int
    matched: int
    top1: dict[str, float]
    top1_of_kind: dict[str, float]


def demo_segmenter(maskformer: Path, *, clip: Path) -> Segmenter:
    """The settings for segmenting the demo world."""
    return Segmenter(
        proposals=OpenMaskFormer(kind="open_maskformer", checkpoint=str(maskformer), licence=OPENMOJI_LICENCE),
        keep=Keep(min_score=0.05, min_area_px=60, top=30),
        clip=Clip(model=str(clip), licence=OPENMOJI_LICENCE),
        rule="ensemble",
        device="cpu",
        cpu_threads=1,
    )


def measure_open(settings: Segmenter, scenes: Iterable[Scene]) -> dict[str, OpenAccuracy]:
    """Accuracies over nouns that the MaskFormer was taught, and over all others; scenes may be drawn as needed."""
    import torch

    models = settings.load()
    counts: dict[str, Counter[str]] = {TAUGHT: Counter(), OTHER: Counter()}
    right: dict[str, Counter[str]] = {TAUGHT: Counter(), OTHER: Counter()}
    right_of_kind: dict[str, Counter[str]] = {TAUGHT: Counter(), OTHER: Counter()}
    with torch.inference_mode():
        for scene in scenes:
            kinds = [TAUGHT if is_taught(noun.noun) else OTHER for noun in scene.nouns]
            for kind in kinds:
                counts[kind]["objects"] += 1
            for number, votes in _votes(settings, models, scene):
                kind, noun = kinds[number], scene.nouns[number].noun
                counts[kind]["matched"] += 1
                for way, votes_C in votes.items():
                    right[kind][way] += _best(votes_C, kind=None) == noun
                    right_of_kind[kind][way] += _best(votes_C, kind=kind) == noun
    return {
        kind: OpenAccuracy(
            counts[kind]["objects"],
            counts[kind]["matched"],
            *(
                {way: round(hits[kind][way] / max(1, counts[kind]["matched"]), 4) for way in ways()}
                for hits in (right, right_of_kind)
            ),
        )
        for kind in (TAUGHT, OTHER)
    }


def ways() -> tuple[str, ...]:
    """The ways of naming that are compared."""
    return (OWN, CLIP, *(f"both, λ {weight}" for weight in CLIP_WEIGHTS))


@functools.cache
def _names() -> tuple[str, ...]:
    return tuple(noun.noun for noun in demo_nouns())


@functools.cache
def _columns(kind: str | None) -> list[int]:
    """The numbers of all nouns, or of those of a kind."""
    return [number for number, noun in enumerate(_names()) if kind is None or is_taught(noun) == (kind == TAUGHT)]


def _best(votes_C: Tensor, *, kind: str | None) -> str:
    """The noun with the most votes, among all or among those of a kind."""
    columns = _columns(kind)
    return _names()[columns[int(votes_C[columns].argmax())]]


def _votes(settings: Segmenter, models: Models, scene: Scene) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """The number of each object that has a proposal, and each way's votes for all nouns [C]."""
    from maskmine.tuning.segmentation.semantic_inference import clip_probabilities, ensemble

    rgb_3HW, kept = propose_scene(models.propose, scene, settings.keep)
    pairs = list(_fitting(kept, scene))
    if not pairs:
        return
    assert models.region_classifier is not None  # both are there for the ensemble
    assert models.proposal_classifier is not None
    objects, numbers = zip(*pairs, strict=True)
    chosen = _taken(kept, numbers)
    own_MC = models.proposal_classifier(chosen, _names())
    (regions_MD,) = models.region_classifier.embed_regions([rgb_3HW], [chosen.masks_NHW])
    clip_MC = clip_probabilities(
        regions_MD, models.region_classifier.embed_classes(_names()), logit_scale=settings.logit_scale
    )
    both = [ensemble(own_MC, clip_MC, clip_weight=weight) for weight in CLIP_WEIGHTS]
    for row, number in enumerate(objects):
        yield number, {way: votes_MC[row] for way, votes_MC in zip(ways(), (own_MC, clip_MC, *both), strict=True)}


def _fitting(kept: Proposals, scene: Scene) -> Iterator[tuple[int, int]]:
    """Each object's number with that of the proposal that fits it best, where it fits."""
    if not len(kept):
        return
    iou_MN = iou_of(kept.masks_NHW.numpy(), scene.masks_NHW)
    for number, iou_N in enumerate(iou_MN):
        if iou_N.max() >= LEAST_IOU:
            yield number, int(iou_N.argmax())


def _taken(kept: Proposals, numbers: Sequence[int]) -> Proposals:
    """The proposals of these numbers, of which some may be there twice."""
    assert kept.queries_ND is not None
    rows = list(numbers)
    return Proposals(
        kept.masks_NHW[rows],
        kept.scores_N[rows],
        tuple(kept.labels[row] for row in rows),
        queries_ND=kept.queries_ND[rows],
    )
