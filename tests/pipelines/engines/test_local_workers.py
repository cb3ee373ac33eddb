"""Several local workers: what all engines must do, workers that die, GPUs, and memory that does not hold them."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import torch

from maskmine.mining.proposers.ground_truth import GroundTruth
from maskmine.mining.regions import Regions
from maskmine.pipelines.engines import local, memory
from maskmine.pipelines.engines import ray as on_ray
from maskmine.pipelines.engines.beam import BeamEngine
from maskmine.pipelines.engines.choose import choose_engine
from maskmine.pipelines.engines.engine import Engine
from maskmine.pipelines.engines.local import LocalEngine
from maskmine.pipelines.engines.ray import RayEngine
from maskmine.pipelines.mine import mine
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.pipelines.settings.mining import load_mining
from maskmine.pipelines.steps import job_models
from maskmine.pipelines.steps.cells_of_run import run_cells
from maskmine.pipelines.steps.grid import Step
from maskmine.pipelines.steps.jobs import PartReport, Tick
from maskmine.pipelines.steps.regions_jobs import ProposalsJob
from maskmine.schemas.errors import IncompleteError, InputError
from tests.support import conformance, toy
from tests.support.models import save_tiny_clip
from tests.support.runs import Recorder, fake_step, hashes, run_toy
from tests.support.toy_jobs import (
    Events,
    Interrupted,
    dies,
    dies_once,
    hangs,
    toy_step,
    waits_for_pairs_of_part_0,
    wants_something,
)

pytestmark = pytest.mark.usefixtures("workers_find_the_tests")


@pytest.fixture
def run(empty_run: RunFolder) -> RunFolder:
    return empty_run


def test_local_workers_conform(tmp_path: Path) -> None:
    """Each loads spaCy and PyTorch for seconds; what else engines must do is the scheduler's, as with Ray."""
    conformance.real_models_give_the_same_bytes(LocalEngine(workers=2), tmp_path)


def test_a_part_goes_on_while_another_one_is_made(run: RunFolder) -> None:
    steps = [toy_step(run, "proposals", waits_for_pairs_of_part_0), toy_step(run, "pairs", reads=("proposals",))]
    recorder = Events()
    LocalEngine(workers=2).run(run, steps, recorder)
    assert recorder.seen == [
        ("begins", "proposals", [0, 1]),
        ("proposals", 0),
        ("begins", "pairs", [0, 1]),
        ("pairs", 0),
        ("proposals", 1),
        ("ends", "proposals"),
        ("pairs", 1),
        ("ends", "pairs"),
    ]


def test_a_part_whose_worker_dies_once_is_made_by_another_one(run: RunFolder) -> None:
    recorder = Recorder()
    LocalEngine(workers=2).run(run, [toy_step(run, "pairs", dies_once, parts=1)], recorder)
    assert recorder.made == [("pairs", 0)]
    assert Path(run.path("attempts")).read_text() == "0\n0\n"


def test_a_part_that_kills_its_workers_is_named_and_the_others_are_finished(run: RunFolder) -> None:
    steps = [
        toy_step(run, "proposals", dies, parts=3),
        toy_step(run, "pairs", reads=("proposals",), parts=3),
        toy_step(run, "selection", reads=("pairs",), parts=1, once=True),
    ]
    with pytest.raises(IncompleteError, match=r"^proposals 00001: its worker died 3 times \(exit code 1\)"):
        LocalEngine(workers=2).run(run, steps, Recorder())
    assert run.done("proposals") == run.done("pairs") == {0, 2}
    assert run.names("selection") == []


def test_a_fault_that_a_worker_raises_arrives_as_it_was_and_is_not_tried_again(run: RunFolder) -> None:
    with pytest.raises(InputError) as caught:
        LocalEngine(workers=2).run(run, [toy_step(run, "nouns", wants_something, parts=1)], Recorder())
    assert str(caught.value) == "images: no such folder; give another one"
    assert Path(run.path("attempts")).read_text() == "once\n"


def breaks(run: RunFolder, part: int) -> None:
    raise LookupError("no such thing")


def test_an_error_of_the_code_comes_with_the_lines_where_it_was_raised(run: RunFolder) -> None:
    with pytest.raises(LookupError, match="no such thing") as caught:
        LocalEngine(workers=2).run(run, [toy_step(run, "nouns", breaks, parts=1)], Recorder())
    assert "in breaks" in "".join(caught.value.__notes__)


def test_an_interruption_kills_the_workers(run: RunFolder) -> None:
    steps = [toy_step(run, "nouns"), toy_step(run, "proposals", hangs)]
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        LocalEngine(workers=2).run(run, steps, Interrupted())
    assert time.monotonic() - started < 60
    mine = [child.cmdline() for child in psutil.Process().children()]
    assert not [line for line in mine if "maskmine.pipelines.engines.processes" in line]


def stops_its_worker(run: RunFolder, part: int) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def test_a_worker_that_was_stopped_ends_the_run_where_that_is_asked_for(run: RunFolder) -> None:
    engine = LocalEngine(workers=2, no_progress_timeout_s=5)
    in_hand = "(nouns 00000|1 workers that wait for their start)"  # on a busy machine it has not begun
    with pytest.raises(IncompleteError, match=f"nothing was finished in 5 s; in hand: {in_hand}"):
        engine.run(run, [toy_step(run, "nouns", stops_its_worker, parts=1)], Recorder())
    stopped = [one for one in psutil.Process().children() if one.status() == psutil.STATUS_STOPPED]
    assert not stopped


@dataclass(frozen=True)
class GpuJob(ProposalsJob):
    """Writes down which GPUs its worker sees."""

    def open(self) -> Callable[[int, Tick], PartReport]:
        def make(part: int, tick: Tick) -> PartReport:
            with self.cells.proposals.run.write(*self.cells.proposals.names(part)) as file:
                file.write(os.environ.get("CUDA_VISIBLE_DEVICES", "all").encode())
            until = time.monotonic() + 60
            while len(self.cells.proposals.run.names("proposals")) < self.parts and time.monotonic() < until:
                time.sleep(0.05)  # so that no worker takes two
            return PartReport(step="proposals", part=part, images=10, rejected=0, made=0, seconds=0.0)

        return make


def regions_step(run: RunFolder, device: str, clip: Path, *, parts: int) -> Step:
    proposals = GroundTruth(kind="ground_truth", annotations="none.json")
    regions = Regions.model_validate({"proposals": proposals, "clip": {"model": str(clip)}, "device": device})
    return fake_step(run, "proposals", GpuJob(run_cells(run), regions, parts), parts=parts)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_clip(tmp_path_factory.mktemp("clip"))


def seen(run: RunFolder, parts: int) -> set[str]:
    return {Path(run.cell_path("proposals", part)).read_text() for part in range(parts)}


def test_each_gpu_has_a_worker_that_sees_it_alone(run: RunFolder, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "_gpus_here", lambda: 2)
    LocalEngine(workers=2).run(run, [regions_step(run, "auto", clip, parts=2)], Recorder())
    assert seen(run, 2) == {"0", "1"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,GPU-7a")
    for part in range(2):
        os.remove(run.cell_path("proposals", part))
    LocalEngine(gpus=2).run(run, [regions_step(run, "cuda", clip, parts=2)], Recorder())
    assert seen(run, 2) == {"5", "GPU-7a"}


@pytest.mark.parametrize(
    ("there", "device", "line"),
    [
        (1, "cuda", "gpus: 2 asked for, and this machine has 1 GPU; leave gpus out, or choose 1 at most"),
        (0, "cuda", "gpus: 2 asked for, and this machine has no GPU; leave gpus out"),
        (2, "cpu", "gpus: 2 asked for, and `regions.device` is cpu; leave gpus out"),
        (2, "cuda:1", "gpus: 2 asked for, and `regions.device` is cuda:1; set it to cuda"),
    ],
)
def test_gpus_that_are_not_there_are_refused(
    run: RunFolder, clip: Path, monkeypatch: pytest.MonkeyPatch, there: int, device: str, line: str
) -> None:
    monkeypatch.setattr(local, "_gpus_here", lambda: there)
    with pytest.raises(InputError) as caught:
        LocalEngine(workers=2, gpus=2).run(run, [regions_step(run, device, clip, parts=2)], Recorder())
    assert str(caught.value).startswith(line)
    assert run.names("proposals") == []


def test_workers_that_the_memory_does_not_hold_are_refused_before_they_start(
    run: RunFolder, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = regions_step(run, "cpu", clip, parts=1)
    weights = (clip / "open_clip_model.safetensors").stat().st_size
    assert job_models.weights_bytes(step.job) == weights > 0
    monkeypatch.setattr(memory, "free_memory_bytes", lambda: 3 * (memory.WORKER_BYTES + 2 * weights) + 1)
    with pytest.raises(InputError, match=r"^workers: 4 of about 7\d\d\.\d MB each .* choose 3 at most$"):
        LocalEngine(workers=4).run(run, [step], Recorder())
    assert run.names("proposals") == []
    LocalEngine(workers=3).run(run, [step], Recorder())
    assert run.done("proposals") == {0}


@pytest.mark.parametrize(
    ("engine", "line"),
    [
        (LocalEngine(workers=1000), r"^workers: 1000 of .* choose \d+ at most$"),
        (BeamEngine(workers=1000), r"^workers: 1000 of .* choose \d+ at most$"),
    ],
)
def test_workers_without_room_are_refused_before_the_plan_is_made_and_before_anything_is_deleted(
    engine: Engine, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "free_memory_bytes", lambda: 10 * memory.WORKER_BYTES)
    config = toy.write_config(toy.write_toy_world(tmp_path))
    with pytest.raises(InputError, match=line):
        mine(load_mining(str(config)), engine=engine, observer=Recorder())
    assert not (tmp_path / "run").exists()
    run, _, _ = run_toy(config)
    before = hashes(run.root)
    with pytest.raises(InputError, match=line):
        mine(load_mining(str(config), overrides=["shards.image_format=png"]), engine=engine, observer=Recorder())
    assert hashes(run.root) == before


@pytest.mark.parametrize(
    ("engine", "device", "line"),
    [
        (LocalEngine(gpus=2), "cpu", "gpus: 2 asked for, and `regions.device` is cpu; leave gpus out"),
        (RayEngine(), "cuda:1", "regions.device: `cuda:1` was asked for, and this machine has no GPU; use auto or cpu"),
        (RayEngine(), "mps", "regions.device: `mps` is unknown; use auto, cpu, cuda or cuda:N"),
        (BeamEngine(workers=2), "mps", "regions.device: `mps` is unknown; use auto, cpu, cuda or cuda:N"),
    ],
)
def test_devices_that_are_not_there_are_refused_before_the_plan_is_made(
    engine: Engine, device: str, line: str, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "_gpus_here", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(on_ray, "_is_connected", lambda: False)
    world = toy.write_toy_world(tmp_path)
    regions = json.loads(toy.write_config(world).read_text())["regions"]
    config = toy.write_config(world, regions={**regions, "clip": {"model": str(clip)}, "device": device})
    with pytest.raises(InputError) as refused:
        mine(load_mining(str(config)), engine=engine, observer=Recorder())
    assert str(refused.value) == line
    assert not (tmp_path / "run").exists()


def test_beside_gpus_a_worker_is_reckoned_without_models(
    run: RunFolder, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four processes with the models would not fit; one with them and three without do."""
    monkeypatch.setattr(local, "_gpus_here", lambda: 1)
    monkeypatch.setattr(job_models, "weights_bytes", lambda job: 10**9)
    monkeypatch.setattr(memory, "weights_bytes", lambda job: 10**9)
    monkeypatch.setattr(memory, "free_memory_bytes", lambda: 4 * memory.WORKER_BYTES + 2 * 10**9)
    step = regions_step(run, "cuda", clip, parts=1)
    with pytest.raises(
        InputError, match=r"^workers: 4 of about 700\.0 MB each \(no model\) beside 1 GPU worker of 2\.7 GB"
    ):
        LocalEngine(workers=4).run(run, [step], Recorder())
    LocalEngine(workers=3).run(run, [step], Recorder())
    assert run.done("proposals") == {0}


def test_an_option_given_twice_is_refused() -> None:
    with pytest.raises(InputError, match=r"^--engine-opt gpus: given twice; give it once$"):
        choose_engine("local", options=["gpus=2", "workers=2", "gpus=3"])


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="Linux says how much memory is free there")
def test_the_limit_of_a_container_is_the_memory_that_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = [tmp_path / "v2", tmp_path / "v1"]
    monkeypatch.setattr(memory, "_MEMORY_LIMITS", [str(limit) for limit in limits])
    free = memory.free_memory_bytes()
    assert free is not None
    limits[0].write_text("max\n")
    limits[1].write_text("1000000\n")
    assert memory.free_memory_bytes() == 1_000_000 < free
