"""What every engine must do alike: the same bytes, the same rejections, only the missing cells, faults in one line."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.engine import Engine
from pipelines.local import run_local
from pipelines.mine import mine
from pipelines.run_folder import RunFolder
from pipelines.settings import load_mining
from pipelines.status import rejected_images
from pipelines.verify import verify_run
from schemas.errors import InputError
from tests import toy
from tests.test_mine import Recorder, hashes, samples

Check = Callable[[Engine, Path], None]

ALL_CELLS = {("nouns", p) for p in range(3)} | {("regions", p) for p in range(3)}
ALL_CELLS |= {("pairs", p) for p in range(3)} | {("shards", p) for p in range(3)} | {("vocabulary", 0)}

POISON = {"12": ("segfault", "worker_crash"), "13": ("loop", "record_timeout"), "14": ("memory", "worker_crash")}


def run_with(engine: Engine, config: Path, *overrides: str) -> Recorder:
    """Run the toy world with an engine; returns what its watch saw."""
    recorder = Recorder()
    mine(load_mining(str(config), overrides=overrides), engine=engine, watch=recorder)
    return recorder


def same_bytes_as_local(engine: Engine, folder: Path) -> None:
    """The engine's run has the bytes of the local one, and its watch saw every cell and image."""
    world = toy.write_toy_world(folder / "world")
    run_with(run_local, toy.write_config(world, out=folder / "local"))
    recorder = run_with(engine, toy.write_config(world, out=folder / "engine"))
    assert hashes(str(folder / "engine")) == hashes(str(folder / "local"))
    assert set(recorder.made) == ALL_CELLS
    run = RunFolder(str(folder / "engine"))
    assert {(i.image_id, i.step, i.reason) for i in rejected_images(run)} == toy.REJECTIONS
    assert [str(problem) for problem in verify_run(run)] == []


def only_missing_cells_are_made(engine: Engine, folder: Path) -> None:
    """A second run makes what was deleted, and nothing else."""
    world = toy.write_toy_world(folder / "world")
    config = toy.write_config(world, out=folder / "run")
    run_with(engine, config)
    before = hashes(str(folder / "run"))
    (folder / "run/regions/00001.parquet").unlink()
    (folder / "run/shards/00002.tar").unlink()
    assert set(run_with(engine, config).made) == {("regions", 1), ("shards", 2)}
    assert hashes(str(folder / "run")) == before
    shutil.rmtree(folder / "run/pairs")
    run_with(engine, config, "pairs.max_per_noun=1")
    run_with(engine, config)
    assert hashes(str(folder / "run")) == before


def poisonous_pictures_cost_themselves_alone(engine: Engine, folder: Path) -> None:
    """Pictures that crash, never end or eat memory are rejected; all others of their parts have their pairs."""
    world = toy.write_toy_world(folder / "world")
    for image_id, (kind, _) in POISON.items():
        shapes = next(image.shapes for image in toy.IMAGES if str(image.id) == image_id)
        toy.poison(world / "images" / f"{int(image_id):012d}.png", shapes, kind)
    run_with(engine, toy.write_config(world, out=folder / "run"), "regions.decoding.timeout_s=3")
    run = RunFolder(str(folder / "run"))
    expected = toy.REJECTIONS | {(image_id, "regions", reason) for image_id, (_, reason) in POISON.items()}
    found = {(i.image_id, i.step, i.reason) for i in rejected_images(run)}
    assert found == expected, found ^ expected
    assert {(row.image_id, row.noun) for row in samples(run)} == {("11", "square"), ("11", "disc")}
    assert [str(problem) for problem in verify_run(run)] == []


def faults_reach_the_driver(engine: Engine, folder: Path) -> None:
    """A fault of the settings that only a worker can see ends the run with its one line, not with a retry storm."""
    world = toy.write_toy_world(folder / "world")
    (world / "instances.json").write_text("{}")
    with pytest.raises(InputError, match=r"instances\.json") as caught:
        run_with(engine, toy.write_config(world, out=folder / "run"))
    assert "\n" not in str(caught.value)
