"""Filters of proposals: the laws that hold for any masks, and the rules by hand-drawn ones."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pydantic import ValidationError

from maskmine.mining.proposers import proposals as module
from maskmine.mining.proposers.proposals import (
    Keep,
    Proposals,
    find_changes,
    keep_by_area,
    keep_by_score,
    keep_distinct,
    keep_proposals,
    pairwise_iou,
    sort_by_score,
    take,
)
from maskmine.schemas.mask import Mask, mask_iou

ALL = Keep(min_score=0.0, min_area_px=1, max_area_ratio=1.0, max_iou=1.0)


def proposals(*rows: str, scores: list[float] | None = None, labels: tuple[str | None, ...] | None = None) -> Proposals:
    """One mask a string: lines separated by `/`, `#` for foreground."""
    masks = [[[pixel == "#" for pixel in line] for line in row.split("/")] for row in rows]
    return Proposals(
        torch.tensor(masks, dtype=torch.bool),
        torch.tensor(scores if scores is not None else [1.0] * len(rows)),
        labels or (None,) * len(rows),
    )


def drawn(kept: Proposals) -> list[str]:
    return ["/".join("".join(".#"[pixel] for pixel in line) for line in mask) for mask in kept.masks_NHW.int().tolist()]


@st.composite
def any_proposals(draw: st.DrawFn) -> Proposals:
    """Up to 8 masks of 3 × 4 pixels with few different scores, so that ties and duplicates are common."""
    count = draw(st.integers(0, 8))
    bits = draw(st.lists(st.integers(0, 2**12 - 1), min_size=count, max_size=count))
    masks = [[[bool(b >> (4 * y + x) & 1) for x in range(4)] for y in range(3)] for b in bits]
    scores = draw(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0, float("nan")]), min_size=count, max_size=count))
    labels = draw(st.lists(st.sampled_from([None, "cat", "dog"]), min_size=count, max_size=count))
    return Proposals(torch.tensor(masks).bool().reshape(count, 3, 4), torch.tensor(scores), tuple(labels))


def any_keep() -> st.SearchStrategy[Keep]:
    return st.builds(
        Keep,
        min_score=st.sampled_from([0.0, 0.25, 0.6]),
        min_area_px=st.integers(1, 5),
        min_area_ratio=st.sampled_from([0.0, 0.2]),
        max_area_ratio=st.sampled_from([0.5, 0.9, 1.0]),
        max_iou=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
        top=st.integers(1, 8),
    )


def everyone(p: Proposals) -> list[int]:
    return list(range(len(p)))


def ranked(p: Proposals) -> Proposals:
    """The proposals whose score is a number, best first."""
    areas_px = p.masks_NHW.sum(dim=(1, 2)).tolist()
    return take(p, sort_by_score(p, keep_by_score(p, everyone(p), min_score=0.0), areas_px=areas_px))


def content(p: Proposals) -> list[tuple[float, str, str | None]]:
    return list(zip(p.scores_N.tolist(), drawn(p), p.labels, strict=True))


# --- laws -------------------------------------------------------------------------------------------------------------


@given(any_proposals(), any_keep())
def test_keeping_twice_is_keeping_once(given_: Proposals, keep: Keep) -> None:
    once = keep_proposals(given_, keep=keep)
    assert content(keep_proposals(once, keep=keep)) == content(once)


@given(any_proposals(), any_keep(), st.randoms())
def test_the_order_of_the_input_does_not_matter(given_: Proposals, keep: Keep, random: object) -> None:
    order = list(range(len(given_)))
    random.shuffle(order)  # type: ignore[attr-defined]
    shuffled = Proposals(given_.masks_NHW[order], given_.scores_N[order], tuple(given_.labels[i] for i in order))
    assert content(keep_proposals(shuffled, keep=keep)) == content(keep_proposals(given_, keep=keep))


@given(any_proposals(), any_keep())
def test_what_is_kept_obeys_every_limit(given_: Proposals, keep: Keep) -> None:
    kept = keep_proposals(given_, keep=keep)
    areas_px = kept.masks_NHW.sum(dim=(1, 2)).tolist()
    assert len(kept) <= keep.top
    assert all(max(keep.min_area_px, keep.min_area_ratio * 12) <= a <= keep.max_area_ratio * 12 for a in areas_px)
    assert kept.scores_N.tolist() == sorted(kept.scores_N.tolist(), reverse=True)
    assert all(score >= keep.min_score for score in kept.scores_N.tolist())
    iou_NN = pairwise_iou(kept.masks_NHW, everyone(kept)).fill_diagonal_(0)
    assert bool((iou_NN <= keep.max_iou).all())


@given(any_proposals(), st.floats(0, 1))
def test_duplicate_removal_never_drops_the_best_mask(given_: Proposals, max_iou: float) -> None:
    best_first = ranked(given_)
    assert keep_distinct(best_first, everyone(best_first), max_iou=max_iou)[:1] == everyone(best_first)[:1]


@given(any_proposals(), st.floats(0, 1))
def test_what_duplicate_removal_drops_overlaps_a_better_mask(given_: Proposals, max_iou: float) -> None:
    best_first = ranked(given_)
    kept = keep_distinct(best_first, everyone(best_first), max_iou=max_iou)
    iou_NN = pairwise_iou(best_first.masks_NHW, everyone(best_first))
    for dropped in set(everyone(best_first)) - set(kept):
        assert any(iou_NN[dropped, i] > max_iou for i in kept if i < dropped)


@given(any_proposals(), st.data())
def test_iou_is_that_of_the_run_lengths(given_: Proposals, data: st.DataObject) -> None:
    numbers = data.draw(st.permutations(everyone(given_)))[: data.draw(st.integers(0, 8))]
    masks = Mask.from_arrays(given_.masks_NHW.numpy()[numbers])
    iou_RR = pairwise_iou(given_.masks_NHW, numbers).numpy()
    assert np.allclose(iou_RR, mask_iou(masks, masks), rtol=0, atol=1e-12)


@given(any_proposals(), st.floats(0, 1), st.integers(1, 4))
def test_run_lengths_and_pixels_keep_the_same(given_: Proposals, max_iou: float, at_once: int) -> None:
    iou_NN = pairwise_iou(given_.masks_NHW, everyone(given_)).numpy()
    kept: list[int] = []
    for rank in everyone(given_):
        if not (iou_NN[rank, kept] > max_iou).any():
            kept.append(rank)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_COMPARED_AT_ONCE", at_once)
        assert keep_distinct(given_, everyone(given_), max_iou=max_iou) == kept


@given(hnp.arrays(np.bool_, hnp.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=12)), st.data())
def test_where_masks_change_says_all_of_their_run_lengths(arrays_NHW: np.ndarray, data: st.DataObject) -> None:
    numbers = data.draw(st.permutations(range(len(arrays_NHW))))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_MAX_ENCODED_PX", data.draw(st.integers(1, arrays_NHW.size)))
        masks = find_changes(torch.from_numpy(arrays_NHW), numbers)()
    assert masks == Mask.from_arrays(arrays_NHW[numbers])


def test_long_runs_are_written_as_coco_writes_them() -> None:
    masks_NHW = torch.zeros(4, 3000, 2999, dtype=torch.bool)  # none, all, one pixel far down, halves of two columns
    masks_NHW[1] = masks_NHW[2, 2990, 2990] = masks_NHW[3, 1500:, 7:9] = True
    assert find_changes(masks_NHW, range(4))() == Mask.from_arrays(masks_NHW.numpy())


def test_where_masks_change_does_not_hold_their_pixels_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[weakref.ref[torch.Tensor]] = []
    find = module._down_the_columns

    def noted(changed_nHW: torch.Tensor) -> Any:
        alive.append(weakref.ref(changed_nHW))
        return find(changed_nHW)

    monkeypatch.setattr(module, "_down_the_columns", noted)
    masks = find_changes(torch.ones(2, 5, 7, dtype=torch.bool), range(2))
    held = [cell.cell_contents for cell in masks.__closure__ or ()]
    (changes,) = held[0]
    assert [one() for one in alive] == [None]
    assert changes.begins_n.base is None
    assert changes.changes.base is None


def test_many_proposals_are_compared_by_their_outlines_not_by_their_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "pairwise_iou", None)
    assert len(keep_distinct(proposals("##.", ".##"), [0, 1], max_iou=0.5)) == 2


def test_iou_does_not_depend_on_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    masks_NHW = torch.rand(5, 37, 41, generator=torch.Generator().manual_seed(0)) > 0.4
    whole = pairwise_iou(masks_NHW, range(5))
    monkeypatch.setattr(module, "_CHUNK_VALUES", 64)
    assert torch.equal(pairwise_iou(masks_NHW, range(5)), whole)


# --- rules ------------------------------------------------------------------------------------------------------------


def test_nothing_in_nothing_out() -> None:
    none = Proposals(torch.zeros(0, 3, 4, dtype=torch.bool), torch.zeros(0), ())
    assert len(keep_proposals(none, keep=Keep())) == 0
    assert keep_proposals(none, keep=Keep()).masks_NHW.shape == (0, 3, 4)


def test_empty_masks_are_always_dropped() -> None:
    masks = proposals("../..", "#./..")
    assert drawn(keep_proposals(masks, keep=ALL)) == ["#./.."]
    assert keep_by_area([0, 1], areas_px=[0, 1], min_area_px=0, max_area_px=4) == [1]


def test_the_larger_of_the_two_least_areas_counts() -> None:
    masks = proposals("#.../....", "##../....", "###./....", scores=[0.9, 0.8, 0.7])
    small = ALL.model_copy(update={"min_area_px": 2, "min_area_ratio": 0.125})
    large = ALL.model_copy(update={"min_area_px": 2, "min_area_ratio": 0.3})
    assert drawn(keep_proposals(masks, keep=small)) == ["##../....", "###./...."]
    assert drawn(keep_proposals(masks, keep=large)) == ["###./...."]


def test_both_ends_of_the_area_are_kept() -> None:
    assert keep_by_area([0, 3, 2, 1], areas_px=[1, 2, 3, 4], min_area_px=2, max_area_px=3) == [2, 1]


def test_the_least_score_itself_is_kept_and_no_number_is_not() -> None:
    masks = proposals("#.", ".#", "##", scores=[0.5, float("nan"), 0.25])
    assert keep_by_score(masks, [2, 1, 0], min_score=0.5) == [0]
    assert keep_by_score(masks, [2, 1, 0], min_score=0.0) == [2, 0]


def test_equal_scores_go_by_area_then_reading_order_then_label() -> None:
    masks = proposals(
        "..#/#..", "#../..#", "#../.#.", "###/...", "#../.#.", labels=("a", "b", "d", "e", "c")
    )  # fmt: skip
    assert ranked(masks).labels == ("e", "c", "d", "b", "a")


def test_of_two_duplicates_the_better_stays() -> None:
    masks = proposals("###.", "####", "...#")
    assert keep_distinct(masks, [0, 1, 2], max_iou=0.75) == [0, 1, 2]
    assert keep_distinct(masks, [0, 1, 2], max_iou=0.74) == [0, 2]
    assert keep_distinct(masks, [1, 0, 2], max_iou=0.74) == [1, 2]


def test_a_mask_dropped_as_duplicate_drops_no_other() -> None:
    chain = proposals("###...", ".###..", "..###.")
    assert keep_distinct(chain, [0, 1, 2], max_iou=0.3) == [0, 2]


def test_only_the_best_are_taken_with_their_scores_and_labels() -> None:
    masks = proposals("#..", ".#.", "..#", scores=[0.25, 0.75, 0.5], labels=("a", "b", "c"))
    kept = keep_proposals(masks, keep=ALL.model_copy(update={"top": 2}))
    assert content(kept) == [(0.75, ".#.", "b"), (0.5, "..#", "c")]


def test_masks_that_all_stay_are_not_copied() -> None:
    masks = proposals("##.", "..#", scores=[0.9, 0.8])
    assert keep_proposals(masks, keep=ALL).masks_NHW is masks.masks_NHW


@pytest.mark.parametrize(
    "wrong", [{"top": 0}, {"max_iou": 1.5}, {"min_area_px": 0}, {"min_area_ratio": 0.9, "max_area_ratio": 0.5}]
)
def test_limits_that_keep_nothing_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        Keep.model_validate(wrong)


def test_masks_of_large_pictures_are_copied_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    masks, counts, encode = proposals("#../#..", ".#./.#.", "..#/..#"), list[int](), Mask.from_arrays

    def counted(arrays_NHW: np.ndarray[Any, Any]) -> list[Mask]:
        counts.append(len(arrays_NHW))
        return encode(arrays_NHW)

    monkeypatch.setattr(Mask, "from_arrays", counted)
    assert keep_distinct(masks, [0, 1, 2], max_iou=0.5) == [0, 1, 2]
    monkeypatch.setattr(module, "_MAX_ENCODED_PX", 11)  # of 6 each
    assert keep_distinct(masks, [0, 1, 2], max_iou=0.5) == [0, 1, 2]
    assert counts == [3, 1, 1, 1]
