"""The Beam engine: conformance in one process and in several, faults, retries, workers that die, interrupts."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from maskmine.pipelines.engines import beam as on_beam
from maskmine.pipelines.engines import memory
from maskmine.pipelines.engines.beam import BeamEngine
from maskmine.pipelines.engines.beam_worker import FAULT, OPEN, CellMaker
from maskmine.pipelines.engines.local import LocalEngine
from maskmine.pipelines.mine import mine
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.pipelines.settings.mining import load_mining
from maskmine.pipelines.steps.grid import Step
from maskmine.pipelines.steps.jobs import MakeCell, PartReport, Tick
from maskmine.schemas.errors import IncompleteError, InputError
from tests.faults.forking_server import serving, write_client
from tests.support import conformance, toy
from tests.support.paths import ROOT
from tests.support.runs import Recorder, StopsAfter, fake_step, hashes, run_toy

fn_api_runner = pytest.importorskip("apache_beam.runners.portability.fn_api_runner")

MESSAGES = ".messages"
# A worker loads spaCy for seconds, so not every check is made with each number of workers.
CHECKS = [
    (conformance.same_bytes_as_local, 1),
    (conformance.same_bytes_as_local, 2),
    (conformance.real_models_give_the_same_bytes, 2),
    (conformance.captions_of_models_are_those_of_the_local_run, 2),
    (conformance.regenerated_data_is_that_of_a_full_run, 1),
    (conformance.a_bottleneck_is_that_of_the_local_engine, 1),
    (conformance.a_set_grows_to_the_same_bytes, 1),
    (conformance.only_missing_cells_are_made, 1),
    (conformance.poisonous_pictures_cost_themselves_alone, 2),
    (conformance.the_account_holds_whatever_fails, 2),
    (conformance.the_exit_codes_are_the_same, 1),
    (conformance.faults_reach_the_driver, 2),
]


@dataclass(frozen=True)
class FakeJob:
    """Writes a line a cell, and each attempt into a file beside the run folder; part 1 has the trouble asked for."""

    run: RunFolder
    step: str
    trouble: str

    @property
    def device(self) -> str | None:
        return "auto" if self.step == "proposals" else None

    def open(self) -> MakeCell:
        self._note("open")

        def make(part: int, tick: Tick) -> PartReport:
            self._note(f"part {part}")
            if part == 1:
                self._be_in_trouble()
            with self.run.write(self.step, f"{part:05d}.parquet") as file:
                file.write(b"cell")
            return PartReport(step=self.step, part=part, images=10, rejected=1, made=20, seconds=0.5)

        return make

    def _be_in_trouble(self) -> None:
        if self.trouble == "fault":
            raise InputError("images: gone; bring them back")
        if self.trouble == "bug":
            raise ZeroDivisionError("in part one")
        if self.trouble == "death":
            os._exit(9)
        if self.trouble == "company":
            BeamEngine().run(self.run, [beam_step(self.run, name="pairs")], Recorder())

    def _note(self, line: str) -> None:
        with open(f"{self.run.root}-notes", "a") as file:
            file.write(f"{line}\n")


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(str(tmp_path / "run"))


def beam_step(run: RunFolder, *, trouble: str = "", name: str = "nouns") -> Step:
    return fake_step(run, name, FakeJob(run, name, trouble), parts=3)


def notes(run: RunFolder) -> list[str]:
    return Path(f"{run.root}-notes").read_text().splitlines()


@pytest.fixture(scope="module")
def forked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A stand-in for `python` whose processes have imported already what worker processes import for seconds."""
    folder = tmp_path_factory.mktemp("forked")
    heavy = ("apache_beam.runners.worker.sdk_worker_main", "open_clip", "transformers")
    with serving(folder / "server", heavy):
        yield str(write_client(folder / "python", folder / "server", "python"))


@pytest.mark.parametrize(("check", "workers"), CHECKS, ids=lambda value: getattr(value, "__name__", f"{value} workers"))
def test_the_beam_engine_conforms(
    check: conformance.Check,
    workers: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    if workers > 1 and check != conformance.same_bytes_as_local:  # which starts its workers as users do
        monkeypatch.setattr(on_beam, "sys", SimpleNamespace(executable=request.getfixturevalue("forked")))
    check(BeamEngine(workers=workers), tmp_path)


def test_reports_of_all_workers_reach_the_observer_and_no_message_stays_in_the_run_folder(run: RunFolder) -> None:
    recorder = Recorder()
    BeamEngine().run(run, [beam_step(run)], recorder)
    assert sorted(recorder.made) == [("nouns", 0), ("nouns", 1), ("nouns", 2)]
    assert recorder.ticks == 30
    assert os.listdir(run.root) == ["nouns"]


def test_a_driver_that_ends_does_not_stop_the_workers_of_another_one(run: RunFolder) -> None:
    BeamEngine().run(run, [beam_step(run, trouble="company")], Recorder())
    assert run.done("nouns") == run.done("pairs") == {0, 1, 2}
    assert sorted(os.listdir(run.root)) == ["nouns", "pairs"]


def test_a_part_that_beam_gives_out_twice_is_made_once(run: RunFolder) -> None:
    run.write_json(MESSAGES, OPEN, value=None)
    CellMaker(run, beam_step(run), MESSAGES)(2)
    CellMaker(run, beam_step(run), MESSAGES)(2)
    assert notes(run) == ["open", "part 2"]


def test_a_worker_opens_its_job_once_and_makes_no_more_cells_after_a_fault(run: RunFolder) -> None:
    run.write_json(MESSAGES, OPEN, value=None)
    make_cell = CellMaker(run, beam_step(run, trouble="fault"), MESSAGES)
    for part in (0, 1, 2):
        make_cell(part)
    assert notes(run) == ["open", "part 0", "part 1"]
    assert run.read_json(MESSAGES, FAULT) == {"fault": "InputError", "line": "images: gone; bring them back"}


def test_a_worker_without_a_driver_does_nothing(run: RunFolder) -> None:
    CellMaker(run, beam_step(run), MESSAGES)(0)
    assert not Path(f"{run.root}-notes").exists()


def test_a_cell_whose_message_was_lost_is_reported_all_the_same(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CellMaker, "_send", lambda self, name, message: None)
    recorder = Recorder()
    BeamEngine().run(run, [beam_step(run)], recorder)
    assert recorder.made == [("nouns", 0), ("nouns", 1), ("nouns", 2)]


def test_a_pipeline_that_ends_without_all_of_its_cells_is_no_success(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CellMaker, "__call__", lambda self, part, read=None: None)
    with pytest.raises(
        IncompleteError, match=r"/run: Beam ended, but cells are missing \(\{'nouns': 3, 'pairs': 3\}\); "
    ):
        BeamEngine().run(run, [beam_step(run), beam_step(run, name="pairs")], Recorder())


def test_a_bug_in_a_worker_is_raised_with_its_cause(run: RunFolder) -> None:
    with pytest.raises(ZeroDivisionError, match="in part one"):
        BeamEngine().run(run, [beam_step(run, trouble="bug")], Recorder())
    assert os.listdir(run.root) == ["nouns"]


def test_a_worker_process_that_dies_ends_the_run_and_does_not_hang_it(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # the worker imports FakeJob
    with pytest.raises(IncompleteError, match=r"a worker process of Beam died .*return code 9.*run the same"):
        BeamEngine(workers=2).run(run, [beam_step(run, trouble="death")], Recorder())
    assert [name for name in os.listdir(run.root) if name.startswith(".")] == []


def test_a_death_that_is_felt_before_it_is_known_is_told_as_one(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    deaths: list[str] = []

    class Felt:
        def run(self) -> Any:
            threading.Timer(0.3, deaths.append, ["Worker exited with return code 9"]).start()
            raise RuntimeError("Channel closed prematurely.")

    monkeypatch.setattr(on_beam, "_POLL_S", 0.05)
    messages = on_beam._MessageFolder(run, ".messages", [], {}, Recorder())
    with pytest.raises(IncompleteError, match=r"a worker process of Beam died .*return code 9"):
        on_beam._run(Felt(), messages, deaths)


def test_an_interrupt_propagates_and_any_engine_can_go_on(tmp_path: Path) -> None:
    world = toy.write_toy_world(tmp_path / "world")
    config = toy.write_config(world, out=tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        mine(load_mining(str(config)), engine=BeamEngine(), observer=StopsAfter(5))
    assert [name for name in os.listdir(tmp_path / "run") if name.startswith(".")] == []
    run_toy(config)
    conformance.run_with(LocalEngine(), toy.write_config(world, out=tmp_path / "whole"))
    assert hashes(str(tmp_path / "run")) == hashes(str(tmp_path / "whole"))


SETTINGS_FAULTS = [
    ({"runner": "SparklingRunner"}, r"runner `SparklingRunner` cannot be used: .*FlinkRunner"),
    ({"runner": "nowhere.to.be.Runner"}, r"runner `nowhere\.to\.be\.Runner` cannot be used: No module"),
    ({"runner": "BundleBasedDirectRunner", "workers": 2}, r"`workers` are processes of FnApiRunner"),
    ({"min_ram": "plenty"}, r"min_ram has invalid value plenty"),
    ({"pipeline_options": ("--direct_num_workers=many",)}, r"argument --direct_num_workers: invalid int value: 'many'"),
]


@pytest.mark.parametrize(("settings", "message"), SETTINGS_FAULTS, ids=lambda value: str(value)[:30])
def test_faults_of_the_settings_are_told_in_one_line(run: RunFolder, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=rf"^engine beam: .*{message}") as caught:
        BeamEngine(**settings).run(run, [beam_step(run)], Recorder())
    assert "\n" not in str(caught.value)


def test_a_runner_that_cannot_be_reached_is_a_line_and_can_be_tried_again(run: RunFolder) -> None:
    engine = BeamEngine(
        runner="PortableRunner", pipeline_options=("--job_endpoint=localhost:1", "--job_server_timeout=1")
    )
    with pytest.raises(IncompleteError, match=r"^engine beam: PortableRunner failed: .*runner=FnApiRunner") as caught:
        engine.run(run, [beam_step(run)], Recorder())
    assert "\n" not in str(caught.value)


def test_workers_that_the_memory_does_not_hold_are_refused(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_memory_bytes", lambda: 1000 * memory.WORKER_BYTES - 1)
    with pytest.raises(InputError, match=r"^workers: 1000 of .* choose 999 at most$"):
        BeamEngine(workers=1000).run(run, [beam_step(run)], Recorder())
    assert run.names("nouns") == []


def test_no_worker_at_all_is_refused() -> None:
    with pytest.raises(ValidationError):
        BeamEngine(workers=0)


def test_without_apache_beam_the_install_command_is_told(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("apache_beam", "apache_beam.options.pipeline_options"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match=r"pip install -e '\.\[beam\]' in a checkout"):
        BeamEngine().run(run, [beam_step(run)], Recorder())


class HintsRunner(fn_api_runner.FnApiRunner):  # type: ignore[name-defined,misc]
    """Runs a pipeline after it has noted the resource hints of its steps."""

    seen: dict[str, dict[str, bytes]]

    def run_pipeline(self, pipeline: Any, options: Any) -> Any:
        proto = pipeline.to_runner_api()
        for step in proto.components.transforms.values():
            hints = proto.components.environments[step.environment_id].resource_hints if step.environment_id else {}
            if step.unique_name in ("nouns", "proposals"):
                HintsRunner.seen[step.unique_name] = {urn.split(":")[2]: value for urn, value in hints.items()}
        return super().run_pipeline(pipeline, options)


def test_the_steps_that_want_a_gpu_ask_for_one(run: RunFolder) -> None:
    HintsRunner.seen = {}
    engine = BeamEngine(runner=f"{__name__}.HintsRunner", accelerator="type:t4;count:1", min_ram="2KB")
    engine.run(run, [beam_step(run), beam_step(run, name="proposals")], Recorder())
    assert HintsRunner.seen == {
        "nouns": {"min_ram_bytes": b"2000"},
        "proposals": {"min_ram_bytes": b"2000", "accelerator": b"type:t4;count:1"},
    }


def test_importing_the_engine_does_not_load_beam() -> None:
    modules = "maskmine.pipelines.engines.beam, maskmine.pipelines.engines.beam_worker"
    program = f"import sys, {modules}; print('apache_beam' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert found.stdout.strip() == "False"
