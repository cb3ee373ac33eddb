"""The doctor finds whatever a run would refuse, `--dry-run` too, and takes the configuration of every command."""

from __future__ import annotations

import importlib.metadata
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from maskmine.pipelines.cli.configurations import guess_configuration
from maskmine.pipelines.cli.main import run_app
from maskmine.pipelines.settings.mining import top_settings
from tests.support import toy
from tests.support.paths import ROOT
from tests.support.runs import run_toy

PRESETS = {"tune": "tune", "train": "train-proposals", "evaluate": "evaluate", "segment": "segment", "serve": "serve"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.write_toy_world(tmp_path_factory.mktemp("finds"))


def stranger_in_out(world: Path, out: Path) -> list[str]:
    out.mkdir()
    (out / "thesis.tex").touch()
    return []


def another_plan(world: Path, out: Path) -> list[str]:
    run_toy(toy.write_config(world, out=out))
    return ["shards.images_per_part=2"]


def masks_of_other_images(world: Path, out: Path) -> list[str]:
    tree = json.loads((world / "instances.json").read_text())
    for image in tree["images"]:
        image |= {"id": image["id"] + 1000, "file_name": f"x{image['file_name']}"}
    for annotation in tree["annotations"]:
        annotation["image_id"] += 1000
    (out.parent / "others.json").write_text(json.dumps(tree))
    return [f"regions.proposals.annotations={out.parent}/others.json"]


def no_verdicts(world: Path, out: Path) -> list[str]:
    return [f"shards.verdicts={out.parent}/none.csv"]


@pytest.mark.parametrize(
    ("fault", "name"),
    [(stranger_in_out, "out"), (another_plan, "out"), (masks_of_other_images, "masks"), (no_verdicts, "settings")],
)
def test_the_doctor_and_a_dry_run_find_what_mine_refuses(
    world: Path,
    tmp_path: Path,
    fault: Callable[[Path, Path], list[str]],
    name: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    overrides = fault(world, tmp_path / "run")
    options = [word for override in overrides for word in ("--set", override)]
    config = str(toy.write_config(world, out=tmp_path / "run"))
    code = run_app(["mine", config, *options])
    assert code in (2, 5)
    assert run_app(["mine", config, *options, "--dry-run"]) == code
    capsys.readouterr()
    assert run_app(["doctor", config, *options, "--json"]) == 2
    found = json.loads(capsys.readouterr().out)
    assert not found["ready"]
    assert [one["name"] for one in found["findings"] if one["state"] == "missing"] == [name]


def test_the_column_of_a_table_that_is_not_there_is_found(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pairs.csv").write_text("path,text\n11.png,A square\n")
    captions = {"kind": "csv", "files": str(tmp_path / "pairs.csv"), "path_col": "path", "caption_col": "caption"}
    config = toy.write_config(world, out=tmp_path / "run", captions=captions)
    assert run_app(["doctor", str(config), "--json"]) == 2
    found = json.loads(capsys.readouterr().out)["findings"]
    assert "captions" in [one["name"] for one in found if one["state"] == "missing"]


@pytest.mark.parametrize("preset", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_command_of_a_configuration_is_found_out(preset: Path) -> None:
    expected = PRESETS.get(preset.stem.partition("-")[0], "mine")
    assert guess_configuration(top_settings(str(preset))) == expected


def test_the_doctor_takes_the_configuration_of_a_tuning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree = {
        "clip": {"model": str(tmp_path / "no-clip")},
        "data": {"sources": [{"folder": str(tmp_path / "no-run")}]},
        "out": str(tmp_path / "out"),
    }
    (tmp_path / "my.yaml").write_text(json.dumps(tree))
    assert run_app(["doctor", str(tmp_path / "my.yaml"), "--json"]) == 2
    found = {one["name"]: one["state"] for one in json.loads(capsys.readouterr().out)["findings"]}
    assert (found["clip"], found["data.sources.folder"], found["out"]) == ("missing", "missing", "ok")


def test_without_a_library_the_doctor_names_it_and_other_commands_end_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    version, config = importlib.metadata.version, str(toy.write_config(toy.write_toy_world(tmp_path)))

    def find(name: str) -> str:
        if name == "torch":
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", find)
    monkeypatch.setitem(sys.modules, "torch", None)
    for module in ("maskmine.tuning.evaluation.region_accuracy", "maskmine.pipelines.evaluate.clip"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    assert run_app(["doctor", config]) == 2
    assert "missing: torch" in capsys.readouterr().out
    assert run_app(["evaluate", config]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("maskmine: the package `torch` is not installed; pip install -e '.' in a checkout")


def test_a_module_of_our_own_that_is_missing_is_no_fault_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "maskmine.pipelines.doctor", None)
    with pytest.raises(ModuleNotFoundError, match=r"maskmine\.pipelines\.doctor"):
        run_app(["doctor"])
