"""A worker knows the nouns of its part as it would know all of them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from maskmine.mining.models.embeddings import pack
from maskmine.mining.scores import features
from maskmine.mining.scores.features import Scorer
from maskmine.mining.scores.noun_tables import NounTables, NounValues
from maskmine.mining.scores.scale import LevelScale
from maskmine.schemas.rows import LevelRow, VocabularyRow
from maskmine.schemas.tables import row_groups, to_table

NOUNS, WIDTH = 60, 8


@pytest.fixture
def rows() -> tuple[list[LevelRow], list[VocabularyRow]]:
    rng = np.random.default_rng(0)
    levels, vocabulary = [], []
    for n in range(NOUNS):
        measured = bool(n % 7)
        prototype = rng.normal(size=WIDTH).astype("<f4").tobytes() if n % 3 else None
        levels.append(
            LevelRow(
                noun=f"noun {n:02d}",
                level=0.1 + n / 1000 if measured else None,
                spread=0.02,
                separability=float(rng.uniform(0.5, 1)) if measured else None,
                said=int(rng.integers(0, 9)),
                unsaid=50,
                prototype=prototype,
                weight=float(n),
            )
        )
        vector_D = rng.normal(size=WIDTH).astype(np.float32)
        vocabulary.append(VocabularyRow(f"noun {n:02d}", 1, 1, pack(vector_D), f"lemma {n % 20}"))
    return levels, vocabulary


def opened(levels: list[LevelRow], vocabulary: list[VocabularyRow]) -> NounTables:
    scale = LevelScale(10, 0.02, 0.3, np.zeros(WIDTH))
    return NounTables.open(
        scale, row_groups(levels, LevelRow, max_rows=16), row_groups(vocabulary, VocabularyRow, max_rows=32)
    )


def test_what_is_known_of_some_nouns_is_what_is_known_of_all(
    rows: tuple[list[LevelRow], list[VocabularyRow]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "COMPETITORS", 7)
    whole = Scorer.of(LevelScale(10, 0.02, 0.3, np.zeros(WIDTH)), *rows)
    asked = ["noun 03", "noun 07", "noun 59", "noun 03", "unknown"]
    embeddings, scorer = opened(*rows).of_nouns(pa.array(asked))
    assert embeddings == {row.noun: row.embedding for row in rows[1] if row.noun in asked}
    assert sorted(scorer.nouns) == ["noun 03", "noun 59"]  # the seventh has no level
    for noun, known in scorer.nouns.items():
        assert known._replace(prototype_D=None) == whole.nouns[noun]._replace(prototype_D=None)
        assert np.array_equal(known.prototype_D, whole.nouns[noun].prototype_D)  # type: ignore[arg-type]
    assert len(scorer.levels_C) == 7
    for name in ("lemmas_C", "levels_C", "text_CD"):
        assert np.array_equal(getattr(scorer, name), getattr(whole, name))


def test_levels_of_other_nouns_are_refused(rows: tuple[list[LevelRow], list[VocabularyRow]]) -> None:
    with pytest.raises(ValueError, match="not of the same nouns"):
        opened(rows[0], rows[1][1:])


def test_the_tables_lie_outside_of_the_memory_of_arrow(rows: tuple[list[LevelRow], list[VocabularyRow]]) -> None:
    before = pa.total_allocated_bytes()
    tables = opened(*rows)
    assert tables.vocabulary.nbytes > 1000
    assert pa.total_allocated_bytes() - before < 500


def test_a_run_without_nouns_has_tables_too() -> None:
    embeddings, scorer = opened([], []).of_nouns(pa.array(["cat"]))
    assert (embeddings, len(scorer.nouns), scorer.text_CD.shape) == ({}, 0, (0, WIDTH))


def test_nouns_compete_with_those_of_other_tables_where_these_are_given(
    rows: tuple[list[LevelRow], list[VocabularyRow]],
) -> None:
    scale, (levels, vocabulary) = LevelScale(10, 0.02, 0.3, np.zeros(WIDTH)), rows
    whole, among = Scorer.of(scale, *rows), (row_groups(levels, LevelRow), row_groups(vocabulary, VocabularyRow))
    own = ([to_table(levels[:5], LevelRow)], [to_table(vocabulary[:5], VocabularyRow)])
    tables = NounTables.open(scale, *own, among=among)
    assert 0 < len(whole.levels_C) < NOUNS
    assert np.array_equal(tables.scorer.text_CD, whole.text_CD)
    assert tables.of_nouns(pa.array(["noun 03", "noun 09"]))[0] == {"noun 03": vocabulary[3].embedding}
    with pytest.raises(ValueError, match="not of the same nouns"):
        NounTables.open(scale, *own, among=(row_groups(levels, LevelRow), row_groups(vocabulary[5:], VocabularyRow)))


def test_values_of_some_nouns_come_from_every_table() -> None:
    base, own = (
        [VocabularyRow(noun, n, 1, None) for noun, n in counts] for counts in ([("a", 3), ("b", 1)], [("b", 2)])
    )
    tables = ((row_groups(one, VocabularyRow, max_rows=1)) for one in (base, own, []))
    counts = NounValues[int].open(tables, VocabularyRow, ("noun", "images"))
    assert list(counts.of_nouns(pa.array(["b", "c", "b"]))) == [("b", 1), ("b", 2)]
