"""The matching rules, on matrices whose answer is known by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from maskmine.mining.models.embeddings import pack
from maskmine.mining.pairs import (
    ClipPairs,
    LabelPairs,
    TextSide,
    choose_regions,
    cosine_similarity,
    odds_over_nouns,
)
from maskmine.mining.text.units import first_mentions
from maskmine.schemas.errors import InputError
from maskmine.schemas.mask import Mask
from maskmine.schemas.rows import Noun, NounsRow, Region, RegionsRow, Rejection

SIMILARITY_KR = np.array([[0.9, 0.2, 0.1], [0.8, 0.7, 0.1]])
MATRICES = hnp.arrays(
    np.float64,
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=5),
    elements=st.floats(-1, 1).map(lambda value: round(value, 3)),
)


def noun(text: str, *, caption: int = 0, start: int = 0) -> Noun:
    return Noun(text=text, lemma=text.removesuffix("s"), caption=caption, start=start, end=start + len(text))


def region(label: str | None, *, area: int = 4, vector: list[float] | None = None) -> Region:
    packed = pack(np.array(vector)) if vector else None
    return Region(mask=Mask(4, 4, b""), box_xyxy=(0, 0, 2, 2), area_px=area, score=1.0, label=label, embedding=packed)


def rows(nouns: list[Noun], regions: list[Region]) -> tuple[list[NounsRow], list[RegionsRow]]:
    return [NounsRow("1", tuple(nouns), (), None)], [
        RegionsRow(image_id="1", sha256="", height_px=4, width_px=4, regions=tuple(regions), rejection=None)
    ]


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
def test_the_odds_are_those_of_the_softmax_over_the_nouns(similarity_KR: np.ndarray) -> None:
    if len(similarity_KR) < 2:
        return
    exponentials_KR = np.exp(100 * (similarity_KR - similarity_KR.max(axis=0)))
    softmax_KR = exponentials_KR / exponentials_KR.sum(axis=0)
    np.testing.assert_allclose(1 / (1 + np.exp(-odds_over_nouns(similarity_KR))), softmax_KR, atol=1e-6)


@pytest.mark.parametrize(
    ("similarity_KR", "region"),
    [
        ([[0.20, 0.25, 0.22], [0.90, 0.85, 0.99]], 1),  # nowhere the likeliest: each probability rounds to 0
        ([[0.60, 0.70, 0.95], [0.10, 0.10, 0.10]], 2),  # everywhere the likeliest: each rounds to 1
        ([[0.20, 0.21, 0.30]], 2),  # a noun alone: each is 1
    ],
)
def test_the_softmax_chooses_before_it_is_rounded(similarity_KR: list[list[float]], region: int) -> None:
    chosen = choose_regions(np.array(similarity_KR), rule="best_region_per_noun", score="softmax")
    assert chosen[0] == (0, region)


def test_a_noun_alone_takes_its_most_similar_region_by_every_rule_and_score() -> None:
    for rule, score in itertools.product(("best_region_per_noun", "mutual_best", "one_to_one"), ("cosine", "softmax")):
        assert choose_regions(np.array([[0.2, 0.21, 0.3, 0.1]]), rule=rule, score=score) == [(0, 2)]


@given(MATRICES)
def test_by_softmax_each_noun_takes_the_region_that_favours_it_most_over_the_other_nouns(
    similarity_KR: np.ndarray,
) -> None:
    for k, r in choose_regions(similarity_KR, rule="best_region_per_noun", score="softmax"):
        others_KR = 100 * (np.delete(similarity_KR, k, axis=0) - similarity_KR[k])
        against_R = np.log(np.exp(others_KR).sum(axis=0)) if len(others_KR) else -similarity_KR[k]
        assert against_R[r] <= against_R.min() + 2e-6


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
    (row,) = ClipPairs().open()(nouns, regions, TextSide(text))
    found = [(p.noun, p.region, p.similarity, p.margin, p.rank) for p in row.pairs]
    assert [(f[0], f[1], f[4]) for f in found] == [("cat", 0, 0), ("dog", 1, 0)]
    assert [f[2:4] for f in found] == [pytest.approx((1.0, 0.4), abs=2e-3), pytest.approx((0.96, 0.16), abs=2e-3)]


def test_a_single_region_has_the_margin_above_the_least_cosine() -> None:
    nouns, regions = rows([noun("cat")], [region(None, vector=[1.0, 0.0])])
    (row,) = ClipPairs().open()(nouns, regions, TextSide({"cat": pack(np.array([0.0, 1.0]))}))
    assert [(p.similarity, p.margin) for p in row.pairs] == [(0.0, 1.0)]


def test_an_assigned_region_that_is_not_the_nouns_best_has_a_negative_margin() -> None:
    nouns, regions = rows(
        [noun("cat"), noun("dog")], [region(None, vector=[1.0, 0.0]), region(None, vector=[0.0, 1.0])]
    )
    text = {"cat": pack(np.array([1.0, 0.1])), "dog": pack(np.array([1.0, 0.2]))}
    (row,) = ClipPairs(rule="one_to_one").open()(nouns, regions, TextSide(text))
    assert [(p.noun, p.region) for p in row.pairs] == [("cat", 0), ("dog", 1)]
    assert row.pairs[1].margin is not None
    assert row.pairs[1].margin < 0


def test_a_noun_said_twice_is_one_pair_at_its_first_mention() -> None:
    mentions = [noun("cat", start=4), noun("dog"), noun("cat", caption=1)]
    assert first_mentions(mentions) == mentions[:2]


def test_clip_rules_without_embeddings_name_the_setting() -> None:
    nouns, regions = rows([noun("cat")], [region("cat")])
    with pytest.raises(InputError, match=r"regions\.clip"):
        ClipPairs().open()(nouns, regions, TextSide({}))


def test_labels_take_the_largest_region_that_the_noun_names() -> None:
    nouns, regions = rows([noun("cats"), noun("dog")], [region("cat", area=3), region("cat", area=9), region("car")])
    (row,) = LabelPairs(rule="labels").open()(nouns, regions, TextSide({}))
    assert [(p.noun, p.region, p.similarity, p.margin, p.rank) for p in row.pairs] == [("cats", 1, None, None, 0)]


def test_labels_can_take_all_regions_largest_first() -> None:
    nouns, regions = rows([noun("cat")], [region("cat", area=3), region("cat", area=9)])
    (row,) = LabelPairs(rule="labels", take="all").open()(nouns, regions, TextSide({}))
    assert [(p.region, p.rank) for p in row.pairs] == [(1, 0), (0, 1)]


def test_an_image_without_a_named_label_is_no_match_and_says_which_labels_there_were() -> None:
    nouns, regions = rows([noun("zebra")], [region("cat"), region("car")])
    (row,) = LabelPairs(rule="labels").open()(nouns, regions, TextSide({}))
    assert row.rejection == Rejection("no_match", "no noun names one of: car, cat")


def test_an_image_rejected_before_has_no_pairs_and_no_second_rejection() -> None:
    nouns = [NounsRow("1", (), (), Rejection("no_nouns"))]
    _, regions = rows([], [region("cat")])
    for settings in (LabelPairs(rule="labels"), ClipPairs()):
        (row,) = settings.open()(nouns, regions, TextSide({}))
        assert (row.pairs, row.rejection) == ((), None)
