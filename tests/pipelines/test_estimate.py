"""The estimate: what a run will cost, from a few of its images."""

from __future__ import annotations

import errno
import io
import os
import shutil
import socket
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from maskmine.mining import vocabulary
from maskmine.pipelines import estimate as estimating
from maskmine.pipelines.estimate import Estimate, StepEstimate, estimate, render_estimate
from maskmine.pipelines.planning.plan import read_plan
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.pipelines.settings.mining import Mining, load_mining
from maskmine.schemas.errors import InputError
from maskmine.schemas.rows import ImageRow
from tests.support import toy
from tests.support.models import save_tiny_clip
from tests.support.runs import run_toy

STEPS = ["plan", "nouns", "vocabulary", "proposals", "pairs", "shards"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.write_toy_world(tmp_path_factory.mktemp("estimate"))


@pytest.fixture(scope="module")
def half(world: Path) -> Estimate:
    """From four of the eight images."""
    return estimate(load(world), limit=None, sample=4)


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def load(world: Path, *overrides: str) -> Mining:
    return load_mining(str(toy.write_config(world)), overrides=overrides)


def lines(found: Estimate, *, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    console.print(render_estimate(found))
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_images_and_parts_are_those_of_the_whole_run(world: Path, half: Estimate) -> None:
    assert (half.images, half.parts, half.sampled) == (8, 3, 4)
    limited = estimate(load(world), limit=5, sample=2)
    assert (limited.images, limited.parts, limited.sampled) == (5, 2, 2)


def test_nothing_is_left_behind_and_out_is_not_touched(world: Path, scratch: Path, tmp_path: Path) -> None:
    estimate(load(world, f"out={tmp_path / 'run'}"), limit=None, sample=2)
    assert os.listdir(tmp_path) == ["scratch"]
    assert os.listdir(scratch) == []


def test_a_fault_is_that_of_the_run_and_leaves_nothing_behind(world: Path, scratch: Path) -> None:
    none = load(world, f"captions.annotations={world / 'none.json'}")
    with pytest.raises(InputError, match="no such file"):
        estimate(none, limit=None, begin=lambda: pytest.fail("said to begin"))
    assert os.listdir(scratch) == []


def test_without_a_network_the_hub_is_asked_once_before_anything_is_done(
    world: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, int]] = []

    def connect(address: tuple[str, int], *, timeout: float) -> None:
        asked.append(address)
        raise OSError(errno.EHOSTUNREACH, "No route to host")

    monkeypatch.setattr(socket, "create_connection", connect)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    clip = "regions.clip={model: 'hf-hub:nobody/nothing'}"
    with pytest.raises(InputError, match=r"clip: `.*` is not on this machine, and \S+ cannot be reached \(No route"):
        estimate(load(world, clip), limit=None, sample=2)
    assert len(asked) == 1
    assert os.listdir(scratch) == []


def test_hours_are_positive_and_the_sums_are_those_of_the_steps(half: Estimate) -> None:
    assert [step.step for step in half.steps] == STEPS
    assert all(step.per_image_s > 0 and step.size_bytes > 0 for step in half.steps)
    for step in half.steps:
        assert step.total_s == pytest.approx(step.start_up_s + step.per_image_s * half.images)
    assert half.gpu_hours == 0 < half.cpu_hours
    assert half.cpu_hours == pytest.approx(sum(step.total_s for step in half.steps) / 3600)
    assert half.shard_bytes + half.cell_bytes == sum(step.size_bytes for step in half.steps)


def test_a_sample_of_all_images_gives_what_the_run_gives(world: Path, tmp_path: Path) -> None:
    run, outcome, _ = run_toy(toy.write_config(world, out=tmp_path / "run"))
    found = estimate(load(world), limit=None)
    assert outcome.manifest is not None
    assert found.sampled == found.images == len(toy.IMAGES)
    assert found.samples == outcome.manifest.totals.samples
    assert found.rejected == Counter(f"{step}: {reason}" for _, step, reason in toy.REJECTIONS)
    for step in ("nouns", "proposals", "pairs", "shards"):  # what a folder holds beside its cells is small
        real = sum(file.stat().st_size for file in Path(run.path(step)).iterdir() if file.name[0].isdigit())
        (estimated,) = (one.size_bytes for one in found.steps if one.step == step)
        assert estimated == pytest.approx(real, rel=0.01)


def test_twice_the_images_have_twice_the_shards(world: Path, half: Estimate) -> None:
    four = estimate(load(world), limit=4, sample=4)
    assert half.samples == 2 * four.samples
    assert half.shard_bytes == pytest.approx(2 * four.shard_bytes, rel=0.01)


def test_start_up_is_counted_once_however_many_images_there_are(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(10_000))
    monkeypatch.setattr(estimating.time, "monotonic", lambda: float(next(clock)))
    for limit in (4, 8):
        (regions,) = (s for s in estimate(load(world), limit=limit, sample=4).steps if s.step == "proposals")
        # Each look at the clock is a second: six in the first round of two parts, so five, of which two are work.
        assert regions.start_up_s == 3.0
        assert regions.total_s == 3.0 + 2.0 * limit / 4


def test_images_beyond_the_sample_need_not_exist(world: Path, tmp_path: Path) -> None:
    run, _, _ = run_toy(toy.write_config(world, out=tmp_path / "run"), limit=2)
    assert read_plan(run) is not None
    few = tmp_path / "images"
    few.mkdir()
    for row in RunFolder(run.root).read_rows("images", "00000.parquet", row_type=ImageRow):
        shutil.copy(str(row.path), few)
    found = estimate(load(world, f"captions.images={few}"), limit=None, sample=2)
    assert found.images == len(toy.IMAGES)
    assert "proposals: missing_file" not in found.rejected


def test_filters_on_the_whole_set_are_left_out_and_said_to_be(world: Path, half: Estimate) -> None:
    found = estimate(load(world, "pairs.min_count=9", "pairs.max_per_noun=1"), limit=None, sample=4)
    assert found.samples == half.samples > 0
    assert (half.unfiltered, found.unfiltered) == (False, True)
    assert "there will be fewer pairs" in " ".join(lines(found, width=120))


def test_the_steps_of_models_are_counted_as_gpu_hours_where_there_is_a_gpu(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimating, "open_device", lambda name: torch.device("cuda"))
    found = estimate(load(world), limit=None, sample=2)
    (regions,) = (step for step in found.steps if step.on_gpu)
    assert regions.step == "proposals"
    assert found.gpu_hours * 3600 == pytest.approx(regions.total_s)


def test_the_second_round_embeds_every_noun_anew(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embedded: list[str] = []
    original = vocabulary.embed_nouns

    def spy(nouns: Any, **options: Any) -> Any:
        embedded.extend(nouns)
        return original(nouns, **options)

    monkeypatch.setattr(vocabulary, "embed_nouns", spy)
    regions = {
        "proposals": {"kind": "ground_truth", "annotations": str(world / "instances.json")},
        "keep": {"min_area_px": 1},
        "clip": {"model": str(save_tiny_clip(tmp_path / "clip")), "batch_size": 4},
        "device": "cpu",
    }
    config = toy.write_config(world, regions=regions, pairs={"rule": "best_region_per_noun"})
    assert estimate(load_mining(str(config)), limit=None).samples > 0
    assert set(Counter(embedded).values()) == {2}


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_says_that_it_is_an_estimate_and_from_how_many_images(half: Estimate, width: int) -> None:
    shown = lines(half, width=width)
    assert shown[0] == "8 images in 3 parts; estimated from 4 of them"
    assert max(len(line) for line in shown) <= width
    assert [line.split()[0] for line in shown[3:9]] == STEPS


def test_times_and_sizes_are_shown_in_units_that_fit() -> None:
    steps = (
        StepEstimate(step="plan", on_gpu=False, start_up_s=0.0, per_image_s=4e-5, total_s=4.0, size_bytes=2_000_000),
        StepEstimate(
            step="proposals", on_gpu=True, start_up_s=90.0, per_image_s=2.0, total_s=200_090.0, size_bytes=3_000_000_000
        ),
    )
    shown = lines(Estimate(100_000, 100, 16, steps, 440_000, {}, False), width=80)
    assert shown[3].split() == ["plan", "CPU", "0", "s", "40.0", "µs", "4.0", "s", "2.0", "MB"]
    assert shown[4].split() == ["proposals", "GPU", "1.5", "min", "2.0", "s", "2.3", "d", "3.0", "GB"]
    assert any(line.split() == ["in", "total", "GPU", "2.3", "d"] for line in shown)
