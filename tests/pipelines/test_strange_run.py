"""A run folder that somebody else handed over: the photographs that it names are used only where they are its own."""

from __future__ import annotations

import shutil
from pathlib import Path

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
from maskmine.schemas.seal import own_metadata

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
