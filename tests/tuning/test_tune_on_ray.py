"""Tuning as Ray Train runs it: the losses of one process, and faults in one line."""

from __future__ import annotations

import traceback
from pathlib import Path

import pytest

from maskmine.schemas.errors import IncompleteError, InputError, OtherPlanError
from maskmine.tuning.clip.on_ray import _fit, tune_on_ray
from maskmine.tuning.clip.settings import RayTrain
from tests.support.models import save_tiny_clip
from tests.support.toy_shards import write_toy_shards
from tests.support.tuning import losses, run, settings_of

ray = pytest.importorskip("ray", reason="needs Ray Train: pip install '.[ray-train]'")
pytest.importorskip("ray.train.torch", reason="needs Ray Train: pip install '.[ray-train]'")
WorkerGroupError = ray.train.WorkerGroupError

# Ray leaves the handles of the processes that it starts to the garbage collector, and warns of its own settings.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*:FutureWarning"),
]


def test_two_processes_on_ray_have_the_losses_of_one(tmp_path: Path) -> None:
    clip, shards = save_tiny_clip(tmp_path / "clip"), write_toy_shards(tmp_path / "run")
    run(settings_of(clip, shards, tmp_path / "one"))
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100_000_000)
    try:
        tune_on_ray(
            settings_of(clip, shards, tmp_path / "two"),
            ray_train=RayTrain(processes=2, gpus="none", cpus_per_process=0.5, restarts=0),
        )
        assert ray.is_initialized()  # it was ours
    finally:
        ray.shutdown()
    expected = [loss for _, _, loss in losses(tmp_path / "one")]
    assert [loss for _, _, loss in losses(tmp_path / "two")] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", [InputError, OtherPlanError, IncompleteError])
def test_a_fault_in_a_process_comes_out_of_its_traceback_as_what_it_is(kind: type[Exception]) -> None:
    try:
        raise kind("shards: broken: mine again")
    except kind as error:
        text = "".join(traceback.format_exception(error))
    with pytest.raises(kind, match=r"^shards: broken: mine again$"):
        _fit(Trainer(WorkerGroupError("it failed", {1: RuntimeError(text)})))


def test_processes_that_died_leave_the_run_incomplete() -> None:
    with pytest.raises(IncompleteError, match=r"processes died too often \(.*it failed.*run it again"):
        _fit(Trainer(WorkerGroupError("it failed", {1: RuntimeError("killed")})))


class Trainer:
    """One whose processes fail."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def fit(self) -> None:
        raise self.error
