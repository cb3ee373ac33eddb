"""Every caption source: the same pictures in another wrapping give the same pairs; every fault has its answer."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from maskmine.mining.images.read import read_bytes
from maskmine.mining.sources import webdataset as source_tars
from maskmine.mining.sources.webdataset import Img2dataset
from maskmine.mining.storage.locations import Cell, Slice, parse_location
from maskmine.mining.storage.urls import Fetch
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.pipelines.settings.mining import load_mining
from maskmine.pipelines.steps.status import rejected_images
from maskmine.schemas.errors import InputError, OtherPlanError
from maskmine.schemas.mask import Mask
from maskmine.schemas.rows import CaptionsRow, Rejection, SampleRow
from maskmine.schemas.tables import from_table
from tests.support import toy
from tests.support.conformance import assert_the_account_holds
from tests.support.hostile import corrupt_inputs as faults
from tests.support.hostile.corrupt_images import encoded
from tests.support.paths import COCO_MINI, ROOT
from tests.support.runs import hashes, run_toy, samples
from tests.support.source_formats import WRAPPINGS, Captioned, config_of, planned, tar_of


def toy_images(prefix: str = "") -> list[Captioned]:
    """The toy world's pictures, ids with a prefix."""
    return [
        Captioned(f"{prefix}{image.id}", encoded(Image.fromarray(toy.draw(image.shapes)), "PNG"), image.captions, "png")
        for image in toy.IMAGES
    ]


def write_instances(path: Path, shapes: dict[str, Sequence[str]]) -> dict[str, Any]:
    """The true masks of images by id; returns the settings of the regions."""
    images, annotations = [], []
    for image_id, drawn in shapes.items():
        images.append({"id": image_id, "height": toy.HEIGHT_PX, "width": toy.WIDTH_PX})
        for shape in drawn:
            counts = Mask.from_array(toy.shape_mask(shape)).counts.decode("ascii")
            rle = {"size": [toy.HEIGHT_PX, toy.WIDTH_PX], "counts": counts}
            annotations.append({"image_id": image_id, "category_id": toy.CATEGORIES[shape], "segmentation": rle})
    categories = [{"id": number, "name": name} for name, number in toy.CATEGORIES.items()]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return {
        "proposals": {"kind": "ground_truth", "annotations": str(path)},
        "keep": {"min_area_px": 1},
        "clip": None,
        "device": "cpu",
    }


@dataclass(frozen=True)
class Mined:
    """The toy world in all wrappings at once, its ids with the wrapping's name before them."""

    config: Path
    run: RunFolder


@pytest.fixture(scope="module")
def mined(tmp_path_factory: pytest.TempPathFactory) -> Mined:
    folder = tmp_path_factory.mktemp("sources")
    sources, shapes = [], {}
    for name, wrap in WRAPPINGS.items():
        sources.append({**wrap(folder / "in" / name, toy_images(f"{name}-")), "name": f"the {name}"})
        shapes |= {f"{name}-{image.id}": image.shapes for image in toy.IMAGES}
    regions = write_instances(folder / "instances.json", shapes)
    config = config_of(folder, sources, regions, shards={"images_per_part": 30})
    run, _, _ = run_toy(config)
    return Mined(config, run)


@pytest.mark.parametrize("name", WRAPPINGS)
def test_the_same_pictures_and_captions_in_any_wrapping_give_the_same_pairs(mined: Mined, name: str) -> None:
    of_source = [row for row in samples(mined.run) if row.image_id.startswith(f"{name}-")]
    found = {(row.image_id.removeprefix(f"{name}-"), row.noun, row.label) for row in of_source}
    assert found == toy.PAIRS
    rejected = {
        (image.image_id.removeprefix(f"{name}-"), image.step, image.reason)
        for image in rejected_images(mined.run)
        if image.image_id.startswith(f"{name}-")
    }
    assert rejected == toy.REJECTIONS
    assert {row.source for row in of_source} == {f"the {name}"}


def test_nothing_is_lost_between_several_sources_and_a_second_run_has_the_same_bytes(mined: Mined) -> None:
    assert_the_account_holds(mined.run, images=len(toy.IMAGES) * len(WRAPPINGS))
    before = hashes(mined.run.root)
    for cell in ("shards/00001.tar", "proposals/00000.parquet", "captions/00001.parquet"):
        Path(mined.run.root, cell).unlink()
    run_toy(mined.config)
    assert hashes(mined.run.root) == before


@pytest.mark.skipif(not COCO_MINI.exists(), reason="needs the COCO photographs of ../shared/data")
@pytest.mark.parametrize("name", WRAPPINGS)
def test_real_photographs_and_captions_come_through_every_source_unchanged(tmp_path: Path, name: str) -> None:
    tree = json.loads((COCO_MINI / "annotations" / "captions_train2017.json").read_text())
    said = sorted(tree["annotations"], key=lambda one: one["id"])
    images = [
        Captioned(
            Path(image["file_name"]).stem,
            (COCO_MINI / "train2017" / image["file_name"]).read_bytes(),
            # a folder's .txt has a caption a line, and spaces at its ends mean nothing
            tuple(" ".join(one["caption"].split()) for one in said if one["image_id"] == image["id"]),
        )
        for image in tree["images"][:8]
    ]
    source = WRAPPINGS[name](tmp_path / "in" / name, images)
    _, rows, captions = planned(config_of(tmp_path, {**source, "per_image": "all"}))
    assert {row.image_id: row.captions for row in captions} == {image.id: image.captions for image in images}
    assert {row.image_id: read_bytes(row.path) for row in rows} == {image.id: image.picture for image in images}


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Mined:
    """Every fault of pictures and captions in every wrapping, mined in one run."""
    folder = tmp_path_factory.mktemp("faults")
    sources, shapes = [], {}
    for name, wrap in WRAPPINGS.items():
        images = [
            Captioned(f"{name}-{fault}", make and make(), ("A square.",))
            for fault, (make, _) in faults.PICTURES.items()
        ]
        images += [
            Captioned(f"{name}-{fault}", faults.SQUARE, tuple(_storable(caption, name) for caption in captions), "png")
            for fault, (captions, _) in faults.CAPTIONS.items()
        ]
        sources.append(wrap(folder / "in" / name, images))
        shapes |= {image.id: ("square",) for image in images}
    config = config_of(
        folder, sources, write_instances(folder / "instances.json", shapes), shards={"images_per_part": 50}
    )
    run, _, _ = run_toy(config)
    return Mined(config, run)


def _storable(caption: str, wrapping: str) -> str:
    """A caption as a wrapping can hold it: a folder has one a line, and only JSON has half characters."""
    caption = (
        caption if wrapping in ("coco", "jsonl", "img2dataset", "run") else caption.encode("utf-8", "replace").decode()
    )
    return " ".join(caption.split("\n")) if wrapping == "folder" else caption


@pytest.mark.parametrize("name", WRAPPINGS)
def test_every_faulty_picture_and_caption_has_its_reason_in_every_wrapping(faulty: Mined, name: str) -> None:
    expected = {fault: reason for fault, (_, reason) in (faults.PICTURES | faults.CAPTIONS).items()}
    found = {
        image.image_id.removeprefix(f"{name}-"): image.reason
        for image in rejected_images(faulty.run)
        if image.image_id.startswith(f"{name}-")
    }
    assert found == {fault: reason for fault, reason in expected.items() if reason}
    with_pairs = {row.image_id for row in samples(faulty.run) if row.image_id.startswith(f"{name}-")}
    assert with_pairs == {f"{name}-{fault}" for fault, reason in expected.items() if reason is None}


def test_nothing_is_lost_among_all_the_faults(faulty: Mined) -> None:
    assert_the_account_holds(faulty.run, images=len(WRAPPINGS) * len(faults.PICTURES | faults.CAPTIONS))


@pytest.mark.parametrize("at_once", [1, 2, 8])
def test_tars_of_an_object_store_are_read_several_at_a_time_and_come_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    for n in range(5):
        (tmp_path / f"{n:05d}.tar").write_bytes(tar_of([(f"{n}{k}.png", faults.SQUARE) for k in "abc"]))
    source = Img2dataset(kind="img2dataset", files=str(tmp_path))
    plain = list(source.read(images_per_part=1))
    monkeypatch.setattr(source_tars, "scheme_of", lambda path: "s3")
    monkeypatch.setattr(source_tars, "_STORED_AT_ONCE", at_once)
    assert list(source.read(images_per_part=1)) == plain
    (tmp_path / "00003.tar").write_bytes(b"")
    (tmp_path / "00004.tar").write_bytes(b"<html>" * 99)
    with pytest.raises(InputError, match=r"00003\.tar: cut off at byte 0"):
        list(source.read(images_per_part=1))


def test_a_tar_is_a_part_and_a_picture_in_it_is_read_by_its_bytes_alone(tmp_path: Path) -> None:
    images = toy_images()
    source = WRAPPINGS["img2dataset"](tmp_path, images)
    plan, rows, _ = planned(config_of(tmp_path, source))
    assert [plan.part_size(part) for part in range(plan.parts)] == [5, 3]
    assert [row.image_id for row in rows] == [image.id for image in images]
    content = (tmp_path / "00000.tar").read_bytes()
    place = parse_location(str(rows[0].path))
    assert isinstance(place, Slice)
    (tmp_path / "00000.tar").write_bytes(bytes(place.offset) + content[place.offset :][: place.size_bytes])
    assert read_bytes(rows[0].path) == images[0].picture


def test_row_groups_are_not_torn_between_parts_and_a_huge_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = WRAPPINGS["hf"](tmp_path, toy_images())  # row groups of two
    plan, rows, _ = planned(config_of(tmp_path, source))
    assert [plan.part_size(part) for part in range(plan.parts)] == [2, 2, 2, 2]
    groups = [place.group for row in rows if isinstance(place := parse_location(str(row.path)), Cell)]
    assert groups == [0, 0, 1, 1, 2, 2, 3, 3]
    monkeypatch.setattr("maskmine.mining.sources.hugging_face.MAX_GROUP_BYTES", 100)
    with pytest.raises(InputError, match=r"row group 0 has .* write the file again with row groups of at most 100"):
        planned(config_of(tmp_path, source, out=tmp_path / "other"))


@pytest.mark.parametrize("name", WRAPPINGS)
def test_a_limit_takes_the_same_random_sample_of_any_source_and_cuts_it_evenly(tmp_path: Path, name: str) -> None:
    source = WRAPPINGS[name](tmp_path / "in", toy_images())
    plan, rows, _ = planned(config_of(tmp_path, source, shards={"images_per_part": 4}, out=tmp_path / "out"), limit=6)
    by_hash = sorted((hashlib.sha256(image.id.encode()).digest(), image.id) for image in toy_images())
    assert {row.image_id for row in rows} == {image_id for _, image_id in by_hash[:6]}
    assert [plan.part_size(part) for part in range(plan.parts)] == [3, 3]
    places = [parse_location(str(row.path)) for row in rows]
    offsets = [(place.file, place.offset) for place in places if isinstance(place, Slice)]
    assert offsets == sorted(offsets)  # a worker reads a tar from its beginning to its end
    # parts behind the given ones are in the order of the hashes, by which regions are found again
    if name in ("img2dataset", "hf", "run"):
        assert plan.given == (3, 3)
    else:
        assert [row.image_id for row in rows] == [image_id for _, image_id in by_hash[:6]]


def test_an_image_has_the_captions_of_all_sources_in_their_order_each_up_to_its_number(tmp_path: Path) -> None:
    images = [Captioned(str(n), faults.SQUARE, ("first", "second", "third"), "png") for n in range(4)]
    coco = {**WRAPPINGS["coco"](tmp_path / "coco", images), "per_image": 2}
    lines = [{"id": n, "caption": [f"more {n}", "and more"], "by": "me", "at": 1.5} for n in (1, 3, 5)]
    (tmp_path / "more.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    more = {"kind": "jsonl", "name": "mine", "files": str(tmp_path / "more.jsonl"), "id_col": "id"}
    more |= {"per_image": "all", "save_additional_columns": ["by", "at"]}
    _, rows, captions = planned(config_of(tmp_path, [coco, more]))
    found = {row.image_id: row for row in captions}
    assert found["0"] == CaptionsRow("0", ("first", "second"), ("coco", "coco"), ("{}", "{}"))
    assert found["3"].captions == ("first", "second", "more 3", "and more")
    assert found["3"].sources == ("coco", "coco", "mine", "mine")
    assert found["3"].additional == ("{}", "{}", '{"at":1.5,"by":"me"}', '{"at":1.5,"by":"me"}')
    assert {row.image_id for row in rows if row.path is None} == {"5"}  # nobody says where it is: a missing file


def test_an_earlier_run_gives_its_images_in_its_parts_to_new_captions(tmp_path: Path) -> None:
    images = toy_images()
    old, old_rows, old_captions = planned(config_of(tmp_path, WRAPPINGS["coco"](tmp_path / "a", images)))
    (tmp_path / "new.csv").write_text("id,caption\n" + "".join(f"{image.id},new {image.id}\n" for image in images))
    run = {"kind": "run", "files": str(tmp_path / "run"), "captions": False}
    new = {"kind": "csv", "files": str(tmp_path / "new.csv"), "id_col": "id"}
    plan, rows, captions = planned(config_of(tmp_path, [run, new], out=tmp_path / "again"), "shards.images_per_part=99")
    assert rows == old_rows
    assert [plan.part_size(p) for p in range(plan.parts)] == [old.part_size(p) for p in range(old.parts)]
    assert [row.captions for row in captions] == [(f"new {row.image_id}",) for row in old_rows]
    _, _, both = planned(config_of(tmp_path, {**run, "captions": True}, out=tmp_path / "both"))
    assert [row.captions for row in both] == [row.captions for row in old_captions]


def test_captions_alone_are_refused_when_no_source_says_where_the_pictures_are(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,caption\n1,a\n")
    with pytest.raises(InputError, match="says nothing of where the pictures are"):
        planned(config_of(tmp_path, {"kind": "csv", "files": str(tmp_path / "a.csv"), "id_col": "id"}))


def test_a_source_that_was_written_anew_is_noticed(tmp_path: Path) -> None:
    images = toy_images()
    config = config_of(tmp_path, {**WRAPPINGS["folder"](tmp_path / "a", images), "per_image": "all"})
    plan, _, _ = planned(config)
    assert planned(config)[0] == plan
    (tmp_path / "a" / "11.txt").write_text("Something else.\n")
    changed, _, captions = planned(config)
    assert (changed.images_sha256, changed.parts) == (plan.images_sha256, plan.parts)
    assert {row.image_id: row.captions for row in captions}["11"] == ("Something else.",)
    (tmp_path / "a" / "99.png").write_bytes(faults.SQUARE)
    with pytest.raises(OtherPlanError, match="has other images"):
        planned(config)


def test_a_moved_folder_of_tars_has_the_same_plan(tmp_path: Path) -> None:
    source = WRAPPINGS["img2dataset"](tmp_path / "here", toy_images())
    here, _, _ = planned(config_of(tmp_path, source))
    (tmp_path / "here").rename(tmp_path / "there")
    there, rows, _ = planned(config_of(tmp_path, {**source, "files": str(tmp_path / "there")}))
    assert there.images_sha256 == here.images_sha256
    assert all(not isinstance(read_bytes(row.path), Rejection) for row in rows)


def test_a_run_of_the_first_format_is_read_with_defaults(mined: Mined) -> None:
    table = pq.read_table(mined.run.cell_path("captions", 0)).drop_columns(["sources", "additional"])
    rows = from_table(table.replace_schema_metadata(None), CaptionsRow)
    assert {(row.sources, row.additional) for row in rows} == {((), ())}
    index = pq.read_table(mined.run.cell_path("shards", 0)).drop_columns(
        ["source", "lift", "evidence", "confidence", "crc32"]
    )
    older = from_table(index.replace_schema_metadata(None), SampleRow)
    assert older
    assert {(row.source, row.lift, row.evidence, row.confidence, row.crc32) for row in older} == {(None,) * 5}
    with pytest.raises(ValueError, match="does not hold"):
        from_table(table.drop_columns(["captions"]), CaptionsRow)


def test_the_sources_that_the_page_shows_are_settings_that_load(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "sources.md").read_text()
    shown = [yaml.safe_load(block) for block in re.findall(r"^```yaml\n(.*?)^```", page, re.DOTALL | re.MULTILINE)]
    kinds = set()
    for tree in shown:
        if "captions" in tree:
            settings = load_mining(str(config_of(tmp_path, tree["captions"])))
            kinds |= {source.kind for source in settings.sources}
        else:
            assert Fetch.model_validate(tree["regions"]["decoding"]["fetch"]) == Fetch()
    assert kinds == {"coco", "img2dataset", "parquet", "jsonl", "tsv", "hf", "folder", "run"}
