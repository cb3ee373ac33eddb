"""Rows come sorted out of files that are larger than what is in memory."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskmine.pipelines.planning import external_sort
from maskmine.pipelines.planning.external_sort import read_spilled, sorted_tables, spill, whole_groups

SCHEMA = pa.schema([("key", pa.uint64()), ("name", pa.string())])
KEYS = st.sampled_from([0, 1, 255, 256, 2**56, 2**63, 2**64 - 1]) | st.integers(0, 2**64 - 1)


def table(rows: list[tuple[int, str]]) -> pa.Table:
    return pa.table([[key for key, _ in rows], [name for _, name in rows]], schema=SCHEMA)


@settings(max_examples=25)
@given(
    st.lists(st.lists(st.tuples(KEYS, st.text(max_size=3)), max_size=20), max_size=6), st.sampled_from([1, 3, 10_000])
)
def test_all_rows_come_back_by_key_then_name_in_batches_of_any_size(
    tables: list[list[tuple[int, str]]], batch_rows: int
) -> None:
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(external_sort, "_BATCH_ROWS", batch_rows)
        found = list(whole_groups(sorted_tables(map(table, tables), folder, by=("key", "name")), key="key"))
        left = list(Path(folder).iterdir())
    rows = [(row["key"], row["name"]) for one in found for row in one.to_pylist()]
    assert rows == sorted((row for some in tables for row in some), key=lambda row: (row[0], row[1].encode()))
    assert left == []
    owners: dict[int, int] = {}
    for number, one in enumerate(found):
        for key in one["key"].to_pylist():
            assert owners.setdefault(key, number) == number  # rows of one key are never torn apart


def test_rows_beyond_the_memory_limit_are_sorted_in_files_that_are_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(external_sort, "_MEMORY_LIMIT", "32MB")
    numbers = [n * 0x9E3779B97F4A7C15 % 2**64 for n in range(400_000)]
    tables = (table([(n, f"{n:0100}") for n in numbers[start : start + 10_000]]) for start in range(0, 400_000, 10_000))
    pieces = sorted_tables(tables, str(tmp_path), by=["key"])
    found = [next(pieces)]
    assert list(tmp_path.iterdir())
    found += pieces
    assert [key for piece in found for key in piece["key"].to_pylist()] == sorted(numbers)
    assert max(map(len, found)) < 100_000
    assert not list(tmp_path.iterdir())


def test_a_source_that_fails_on_the_way_fails_the_sorting(tmp_path: Path) -> None:
    def failing() -> object:
        yield table([(n, "x") for n in range(500)])
        raise RuntimeError("the file ends")

    with pytest.raises(RuntimeError, match="the file ends"):
        next(sorted_tables(failing(), str(tmp_path), by=["key"]))  # type: ignore[arg-type]


def test_what_is_spilled_is_read_in_pieces_in_its_order(tmp_path: Path) -> None:
    rows = [(n, "x" * 1000) for n in range(20_000)]
    spill((table(rows[start : start + 500]) for start in range(0, len(rows), 500)), f"{tmp_path}/rows", schema=SCHEMA)
    pieces = list(read_spilled(f"{tmp_path}/rows"))
    assert len(pieces) > 1
    assert [key for piece in pieces for key in piece["key"].to_pylist()] == list(range(20_000))


def test_the_schema_is_that_of_the_tables_lists_included(tmp_path: Path) -> None:
    captions = pa.field("captions", pa.list_(pa.field("item", pa.string(), nullable=False)), nullable=False)
    schema = pa.schema([("key", pa.uint64()), captions])
    given_table = pa.table(
        [pa.array(values, field.type) for values, field in zip(([2, 1], [["a", "b"], []]), schema, strict=True)],
        schema=schema,
    )
    spill(sorted_tables([given_table], str(tmp_path), by=["key"]), f"{tmp_path}/rows", schema=schema)
    (piece,) = read_spilled(f"{tmp_path}/rows")
    assert piece["captions"].to_pylist() == [[], ["a", "b"]]
