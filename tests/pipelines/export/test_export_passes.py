"""Exports of many parts: how often an index is read, how samples become shards, what becomes of small parts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain, groupby, pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskmine.mining.exports import hugging_face
from maskmine.mining.exports.filters import Selection, split_of
from maskmine.pipelines.cli.main import run_app
from maskmine.pipelines.export.export import Export, export_run
from maskmine.pipelines.export.selected import SplitRows, Unit, select_samples
from maskmine.pipelines.run_folder.folder import RunFolder, read_folder
from tests.support.toy_shards import contents, export, halves, write_toy_shards

IDS = [f"{number:03d}" for number in range(40)]


@pytest.fixture
def small_parts(tmp_path: Path) -> Path:
    """24 samples in parts of two, their nouns in turn."""
    run = write_toy_shards(tmp_path / "run", per_shard=2)
    (run / "_SUCCESS").touch()
    (run / "plan.json").write_text("{}")
    return run


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each index was read."""
    counts, read_bytes = Counter[str](), RunFolder.read_bytes

    def counting(self: RunFolder, *names: str) -> bytes:
        counts.update([names[-1]] if names[-1].endswith(".parquet") else [])
        return read_bytes(self, *names)

    monkeypatch.setattr(RunFolder, "read_bytes", counting)
    return counts


@pytest.mark.parametrize("to", ["parquet", "webdataset", "hf"])
def test_an_index_is_read_once_to_count_and_again_where_some_of_it_is_exported(
    small_parts: Path, read: Counter[str], to: str, tmp_path: Path
) -> None:
    export(small_parts, tmp_path / "out", to, selection=Selection(nouns=("cherry",)))
    assert sorted(read) == [f"{part:05d}.parquet" for part in range(12)]
    assert [read[f"{part:05d}.parquet"] for part in range(12)] == [2, 1] * 6  # cherry, sky | leaf, lemon


def test_nouns_that_no_pair_has_are_named(small_parts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["export", str(small_parts), "--to", "parquet", "--out"]
    assert run_app([*command, str(small_parts / "some"), "--nouns", "sky,skies,unicorn"]) == 0
    assert "--nouns: no pair that passes has skies, unicorn\n" in capsys.readouterr().err
    assert run_app([*command, str(small_parts / "sky"), "--nouns", "sky"]) == 0
    assert "--nouns" not in capsys.readouterr().err


def test_what_is_written_already_is_not_read_again(small_parts: Path, read: Counter[str], tmp_path: Path) -> None:
    whole = export(small_parts, tmp_path / "whole", "parquet", samples_per_piece=6)
    asked, begun = Export(format="parquet", samples_per_piece=6), tmp_path / "begun"

    def stop(more: int, seen: list[int] = []) -> None:  # noqa: B006 (counts over all calls)
        seen.append(more)
        if sum(seen) == 14:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_run(read_folder(str(small_parts)), asked, out=str(begun), begin=lambda _: stop)
    read.clear()
    export_run(read_folder(str(small_parts)), asked, out=str(begun))
    assert [read[f"{part:05d}.parquet"] for part in range(12)] == [1] * 6 + [2] * 6
    assert contents(begun) == contents(whole)


class Indexes:
    """Stands in for a reader: `parts` are the image ids of the samples of each part."""

    def __init__(self, parts: Sequence[Sequence[str]]) -> None:
        self.parts = parts

    def _table(self, ids: Sequence[str], selection: Selection) -> pa.Table:
        splits = [split_of(image_id, selection) for image_id in ids]
        return pa.table({name: pa.array(values, pa.string()) for name, values in _columns(ids, splits)})

    def selected_columns(self, selection: Selection, columns: Sequence[str]) -> Iterator[pa.Table]:
        return (self._table(ids, selection) for ids in self.parts)

    def table(self, part: int, selection: Selection, split: str) -> pa.Table:
        table = self._table(self.parts[part], selection)
        return table.filter(pa.compute.equal(table["split"], split))


def _columns(ids: Sequence[str], splits: Sequence[str]) -> list[tuple[str, Sequence[str]]]:
    return [("image_id", ids), ("noun", ["cat"] * len(ids)), ("split", splits)]


def _parts(samples_of_images: Sequence[int], images_per_part: int) -> list[list[str]]:
    images = [[image_id] * samples for image_id, samples in zip(IDS, samples_of_images, strict=False)]
    starts = range(0, len(images), images_per_part)
    return [list(chain.from_iterable(images[start : start + images_per_part])) for start in starts]


@given(
    st.lists(st.integers(0, 5), max_size=len(IDS)),
    st.integers(1, 7),
    st.integers(1, 9),
    st.sampled_from(["pair", "image", "part", "split"]),
)
def test_shards_have_all_samples_in_order_and_end_where_they_may(
    samples_of_images: list[int], images_per_part: int, most: int, unit: Unit
) -> None:
    parts, selection = _parts(samples_of_images, images_per_part), halves()
    reader: Any = Indexes(parts)
    selected = select_samples(reader, selection, unit=unit, samples_per_shard=most)
    for split in ("train", "val"):
        wanted = [[image_id for image_id in part if split_of(image_id, selection) == split] for part in parts]
        all_of_it = list(chain.from_iterable(wanted))
        rows, found = SplitRows(selected, split), list[list[str]]()
        for number, samples in enumerate(selected.shards[split]):
            if number % 3 == 2:  # one that is there already
                rows.skip(samples)
                found.append(all_of_it[sum(map(len, found)) :][:samples])
            else:
                found.append([image_id for table in rows.take(samples) for image_id in table["image_id"].to_pylist()])
        assert list(chain.from_iterable(found)) == all_of_it
        assert selected.totals.samples[split] == len(all_of_it)
        assert selected.totals.images[split] == len(set(all_of_it))
        if unit == "pair":
            assert [len(shard) for shard in found[:-1]] == [most] * (len(found) - 1)
        elif unit == "image":
            of_images = [len(list(same)) for _, same in groupby(all_of_it)]
            assert all(most <= len(shard) < most + max(of_images) for shard in found[:-1])
            assert not any(set(one) & set(other) for one, other in pairwise(found))
        elif unit == "part":
            assert found == ([part for part in wanted if part] or [[]])
        else:
            assert found == [all_of_it]


def test_many_small_parts_become_larger_row_groups_of_a_table(
    small_parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = pq.ParquetFile(export(small_parts, tmp_path / "whole", "parquet") / "train" / "00000.parquet")
    monkeypatch.setattr(hugging_face, "_OWN_GROUPS", 3)
    monkeypatch.setattr(hugging_face, "_TABLE_ROWS", 8)
    joined = pq.ParquetFile(export(small_parts, tmp_path / "joined", "parquet") / "train" / "00000.parquet")
    sizes = [joined.metadata.row_group(number).num_rows for number in range(joined.num_row_groups)]
    assert sizes == [2, 2, 2, 8, 8, 2]
    assert joined.read().equals(whole.read())
