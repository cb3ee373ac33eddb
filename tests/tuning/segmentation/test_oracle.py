"""The oracle analysis on images made by hand, with proposals and a CLIP whose every answer is known."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from torch import Tensor

from maskmine.mining.proposers.ground_truth import GroundTruth
from maskmine.mining.proposers.proposals import LoadedImage, Proposals
from maskmine.pipelines.segment.oracle_report import draw_cases, render_cases
from maskmine.schemas.errors import InputError
from maskmine.schemas.rows import Rejection
from maskmine.scripts.accuracy.oracle import evaluate_cases, main
from maskmine.tuning.segmentation.confusion import IGNORE, Labels
from maskmine.tuning.segmentation.oracle import (
    BASELINE,
    CASES,
    HARD,
    MASKED,
    SOFT,
    UNMASKED,
    Case,
    CaseScores,
    oracle_votes,
    verdict,
)
from maskmine.tuning.segmentation.region_classifier import RegionClassifier
from maskmine.tuning.segmentation.segmenter import Models, Segmenter
from tests.support.progress import texts_of

HEIGHT_PX, WIDTH_PX = 8, 12
LEFT, RIGHT = slice(0, 4), slice(6, 12)  # columns: 32 and 48 pixels
CLASSES = ("cat", "dog", "hat", "owl", "cup", "bus")
Mask = np.ndarray[Any, np.dtype[np.bool_]]
Saw = Callable[[Tensor], int]
"""What a CLIP takes a region for, by the pixels that it is shown, [P, 3]."""


def columns(span: slice, rows: slice = slice(None)) -> Mask:
    mask_HW = np.zeros((HEIGHT_PX, WIDTH_PX), np.bool_)
    mask_HW[rows, span] = True
    return mask_HW


def truth_of(*classes: int) -> Labels:
    """The first class on the left, the second on the right, IGNORE between them."""
    labels_HW = np.full((HEIGHT_PX, WIDTH_PX), IGNORE, np.int32)
    for span, class_ in zip((LEFT, RIGHT), classes, strict=False):
        labels_HW[:, span] = class_
    return labels_HW


def picture_of(gt_HW: Labels) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A picture whose pixels say their class by their red."""
    return np.repeat(np.where(gt_HW == IGNORE, 255, gt_HW)[:, :, None], 3, axis=2).astype(np.uint8)


def by_red(pixels_P3: Tensor) -> int:
    return min(int(pixels_P3[:, 0].min()), len(CLASSES) - 1)


def models(saw: Saw, proposed: Sequence[Mask] | Rejection) -> Models:
    def propose(images: Sequence[LoadedImage], *, min_score: float) -> Iterator[Proposals | Rejection]:
        for image in images:
            if isinstance(proposed, Rejection):
                yield proposed
                continue
            masks_NHW = torch.zeros(len(proposed), *image.rgb_3HW.shape[1:], dtype=torch.bool)
            for number, mask_HW in enumerate(proposed):
                masks_NHW[number] = torch.from_numpy(mask_HW)
            yield Proposals(masks_NHW, torch.ones(len(proposed)), (None,) * len(proposed))

    def regions(pictures: Sequence[Tensor], masks: Sequence[Tensor]) -> list[Tensor]:
        return [
            torch.eye(len(CLASSES))[[saw(rgb_3HW[:, mask_HW].T) for mask_HW in masks_NHW]]
            for rgb_3HW, masks_NHW in zip(pictures, masks, strict=True)
        ]

    return Models(torch.device("cpu"), propose, RegionClassifier(regions, lambda names: torch.eye(len(names))))


def analyse(
    gt_HW: Labels, *proposed: Mask, saw: Saw = by_red, annotations: bool = False, rejected: Rejection | None = None
) -> dict[Case, Any]:
    """The mIoU and the share of right pixels of every case for one picture, as a pair."""
    changes = {"proposals": GroundTruth(kind="ground_truth", annotations="none.json")} if annotations else {}
    found = Segmenter(device="cpu").model_copy(update=changes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Segmenter, "load", lambda self: models(saw, rejected or proposed))
        cases = evaluate_cases([("1", picture_of(gt_HW), gt_HW)], settings=found, classes=CLASSES)
    return {one.case: (one.scores.mean_iou, one.scores.pixel_accuracy) for one in cases}


def test_true_masks_and_a_clip_that_errs_cost_what_it_errs() -> None:
    found = analyse(truth_of(0, 1), columns(LEFT), saw=lambda pixels_P3: 0)
    assert found[MASKED] == (pytest.approx((32 / 80 + 0) / 2), pytest.approx(32 / 80))


def test_only_unmasked_crops_show_what_is_around_a_mask() -> None:
    gt_HW = truth_of(3)
    gt_HW[:4, 2:4] = IGNORE  # a corner of its box, and the only white there
    found = analyse(gt_HW, saw=lambda pixels_P3: 3 if by_red(255 - pixels_P3) > 0 else 1)
    assert (found[UNMASKED], found[MASKED]) == ((0, 0), (1, 1))


def test_a_class_that_is_not_there_costs_as_ovseg_counts_it() -> None:
    found = analyse(truth_of(0, 1), saw=lambda pixels_P3: 5 if by_red(pixels_P3) else 0)
    assert found[MASKED][0] == pytest.approx((1 + 0 + 0) / 3)


def test_proposed_masks_cost_what_they_miss_whoever_names_them() -> None:
    found = analyse(truth_of(0, 1), columns(LEFT), columns(slice(6, 10)))
    assert found[BASELINE] == found[HARD] == found[SOFT] == (pytest.approx((1 + 32 / 48) / 2), pytest.approx(64 / 80))
    assert list(found) == list(CASES)


def test_the_oracle_names_a_mask_by_what_it_overlaps_most_and_softly_by_its_shares() -> None:
    everything_HW, nothing_HW = np.ones((HEIGHT_PX, WIDTH_PX), np.bool_), columns(slice(4, 6))
    masks_NHW = torch.from_numpy(np.stack([everything_HW, columns(LEFT), nothing_HW]))
    gt_HW = torch.from_numpy(truth_of(0, 1))
    votes = {soft: oracle_votes(masks_NHW, gt_HW, numbers=[0, 1, IGNORE], soft=soft) for soft in (False, True)}
    assert votes[False].tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 0]]
    shares = [[32 / 96 / (32 / 96 + 48 / 96), 48 / 96 / (32 / 96 + 48 / 96), 0], [1, 0, 0], [0, 0, 0]]
    assert votes[True].tolist() == [pytest.approx(row) for row in shares]


def test_where_two_masks_overlap_the_soft_oracle_knows_which_fits_and_the_hard_one_takes_the_first_class() -> None:
    too_wide = columns(slice(0, 8))  # over columns 6 and 7, 0.75 of its soft votes are for the left and 0.25 for right
    found = analyse(truth_of(0, 1), too_wide, columns(RIGHT))
    assert found[SOFT] == (1, 1)
    assert found[HARD] == (pytest.approx(32 / 48), pytest.approx(64 / 80))
    assert analyse(truth_of(1, 0), too_wide, columns(RIGHT))[HARD] == (1, 1)


def test_a_mask_over_no_class_decides_nothing() -> None:
    found = analyse(truth_of(2, 1), columns(LEFT), columns(RIGHT), columns(slice(4, 6)))
    assert found[HARD] == found[SOFT] == (1, 1)


def test_a_picture_without_a_mask_is_missed_whole() -> None:
    found = analyse(truth_of(0, 1))
    assert found[BASELINE] == found[HARD] == found[SOFT] == (0, 0)
    assert found[MASKED] == (1, 1)


def test_a_picture_without_a_class_counts_nowhere_and_stops_nothing() -> None:
    found = analyse(truth_of(), columns(LEFT))
    assert found[BASELINE] == found[MASKED] == (None, None)


def test_a_picture_that_the_proposer_rejects_is_in_no_sum() -> None:
    assert analyse(truth_of(0, 1), rejected=Rejection("no_masks")) == {}


def test_with_annotations_as_proposals_only_true_masks_are_looked_at() -> None:
    assert list(analyse(truth_of(0, 1), columns(LEFT), annotations=True)) == [UNMASKED, MASKED]


@settings(max_examples=20)
@given(arrays.arrays(np.int32, (HEIGHT_PX, WIDTH_PX), elements=st.integers(IGNORE, len(CLASSES) - 1)))
def test_with_the_truth_for_masks_true_classes_make_the_truth(gt_HW: Labels) -> None:
    proposed = [gt_HW == number for number in np.unique(gt_HW) if number != IGNORE]
    found = analyse(gt_HW, *proposed)
    if proposed:
        assert found[HARD] == found[SOFT] == found[MASKED] == found[BASELINE] == (1, 1)


def test_the_analysis_is_about_clip() -> None:
    with pytest.raises(InputError, match="rule: proposals: the bottleneck is about CLIP"):
        evaluate_cases([], settings=Segmenter(rule="proposals"), classes=CLASSES)


def scores_of(**miou: float) -> list[CaseScores]:
    """Cases of one class with these IoUs, by the case's name in this file."""
    from maskmine.tuning.segmentation.confusion import Confusion

    named = {"BASELINE": BASELINE, "UNMASKED": UNMASKED, "MASKED": MASKED, "HARD": HARD}
    return [
        CaseScores(named[name], Confusion(np.array([[round(1000 * share), round(1000 * (1 - share))]])).scores())
        for name, share in miou.items()
    ]


def test_the_verdict_names_what_limits() -> None:
    told = verdict(scores_of(BASELINE=0.2, UNMASKED=0.7, MASKED=0.5, HARD=0.9))
    assert "lowers CLIP's mIoU by 20.0 points" in told
    assert "true masks would win 30.0 points and true classes 70.0: the classes are the bottleneck" in told
    assert "the masks are the bottleneck" in verdict(scores_of(BASELINE=0.4, UNMASKED=0.7, MASKED=0.9, HARD=0.5))
    assert "classes alone cost 20.0 points" in verdict(scores_of(UNMASKED=0.6, MASKED=0.8))


def test_the_chart_and_the_table_show_every_case() -> None:
    cases = scores_of(BASELINE=0.2, UNMASKED=0.7, MASKED=0.5)
    with Image.open(BytesIO(draw_cases(cases, title="mIoU"))) as picture:
        assert picture.format == "PNG"
    table = render_cases(cases)
    assert texts_of(table, 0) == [case.name for case in (BASELINE, UNMASKED, MASKED)]
    assert texts_of(table, 1) == ["20.0%", "70.0%", "50.0%"]
    assert json.loads(json.dumps([one.as_json() for one in cases]))[1]["miou"] == pytest.approx(0.7)


def test_a_world_of_training_is_refused() -> None:
    with pytest.raises(InputError, match="may have been seen in training"):
        main(seed=1_000_000)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--clip .*nowhere: no such folder"):
        main(clip=tmp_path / "nowhere", to=tmp_path)
