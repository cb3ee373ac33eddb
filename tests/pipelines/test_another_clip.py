"""Proposals and embeddings as steps of their own: another CLIP proposes nothing, and going back runs no model."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from maskmine.mining.models.clip import Clip
from maskmine.mining.proposers.maskformer import MaskFormer
from maskmine.pipelines.dataset.finished_run import FinishedRun
from maskmine.pipelines.dataset.verify import verify_run
from maskmine.pipelines.engines.local import LocalEngine
from maskmine.pipelines.mine import mine
from maskmine.pipelines.run_folder.cells import Cells
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.pipelines.settings.mining import load_mining
from maskmine.pipelines.steps.status import rejected_images, run_status
from maskmine.schemas.errors import IncompleteError
from maskmine.schemas.rows import RegionsRow
from tests.support import toy
from tests.support.conformance import hashes_of_data
from tests.support.models import save_tiny_clip, save_tiny_models
from tests.support.runs import Recorder, as_earlier_version, config, hashes, run_toy

PARTS = range(3)
SEEN_ANEW = {("vocabulary", 0), ("levels", 0)} | {
    (step, p) for step in ("embeddings", "pairs", "shards") for p in PARTS
}


class Told(Recorder):
    """Remembers the lines too."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def on_line(self, line: str) -> None:
        self.lines.append(line)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.write_toy_world(tmp_path_factory.mktemp("clips"))


@pytest.fixture(scope="module")
def regions(world: Path) -> dict[str, Any]:
    return save_tiny_models(world)


@pytest.fixture(scope="module")
def other(world: Path) -> str:
    """An override that names another CLIP."""
    return f"regions.clip.model={save_tiny_clip(world / 'other', seed=5)}"


@pytest.fixture(scope="module")
def finished(world: Path, regions: dict[str, Any]) -> Path:
    run_toy(config(world, regions, world / "finished"))
    return world / "finished"


@pytest.fixture(scope="module")
def by_other(world: Path, regions: dict[str, Any], other: str) -> RunFolder:
    """A fresh run by the other CLIP."""
    return run_toy(config(world, regions, world / "by_other"), other)[0]


@pytest.fixture
def root(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def run_told(path: Path, *overrides: str, regions_from: str | None = None) -> Told:
    told = Told()
    settings = load_mining(str(path), overrides=overrides)
    mine(settings, engine=LocalEngine(), observer=told, regions_from=regions_from)
    return told


def refuse(monkeypatch: pytest.MonkeyPatch, *models: tuple[type, str]) -> None:
    def raises(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    for owner, name in models:
        monkeypatch.setattr(owner, name, raises)


PROPOSER, SEES, READS = (MaskFormer, "open"), (Clip, "open_image"), (Clip, "open_text")


def test_another_clip_embeds_again_and_back_no_model_runs(
    world: Path,
    regions: dict[str, Any],
    other: str,
    root: Path,
    finished: Path,
    by_other: RunFolder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path, run = config(world, regions, root), RunFolder(str(root))
    refuse(monkeypatch, PROPOSER)
    told = run_told(path, other)
    assert set(told.made) == SEEN_ANEW
    fresh, again = hashes(by_other.root), hashes(str(root))
    assert fresh.items() <= again.items()
    kept = {name for name in again.keys() - fresh.keys() if name.startswith("embeddings/")}
    assert kept == again.keys() - fresh.keys()
    assert len(kept) == len(PARTS) + 1  # and the vocabulary
    assert [str(problem) for problem in verify_run(run)] == []
    assert {"proposals", "embeddings"} <= {step.step for step in run_status(run).steps}
    assert f"{root}: vocabulary, embeddings, levels, pairs, shards of the set that is there are made again" in str(
        told.lines
    )

    refuse(monkeypatch, SEES, READS)
    told = run_told(path)
    assert set(told.made) == {cell for cell in SEEN_ANEW if cell[0] != "embeddings"}
    assert hashes(str(finished)).items() <= hashes(str(root)).items()
    assert [str(problem) for problem in verify_run(run)] == []
    assert "embeddings" not in str(told.lines)

    set_of_run = {Path(name).parent for name in hashes(str(finished)) if name.startswith("embeddings/")}
    for name in kept | hashes(str(root)).keys():  # whoever needs the space deletes what is not of the set
        if name.startswith("embeddings/") and Path(name).parent not in set_of_run:
            (root / name).unlink(missing_ok=True)
    assert [str(problem) for problem in verify_run(run)] == []
    (root / "embeddings" / "stray.txt").write_text("")
    assert "is no file of this run" in str([*verify_run(run)])


def test_a_run_that_ends_between_the_two_cells_embeds_alone_and_has_the_same_bytes(
    world: Path, regions: dict[str, Any], finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = config(world, regions, tmp_path / "run")
    write = Cells.write_pieces

    def killed(cells: Cells[Any], part: int, *args: Any, **options: Any) -> None:
        if (cells.step, part) == ("embeddings", 1):
            raise KeyboardInterrupt
        write(cells, part, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Cells, "write_pieces", killed)
        with pytest.raises(KeyboardInterrupt):
            run_toy(path)
    run = RunFolder(str(tmp_path / "run"))
    assert run.done("proposals") == {0, 1}
    told = run_told(path)
    assert [cell for cell in told.made if cell[0] in ("proposals", "embeddings")] == [
        ("proposals", 2),
        ("embeddings", 2),
        ("embeddings", 1),
    ]
    assert hashes(run.root) == hashes(str(finished))


def test_embeddings_of_other_proposals_are_made_again(world: Path, regions: dict[str, Any], root: Path) -> None:
    before = hashes(str(root))
    (root / "proposals" / "00001.parquet").unlink()
    told = run_told(config(world, regions, root))
    assert told.made == [("proposals", 1)]
    assert hashes(str(root)) == before
    other_part = (root / "proposals" / "00000.parquet").read_bytes()
    (root / "_SUCCESS").unlink()
    (root / "proposals" / "00001.parquet").write_bytes(other_part)
    with pytest.raises(IncompleteError, match="has other images than part 1; delete it and run the same command again"):
        run_told(config(world, regions, root))
    (root / "proposals" / "00001.parquet").unlink()
    run_told(config(world, regions, root))
    assert hashes(str(root)) == before


def test_a_picture_that_is_gone_when_another_clip_looks_is_rejected_by_embeddings(
    world: Path, regions: dict[str, Any], other: str, root: Path, by_other: RunFolder
) -> None:
    path = world / "images" / f"{11:012d}.png"
    content = path.read_bytes()
    path.unlink()
    try:
        run_told(config(world, regions, root), other)
        run = RunFolder(str(root))
        assert ("11", "embeddings", "missing_file") in {(i.image_id, i.step, i.reason) for i in rejected_images(run)}
        assert [str(problem) for problem in verify_run(run)] == []
        rows = {row.image_id: row for row in FinishedRun.open_complete(run).all_rows(RegionsRow)}
        whole = {row.image_id: row for row in FinishedRun.open_complete(by_other).all_rows(RegionsRow)}
        assert rows["11"].regions == ()
        assert {k: row for k, row in rows.items() if k != "11"} == {k: row for k, row in whole.items() if k != "11"}
    finally:
        path.write_bytes(content)


# --- runs of earlier versions, and reused ones ------------------------------------------------------------------------


@pytest.fixture
def older(root: Path, world: Path, regions: dict[str, Any]) -> Path:
    as_earlier_version(root, load_mining(str(config(world, regions, root))))
    return root


def test_a_run_of_an_earlier_version_is_read_and_taken_over_without_a_model(
    world: Path, regions: dict[str, Any], finished: Path, older: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, new = RunFolder(str(older)), FinishedRun.open_complete(RunFolder(str(finished)))
    assert "regions" in {step.step for step in run_status(run).steps}
    assert list(FinishedRun.open_complete(run).all_rows(RegionsRow)) == list(new.all_rows(RegionsRow))
    refuse(monkeypatch, PROPOSER, SEES, READS)
    path = config(world, regions, older)
    write = Cells.write_pieces

    def killed(cells: Cells[Any], part: int, *args: Any, **options: Any) -> None:
        if (cells.step, part) == ("proposals", 2):
            raise KeyboardInterrupt
        write(cells, part, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Cells, "write_pieces", killed)
        with pytest.raises(KeyboardInterrupt):
            run_told(path)
    told = run_told(path)
    assert told.made == [("proposals", 2), *(("embeddings", p) for p in PARTS)]
    assert "its regions are of an earlier version, and are taken over as they are" in str(told.lines)
    assert hashes(str(older)) == hashes(str(finished))
    assert [str(problem) for problem in verify_run(run)] == []


def test_a_run_of_an_earlier_version_gives_its_proposals_to_another_clip(
    world: Path, regions: dict[str, Any], other: str, older: Path, by_other: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(monkeypatch, PROPOSER)
    told = run_told(config(world, regions, older), other)
    assert "embedded anew (regions.clip.model.sha256: " in str(told.lines)
    assert hashes(by_other.root).items() <= hashes(str(older)).items()
    assert [str(problem) for problem in verify_run(RunFolder(str(older)))] == []


def test_a_run_of_an_earlier_version_with_other_proposals_begins_again(
    world: Path, regions: dict[str, Any], older: Path, tmp_path: Path
) -> None:
    told = run_told(config(world, regions, older), "regions.keep.top=1")
    assert ("proposals", 0) in told.made
    run_toy(config(world, regions, tmp_path / "fresh"), "regions.keep.top=1")
    assert hashes(str(older)) == hashes(str(tmp_path / "fresh"))


@pytest.fixture(scope="module")
def in_halves(world: Path, regions: dict[str, Any], other: str) -> tuple[RunFolder, RunFolder]:
    """Fresh runs in other parts, by one CLIP and the other."""
    path, cut = config(world, regions, world / "halves"), "shards.images_per_part=2"
    return run_toy(path, cut)[0], run_toy(path, cut, other, f"out={world / 'other_halves'}")[0]


@pytest.mark.parametrize(("is_older", "per_part"), [(False, 3), (False, 2), (True, 2)])
def test_a_reused_run_gives_what_agrees_and_says_what_does_not(
    world: Path,
    regions: dict[str, Any],
    other: str,
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    finished: Path,
    by_other: RunFolder,
    in_halves: tuple[RunFolder, RunFolder],
    is_older: bool,
    per_part: int,
) -> None:
    if is_older:
        as_earlier_version(root, load_mining(str(config(world, regions, root))))
    same, anew = in_halves if per_part == 2 else (RunFolder(str(finished)), by_other)
    path, cut = config(world, regions, tmp_path / "new"), f"shards.images_per_part={per_part}"
    refuse(monkeypatch, PROPOSER)
    told = run_told(path, cut, other, f"out={tmp_path / 'anew'}", regions_from=str(root))
    assert f"proposals of {root} are used again, and embedded anew (regions.clip.model.sha256: " in str(told.lines)
    assert hashes_of_data(RunFolder(str(tmp_path / "anew"))) == hashes_of_data(anew)
    refuse(monkeypatch, SEES)
    assert run_told(path, cut, regions_from=str(root)).lines == [
        f"{root}: its regions are used again for the images that it has"
    ]
    assert hashes_of_data(RunFolder(str(tmp_path / "new"))) == hashes_of_data(same)
    assert [str(problem) for problem in verify_run(RunFolder(str(tmp_path / "new")))] == []
