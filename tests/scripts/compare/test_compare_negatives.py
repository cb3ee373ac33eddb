"""How negatives are held against what was drawn: drawings of the same kind, places, and what nobody knows."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest

from maskmine.mining.evaluation.annotations import AnnotatedObject, Annotations
from maskmine.mining.models.embeddings import pack
from maskmine.mining.negatives import ImageToSearch
from maskmine.mining.scores.noun_tables import NounTables
from maskmine.mining.text.labels import load_synonyms, open_naming
from maskmine.schemas.mask import Mask
from maskmine.schemas.rows import CaptionsRow, ImageRow, NegativesRow, Noun, NounsRow, RegionsRow, VocabularyRow
from maskmine.schemas.tables import to_table
from maskmine.scripts.compare.negatives import (
    MinedImages,
    Truth,
    demo_kin,
    judge,
    place_words,
    possible_places,
    render,
)
from maskmine.scripts.demo_world.nouns import demo_nouns
from tests.support.progress import texts_of

CATEGORIES = tuple(noun.noun for noun in demo_nouns())
DRAWN = {"1": ("eagle", "nurse"), "2": ("volcano",)}
CAPTIONS = {"1": ["an eagle in a meadow", "a nurse on a lawn"], "2": ["a volcano", "it is large"]}


class Drawn:
    """Annotations without masks."""

    categories = CATEGORIES

    def key_of(self, image: ImageRow) -> str:
        return image.image_id

    def objects(self, key: str) -> list[AnnotatedObject]:
        return [AnnotatedObject(category, Mask(1, 1, b""), False) for category in DRAWN[key]]


@pytest.fixture(scope="module")
def truth() -> Truth:
    return Truth(cast(Annotations, Drawn()), open_naming(CATEGORIES, load_synonyms("auto")), CAPTIONS)


def test_every_noun_of_the_table_of_kin_is_one_of_the_demo_world() -> None:
    assert {*demo_kin(), *(noun for kin in demo_kin().values() for noun in kin)} <= set(CATEGORIES)


@pytest.mark.parametrize(
    ("noun", "image", "absent"),
    [
        ("eagle", "1", False),
        ("eagles", "1", False),
        ("bird", "1", False),  # an eagle is one
        ("woman", "1", False),
        ("owl", "1", True),
        ("bird", "2", True),
        ("mountain", "2", False),
        ("meadow", "1", False),
        ("grass", "1", False),  # is said of meadows, though not here
        ("sea", "1", True),
        ("sea", "2", None),  # nobody says where it is
        ("photo", "1", None),
    ],
)
def test_a_noun_is_absent_when_no_drawing_shows_it(truth: Truth, noun: str, image: str, absent: bool | None) -> None:
    assert truth.is_absent(noun, noun.removesuffix("s") if noun == "eagles" else noun, ImageRow(image, None)) is absent


def test_captions_say_where_an_image_is() -> None:
    assert all("grass" in place_words()[name] for name in possible_places(["a cow in a meadow"]))
    assert possible_places(["a cow", "a bird in the sky"]) == set()


def test_a_way_is_judged_over_all_images(truth: Truth) -> None:
    angles = {"eagle": 0, "bird": 30, "owl": 60, "photo": 90}
    rows = [
        VocabularyRow(noun, 1, 1, pack(np.array([np.cos(np.radians(a)), np.sin(np.radians(a))])), noun)
        for noun, a in angles.items()
    ]
    regions = RegionsRow(image_id="1", sha256=None, height_px=1, width_px=1, regions=(), rejection=None)
    said = (Noun(text="eagle", lemma="eagle", caption=0, start=0, end=1),)
    image = ImageToSearch(NounsRow("1", said, (), None), CaptionsRow("1", ("an eagle",)), regions)
    tables = dataclasses.replace(_no_tables(), vocabulary=to_table(rows, VocabularyRow))
    mined = MinedImages(cast(Any, None), tables, [[(ImageRow("1", None), image)]], truth)

    def find(images: Iterable[ImageToSearch], nouns: pa.Array) -> Iterator[NegativesRow]:
        assert nouns.to_pylist() == ["eagle"]
        return (NegativesRow(one.nouns.image_id, ("bird", "owl", "photo")) for one in images)

    found = judge(mined, find)
    assert (found.per_image, found.absent, found.judged, found.unjudged) == (3.0, 0.5, 2, 1)
    assert found.nearness == pytest.approx((np.cos(np.pi / 6) + 0.5 + 0) / 3, abs=1e-3)
    table = render({"a way": [found, dataclasses.replace(found, absent=1.0)]}, [41, 42])
    assert [texts_of(table, column) for column in (2, 3)] == [["75.00%"], ["50.00%"]]


def _no_tables() -> NounTables:
    empty = to_table([], VocabularyRow)
    return NounTables(empty, empty, cast(Any, None))
