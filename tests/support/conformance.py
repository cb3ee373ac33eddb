"""What every engine must do alike: the same bytes, the same rejections, only the missing cells, faults in one line."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from maskmine.pipelines.cli.main import run_app
from maskmine.pipelines.dataset.finished_run import FinishedRun
from maskmine.pipelines.dataset.verify import verify_run
from maskmine.pipelines.engines import choose
from maskmine.pipelines.engines.engine import Engine
from maskmine.pipelines.engines.local import LocalEngine
from maskmine.pipelines.mine import mine
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.pipelines.settings.mining import load_mining
from maskmine.pipelines.steps.status import rejected_images
from maskmine.schemas.errors import IncompleteError, InputError
from maskmine.scripts.captioner.server import Asked, captioner_on_loopback
from tests.support import toy
from tests.support.runs import Recorder, hashes, samples

Check = Callable[[Engine, Path], None]

ALL_CELLS = {("nouns", p) for p in range(3)} | {("proposals", p) for p in range(3)}
ALL_CELLS |= {("pairs", p) for p in range(3)} | {("shards", p) for p in range(3)} | {("vocabulary", 0)}

POISON = {"12": ("segfault", "worker_crash"), "13": ("loop", "record_timeout"), "14": ("memory", "worker_crash")}


def run_with(engine: Engine, config: Path, *overrides: str) -> Recorder:
    """Run the toy world with an engine; returns what its watch saw."""
    recorder = Recorder()
    mine(load_mining(str(config), overrides=overrides), engine=engine, observer=recorder)
    return recorder


def same_bytes_as_local(engine: Engine, folder: Path) -> None:
    """The engine's run has the bytes of the local one, and its watch saw every cell and image."""
    world = toy.write_toy_world(folder / "world")
    run_with(LocalEngine(), toy.write_config(world, out=folder / "local"))
    recorder = run_with(engine, toy.write_config(world, out=folder / "engine"))
    assert hashes(str(folder / "engine")) == hashes(str(folder / "local"))
    assert set(recorder.made) == ALL_CELLS
    run = RunFolder(str(folder / "engine"))
    assert {(i.image_id, i.step, i.reason) for i in rejected_images(run)} == toy.REJECTIONS
    assert [str(problem) for problem in verify_run(run)] == []


def real_models_give_the_same_bytes(engine: Engine, folder: Path) -> None:
    """Masks by EoMT, embeddings by a SigLIP 2 and checks by OWLv2, all tiny, and negatives are those of the local run
    to the last bit, from captions to shards: where one pass makes both, where there are masks and CLIP looks at them
    alone, and where both are there."""
    from tests.support.models import OF_TIMM, save_tiny_clip
    from tests.support.runs import config
    from tests.support.tiny.proposers import save_eomt
    from tests.support.tiny.verifiers import save_verifier

    world = toy.write_toy_world(folder / "world")
    regions = {
        "proposals": {"kind": "eomt", "checkpoint": str(save_eomt(world / "eomt")), "licence": "MIT"},
        "keep": {"min_area_px": 1, "min_score": 0.0, "max_area_ratio": 1.0},
        "clip": {"model": str(save_tiny_clip(world / "clip", **OF_TIMM)), "batch_size": 4},
        "device": "cpu",
    }
    more: dict[str, Any] = {
        "checks": {"verifier": save_verifier("owlv2", world / "verifier")},
        "negatives": {"min_images": 1, "min_separability": 0.0, "max_agreement": 1.0, "margin": 0.0},
    }
    run_with(LocalEngine(), config(world, regions, folder / "local", **more))
    later = ("_SUCCESS", "manifest.json", "vocabulary.parquet", "levels.parquet", "nouns", "pairs")
    later = (*later, "checks", "negatives", "shards")
    shutil.copytree(folder / "local", folder / "engine", ignore=shutil.ignore_patterns(*later))
    for cell in ("proposals/00000.parquet", "embeddings/*/00000.parquet", "embeddings/*/00001.parquet"):
        next((folder / "engine").glob(cell)).unlink()
    made = run_with(engine, config(world, regions, folder / "engine", **more)).made
    assert sorted(cell for cell in made if cell[0] in ("proposals", "embeddings")) == [
        ("embeddings", 0),
        ("embeddings", 1),
        ("proposals", 0),
    ]
    assert hashes(str(folder / "engine")) == hashes(str(folder / "local"))
    found = samples(RunFolder(str(folder / "engine")))
    assert len({row.presence for row in found}) > 2
    assert max(row.agreement or 0.0 for row in found) > 0
    assert any(row.negatives for row in found)


def captions_of_models_are_those_of_the_local_run(engine: Engine, folder: Path) -> None:
    """A server and a tiny Florence-2 caption the same pictures with the same words; the server gets no more requests at
    once than the settings allow, however many workers there are, and none for what it has answered."""
    from tests.support.tiny.captioners import save_florence2

    world = toy.write_toy_world(folder / "world")
    florence2 = {"kind": "florence2", "checkpoint": str(save_florence2(world / "florence")), "max_tokens": 8}
    human = {"kind": "coco", "annotations": str(world / "captions.json"), "images": str(world / "images")}

    def says(asked: Asked) -> str:
        time.sleep(0.02)
        return f"A square, and {len(asked.jpeg)} discs."

    with captioner_on_loopback(says) as server:
        endpoint = {"kind": "endpoint", "url": server.url, "model": "m", "requests_at_once": 2}
        captions = [human, endpoint, florence2]
        run_with(LocalEngine(), toy.write_config(world, out=folder / "local", captions=captions))
        server.most_at_once = 0
        run_with(engine, toy.write_config(world, out=folder / "engine", captions=captions))
        assert hashes(str(folder / "engine")) == hashes(str(folder / "local"))
        assert server.most_at_once == 2
        (folder / "engine/nouns/00001.parquet").unlink()
        run_with(engine, toy.write_config(world, out=folder / "engine", captions=captions))
        assert len(server.asked) == 2 * len(toy.IMAGES)
    found = {row.source for row in samples(RunFolder(str(folder / "engine")))}
    assert found == {"coco", "endpoint", "florence2"}
    assert [str(problem) for problem in verify_run(RunFolder(str(folder / "engine")))] == []


def regenerated_data_is_that_of_a_full_run(engine: Engine, folder: Path) -> None:
    """With other captions and parts, workers take the regions of an earlier run, and look at no picture for them."""
    world = toy.write_toy_world(folder / "world")
    config = toy.write_config(world, out=folder / "old")
    changes = ["captions.per_image=all", "shards.images_per_part=2"]
    run_with(LocalEngine(), config)
    run_with(LocalEngine(), config, *changes, f"out={folder / 'full'}")
    (world / "images" / f"{17:012d}.png").write_text("<html>")  # it has regions and no pairs
    settings = load_mining(str(config), overrides=[*changes, f"out={folder / 'new'}"])
    mine(settings, engine=engine, observer=Recorder(), regions_from=str(folder / "old"))
    new, full = RunFolder(settings.out), RunFolder(str(folder / "full"))
    assert hashes_of_data(new) == hashes_of_data(full)
    assert [str(problem) for problem in verify_run(new)] == []


def hashes_of_data(run: RunFolder) -> dict[str, str]:
    """The hashes of all but what tells of the run whose regions were taken."""
    telling = {"manifest.json", "SHA256SUMS", "derived_from.json", "README.md", "croissant.json"}
    return {name: digest for name, digest in hashes(run.root).items() if name not in telling}


def a_bottleneck_is_that_of_the_local_engine(engine: Engine, folder: Path) -> None:
    """Every case of a benchmark's bottleneck, by tiny models, has the local run's counts to the last pixel."""
    from maskmine.pipelines.segment.benchmark import Benchmark, run_benchmark
    from maskmine.pipelines.segment.benchmark_sets import BenchmarkSet
    from maskmine.scripts.accuracy.instance_maps import find_instance_set
    from maskmine.tuning.segmentation.oracle import CASES
    from maskmine.tuning.segmentation.segmenter import Segmenter
    from tests.support.models import save_tiny_models

    world = toy.write_toy_world(folder / "world")
    settings = Segmenter.model_validate({**save_tiny_models(world), "templates": "raw"})
    instances = str(world / "instances.json")
    found = BenchmarkSet(find_instance_set(folder / "set", instances=instances, images=world / "images", name="toy"))
    for name, run_engine in (("local", LocalEngine()), ("engine", engine)):
        asked = Benchmark(found, settings, RunFolder(str(folder / name)), oracle=True, images_per_part=3)
        outcome = run_benchmark(asked, engine=run_engine, observer=Recorder())
        assert list(outcome.sums) == [case.name for case in CASES]
    assert hashes(str(folder / "engine")) == hashes(str(folder / "local"))


def only_missing_cells_are_made(engine: Engine, folder: Path) -> None:
    """A second run makes what was deleted, and nothing else."""
    world = toy.write_toy_world(folder / "world")
    config = toy.write_config(world, out=folder / "run")
    run_with(engine, config)
    before = hashes(str(folder / "run"))
    (folder / "run/proposals/00001.parquet").unlink()
    (folder / "run/shards/00002.tar").unlink()
    assert set(run_with(engine, config).made) == {("proposals", 1), ("shards", 2)}
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
    expected = toy.REJECTIONS | {(image_id, "proposals", reason) for image_id, (_, reason) in POISON.items()}
    found = {(i.image_id, i.step, i.reason) for i in rejected_images(run)}
    assert found == expected, found ^ expected
    assert {(row.image_id, row.noun) for row in samples(run)} == {("11", "square"), ("11", "disc")}
    assert [str(problem) for problem in verify_run(run)] == []


def the_account_holds_whatever_fails(engine: Engine, folder: Path) -> None:
    """Faults of pictures, of the disk and of cells, one after the other: no image is lost, and the bytes are the same.

    `images = with pairs + rejected` for every shard and for the run.
    """
    world = toy.write_toy_world(folder / "world")
    (world / "images" / f"{11:012d}.png").unlink()
    (world / "images" / f"{13:012d}.png").write_text("<html>")
    toy.poison(world / "images" / f"{12:012d}.png", ("bar",), "segfault")
    config = toy.write_config(world, out=folder / "run")
    run = RunFolder(str(folder / "run"))
    for cell in ("proposals/00001.parquet", "shards/00000.tar", "shards/00002.json"):
        (folder / "run" / cell).unlink(missing_ok=True)  # parts that do not wait for the one before may have it already
        with full_disk(folder / "run", cell), pytest.raises(IncompleteError, match="the disk is full"):
            run_with(engine, config)
    run_with(engine, config)
    assert_the_account_holds(run, images=len(toy.IMAGES))
    (folder / "run/shards/00001.json").unlink()
    (folder / "run/nouns/00002.parquet").write_bytes(b"PAR1")
    (folder / "run/nouns/_fingerprint.json").unlink()  # as after a change of settings: now cells are looked into
    run_with(engine, config)
    assert_the_account_holds(run, images=len(toy.IMAGES))
    run_with(LocalEngine(), toy.write_config(world, out=folder / "undisturbed"))
    assert hashes(run.root) == hashes(str(folder / "undisturbed"))


def the_exit_codes_are_the_same(engine: Engine, folder: Path) -> None:
    """0 complete, 2 bad input, 3 too many rejected, 4 incomplete, 5 another plan: on every engine."""
    world = toy.write_toy_world(folder / "world")

    def code(*overrides: str) -> int:
        config = str(toy.write_config(world, out=folder / "run"))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(choose, "choose_engine", lambda *_, **__: engine)
            return run_app(["mine", config, *(word for override in overrides for word in ("--set", override))])

    with full_disk(folder / "run", "pairs/00001.parquet"):
        assert code() == 4
    assert code("max_empty=0.1") == 3
    assert code() == 0
    assert code("shards.images_per_part=2") == 5
    instances = (world / "instances.json").read_text()
    (world / "instances.json").write_text("{}")
    assert code() == 2
    (world / "instances.json").write_text(instances)
    assert code() == 0


@contextmanager
def full_disk(root: Path, cell: str) -> Iterator[None]:
    """While the block runs, this cell of the run folder cannot be written by any process of the tests."""
    note = root / "._disk-is-full"
    root.mkdir(exist_ok=True)
    note.write_text(str(root / cell))
    yield
    note.unlink()


def assert_the_account_holds(run: RunFolder, *, images: int) -> None:
    """Every image of the run is one with pairs or one rejection, by the shards' accounts and by the manifest."""
    totals = FinishedRun.open(run).manifest.totals
    accounts = [run.read_json("shards", f"{part:05d}.json") for part in sorted(run.done("shards"))]
    for account in accounts:
        assert account["images"] == account["with_pairs"] + sum(account["rejected"].values())
        assert len(account["rejections"]) == sum(account["rejected"].values())
    assert sum(account["images"] for account in accounts) == totals.images == images
    assert totals.images == totals.with_pairs + sum(totals.rejected.values())
    with_pairs = {row.image_id for row in samples(run)}
    rejected = [image.image_id for image in rejected_images(run)]
    assert len(with_pairs) == totals.with_pairs
    assert len(rejected) == len(set(rejected)) == totals.images - totals.with_pairs
    assert not with_pairs & set(rejected)
    problems = [str(problem) for problem in verify_run(run)]
    assert [line for line in problems if not line.startswith("._disk-is-full: ")] == []  # a note of the tests


def faults_reach_the_driver(engine: Engine, folder: Path) -> None:
    """A fault of the settings that only a worker can see ends the run with its one line, not with a retry storm."""
    world = toy.write_toy_world(folder / "world")
    (world / "instances.json").write_text("{}")
    with pytest.raises(InputError, match=r"instances\.json") as caught:
        run_with(engine, toy.write_config(world, out=folder / "run"))
    assert "\n" not in str(caught.value)


def a_set_grows_to_the_same_bytes(engine: Engine, folder: Path) -> None:
    """What is appended twice, with levels and a cap for each noun, has the local engine's bytes; of the set that was
    there no cell is made, and no shard written."""
    from tests.support.growing import append_file, base_config, write_pieces
    from tests.support.models import save_tiny_clip

    world = write_pieces(folder / "world")
    masks = {"kind": "ground_truth", "annotations": str(world / "instances.json")}
    clip = {"model": str(save_tiny_clip(world / "clip")), "batch_size": 4}
    regions = {"proposals": masks, "keep": {"min_area_px": 1}, "clip": clip, "device": "cpu", "decode_threads": 1}
    pairs = {"rule": "best_region_per_noun", "max_per_noun": 1, "min_count": 1}
    config = base_config(world, folder / "local", regions=regions, pairs=pairs, shards={"images_per_part": 2})
    run_with(LocalEngine(), config)
    before = {file: file.stat().st_mtime_ns for file in (folder / "local").rglob("[0-9]*.*")}
    shutil.copytree(folder / "local", folder / "engine")
    for name in ("second", "third"):
        append_file(folder / "local", world / f"{name}.json")
        made = append_file(folder / "engine", world / f"{name}.json", engine=engine)[1].made
        assert {part for _, part in made} == {0, 2 if name == "second" else 3}
        assert {step for step, part in made if not part} == {"vocabulary", "levels", "selection"}
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert hashes(str(folder / "engine")) == hashes(str(folder / "local"))
    assert [str(problem) for problem in verify_run(RunFolder(str(folder / "engine")))] == []
