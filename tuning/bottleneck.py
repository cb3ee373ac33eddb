"""What limits segmentation in two stages, the masks or their classes: each is replaced by the truth in turn.

The analysis that OVSeg begins with. Nothing is segmented in another way for it: oracles stand in the places of the
models, `Segmenter` does the rest.

  oracle masks      the truth's own: a mask for each class that is in the picture, all of its pixels
  oracle classes    a proposal votes for what lies under it: all for the class that it overlaps most (by intersection
                    over union), or softly, for each class by its share in the sum of these overlaps

A proposal that overlaps no class votes for all alike, and so decides nothing.

Shapes: N masks, M classes that are in a picture, C classes of the set, P pixels, flat; H, W height and width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from mining.crops import tight_boxes
from mining.proposals import Keep, LoadedImage, Proposals, Proposer
from mining.segmentation_scores import NOTHING, Confusion, Labels, SegmentationScores
from schemas.errors import InputError
from schemas.rows import Rejection
from tuning.segmenter import Look, Models, Rgb, Segmentation, Segmenter
from tuning.semantic_evaluation import Question

_ALL = Keep(min_score=0.0, min_area_px=1, max_area_ratio=1.0, max_iou=1.0, top=100_000)
_NEVER = 1e-30  # the vote for a class that is not there; its logarithm is a number

Masks = Literal["proposed", "true"]
Classifier = Literal["CLIP on masked crops", "CLIP on unmasked crops", "true classes", "true classes, softly"]


@dataclass(frozen=True, slots=True)
class Case:
    """Whose masks, and who tells their classes."""

    masks: Masks
    classifier: Classifier

    @property
    def name(self) -> str:
        """Such as "true masks, CLIP on masked crops"."""
        return f"{self.masks} masks, {self.classifier}"


ORDINARY = Case("proposed", "CLIP on masked crops")
UNMASKED, MASKED = Case("true", "CLIP on unmasked crops"), Case("true", "CLIP on masked crops")
HARD, SOFT = Case("proposed", "true classes"), Case("proposed", "true classes, softly")
CASES = (ORDINARY, UNMASKED, MASKED, HARD, SOFT)


@dataclass(frozen=True, slots=True)
class Bar:
    """A case and what it came to."""

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


class MapCases(Protocol):
    """What `open_cases` returns: pictures with their true maps to their maps in every case, in order."""

    def __call__(
        self, pictures: Sequence[Rgb], truths: Sequence[Labels], *, image_ids: Sequence[str]
    ) -> list[dict[Case, Labels] | Rejection]: ...


def open_cases(settings: Segmenter, *, classes: Sequence[str]) -> MapCases:
    """Load the models; returns the function from pictures to their maps. Maps have numbers of `classes`, or NOTHING.

    The ordinary case is what the settings say, by their `rule`; the others differ from it in the one thing that they
    name. Where the proposals are annotations, there is nothing ordinary, and only true masks are looked at. Raises
    InputError for settings without CLIP, and as `Segmenter.load` does.
    """
    if settings.rule == "proposals":
        raise InputError("rule: proposals: the bottleneck is about CLIP; use `rule: clip` or `ensemble`")
    models, with_ordinary = settings.load(), settings.proposals.kind != "ground_truth"
    assert models.look is not None  # as the rule needs it
    question = Question.about(classes)
    by_clip = settings.model_copy(update={"rule": "clip"})
    on_true = by_clip.model_copy(update={"keep": _ALL})
    unmasked = Look(_with_boxes(models.look.regions), models.look.classes)

    def find(
        pictures: Sequence[Rgb], truths: Sequence[Labels], *, image_ids: Sequence[str]
    ) -> list[dict[Case, Labels] | Rejection]:
        truth_of = dict(zip(image_ids, truths, strict=True))
        true_masks = _propose_truth(truth_of)
        remembered: dict[str, Proposals | Rejection] = {}
        ways: dict[Case, tuple[Segmenter, Models]] = {}
        if with_ordinary:
            ways[ORDINARY] = settings, replace(models, propose=_remembering(models.propose, remembered))
        ways[UNMASKED] = on_true, replace(models, propose=true_masks, look=unmasked)
        ways[MASKED] = on_true, replace(models, propose=true_masks)
        found: list[dict[Case, Labels] | Rejection] = [{} for _ in pictures]
        for case, (changed, with_models) in ways.items():
            answers = changed.open(models=with_models)(pictures, classes=question.asked, image_ids=image_ids)
            _note(found, case, answers, question=question)
        for number, (rgb_HW3, image_id) in enumerate(zip(pictures, image_ids, strict=True)):
            truth_HW = truth_of[image_id]
            present = question.only(truth_HW)  # no other class gets a vote, so nobody needs to ask for it
            for case, soft in ((HARD, False), (SOFT, True)) if with_ordinary and present.names else ():
                oracle = _oracle(truth_HW, present, soft=soft, logit_scale=settings.logit_scale, device=models.device)
                told = replace(models, propose=_again(remembered), look=oracle)
                answer = by_clip.open(models=told)([rgb_HW3], classes=present.asked, image_ids=[image_id])
                _note(found, case, answer, question=present, first=number)
        return found

    return find


def find_bottleneck(
    pictures: Iterable[tuple[str, Rgb, Labels]], *, settings: Segmenter, classes: Sequence[str], at_once: int = 32
) -> list[Bar]:
    """Every case over pictures with their ids and true maps; those that are rejected are left out."""
    find = open_cases(settings, classes=classes)
    sums: dict[Case, Confusion] = {}
    for some in _chunks(pictures, at_once):
        image_ids, rgbs, truths = zip(*some, strict=True)
        for truth_HW, maps in zip(truths, find(rgbs, truths, image_ids=image_ids), strict=True):
            for case, labels_HW in {} if isinstance(maps, Rejection) else maps.items():
                sums.setdefault(case, Confusion.of_classes(len(classes))).add(labels_HW, truth_HW=truth_HW)
    return bars_of({case.name: confusion for case, confusion in sums.items()})


def bars_of(sums: Mapping[str, Confusion]) -> list[Bar]:
    """The bars of sums by the names of their cases, in the order of CASES."""
    return [Bar(case, sums[case.name].scores()) for case in CASES if case.name in sums]


def verdict(bars: Sequence[Bar]) -> str:
    """What the bars say, in a sentence or two."""
    miou = {bar.case: 100 * (bar.scores.mean_iou or 0.0) for bar in bars}
    change = "raises" if miou[MASKED] >= miou[UNMASKED] else "lowers"
    told = (
        f"Blanking what is around a true mask {change} CLIP's mIoU by {abs(miou[MASKED] - miou[UNMASKED]):.1f} points."
    )
    if ORDINARY not in miou:
        return (
            f"{told} With true masks, CLIP's classes alone cost {100 - max(miou[MASKED], miou[UNMASKED]):.1f} points."
        )
    better_masks, better_classes = miou[MASKED] - miou[ORDINARY], miou[HARD] - miou[ORDINARY]
    limit = "classes" if better_classes > better_masks else "masks"
    return (
        f"{told} From the ordinary two stages, true masks would win {better_masks:.1f} points and true classes"
        f" {better_classes:.1f}: the {limit} are the bottleneck."
    )


def _propose_truth(truth_of: Mapping[str, Labels]) -> Proposer:
    def propose(images: Sequence[LoadedImage], *, min_score: float) -> Iterator[Proposals | Rejection]:
        for image in images:
            truth_HW = truth_of[image.image_id]
            present_M = np.setdiff1d(truth_HW, [NOTHING])
            masks_MHW = torch.from_numpy(truth_HW == present_M[:, None, None]).to(image.rgb_3HW.device)
            count = len(masks_MHW)
            yield Proposals(masks_MHW, torch.ones(count, device=masks_MHW.device), (None,) * count)

    return propose


def _remembering(propose: Proposer, into: dict[str, Proposals | Rejection]) -> Proposer:
    """The same proposer, but its answers are noted by the ids of their pictures."""

    def proposed(images: Sequence[LoadedImage], *, min_score: float) -> Iterator[Proposals | Rejection]:
        for image, answer in zip(images, propose(images, min_score=min_score), strict=True):
            into[image.image_id] = answer
            yield answer

    return proposed


def _again(remembered: Mapping[str, Proposals | Rejection]) -> Proposer:
    def propose(images: Sequence[LoadedImage], *, min_score: float) -> Iterator[Proposals | Rejection]:
        yield from (remembered[image.image_id] for image in images)

    return propose


Regions = Callable[[Sequence[Tensor], Sequence[Tensor]], list[Tensor]]


def _with_boxes(embed: Regions) -> Regions:
    """The same function, but it sees all that is in the tight box of a mask: nothing is blanked, nothing prompted."""

    def embed_boxes(pictures: Sequence[Tensor], masks: Sequence[Tensor]) -> list[Tensor]:
        return embed(pictures, [_boxes(masks_NHW) for masks_NHW in masks])

    return embed_boxes


def _boxes(masks_NHW: Tensor) -> Tensor:
    """Masks filled up to their tight boxes."""
    filled_NHW = torch.zeros_like(masks_NHW)
    for box_HW, (x0, y0, x1, y1) in zip(filled_NHW, tight_boxes(masks_NHW).tolist(), strict=True):
        box_HW[y0:y1, x0:x1] = True
    return filled_NHW


def _oracle(truth_HW: Labels, question: Question, *, soft: bool, logit_scale: float, device: torch.device) -> Look:
    """Who knows the truth of one picture, in the place of CLIP.

    A region's embedding is the logarithm of its votes, and a class's the unit vector of its place, so that the
    softmax of their products is these votes. The last place is the background's, if it is asked for: it gets none.
    """
    truth = torch.from_numpy(truth_HW).to(device)

    def regions(pictures: Sequence[Tensor], masks: Sequence[Tensor]) -> list[Tensor]:
        votes = (oracle_votes(masks_NHW, truth, numbers=question.numbers.tolist(), soft=soft) for masks_NHW in masks)
        return [votes_NC.clamp(min=_NEVER).log() / logit_scale for votes_NC in votes]

    def classes(names: tuple[str, ...]) -> Tensor:
        return torch.eye(len(question.numbers), device=device)[: len(names)]

    return Look(regions, classes)


def oracle_votes(masks_NHW: Tensor, truth_HW: Tensor, *, numbers: Sequence[int], soft: bool) -> Tensor:
    """The votes of masks by what lies under them, [N, C] for classes of these `numbers`; each row sums to 1, or 0.

    The last of the numbers is that of the background, which gets none.

    Overlap is intersection over union, of which all pixels of a mask count, those too whose class nobody knows.
    """
    truth_P, masks_NP = truth_HW.flatten(), masks_NHW.flatten(1).float()
    votes_NC = masks_NP.new_zeros(len(masks_NP), len(numbers))
    for place, number in enumerate(numbers[:-1]):
        class_P = (truth_P == number).float()
        shared_N = masks_NP @ class_P
        votes_NC[:, place] = shared_N / (masks_NP.sum(1) + class_P.sum() - shared_N)
    if not soft and votes_NC.numel():
        best_N1 = votes_NC.argmax(1, keepdim=True)
        votes_NC = torch.zeros_like(votes_NC).scatter(1, best_N1, (votes_NC.gather(1, best_N1) > 0).float())
    return votes_NC / votes_NC.sum(1, keepdim=True).clamp(min=_NEVER)


def _note(
    found: list[dict[Case, Labels] | Rejection],
    case: Case,
    answers: Sequence[Segmentation | Rejection],
    *,
    question: Question,
    first: int = 0,
) -> None:
    """Put the maps of a case to those of the other cases; a picture that is rejected once stays rejected."""
    for number, answer in enumerate(answers, start=first):
        maps = found[number]
        if isinstance(answer, Rejection):
            found[number] = answer if not isinstance(maps, Rejection) else maps
        elif not isinstance(maps, Rejection):
            maps[case] = question.as_set_labels(answer.labels_HW)


def _chunks(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    some: list[Any] = []
    for item in items:
        some.append(item)
        if len(some) == size:
            yield some
            some = []
    if some:
        yield some
