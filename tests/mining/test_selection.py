"""The filters, pair by pair and over the whole run."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskmine.mining.pairs import ClipPairs, Filters
from maskmine.mining.selection import cap_nouns, keep_pair, pair_hash
from maskmine.schemas.rows import Pair, PairsRow
from maskmine.schemas.tables import to_table, write_parquet


def pair(noun: str, *, similarity: float | None = 0.3, margin: float | None = 0.1) -> Pair:
    return Pair(
        noun=noun, lemma=noun, caption=0, start=0, end=len(noun), region=0, similarity=similarity, margin=margin, rank=0
    )


def write_cells(folder: Path, rows: list[PairsRow], *, parts: int) -> list[str]:
    paths = []
    for part in range(parts):
        path = folder / f"{part:05d}.parquet"
        with path.open("wb") as file:
            write_parquet(to_table(rows[part::parts], PairsRow), file)
        paths.append(str(path))
    return paths


@pytest.mark.parametrize(
    ("filters", "kept"),
    [
        (ClipPairs(), True),
        (ClipPairs(min_similarity=0.3), True),
        (ClipPairs(min_similarity=0.31), False),
        (ClipPairs(min_margin=0.1), True),
        (ClipPairs(min_margin=0.11), False),
        (ClipPairs(min_count=2), True),
        (ClipPairs(min_count=3), False),
    ],
)
def test_each_threshold_is_a_least_value(filters: Filters, kept: bool) -> None:
    keep = keep_pair(filters, images_of_noun={"cat": 2}, last_kept={})
    assert keep("1", 0, pair("cat")) is kept


@pytest.mark.parametrize("parts", [1, 3])
def test_a_noun_is_capped_to_the_pairs_of_the_smallest_hashes(tmp_path: Path, parts: int) -> None:
    rows = [PairsRow(f"image{n}", (pair("cat"), pair(f"rare{n}")), None) for n in range(9)]
    cuts = cap_nouns(Filters(max_per_noun=4), write_cells(tmp_path, rows, parts=parts))
    assert [cut.noun for cut in cuts] == ["cat"]
    keep = keep_pair(Filters(max_per_noun=4), images_of_noun={"cat": 9}, last_kept={c.noun: c.last for c in cuts})
    kept = {row.image_id for row in rows if keep(row.image_id, 0, row.pairs[0])}
    assert kept == set(sorted((row.image_id for row in rows), key=lambda image_id: pair_hash(image_id, 0))[:4])


def test_pairs_below_a_threshold_do_not_count_for_the_cap(tmp_path: Path) -> None:
    rows = [PairsRow(str(n), (pair("cat", similarity=n / 10),), None) for n in range(6)]
    cells = write_cells(tmp_path, rows, parts=2)
    assert cap_nouns(ClipPairs(max_per_noun=3, min_similarity=0.3), cells) == []
    assert len(cap_nouns(ClipPairs(max_per_noun=3, min_similarity=0.2), cells)) == 1


def test_without_a_cap_nothing_is_read() -> None:
    assert cap_nouns(Filters(), ["/nowhere/00000.parquet"]) == []


@given(st.lists(st.integers(0, 40), unique=True, min_size=1, max_size=30), st.integers(1, 12))
def test_a_cap_keeps_exactly_so_many(numbers: list[int], most: int) -> None:
    hashes = sorted(pair_hash(str(n), 0) for n in numbers)
    last = {"cat": hashes[most - 1]} if len(hashes) > most else {}
    keep = keep_pair(Filters(max_per_noun=most), images_of_noun={"cat": 99}, last_kept=last)
    assert sum(keep(str(n), 0, pair("cat")) for n in numbers) == min(most, len(numbers))


@pytest.mark.parametrize(("written", "kept"), [(0, 4), (1, 3), (4, 0), (9, 0)])
def test_pairs_that_are_written_take_the_first_places_of_their_noun(tmp_path: Path, written: int, kept: int) -> None:
    rows = [PairsRow(f"image{n}", (pair("cat"), pair(f"rare{n}")), None) for n in range(9)]
    with (tmp_path / "index.parquet").open("wb") as file:
        pq.write_table(pa.table({"noun": ["cat"] * written + ["dog"] * 9}), file)
    filters = Filters(max_per_noun=4)
    cuts = cap_nouns(filters, write_cells(tmp_path, rows, parts=2), written=[str(tmp_path / "index.parquet")])
    keep = keep_pair(filters, images_of_noun={}, last_kept={c.noun: c.last for c in cuts})
    by_hash = sorted((row.image_id for row in rows), key=lambda image_id: pair_hash(image_id, 0))
    assert [image_id for image_id in by_hash if keep(image_id, 0, pair("cat"))] == by_hash[:kept]
    assert all(keep(row.image_id, 1, row.pairs[1]) for row in rows)
