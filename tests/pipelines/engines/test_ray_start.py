"""Ray that does not start, and GPU workers where no step would use one: a line each, and no Ray is needed to see it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from maskmine.mining.models.clip import RegionClip
from maskmine.mining.proposers.ground_truth import GroundTruth
from maskmine.mining.regions import Regions
from maskmine.pipelines.cli.main import run_app
from maskmine.pipelines.engines.ray import RayEngine
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.pipelines.steps.cells_of_run import run_cells
from maskmine.pipelines.steps.jobs import NounsJob
from maskmine.pipelines.steps.regions_jobs import ProposalsJob
from maskmine.schemas.errors import IncompleteError, InputError
from maskmine.tuning.ray_start import starting_ray
from tests.support import toy

ray = pytest.importorskip("ray", reason="needs Ray: pip install '.[ray]'")

LONG = "\n".join([f"line {n} of what Ray says" for n in range(47)] + ["No space left on device: '/dev/shm'"])


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (Exception(LONG), "No space left on device: '/dev/shm'"),
        (PermissionError(13, "Permission denied", "/root/.ray"), "[Errno 13] Permission denied: '/root/.ray'"),
        (RuntimeError(), "RuntimeError"),
    ],
)
def test_whatever_keeps_ray_from_starting_is_one_line(error: Exception, reason: str) -> None:
    with pytest.raises(IncompleteError) as caught, starting_ray("engine ray"):
        raise error
    assert str(caught.value).startswith(f"engine ray: Ray does not start ({reason}); mend the cause (memory, a full")
    assert "\n" not in str(caught.value)


def test_a_mine_whose_ray_does_not_start_ends_with_4_and_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise Exception(LONG)

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", fail)
    config = str(toy.write_config(toy.write_toy_world(tmp_path)))
    assert run_app(["mine", config, "--engine", "ray"]) == 4
    said = capsys.readouterr().err
    assert "Traceback" not in said
    (line,) = [line for line in said.splitlines() if line.startswith("maskmine: ")]
    assert "Ray does not start (No space left on device" in line


def test_gpu_workers_are_refused_where_a_model_would_run_without_a_gpu(tmp_path: Path) -> None:
    masks, cells = GroundTruth(kind="ground_truth", annotations="none.json"), run_cells(RunFolder(str(tmp_path)))
    with_clip = Regions(proposals=masks, clip=RegionClip(model="RN50"), device="cpu")
    engine, nouns = RayEngine(gpu_workers=1), NounsJob(cells, settings=None)  # type: ignore[arg-type]  # not opened
    with pytest.raises(InputError, match=r"gpu_workers: 1 asked for, and proposals would run without a GPU \(Ray "):
        engine._refuse_idle_gpu_workers({"nouns": nouns, "proposals": ProposalsJob(cells, with_clip, 1)}, gpus=0)
    with pytest.raises(InputError, match=r"without a GPU \(`regions.device` is cpu\); leave gpu_workers out"):
        engine._refuse_idle_gpu_workers({"proposals": ProposalsJob(cells, with_clip, 1)}, gpus=2)
    alone = with_clip.model_copy(update={"clip": None})
    engine._refuse_idle_gpu_workers({"nouns": nouns, "proposals": ProposalsJob(cells, alone, 1)}, gpus=0)
