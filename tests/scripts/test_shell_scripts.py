"""The scripts of the README: what `demo` runs on which folders, with which exit codes `test` ends.

The programs that they call only write down how they are called, or exit.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from maskmine.pipelines.settings.mining import load_mining, load_settings
from maskmine.tuning.clip.settings import Tuning
from maskmine.tuning.evaluation.labelled_regions import Instances
from maskmine.tuning.evaluation.region_accuracy import RegionEvaluation
from tests.support.paths import ROOT

SEED = 7
SCENES = int(re.findall(r"^scenes=(\d+) ", (ROOT / "scripts" / "demo").read_text(), re.MULTILINE)[0])

# Draws a world by its description alone.
PROGRAM = """#!/bin/bash
echo "$(basename "$0") $*" >>calls
if [ "$2" = maskmine.scripts.demo_world.draw ]; then
  mkdir -p "$3" && echo "{\\"description\\":\\"a world: $5 scenes of seed $7, drawn\\"}" >"$3/captions.json"
fi
"""


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A project that has the script, and programs that take no time."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "demo", tmp_path / "scripts")
    (tmp_path / "scripts" / "environment.sh").write_text('set -euo pipefail\ncd "$(dirname "${BASH_SOURCE[0]}")/.."\n')
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    for name in ("python", "maskmine"):
        program = tmp_path / ".venv" / "bin" / name
        program.write_text(PROGRAM)
        program.chmod(0o755)
    return tmp_path


def demo(copy: Path) -> tuple[list[str], str]:
    """The calls of a demo, and what it says."""
    (copy / "calls").unlink(missing_ok=True)
    done = subprocess.run(["bash", "scripts/demo"], cwd=copy, capture_output=True, text=True, check=True)
    return (copy / "calls").read_text().splitlines(), done.stdout


def world(copy: Path, *, scenes: int) -> Path:
    """What a demo of so many scenes left behind."""
    runs = copy / "runs" / "demo"
    for name in ("world", "mined", "tuned"):
        (runs / name).mkdir(parents=True)
        (runs / name / "old").touch()
    description = f"maskmine demo world: {scenes} scenes of seed {SEED}, drawn with OpenMoji 17"
    (runs / "world" / "captions.json").write_text(json.dumps({"info": {"description": description}}))
    return runs


def test_it_draws_mines_tunes_and_tells_in_this_order(copy: Path) -> None:
    calls, _ = demo(copy)
    assert [" ".join(call.split()[:3]) for call in calls] == [
        "python -m maskmine.scripts.demo_world.draw",
        "python -m maskmine.scripts.demo_world.draw",
        "maskmine mine configs/demo-models.yaml",
        "maskmine verify runs/demo/mined",
        "maskmine evaluate-pairs runs/demo/mined",
        "maskmine show runs/demo/mined",
        "maskmine tune configs/tune-demo.yaml",
        "python -m maskmine.scripts.demo_report.page",
    ]
    assert "--tuned configs/evaluate-demo.yaml" in calls[-1]
    (mined, held_out) = (call.split() for call in calls[:2])
    assert mined[mined.index("--seed") + 1] != held_out[held_out.index("--seed") + 1]


def test_a_second_demo_draws_nothing(copy: Path) -> None:
    demo(copy)
    calls, _ = demo(copy)
    assert not [call for call in calls if "demo_world" in call]


def test_scenes_of_another_version_are_drawn_and_mined_again_and_that_is_said(copy: Path) -> None:
    runs = world(copy, scenes=200)
    calls, said = demo(copy)
    assert (
        f"python -m maskmine.scripts.demo_world.draw runs/demo/world --scenes {SCENES} --seed {SEED} --workers 2"
        in calls
    )
    assert "drawn and mined again" in said
    assert not list(runs.glob("*/old"))


def test_what_the_same_scenes_were_mined_and_tuned_to_stays(copy: Path) -> None:
    runs = world(copy, scenes=SCENES)
    calls, said = demo(copy)
    assert not [call for call in calls if "demo_world runs/demo/world" in call]
    assert "again" not in said
    assert sorted(path.parent.name for path in runs.glob("*/old")) == ["mined", "tuned", "world"]


def test_script_and_configurations_speak_of_the_same_folders(copy: Path) -> None:
    calls, _ = demo(copy)
    drawn = [call.split()[3] for call in calls if "demo_world" in call]
    mining = load_mining(str(ROOT / "configs" / "demo-models.yaml"))
    tuning = load_settings(Tuning, str(ROOT / "configs" / "tune-demo.yaml"))
    examination = load_settings(RegionEvaluation, str(ROOT / "configs" / "evaluate-demo.yaml"))
    regions = examination.regions
    assert isinstance(regions, Instances)
    assert drawn == list(map(folder_of, (mining.captions.annotations, regions.annotations)))
    assert os.path.relpath(mining.captions.images) == f"{drawn[0]}/images"
    assert os.path.relpath(regions.images) == f"{drawn[1]}/images"
    folders = [mining.out, str(examination.mined), *(source.folder for source in tuning.data.sources)]
    assert {os.path.relpath(folder) for folder in folders} == {"runs/demo/mined"}
    assert [folder_of(str(tuned.prompts)) for tuned in examination.tuned.values()] == [os.path.relpath(tuning.out)]
    clips = [mining.regions.clip, tuning.clip, examination.clip]
    assert {os.path.relpath(clip.model) for clip in clips if clip} == {"scripts/models/clip"}


def folder_of(path: str) -> str:
    return os.path.relpath(Path(path).parent)


def test_a_tuning_of_other_settings_is_made_again(copy: Path) -> None:
    program = copy / ".venv" / "bin" / "maskmine"
    program.write_text(PROGRAM + '[ "$1" = tune ] && [ -e runs/demo/tuned/old ] && exit 5\nexit 0\n')
    world(copy, scenes=SCENES)
    calls, said = demo(copy)
    assert calls.count("maskmine tune configs/tune-demo.yaml") == 2
    assert "runs/demo/tuned is of other settings or other pairs: it is tuned again" in said
    assert not (copy / "runs" / "demo" / "tuned").exists()


def test_another_end_of_the_tuning_ends_the_demo(copy: Path) -> None:
    program = copy / ".venv" / "bin" / "maskmine"
    program.write_text(PROGRAM + '[ "$1" = tune ] && exit 2\nexit 0\n')
    done = subprocess.run(["bash", "scripts/demo"], cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "demo_report.page" not in (copy / "calls").read_text()


def answer_of_tests(checkout: Path, pytest_exit: int = 0, mypy_exit: int = 0) -> subprocess.CompletedProcess[str]:
    """Run `scripts/test` where pytest and mypy are programs that only exit."""
    (checkout / "scripts").mkdir()
    (checkout / "maskmine" / "mining").mkdir(parents=True)  # or the links are made first
    for name in ("scripts/test", "scripts/environment.sh", "setup.py", "pyproject.toml"):
        shutil.copy(ROOT / name, checkout / name)
    programs = checkout / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name, code in {"python": pytest_exit, "mypy": mypy_exit, "ruff": 0}.items():
        (programs / name).write_text(f"#!/bin/sh\n[ {name} = mypy ] && echo 'wrong type'\nexit {code}\n")
        (programs / name).chmod(0o755)
    stamp = 'cat setup.py pyproject.toml scripts/environment.sh | cksum | cut -d" " -f1 >.venv/maskmine-environment'
    subprocess.run(stamp, shell=True, cwd=checkout, check=True)
    return subprocess.run(["bash", "scripts/test"], cwd=checkout, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(("pytest_exit", "mypy_exit", "code"), [(0, 0, 0), (1, 0, 1), (5, 0, 5), (0, 1, 2)])
def test_the_tests_end_with_the_exit_code_of_what_failed(
    tmp_path: Path, pytest_exit: int, mypy_exit: int, code: int
) -> None:
    done = answer_of_tests(tmp_path, pytest_exit, mypy_exit)
    assert done.returncode == code, done.stderr
    assert ("wrong type" in done.stderr) == bool(mypy_exit)
