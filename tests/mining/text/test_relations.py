"""Which nouns may name the same thing."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskmine.mining.text.relations import (
    Relations,
    forms_of,
    read_synonym_groups,
    read_wordnet,
    share_words,
    synonym_groups_identity,
    wordnet_identity,
)
from maskmine.schemas.errors import InputError

# Sets of a tiny WordNet, in the form of its database: a poodle is a dog, a dog an animal and, in slang, a villain.
WORDNET = """\
  1 This software and database is being provided to you, the LICENSEE
00000010 05 n 01 animal 0 000 | a living thing
00000020 05 n 02 dog 0 domestic_dog 0 002 @ 00000010 n 0000 ~ 00000030 n 0000 | it barks
00000030 05 n 01 poodle 0 001 @ 00000020 n 0000 | a curly dog
00000040 06 n 02 couch 0 sofa 0 000 | a seat for several
00000050 18 n 02 dog 1 villain 0 000 | a bad person
00000060 15 n 01 Rhine 0 001 @i 00000070 n 0000 | a river
00000070 17 n 01 river 0 000 | water that flows
"""


def related(relations: Relations, one: str, other: str) -> bool:
    found = relations.related(one, one, other, other)
    assert relations.related(other, other, one, one) == found
    return found


@pytest.fixture
def wordnet(tmp_path: Path) -> str:
    (tmp_path / "data.noun").write_text(WORDNET)
    return str(tmp_path)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("dog", "dogs", True),
        ("bus", "buses", True),
        ("bus", "city bus", True),
        ("fire truck", "food truck", True),  # a truck both, and perhaps the same one
        ("ice", "ice cream", True),
        ("T-shirt", "t shirt", True),
        ("dog", "cat", False),
        ("baseball bat", "baseball glove", False),
        ("car", "care", False),
        ("gas", "ga", False),
    ],
)
def test_words_say_what_may_be_the_same(one: str, other: str, expected: bool) -> None:
    assert related(Relations(), one, other) == expected


def test_the_lemma_of_a_text_counts_as_much_as_the_text() -> None:
    assert Relations().related("geese", "goose", "goose", "goose")
    assert not Relations().related("geese", "geese", "goose", "goose")


@given(st.lists(st.text("abcs ", min_size=1, max_size=9), min_size=2, max_size=2))
def test_sharing_words_has_no_direction_and_every_noun_shares_its_own(nouns: list[str]) -> None:
    one, two = (forms_of(noun, noun) for noun in nouns)
    assert share_words(one, two) == share_words(two, one)
    assert share_words(one, one) == bool(one)


def test_a_list_of_synonyms_is_read_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "groups.txt"
    path.write_text("couch, sofa  # seats\n\nT-Shirt,tee\ntee, cloth\n")
    relations = Relations(read_synonym_groups(str(path)))
    assert related(relations, "couches", "sofa")
    assert related(relations, "t-shirt", "tee")
    assert related(relations, "cloth", "tee")
    assert not related(relations, "cloth", "t-shirt")
    assert not related(relations, "sofa", "tee")


def test_a_list_counts_by_what_is_in_it(tmp_path: Path) -> None:
    one, same, other = (tmp_path / name for name in "abc")
    one.write_text("couch, sofa\n"), same.write_text("couch,sofa # seats\n"), other.write_text("couch, seat\n")
    digests = [synonym_groups_identity(str(path))["sha256"] for path in (one, same, other)]
    assert digests[0] == digests[1] != digests[2]


def test_wordnet_knows_synonyms_and_kinds_in_every_sense(wordnet: str) -> None:
    relations = Relations(wordnet=read_wordnet(wordnet))
    assert related(relations, "couch", "sofas")
    assert related(relations, "poodle", "animal")
    assert related(relations, "domestic dog", "dog")
    assert related(relations, "villain", "dog")
    assert related(relations, "rhine", "river")
    assert related(relations, "toy poodle", "animal")  # not known, so by its head
    assert not related(relations, "poodle", "villain")
    assert not related(relations, "poodle", "couch")
    assert not related(relations, "unicorn", "animal")
    assert wordnet_identity(wordnet)["sha256"] != wordnet_identity(_other(wordnet))["sha256"]


def _other(wordnet: str) -> str:
    folder = Path(wordnet) / "other"
    folder.mkdir()
    (folder / "data.noun").write_text(WORDNET.replace("sofa", "settee"))
    return str(folder)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("00000010 05 n 01 animal 0\n", 1),
        ("  licence\n00000010 05 n zz animal 0 000 | a\n", 2),
        ("00000010 05 v 01 run 0 000 | a\n", 1),
        ("<html>\n", 1),
        ("00000010 05 n 01 animal 0 009 @ 1 n 0000 | a\n", 1),
    ],
)
def test_what_is_no_wordnet_is_refused_with_its_line(tmp_path: Path, content: str, line: int) -> None:
    (tmp_path / "data.noun").write_text(content)
    with pytest.raises(InputError, match=rf"data\.noun, line {line}: is no set of synonyms; give the folder"):
        read_wordnet(str(tmp_path))


def test_lists_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    (tmp_path / "latin1").write_bytes(b"caf\xe9, bar\n")
    (tmp_path / "alone").write_text("couch, sofa\nchair\n")
    with pytest.raises(InputError, match=r"negatives\.synonyms: `.*latin1` cannot be read \(UnicodeDecodeError\)"):
        read_synonym_groups(str(tmp_path / "latin1"))
    with pytest.raises(InputError, match=r"alone, line 2: `chair` stands alone; write the words"):
        read_synonym_groups(str(tmp_path / "alone"))
    with pytest.raises(InputError, match=r"negatives\.wordnet: `.*data\.noun` cannot be read \(FileNotFoundError\)"):
        read_wordnet(str(tmp_path / "nowhere"))
