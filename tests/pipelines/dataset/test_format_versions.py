"""Runs of format versions 1 and 2 are read as those of today: reports, differences, exports, checks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from maskmine.pipelines.cli.main import run_app
from maskmine.pipelines.dataset.finished_run import FinishedRun
from maskmine.pipelines.dataset.verify import verify_run
from maskmine.pipelines.evaluate.pairs import evaluate_pairs
from maskmine.pipelines.reports.diff import compare_runs
from maskmine.pipelines.reports.duplicates import find_duplicates
from maskmine.pipelines.reports.report import make_report, render_report
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.schemas.rows import PairsRow, VocabularyRow
from maskmine.schemas.sample import record_keys
from tests.support import toy
from tests.support.models import save_tiny_clip
from tests.support.runs import config, run_toy, samples
from tests.support.toy_shards import as_version, export, members
from tests.support.web.browser import Page

pytestmark = pytest.mark.usefixtures("one_tagger")
VERSIONS = (1, 2, 3)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.write_toy_world(tmp_path_factory.mktemp("versions"))


@pytest.fixture(scope="module")
def runs(world: Path) -> dict[int, RunFolder]:
    """One run, as each version would have written it."""
    regions: dict[str, Any] = {
        "proposals": {"kind": "ground_truth", "annotations": str(world / "instances.json")},
        "keep": {"min_area_px": 1},
        "clip": {"model": str(save_tiny_clip(world / "clip"))},
        "device": "cpu",
    }
    run, _, _ = run_toy(config(world, regions, world / "3"), "vocabulary.templates=raw")
    older = {version: str(as_version(Path(run.root), world / str(version), version)) for version in VERSIONS[:2]}
    return {version: RunFolder(root) for version, root in older.items()} | {3: run}


@pytest.mark.parametrize("version", VERSIONS)
def test_a_run_of_any_version_verifies_and_is_shown(
    runs: dict[int, RunFolder], version: int, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = runs[version]
    assert list(verify_run(run)) == []
    assert run_app(["show", run.root, "--to", str(tmp_path / "sheet.png")]) == 0
    assert "9 pairs" in capsys.readouterr().out
    assert find_duplicates(run).images == 8
    evaluation = evaluate_pairs(run, truth=str(world / "instances.json"))
    assert evaluation.metrics.outcomes.total() == 9


@pytest.mark.parametrize("version", VERSIONS)
def test_levels_are_read_where_the_version_has_them(runs: dict[int, RunFolder], version: int) -> None:
    finished = FinishedRun.open_complete(runs[version])
    levels = finished.levels()
    if version < 3:
        assert levels is None
        assert all(pair.lift is None for row in finished.all_rows(PairsRow) for pair in row.pairs)
        return
    assert levels is not None
    vocabulary = finished.folder.read_rows("vocabulary.parquet", row_type=VocabularyRow)
    assert [row.noun for row in levels] == [row.noun for row in vocabulary]


@pytest.mark.parametrize("version", VERSIONS)
def test_a_report_of_any_version_says_what_is_known(runs: dict[int, RunFolder], version: int, world: Path) -> None:
    report = make_report(runs[version], truth=str(world / "instances.json"))
    words = Page(render_report(report)).words
    sure = report.sureness
    assert (sure.every.pairs, sure.written.pairs) == (9, 9)
    assert ("has no levels of nouns" in words) == (version < 3)
    assert (sure.visibility is None) == (sure.evidence is None) == (sure.written.evidence_median is None)
    assert (sure.evidence is None) == (version < 3)


@pytest.mark.parametrize("old", VERSIONS)
@pytest.mark.parametrize("new", VERSIONS)
def test_runs_of_two_versions_are_compared_by_the_scores_that_both_have(
    runs: dict[int, RunFolder], old: int, new: int
) -> None:
    found = compare_runs(runs[old], runs[new])
    assert (found.kept, found.gained, found.lost) == (9, 0, 0)
    both = ["similarity", "margin", *(["lift", "evidence"] if min(old, new) == 3 else [])]
    assert [(shift.score, shift.changed) for shift in found.shifts] == [(score, 0) for score in both]


@pytest.mark.parametrize("version", VERSIONS)
def test_an_export_of_any_version_has_what_the_version_has(
    runs: dict[int, RunFolder], version: int, tmp_path: Path
) -> None:
    run = Path(runs[version].root)
    copied = export(run, tmp_path / "webdataset", "webdataset")
    found = members(*copied.glob("train/*.tar"))
    assert found == members(*sorted(run.glob("shards/*.tar")))
    records = [json.loads(content) for name, content in found.items() if name.endswith(".json")]
    assert {frozenset(record) for record in records} == {record_keys(version)}
    assert json.loads((copied / "export.json").read_text())["run"]["format_version"] == version
    by_key = {row.key: row for row in samples(runs[3])}
    for to, path in (("hf", "data/*.parquet"), ("parquet", "train/*.parquet")):
        (file,) = export(run, tmp_path / to, to).glob(path)
        table = pq.read_table(file)
        for score in ("similarity", "lift", "evidence", "confidence"):
            wanted = [getattr(by_key[key], score) for key in table["key"].to_pylist()]
            assert table[score].to_pylist() == ([None] * 9 if score != "similarity" and version < 3 else wanted)
    (entry, *_) = json.loads((export(run, tmp_path / "coco", "coco") / "train.json").read_text())["annotations"]
    assert entry["lift"] == (None if version < 3 else by_key[entry["key"]].lift)


def test_a_threshold_that_no_pair_can_reach_is_told_with_the_reason(
    runs: dict[int, RunFolder], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for version, score, why in (
        (2, "lift", "no lift, as format version 2 has none; mine again, or leave it out"),
        (3, "confidence", "no confidence, as they were mined without a calibration"),
        (3, "evidence", "the filters leave none of 9 pairs; widen them"),
    ):
        options = ["--to", "parquet", f"--min-{score}", "1", "--out", str(tmp_path / "out")]
        options = [*options[:3], "999", *options[4:]] if score == "evidence" else options
        assert run_app(["export", runs[version].root, *options]) == 2
        assert why in capsys.readouterr().err
