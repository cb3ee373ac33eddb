"""A cell that was made from other cells than those that are there is made again, and nothing else is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from maskmine.mining.region_stages import RegionTables, to_tables
from maskmine.pipelines.dataset.verify import verify_run
from maskmine.pipelines.engines.engine import RunObserver
from maskmine.pipelines.mine import make_cells
from maskmine.pipelines.run_folder.cells import Cells
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.pipelines.steps import jobs, regions_jobs
from maskmine.pipelines.steps.grid import Step, drop_untied, steps_before_doubt
from maskmine.pipelines.steps.jobs import MakeCell, PartReport, Tick
from maskmine.pipelines.steps.ties import Input, identities
from maskmine.schemas.errors import IncompleteError
from maskmine.schemas.rows import ImageRow, RegionsRow, Rejection
from tests.support import toy
from tests.support.runs import FunctionEngine, Recorder, hashes, run_toy

PARTS = 3


@dataclass(frozen=True)
class Copy:
    """A job whose cell names what it read: of a source its `words`, by part."""

    output: Cells[ImageRow]
    inputs: tuple[Input, ...]
    words: tuple[str, ...] = ()
    device = None

    def open(self) -> MakeCell:
        def make(part: int, tick: Tick) -> PartReport:
            made_from = identities(self.inputs, part)
            read = [
                row.image_id
                for one in self.inputs
                for other in (range(one.parts) if one.parts else [0 if one.cells.once else part])
                for row in one.cells.read_rows(other)
            ]
            said = [self.words[part], *read] if self.words else read
            self.output.write(part, [ImageRow("+".join(said), None)], made_from=made_from)
            return PartReport(step=self.output.step, part=part, images=1, rejected=0, made=1, seconds=0.0)

        return make


def grid(run: RunFolder, *, words: Sequence[str] = ("a", "b", "c")) -> list[Step]:
    """regions ─▶ levels (once, of the first part) ─▶ pairs ─▶ selection (once) ─▶ shards, as a run has them."""
    regions, pairs, shards = (Cells(run, name, ImageRow, "f") for name in ("proposals", "pairs", "shards"))
    levels, selection = (Cells(run, name, ImageRow, "f", once=True) for name in ("levels", "selection"))
    return [
        Step(regions, Copy(regions, (), tuple(words)), PARTS, "rows"),
        Step(levels, Copy(levels, (Input(regions, 1),)), 1, "rows", ("proposals",), 1),
        Step(pairs, Copy(pairs, (Input(regions), Input(levels))), PARTS, "rows", ("proposals", "levels")),
        Step(selection, Copy(selection, (Input(pairs, PARTS),)), 1, "rows", ("pairs",)),
        Step(shards, Copy(shards, (Input(pairs), Input(selection))), PARTS, "rows", ("pairs", "selection")),
    ]


def make_all(run: RunFolder, steps: Sequence[Step]) -> list[tuple[str, int]]:
    """Make what is missing or stale; returns what was made."""
    recorder = Recorder()

    def work(_: RunFolder, steps: Sequence[Step], observer: RunObserver) -> None:
        for step in steps:
            if todo := step.todo():
                make = step.job.open()
                for part in todo:
                    observer.on_part_done(make(part, lambda _: None))

    make_cells(run, steps, engine=FunctionEngine(work), observer=recorder)
    return recorder.made


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    run = RunFolder(str(tmp_path / "run"))
    for step in (steps := grid(run)):
        if not step.once:
            step.output.mark_current()
    assert len(make_all(run, steps)) == 3 * PARTS + 2
    return run


@pytest.mark.parametrize("part", [0, 1])
@pytest.mark.parametrize("lost", ["proposals", "pairs", "shards"])
def test_a_lost_cell_with_the_same_content_is_made_alone(run: RunFolder, lost: str, part: int) -> None:
    run.delete(lost, f"{part:05d}.parquet")
    assert make_all(run, grid(run)) == [(lost, part)]


@pytest.mark.parametrize("also_lost", [(), ("shards",), ("pairs", "shards")])
@pytest.mark.parametrize("part", range(PARTS))
def test_what_hangs_on_changed_content_is_that_of_a_fresh_run(
    run: RunFolder, tmp_path: Path, part: int, also_lost: tuple[str, ...]
) -> None:
    words = ["a", "b", "c"]
    words[part] = "new"
    for name in ("proposals", *also_lost):
        run.delete(name, f"{part:05d}.parquet")
    made = make_all(run, grid(run, words=words))
    fresh = RunFolder(str(tmp_path / "fresh"))
    make_all(fresh, grid(fresh, words=words))
    assert {k: v for k, v in hashes(run.root).items() if "_finger" not in k} == hashes(fresh.root)
    assert len(made) == len(set(made)), "a cell was made twice"
    assert ("proposals", part) in made
    assert {(name, p) for name, p in made if name == "proposals"} == {("proposals", part)}


def test_an_interruption_before_the_stale_cells_are_made_is_noticed(run: RunFolder) -> None:
    """The new cell is there, and nothing is missing: only the footers tell."""
    steps = grid(run, words=("a", "new", "c"))
    run.delete("proposals", "00001.parquet")
    steps[0].job.open()(1, lambda _: None)
    assert drop_untied(steps) == {"pairs": 1}
    assert ("shards", 1) in make_all(run, steps)


def test_a_cell_put_there_from_another_run_is_noticed(run: RunFolder) -> None:
    other = grid(run, words=("a", "b", "other"))[0]
    other.job.open()(2, lambda _: None)
    assert ("pairs", 2) in make_all(run, grid(run))


def test_a_cell_that_says_nothing_of_its_making_is_stale(run: RunFolder) -> None:
    pairs = grid(run)[2].output
    pairs.write(1, pairs.read(1))
    assert drop_untied(grid(run)) == {"pairs": 1}


def test_a_new_run_and_an_interrupted_one_go_through_all_steps_at_once(run: RunFolder, tmp_path: Path) -> None:
    steps = grid(RunFolder(str(tmp_path / "new")))
    assert steps_before_doubt(steps) == len(steps)
    run.delete("shards", "00002.parquet")
    assert steps_before_doubt(grid(run)) == len(steps)
    run.delete("proposals", "00002.parquet")
    assert steps_before_doubt(grid(run)) == 1


def test_only_footers_are_read_to_compare_ties(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("rows were read")

    for name in ("read_table", "read_groups", "check_table"):
        monkeypatch.setattr(RunFolder, name, refuse)
    assert drop_untied(grid(run)) == {}


@pytest.mark.usefixtures("one_tagger")
def test_a_recovered_picture_has_the_pairs_of_a_fresh_run(tmp_path: Path) -> None:
    """The documented remedy, of the cells of a part whose pictures were mended: delete `regions` and `shards`."""
    world = toy.write_toy_world(tmp_path / "world")
    good, _, _ = run_toy(toy.write_config(world, out=tmp_path / "good"))
    picture = world / "images" / f"{11:012d}.png"
    content = picture.read_bytes()
    picture.write_bytes(b"<html>")
    config = toy.write_config(world, out=tmp_path / "run")
    run, _, _ = run_toy(config)
    assert hashes(run.root) != hashes(good.root)
    picture.write_bytes(content)
    part = next(p for p in range(3) if "11" in good.read_table("images", f"{p:05d}.parquet")["image_id"].to_pylist())
    for suffix in ("tar", "parquet", "json"):
        run.delete("shards", f"{part:05d}.{suffix}")
    run.delete("proposals", f"{part:05d}.parquet")
    _, outcome, recorder = run_toy(config)
    assert set(recorder.made) == {("proposals", part), ("pairs", part), ("shards", part)}
    assert outcome.stale == {"pairs": 1}
    assert hashes(run.root) == hashes(good.root)
    assert list(verify_run(run)) == []


@pytest.mark.usefixtures("one_tagger")
def test_cells_that_changed_places_are_named(tmp_path: Path) -> None:
    config = toy.write_config(toy.write_toy_world(tmp_path / "world"), out=tmp_path / "run")
    run, _, _ = run_toy(config)
    good = hashes(run.root)
    first, second = (tmp_path / "run" / "nouns" / f"{part:05d}.parquet" for part in range(2))
    (tmp_path / "run" / "_SUCCESS").unlink()
    first.rename(tmp_path / "kept"), second.rename(first), (tmp_path / "kept").rename(second)
    for path in (first, second):
        with pytest.raises(IncompleteError, match=f"^{path}: has other images than part .; delete it and run the same"):
            run_toy(config)
        path.unlink()
    run_toy(config)
    assert hashes(run.root) == good


def test_the_regions_of_a_part_are_found_some_images_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def find(images: Sequence[ImageRow], *, tick: Tick = jobs.no_tick) -> list[RegionTables]:
        sizes.append(len(images))
        rows = [RegionsRow.rejected(image.image_id, Rejection("no_masks")) for image in images]
        return to_tables(rows, embedded=False)

    monkeypatch.setattr(regions_jobs, "IMAGES_AT_ONCE", 3)
    found = regions_jobs._find_in_windows(find, [ImageRow(str(n), None) for n in range(8)], jobs.no_tick)
    assert [image_id for tables in found for image_id in tables.proposals["image_id"].to_pylist()] == [
        str(n) for n in range(8)
    ]
    assert sizes == [3, 3, 2]
