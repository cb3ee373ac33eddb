"""Nouns are looked up in tables that are gone through once, and nothing grows with the vocabulary."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskmine.pipelines.run_folder import folder
from maskmine.pipelines.run_folder.cells import Cells
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.pipelines.steps.in_order import known_embeddings, look_up
from maskmine.schemas.rows import VocabularyRow

NOUNS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=3)


def in_order(nouns: set[str]) -> list[str]:
    return sorted(nouns, key=str.encode)


def groups(nouns: list[str], size: int) -> Iterator[pa.Table]:
    return (pa.table({"noun": pa.array(nouns[n : n + size], pa.string())}) for n in range(0, len(nouns), size))


@given(st.sets(NOUNS), st.sets(NOUNS), st.integers(1, 4), st.integers(1, 4))
def test_every_noun_that_is_there_is_found_whatever_the_groups(
    stored: set[str], asked: set[str], size: int, at_once: int
) -> None:
    find, wanted = look_up(groups(in_order(stored), size)), in_order(asked)
    blocks = [wanted[start : start + at_once] for start in range(0, len(wanted), at_once)]
    found = [[noun for table in find(block) for noun in table["noun"].to_pylist()] for block in blocks]
    assert found == [[noun for noun in block if noun in stored] for block in blocks]


def test_no_group_is_read_before_its_nouns_are_asked_for() -> None:
    read: list[str] = []

    def watched() -> Iterator[pa.Table]:
        for table in groups(["a", "b", "c", "d", "e", "f"], 2):
            read.append(table["noun"][0].as_py())
            yield table

    find = look_up(watched())
    for noun, expected in [("a", ["a"]), ("b", ["a", "c"]), ("d", ["a", "c", "e"])]:
        assert [row for table in find([noun]) for row in table["noun"].to_pylist()] == [noun]
        assert read == expected


def test_the_embedding_of_the_last_vocabulary_counts(tmp_path: Path) -> None:
    stored = []
    for name, rows in (("one", {"cat": b"1", "dog": b"1"}), ("two", {"dog": b"2", "eel": None})):
        cells = Cells(RunFolder(str(tmp_path / name)), "vocabulary", VocabularyRow, once=True)
        cells.write(0, [VocabularyRow(noun, 1, 1, embedding) for noun, embedding in rows.items()])
        stored.append(cells)
    assert known_embeddings(stored)(["cat", "dog", "eel", "fox"]) == {"cat": b"1", "dog": b"2"}


def test_a_large_file_of_a_store_is_read_by_pieces_and_a_small_one_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    run, asked = RunFolder("memory://in-order"), list[int]()
    cells = Cells(run, "vocabulary", VocabularyRow, once=True)
    cells.write(0, [VocabularyRow(f"noun {n}", 1, 1, bytes([n]) * 40) for n in range(200)])
    wanted, size = cells.read(), len(run.read_bytes("vocabulary.parquet"))
    plain = folder.fetch

    def fetch(path: str, *, start: int = 0, max_bytes: int | None = None) -> bytes:
        asked.append(start)
        return plain(path, start=start, max_bytes=max_bytes)

    monkeypatch.setattr(folder, "fetch", fetch)
    for at_once, starts in [(size + 1, [0]), (size, [0, size]), (size // 2, [0, size // 2, size // 2 * 2, size])]:
        monkeypatch.setattr(folder, "_FETCHED_AT_ONCE_BYTES", at_once)
        asked.clear()
        assert list(cells.read_rows()) == wanted
        assert asked == sorted(set(starts))
