"""Exports, each opened by the program that it is made for; what goes into them, and what happens when it cannot."""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import os
import re
import shutil
import sys
import tarfile
from collections.abc import Iterator
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import duckdb
import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from mining.crops import grow_box
from mining.exports import pieces
from mining.exports.coco import write_coco
from mining.exports.pictures import Cutout, Pictures, shrink
from mining.exports.pieces import Piece, Totals
from mining.exports.selection import Selection, Split, select_rows, split_of
from mining.exports.stored import StoredSample, parse_sample
from mining.exports.tars import BESIDE_KEY_COLOUR, KEY_COLOUR, key_crop
from mining.shards import encode_mask
from pipelines.cli import run_app
from pipelines.export import FORMATS, Export, export_run
from pipelines.export_folder import ExportFolder
from pipelines.export_reader import RunReader, read_finished
from pipelines.run_folder import RunFolder, read_folder
from schemas.errors import IncompleteError, InputError, OtherPlanError
from schemas.rows import SampleRow
from schemas.sample import write_members
from schemas.tables import from_table
from scripts.demo_world import draw_world
from tests import toy, toy_shards
from tests.test_mine import run_toy
from tests.tiny_proposers import DETECTRON2, WITHOUT_DETECTRON2

COCO_MINI = Path(__file__).resolve().parents[2] / "shared" / "data" / "coco-mini"
WITHOUT_MDS = [name for name in FORMATS if name != "mds"]  # its writer is installed by hand, see docs/exports.md
READERS_WARN = pytest.mark.filterwarnings("ignore")  # of much that is not ours


@pytest.fixture(scope="module")
def mined(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the toy world, whose masks are known by hand; tests leave it as it is."""
    folder = toy.write_toy_world(tmp_path_factory.mktemp("mined"))
    run_toy(toy.write_config(folder))
    return folder / "run"


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Finished shards of 24 images with a pair each: that of image n has similarity n / 100 and noun n % 4."""
    folder = toy_shards.write_toy_shards(tmp_path_factory.mktemp("scored") / "run", scores=True)
    (folder / "plan.json").write_text("{}")
    (folder / "_SUCCESS").touch()
    return folder


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Small runs of the demo world and, where it is at hand, of real photographs."""
    folder = tmp_path_factory.mktemp("worlds")
    draw_world(folder / "demo", scenes=4, seed=3)
    demo = {"annotations": folder / "demo/captions.json", "images": folder / "demo/images"}
    coco = {"annotations": COCO_MINI / "annotations/captions_train2017.json", "images": COCO_MINI / "train2017"}
    made = {"demo": mine(folder / "of-demo", demo, folder / "demo/instances.json")}
    if COCO_MINI.exists():
        instances = COCO_MINI / "annotations/instances_train2017.json"
        made["coco-mini"] = mine(folder / "of-coco", coco, instances, limit=6)
    return made


def mine(folder: Path, captions: dict[str, Path], instances: Path, *, limit: int | None = None) -> Path:
    """Mine a world with its own masks, by label."""
    folder.mkdir()
    tree = {
        "captions": {"kind": "coco"} | {name: str(path) for name, path in captions.items()},
        "regions": {"proposals": {"kind": "ground_truth", "annotations": str(instances)}, "clip": None},
        "pairs": {"rule": "labels", "synonyms": "coco"},
        "shards": {"images_per_part": 4},
        "max_rejected": 1.0,
        "out": str(folder / "run"),
    }
    (folder / "mining.yaml").write_text(json.dumps(tree))
    run_toy(folder / "mining.yaml", limit=limit)
    return folder / "run"


def export(run: Path, out: Path, to: str, **settings: Any) -> Path:
    """Export a run; `settings` are those of `Export`."""
    export_run(read_folder(str(run)), Export(format=to, **settings), out=str(out))
    return out


def samples(run: Path) -> Iterator[StoredSample]:
    """The samples of a run, as they are stored."""
    folder = RunFolder(str(run))
    with RunReader(folder, read_finished(folder)) as reader:
        for table in reader.tables(Selection()):
            for row in from_table(table.drop_columns(["split"]), SampleRow):
                yield reader.read(row)


def members(*tars: Path) -> dict[str, bytes]:
    """The members of tars by their names."""
    found = {}
    for path in tars:
        with tarfile.open(path) as tar:
            found |= {info.name: file.read() for info in tar if (file := tar.extractfile(info))}
    return found


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def mask_of(sample: StoredSample) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(BytesIO(sample.mask_png))) > 0


# All of them.


@pytest.mark.parametrize("world", ["demo", "coco-mini"])
@pytest.mark.parametrize("to", WITHOUT_MDS)
def test_every_world_goes_through_every_export_and_the_checksums_hold(
    worlds: dict[str, Path], world: str, to: str, tmp_path: Path
) -> None:
    if world not in worlds:
        pytest.skip(f"{COCO_MINI} is not here")
    out = export(worlds[world], tmp_path / "out", to, selection=halves(), samples_per_piece=3)
    sums = dict(reversed(line.split("  ")) for line in (out / "SHA256SUMS").read_text().splitlines())
    found = {name: hashlib.sha256(content).hexdigest() for name, content in contents(out).items()}
    assert sums == {name: digest for name, digest in found.items() if name not in ("SHA256SUMS", "_SUCCESS")}
    plan = json.loads((out / "export.json").read_text())
    assert sum(split["samples"] for split in plan["splits"].values()) == len(list(samples(worlds[world]))) > 5


@pytest.mark.parametrize("to", WITHOUT_MDS)
def test_the_example_of_an_exports_card_runs_as_it_is_printed(
    mined: Path, to: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import warnings

    out = export(mined, tmp_path / "out", to)
    monkeypatch.chdir(out)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    (example,) = re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL)
    scope: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(example, scope)
        pairs = scope["pairs"]
        counted = sum(row[1] for row in pairs.fetchall()) if to == "parquet" else None
        counted = len(pairs.getAnnIds()) if to == "coco" else counted
        counted = len(pairs) if to in ("ovseg", "hf") else counted
        assert (len(list(pairs)) if counted is None else counted) == len(toy.PAIRS)


def halves() -> Selection:
    return Selection(splits=(Split(name="train", share=0.5), Split(name="val", share=0.5)))


@pytest.mark.parametrize("to", ["openclip", "ovseg", "hf", "webdataset"])
def test_the_same_run_gives_the_same_bytes_and_a_second_call_does_nothing(
    scored: Path, tmp_path: Path, to: str
) -> None:
    settings: dict[str, Any] = {"selection": halves(), "samples_per_piece": 5}
    one, two = (
        export(scored, tmp_path / str(n), to, pictures=Pictures(threads=n, max_side_px=12), **settings) for n in (1, 3)
    )
    assert contents(one) == contents(two)
    asked = Export(format=to, pictures=Pictures(max_side_px=12), **settings)
    assert export_run(read_folder(str(scored)), asked, out=str(one)).size_bytes is None


def test_an_interrupted_export_goes_on_with_what_is_missing(scored: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"samples_per_piece": 4}
    whole = export(scored, tmp_path / "whole", "ovseg-shards", **settings)
    begun, ticks = tmp_path / "begun", 0

    def stop_at_ten(more: int) -> None:
        nonlocal ticks
        ticks += more
        if ticks >= 10:
            raise KeyboardInterrupt

    stopped = Export(format="ovseg-shards", **settings)
    with pytest.raises(KeyboardInterrupt):
        export_run(read_folder(str(scored)), stopped, out=str(begun), begin=lambda _: stop_at_ten)
    first = begun / "train" / "00000.tar"
    made_at = first.stat().st_mtime_ns
    assert not (begun / "_SUCCESS").exists()
    assert not (begun / "train" / "00002.tar").exists()
    export(scored, begun, "ovseg-shards", **settings)
    assert contents(begun) == contents(whole)
    assert first.stat().st_mtime_ns == made_at


def test_run_and_export_may_both_lie_on_an_object_store(scored: Path, tmp_path: Path) -> None:
    store = fsspec.filesystem("memory")
    store.put(str(scored), "/mined/run", recursive=True)
    asked = Export(format="openclip", selection=halves(), samples_per_piece=5)
    here = export_run(read_folder(str(scored)), asked, out=str(tmp_path / "here"))
    assert export_run(read_folder("memory://mined/run"), asked, out="memory://exports/there") == here
    found = {path.removeprefix("/exports/there/"): store.cat(path) for path in store.find("/exports/there")}
    assert found == contents(tmp_path / "here")


# webdataset, openclip


def test_webdataset_is_the_runs_samples_as_they_lie_there(scored: Path, tmp_path: Path) -> None:
    out = export(scored, tmp_path / "out", "webdataset", samples_per_piece=7)
    stored = members(*sorted((scored / "shards").glob("*.tar")))
    assert members(*sorted((out / "train").glob("*.tar"))) == stored
    assert json.loads((out / "train" / "sizes.json").read_text()) == {
        "00000.tar": 7,
        "00001.tar": 7,
        "00002.tar": 7,
        "00003.tar": 3,
    }


def test_samples_that_do_not_lie_side_by_side_are_copied_without_what_is_between_them(
    scored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = {s.row.key: s.image for s in samples(scored) if s.row.noun != "leaf" and int(s.row.image_id) >= 3}
    selection = Selection(without_nouns=("leaf",), min_similarity=0.03)
    for at_once_bytes in (1, 1 << 20):
        monkeypatch.setattr(pieces, "_BLOCK_BYTES", at_once_bytes)
        out = export(scored, tmp_path / str(at_once_bytes), "webdataset", selection=selection, samples_per_piece=8)
        found = members(*sorted((out / "train").glob("*.tar")))
        assert {key: found.get(f"{key}.png") for key in kept} == kept
        assert len(found) == 4 * len(kept)


def test_a_shard_that_became_shorter_is_no_export(scored: Path, tmp_path: Path) -> None:
    folder = RunFolder(str(shutil.copytree(scored, tmp_path / "run")))
    with RunReader(folder, read_finished(folder)) as reader:
        row = from_table(next(reader.tables(Selection())).drop_columns(["split"]), SampleRow)[1]
        reader.read(row)
        os.truncate(folder.path("shards", row.shard), row.offset + 100)
        with pytest.raises(IncompleteError, match=rf"shards/{row.shard}: its SHA-256 is not the one"):
            reader.read_bytes(row.shard, row.offset, row.size_bytes)


def test_smaller_pictures_keep_their_masks_and_say_where_the_box_is(mined: Path, tmp_path: Path) -> None:
    pictures = Pictures(image_format="webp", max_side_px=16)
    found = members(*(export(mined, tmp_path / "out", "webdataset", pictures=pictures) / "train").glob("*.tar"))
    for sample in samples(mined):
        key = sample.row.key
        mask_HW = np.asarray(Image.open(BytesIO(found[f"{key}.mask.png"]))) > 0
        x0, y0, x1, y1 = json.loads(found[f"{key}.json"])["box_crop_xyxy"]
        assert max(mask_HW.shape) == 16
        assert Image.open(BytesIO(found[f"{key}.webp"])).size == mask_HW.shape[::-1]
        assert mask_HW[y0:y1, x0:x1].sum() == mask_HW.sum() > 0


def test_a_mask_that_is_made_smaller_covers_the_same_part_and_does_not_vanish_when_it_is_thin() -> None:
    left_HW, thin_HW = np.zeros((2, 60, 90), bool)
    left_HW[:, :45], thin_HW[40] = True, True
    image = Image.new("RGB", (90, 60))
    left, thin = (
        shrink(Cutout(image, Image.fromarray(mask_HW), (0, 0, 90, 60)), max_side_px=30).mask_array()
        for mask_HW in (left_HW, thin_HW)
    )
    assert left.shape == (20, 30)
    assert left[:, :15].all()
    assert not left[:, 15:].any()
    assert thin.sum() == 30


def test_openclip_gets_the_tight_box_with_clips_mean_around_the_mask(mined: Path, tmp_path: Path) -> None:
    out = export(mined, tmp_path / "out", "openclip", pictures=Pictures(image_format="png"))
    found = members(*(out / "train").glob("*.tar"))
    for sample in samples(mined):
        rgb_HW3 = np.asarray(Image.open(BytesIO(found[f"{sample.row.key}.png"])))
        x0, y0, x1, y1 = sample.record["box_crop_xyxy"]
        mask_HW = mask_of(sample)[y0:y1, x0:x1]
        assert rgb_HW3.shape[:2] == mask_HW.shape
        assert (rgb_HW3[~mask_HW] == (123, 117, 104)).all()
        assert not (rgb_HW3[mask_HW] == (123, 117, 104)).all(axis=1).any()
        record = json.loads(found[f"{sample.row.key}.json"])
        assert record["crop_xyxy"] == record["box_xyxy"] == list(sample.row.box_xyxy)


def test_openclip_paints_what_is_asked_for_around_a_box_that_grew(scored: Path, tmp_path: Path) -> None:
    made = {}
    for fill in ("zero", "none"):
        pictures = Pictures(image_format="png", fill=fill, expand_ratio=1.2)
        out = export(scored, tmp_path / fill, "openclip", pictures=pictures)
        made[fill] = members(*(out / "train").glob("*.tar"))
    for sample in samples(scored):
        crop_HW3, mask_HW = np.asarray(Image.open(BytesIO(sample.image))), mask_of(sample)
        height_px, width_px = mask_HW.shape
        tight = sample.record["box_crop_xyxy"]
        x0, y0, x1, y1 = grow_box(tight, ratio=1.2, height_px=height_px, width_px=width_px)
        assert (x1 - x0) * (y1 - y0) > (tight[2] - tight[0]) * (tight[3] - tight[1])
        zero_HW3, none_HW3 = (
            np.asarray(Image.open(BytesIO(made[fill][f"{sample.row.key}.png"]))) for fill in ("zero", "none")
        )
        assert (none_HW3 == crop_HW3[y0:y1, x0:x1]).all()
        assert (zero_HW3 == none_HW3 * mask_HW[y0:y1, x0:x1, None]).all()


def test_a_lower_quality_gives_smaller_pictures() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    for image_format in ("jpg", "webp"):
        small, large = (len(Pictures(quality=quality).encode(image, image_format)) for quality in (20, 95))
        assert small < 0.8 * large


TINY_CLIP = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 32, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@READERS_WARN
@pytest.mark.parametrize("to", ["openclip", "ovseg"])
def test_open_clips_own_program_trains_for_two_steps(
    scored: Path, to: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import open_clip
    from open_clip_train import data, main

    # open_clip 3.3 asks for webdataset up to 0.2.86; a newer one ends each tar with a mark that its loader cannot read.
    monkeypatch.setattr(data, "tar_file_expander", partial(data.tar_file_expander, eof_value=None))
    # It changes the logging of the whole process.
    monkeypatch.setattr(main, "setup_logging", lambda *_: None)
    out = export(scored, tmp_path / "out", to, samples_per_piece=8)
    monkeypatch.chdir(out)
    (tmp_path / "tiny-clip.json").write_text(json.dumps(TINY_CLIP))
    open_clip.add_model_config(tmp_path / "tiny-clip.json")
    found = {
        "openclip": ["--dataset-type", "webdataset", "--train-data", "train/{00000..00002}.tar", "--workers", "1"],
        "ovseg": ["--dataset-type", "csv", "--train-data", "train.csv", "--workers", "0"],
    }
    asked = ["--model", "tiny-clip", "--batch-size", "12", "--epochs", "1", "--device", "cpu"]
    asked += ["--logs", str(tmp_path / "logs")]
    monkeypatch.setattr(sys, "argv", ["main"])
    with caplog.at_level(logging.INFO):
        main.main(
            [*found[to], *asked, "--name", to, "--device", "cpu", "--save-most-recent", "--log-every-n-steps", "1"]
        )
    assert caplog.text.count("Train Epoch: 0") == 2
    assert (tmp_path / "logs" / to / "checkpoints" / "epoch_latest.pt").exists()


# ovseg


def stored_picture(rgb_HW3: np.ndarray[Any, Any], mask_HW: np.ndarray[Any, Any]) -> StoredSample:
    """A sample whose crop is a picture, the tight box of whose mask is all of it."""
    height_px, width_px = mask_HW.shape
    buffer = BytesIO()
    Image.fromarray(rgb_HW3).save(buffer, "PNG")
    box = (0, 0, width_px, height_px)
    row = SampleRow("k-000", "k", "n", "n", "n", 0, 1, box, box, 1, None, None, 0, 1.0, None, "00000.tar", 0, 0)
    record = json.dumps({"box_crop_xyxy": list(box)}).encode()
    return StoredSample(row, "png", buffer.getvalue(), encode_mask(mask_HW.astype(np.uint8)), record, b"")


@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 12))
def test_ovsegs_loader_finds_just_the_mask_by_the_key_colour(seed: int, height_px: int, width_px: int) -> None:
    rng = np.random.default_rng(seed)
    mask_HW = rng.random((height_px, width_px)) < 0.5
    rgb_HW3 = rng.integers(0, 256, (height_px, width_px, 3), dtype=np.uint8)
    rgb_HW3[rng.random((height_px, width_px)) < 0.5] = KEY_COLOUR  # in the region and around it
    keyed_HW3 = np.asarray(Image.open(BytesIO(key_crop(stored_picture(rgb_HW3, mask_HW), Pictures()))))
    assert ((keyed_HW3 != KEY_COLOUR).any(axis=2) == mask_HW).all()
    assert (keyed_HW3[~mask_HW] == (124, 116, 103)).all()
    changed = mask_HW & (keyed_HW3 != rgb_HW3).any(axis=2)
    assert (changed == (mask_HW & (rgb_HW3 == KEY_COLOUR).all(axis=2))).all()
    assert (keyed_HW3[changed] == BESIDE_KEY_COLOUR).all()


def test_ovsegs_table_names_the_pictures_and_the_shards_hold_the_same(mined: Path, tmp_path: Path) -> None:
    table = export(mined, tmp_path / "table", "ovseg", samples_per_piece=3, csv_prefix="/data/ovseg")
    tars = members(*(export(mined, tmp_path / "tars", "ovseg-shards") / "train").glob("*.tar"))
    with (table / "train.csv").open(newline="") as file:
        lines = list(csv.DictReader(file, delimiter="\t"))
    assert [line["title"] for line in lines] == [sample.row.noun for sample in samples(mined)]
    for line in lines:
        path = table / Path(line["filepath"]).relative_to("/data/ovseg")
        assert path.read_bytes() == tars[path.name]
        assert tars[f"{path.stem}.txt"].decode() == line["title"]


# coco, hf, alpha-clip, energon, mds, parquet


def test_pycocotools_finds_the_masks_where_they_lie_in_the_photographs(
    mined: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    coco = COCO(str(export(mined, tmp_path / "out", "coco") / "train.json"))
    capsys.readouterr()
    found = set()
    for annotation in coco.loadAnns(coco.getAnnIds()):
        noun = coco.cats[annotation["category_id"]]["name"]
        shape = next(shape for _, known, shape in toy.PAIRS if known == noun)
        assert (coco.annToMask(annotation) == toy.shape_mask(shape)).all()
        assert coco.imgs[annotation["image_id"]]["file_name"] == f"{annotation['image_id']:012d}.png"
        found.add((str(annotation["image_id"]), noun, shape))
    assert found == toy.PAIRS
    assert [category["name"] for category in coco.cats.values()] == sorted({noun for _, noun, _ in toy.PAIRS})


@pytest.mark.skipif(not DETECTRON2, reason=WITHOUT_DETECTRON2)
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
def test_detectron2_reads_the_masks_as_a_set_of_its_own(mined: Path, tmp_path: Path) -> None:
    from detectron2.data import DatasetMapper, MetadataCatalog
    from detectron2.data.datasets import load_coco_json

    pictures = tmp_path / "pictures"
    records = load_coco_json(export(mined, tmp_path / "out", "coco") / "train.json", pictures, "maskmine_toy")
    nouns = MetadataCatalog.get("maskmine_toy").thing_classes
    pictures.mkdir()
    mapper = DatasetMapper(
        True, augmentations=[], image_format="RGB", use_instance_mask=True, instance_mask_format="bitmask"
    )
    found = set()
    for record in records:
        Image.new("RGB", (record["width"], record["height"])).save(record["file_name"])
        instances = mapper(record)["instances"]
        masks = instances.gt_masks.tensor.numpy()
        for noun, mask_HW in zip((nouns[number] for number in instances.gt_classes), masks, strict=True):
            shape = next(shape for _, known, shape in toy.PAIRS if known == noun)
            assert (mask_HW == toy.shape_mask(shape)).all()
            found.add((str(record["image_id"]), noun, shape))
    assert found == toy.PAIRS


def test_coco_numbers_the_images_where_an_id_is_no_number(mined: Path, tmp_path: Path) -> None:
    folder = RunFolder(str(mined))
    totals = Totals({"train": 7}, {"train": 4}, tuple(sorted({noun for _, noun, _ in toy.PAIRS})), numbered=False)
    with RunReader(folder, read_finished(folder)) as reader:
        tables = reader.tables(Selection())
        piece = Piece("train", 0, 1, tables, reader, Pictures(), totals, lambda _: None)
        write_coco(ExportFolder(RunFolder(str(tmp_path))), piece)
    images = json.loads((tmp_path / "train.json").read_text())["images"]
    assert [image["id"] for image in images] == [1, 2, 3, 4]
    assert {image["image_id"] for image in images} == {image_id for image_id, _, _ in toy.PAIRS}


@READERS_WARN
def test_hugging_face_opens_the_folder_and_shows_pictures(
    mined: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    out = export(mined, tmp_path / "out", "hf", selection=halves(), samples_per_piece=2)
    opened = datasets.load_dataset(str(out), cache_dir=str(tmp_path / "cache"))
    assert isinstance(opened["train"].features["image"], datasets.Image)
    assert isinstance(opened["train"].features["mask"], datasets.Image)
    pairs = {pair["key"]: pair for split in ("train", "val") for pair in opened[split]}
    stored = list(samples(mined))
    assert pairs.keys() == {sample.row.key for sample in stored}
    for sample in stored:
        pair = pairs[sample.row.key]
        assert (np.asarray(pair["mask"]) > 0).tolist() == mask_of(sample).tolist()
        assert pair["image"].size == pair["mask"].size
        assert (pair["text"], pair["x0"], pair["crop_y1"]) == (
            sample.row.noun,
            sample.row.box_xyxy[0],
            sample.row.crop_xyxy[3],
        )


def test_alpha_clip_finds_text_and_mask_of_a_reference_by_its_number(mined: Path, tmp_path: Path) -> None:
    found = members(*(export(mined, tmp_path / "out", "alpha-clip") / "train").glob("*.tar"))
    for sample in samples(mined):
        record = json.loads(found[f"{sample.row.key}.json"])
        start, end, _ = record["ref_exps"][0]
        assert record["caption"][start:end].lower() == sample.row.noun == found[f"{sample.row.key}.txt"].decode()
        assert (coco_mask.decode(record["seudo_masks"][0]) == mask_of(sample)).all()
        assert found[f"{sample.row.key}.jpg"] == sample.image


def test_energons_templates_name_fields_and_tars_that_are_there(mined: Path, tmp_path: Path) -> None:
    out = export(mined, tmp_path / "out", "energon", selection=halves(), samples_per_piece=2)
    parts = yaml.safe_load((out / ".nv-meta" / "split.yaml").read_text())["split_parts"]
    tars = [out / name for names in parts.values() for name in names]
    assert parts.keys() == {"train", "val"}
    assert set(tars) == set(out.rglob("*.tar"))
    fields = yaml.safe_load((out / ".nv-meta" / "dataset.yaml").read_text())["field_map"]
    for sample in samples(mined):
        assert {f"{sample.row.key}.{suffix}" for suffix in fields.values()} <= members(*tars).keys()


@READERS_WARN
def test_megatron_energon_indexes_the_tars_and_reads_each_pair_of_a_split(mined: Path, tmp_path: Path) -> None:
    from megatron.energon import WorkerConfig, get_loader, get_train_dataset
    from megatron.energon.cli.main import main

    out = export(mined, tmp_path / "out", "energon", selection=halves(), samples_per_piece=2)
    main(["prepare", "--tar-index-only", "--num-workers", "1", "--no-progress", str(out)], standalone_mode=False)
    alone = WorkerConfig(rank=0, world_size=1, num_workers=0)
    plain = {"worker_config": alone, "batch_size": None, "shuffle_buffer_size": None, "repeat": False}
    pairs = get_train_dataset(out, max_samples_per_sequence=None, **plain)
    found = {pair.__key__: (pair.caption, tuple(pair.image.shape)) for pair in get_loader(pairs)}
    train = members(*(out / "train").glob("*.tar"))
    assert found.keys() == {name.removesuffix(".txt") for name in train if name.endswith(".txt")}
    for sample in samples(mined):
        if sample.row.key in found:
            width_px, height_px = Image.open(BytesIO(sample.image)).size
            assert found[sample.row.key] == (sample.row.noun, (3, height_px, width_px))


@READERS_WARN
def test_mosaics_streaming_dataset_reads_what_its_writer_wrote(mined: Path, tmp_path: Path) -> None:
    streaming = pytest.importorskip("streaming", reason="MosaicML's writer is installed by hand: docs/exports.md")
    out = export(mined, tmp_path / "out", "mds")
    pairs = streaming.StreamingDataset(local=str(out / "train"), shuffle=False, batch_size=1)
    stored = list(samples(mined))
    assert [(p["text"], p["mask"], p["record"]) for p in pairs] == [(s.row.noun, s.mask_png, s.record) for s in stored]


def test_mds_without_its_writer_says_where_to_read_how_to_get_it(
    mined: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "streaming", None)
    with pytest.raises(InputError, match=r"--to mds: .* docs/exports\.md"):
        export(mined, tmp_path / "out", "mds")
    assert not (tmp_path / "out").exists()


def test_the_queries_of_the_page_run_on_the_analysts_table(mined: Path, tmp_path: Path) -> None:
    out = export(mined, tmp_path / "out", "parquet", selection=halves(), samples_per_piece=2)
    page = (Path(__file__).resolve().parents[1] / "docs" / "exports.md").read_text()
    queries = re.findall(r"```sql\n(.*?)```", page, re.DOTALL)
    assert queries
    for query in queries:
        assert duckdb.sql(query.replace("pairs/", f"{out}/")).fetchall()
    counted = duckdb.sql(f"SELECT split, count(*) FROM '{out}/*/*.parquet' GROUP BY split").fetchall()
    plan = json.loads((out / "export.json").read_text())
    assert dict(counted) == {name: split["samples"] for name, split in plan["splits"].items()}


# What goes in, and where.


def numbers(run: Path, **selection: Any) -> dict[str, list[int]]:
    """The images of each split, by their numbers in the scored run."""
    folder, chosen = RunFolder(str(run)), Selection(**selection)
    found: dict[str, list[int]] = {split.name: [] for split in chosen.splits}
    with RunReader(folder, read_finished(folder)) as reader:
        for table in reader.tables(chosen):
            for split, image_id in zip(table["split"].to_pylist(), table["image_id"].to_pylist(), strict=True):
                found[split].append(int(image_id))
    return found


def test_thresholds_keep_what_reaches_them(scored: Path) -> None:
    assert numbers(scored, min_similarity=0.2) == {"train": [20, 21, 22, 23]}
    assert numbers(scored, min_similarity=0.1, min_margin=0.88) == {"train": [10, 11, 12]}


def test_a_pair_without_a_score_reaches_no_threshold(mined: Path) -> None:
    assert numbers(mined, min_similarity=-1.0) == {"train": []}


def test_listed_nouns_are_kept_or_dropped_by_their_text_or_lemma(scored: Path, mined: Path) -> None:
    assert numbers(scored, nouns=("leaf", "sky"), without_nouns=("sky",)) == {"train": list(range(2, 24, 4))}
    assert len(numbers(mined, nouns=("disc",))["train"]) == len(numbers(mined, nouns=("disc", "discs"))["train"]) == 3


def test_held_out_nouns_are_only_in_later_splits_and_no_image_changes_its_split(scored: Path) -> None:
    splits = halves().splits
    plain, held = numbers(scored, splits=splits), numbers(scored, splits=splits, held_out=("leaf",))
    assert held["val"] == plain["val"]
    assert any(number % 4 == 2 for number in held["val"])
    assert held["train"] == [number for number in plain["train"] if number % 4 != 2]


@given(st.lists(st.text(max_size=8), max_size=20), st.integers(0, 9))
def test_the_split_of_an_image_depends_on_its_id_alone_and_grows_with_its_share(ids: list[str], seed: int) -> None:
    small, large = (
        Selection(splits=(Split(name="train", share=share), Split(name="val", share=1 - share)), seed=seed)
        for share in (0.3, 0.6)
    )
    for image_id in ids:
        assert split_of(image_id, small) == split_of(image_id, small)
        assert split_of(image_id, small) == "val" or split_of(image_id, large) == "train"


def test_splits_get_their_shares_of_many_images() -> None:
    found = [split_of(str(number), halves()) for number in range(2000)]
    assert abs(found.count("train") / 2000 - 0.5) < 0.05


def test_another_seed_deals_the_images_anew() -> None:
    ids = [str(number) for number in range(200)]
    one, two = (
        {image_id for image_id in ids if split_of(image_id, halves().model_copy(update={"seed": seed})) == "train"}
        for seed in (0, 1)
    )
    assert 60 < len(one ^ two) < 140


def test_all_pairs_of_an_image_are_in_one_split(worlds: dict[str, Path], tmp_path: Path) -> None:
    out = export(worlds["demo"], tmp_path / "out", "parquet", selection=halves())
    crossed = duckdb.sql(f"SELECT image_id FROM '{out}/*/*.parquet' GROUP BY ALL HAVING count(DISTINCT split) > 1")
    assert crossed.fetchall() == []


def test_a_caption_source_that_is_not_asked_for_is_left_out(mined: Path) -> None:
    folder = RunFolder(str(mined))
    with RunReader(folder, read_finished(folder)) as reader:
        table = next(reader.tables(Selection())).drop_columns(["split"])
    sources = ["mine", *(["theirs"] * (len(table) - 1))]
    named = table.set_column(table.column_names.index("source"), "source", [sources])
    assert len(select_rows(named, Selection(sources=("mine",)))) == 1


def test_captions_under_licences_that_are_not_asked_for_are_left_out(scored: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(scored, tmp_path / "run"))
    manifest = json.loads((run / "manifest.json").read_text())
    for shard in manifest["shards"]:
        path = run / "shards" / shard["name"].replace(".tar", ".parquet")
        table = pq.read_table(path)
        named = ["closed" if int(image_id) % 3 else "free" for image_id in table["image_id"].to_pylist()]
        place = table.column_names.index("source")
        pq.write_table(table.set_column(place, table.schema.field("source"), [named]), path)
        shard["index_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    licences = [("captions", "free", "MIT"), ("captions", "closed", "unknown"), ("images", "all", "MIT")]
    manifest["sources"] = [dict(zip(("role", "name", "licence"), source, strict=True)) for source in licences]
    (run / "manifest.json").write_text(json.dumps(manifest))
    kept = pq.read_table(export(run, tmp_path / "out", "parquet", licences=("MIT",)) / "train" / "00000.parquet")
    assert [int(image_id) for image_id in kept["image_id"].to_pylist()] == list(range(0, 24, 3))


# What cannot be done.


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--to", "tfrecord"], "--to tfrecord: unknown; choose one of webdataset"),
        (["--to", "ovseg", "--image-format", "jpg"], "png alone"),
        (["--to", "hf", "--image-format", "gif"], "--image-format: input should be 'jpg', 'png' or 'webp', not 'gif'"),
        (["--to", "hf", "--split", "train=0.5,val=0.4"], "--split: the shares of the splits add up to 0.9"),
        (["--to", "hf", "--split", "train"], "--split train: expected shares such as train=0.9,val=0.1"),
        (["--to", "hf", "--split", "train=0.5,../x=0.5"], "--split: string should match pattern"),
        (["--to", "hf", "--held-out", "sky"], "--held-out: held-out nouns need a second split"),
        (["--to", "hf", "--nouns", "@/nowhere"], "--nouns @/nowhere: cannot be read as a text file"),
        (["--to", "hf", "--nouns", ","], "--nouns ,: names no noun"),
        (["--to", "hf", "--min-similarity", "2"], "--min-similarity: input should be less than or equal to 1, not 2"),
        (["--to", "hf", "--nouns", "unicorn"], "the filters leave none of 24 pairs; widen them"),
        (["--to", "hf", "--licence-policy", "free"], "--licence-policy: input should be 'any' or 'commercial'"),
    ],
)
def test_a_wrong_option_is_one_line_and_exit_code_2(
    scored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    assert run_app(["export", str(scored), *options, "--out", str(tmp_path / "out")]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("maskmine: ")
    assert said in line
    assert not (tmp_path / "out").exists()


def test_the_command_line_exports_and_says_what_it_wrote(
    scored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "nouns.txt").write_text("Sky\n\n leaf \n")
    options = ["--nouns", f"@{tmp_path}/nouns.txt", "--split", "train=0.5,val=0.5", "--out", str(tmp_path / "out")]
    assert run_app(["export", str(scored), "--to", "parquet", *options]) == 0
    said = capsys.readouterr()
    plan = json.loads((tmp_path / "out" / "export.json").read_text())
    assert plan["settings"]["selection"]["nouns"] == ["leaf", "sky"]
    counts = ", ".join(f"{name} {split['samples']}" for name, split in plan["splits"].items())
    assert f"out: {counts} pairs, " in said.out
    assert "12/12" in said.err
    assert run_app(["export", str(scored), "--to", "parquet", *options]) == 0
    assert "is complete; nothing to do" in capsys.readouterr().out


def test_what_is_no_run_or_not_finished_is_said(scored: Path, tmp_path: Path) -> None:
    assert run_app(["export", str(tmp_path), "--to", "hf", "--out", str(tmp_path / "out")]) == 2
    begun = Path(shutil.copytree(scored, tmp_path / "run"))
    (begun / "_SUCCESS").unlink()
    with pytest.raises(IncompleteError, match="not finished"):
        export(begun, tmp_path / "out", "hf")
    (begun / "manifest.json").unlink()
    assert run_app(["export", str(begun), "--to", "hf", "--out", str(tmp_path / "out")]) == 4


@pytest.mark.parametrize("name", ["00001.tar", "00001.parquet"])
@pytest.mark.parametrize("fault", ["changed", "missing"])
def test_a_broken_shard_is_named_with_what_to_do(scored: Path, tmp_path: Path, name: str, fault: str) -> None:
    broken = Path(shutil.copytree(scored, tmp_path / "run")) / "shards" / name
    content = bytearray(broken.read_bytes())
    content[len(content) // 2] ^= 1
    broken.write_bytes(content) if fault == "changed" else broken.unlink()
    with pytest.raises(IncompleteError, match=rf"shards/{name}: .*run `maskmine mine` again"):
        export(tmp_path / "run", tmp_path / "out", "webdataset")
    assert not (tmp_path / "out" / "_SUCCESS").exists()


def test_a_sample_that_is_not_where_the_index_has_it_is_not_read_as_another() -> None:
    row = stored_picture(np.zeros((2, 2, 3), np.uint8), np.ones((2, 2), bool)).row
    tar = BytesIO()
    write_members(tar, [(f"other.{suffix}", b"content") for suffix in ("jpg", "mask.png", "txt", "json")])
    for span in (tar.getvalue(), tar.getvalue()[:700], b"\0" * 2048, b""):
        with pytest.raises(IncompleteError, match=r"a\.tar: sample k-000 is not where the index has it"):
            parse_sample(span, row, place="a.tar")


def test_a_folder_of_something_else_is_left_alone(scored: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match=r"not empty \(thesis.txt lies there\)"):
        export(scored, tmp_path / "out", "hf")
    with pytest.raises(InputError, match="a file; give a folder"):
        export(scored, tmp_path / "out" / "thesis.txt", "hf")
    assert contents(tmp_path / "out") == {"thesis.txt": b"mine"}


def test_a_folder_of_another_export_is_exit_code_5_with_what_differs(scored: Path, tmp_path: Path) -> None:
    out = export(scored, tmp_path / "out", "webdataset")
    with pytest.raises(OtherPlanError, match=r"selection\.min_margin: None there, 0\.5 here"):
        export(scored, out, "webdataset", selection=Selection(min_margin=0.5))
    assert run_app(["export", str(scored), "--to", "openclip", "--out", str(out)]) == 5
