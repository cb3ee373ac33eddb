"""Who votes for which class, and which class a pixel gets: every rule beside a plain loop that says its formula."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from maskmine.schemas.errors import InputError
from maskmine.tuning.segmentation import semantic_inference as segmentation_rules
from maskmine.tuning.segmentation.confusion import IGNORE
from maskmine.tuning.segmentation.semantic_inference import (
    BACKGROUND,
    best_masks,
    clip_probabilities,
    ensemble,
    paint_hard,
    paint_soft,
    proposal_probabilities,
)

SIZES = st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(0, 2**31))


def random_votes(proposals: int, classes: int, seed: int) -> tuple[Tensor, torch.Generator]:
    numbers = torch.Generator().manual_seed(seed)
    return torch.rand(proposals, classes, generator=numbers), numbers


def argmax_of(sums_C: list[float]) -> int:
    best = max(sums_C)
    return sums_C.index(best) if best > 0 else IGNORE


# --- votes ------------------------------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(SIZES)
def test_clip_votes_with_the_softmax_over_the_classes_of_the_scaled_cosine(size: tuple[int, int, int]) -> None:
    proposals, classes, seed = size
    numbers = torch.Generator().manual_seed(seed)
    regions_ND = normalize(torch.randn(proposals, 6, generator=numbers), dim=1)
    classes_CD = normalize(torch.randn(classes, 6, generator=numbers), dim=1)
    found_NC = clip_probabilities(regions_ND, classes_CD, logit_scale=20.0)
    for n in range(proposals):
        cosines = [sum(a * b for a, b in zip(regions_ND[n].tolist(), row, strict=True)) for row in classes_CD.tolist()]
        total = sum(math.exp(20 * cosine) for cosine in cosines)
        expected = [math.exp(20 * cosine) / total for cosine in cosines]
        assert found_NC[n].tolist() == pytest.approx(expected, rel=1e-4, abs=1e-7)


@settings(max_examples=50)
@given(SIZES, st.floats(0.01, 0.99))
def test_the_ensemble_is_the_weighted_geometric_mean_of_both(size: tuple[int, int, int], weight: float) -> None:
    own_NC, numbers = random_votes(*size)
    clip_NC = torch.rand(own_NC.shape, generator=numbers)
    found_NC = ensemble(own_NC, clip_NC, clip_weight=weight)
    for n, c in itertools.product(range(size[0]), range(size[1])):
        expected = float(own_NC[n, c]) ** (1 - weight) * float(clip_NC[n, c]) ** weight
        assert float(found_NC[n, c]) == pytest.approx(expected, rel=1e-4)


def test_a_small_weight_leaves_the_proposals_opinion_and_a_large_one_clips() -> None:
    own_NC, clip_NC = torch.tensor([[0.9, 0.1]]), torch.tensor([[0.2, 0.8]])
    assert torch.allclose(ensemble(own_NC, clip_NC, clip_weight=1e-6), own_NC, atol=1e-4)
    assert torch.allclose(ensemble(own_NC, clip_NC, clip_weight=1 - 1e-6), clip_NC, atol=1e-4)


def test_the_proposals_classifier_votes_with_the_columns_that_a_class_names_and_is_not_renormalised() -> None:
    names = ("wall-brick", "wall-stone", "road, route", "Fire_Hydrant", None)
    own_1K = torch.tensor([[0.1, 0.2, 0.05, 0.3, 0.15]])  # 0.2 for "no object"
    found = proposal_probabilities(own_1K, names=names, classes=("wall", "brick wall", "route", "fire hydrant"))
    assert found[0].tolist() == pytest.approx([0.3, 0.1, 0.05, 0.3])


def test_the_background_has_what_no_class_names() -> None:
    own_1K = torch.tensor([[0.5, 0.1, 0.2]])  # 0.2 for "no object"
    found = proposal_probabilities(own_1K, names=("cat", BACKGROUND, None), classes=("cat", BACKGROUND))
    assert found[0].tolist() == pytest.approx([0.5, 0.3])


@pytest.mark.parametrize(
    ("names", "words"), [(("cat", "sky"), "does not know `dog` .*2, such as cat"), ((None,), "without a classifier")]
)
def test_a_class_that_the_classifier_does_not_know_is_refused_in_one_line(
    names: tuple[str | None, ...], words: str
) -> None:
    with pytest.raises(InputError, match=f"rule: .*{words}.*use `rule: clip`"):
        proposal_probabilities(torch.rand(2, len(names)), names=names, classes=("dog",))


# --- maps -------------------------------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(SIZES)
def test_a_pixel_takes_the_class_with_the_greatest_sum_of_votes_of_the_masks_over_it(
    size: tuple[int, int, int],
) -> None:
    votes_NC, numbers = random_votes(*size)
    masks_NHW = torch.rand(len(votes_NC), 4, 5, generator=numbers) > 0.5
    found_HW = paint_hard(votes_NC, masks_NHW)
    for y, x in itertools.product(range(4), range(5)):
        covering = [n for n in range(len(votes_NC)) if masks_NHW[n, y, x]]
        sums_C = [sum(float(votes_NC[n, c]) for n in covering) for c in range(size[1])]
        assert int(found_HW[y, x]) == argmax_of(sums_C)


@settings(max_examples=50)
@given(SIZES)
def test_a_soft_map_is_that_of_each_mask_resized_on_its_own_and_weighted_with_its_votes(
    size: tuple[int, int, int],
) -> None:
    votes_NC, numbers = random_votes(*size)
    soft_Nhw = torch.rand(len(votes_NC), 3, 4, generator=numbers)
    found_HW = paint_soft(votes_NC, soft_Nhw, size_px=(7, 6))
    resized = [interpolate(soft[None, None], size=(7, 6), mode="bilinear")[0, 0] for soft in soft_Nhw.double()]
    for y, x in itertools.product(range(7), range(6)):
        pairs = list(enumerate(resized))
        sums_C = [sum(float(votes_NC[n, c]) * float(soft_HW[y, x]) for n, soft_HW in pairs) for c in range(size[1])]
        assert sums_C[int(found_HW[y, x])] == pytest.approx(max(sums_C), rel=1e-5)


def test_a_soft_mask_gives_a_pixel_outside_of_it_less_but_not_nothing() -> None:
    soft_2hw = torch.tensor([[[0.9, 0.4]], [[0.2, 0.3]]])
    votes_2C = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert paint_soft(votes_2C, soft_2hw, size_px=(1, 2)).tolist() == [[0, 0]]
    assert paint_hard(votes_2C, soft_2hw > 0.5).tolist() == [[0, IGNORE]]


@pytest.mark.parametrize("values", [1, 7, 40])
def test_a_map_does_not_depend_on_how_much_is_summed_at_once(monkeypatch: pytest.MonkeyPatch, values: int) -> None:
    votes_NC, numbers = random_votes(6, 5, 3)
    soft_Nhw = torch.rand(6, 3, 4, generator=numbers)
    masks_NHW = torch.rand(6, 6, 8, generator=numbers) > 0.6
    soft, hard = paint_soft(votes_NC, soft_Nhw, size_px=(6, 8)), paint_hard(votes_NC, masks_NHW)
    monkeypatch.setattr(segmentation_rules, "_CHUNK_VALUES", values)
    monkeypatch.setattr(segmentation_rules, "_BAND_PX", 2 * values)
    assert torch.equal(paint_soft(votes_NC, soft_Nhw, size_px=(6, 8)), soft)
    assert torch.equal(paint_hard(votes_NC, masks_NHW), hard)


def test_binary_masks_are_painted_in_bands_so_that_memory_does_not_grow_with_the_picture(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes, plain = [], segmentation_rules._begins_of_runs
    monkeypatch.setattr(segmentation_rules, "_BAND_PX", 16)
    monkeypatch.setattr(
        segmentation_rules, "_begins_of_runs", lambda masks: sizes.append(masks.shape[1]) or plain(masks)
    )
    paint_hard(torch.rand(2, 3), torch.rand(2, 7, 8) > 0.5)
    assert sizes == [16, 16, 16, 8]


def test_sets_of_masks_are_sought_once_a_run_of_pixels_and_not_once_a_pixel(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, plain = [], segmentation_rules._sets_of_masks
    monkeypatch.setattr(
        segmentation_rules, "_sets_of_masks", lambda masks: sizes.append(masks.shape[1]) or plain(masks)
    )
    masks_2HW = torch.zeros(2, 50, 60, dtype=torch.bool)
    masks_2HW[0, 10:20, 5:40], masks_2HW[1, 15:30, 20:60] = True, True
    found_HW = paint_hard(torch.tensor([[0.9, 0.2], [0.1, 0.8]]), masks_2HW)
    # Five rows of the first alone, five of both, ten of the second alone, which ends with the row: where it begins
    # and, but for the last row of the picture, where the next row begins.
    assert sizes == [1 + 5 * 2 + 5 * 3 + 1 + 10 * 2 - 1]
    expected_HW = torch.full((50, 60), IGNORE)
    expected_HW[15:30, 20:60], expected_HW[10:20, 5:40] = 1, 0
    assert torch.equal(found_HW, expected_HW)


def test_only_the_classes_that_can_win_a_pixel_of_a_tile_are_resized_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    resized, plain = [], segmentation_rules._between
    monkeypatch.setattr(
        segmentation_rules, "_between", lambda values, *a, **k: resized.append(len(values)) or plain(values, *a, **k)
    )
    monkeypatch.setattr(segmentation_rules, "_TILE_SIDE", 8)
    soft_2hw = torch.full((2, 9, 25), 0.01)  # three tiles, of which the one in the middle has both masks
    soft_2hw[0, :, :12], soft_2hw[1, :, 12:] = 0.9, 0.9
    votes_2C = torch.full((2, 40), 0.001)
    votes_2C[0, 7], votes_2C[1, 30] = 0.9, 0.9
    found_HW = paint_soft(votes_2C, soft_2hw, size_px=(18, 50))
    assert resized == [2, 2]  # once along each side
    assert found_HW[:, :24].unique().tolist() == [7]
    assert found_HW[:, 25:].unique().tolist() == [30]


def test_of_equal_sums_the_first_class_has_the_pixel_in_whatever_chunk_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segmentation_rules, "_CHUNK_VALUES", 8)  # two classes at once
    votes_1C = torch.tensor([[0.1, 0.4, 0.4, 0.4, 0.2]])
    assert paint_soft(votes_1C, torch.ones(1, 2, 2), size_px=(2, 2)).unique().tolist() == [1]
    assert paint_hard(votes_1C, torch.ones(1, 2, 2, dtype=torch.bool)).unique().tolist() == [1]


def test_without_proposals_no_pixel_has_a_class_and_the_map_has_the_pictures_size() -> None:
    votes_0C = torch.empty(0, 3)
    soft_HW = paint_soft(votes_0C, torch.empty(0, 2, 2), size_px=(5, 4))
    hard_HW = paint_hard(votes_0C, torch.empty(0, 5, 4, dtype=torch.bool))
    for labels_HW in (soft_HW, hard_HW):
        assert labels_HW.tolist() == [[IGNORE] * 4] * 5
    assert best_masks(votes_0C, classes=("a", "b", "c")) == []


def test_a_mask_that_votes_for_nothing_leaves_its_pixels_without_a_class() -> None:
    assert paint_hard(torch.zeros(1, 2), torch.ones(1, 1, 2, dtype=torch.bool)).tolist() == [[IGNORE, IGNORE]]


# --- the demo's rule --------------------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(SIZES)
def test_every_class_chooses_the_mask_with_its_greatest_vote(size: tuple[int, int, int]) -> None:
    votes_NC, _ = random_votes(*size)
    names = [f"class {number}" for number in range(size[1])]
    columns = votes_NC.T.tolist()
    assert best_masks(votes_NC, classes=names) == sorted({column.index(max(column)) for column in columns})


@settings(max_examples=50)
@given(SIZES, st.sampled_from([0.0, 0.125, 0.25, 0.5]))  # shares that are taken without rounding
def test_below_1_granularity_adds_every_mask_with_a_vote_above_that_share_of_the_best(
    size: tuple[int, int, int], granularity: float
) -> None:
    votes_NC, _ = random_votes(*size)
    names = [BACKGROUND, *[f"class {number}" for number in range(1, size[1])]]
    expected = set()
    for column in votes_NC.T.tolist()[1:]:
        expected |= {number for number, vote in enumerate(column) if vote > granularity * max(column)}
    found = best_masks(votes_NC, classes=names, granularity=granularity)
    assert found == sorted(expected)
    assert set(best_masks(votes_NC, classes=names)) <= set(found)


def test_a_class_without_a_vote_still_has_its_best_mask_and_no_other() -> None:
    votes_NC = torch.tensor([[0.0, 0.5], [0.0, 0.3]])
    assert best_masks(votes_NC, classes=("cat", BACKGROUND), granularity=0.0) == [0]
    assert best_masks(votes_NC, classes=("cat", "dog"), granularity=0.6) == [0]
    assert best_masks(votes_NC, classes=("cat", "dog"), granularity=0.5) == [0, 1]


def test_the_background_chooses_no_mask_but_votes_where_another_class_chose() -> None:
    votes_NC = torch.tensor([[0.6, 0.4], [0.1, 0.9], [0.2, 0.8]])
    assert best_masks(votes_NC, classes=("cat", BACKGROUND)) == [0]
    weak_NC = torch.tensor([[0.3, 0.7], [0.1, 0.9]])
    chosen = best_masks(weak_NC, classes=("cat", BACKGROUND))
    masks_NHW = torch.tensor([[[True, False]], [[False, True]]])
    assert chosen == [0]
    assert paint_hard(weak_NC[chosen], masks_NHW[chosen]).tolist() == [[1, IGNORE]]


def test_only_the_chosen_masks_vote_but_with_all_that_they_say() -> None:
    # The third is nobody's best one. The first is cat's, and where both lie, the dog has 0.45 + 0.9 of 2.
    votes_NC = torch.tensor([[0.55, 0.45], [0.1, 0.9], [0.5, 0.5]])
    masks_NHW = torch.tensor([[[True, True, False]], [[False, True, False]], [[False, False, True]]])
    chosen = best_masks(votes_NC, classes=("cat", "dog"))
    assert chosen == [0, 1]
    assert paint_hard(votes_NC[chosen], masks_NHW[chosen]).tolist() == [[0, 1, IGNORE]]
    assert paint_hard(votes_NC, masks_NHW).tolist() == [[0, 1, 0]]


# --- long lists -------------------------------------------------------------------------------------------------------


def test_hundreds_of_classes_and_dozens_of_masks_give_the_map_of_the_plain_sum() -> None:
    generator = torch.Generator().manual_seed(0)
    votes_NC = (20 * torch.randn(40, 300, generator=generator)).softmax(dim=1)
    coarse_Nhw = torch.rand(1, 40, 3, 4, generator=generator)
    soft_Nhw = interpolate(coarse_Nhw, size=(9, 12), mode="bilinear")[0]
    sums_chw = torch.einsum("nc,nhw->chw", votes_NC, soft_Nhw)
    plain_CHW = interpolate(sums_chw[None], size=(37, 50), mode="bilinear")[0]
    assert torch.equal(paint_soft(votes_NC, soft_Nhw, size_px=(37, 50)), plain_CHW.argmax(dim=0))
    masks_NHW = interpolate(soft_Nhw[None], size=(37, 50))[0] > 0.7
    hard_CHW = torch.einsum("nc,nhw->chw", votes_NC, masks_NHW.float())
    wanted_HW = torch.where(masks_NHW.any(dim=0), hard_CHW.argmax(dim=0), IGNORE)
    assert torch.equal(paint_hard(votes_NC, masks_NHW), wanted_HW)
    assert len(wanted_HW.unique()) > 5  # or anything would do
