"""A simulated run is to its readers one that was mined."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from maskmine.pipelines.cli.main import run_app
from maskmine.pipelines.dataset.finished_run import FinishedRun
from maskmine.pipelines.dataset.verify import verify_run
from maskmine.pipelines.evaluate.pairs import evaluate_pairs
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.pipelines.steps.status import run_status
from maskmine.scripts.benches.scale.at_scale import copied
from maskmine.scripts.benches.scale.commands import COMMANDS
from maskmine.scripts.benches.scale.simulate import simulate
from maskmine.scripts.benches.scale.templates import IMAGES, PARTS


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return simulate(tmp_path_factory.mktemp("scale"), parts=PARTS + 1)


def test_it_has_no_fault_and_every_cell(run: RunFolder) -> None:
    assert list(verify_run(run)) == []
    status = run_status(run)
    assert status.complete
    assert not any(step.missing for step in status.steps)
    assert (status.parts, status.images) == (PARTS + 1, (PARTS + 1) * IMAGES)


def test_no_two_parts_share_an_image_and_the_truth_covers_all_of_them(run: RunFolder) -> None:
    finished = FinishedRun.open_complete(run)
    ids = [image.image.image_id for part in finished.parts for image in finished.images(part)]
    assert len(set(ids)) == len(ids) == (PARTS + 1) * IMAGES
    truth = Path(run.root).parent / "world" / "instances.json"
    evaluation = evaluate_pairs(run, truth=str(truth))
    assert evaluation.images["covered"] == len(ids)
    assert evaluation.precision_of_all.of == finished.manifest.totals.samples


@pytest.mark.parametrize("name", ["resume", "publish"])
def test_what_writes_is_measured_on_a_copy_and_makes_the_same_set_there(run: RunFolder, name: str) -> None:
    before, command = _content(Path(run.root)), COMMANDS[name]
    with copied(Path(run.root)) as copy:
        assert command.before is not None
        command.before(copy)
        assert run_app(command.words(copy, copy.parent)) == 0
        made = _content(copy)
    assert _content(Path(run.root)) == before
    of_this_folder = {"mining.yaml", "SHA256SUMS.run", "_SUCCESS"}  # the first names it, and the others sum that up
    changed = {file for file in before if made.get(file) != before[file]}
    assert made.keys() == before.keys()
    assert changed == (of_this_folder if name == "publish" else set())


def _content(root: Path) -> dict[str, str]:
    files = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
