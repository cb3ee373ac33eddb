"""Oracle analysis of two-stage segmentation: masks or classes are replaced by the ground truth, one at a time.

The analysis that OVSeg begins with: it shows whether masks or classes are the bottleneck. Oracles take the place of
the models, `Segmenter` does everything else.

  oracle masks      those of the ground truth: a mask for each class in the image, all of its pixels
  oracle classes    a proposal votes for the classes under it: all for the class with the greatest IoU, or softly, for
                    each class by its share in the sum of the IoUs

A proposal that overlaps no class has the same vote for all classes, and so no effect.

Shapes: N masks, M classes in an image, C classes of the set, P pixels, flat; H, W height and width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from maskmine.mining.images.crops import tight_boxes
from maskmine.mining.proposers.proposals import Keep, LoadedImage, Proposals, Proposer
from maskmine.schemas.errors import InputError
from maskmine.schemas.rows import Rejection
from maskmine.tuning.segmentation.confusion import IGNORE, Confusion, Labels, SegmentationScores
from maskmine.tuning.segmentation.evaluation import ClassMapping
from maskmine.tuning.segmentation.region_classifier import RegionClassifier
from maskmine.tuning.segmentation.segmenter import Models, Rgb, Segmenter

# No ground-truth mask is filtered; a class has one mask an image, so 100,000 is more than any set has.
_KEEP_ALL = Keep(min_score=0.0, min_area_px=1, max_area_ratio=1.0, max_iou=1.0, top=100_000)
_EPSILON = 1e-30  # the vote for a class that is absent: its logarithm is finite, also in single precision

Masks = Literal["proposed", "true"]
Classifier = Literal["CLIP on masked crops", "CLIP on unmasked crops", "true classes", "true classes, softly"]
CaseMaps = dict[str, Labels]
"""The label maps of an image by the name of their case."""


@dataclass(frozen=True, slots=True)
class Case:
    """Where the masks come from, and what classifies them."""

    masks: Masks
    classifier: Classifier

    @property
    def name(self) -> str:
        """Such as "true masks, CLIP on masked crops"."""
        return f"{self.masks} masks, {self.classifier}"


BASELINE = Case("proposed", "CLIP on masked crops")
UNMASKED, MASKED = Case("true", "CLIP on unmasked crops"), Case("true", "CLIP on masked crops")
HARD, SOFT = Case("proposed", "true classes"), Case("proposed", "true classes, softly")
CASES = (BASELINE, UNMASKED, MASKED, HARD, SOFT)


@dataclass(frozen=True, slots=True)
class CaseScores:
    """A case and its scores."""

    case: Case
    scores: SegmentationScores

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "masks": self.case.masks,
            "classifier": self.case.classifier,
            "miou": self.scores.mean_iou,
            "weighted_iou": self.scores.weighted_iou,
            "mean_accuracy": self.scores.mean_accuracy,
            "pixel_accuracy": self.scores.pixel_accuracy,
        }


class SegmentCases(Protocol):
    """What `open_cases` returns: images with their annotations to their maps in every case, in order."""

    def __call__(
        self, images: Sequence[Rgb], annotations: Sequence[Labels], *, image_ids: Sequence[str]
    ) -> list[CaseMaps | Rejection]: ...


def open_cases(settings: Segmenter, *, classes: Sequence[str]) -> SegmentCases:
    """Load the models; returns the function from images to their maps, which have numbers of `classes`, or IGNORE.

    The baseline is what the settings say; each other case differs from it in what its name says. Where the proposals
    are annotations, there is no baseline, and only true masks are evaluated. Raises InputError for settings without
    CLIP, and as `Segmenter.load` does.
    """
    if settings.rule == "proposals":
        raise InputError("rule: proposals: the bottleneck is about CLIP; use `rule: clip` or `ensemble`")
    models, with_proposals = settings.load(), settings.proposals.kind != "ground_truth"
    clip = models.region_classifier
    assert clip is not None  # as the rule needs it
    mapping = ClassMapping.of(classes)
    by_clip = settings.model_copy(update={"rule": "clip"})
    on_true_masks = by_clip.model_copy(update={"keep": _KEEP_ALL})
    unmasked = RegionClassifier(lambda rgb, masks: clip.embed_regions(rgb, [*map(_boxes, masks)]), clip.embed_classes)

    def segment_cases(
        images: Sequence[Rgb], annotations: Sequence[Labels], *, image_ids: Sequence[str]
    ) -> list[CaseMaps | Rejection]:
        runs, everything, proposals = [], slice(None), dict[str, Proposals | Rejection]()
        if with_proposals:
            recording = replace(models, propose=_recording(models.propose, proposals))
            runs.append(_Run(BASELINE, settings, recording, mapping, everything))

        # Oracle masks: all images together.
        true_masks = replace(models, propose=_true_masks(dict(zip(image_ids, annotations, strict=True))))
        runs.append(_Run(UNMASKED, on_true_masks, replace(true_masks, region_classifier=unmasked), mapping, everything))
        runs.append(_Run(MASKED, on_true_masks, true_masks, mapping, everything))

        # Oracle classes: image by image, on the proposals of the baseline. An absent class gets no vote, so only the
        # present ones are classified.
        for number, gt_HW in enumerate(annotations if with_proposals else ()):
            present = mapping.only_in(gt_HW)
            for case in (HARD, SOFT) if present.names else ():
                oracle = _oracle_classifier(
                    gt_HW, present, soft=case is SOFT, logit_scale=settings.logit_scale, device=models.device
                )
                same_masks = replace(models, propose=_replaying(proposals), region_classifier=oracle)
                runs.append(_Run(case, by_clip, same_masks, present, slice(number, number + 1)))
        return _run_all(runs, images, image_ids=image_ids)

    return segment_cases


def scores_by_case(sums: Mapping[str, Confusion]) -> list[CaseScores]:
    """The scores of confusions by the names of their cases, in the order of CASES."""
    return [CaseScores(case, sums[case.name].scores()) for case in CASES if case.name in sums]


def verdict(cases: Sequence[CaseScores]) -> str:
    """What limits segmentation, in a sentence or two."""
    miou = {one.case: 100 * (one.scores.mean_iou or 0.0) for one in cases}
    change = "raises" if miou[MASKED] >= miou[UNMASKED] else "lowers"
    blanking = (
        f"Blanking what is around a true mask {change} CLIP's mIoU by {abs(miou[MASKED] - miou[UNMASKED]):.1f} points."
    )
    if BASELINE not in miou:
        loss = 100 - max(miou[MASKED], miou[UNMASKED])
        return f"{blanking} With true masks, CLIP's classes alone cost {loss:.1f} points."
    better_masks, better_classes = miou[MASKED] - miou[BASELINE], miou[HARD] - miou[BASELINE]
    limit = "classes" if better_classes > better_masks else "masks"
    return (
        f"{blanking} From the ordinary two stages, true masks would win {better_masks:.1f} points and true classes"
        f" {better_classes:.1f}: the {limit} are the bottleneck."
    )


def oracle_votes(masks_NHW: Tensor, gt_HW: Tensor, *, numbers: Sequence[int], soft: bool) -> Tensor:
    """The votes of masks by the classes under them, [N, C] for classes of these `numbers`; each row sums to 1, or 0.

    The last of the numbers is that of the background, which gets no vote. IoU counts all pixels of a mask, those
    without annotation too.
    """
    gt_P, masks_NP = gt_HW.flatten(), masks_NHW.flatten(1).float()
    votes_NC = masks_NP.new_zeros(len(masks_NP), len(numbers))
    for index, number in enumerate(numbers[:-1]):
        class_P = (gt_P == number).float()
        intersection_N = masks_NP @ class_P
        votes_NC[:, index] = intersection_N / (masks_NP.sum(1) + class_P.sum() - intersection_N)
    if not soft and votes_NC.numel():
        best_N1 = votes_NC.argmax(1, keepdim=True)
        votes_NC = torch.zeros_like(votes_NC).scatter(1, best_N1, (votes_NC.gather(1, best_N1) > 0).float())
    return votes_NC / votes_NC.sum(1, keepdim=True).clamp(min=_EPSILON)


@dataclass(frozen=True, slots=True)
class _Run:
    """A case for some of the images: the settings and models that make its maps."""

    case: Case
    settings: Segmenter
    models: Models
    mapping: ClassMapping
    which: slice


def _run_all(runs: Sequence[_Run], images: Sequence[Rgb], *, image_ids: Sequence[str]) -> list[CaseMaps | Rejection]:
    """The maps of each image by case; an image that one case rejects is rejected."""
    results: list[CaseMaps | Rejection] = [{} for _ in images]
    for run in runs:
        segment = run.settings.open(models=run.models)
        maps = segment(images[run.which], classes=run.mapping.segmenter_classes, image_ids=image_ids[run.which])
        for number, answer in zip(range(len(images))[run.which], maps, strict=True):
            previous = results[number]
            if isinstance(previous, Rejection):
                continue
            if isinstance(answer, Rejection):
                results[number] = answer
            else:
                previous[run.case.name] = run.mapping.to_set_labels(answer.labels_HW)
    return results


def _oracle_classifier(
    gt_HW: Labels, mapping: ClassMapping, *, soft: bool, logit_scale: float, device: torch.device
) -> RegionClassifier:
    """The ground truth of one image in place of CLIP.

    A region's embedding is the logarithm of its votes, and a class's the unit vector of its index, so that the
    softmax of their products is these votes.
    """
    gt, numbers = torch.from_numpy(gt_HW).to(device), mapping.numbers.tolist()

    def embed_regions(images: Sequence[Tensor], masks: Sequence[Tensor]) -> list[Tensor]:
        votes = (oracle_votes(masks_NHW, gt, numbers=numbers, soft=soft) for masks_NHW in masks)
        return [votes_NC.clamp(min=_EPSILON).log() / logit_scale for votes_NC in votes]

    return RegionClassifier(embed_regions, lambda names: torch.eye(len(numbers), device=device)[: len(names)])


def _true_masks(gt_of: Mapping[str, Labels]) -> Proposer:
    """A proposer of the ground truth: a mask for each class in the image."""

    def propose(image: LoadedImage) -> Proposals:
        gt_HW = gt_of[image.image_id]
        present_M = np.setdiff1d(gt_HW, [IGNORE])
        masks_MHW = torch.from_numpy(gt_HW == present_M[:, None, None]).to(image.rgb_3HW.device)
        return Proposals(masks_MHW, torch.ones(len(masks_MHW), device=masks_MHW.device), (None,) * len(masks_MHW))

    return _one_by_one(propose)


def _recording(propose: Proposer, into: dict[str, Proposals | Rejection]) -> Proposer:
    """The same proposer; its answers are also stored by image id."""

    def propose_and_record(images: Sequence[LoadedImage], *, min_score: float) -> Iterator[Proposals | Rejection]:
        for image, answer in zip(images, propose(images, min_score=min_score), strict=True):
            into[image.image_id] = answer
            yield answer

    return propose_and_record


def _replaying(recorded: Mapping[str, Proposals | Rejection]) -> Proposer:
    return _one_by_one(lambda image: recorded[image.image_id])


def _one_by_one(propose: Callable[[LoadedImage], Proposals | Rejection]) -> Proposer:
    return lambda images, *, min_score: map(propose, images)


def _boxes(masks_NHW: Tensor) -> Tensor:
    """Masks filled up to their tight boxes: with them CLIP sees the whole box, and nothing is blanked or prompted."""
    filled_NHW = torch.zeros_like(masks_NHW)
    for box_HW, (x0, y0, x1, y1) in zip(filled_NHW, tight_boxes(masks_NHW).tolist(), strict=True):
        box_HW[y0:y1, x0:x1] = True
    return filled_NHW
