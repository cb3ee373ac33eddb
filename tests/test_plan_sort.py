"""Rows come sorted out of files that are larger than what is in memory."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.plan_sort import read_spilled, sorted_tables, spill

SCHEMA = pa.schema([("key", pa.uint64()), ("name", pa.string())])
KEYS = st.sampled_from([0, 1, 255, 256, 2**56, 2**63, 2**64 - 1]) | st.integers(0, 2**64 - 1)


def table(rows: list[tuple[int, str]]) -> pa.Table:
    return pa.table([[key for key, _ in rows], [name for _, name in rows]], schema=SCHEMA)


@settings(max_examples=25)
@given(
    st.lists(st.lists(st.tuples(KEYS, st.text(max_size=3)), max_size=20), max_size=6), st.sampled_from([1, 100, 10**6])
)
def test_all_rows_come_back_by_key_then_name_whatever_fits_into_memory(
    tables: list[list[tuple[int, str]]], most_bytes: int
) -> None:
    with TemporaryDirectory() as folder:
        size_bytes = spill(map(table, tables), f"{folder}/rows", schema=SCHEMA)
        found = list(
            sorted_tables(f"{folder}/rows", size_bytes=size_bytes, key="key", then=("name",), most_bytes=most_bytes)
        )
        left = list(Path(folder).iterdir())
    rows = [(row["key"], row["name"]) for one in found for row in one.to_pylist()]
    assert rows == sorted((row for some in tables for row in some), key=lambda row: (row[0], row[1].encode()))
    assert left == []
    owners: dict[int, int] = {}
    for number, one in enumerate(found):
        for key in one["key"].to_pylist():
            assert owners.setdefault(key, number) == number  # rows of one key are never torn apart


def test_what_is_spilled_is_read_in_pieces_in_its_order(tmp_path: Path) -> None:
    rows = [(n, "x" * 1000) for n in range(20_000)]
    spill((table(rows[start : start + 500]) for start in range(0, len(rows), 500)), f"{tmp_path}/rows", schema=SCHEMA)
    pieces = list(read_spilled(f"{tmp_path}/rows"))
    assert len(pieces) > 1
    assert [key for piece in pieces for key in piece["key"].to_pylist()] == list(range(20_000))
