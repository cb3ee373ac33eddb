"""Nouns that an image does not show: nearest first, never what is said, never at its level."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskmine.mining import negatives
from maskmine.mining.models.embeddings import pack, unpack
from maskmine.mining.negatives import ImageToSearch, Negatives
from maskmine.mining.scores.noun_tables import NounTables
from maskmine.mining.scores.scale import LevelScale
from maskmine.schemas.mask import Mask
from maskmine.schemas.rows import (
    CaptionsRow,
    LevelRow,
    NegativesRow,
    Noun,
    NounsRow,
    Region,
    RegionsRow,
    Rejection,
    VocabularyRow,
)
from maskmine.schemas.tables import to_table

# Directions of a plane by their angle in degrees: the nearest nouns of "cat" are dog, wolf, cow, in this order.
ANGLES = {"cat": 0, "dog": 20, "wolf": 30, "cow": 40, "tree": 90, "day": 5}
LEVEL = 0.9


def vector(angle: float) -> np.ndarray:
    return np.array([np.cos(np.radians(angle)), np.sin(np.radians(angle)), 0.0])


def tables(
    angles: dict[str, float] | None = None,
    *,
    level: float = LEVEL,
    images: int = 9,
    separability: dict[str, float] | None = None,
    prototypes: dict[str, np.ndarray] | None = None,
) -> NounTables:
    angles = ANGLES if angles is None else angles
    rows, levels = [], []
    for noun, angle in sorted(angles.items()):
        rows.append(VocabularyRow(noun, images, images, pack(vector(angle)), noun.removesuffix("s")))
        prototype = (prototypes or {}).get(noun)
        levels.append(
            LevelRow(
                noun=noun,
                level=level,
                spread=0.1,
                separability=(separability or {}).get(noun, 0.5 if noun == "day" else 0.95),
                said=images,
                unsaid=100,
                prototype=None if prototype is None else prototype.astype("<f4").tobytes(),
                weight=1.0,
            )
        )
    scale = LevelScale(100, 0.1, 0.5, np.zeros(3))
    return NounTables.open(scale, [to_table(levels, LevelRow)], [to_table(rows, VocabularyRow)])


def image(
    said: Sequence[str],
    shown: Sequence[float],
    *,
    caption: str | None = None,
    label: str | None = None,
    image_id: str = "1",
) -> ImageToSearch:
    """An image that says some nouns, and has a region of each direction."""
    nouns = tuple(Noun(text=n, lemma=n.removesuffix("s"), caption=0, start=0, end=1) for n in said)
    regions = tuple(
        Region(
            mask=Mask(4, 4, b""), box_xyxy=(0, 0, 2, 2), area_px=4, score=0.5, label=label, embedding=pack(vector(a))
        )
        for a in shown
    )
    row = RegionsRow(image_id=image_id, sha256="", height_px=4, width_px=4, regions=regions, rejection=None)
    captions = CaptionsRow(image_id, (" and ".join(said) if caption is None else caption,))
    return ImageToSearch(NounsRow(image_id, nouns, (), None), captions, row)


def find(known: NounTables, *images: ImageToSearch, **changes: object) -> list[tuple[str, ...]]:
    settings = Negatives.model_validate({"margin": 0.0, **changes})
    said = pa.array([noun.text for one in images for noun in one.nouns.nouns], pa.string())
    rows = list(settings.open(known)(images, said))
    assert [row.image_id for row in rows] == [one.nouns.image_id for one in images]
    return [row.negatives for row in rows]


def test_the_nearest_nouns_come_first_and_what_is_seen_is_none() -> None:
    # A region that is nothing but a cat is at 20 degrees from dog: 0.94, above the level; wolf has 0.87.
    assert find(tables(), image(["cat"], [0])) == [("wolf", "cow", "tree")]
    assert find(tables(), image(["cat"], [180])) == [("dog", "wolf", "cow", "tree")]
    assert find(tables(), image(["cat"], [180]), per_image=2) == [("dog", "wolf")]
    assert find(tables(), image(["cat"], [180, 40])) == [("tree",)]  # a cow, and so something like dog and wolf


def test_a_margin_asks_for_more_than_the_level() -> None:
    assert find(tables(), image(["cat"], [0]), margin=0.5) == [("cow", "tree")]  # 0.85 and 0.87
    assert find(tables(), image(["cat"], [0]), margin=9.0) == [()]


def test_what_cannot_be_seen_is_no_negative_and_has_none() -> None:
    assert "day" not in find(tables(), image(["cat"], [180]))[0]
    assert find(tables(), image(["day"], [180])) == [()]
    assert find(tables(images=2), image(["cat"], [180])) == [()]
    assert find(tables(images=2), image(["cat"], [180]), min_images=2) == [("dog", "wolf", "cow", "tree")]


def test_nouns_of_the_captions_are_no_negatives_in_any_form() -> None:
    near = {"cat": 0, "dog": 20, "dogs": 21, "hot dog": 22, "cow": 40}
    assert find(tables(near), image(["cat", "dogs"], [180])) == [("cow",)]
    assert find(tables(near), image(["cat"], [180])) == [("dog", "hot dog", "cow")]  # one form of a noun


def test_words_of_a_caption_are_no_negatives_though_no_noun_was_found_there() -> None:
    assert find(tables(), image(["cat"], [180], caption="Cat (wolf?)")) == [("dog", "cow", "tree")]
    assert find(tables(), image(["cat"], [180], caption="wolfish cat")) == [("dog", "wolf", "cow", "tree")]
    near = {"cat": 0, "race car": 10, "tree": 90}
    assert find(tables(near), image(["cat"], [180], caption="a race car cat")) == [("tree",)]
    assert find(tables(near), image(["cat"], [180], caption="race, not car, cat")) == [("race car", "tree")]


def test_what_a_region_is_labelled_is_no_negative() -> None:
    assert find(tables(), image(["cat"], [180], label="wolf-merged")) == [("dog", "cow", "tree")]


def test_nouns_found_on_regions_that_look_alike_are_no_negatives() -> None:
    one, other = np.array([1.0, 0.0, 0.0]), np.array([0.0, 1.0, 0.0])
    known = tables(prototypes={"cat": one, "dog": 3 * one + other, "wolf": other})
    assert find(known, image(["cat"], [180])) == [("wolf", "cow", "tree")]
    assert find(known, image(["cat"], [180]), max_agreement=1.0) == [("dog", "wolf", "cow", "tree")]


def test_lists_of_synonyms_and_wordnet_leave_nouns_out(tmp_path: Path) -> None:
    (tmp_path / "groups.txt").write_text("cat, wolf\n")
    line = "00000010 05 n 01 cow 0 000 | a\n00000020 05 n 01 cat 0 001 @ 00000010 n 0000 | a\n"
    (tmp_path / "data.noun").write_text(line)
    changes = {"synonyms": str(tmp_path / "groups.txt"), "wordnet": str(tmp_path)}
    assert find(tables(), image(["cat"], [180]), **changes) == [("dog", "tree")]


def test_images_without_regions_or_nouns_have_no_negatives() -> None:
    without = image(["cat"], [])
    rejected = image(["cat"], [180])
    row = RegionsRow.rejected("1", Rejection("no_masks"))
    rejected = ImageToSearch(rejected.nouns, rejected.captions, row)
    assert find(tables(), without, rejected, image([], [180])) == [(), (), ()]
    assert find(tables({}), image([], [180])) == [()]


NOUNS = [a + b for a in "abcdefgh" for b in "klmnop"]


@given(
    seed=st.integers(0, 999),
    most=st.integers(1, 6),
    blocks=st.tuples(st.integers(1, 9), st.integers(1, 60)),
    said=st.lists(st.sampled_from(NOUNS), min_size=1, max_size=4, unique=True),
)
@settings(max_examples=40, deadline=None)
def test_negatives_are_those_of_a_plain_search_whatever_the_blocks(
    seed: int, most: int, blocks: tuple[int, int], said: list[str]
) -> None:
    rng = np.random.default_rng(seed)
    known = tables({noun: float(rng.integers(0, 40)) for noun in NOUNS}, level=0.95)  # many ties
    shown = image(said, rng.integers(0, 40, 2).tolist())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(negatives, "_SAID_AT_ONCE", blocks[0])
        patch.setattr(negatives, "_CANDIDATES_AT_ONCE", blocks[1])
        patch.setattr(negatives, "_TRIED_AT_ONCE", blocks[0])
        (found,) = find(known, shown, per_image=most)
    assert found == plain_search(known, shown, most=most)
    assert not set(found) & set(said)


def plain_search(known: NounTables, shown: ImageToSearch, *, most: int) -> tuple[str, ...]:
    """All nouns by their nearness; of equal ones the first of the vocabulary."""
    unit = lambda packed: (v := unpack([packed])[0].astype(float)) / np.linalg.norm(v)  # noqa: E731
    texts = {row["noun"]: unit(row["embedding"]) for row in known.vocabulary.to_pylist()}
    said = [noun.text for noun in shown.nouns.nouns]
    regions = [unit(region.embedding) for region in shown.regions.regions]
    nearness = {noun: max(round(float(texts[noun] @ texts[one]), 6) for one in said) for noun in texts}
    absent = [n for n in texts if n not in said and max(float(texts[n] @ r) for r in regions) < 0.95]
    return tuple(sorted(absent, key=lambda noun: -nearness[noun])[:most])


def test_a_row_survives_its_table() -> None:
    rows = [NegativesRow("1", ("dog", "wolf")), NegativesRow("2", ())]
    assert to_table(rows, NegativesRow).to_pylist()[0] == {"image_id": "1", "negatives": ["dog", "wolf"]}
