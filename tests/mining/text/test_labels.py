"""The rule `labels`: which nouns name which labels of a proposal model."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskmine.mining.text.labels import (
    label_names,
    load_synonyms,
    names_label,
    open_naming,
    plain_words,
    read_class_names,
)
from maskmine.schemas.errors import InputError
from tests.support.paths import ROOT

COCO = load_synonyms("coco")
THINGS = """person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign,
parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella, handbag,
tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, surfboard,
tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot,
hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop, mouse, remote, keyboard,
cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, scissors, teddy bear, hair drier,
toothbrush"""
COCO_THINGS = [" ".join(name.split()) for name in THINGS.split(",")]


@pytest.mark.parametrize(
    ("text", "lemma", "label"),
    [
        ("dog", "dog", "dog"),
        ("dogs", "dog", "dog"),
        ("skis", "ski", "skis"),
        ("men", "man", "person"),
        ("players", "player", "person"),
        ("passengers", "passenger", "person"),
        ("sofa", "sofa", "couch"),
        ("motorbikes", "motorbike", "motorcycle"),
        ("bike", "bike", "bicycle"),
        ("bike", "bike", "motorcycle"),
        ("stop sign", "stop sign", "stop sign"),
        ("tv", "tv", "TV"),
        ("fire-hydrants", "fire-hydrant", "fire hydrant"),
        ("fire hydrant", "fire hydrant", "Fire_Hydrant"),
        ("city buses", "city bus", "bus"),
        ("tennis player", "tennis player", "person"),
        ("ocean waves", "ocean", "sea"),
    ],
)
def test_a_noun_names_its_label(text: str, lemma: str, label: str) -> None:
    assert names_label(text, lemma, label, COCO)


@pytest.mark.parametrize(
    ("text", "lemma", "label"),
    [
        ("sign", "sign", "stop sign"),
        ("light", "light", "traffic light"),
        ("passenger", "passenger", "person"),
        ("teddy bear", "teddy bear", "bear"),
        ("hot dogs", "hot dog", "dog"),
        ("flower bed", "flower bed", "bed"),
        ("train station", "train station", "train"),
        ("dog", "dog", "cat"),
        ("glass", "glass", "wine glass"),
        ("dog", "dog", ""),
    ],
)
def test_a_noun_does_not_name_another_label(text: str, lemma: str, label: str) -> None:
    assert not names_label(text, lemma, label, COCO)


def test_without_a_table_only_the_label_itself_and_its_compounds_are_named() -> None:
    assert load_synonyms(None) == {}
    assert names_label("dogs", "dog", "dog", {})
    assert names_label("toy dog", "toy dog", "dog", {})
    assert not names_label("man", "man", "person", {})


@pytest.mark.parametrize(
    ("label", "names"),
    [
        ("tree-merged", {"tree"}),
        ("food-other-merged", {"food"}),
        ("mirror-stuff", {"mirror"}),
        ("wall-brick", {"wall", "brick wall"}),
        ("floor-other-merged", {"floor"}),
        ("window-blind", {"window blind"}),
        ("Teddy_Bear", {"teddy bear"}),
        ("bun_(sweet)", {"bun"}),
        ("road, route", {"road", "route"}),
        ("  ", set()),
    ],
)
def test_labels_are_brought_to_plain_words(label: str, names: set[str]) -> None:
    assert label_names(label) == names


@given(st.text(max_size=20))
def test_plain_words_are_their_own_plain_words(text: str) -> None:
    once = plain_words(text)
    assert plain_words(once) == once.lower()
    assert "  " not in once


@given(st.sampled_from(COCO_THINGS), st.sampled_from(["{}", "  {} ", "{}-merged"]), st.booleans())
def test_every_coco_category_is_named_by_itself_however_it_is_spelt(label: str, form: str, capitals: bool) -> None:
    spelt = form.format(label.replace(" ", "_"))
    assert names_label(label, label, spelt.upper() if capitals else spelt, COCO)


def test_the_shipped_table_has_the_80_things_of_coco_and_no_noun_that_is_another_category() -> None:
    assert len(COCO_THINGS) == 80
    assert set(COCO_THINGS) <= set(COCO)
    for label, nouns in COCO.items():
        assert nouns.isdisjoint(set(COCO_THINGS) - {label}), label


def test_a_table_of_ones_own_may_list_a_noun_twice(tmp_path: Path) -> None:
    table = tmp_path / "mine.yaml"
    table.write_text("Traffic_Light: [Stop-Light, light]\nlamp: [light]\nbox: []\n", encoding="utf-8")
    synonyms = load_synonyms(str(table))
    assert synonyms == {"traffic light": {"stop light", "light"}, "lamp": {"light"}, "box": frozenset()}
    assert names_label("lights", "light", "traffic-light", synonyms)
    assert names_label("lights", "light", "lamp", synonyms)


LISTS = ROOT / "tuning" / "benchmarks" / "class_lists"


def class_list(name: str) -> list[str]:
    lines = (LISTS / f"{name}.tsv").read_text(encoding="utf-8").splitlines()
    return [line.split("\t")[1] for line in lines if not line.startswith("#")]


@pytest.mark.parametrize(
    ("labels", "noun", "named"),
    [
        ("coco-stuff-171", "man", {"person"}),
        ("coco-stuff-171", "sofa", {"couch"}),
        ("coco-stuff-171", "lawn", {"grass"}),
        ("coco-stuff-171", "staircase", {"stairs"}),
        ("coco-stuff-171", "cupboard", {"cupboard"}),  # a label itself, though listed under `cabinet` too
        ("ade150", "couch", {"sofa"}),
        ("ade150", "woman", {"person"}),
        ("ade150", "airplane", {"plane"}),
        ("ade150", "dog", {"animal"}),
        ("ade150", "dining table", {"table"}),
        ("ade150", "sidewalk", {"sidewalk, pavement"}),
        ("ade150", "stop sign", {"signboard, sign"}),
        ("ade150", "garbage can", {"trash can"}),
        ("ade150", "teddy bear", set()),
    ],
)
def test_known_label_sets_bring_their_nouns(labels: str, noun: str, named: set[str]) -> None:
    assert open_naming(class_list(labels), load_synonyms("auto"))(noun, noun) == named


@pytest.mark.parametrize("labels", [COCO_THINGS, class_list("coco-stuff-171")], ids=["things", "stuff"])
def test_the_larger_table_takes_no_noun_from_a_label_of_coco(labels: list[str]) -> None:
    auto = load_synonyms("auto")
    narrow, wide = open_naming(labels, COCO), open_naming(labels, auto)
    words = {word for table in (auto, COCO) for label, nouns in table.items() for word in (label, *nouns)}
    assert len(words) > 500
    assert [word for word in sorted(words) if not narrow(word, word) <= wide(word, word)] == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n- b\n", "holds no mapping"),
        ("", "holds no mapping"),
        ("person: man\n", "under `person` there is no list of words"),
        ("person: [man, no]\n", "under `person` there is no list of words"),
        ("1: [one]\n", "under `1` there is no list of words"),
        ("tv: [telly]\nTV: [screen]\n", "`TV` is there twice"),
        ("a: [b\nc: d\n", "line 2: no valid YAML"),
    ],
)
def test_a_table_of_another_shape_is_an_input_error(tmp_path: Path, text: str, message: str) -> None:
    table = tmp_path / "mine.yaml"
    table.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        load_synonyms(str(table))
    assert message in str(caught.value)
    assert str(table) in str(caught.value)


def test_a_table_that_is_absent_or_not_text_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    for path in ("no-such-table", tmp_path / "binary.yaml", tmp_path):
        with pytest.raises(InputError, match="use auto, coco, or the path of a YAML file"):
            load_synonyms(str(path))


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_the_classes_of_a_file_are_its_lines(end: str, tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    names = ("cat", "a\u2028b", "c\x0bd", "dog")  # what Python's `splitlines` takes for ends of lines as well
    path.write_bytes(("\ufeff" + end.join([*names, "", ""])).encode())
    assert read_class_names(str(path), setting="names") == names


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"cat\n\ndog\n", "line 2 is empty"),
        (b"\ncat\n", "line 1 is empty"),
        (b"\n \n", "has no names"),
        (b"\xff", "cannot be read (UnicodeDecodeError)"),
        (None, "cannot be read (FileNotFoundError)"),
    ],
)
def test_a_file_that_would_shift_its_classes_is_refused(content: bytes | None, said: str, tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_class_names(str(path), setting="maps.names")
    assert said in str(caught.value)
    assert str(caught.value).startswith("maps.names: ")
