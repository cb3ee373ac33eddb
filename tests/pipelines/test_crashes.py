"""Processes that are killed at the worst moment, two drivers on one folder, and signals: what is done stays done."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from maskmine.mining.storage.ownership import BEAM, RAY, SCRATCH, WRITING, owned_prefix, owner_state
from maskmine.pipelines.engines.local import LocalEngine
from maskmine.pipelines.engines.ray_workers import Worker as RayWorker
from maskmine.pipelines.engines.ray_workers import seen_file
from maskmine.pipelines.mine import mine
from maskmine.pipelines.planning.plan import make_plan
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.pipelines.run_folder.sweep import sweep
from maskmine.pipelines.settings.mining import load_mining
from maskmine.pipelines.steps.grid import Step, drop_stale
from maskmine.schemas.errors import IncompleteError
from tests.support import conformance, toy
from tests.support.killed import POINTS, program, write_and_die
from tests.support.paths import ROOT
from tests.support.runs import FunctionEngine, Recorder, fake_step, hashes, run_toy

DAY_S = 24 * 60 * 60


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.write_toy_world(tmp_path_factory.mktemp("crashes"))


@pytest.fixture(scope="module")
def undisturbed(world: Path) -> dict[str, str]:
    conformance.run_with(LocalEngine(), config_of(world, world / "undisturbed"))
    return hashes(str(world / "undisturbed"))


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    (tmp_path / "run").mkdir()
    return RunFolder(str(tmp_path / "run"))


def config_of(world: Path, out: Path) -> Path:
    """A configuration of the toy world in four parts, in a file of its own."""
    config = toy.write_config(world, out=out, shards={"images_per_part": 2})
    return config.rename(world / f"{out.parent.name}-{out.name}.yaml")


# A process that is killed while it writes.


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # so Python 3.12 comments on any fork
@pytest.mark.parametrize("point", POINTS)
def test_a_writer_that_is_killed_leaves_the_old_file_or_the_new_one(run: RunFolder, point: str) -> None:
    with run.write("nouns", "00000.parquet") as file:
        file.write(b"old")
    assert write_and_die(run.root, point) == -signal.SIGKILL
    content = Path(run.cell_path("nouns", 0)).read_bytes()
    assert content == (b"new" * 1000 if point == "renamed" else b"old")
    assert len(os.listdir(run.path("nouns"))) == (1 if point == "renamed" else 2)
    assert run.done("nouns") == {0}
    assert run.names("nouns") == ["00000.parquet"]
    sweep(run)
    assert os.listdir(run.path("nouns")) == ["00000.parquet"]


def test_runs_that_are_killed_at_every_few_writes_come_to_the_same_bytes(
    world: Path, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    config = config_of(world, tmp_path / "run")
    (tmp_path / "temporary").mkdir()
    ended = subprocess.run(
        program("mine_and_die", str(config)),
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path / "temporary")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(ended.stdout) > 8
    assert hashes(str(tmp_path / "run")) == undisturbed
    assert os.listdir(tmp_path / "temporary") == []


# What killed processes leave.


@pytest.fixture(scope="module")
def names() -> Iterator[Callable[[str, str], str]]:
    """Names of things that belong to a living process, to a dead one, or to a process of another machine."""
    code = "from maskmine.mining.storage.ownership import *; print(owned_prefix('KIND'), flush=True); {}"
    dead, living = (
        subprocess.Popen(
            [sys.executable, "-c", code.format(end)], cwd=ROOT, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
        )
        for end in ("", "input()")
    )
    prefixes = {}
    for owner, process in (("dead", dead), ("living", living)):
        assert process.stdout is not None
        prefixes[owner] = process.stdout.readline().strip()
    prefixes["elsewhere"] = "KIND-another.machine-4026531836-7-1234-"
    prefixes["number came again"] = f"{owned_prefix('KIND').rstrip('-')}0-"
    dead.communicate()
    yield lambda kind, owner: prefixes[owner].replace("KIND", kind) + "random_1"
    living.communicate("\n")


def test_it_is_known_whether_the_owner_of_a_name_lives(names: Callable[[str, str], str]) -> None:
    assert owner_state(names(WRITING, "living")) == "alive"
    assert owner_state(owned_prefix(RAY) + "x") == "alive"
    assert owner_state(names(BEAM, "dead")) == "dead"
    assert owner_state(names(WRITING, "number came again")) == "dead"
    assert owner_state(names(RAY, "elsewhere")) == "elsewhere"
    for name in ("00000.parquet", ".writing-x.tar", ".gitignore", "maskmine-x0_y1z2a", "_SUCCESS"):
        assert owner_state(name) is None


@pytest.mark.parametrize(
    ("kind", "owner", "age_days", "stays"),
    [
        (WRITING, "living", 9, True),
        (WRITING, "dead", 0, False),
        (WRITING, "number came again", 0, False),
        (WRITING, "elsewhere", 0.9, True),
        (WRITING, "elsewhere", 1.1, False),
        (RAY, "elsewhere", 9, True),
        (RAY, "dead", 0, False),
    ],
)
def test_a_run_sweeps_what_nobody_needs_any_more(
    run: RunFolder, names: Callable[[str, str], str], kind: str, owner: str, age_days: float, stays: bool
) -> None:
    name = names(kind, owner)
    for folder in ("proposals", "."):
        run.write_json(folder, name, value=None)
        os.utime(run.path(folder, name), (0, time.time() - age_days * DAY_S))
    sweep(run)
    assert os.path.exists(run.path("proposals", name)) is stays
    assert os.path.exists(run.path(name)) is stays


@pytest.mark.parametrize("off_days", [-40, 40])
def test_what_another_machine_writes_now_stays_however_wrong_the_clock_of_this_one_is(
    run: RunFolder, names: Callable[[str, str], str], monkeypatch: pytest.MonkeyPatch, off_days: float
) -> None:
    name, old = names(WRITING, "elsewhere"), names(WRITING, "elsewhere") + "0"
    for file in (name, old):
        run.write_json(file, value=None)
    os.utime(run.path(old), (0, time.time() - 2 * DAY_S))
    right = time.time()
    monkeypatch.setattr(time, "time", lambda: right + off_days * DAY_S)
    sweep(run)
    assert os.listdir(run.root) == [name]


def test_letters_of_a_dead_driver_are_swept_and_those_of_a_living_one_are_not(
    run: RunFolder, names: Callable[[str, str], str]
) -> None:
    for owner in ("living", "dead"):
        run.write_json(names(BEAM, owner), "open", value=None)
    sweep(run)
    assert os.listdir(run.root) == [names(BEAM, "living")]


def test_an_object_store_and_the_systems_temporary_files_are_swept_too(
    names: Callable[[str, str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    run = RunFolder("memory://swept/run")
    for owner in ("living", "dead", "elsewhere"):
        run.write_json(names(BEAM, owner), "open", value=None)
        (tmp_path / names(WRITING, owner)).touch()
        (tmp_path / names(SCRATCH, owner)).mkdir()
        (tmp_path / names(SCRATCH, owner) / "plan.duckdb").touch()
    run.write_json("plan.json", value=None)
    sweep(run)
    assert run.names() == sorted([names(BEAM, "living"), names(BEAM, "elsewhere"), "plan.json"])
    assert set(os.listdir(tmp_path)) == {names(k, o) for k in (WRITING, SCRATCH) for o in ("living", "elsewhere")}


def test_litter_is_gone_when_a_run_has_ended(
    world: Path, undisturbed: dict[str, str], names: Callable[[str, str], str], tmp_path: Path
) -> None:
    run = RunFolder(str(tmp_path / "run"))
    run.write_json(names(RAY, "dead"), value=None)

    def engine_whose_worker_is_killed(run: RunFolder, steps: Sequence[Step], observer: Any) -> None:
        LocalEngine().run(run, steps, observer)
        run.write_json("shards", names(WRITING, "dead"), value=None)

    mine(
        load_mining(str(config_of(world, tmp_path / "run"))),
        engine=FunctionEngine(engine_whose_worker_is_killed),
        observer=Recorder(),
    )
    assert hashes(run.root) == undisturbed


# Two drivers on one folder.


def start(config: Path, *options: str) -> subprocess.Popen[str]:
    """Start `maskmine mine`, in a process group of its own."""
    words = [sys.executable, "-m", "maskmine.pipelines.cli.main", "mine", str(config), *options]
    return subprocess.Popen(
        words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    """Until a file is there that a process is to write."""
    until = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until, f"{path} does not come"
        time.sleep(0.01)


def end_well(*drivers: subprocess.Popen[str]) -> None:
    """All end with success, but for those that say in one line why the command is to be run again."""
    codes = []
    for driver in drivers:
        _, said = driver.communicate(timeout=180)
        assert "Traceback" not in said
        assert driver.returncode in (0, 4), said
        assert sum(line.startswith("maskmine: ") for line in said.splitlines()) == (driver.returncode == 4)
        codes.append(driver.returncode)
    assert 0 in codes


@pytest.mark.parametrize("engines", [("local", "local"), ("local", "beam")], ids="+".join)
def test_two_drivers_that_start_together_come_to_the_same_bytes(
    world: Path, undisturbed: dict[str, str], tmp_path: Path, engines: tuple[str, str]
) -> None:
    config = config_of(world, tmp_path / "run")
    end_well(*[start(config, "--engine", engine) for engine in engines])
    assert hashes(str(tmp_path / "run")) == undisturbed


@pytest.mark.parametrize("cell", ["nouns/00000.parquet", "manifest.json"])
def test_a_second_driver_that_comes_later_does_no_harm(
    world: Path, undisturbed: dict[str, str], tmp_path: Path, cell: str
) -> None:
    config = config_of(world, tmp_path / "run")
    first = start(config)
    wait_for(tmp_path / "run" / cell, first)
    end_well(first, start(config))
    assert hashes(str(tmp_path / "run")) == undisturbed


def test_a_driver_that_starts_lets_another_one_finish_what_it_is_writing(run: RunFolder) -> None:
    step = fake_step(run, "nouns", None, parts=1)
    with run.write("nouns", "00000.parquet") as file:
        assert drop_stale(run, [step]) == {}
        sweep(run)
        file.write(b"cell")
    assert not step.todo()


def test_what_is_stale_is_counted_by_parts(run: RunFolder) -> None:
    for name in ("00000.json", "00000.tar", "sizes.json"):
        with run.write("shards", name) as file:
            file.write(b"{}")
    assert drop_stale(run, [fake_step(run, "shards", None, parts=1)]) == {"shards": 1}
    assert run.names("shards") == ["_fingerprint.json"]


def test_what_two_drivers_delete_at_once_is_deleted(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RunFolder, "exists", lambda *_: True)
    run.delete("nouns", "00000.parquet")


def test_ray_drivers_on_one_folder_have_a_file_each_for_their_workers(run: RunFolder) -> None:
    def sees(seen: tuple[str | None, str]) -> bool:
        return RayWorker(jobs={}, seen_path=seen[0], token=seen[1]).arrive().sees_run

    with seen_file(run) as first:
        with seen_file(run) as second:
            assert (sees(first), sees(second)) == (True, True)
        assert sees(first)
    assert os.listdir(run.root) == []


def test_a_run_of_other_settings_in_the_same_folder_is_named_and_the_set_is_not_called_complete(
    world: Path, tmp_path: Path
) -> None:
    config = config_of(world, tmp_path / "run")

    def engine_with_company(run: RunFolder, steps: Sequence[Step], observer: Any) -> None:
        LocalEngine().run(run, steps, observer)
        run_toy(config, "shards.quality=60")

    with pytest.raises(
        IncompleteError, match=r"another run, of other settings or inputs, writes here as well \(shards"
    ):
        mine(load_mining(str(config)), engine=FunctionEngine(engine_with_company), observer=Recorder())
    run, outcome, recorder = run_toy(config)
    assert outcome.manifest is not None
    assert recorder.steps == ["shards"]
    assert run.exists("_SUCCESS")


def test_a_shard_of_another_runs_settings_is_never_published(world: Path, tmp_path: Path) -> None:
    config = config_of(world, tmp_path / "run")
    run, _, _ = run_toy(config)
    (tmp_path / "run/_SUCCESS").unlink()
    account = run.read_json("shards", "00002.json")
    run.write_json("shards", "00002.json", value={**account, "fingerprint": "0" * 64})
    with pytest.raises(IncompleteError, match=r"00002\.json: made from other settings or inputs, is another run"):
        run_toy(config)
    assert not run.exists("_SUCCESS")
    run.delete("shards", "00002.json")
    assert run_toy(config)[2].made == [("shards", 2)]


# Signals.


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("engine", [("local",), ("beam", "workers=1"), ("beam", "workers=2"), ("ray", "cpu_workers=1")])
def test_a_signal_ends_a_driver_with_130_and_what_is_done_stays_done(
    world: Path, undisturbed: dict[str, str], tmp_path: Path, engine: tuple[str, ...], number: signal.Signals
) -> None:
    """Ctrl-C on a terminal reaches all processes of the group, SIGTERM from a scheduler the driver."""
    config = config_of(world, tmp_path / "run")
    driver = start(config, "--engine", engine[0], *(word for o in engine[1:] for word in ("--engine-opt", o)))
    wait_for(tmp_path / "run/nouns/00000.parquet", driver)
    (os.killpg if number == signal.SIGINT else os.kill)(driver.pid, number)
    _, said = driver.communicate(timeout=60)
    assert driver.returncode == 130, said
    assert "Traceback" not in said
    assert said.splitlines()[-1].startswith("interrupted; what is finished stays")
    run = RunFolder(str(tmp_path / "run"))
    done = {(step, part) for step in ("nouns", "proposals", "pairs") for part in run.done(step)}
    _, _, recorder = run_toy(config)
    assert ("nouns", 0) in done
    assert not done & set(recorder.made)
    assert hashes(run.root) == undisturbed


def test_an_interrupt_does_not_wait_for_harmful_pictures(tmp_path: Path) -> None:
    """Each of them may take two attempts of 25 s."""
    world = toy.write_toy_world(tmp_path / "world")
    for image in toy.IMAGES[:6]:
        toy.poison(world / "images" / f"{image.id:012d}.png", image.shapes, "sleep")
    driver = start(config_of(world, tmp_path / "run"))
    process, until = psutil.Process(driver.pid), time.monotonic() + 60
    while not any("decoder_process" in " ".join(child.cmdline()) for child in process.children()):
        assert time.monotonic() < until
        time.sleep(0.1)
    time.sleep(1)
    interrupted = time.monotonic()
    os.killpg(driver.pid, signal.SIGINT)
    _, said = driver.communicate(timeout=120)
    assert time.monotonic() - interrupted < 20
    assert driver.returncode == 130
    assert said.splitlines()[-1].startswith("interrupted; what is finished stays")
    assert not RunFolder(str(tmp_path / "run")).done("shards")


def test_a_plan_that_two_drivers_cut_at_once_is_one_plan(world: Path, tmp_path: Path) -> None:
    settings = load_mining(str(config_of(world, tmp_path / "run")))
    run = RunFolder(settings.out)
    first = make_plan(run, settings)
    run.delete("plan.json")  # as the second one finds it that began before the first one ended
    assert make_plan(run, settings) == first
