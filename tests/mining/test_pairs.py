"""The matching rules, on matrices whose answer is known by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mining.embeddings import pack
from mining.pairs import ClipPairs, LabelPairs, choose_regions, cosine_similarity, first_mentions, softmax_over_nouns
from schemas.errors import InputError
from schemas.mask import Mask
from schemas.rows import Noun, NounsRow, Region, RegionsRow, Rejection

SIMILARITY_KR = np.array([[0.9, 0.2, 0.1], [0.8, 0.7, 0.1]])
MATRICES = hnp.arrays(
    np.float64,
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=5),
    elements=st.floats(-1, 1).map(lambda value: round(value, 3)),
)


def noun(text: str, *, caption: int = 0, start: int = 0) -> Noun:
    return Noun(text, text.removesuffix("s"), caption, start, start + len(text))


def region(label: str | None, *, area: int = 4, vector: list[float] | None = None) -> Region:
    packed = pack(np.array(vector)) if vector else None
    return Region(Mask(4, 4, b""), (0, 0, 2, 2), area, 1.0, label, packed)


def rows(nouns: list[Noun], regions: list[Region]) -> tuple[list[NounsRow], list[RegionsRow]]:
    return [NounsRow("1", tuple(nouns), (), None)], [RegionsRow("1", "", 4, 4, tuple(regions), None)]


def test_the_papers_rule_takes_the_best_region_of_each_noun_even_twice() -> None:
    assert choose_regions(SIMILARITY_KR, rule="best_region_per_noun", score="cosine") == [(0, 0), (1, 0)]


def test_mutual_best_keeps_a_noun_only_where_it_is_the_regions_best() -> None:
    assert choose_regions(SIMILARITY_KR, rule="mutual_best", score="cosine") == [(0, 0)]


def test_one_to_one_gives_each_region_away_once_for_the_highest_total() -> None:
    assert choose_regions(SIMILARITY_KR, rule="one_to_one", score="cosine") == [(0, 0), (1, 1)]


def test_one_to_one_leaves_nouns_without_a_region_when_regions_run_out() -> None:
    assert choose_regions(np.array([[0.3], [0.6], [0.1]]), rule="one_to_one", score="cosine") == [(1, 0)]


def test_the_softmax_prefers_the_region_that_the_other_nouns_do_not_fit() -> None:
    assert choose_regions(SIMILARITY_KR, rule="best_region_per_noun", score="softmax") == [(0, 0), (1, 1)]


@given(MATRICES)
def test_the_softmax_sums_to_one_over_the_nouns(similarity_KR: np.ndarray) -> None:
    np.testing.assert_allclose(softmax_over_nouns(similarity_KR).sum(axis=0), 1, atol=1e-6)


@given(MATRICES)
def test_every_rule_chooses_a_part_of_the_best_or_assigns_without_repeats(similarity_KR: np.ndarray) -> None:
    best = choose_regions(similarity_KR, rule="best_region_per_noun", score="cosine")
    assert [k for k, _ in best] == list(range(len(similarity_KR)))
    assert all(similarity_KR[k, r] == similarity_KR[k].max() for k, r in best)
    assert set(choose_regions(similarity_KR, rule="mutual_best", score="cosine")) <= set(best)
    assigned = choose_regions(similarity_KR, rule="one_to_one", score="cosine")
    assert len({r for _, r in assigned}) == len(assigned) == min(similarity_KR.shape)


def test_the_cosine_ignores_length() -> None:
    assert cosine_similarity(np.array([[3.0, 0.0]]), np.array([[2.0, 0.0], [0.0, 5.0]])).tolist() == [[1.0, 0.0]]


def test_similarity_margin_and_rank_of_a_pair() -> None:
    nouns, regions = rows(
        [noun("cat"), noun("dog")], [region(None, vector=[1.0, 0.0]), region(None, vector=[0.6, 0.8])]
    )
    text = {"cat": pack(np.array([1.0, 0.0])), "dog": pack(np.array([0.8, 0.6]))}
    (row,) = ClipPairs().open()(nouns, regions, text)
    found = [(p.noun, p.region, p.similarity, p.margin, p.rank) for p in row.pairs]
    assert [(f[0], f[1], f[4]) for f in found] == [("cat", 0, 0), ("dog", 1, 0)]
    assert [f[2:4] for f in found] == [pytest.approx((1.0, 0.4), abs=2e-3), pytest.approx((0.96, 0.16), abs=2e-3)]


def test_a_single_region_has_the_margin_above_the_least_cosine() -> None:
    nouns, regions = rows([noun("cat")], [region(None, vector=[1.0, 0.0])])
    (row,) = ClipPairs().open()(nouns, regions, {"cat": pack(np.array([0.0, 1.0]))})
    assert [(p.similarity, p.margin) for p in row.pairs] == [(0.0, 1.0)]


def test_an_assigned_region_that_is_not_the_nouns_best_has_a_negative_margin() -> None:
    nouns, regions = rows(
        [noun("cat"), noun("dog")], [region(None, vector=[1.0, 0.0]), region(None, vector=[0.0, 1.0])]
    )
    text = {"cat": pack(np.array([1.0, 0.1])), "dog": pack(np.array([1.0, 0.2]))}
    (row,) = ClipPairs(rule="one_to_one").open()(nouns, regions, text)
    assert [(p.noun, p.region) for p in row.pairs] == [("cat", 0), ("dog", 1)]
    assert row.pairs[1].margin is not None
    assert row.pairs[1].margin < 0


def test_a_noun_said_twice_is_one_pair_at_its_first_mention() -> None:
    mentions = [noun("cat", start=4), noun("dog"), noun("cat", caption=1)]
    assert first_mentions(mentions) == mentions[:2]


def test_clip_rules_without_embeddings_name_the_setting() -> None:
    nouns, regions = rows([noun("cat")], [region("cat")])
    with pytest.raises(InputError, match=r"regions\.clip"):
        ClipPairs().open()(nouns, regions, {})


def test_labels_take_the_largest_region_that_the_noun_names() -> None:
    nouns, regions = rows([noun("cats"), noun("dog")], [region("cat", area=3), region("cat", area=9), region("car")])
    (row,) = LabelPairs(rule="labels").open()(nouns, regions, {})
    assert [(p.noun, p.region, p.similarity, p.margin, p.rank) for p in row.pairs] == [("cats", 1, None, None, 0)]


def test_labels_can_take_all_regions_largest_first() -> None:
    nouns, regions = rows([noun("cat")], [region("cat", area=3), region("cat", area=9)])
    (row,) = LabelPairs(rule="labels", take="all").open()(nouns, regions, {})
    assert [(p.region, p.rank) for p in row.pairs] == [(1, 0), (0, 1)]


def test_an_image_without_a_named_label_is_no_match_and_says_which_labels_there_were() -> None:
    nouns, regions = rows([noun("zebra")], [region("cat"), region("car")])
    (row,) = LabelPairs(rule="labels").open()(nouns, regions, {})
    assert row.rejection == Rejection("no_match", "no noun names one of: car, cat")


def test_an_image_rejected_before_has_no_pairs_and_no_second_rejection() -> None:
    nouns = [NounsRow("1", (), (), Rejection("no_nouns"))]
    _, regions = rows([], [region("cat")])
    for settings in (LabelPairs(rule="labels"), ClipPairs()):
        (row,) = settings.open()(nouns, regions, {})
        assert (row.pairs, row.rejection) == ((), None)
