"""A damaged Parquet file is refused, whatever bit of it is another; row groups are bounded, and read one by one."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from maskmine.schemas.mask import Mask
from maskmine.schemas.rows import ImageRow, Region, RegionsRow, VocabularyRow
from maskmine.schemas.seal import DamagedFileError, check_sealed, open_sealed, read_footer
from maskmine.schemas.tables import (
    MAX_GROUP_ROWS,
    PIECE_ROWS,
    from_pieces,
    from_table,
    read_blocks,
    read_parquet,
    row_groups,
    rows_in_order,
    to_table,
    write_parquet,
    write_parquet_pieces,
    write_parquet_rows,
)


def regions(images: int, *, each: int = 2, embedding_bytes: int = 24) -> list[RegionsRow]:
    rng = random.Random(0)
    box = (0, 0, 1, 1)
    return [
        RegionsRow(
            image_id=str(n),
            sha256=None,
            height_px=1,
            width_px=1,
            regions=tuple(
                Region(
                    mask=Mask(1, 1, b"01"),
                    box_xyxy=box,
                    area_px=1,
                    score=0.5,
                    label=None,
                    embedding=rng.randbytes(embedding_bytes),
                )
                for _ in range(each)
            ),
            rejection=None,
        )
        for n in range(images)
    ]


def sealed(rows: list[RegionsRow], **options: int) -> bytes:
    file = io.BytesIO()
    write_parquet_rows(rows, file, RegionsRow, metadata={"maskmine.fingerprint": "f"}, **options)
    return file.getvalue()


def by_groups(file: IO[bytes]) -> pa.Table:
    return pa.concat_tables(read_blocks(open_sealed(file)))


@pytest.mark.parametrize("read", [read_parquet, by_groups])
def test_no_flipped_bit_is_read_as_other_data(read: Callable[[IO[bytes]], pa.Table]) -> None:
    rows = regions(3)
    content, rng = sealed(rows), random.Random(1)
    for place in [*range(0, len(content), 5), *range(len(content) - 150, len(content))]:
        damaged = bytearray(content)
        damaged[place] ^= 1 << rng.randrange(8)
        try:
            found = from_table(read(io.BytesIO(bytes(damaged))), RegionsRow)
        except (pa.ArrowInvalid, OSError):
            continue
        assert read is by_groups, f"byte {place} of {len(content)} is another, and nothing was said"
        assert found == rows, f"byte {place} of {len(content)} gives other data"


def test_a_file_cut_short_anywhere_is_refused() -> None:
    content = sealed(regions(2))
    for length in range(0, len(content), 7):
        with pytest.raises(DamagedFileError):
            check_sealed(io.BytesIO(content[:length]))


def test_pages_carry_checksums_that_other_readers_check() -> None:
    content = bytearray(sealed(regions(40, embedding_bytes=500)))
    content[len(content) // 2] ^= 1
    with pytest.raises(OSError, match="CRC"):
        pq.ParquetFile(io.BytesIO(bytes(content)), page_checksum_verification=True).read()


def test_the_identity_follows_the_rows_and_the_metadata_alone() -> None:
    first, again, others = regions(2), regions(2), regions(3)
    identities = [check_sealed(io.BytesIO(sealed(rows))).identity for rows in (first, again, others)]
    assert identities[0] == identities[1] != identities[2]
    file = io.BytesIO()
    write_parquet_rows(first, file, RegionsRow, metadata={"maskmine.fingerprint": "g"})
    assert check_sealed(file).identity not in identities


def test_a_file_without_a_seal_is_read_and_known_by_its_bytes() -> None:
    file = io.BytesIO()
    pq.write_table(to_table([ImageRow("1", None)], ImageRow), file)
    assert from_table(read_parquet(file), ImageRow) == [ImageRow("1", None)]
    assert check_sealed(file).identity == check_sealed(file).sha256


def test_what_the_seal_adds_is_not_in_the_metadata_of_a_table() -> None:
    file = io.BytesIO(sealed(regions(1)))
    assert read_parquet(file).schema.metadata == {b"maskmine.fingerprint": b"f"}
    assert {"maskmine.rows", "maskmine.seal"} < read_footer(file).keys()


def test_row_groups_hold_so_many_bytes_and_a_piece_at_most() -> None:
    rows, limit = regions(200, embedding_bytes=100), 10_000
    piece_bytes = PIECE_ROWS * 2 * 110
    content = sealed(rows, max_bytes=limit)
    groups = list(read_blocks(open_sealed(io.BytesIO(content))))
    assert len(groups) == 4
    sizes = [sum(len(r.embedding or b"") for row in from_pieces(g, RegionsRow) for r in row.regions) for g in groups]
    assert max(sizes) < limit + piece_bytes
    assert from_table(read_parquet(io.BytesIO(content)), RegionsRow) == rows
    narrow = [VocabularyRow(str(n), 1, 1, None, "x") for n in range(MAX_GROUP_ROWS + 1)]
    assert [len(group) for group in row_groups(narrow, VocabularyRow)] == [MAX_GROUP_ROWS, 1]


def test_rows_a_table_and_rows_taken_from_tables_give_the_same_bytes() -> None:
    rows, limit = regions(50, embedding_bytes=100), 3_000
    of_table, of_pieces = io.BytesIO(), io.BytesIO()
    metadata = {"maskmine.fingerprint": "f"}
    write_parquet(to_table(rows, RegionsRow), of_table, metadata=metadata, max_bytes=limit)
    order = list(range(50))
    random.Random(0).shuffle(order)
    mixed = pa.concat_tables(
        [to_table([rows[n] for n in order[start : start + 7]], RegionsRow) for start in range(0, 50, 7)]
    )
    where = [order.index(n) for n in range(50)]
    write_parquet_pieces(rows_in_order(mixed, where), of_pieces, RegionsRow, metadata=metadata, max_bytes=limit)
    assert of_table.getvalue() == of_pieces.getvalue() == sealed(rows, max_bytes=limit)
