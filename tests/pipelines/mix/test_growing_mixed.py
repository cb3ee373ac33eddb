"""Sets that grow with what else a run may have: captions by a model, hard negatives, corrections, several workers."""

from __future__ import annotations

from pathlib import Path

import pytest

from maskmine.pipelines.dataset.finished_run import FinishedRun
from maskmine.pipelines.dataset.verify import verify_run
from maskmine.pipelines.engines.local import LocalEngine
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.pipelines.steps.cells_of_run import run_cells
from maskmine.schemas.rows import CaptionsRow
from maskmine.schemas.sample import WHOLE_VERSION
from maskmine.scripts.captioner.server import Asked, captioner_on_loopback
from tests.support import growing, toy
from tests.support.models import save_tiny_clip
from tests.support.runs import hashes, run_toy, samples


def names_a_disc(asked: Asked) -> str:
    return "There is a disc."


def test_new_images_are_captioned_by_the_model_and_old_ones_not_again(tmp_path: Path) -> None:
    world = growing.write_pieces(tmp_path / "world")
    with captioner_on_loopback(names_a_disc) as server:
        human = {"kind": "coco", "annotations": str(world / "first.json"), "images": str(world / "images")}
        model = {"kind": "endpoint", "url": server.url, "model": "m"}
        config = toy.write_config(world, out=tmp_path / "run", captions=[human, model])
        run, _, _ = run_toy(config)
        assert len(server.asked) == len(growing.FIRST)
        growing.append_file(tmp_path / "run", world / "second.json")
        assert len(server.asked) == len(growing.FIRST) + len(growing.SECOND)
    captions = {row.image_id: row for row in FinishedRun.open_complete(run).all_rows(CaptionsRow)}
    assert {row.sources[-1] for row in captions.values()} == {"endpoint"}
    assert set(captions) == {str(one) for one in (*growing.FIRST, *growing.SECOND)}
    assert [str(problem) for problem in verify_run(run)] == []


def test_appended_images_have_negatives_of_their_own(tmp_path: Path) -> None:
    world = growing.write_pieces(tmp_path / "world")
    regions = {
        "proposals": {"kind": "ground_truth", "annotations": str(world / "instances.json")},
        "keep": {"min_area_px": 1, "min_score": 0.0, "max_area_ratio": 1.0},
        "clip": {"model": str(save_tiny_clip(world / "clip"))},
        "device": "cpu",
    }
    changes = {"regions": regions, "pairs": {"rule": "best_region_per_noun"}, "negatives": {}}
    run, outcome, _ = run_toy(growing.base_config(world, tmp_path / "run", **changes))
    assert outcome.manifest is not None
    assert outcome.manifest.format_version == WHOLE_VERSION
    before = hashes(run.root)
    growing.append_file(tmp_path / "run", world / "second.json")
    finished = FinishedRun.open_complete(run)
    assert finished.manifest.format_version == WHOLE_VERSION
    cells = run_cells(run).negatives
    assert cells is not None
    assert {row.image_id for part in finished.parts for row in cells.read_rows(part)} == {
        str(one) for one in (*growing.FIRST, *growing.SECOND)
    }
    now = hashes(run.root)
    assert {name: now[name] for name in before if name.startswith(("shards/0", "negatives/0"))} == {
        name: digest for name, digest in before.items() if name.startswith(("shards/0", "negatives/0"))
    }
    assert all(row.noun not in row.negatives for row in samples(run))
    of_base = {row.noun for row in run_cells(run).vocabulary.read_rows(0)}
    given = [noun for part in finished.parts for row in cells.read_rows(part) for noun in row.negatives]
    assert set(given) <= of_base
    assert [str(problem) for problem in verify_run(run)] == []


def test_two_local_workers_append_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = growing.write_pieces(tmp_path / "world")
    for name, engine in (("one", LocalEngine()), ("two", LocalEngine(workers=2))):
        run_toy(growing.base_config(world, tmp_path / name))
        growing.append_file(tmp_path / name, world / "second.json", engine=engine)
    assert hashes(str(tmp_path / "one")) == hashes(str(tmp_path / "two"))
    assert list(verify_run(RunFolder(str(tmp_path / "two")))) == []
