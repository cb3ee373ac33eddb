"""Rows come sorted out of files that are larger than what is in memory."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.plan_sort import read_spilled, sorted_tables, spill

SCHEMA = pa.schema([("key", pa.uint64()), ("name", pa.string())])
KEYS = st.sampled_from([0, 1, 255, 256, 2**56, 2**63, 2**64 - 1]) | st.integers(0, 2**64 - 1)


def table(rows: list[tuple[int, str]]) -> pa.Table:
    return pa.table([[key for key, _ in rows], [name for _, name in rows]], schema=SCHEMA)


@settings(max_examples=25)
@given(
    st.lists(st.lists(st.tuples(KEYS, st.text(max_size=3)), max_size=20), max_size=6), st.sampled_from([30, 100, 10**6])
)
def test_all_rows_come_back_by_key_then_name_whatever_fits_into_memory(
    tables: list[list[tuple[int, str]]], most_bytes: int
) -> None:
    with TemporaryDirectory() as folder:
        given_rows = map(table, tables)
        found = list(sorted_tables(given_rows, f"{folder}/rows", key="key", then=("name",), most_bytes=most_bytes))
        left = list(Path(folder).iterdir())
    rows = [(row["key"], row["name"]) for one in found for row in one.to_pylist()]
    assert rows == sorted((row for some in tables for row in some), key=lambda row: (row[0], row[1].encode()))
    assert left == []
    owners: dict[int, int] = {}
    for number, one in enumerate(found):
        for key in one["key"].to_pylist():
            assert owners.setdefault(key, number) == number  # rows of one key are never torn apart


def test_no_table_is_larger_than_memory_where_keys_differ(tmp_path: Path) -> None:
    rows = [(n * 0x9E3779B97F4A7C15 % 2**64, "x" * 100) for n in range(5_000)]
    tables = (table(rows[start : start + 500]) for start in range(0, len(rows), 500))
    found = list(sorted_tables(tables, f"{tmp_path}/rows", key="key", most_bytes=4_000))
    assert sum(map(len, found)) == len(rows)
    assert max(one.nbytes for one in found) <= 4_000


def test_a_source_that_fails_on_the_way_fails_the_sorting(tmp_path: Path) -> None:
    def failing() -> object:
        yield table([(n, "x") for n in range(500)])
        raise RuntimeError("the file ends")

    with pytest.raises(RuntimeError, match="the file ends"):
        next(sorted_tables(failing(), f"{tmp_path}/rows", key="key", most_bytes=1_000))  # type: ignore[arg-type]


def test_what_is_spilled_is_read_in_pieces_in_its_order(tmp_path: Path) -> None:
    rows = [(n, "x" * 1000) for n in range(20_000)]
    spill((table(rows[start : start + 500]) for start in range(0, len(rows), 500)), f"{tmp_path}/rows", schema=SCHEMA)
    pieces = list(read_spilled(f"{tmp_path}/rows"))
    assert len(pieces) > 1
    assert [key for piece in pieces for key in piece["key"].to_pylist()] == list(range(20_000))
