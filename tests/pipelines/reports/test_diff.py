"""Two runs held against each other: what is kept, gained and lost is known by hand."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from maskmine.pipelines.cli.main import run_app
from maskmine.pipelines.reports.charts import Histogram
from maskmine.pipelines.reports.diff import Diff, Shift, compare_runs, shift_words, write_diff
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.schemas.errors import IncompleteError
from maskmine.schemas.rows import SampleRow
from maskmine.schemas.tables import from_table, to_table, write_parquet
from tests.support import toy
from tests.support.runs import run_toy
from tests.support.web.browser import Page, faults_of_page, started_browser

pytestmark = pytest.mark.usefixtures("one_tagger")

OTHERS = {11: "A square and a square bar.", 13: "A square.", 14: "One disc.", 15: "A disc.", 12: "One long bar."}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, RunFolder]:
    """The toy world's pairs, and those of other captions in parts of another size."""
    world = toy.write_toy_world(tmp_path_factory.mktemp("diff"))
    old, _, _ = run_toy(toy.write_config(world, out=world / "old"))
    content = json.loads((world / "captions.json").read_text())
    content["annotations"] = [{"id": n, "image_id": n, "caption": text} for n, text in OTHERS.items()]
    (world / "others.json").write_text(json.dumps(content))
    changes = [f"captions.annotations={world / 'others.json'}", "shards.images_per_part=8", f"out={world / 'new'}"]
    new, _, _ = run_toy(toy.write_config(world, out=world / "old"), *changes)
    return old, new


@pytest.fixture(scope="module")
def found(runs: tuple[RunFolder, RunFolder]) -> Diff:
    return compare_runs(*runs)


def test_pairs_are_kept_gained_and_lost(found: Diff) -> None:
    # old: 11 square, disc; 12 bar; 13 bar, square; 14 discs, disc. new: 11 square; 12 bar; 13 square; 14, 15 disc
    assert (found.old.pairs, found.new.pairs) == (7, 5)
    assert (found.kept, found.gained, found.lost, found.moved) == (4, 1, 3, 0)
    assert (found.images_gained, found.images_lost) == (1, 0)
    assert (found.nouns_new, found.nouns_gone) == (0, 1)
    assert found.gone_nouns == (("discs", 1),)
    assert [(row.image_id, row.noun) for row in found.gained_samples] == [("15", "disc")]
    assert {(row.image_id, row.noun) for row in found.lost_samples} == {("11", "disc"), ("13", "bar"), ("14", "discs")}
    assert found.shifts == ()
    assert found.shift_histogram is None


def test_the_other_way_round_gains_are_losses(runs: tuple[RunFolder, RunFolder], found: Diff) -> None:
    back = compare_runs(runs[1], runs[0])
    assert (back.kept, back.gained, back.lost) == (found.kept, found.lost, found.gained)
    assert (back.new_nouns, back.gone_nouns) == (found.gone_nouns, found.new_nouns)
    same = compare_runs(runs[0], runs[0])
    assert (same.kept, same.gained, same.lost) == (7, 0, 0)


def test_scores_move_and_a_noun_takes_another_mask(runs: tuple[RunFolder, RunFolder], tmp_path: Path) -> None:
    for name, source, move in (("old", runs[0], 0.0), ("new", runs[0], 0.25)):
        scored(source, tmp_path / name, move=move)
    found = compare_runs(RunFolder(str(tmp_path / "old")), RunFolder(str(tmp_path / "new")))
    assert (found.kept, found.gained, found.lost, found.moved) == (5, 4, 4, 1)
    assert (found.new_nouns, found.gone_nouns) == ((("rounds", 2), ("pole", 1)), (("discs", 2),))
    assert found.shifts == (
        Shift("similarity", changed=5, low=0.0625, median=0.25, high=0.25),
        Shift("margin", changed=0, low=0.0, median=0.0, high=0.0),
        Shift("lift", changed=5, low=0.125, median=0.5, high=0.5),
        Shift("evidence", changed=5, low=-1.0, median=-1.0, high=-0.25),
    )
    assert found.medians["kept"] == pytest.approx(0.35)
    assert found.shift_histogram
    edges, counts = found.shift_histogram.edges, found.shift_histogram.counts
    assert (edges[0], edges[25], edges[-1]) == (-0.25, 0.0625, 0.25)
    assert {number: count for number, count in enumerate(counts) if count} == {25: 2, 39: 3}
    assert shift_words(found.shifts[1], found.kept) == "margin: the same in all 5 kept pairs"
    assert "changed in 5 of 5 kept pairs; new minus old has the median +0.2500" in shift_words(found.shifts[0], 5)
    small = shift_words(Shift("lift", changed=5, low=-3e-5, median=-2e-6, high=0.0), 5)
    assert "has the median -2.0e-06, and nine tenths are from -3.0e-05 to +0.0000" in small


def scored(run: RunFolder, to: Path, *, move: float) -> None:
    """A copy of a run whose pairs have scores; in image 14 two masks have one box and one area.

    Where scores move, they move less in image 11, image 12 has another mask, and two nouns are others.
    """
    others = {("13", "bar"): "pole", ("14", "discs"): "rounds"} if move else {}
    shutil.copytree(run.root, to)
    for path in sorted(to.glob("shards/*.parquet")):
        table = pq.read_table(path)
        rows = [
            replace(
                row,
                noun=others.get((row.image_id, row.noun), row.noun),
                similarity=0.1 + (move / 4 if row.image_id == "11" else move),
                margin=0.05,
                lift=0.01 + 2 * (move / 4 if row.image_id == "11" else move),
                evidence=2.0 - 4 * (move / 4 if row.image_id == "11" else move),
                area_px=row.area_px + (1 if move and row.image_id == "12" else 0),
            )
            for row in from_table(table, SampleRow)
        ]
        rows += [replace(row, key=f"{row.key}-twin") for row in rows if row.image_id == "14"]
        with path.open("wb") as file:
            metadata = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
            write_parquet(to_table(rows, SampleRow), file, metadata=metadata)


def test_the_command_prints_tables_or_json_and_writes_a_page(
    runs: tuple[RunFolder, RunFolder], found: Diff, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = (run.root for run in runs)
    to = tmp_path / "diff.html"
    assert run_app(["diff", old, new, "--to", str(to)]) == 0
    said = capsys.readouterr().out
    assert "gone nouns: 1, discs (1)" in said
    page = to.read_text()
    read = Page(page)
    assert "script" not in read.tags
    assert len(read.fetched) == 4
    assert all(one.startswith("data:image/") for one in read.fetched)
    assert re.search(r"3\s*are lost", read.words)
    assert run_app(["diff", old, new, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["kept"], told["gained"], told["lost"]) == (4, 1, 3)
    assert told["gone_nouns"] == [["discs", 1]]
    write_diff(replace(found, shift_histogram=Histogram((-1.0, 0.0, 1.0), (1, 2))), *runs, to=to)
    assert "<svg" in to.read_text()


def test_runs_that_are_not_finished_are_told(runs: tuple[RunFolder, RunFolder], tmp_path: Path) -> None:
    shutil.copytree(runs[0].root, tmp_path / "run")
    (tmp_path / "run/shards/_fingerprint.json").write_text('{"fingerprint": "another"}')
    with pytest.raises(IncompleteError, match=r"not finished \(settings or inputs have changed\)"):
        compare_runs(runs[0], RunFolder(str(tmp_path / "run")))


def test_the_page_can_be_read_and_reached_on_every_screen(
    runs: tuple[RunFolder, RunFolder], found: Diff, tmp_path: Path
) -> None:
    moved = replace(found, shift_histogram=Histogram((-1.0, 0.0, 1.0), (1, 2)))
    write_diff(moved, *runs, to=tmp_path / "diff.html")
    with started_browser() as browser:
        assert faults_of_page(browser, (tmp_path / "diff.html").read_text(), tmp_path) == []
