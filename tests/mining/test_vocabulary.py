"""The vocabulary: nouns counted out of core, each embedded once and alone."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maskmine.mining.models.clip import Clip, TextTower
from maskmine.mining.models.embeddings import unpack
from maskmine.mining.models.prompt_templates import fill_template, load_templates
from maskmine.mining.vocabulary import Vocabulary, count_nouns
from maskmine.schemas.errors import IncompleteError, InputError
from maskmine.schemas.rows import Noun, NounsRow, VocabularyRow
from maskmine.schemas.tables import to_table, write_parquet
from tests.support.models import save_tiny_clip

COUNTS = [(noun, 1, 2, noun) for noun in ("cat", "dog", "hot dog", "{}", "zebra")]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Clip:
    return Clip(model=str(save_tiny_clip(tmp_path_factory.mktemp("clip"))), batch_size=3)


def nouns_row(image_id: str, nouns: list[str]) -> NounsRow:
    return NounsRow(
        image_id, tuple(Noun(text=noun, lemma="lemma", caption=0, start=0, end=1) for noun in nouns), (), None
    )


def write_cell(path: str, rows: list[NounsRow]) -> str:
    with fsspec.open(path, "wb") as file:
        write_parquet(to_table(rows, NounsRow), file)
    return path


def test_no_flipped_bit_of_a_cell_is_counted_as_other_nouns(tmp_path: Path) -> None:
    path = write_cell(str(tmp_path / "0.parquet"), [nouns_row("1", ["dog", "cat"]), nouns_row("2", ["dog"])])
    content = Path(path).read_bytes()
    for place in range(0, len(content), 101):
        Path(path).write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        with pytest.raises(IncompleteError, match=r"0\.parquet: not a whole Parquet file; delete it"):
            list(count_nouns([path]))


words = st.text(st.sampled_from("aBé~😀\uffee '\"%"), min_size=1, max_size=3)


@settings(max_examples=20)
@given(cells=st.lists(st.lists(st.lists(words, max_size=4), max_size=4), max_size=3))
def test_nouns_are_counted_by_image_and_mention_in_the_order_of_their_bytes(
    tmp_path_factory: pytest.TempPathFactory, cells: list[list[list[str]]]
) -> None:
    folder = tmp_path_factory.mktemp("cells")
    images, mentions, paths = Counter[str](), Counter[str](), []
    for part, cell in enumerate(cells):
        rows = [nouns_row(f"{part}-{number}", nouns) for number, nouns in enumerate(cell)]
        paths.append(write_cell(str(folder / f"{part}.parquet"), rows))
        for nouns in cell:
            images.update(set(nouns))
            mentions.update(nouns)
    expected = [(noun, images[noun], mentions[noun], "lemma") for noun in sorted(mentions, key=str.encode)]
    assert list(count_nouns(paths)) == expected


def test_an_image_in_two_cells_counts_once(tmp_path: Path) -> None:
    paths = [write_cell(str(tmp_path / f"{part}.parquet"), [nouns_row("same", ["cat"])]) for part in range(2)]
    assert list(count_nouns(paths)) == [("cat", 1, 2, "lemma")]


def test_no_cells_have_no_nouns() -> None:
    assert list(count_nouns([])) == []


def test_a_path_is_no_pattern(tmp_path: Path) -> None:
    for name, other in [("run [a]", "run a"), ("run *", "run b"), ("run ?", "run c")]:
        (tmp_path / name).mkdir()
        (tmp_path / other).mkdir()
        write_cell(str(tmp_path / other / "0.parquet"), [nouns_row("1", ["wrong"])])
        path = write_cell(str(tmp_path / name / "0.parquet"), [nouns_row("1", ["right"])])
        assert list(count_nouns([path])) == [("right", 1, 1, "lemma")]


def test_cells_may_lie_on_another_file_system() -> None:
    path = write_cell("memory://nouns/0.parquet", [nouns_row("1", ["cat"])])
    assert list(count_nouns([path])) == [("cat", 1, 1, "lemma")]


def test_an_embedding_is_the_unit_mean_over_the_templates(clip: Clip, tmp_path: Path) -> None:
    templates = tmp_path / "two.txt"
    templates.write_text("a {}\n\nmany {}s here.\n")
    (row,) = Vocabulary(templates=str(templates)).open(clip, "cpu")([("cat", 3, 5, "cat")])
    assert (row.noun, row.images, row.mentions) == ("cat", 3, 5)
    vectors = clip.open_text(device="cpu").embed(["a cat", "many cats here."])
    mean = vectors.mean(0) / vectors.mean(0).norm()
    np.testing.assert_array_equal(unpack([row.embedding or b""])[0], mean.half().float().numpy())


def test_a_noun_has_the_same_bits_in_any_company(clip: Clip) -> None:
    embed = Vocabulary().open(clip, "cpu")
    together = list(embed(COUNTS))
    assert [row.noun for row in together] == [noun for noun, *_ in COUNTS]
    assert list(embed(COUNTS[::-1])) == together[::-1]
    assert [row for count in COUNTS for row in embed([count])] == together


def test_each_noun_is_computed_once_and_known_ones_never() -> None:
    read: list[str] = []

    class Counted(Clip):
        def open_text(self, *, device: str) -> TextTower:
            def embed(texts: list[str]) -> torch.Tensor:
                read.extend(texts)
                return torch.eye(2)[[0] * len(texts)]

            return TextTower(dim=2, batch_size=3, embed=embed)

    embed = Vocabulary(templates="raw").open(Counted(model="double"), "cpu")
    rows = list(embed(iter(COUNTS), known=lambda nouns: {"dog": b"as it was", "unused": b""}))
    assert sorted(read) == sorted(noun for noun, *_ in COUNTS if noun != "dog")
    assert rows[1] == VocabularyRow("dog", 1, 2, b"as it was", "dog")
    assert [row.noun for row in rows] == [noun for noun, *_ in COUNTS]


def test_without_clip_nouns_are_counted_and_not_embedded() -> None:
    rows = list(Vocabulary().open(None, "cpu")(COUNTS))
    assert [(r.noun, r.images, r.mentions, r.embedding, r.lemma) for r in rows] == [
        (*c[:3], None, c[3]) for c in COUNTS
    ]


def test_a_long_noun_is_read_from_its_beginning(clip: Clip) -> None:
    embed = Vocabulary(templates="raw").open(clip, "cpu")
    long, longer = embed([("word " * 100, 1, 1, "word"), ("word " * 200, 1, 1, "word")])
    assert long.embedding == longer.embedding


def test_vild_has_fourteen_sentences() -> None:
    sentences = [fill_template(template, "cat") for template in load_templates("vild")]
    assert len(set(sentences)) == 14
    assert "a photo of a cat." in sentences
    assert "There is the cat in the scene" in sentences
    assert sum("a small cat" in s or "a medium cat" in s or "a large cat" in s for s in sentences) == 9


def test_templates_are_found_by_name() -> None:
    assert load_templates("raw") == ("{}",)
    assert len(load_templates("imagenet")) == 80


def test_braces_of_a_noun_stay() -> None:
    assert fill_template("a {}.", "{}") == "a {}."
    assert fill_template("a {}.", "{0} {x}") == "a {0} {x}."


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"cannot be read \(FileNotFoundError\); use vild, imagenet, raw or"),
        (b"a {}\na cat\n", r"line 2 .* needs exactly one \{\}"),
        (b"{} and {}\n", "line 1"),
        (b"\n \n", "is empty"),
        (b"\xff{}", "cannot be read"),
    ],
)
def test_templates_that_are_none_are_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "templates.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        Vocabulary(templates=str(path)).open(None, "cpu")
