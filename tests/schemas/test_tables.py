"""Rows survive Arrow and Parquet, and Parquet bytes depend on the content alone."""

from __future__ import annotations

import io
from dataclasses import dataclass

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskmine.schemas import rows
from maskmine.schemas.columns import arrow_schema
from maskmine.schemas.mask import Mask
from maskmine.schemas.shard_entries import ShardEntry
from maskmine.schemas.tables import check_index, from_table, read_parquet, to_table, write_parquet

TEXT = st.text(st.characters(codec="utf-8"), max_size=8)
INT = st.integers(-(2**63), 2**63 - 1)
BOX = st.tuples(INT, INT, INT, INT)
REJECTIONS = st.none() | st.builds(rows.Rejection, st.sampled_from(rows.REASONS), TEXT)
MASKS = st.builds(Mask, INT, INT, st.binary(max_size=8))
FLOAT = st.floats(allow_nan=False)
REGIONS = st.builds(
    rows.Region,
    mask=MASKS,
    box_xyxy=BOX,
    area_px=INT,
    score=FLOAT,
    label=st.none() | TEXT,
    embedding=st.none() | st.binary(max_size=4),
)
ROWS = {
    rows.ImageRow: st.builds(rows.ImageRow, TEXT, st.none() | TEXT),
    rows.CaptionsRow: st.builds(rows.CaptionsRow, TEXT, st.lists(TEXT, max_size=3).map(tuple)),
    rows.RegionsRow: st.builds(
        rows.RegionsRow,
        image_id=TEXT,
        sha256=st.none() | TEXT,
        height_px=INT,
        width_px=INT,
        regions=st.lists(REGIONS, max_size=3).map(tuple),
        rejection=REJECTIONS,
    ),
}


@pytest.mark.parametrize("row_type", ROWS)
@given(data=st.data())
def test_rows_survive_parquet(row_type: type, data: st.DataObject) -> None:
    written = data.draw(st.lists(ROWS[row_type], max_size=4))
    file = io.BytesIO()
    write_parquet(to_table(written, row_type), file)
    assert from_table(read_parquet(io.BytesIO(file.getvalue())), row_type) == written


def test_the_metadata_is_in_the_footer_and_the_same_rows_give_the_same_bytes() -> None:
    table = to_table([rows.ImageRow("1", None)], rows.ImageRow)
    files = [io.BytesIO(), io.BytesIO()]
    for file, metadata in zip(files, [{"a": "1", "b": "2"}, {"b": "2", "a": "1"}], strict=True):
        write_parquet(table, file, metadata=metadata)
    assert files[0].getvalue() == files[1].getvalue()
    assert read_parquet(io.BytesIO(files[0].getvalue())).schema.metadata == {b"a": b"1", b"b": b"2"}


def test_the_schema_follows_the_types() -> None:
    schema = arrow_schema(rows.Pair)
    assert schema.field("similarity") == pa.field("similarity", pa.float64(), nullable=True)
    assert schema.field("noun") == pa.field("noun", pa.string(), nullable=False)
    assert arrow_schema(rows.Region).field("box_xyxy").type.list_size == 4


def test_a_table_of_other_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="does not hold CaptionsRow rows"):
        from_table(to_table([], rows.ImageRow), rows.CaptionsRow)


def test_a_type_without_an_arrow_form_is_refused() -> None:
    @dataclass(frozen=True)
    class Odd:
        value: complex

    with pytest.raises(TypeError, match="no Arrow type"):
        arrow_schema(Odd)


def test_the_index_of_an_empty_shard_names_nothing_wrong() -> None:
    shard = ShardEntry(name="00002.tar", images=3, samples=0, size_bytes=1024, sha256="", index_sha256="")
    check_index(to_table([], rows.SampleRow), shard=shard, path="shards/00002.parquet")
