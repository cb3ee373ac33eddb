"""The nouns of a set are counted over all of its indexes, some of them in a query at a time."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from maskmine.pipelines.dataset import publish
from maskmine.pipelines.run_folder.folder import RunFolder

INDEXES = [
    [("cat", "coco"), ("dog", "coco"), ("cat", None)],
    [("cat", "web"), ("sky", "coco")],
    [],
    [("dog", "coco"), ("leaf", None), ("cat", "web")],
]


@pytest.mark.parametrize("at_once", [1, 2, 500])
def test_a_noun_of_several_slices_counts_once(at_once: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish, "_INDEXES_AT_ONCE", at_once)
    run = RunFolder(str(tmp_path))
    (tmp_path / "shards").mkdir()
    for part, rows in enumerate(INDEXES):
        columns = {name: pa.array([row[place] for row in rows], pa.string()) for place, name in enumerate(_NAMES)}
        pq.write_table(pa.table(columns), run.cell_path("shards", part))
    assert publish.count_nouns(run, len(INDEXES)) == (4, [])
    assert publish.count_nouns(run, len(INDEXES), with_sources=True) == (4, ["coco", "web"])


_NAMES = ("noun", "source")
