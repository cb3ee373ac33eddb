"""The `out` of a run: one process at a time writes to it, other people's files stay, and what is made again is said."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from maskmine.mining.storage.files import sole_writer
from maskmine.pipelines.cli.main import run_app
from maskmine.pipelines.engines.engine import RunObserver
from maskmine.pipelines.engines.local import LocalEngine
from maskmine.pipelines.mine import mine
from maskmine.pipelines.settings.mining import load_mining
from maskmine.schemas.errors import IncompleteError, InputError
from tests.support import toy
from tests.support.runs import StopsAfter, run_toy

pytestmark = pytest.mark.usefixtures("one_tagger")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.write_toy_world(tmp_path_factory.mktemp("out"))


@pytest.fixture
def config(world: Path, tmp_path: Path) -> str:
    return str(toy.write_config(world, out=tmp_path / "run"))


# Two processes on one folder.


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # so Python 3.12 comments on any fork
def test_the_second_writer_is_told_in_one_line_and_a_dead_one_is_none(tmp_path: Path) -> None:
    folder = str(tmp_path / "deep" / "run")
    refused = pytest.raises(IncompleteError, match="another process is at work in this folder; wait for it")
    with sole_writer(folder):
        with refused, sole_writer(folder):
            pass
        pid = os.fork()
        if not pid:
            os.execvp("sleep", ["sleep", "5"])  # a child that lives longer does not keep the lock
    with sole_writer(folder):
        pass
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    assert os.listdir(tmp_path) == []  # what was made for the lock alone is gone


def test_a_second_mine_on_one_out_is_one_line(config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with sole_writer(str(tmp_path / "run")):
        assert run_app(["mine", config]) == 4
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"maskmine: {tmp_path}/run: another process is at work in this folder")


def test_the_export_of_another_process_is_left_alone(mined: Path, tmp_path: Path) -> None:
    with sole_writer(str(tmp_path / "to")):
        assert run_app(["export", str(mined), "--to", "parquet", "--out", str(tmp_path / "to")]) == 4


# What lies there already.


@pytest.mark.parametrize("name", ["thesis.tex", "README.md", "images/1.jpg", "runs/old/plan.json"])
def test_an_out_with_other_peoples_files_is_refused(config: str, tmp_path: Path, name: str) -> None:
    file = tmp_path / "run" / name
    file.parent.mkdir(parents=True)
    file.write_text("mine")
    with pytest.raises(InputError, match=rf"not empty \({name.partition('/')[0]} lies there\), and no run; give an"):
        run_toy(Path(config))
    assert [path for path in (tmp_path / "run").rglob("*") if path.is_file()] == [file]
    assert run_app(["mine", config, "--dry-run"]) == 2


def test_the_beginning_of_a_plan_and_what_systems_leave_are_no_other_peoples(config: str, tmp_path: Path) -> None:
    for name in ("lost+found/x", ".DS_Store", "images/00000.parquet", "captions/.writing-x"):
        (tmp_path / "run" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / name).touch()
    run_toy(Path(config))
    assert (tmp_path / "run" / "_SUCCESS").exists()


# What is checked before a plan is written.


@pytest.mark.parametrize(
    "override",
    ["nouns.model=en_none", "captions.images=/nowhere", "regions.proposals.annotations=/nowhere.json"],
)
def test_what_is_missing_is_told_before_there_is_a_plan(config: str, tmp_path: Path, override: str) -> None:
    with pytest.raises(InputError):
        run_toy(Path(config), override)
    assert not (tmp_path / "run").exists() or os.listdir(tmp_path / "run") == []


# What is made again.


class Lines(RunObserver):
    """Keeps the lines, and what was there when they came."""

    def __init__(self, there: Path) -> None:
        self.there, self.lines = there, list[tuple[str, bool]]()

    def on_line(self, line: str) -> None:
        self.lines.append((line, self.there.exists()))


@pytest.fixture
def mine_again(config: str, tmp_path: Path) -> Callable[..., list[tuple[str, bool]]]:
    run_toy(Path(config))

    def again(*overrides: str) -> list[tuple[str, bool]]:
        lines = Lines(tmp_path / "run" / "_SUCCESS")
        mine(load_mining(config, overrides=overrides), engine=LocalEngine(), observer=lines)
        return lines.lines

    return again


def test_a_changed_setting_is_said_with_the_steps_that_it_makes_again_before_anything_goes(
    mine_again: Callable[..., list[tuple[str, bool]]], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert mine_again() == []
    assert mine_again("shards.quality=90") == [
        (f"{run}: shards of the set that is there are made again (shards.quality was 95, is 90)", True)
    ]
    assert mine_again("nouns.skip_words=[bar]", "shards.quality=91", "pairs.min_count=2", "shards.expand_ratio=2") == [
        (
            f"{run}: nouns, vocabulary, pairs, shards of the set that is there are made again "
            "(nouns.skip_words has other content, pairs.min_count was 1, is 2, shards.expand_ratio was 1.2, is 2.0, "
            "1 more)",
            True,
        )
    ]


def test_other_captions_are_said_too(
    mine_again: Callable[..., list[tuple[str, bool]]], world: Path, tmp_path: Path
) -> None:
    other = tmp_path / "captions.json"
    other.write_text((world / "captions.json").read_text().replace("long bar", "thin bar"))
    ((line, _),) = mine_again(f"captions.annotations={other}")
    assert "nouns, vocabulary, pairs, shards of the set that is there are made again (captions" in line


def test_a_run_that_goes_on_says_what_is_there(config: str, tmp_path: Path) -> None:
    lines = Lines(tmp_path / "run" / "_SUCCESS")
    with pytest.raises(KeyboardInterrupt):
        mine(load_mining(config), engine=LocalEngine(), observer=StopsAfter(6))  # nouns, vocabulary, two of regions
    mine(load_mining(config), engine=LocalEngine(), observer=lines)
    assert lines.lines == [("2 of 5 steps are there, proposals 2 of 3 parts", False)]
