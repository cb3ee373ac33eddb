"""The demo world and COCO's photographs through every caption source, by CLIP down to shards: the same pairs."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.pipelines.steps.status import rejected_images
from maskmine.scripts.demo_world.draw import draw_world
from tests.support.conformance import assert_the_account_holds
from tests.support.models import save_tiny_clip
from tests.support.paths import COCO_MINI
from tests.support.runs import run_toy, samples
from tests.support.source_formats import WRAPPINGS, Captioned, config_of

SCORES = ("similarity", "margin", "score", "lift", "evidence")

pytestmark = pytest.mark.usefixtures("one_tagger")


@dataclass(frozen=True)
class World:
    """Captioned pictures with their true masks, as COCO's instances have them."""

    images: list[Captioned]
    instances: dict[str, Any]


def read_world(captions: Path, instances: Path, pictures: Path, *, most: int) -> World:
    """The first images of a world in COCO's form."""
    told, truth = json.loads(captions.read_text()), json.loads(instances.read_text())
    listed = told["images"][:most]
    images = []
    for image in listed:
        said = [one["caption"] for one in told["annotations"] if one["image_id"] == image["id"]]
        content = (pictures / image["file_name"]).read_bytes()
        # a folder's .txt has a caption a line, and spaces at its ends mean nothing
        images.append(Captioned(str(image["id"]), content, tuple(" ".join(caption.split()) for caption in said)))
    ids = {image["id"] for image in listed}
    annotations = [one for one in truth["annotations"] if one["image_id"] in ids]
    return World(images, {"images": listed, "annotations": annotations, "categories": truth["categories"]})


def demo_world(folder: Path) -> World:
    """Eight scenes, drawn."""
    draw_world(folder / "world", scenes=8, seed=3)
    world = folder / "world"
    return read_world(world / "captions.json", world / "instances.json", world / "images", most=8)


def coco_mini(folder: Path) -> World:
    """Three photographs."""
    if not COCO_MINI.exists():
        pytest.skip("needs the COCO photographs of ../shared/data")
    notes = COCO_MINI / "annotations"
    return read_world(
        notes / "captions_train2017.json", notes / "instances_train2017.json", COCO_MINI / "train2017", most=3
    )


@dataclass(frozen=True)
class Mined:
    """A world in every wrapping, mined in one run, its ids with the wrapping's name before them."""

    run: RunFolder
    images: int


@pytest.fixture(scope="module", params=[demo_world, coco_mini])
def mined(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Mined:
    folder = tmp_path_factory.mktemp("worlds")
    world: World = request.param(folder)
    sources, listed, annotations = [], [], []
    for name, wrap in WRAPPINGS.items():
        images = [Captioned(f"{name}-{image.id}", image.picture, image.captions) for image in world.images]
        sources.append(wrap(folder / "in" / name, images))
        listed += [{**image, "id": f"{name}-{image['id']}"} for image in world.instances["images"]]
        annotations += [{**one, "image_id": f"{name}-{one['image_id']}"} for one in world.instances["annotations"]]
    instances = {**world.instances, "images": listed, "annotations": annotations}
    (folder / "instances.json").write_text(json.dumps(instances))
    clip = {"model": str(save_tiny_clip(folder / "clip")), "batch_size": 64}
    proposals = {"kind": "ground_truth", "annotations": str(folder / "instances.json")}
    regions = {"proposals": proposals, "clip": clip, "device": "cpu"}
    changes = {"vocabulary": {"templates": "raw"}, "pairs": {"rule": "best_region_per_noun"}}
    run, _, _ = run_toy(config_of(folder, sources, regions, **changes, shards={"images_per_part": 30}))
    return Mined(run, len(world.images))


def shard_samples(run: RunFolder) -> Iterator[tuple[str, dict[str, Any]]]:
    """Image ids with what the index and the tar say of each pair, but for names and places."""
    for row in samples(run):
        with run.open("shards", row.shard) as file:
            file.seek(row.offset)
            content = file.read(row.size_bytes)
        with tarfile.open(fileobj=io.BytesIO(content + bytes(1024))) as tar:
            members = {name.partition(".")[2]: tar.extractfile(name) for name in tar.getnames()}
            inner = {suffix: file.read() for suffix, file in members.items() if file is not None}
        record = json.loads(inner.pop("json"))
        told = {**asdict(row), **record, **inner}
        places = {"key", "image_id", "shard", "offset", "size_bytes", "source", "crc32"}
        yield row.image_id, {name: value for name, value in told.items() if name not in places}


def test_every_source_gives_the_same_pairs_crops_and_masks(mined: Mined) -> None:
    found: dict[str, list[Any]] = {name: [] for name in WRAPPINGS}
    for image_id, told in shard_samples(mined.run):
        name, _, own_id = image_id.partition("-")
        found[name].append((own_id, told))
    in_order = {name: sorted(rows, key=lambda row: (row[0], row[1]["start"])) for name, rows in found.items()}
    # what stands beside a crop in its batch may change the last bits of its embedding
    scores = {name: [[row.pop(score) for score in SCORES] for _, row in rows] for name, rows in in_order.items()}
    assert len({own_id for own_id, _ in in_order["coco"]}) > mined.images / 2
    for name, rows in in_order.items():
        assert rows == in_order["coco"], name
        assert np.array(scores[name], float) == pytest.approx(np.array(scores["coco"], float), abs=1e-3, nan_ok=True)


def test_every_source_loses_the_same_images_for_the_same_reasons(mined: Mined) -> None:
    lost: dict[str, set[Any]] = {name: set() for name in WRAPPINGS}
    for image in rejected_images(mined.run):
        name, _, own_id = image.image_id.partition("-")
        lost[name].add((own_id, image.step, image.reason))
    assert all(found == lost["coco"] for found in lost.values())
    assert_the_account_holds(mined.run, images=mined.images * len(WRAPPINGS))
