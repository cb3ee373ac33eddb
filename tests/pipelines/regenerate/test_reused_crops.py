"""Crops that an earlier run has are taken as they are, and the shards are those of a run that cuts all of them."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from typing import Any

import pytest

from maskmine.mining.images.child_decoder import Decoding
from maskmine.pipelines.engines.local import LocalEngine
from maskmine.pipelines.mine import mine
from maskmine.pipelines.run_folder import reused_samples
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.pipelines.settings.mining import load_mining
from tests.support import toy
from tests.support.conformance import hashes_of_data
from tests.support.runs import Recorder, run_toy
from tests.support.toy_shards import as_version

pytestmark = pytest.mark.usefixtures("one_tagger")

JPG = "shards.image_format=jpg"
WITH_PAIRS = len({image_id for image_id, _, _ in toy.PAIRS})


class Seen:
    """How many pictures were decoded."""

    def __init__(self) -> None:
        self.decoded = 0


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    found, decode = Seen(), Decoding.decode

    def decodes(self: Decoding, data: bytes, **options: Any) -> Any:
        found.decoded += 1
        return decode(self, data, **options)

    monkeypatch.setattr(Decoding, "decode", decodes)
    return found


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """The toy world, with other captions beside it: of each image with pairs another that says the same shapes."""
    world = toy.write_toy_world(tmp_path / "world")
    content = json.loads((world / "captions.json").read_text())
    for one in content["annotations"]:
        one["caption"] = f"Here: {one['caption'].lower()}"
    (world / "others.json").write_text(json.dumps(content))
    return world


def earlier(world: Path, *overrides: str) -> RunFolder:
    return run_toy(toy.write_config(world, out=world / "old"), JPG, *overrides)[0]


def again(world: Path, old: RunFolder, *overrides: str, name: str = "new") -> RunFolder:
    captions = f"captions.annotations={world / 'others.json'}"
    config = toy.write_config(world, out=world / name)
    settings = load_mining(str(config), overrides=[captions, JPG, *overrides])
    mine(settings, engine=LocalEngine(), observer=Recorder(), regions_from=old.root)
    return RunFolder(settings.out)


def plainly(world: Path, *overrides: str) -> RunFolder:
    """The same set without an earlier run."""
    captions = f"captions.annotations={world / 'others.json'}"
    return run_toy(toy.write_config(world, out=world / "plain"), captions, JPG, *overrides)[0]


def test_only_one_picture_of_each_earlier_part_is_decoded(world: Path, seen: Seen) -> None:
    old = earlier(world)
    seen.decoded = 0
    new = again(world, old)
    parts = sum(bool(json.loads(file.read_text())["samples"]) for file in (world / "old/shards").glob("0*.json"))
    assert seen.decoded == parts
    assert parts < WITH_PAIRS
    assert hashes_of_data(new) == hashes_of_data(plainly(world))


@pytest.mark.parametrize("change", ["shards.quality=80", "shards.image_format=png", "shards.expand_ratio=2.5"])
def test_crops_of_other_settings_are_cut_anew(world: Path, seen: Seen, change: str) -> None:
    old = earlier(world)
    seen.decoded = 0
    new = again(world, old, change)
    assert seen.decoded >= WITH_PAIRS
    assert hashes_of_data(new) == hashes_of_data(plainly(world, change))


def test_crops_of_other_libraries_are_cut_anew(world: Path, seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    old, version = earlier(world), importlib.metadata.version
    seen.decoded = 0
    monkeypatch.setattr(reused_samples.importlib.metadata, "version", lambda name: f"{version(name)}.other")
    new = again(world, old)
    assert seen.decoded == WITH_PAIRS
    assert hashes_of_data(new)["shards/00000.tar"] == hashes_of_data(plainly(world))["shards/00000.tar"]


def test_crops_of_a_library_that_was_built_otherwise_are_cut_anew(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from maskmine.mining import shards

    encode = shards.encode_image
    with monkeypatch.context() as patch:
        patch.setattr(shards, "encode_image", lambda *a, **k: encode(*a, **{**k, "quality": 60}))
        old = earlier(world)
    assert hashes_of_data(again(world, old)) == hashes_of_data(plainly(world))


def test_a_picture_that_was_replaced_is_rejected_as_ever(world: Path) -> None:
    old = earlier(world)
    toy.save_picture(world / "images" / f"{12:012d}.png", ("square",))
    (world / "images" / f"{14:012d}.png").unlink()
    new = again(world, old)
    told = [json.loads(file.read_text()) for file in Path(new.root, "shards").glob("0*.json")]
    why = {one["image_id"]: one["reason"] for account in told for one in account["rejections"]}
    assert (why["12"], why["14"]) == ("image_changed", "missing_file")


@pytest.mark.parametrize("damage", ["cut", "flipped", "index", "gone"])
def test_a_damaged_earlier_shard_costs_its_crops_alone(world: Path, damage: str) -> None:
    old = earlier(world)
    for tar in Path(old.root, "shards").glob("*.tar"):
        index = tar.with_suffix(".parquet")
        if damage == "gone":
            tar.unlink()
        elif damage == "index":
            index.write_bytes(index.read_bytes()[:-20])
        elif damage == "cut":
            tar.write_bytes(tar.read_bytes()[:700])
        else:
            content = bytearray(tar.read_bytes())
            for place in range(600, len(content), 997):
                content[place] ^= 0x40
            tar.write_bytes(bytes(content))
    assert hashes_of_data(again(world, old)) == hashes_of_data(plainly(world))


def test_an_index_of_an_earlier_version_without_checksums_gives_no_crops(world: Path, tmp_path: Path) -> None:
    older = as_version(Path(earlier(world).root), tmp_path / "older", 2)
    assert hashes_of_data(again(world, RunFolder(str(older)))) == hashes_of_data(plainly(world))


def test_another_cut_of_the_parts_takes_them_too(world: Path, seen: Seen) -> None:
    old = earlier(world)
    seen.decoded = 0
    new = again(world, old, "shards.images_per_part=8")
    assert seen.decoded < WITH_PAIRS
    assert hashes_of_data(new) == hashes_of_data(plainly(world, "shards.images_per_part=8"))


def test_an_earlier_run_on_an_object_store(world: Path, seen: Seen) -> None:
    old = earlier(world, "out=memory://reused-crops/old")
    seen.decoded = 0
    new = again(world, old)
    assert seen.decoded < WITH_PAIRS
    assert hashes_of_data(new) == hashes_of_data(plainly(world))
