"""What a noun's similarities mean, on images whose answer is known by hand or by a plain loop."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskmine.mining.levels import CommonLevels, Levels, measure_levels, measure_new_levels
from maskmine.mining.models.embeddings import pack
from maskmine.mining.pairs import ClipPairs, TextSide
from maskmine.mining.scores import statistics
from maskmine.mining.scores.features import FEATURES, Scorer, feature_matrix
from maskmine.mining.scores.scale import LevelScale
from maskmine.mining.scores.statistics import count_noun
from maskmine.schemas.mask import Mask
from maskmine.schemas.rows import LevelRow, Noun, NounsRow, Pair, Region, RegionsRow, VocabularyRow

DIM = 16


def direction(word: str) -> np.ndarray:
    """A unit vector that stands for a word."""
    vector = np.random.default_rng(sum(map(ord, word))).normal(size=DIM)
    return vector / np.linalg.norm(vector)


def image(image_id: str, said: list[str], shown: list[str], *, noise: int = 0) -> tuple[NounsRow, RegionsRow]:
    """An image that says some words and shows some; each region is a word's direction with a little noise."""
    generator = np.random.default_rng(noise)
    nouns = [Noun(text=word, lemma=word.removesuffix("s"), caption=0, start=0, end=1) for word in said]
    vectors = [direction(word) + 0.1 * generator.normal(size=DIM) for word in shown]
    regions = [
        Region(
            mask=Mask(4, 4, b""), box_xyxy=(0, 0, 2, 2), area_px=4, score=0.5, label=None,
            embedding=pack(vector / np.linalg.norm(vector)),
        )
        for vector in vectors
    ]  # fmt: skip
    row = RegionsRow(image_id=image_id, sha256="", height_px=4, width_px=4, regions=tuple(regions), rejection=None)
    return NounsRow(image_id, tuple(nouns), (), None), row


def vocabulary(*words: str) -> list[VocabularyRow]:
    return [VocabularyRow(word, 1, 1, pack(direction(word)), word.removesuffix("s")) for word in words]


WORDS = ("cat", "dog", "day", "tree")
SAMPLE = [
    image(str(number), [shown, "day"] if number % 2 else [shown], [shown, "grass"], noise=number)
    for number, shown in enumerate(["cat", "dog", "tree"] * 8)
]


def measure(
    sample: list[tuple[NounsRow, RegionsRow]], rows: list[VocabularyRow]
) -> tuple[LevelScale, dict[str, LevelRow]]:
    scale, blocks = measure_levels(sample, lambda: [rows[:2], rows[2:]])
    levels = [row for block in blocks for row in block]
    assert [row.noun for row in levels] == [row.noun for row in rows]
    return scale, {row.noun: row for row in levels}


def test_a_level_is_the_mean_best_similarity_in_images_that_do_not_say_the_noun() -> None:
    _, levels = measure(SAMPLE, vocabulary(*WORDS))
    for word in ("cat", "day"):
        best = []
        for nouns, regions in SAMPLE:
            if word not in {noun.lemma for noun in nouns.nouns}:
                vectors = [np.frombuffer(r.embedding or b"", "<f2").astype(float) for r in regions.regions]
                best.append(max(float(direction(word) @ v / np.linalg.norm(v)) for v in vectors))
        row = levels[word]
        assert (row.unsaid, row.said) == (len(best), len(SAMPLE) - len(best))
        assert row.level == pytest.approx(np.mean(best), abs=0.1)  # drawn a little towards the mean of all nouns
        assert row.spread == pytest.approx(np.std(best), abs=2e-3)


def test_what_can_be_seen_is_told_from_what_cannot_by_the_data() -> None:
    _, levels = measure(SAMPLE, vocabulary(*WORDS))
    assert min(levels[word].separability or 0 for word in ("cat", "dog", "tree")) > 0.85
    assert levels["day"].separability == pytest.approx(0.5, abs=0.15)


def test_a_plural_counts_where_the_singular_is_said() -> None:
    _, levels = measure(SAMPLE, vocabulary("cat", "cats"))
    assert levels["cats"].said == levels["cat"].said == 8


def test_a_rare_compound_is_drawn_towards_its_head() -> None:
    rare = [image("rare", ["cat day"], ["cat"]), image("rare too", ["day cat"], ["cat"])]
    rows = [*vocabulary(*WORDS), VocabularyRow("cat day", 1, 1, pack(direction("cat")), "cat day")]
    rows.append(VocabularyRow("day cat", 1, 1, pack(direction("cat")), "day cat"))
    _, levels = measure(SAMPLE + rare, rows)
    assert (levels["cat day"].separability or 0) < 0.75 < (levels["day cat"].separability or 0)


def test_a_noun_that_every_image_says_has_no_level_and_its_pairs_no_lift() -> None:
    everywhere = [image(str(number), ["photo"], ["cat"], noise=number) for number in range(4)]
    scale, levels = measure(everywhere, vocabulary("photo", "cat"))
    assert (levels["photo"].level, levels["photo"].separability, levels["photo"].said) == (None, None, 4)
    assert levels["cat"].level is not None
    rows = vocabulary("photo", "cat")
    scorer = Scorer.of(scale, list(levels.values()), rows)
    nouns, regions = everywhere[0]
    (row,) = ClipPairs().open()([nouns], [regions], TextSide({"photo": rows[0].embedding or b""}, scorer))
    assert (row.pairs[0].lift, row.pairs[0].evidence) == (None, None)


def test_without_a_region_or_an_embedding_there_are_no_levels() -> None:
    _, levels = measure([image("1", ["cat"], [])], vocabulary("cat", "dog"))
    assert {row.level for row in levels.values()} == {None}
    _, levels = measure(SAMPLE, [VocabularyRow("cat", 1, 1, None, "cat"), *vocabulary("dog")])
    assert (levels["cat"].level, levels["dog"].said) == (None, 8)


def test_levels_do_not_depend_on_the_company_of_a_noun(monkeypatch: pytest.MonkeyPatch) -> None:
    _, together = measure(SAMPLE, vocabulary(*WORDS, "house"))
    monkeypatch.setattr("maskmine.mining.levels._NOUNS_AT_ONCE", 1)
    monkeypatch.setattr(statistics, "_REGIONS_AT_ONCE", 3)
    _, apart = measure(SAMPLE, vocabulary(*WORDS, "house"))
    for word, row in together.items():
        prototype = apart[word].prototype
        assert replace(row, prototype=prototype) == apart[word]
        assert (prototype is None) == (row.prototype is None)


@settings(max_examples=40)
@given(st.lists(st.integers(-5, 5), min_size=1, max_size=8), st.lists(st.integers(-5, 5), min_size=1, max_size=8))
def test_separability_is_the_share_of_image_pairs_in_the_right_order(unsaid: list[int], said: list[int]) -> None:
    best_N = np.array([*unsaid, 9.0]) / 10
    counts = count_noun(best_N, np.array([len(unsaid)]), [value / 10 for value in said])
    right = sum((s > u) + 0.5 * (s == u) for s in said for u in unsaid)
    assert counts.auc == pytest.approx(right / (len(said) * len(unsaid)))


@pytest.mark.parametrize(("images", "per_part", "parts"), [(5000, 1000, 5), (5000, 999.5, 6), (10, 50, 1)])
def test_levels_wait_for_the_first_parts_alone(images: int, per_part: float, parts: int) -> None:
    assert Levels(images=images).first_parts(per_part) == parts


def score_sample(*, measured: bool = True) -> dict[tuple[str, str], Pair]:
    """The pairs of all images of the sample, by image and noun."""
    rows = vocabulary(*WORDS)
    scale, levels = measure(SAMPLE, rows)
    text = TextSide({row.noun: row.embedding or b"" for row in rows}, Scorer.of(scale, list(levels.values()), rows))
    match = ClipPairs().open()
    matched = match([nouns for nouns, _ in SAMPLE], [r for _, r in SAMPLE], replace(text, measured=measured))
    return {(row.image_id, pair.noun): pair for row in matched for pair in row.pairs}


def test_pairs_of_what_is_shown_have_more_evidence_than_pairs_of_what_is_not() -> None:
    pairs = score_sample()
    shown = [pair for (_, noun), pair in pairs.items() if noun != "day"]
    absent = [pair for (_, noun), pair in pairs.items() if noun == "day"]
    for name in ("lift", "lead", "gap", "evidence"):
        assert min(getattr(pair, name) for pair in shown) > max(getattr(pair, name) for pair in absent), name


def test_lift_is_similarity_above_the_level_and_lead_what_no_other_noun_has() -> None:
    _, levels = measure(SAMPLE, vocabulary(*WORDS))
    pair = score_sample()[("1", "dog")]
    assert pair.lift == pytest.approx(pair.similarity - levels["dog"].level, abs=1e-6)  # type: ignore[operator]
    assert pair.lead == pair.lift  # "day" has no lift for the dog's region
    assert score_sample()[("1", "day")].lead < 0  # type: ignore[operator]


def test_a_region_does_not_vote_for_itself() -> None:
    own, other = score_sample(measured=True)[("0", "cat")], score_sample(measured=False)[("0", "cat")]
    assert own.agreement is not None
    assert other.agreement is not None
    assert own.agreement < other.agreement


def test_agreement_is_the_weighted_mean_cosine_with_the_nouns_regions_in_other_images() -> None:
    scale, levels = measure(SAMPLE, vocabulary(*WORDS))

    def best(number: int) -> tuple[np.ndarray, float]:
        """The cat's best region in an image, centred and of length 1, and its lift."""
        vectors = [np.frombuffer(r.embedding or b"", "<f2").astype(float) for r in SAMPLE[number][1].regions]
        vectors = [vector / np.linalg.norm(vector) for vector in vectors]
        similarity = [float(direction("cat") @ vector) for vector in vectors]
        centred = vectors[int(np.argmax(similarity))] - scale.centre_D
        return centred / np.linalg.norm(centred), max(similarity) - (levels["cat"].level or 0.0)

    own, _ = best(0)
    others = [best(number) for number in range(3, len(SAMPLE), 3)]
    mean = sum(lift * float(own @ region) for region, lift in others) / sum(lift for _, lift in others)
    expected = (mean * len(others) + scale.agreement) / (len(others) + 1)
    assert score_sample()[("0", "cat")].agreement == pytest.approx(expected, abs=1e-3)


def test_pairs_without_evidence_are_not_a_number_in_the_matrix() -> None:
    pair = score_sample()[("0", "cat")]
    matrix = feature_matrix([pair, replace(pair, lift=None)], [0.5, 0.25])
    assert matrix.shape == (2, len(FEATURES))
    assert np.isnan(matrix[1]).tolist() == [True, *[False] * 5]
    assert matrix[0, FEATURES.index("lift")] == pair.lift
    assert matrix[1, FEATURES.index("score")] == 0.25


def test_a_proposals_score_decides_between_regions_of_nearly_the_same_similarity() -> None:
    nouns, regions = image("1", ["cat"], ["cat", "cat"], noise=3)
    better = replace(regions, regions=(regions.regions[0], replace(regions.regions[1], score=1.0)))
    worse = replace(regions, regions=(replace(regions.regions[0], score=1.0), regions.regions[1]))
    rows = vocabulary(*WORDS)
    scale, levels = measure(SAMPLE, rows)
    text = TextSide({"cat": rows[0].embedding or b""}, Scorer.of(scale, list(levels.values()), rows))

    def chosen(found: RegionsRow, weight: float) -> int:
        (row,) = ClipPairs(proposal_weight=weight).open()([nouns], [found], text)
        return row.pairs[0].region

    assert chosen(better, 0.0) == chosen(worse, 0.0)
    assert (chosen(better, 5.0), chosen(worse, 5.0)) == (1, 0)


def test_a_noun_that_comes_later_is_measured_as_if_it_had_been_there() -> None:
    scale, known = measure(SAMPLE, vocabulary(*WORDS))
    later = vocabulary("fox", "cats")  # which no image says, and another form of a noun that images say
    measured = measure_new_levels(SAMPLE, CommonLevels.of(scale, known.values()), lambda: [later[:1], later[1:]])
    rows = [row for block in measured for row in block]
    assert [row.noun for row in rows] == ["fox", "cats"]
    for row in rows:
        at_once = measure(SAMPLE, vocabulary(*WORDS, row.noun))[1][row.noun]
        assert (row.said, row.unsaid, row.spread) == (at_once.said, at_once.unsaid, at_once.spread)
        assert row.level == pytest.approx(at_once.level, abs=0.02)  # drawn a little towards the mean of known nouns
        assert row.separability == pytest.approx(at_once.separability, abs=0.05)
    assert [row.said for row in rows] == [0, 8]
    assert rows[1].prototype is not None
