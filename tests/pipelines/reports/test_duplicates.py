"""Copies among the images of a run: by their bytes, by what they look like, across parts."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from PIL import Image

from maskmine.pipelines.cli.main import run_app
from maskmine.pipelines.dataset.finished_run import FinishedRun
from maskmine.pipelines.planning.plan import PLANNED, Plan
from maskmine.pipelines.reports.duplicates import find_duplicates
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.schemas.manifest import Manifest
from maskmine.schemas.rows import ImageRow, ProposalsRow


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A run's images: 1 and 4 are one file, 2 and 5 one photograph in two qualities, 3 is another, 6 and 7 are grey."""
    rng = np.random.default_rng(0)
    small = {name: Image.fromarray(rng.integers(0, 255, (6, 6, 3), np.uint8)) for name in ("1", "2", "3")}
    photos = {name: image.resize((96, 96), Image.Resampling.BICUBIC) for name, image in small.items()}
    photos |= {"6": Image.new("RGB", (64, 64), (128, 128, 128)), "7": Image.new("RGB", (64, 64), (9, 9, 9))}
    for name, image in photos.items():
        image.save(tmp_path / f"{name}.jpg", quality=95)
    (tmp_path / "4.jpg").write_bytes((tmp_path / "1.jpg").read_bytes())
    photos["2"].resize((64, 64)).save(tmp_path / "5.jpg", quality=40)
    run = RunFolder(str(tmp_path))
    parts = (("1", "2", "3", "8"), ("4", "5", "6", "7"))
    for part, names in enumerate(parts):
        rows = [ImageRow(name, str(tmp_path / f"{name}.jpg")) for name in names]
        run.write_rows("images", f"{part:05d}.parquet", rows=rows, row_type=ImageRow, fingerprint=PLANNED)
        digests = [
            None if name == "8" else hashlib.sha256((tmp_path / f"{name}.jpg").read_bytes()).hexdigest()
            for name in names
        ]
        regions = [
            ProposalsRow(image_id=n, sha256=digest, height_px=1, width_px=1, regions=(), rejection=None)
            for n, digest in zip(names, digests, strict=True)
        ]
        run.write_rows("proposals", f"{part:05d}.parquet", rows=regions, row_type=ProposalsRow, fingerprint="")
    plan = Plan(images=8, parts=2, images_sha256="", captions_sha256="", source={}, inputs=None)
    run.write_json("plan.json", value=asdict(plan))
    manifest = cast("Manifest", SimpleNamespace(mixed_from=(), versions=()))  # of a run; no more is read of it here
    monkeypatch.setattr(FinishedRun, "open_complete", lambda folder: FinishedRun(folder, manifest))
    return run


def test_copies_are_found_by_bytes_and_by_looks_across_parts(run: RunFolder) -> None:
    found = find_duplicates(run)
    assert [group.images for group in found.groups] == [((0, "1"), (1, "4")), ((0, "2"), (1, "5"))]
    assert [group.same_bytes for group in found.groups] == [True, False]
    assert (found.images, found.unread, found.copies) == (7, 1, 2)
    exact = find_duplicates(run, most_bits=None)
    assert [group.images for group in exact.groups] == [((0, "1"), (1, "4"))]


def test_the_command_lists_groups_or_prints_a_line_of_json_each(
    run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_app(["duplicates", run.root, "--exact"]) == 0
    assert "images: 7, groups of copies: 1, images more than needed: 1, not readable: 1" in capsys.readouterr().out
    assert run_app(["duplicates", run.root, "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["images"] for line in lines] == [[[0, "1"], [1, "4"]], [[0, "2"], [1, "5"]]]
