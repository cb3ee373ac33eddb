"""Pairs against ground truth: outcomes of masks whose overlap is known, and the metrics over them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy.stats import binomtest

from maskmine.mining.evaluation.annotations import AnnotatedObject
from maskmine.mining.evaluation.pair_matching import ImageMatches, MatchOutcome, MentionMatch, PairMatch, match_image
from maskmine.mining.evaluation.pair_metrics import SCORES, PairMetrics, ScoreCounts, at_least, thin, wilson_interval
from maskmine.mining.pairs import ClipPairs
from maskmine.mining.selection import keep_pair
from maskmine.mining.text.labels import load_synonyms, open_naming
from maskmine.pipelines.evaluate.pairs import find_curves
from maskmine.pipelines.reports.charts import SERIES
from maskmine.schemas.mask import Mask
from maskmine.schemas.rows import Noun, NounsRow, Pair, Region, RegionsRow
from tests.support.paths import ROOT

SIDE_PX = 10


def block(columns: slice, rows: slice = slice(None)) -> Mask:
    """A mask of whole columns of a picture of 10 × 10 pixels, or of some of their rows."""
    mask_HW = np.zeros((SIDE_PX, SIDE_PX), np.uint8)
    mask_HW[rows, columns] = 1
    return Mask.from_array(mask_HW)


def pair(noun: str, *, region: int = 0, similarity: float | None = None, margin: float | None = None) -> Pair:
    return Pair(
        noun=noun,
        lemma=noun.removesuffix("s"),
        caption=0,
        start=0,
        end=len(noun),
        region=region,
        similarity=similarity,
        margin=margin,
        rank=0,
    )


def matched(
    noun: str, mask: Mask, *objects: tuple[str, Mask] | tuple[str, Mask, bool], synonyms: str | None = None
) -> ImageMatches:
    """One pair matched with the objects of an image, where `dog`, `cat` and `person` are categories."""
    said = NounsRow("1", (Noun(text=noun, lemma=noun.removesuffix("s"), caption=0, start=0, end=len(noun)),), (), None)
    seen = RegionsRow(
        image_id="1",
        sha256="",
        height_px=SIDE_PX,
        width_px=SIDE_PX,
        regions=(
            Region(mask=mask, box_xyxy=mask.box_xyxy, area_px=mask.area_px, score=1.0, label=None, embedding=None),
        ),
        rejection=None,
    )
    there = [AnnotatedObject(one[0], one[1], crowd=len(one) > 2) for one in objects]
    naming = open_naming(("cat", "dog", "person"), load_synonyms(synonyms))
    return match_image(said, seen, [pair(noun)], objects=there, naming=naming)


def outcome(*args: Any, **options: Any) -> MatchOutcome:
    return matched(*args, **options).pairs[0].outcome


def test_a_pair_is_right_from_an_iou_of_one_half_on() -> None:
    object_40px = ("dog", block(slice(0, 4)))
    assert outcome("dog", block(slice(0, 2)), object_40px) == "correct"
    (just_below,) = matched("dog", block(slice(0, 2), slice(0, 9)), object_40px).pairs
    assert (just_below.outcome, just_below.iou) == ("background", 18 / 40)


def test_a_plural_is_right_for_one_of_its_objects_and_for_all_of_them_together() -> None:
    dogs = [("dog", block(slice(0, 2))), ("dog", block(slice(4, 6))), ("dog", block(slice(8, 10)))]
    assert outcome("dogs", block(slice(4, 6)), *dogs) == "correct"
    all_but_rows = Mask.from_array(np.max([mask.to_array() for _, mask in dogs], axis=0))
    assert outcome("dogs", all_but_rows, *dogs) == "correct"
    assert outcome("dogs", block(slice(0, 10)), *dogs) == "correct"  # 60 of 100 pixels
    assert outcome("dogs", block(slice(2, 4)), *dogs) == "background"


def test_the_mask_of_something_else_is_told_from_the_mask_of_nothing() -> None:
    cat, dog = ("cat", block(slice(0, 3))), ("dog", block(slice(5, 8)))
    assert outcome("dog", block(slice(0, 3)), cat, dog) == "wrong_object"
    assert outcome("dog", block(slice(8, 10)), cat, dog) == "background"
    cats = [("cat", block(slice(0, 1))), ("cat", block(slice(2, 3)))]
    assert outcome("dog", block(slice(0, 3)), dog, *cats) == "wrong_object"  # that of all cats


def test_a_noun_whose_object_is_not_in_the_image_cannot_be_right_and_is_no_mention_to_find() -> None:
    found = matched("dog", block(slice(0, 3)), ("cat", block(slice(0, 3))))
    assert [(one.outcome, one.without_object) for one in found.pairs] == [("wrong_object", True)]
    assert found.mentions == ()


def test_a_mask_within_a_crowd_is_neither_right_nor_wrong_and_that_of_the_crowd_is_right() -> None:
    crowd = ("person", block(slice(0, 8)), True)
    inside, across = matched("person", block(slice(0, 3)), crowd), block(slice(6, 10))
    assert inside.pairs[0].outcome == "crowd"
    assert inside.mentions == ()
    assert outcome("person", block(slice(0, 8)), crowd) == "correct"
    assert outcome("person", across, crowd) == "background"  # only half of it
    assert outcome("dog", block(slice(0, 3)), crowd) == "background"
    one_more = ("person", block(slice(9, 10)))
    assert [mention.recalled for mention in matched("person", block(slice(0, 3)), crowd, one_more).mentions] == [False]


def test_a_mention_is_found_when_one_of_its_pairs_is_right() -> None:
    dog = ("dog", block(slice(0, 3)))
    assert [mention.recalled for mention in matched("dog", block(slice(0, 3)), dog).mentions] == [True]
    assert [mention.recalled for mention in matched("dog", block(slice(5, 9)), dog).mentions] == [False]


@pytest.mark.parametrize(
    ("text", "lemma", "categories"),
    [
        ("dogs", "dog", {"dog"}),
        ("hot dogs", "hot dog", {"hot dog"}),  # and no dog
        ("oxen", "ox", {"ox"}),  # the table lists it under cow
        ("bulls", "bull", {"cow"}),
        ("sheep dog", "sheep dog", {"dog"}),
        ("glasses", "glass", {"glasses"}),  # the text comes before the lemma
        ("sunshine", "sunshine", set()),
    ],
)
def test_a_noun_that_is_a_category_names_that_one_alone(text: str, lemma: str, categories: set[str]) -> None:
    naming = open_naming(("cow", "dog", "glass", "glasses", "hot dog", "ox"), load_synonyms("coco"))
    assert naming(text, lemma) == categories


# What precision is made of


@given(of=st.integers(1, 2000), share=st.floats(0, 1))
def test_the_interval_is_scipys_wilson_interval(of: int, share: float) -> None:
    count = round(share * of)
    expected = binomtest(count, of).proportion_ci(0.95, method="wilson")
    assert wilson_interval(count, of=of) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_of_nothing_anything_can_be_true() -> None:
    assert wilson_interval(0, of=0) == (0.0, 1.0)


# With six digits as in the cells; often close together, and on the thresholds' own steps.
MILLIONTHS = st.integers(-1_000_000, 1_000_000) | st.integers(-30, 30).map(lambda steps: 50 * steps)
SCORE_VALUES = MILLIONTHS.map(lambda millionths: millionths / 1_000_000)
SCORED = st.lists(st.tuples(SCORE_VALUES, st.booleans()), min_size=1, max_size=40)


@given(SCORED)
def test_coverage_rises_to_one_where_precision_is_that_of_all_pairs(scored: list[tuple[float, bool]]) -> None:
    counts = ScoreCounts()
    for score, right in scored:
        counts.add(score, correct=right)
    curve = counts.curve()
    coverage = [point.coverage for point in curve]
    assert coverage == sorted(set(coverage))
    assert coverage[-1] == 1
    assert curve[-1].precision.value == sum(right for _, right in scored) / len(scored)


@given(SCORED)
@example([(-0.523901, True), (-0.5239, True)])  # times a million the first is a little more than a whole number
def test_a_threshold_of_the_curve_keeps_just_its_pairs_when_it_is_set(scored: list[tuple[float, bool]]) -> None:
    counts = ScoreCounts()
    for score, right in scored:
        counts.add(score, correct=right)
    for point in counts.curve():
        keep = keep_pair(ClipPairs(min_similarity=point.threshold), images_of_noun={"dog": 1}, last_kept={})
        kept = [right for score, right in scored if keep("1", 0, pair("dog", similarity=score, margin=0.0))]
        assert (len(kept), sum(kept)) == (point.kept, point.correct)


@given(SCORED, st.integers(1, 10))
def test_a_thinned_curve_has_at_most_so_many_points_and_ends_where_the_whole_does(
    scored: list[tuple[float, bool]], most: int
) -> None:
    counts = ScoreCounts()
    for score, right in scored:
        counts.add(score, correct=right)
    curve, thinned = counts.curve(), thin(counts.curve(), max_points=most)
    assert len(thinned) <= most
    assert thinned[-1] == curve[-1]
    assert set(thinned) <= set(curve)


def test_the_point_that_keeps_enough_has_the_highest_such_threshold() -> None:
    counts = ScoreCounts()
    for score, right in ((0.9, True), (0.7, True), (0.7, False), (0.2, False)):
        counts.add(score, correct=right)
    half = at_least(counts.curve(), kept=2)
    assert half is not None
    assert (half.threshold, half.kept, half.correct) == (0.7, 3, 2)
    assert at_least(counts.curve(), kept=5) is None


JUDGED = st.builds(
    lambda noun, outcome, iou, score: PairMatch(pair(noun, similarity=score, margin=score / 2), outcome, iou, False),
    st.sampled_from(["dog", "cat", "sun"]),
    st.sampled_from(["correct", "wrong_object", "background", "crowd", "unlabelled"]),
    st.floats(0, 1),
    SCORE_VALUES,
)
IMAGES = st.lists(
    st.builds(
        lambda pairs, found: ImageMatches(
            tuple(pairs),
            tuple(MentionMatch(Noun(text="dog", lemma="dog", caption=0, start=0, end=3), one) for one in found),
        ),
        st.lists(JUDGED, max_size=4),
        st.lists(st.booleans(), max_size=2),
    ),
    max_size=8,
)


def counted(images: list[ImageMatches]) -> PairMetrics:
    metrics = PairMetrics()
    for image in images:
        metrics.add(image, groups_of=lambda text, lemma: (text[0],))
    return metrics


@given(IMAGES, st.randoms(use_true_random=False))
def test_the_order_of_images_does_not_matter(images: list[ImageMatches], random: Any) -> None:
    shuffled = list(images)
    random.shuffle(shuffled)
    assert counted(shuffled) == counted(images)


@given(IMAGES)
def test_nouns_that_the_truth_does_not_know_and_crowds_change_neither_precision_nor_curves(
    images: list[ImageMatches],
) -> None:
    known = [
        replace(image, pairs=tuple(one for one in image.pairs if one.outcome not in ("unlabelled", "crowd")))
        for image in images
    ]
    metrics, without = counted(images), counted(known)
    assert metrics.share("correct") == without.share("correct")
    assert metrics.scores == without.scores
    assert metrics.groups == without.groups
    assert metrics.labelled == sum(len(image.pairs) for image in known)


@given(IMAGES)
def test_among_all_pairs_a_noun_that_the_truth_does_not_know_is_wrong_and_crowds_are_left_out(
    images: list[ImageMatches],
) -> None:
    decided = [one for image in images for one in image.pairs if one.outcome != "crowd"]
    metrics = counted(images)
    precision = metrics.precision_of_all
    assert (precision.count, precision.of) == (sum(one.outcome == "correct" for one in decided), len(decided))
    for score in SCORES:
        curve = metrics.scores_of_all[score].curve()
        assert [(point.kept, point.correct) for point in curve[-1:]] == [(len(decided), precision.count)][: len(curve)]


@given(SCORED, st.integers(1, 20), st.integers(1, 10))
def test_pairs_without_a_score_are_never_kept_and_count_in_coverage(
    scored: list[tuple[float, bool]], others: int, most: int
) -> None:
    counts = ScoreCounts()
    for score, right in scored:
        counts.add(score, correct=right)
    for _ in range(others):
        counts.add(None, correct=True)
    curve = counts.curve()
    assert curve[-1].coverage == len(scored) / (len(scored) + others)
    assert curve[-1].correct == sum(right for _, right in scored)
    thinned = thin(curve, max_points=most)
    assert thinned[-1] == curve[-1]
    assert len(thinned) <= most


def test_a_score_that_no_pair_has_makes_no_curve_and_one_that_few_have_keeps_these() -> None:
    matches = [
        PairMatch(pair("dog", similarity=similarity), outcome, 1.0, False)
        for similarity, outcome in ((0.9, "correct"), (0.8, "unlabelled"), (None, "correct"), (None, "correct"))
    ]
    of_all, known, why = find_curves(counted([ImageMatches((*matches, matches[-1]), ())]))
    assert why is None
    assert [curve.score for curve in of_all] == ["similarity"]
    assert (of_all[0].half.kept, of_all[0].half.pairs) == (2, 5)
    assert [point.kept for point in known[0].points] == [1]


def test_pages_have_a_colour_for_the_curve_of_every_score() -> None:
    for style in ("pipelines/reports/data/report_style.css", "scripts/data/demo_page.html.j2"):
        text = (ROOT / style).read_text()
        for number in range(1, len(SCORES) + 1):
            assert text.count(f"--series-{number}: ") == 2  # light and dark
    assert len(SERIES) >= len(SCORES)
