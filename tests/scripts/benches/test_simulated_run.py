"""A simulated run is to its readers one that was mined."""

from __future__ import annotations

from pathlib import Path

import pytest

from maskmine.pipelines.dataset.finished_run import FinishedRun
from maskmine.pipelines.dataset.verify import verify_run
from maskmine.pipelines.evaluate.pairs import evaluate_pairs
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.pipelines.steps.status import run_status
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
