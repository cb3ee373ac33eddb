"""A run folder that somebody else handed over: the photographs that it names are used only where they are its own."""

from __future__ import annotations

import hashlib
import json
import shutil
import tarfile
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from maskmine.pipelines.dataset.finished_run import FinishedRun
from maskmine.pipelines.reports.contact_sheet import contact_sheet
from maskmine.pipelines.reports.duplicates import find_duplicates
from maskmine.pipelines.reports.sample_cards import make_rejected_cards
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.pipelines.steps.status import rejected_images
from maskmine.schemas.errors import IncompleteError
from maskmine.schemas.rows import SampleRow
from maskmine.schemas.sample import write_end_of_tar, write_members
from maskmine.schemas.seal import own_metadata
from tests.support.toy_shards import contents, export, write_toy_shards

RNG = np.random.default_rng(0)
SECRET_HW3 = np.stack([RNG.integers(0, 255, (48, 64)), np.zeros((48, 64)), np.full((48, 64), 255)], -1).astype(np.uint8)


@pytest.fixture
def strange(mined: Path, tmp_path: Path) -> RunFolder:
    """A finished run whose lists of images name a private picture, in violet, for each of them."""
    run = shutil.copytree(mined, tmp_path / "run")
    Image.fromarray(SECRET_HW3).save(tmp_path / "private.png")
    for path in (run / "images").glob("*.parquet"):
        table = pq.read_table(path)
        private = pa.array([str(tmp_path / "private.png")] * len(table), table.schema.field("path").type)
        table = table.set_column(table.column_names.index("path"), table.schema.field("path"), private)
        pq.write_table(table.replace_schema_metadata(own_metadata(table.schema.metadata)), path)
    return RunFolder(str(run))


def test_a_picture_that_the_run_never_read_is_neither_shown_nor_compared(strange: RunFolder, tmp_path: Path) -> None:
    drawn = contact_sheet(strange, to=tmp_path / "sheet.png")
    assert drawn.pieced == drawn.images == 4
    sheet_HW3 = np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB")).astype(int)
    assert not ((sheet_HW3[..., 2] - sheet_HW3[..., 1]) > 250).any()
    assert find_duplicates(strange, most_bits=16).groups == find_duplicates(strange, most_bits=None).groups
    finished = FinishedRun.open(strange)
    cards = make_rejected_cards(finished, list(rejected_images(strange)))
    assert len(cards) > 3
    assert {card.picture for card in cards} == {""}


def with_another_index(folder: Path, **changes: Any) -> Path:
    """A finished run whose index says something else of its first sample, and whose sums hold; a key is in its tar."""
    run = write_toy_shards(folder / "run", samples=2, scores=True)
    (run / "plan.json").write_text('{"parts": 1}')
    (run / "_SUCCESS").touch()
    tar, index = run / "shards" / "00000.tar", run / "shards" / "00000.parquet"
    table = pq.read_table(index)
    columns = {name: [value, *table[name].to_pylist()[1:]] for name, value in changes.items()}
    changed = table.to_pydict() | columns
    sealed = own_metadata(table.schema.metadata)
    pq.write_table(pa.table(changed, table.schema.with_metadata(sealed)), index)
    if "key" in changes:
        with tarfile.open(tar) as file:
            members = [(one.name, file.extractfile(one).read()) for one in file]  # type: ignore[union-attr]  # files only
        written = BytesIO()
        size_bytes = write_members(written, [(n.replace("0000-000", changes["key"]), data) for n, data in members])
        write_end_of_tar(written, size_bytes=size_bytes)
        tar.write_bytes(written.getvalue())
    manifest = json.loads((run / "manifest.json").read_text())
    hashes = {"sha256": tar, "index_sha256": index}
    manifest["shards"][0] |= {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in hashes.items()}
    (run / "manifest.json").write_text(json.dumps(manifest))
    return run


@pytest.mark.parametrize(
    "changes",
    [
        *({"key": key} for key in ("../../../evil", "/tmp/evil", "a/b-000", "0000-000\n", "0000")),
        {"shard": "../shards/00000.tar"},
        *({"offset": offset} for offset in (-512, 1 << 62)),
        *({"size_bytes": size} for size in (0, -1, 1 << 62)),
    ],
)
def test_an_index_that_leads_out_of_its_shard_is_neither_exported_nor_shown(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    run = with_another_index(tmp_path / "a" / "b", **changes)
    before = contents(tmp_path)
    for to in ("ovseg", "webdataset"):
        with pytest.raises(IncompleteError, match=r"00000\.parquet: names samples that no run writes"):
            export(run, tmp_path / "a" / "b" / "out", to)
    assert contents(tmp_path) == before
    with pytest.raises(IncompleteError):
        FinishedRun.open(RunFolder(str(run))).rows(0, SampleRow)
