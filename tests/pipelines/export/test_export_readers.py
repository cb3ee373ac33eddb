"""Exports, each opened by the program that it is made for."""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import re
import sys
from functools import partial
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from maskmine.mining.exports.coco import write_coco
from maskmine.mining.exports.export_shards import ExportShard, Totals
from maskmine.mining.exports.filters import Selection
from maskmine.mining.exports.hugging_face import parquet_of
from maskmine.mining.exports.images import Pictures
from maskmine.mining.exports.tars import BESIDE_KEY_COLOUR, KEY_COLOUR, key_crop
from maskmine.mining.images.crops import grow_box
from maskmine.pipelines.dataset.finished_run import FinishedRun
from maskmine.pipelines.export import folder as export_folder
from maskmine.pipelines.export.folder import ExportFolder
from maskmine.pipelines.export.reader import RunReader
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.schemas.errors import InputError
from maskmine.schemas.sample import FORMAT_VERSION
from tests.support import toy
from tests.support.paths import ROOT
from tests.support.tiny.proposers import DETECTRON2, WITHOUT_DETECTRON2
from tests.support.toy_shards import export, halves, mask_of, members, samples, stored_picture, write_toy_shards

READERS_WARN = pytest.mark.filterwarnings("ignore")  # of much that is not ours


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


@READERS_WARN
def test_lvis_reads_the_masks_and_how_often_a_noun_is_there(mined: Path, tmp_path: Path) -> None:
    reader = pytest.importorskip("lvis", reason="lvis needs OpenGL's library (libgl1)", exc_type=ImportError)
    lvis = reader.LVIS(str(export(mined, tmp_path / "out", "lvis") / "train.json"))
    found = set()
    for annotation in lvis.load_anns():
        noun = lvis.cats[annotation["category_id"]]["name"]
        shape = next(shape for _, known, shape in toy.PAIRS if known == noun)
        assert (lvis.ann_to_mask(annotation) == toy.shape_mask(shape)).all()
        found.add((str(annotation["image_id"]), noun, shape))
    assert found == toy.PAIRS
    for image in lvis.imgs.values():
        there = [lvis.cats[number]["name"] for number in image["not_exhaustive_category_ids"]]
        assert there == sorted(noun for image_id, noun, _ in toy.PAIRS if image_id == str(image["id"]))
        assert image["neg_category_ids"] == []
    for category in lvis.cats.values():
        images = [image_id for image_id, noun, _ in toy.PAIRS if noun == category["name"]]
        assert (category["image_count"], category["instance_count"]) == (len(set(images)), len(images))
        assert category["frequency"] == "r"


def test_sa_co_has_an_entry_for_each_noun_of_an_image(
    mined: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    concepts = COCO(str(export(mined, tmp_path / "out", "sa-co") / "train.json"))
    capsys.readouterr()
    found = set()
    for entry in concepts.loadImgs(concepts.getImgIds()):
        (annotation,) = concepts.imgToAnns[entry["id"]]
        shape = next(shape for _, known, shape in toy.PAIRS if known == entry["text_input"])
        mask_HW = concepts.annToMask(annotation)
        assert (mask_HW == toy.shape_mask(shape)).all()
        (rows,), (columns,) = np.nonzero(mask_HW.any(1)), np.nonzero(mask_HW.any(0))
        height_px, width_px = mask_HW.shape
        box = (columns[0] / width_px, rows[0] / height_px, len(columns) / width_px, len(rows) / height_px)
        assert annotation["bbox"] == pytest.approx(box)
        assert annotation["area"] == pytest.approx(mask_HW.mean())
        found.add((str(entry["photograph_id"]), entry["text_input"], shape))
    assert found == toy.PAIRS
    assert [category["name"] for category in concepts.cats.values()] == ["object"]


def test_odvg_says_where_a_caption_names_a_box(mined: Path, tmp_path: Path) -> None:
    found = set()
    for line in (export(mined, tmp_path / "out", "odvg") / "train.jsonl").read_text().splitlines():
        image = json.loads(line)
        caption = image["grounding"]["caption"]
        assert caption == caption.strip()
        for region in image["grounding"]["regions"]:
            ((start, end),) = region["tokens_positive"]
            assert caption[start:end] == region["phrase"]
            assert region["phrase"].lower() == region["noun"]
            shape = next(shape for _, known, shape in toy.PAIRS if known == region["noun"])
            mask_HW = coco_mask.decode(region["segmentation"])
            assert (mask_HW == toy.shape_mask(shape)).all()
            (rows,), (columns,) = np.nonzero(mask_HW.any(1)), np.nonzero(mask_HW.any(0))
            assert region["bbox"] == [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
            found.add((str(int(Path(image["filename"]).stem)), region["noun"], shape))
    assert found == toy.PAIRS


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
    with RunReader(FinishedRun.open_published(folder)) as reader:
        tables = reader.tables(Selection())
        piece = ExportShard("train", 0, 1, tables, reader, Pictures(), totals, lambda _: None, FORMAT_VERSION)
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


def test_a_pair_less_changes_one_row_group_of_hugging_faces_parquet(tmp_path: Path) -> None:
    run = write_toy_shards(tmp_path / "run", scores=True, samples=500, per_shard=500)
    (run / "_SUCCESS").touch()
    (run / "plan.json").write_text("{}")

    def groups(name: str, **settings: Any) -> list[bytes]:
        """The bytes of the images of each row group."""
        (path,) = (export(run, tmp_path / name, "hf", **settings) / "data").iterdir()
        stored, content = pq.ParquetFile(path).metadata, path.read_bytes()
        chunks = [stored.row_group(number).column(0) for number in range(stored.num_row_groups)]
        scores = [stored.row_group(0).column(number) for number in range(stored.num_columns)]
        assert [chunk.path_in_schema for chunk in scores if not chunk.has_offset_index] == []
        assert {"text", "similarity"} < {chunk.path_in_schema for chunk in scores if chunk.has_column_index}
        starts = [chunk.data_page_offset for chunk in chunks]
        return [content[at : at + chunk.total_compressed_size] for at, chunk in zip(starts, chunks, strict=True)]

    whole, less = groups("whole"), groups("less", selection=Selection(min_similarity=0.01))
    assert len(whole) == len(less) >= 3
    assert [one == other for one, other in zip(whole, less, strict=True)] == [False] + [True] * (len(whole) - 1)


def test_a_row_less_leaves_most_compressed_pages_as_they_were(tmp_path: Path) -> None:
    texts = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(100_000)]
    schema = pa.schema([("text", pa.string())])
    written = []
    for first in (0, 1):
        piece: Any = SimpleNamespace(split="train", number=first, of=2)
        with parquet_of(ExportFolder(RunFolder(str(tmp_path))), piece, schema) as writer:
            writer.write_table(pa.table({"text": texts[first:]}))
        written.append((tmp_path / "data" / f"train-{first:05d}-of-00002.parquet").read_bytes())
    pieces = [written[0][start : start + 256] for start in range(0, len(written[0]) - 256, 4096)]
    assert sum(piece in written[1] for piece in pieces) > 0.7 * len(pieces)


@READERS_WARN
def test_lance_reads_the_pairs_and_another_export_has_the_same_rows(scored: Path, tmp_path: Path) -> None:
    lance = pytest.importorskip("lance", reason="Lance's library is an extra: `lance`")
    one, two = (
        lance.dataset(str(export(scored, tmp_path / name, "lance", selection=halves()) / "train.lance"))
        for name in ("one", "two")
    )
    assert one.to_table().equals(two.to_table())
    stored = {sample.row.key: sample for sample in samples(scored)}
    rows = one.to_table().to_pylist()
    assert 0 < len(rows) < len(stored)
    for row in rows:
        sample = stored[row["key"]]
        assert (row["image"], row["mask"], row["text"]) == (sample.image, sample.mask_png, sample.row.noun)
        assert (row["similarity"], row["x0"]) == (sample.row.similarity, sample.row.box_xyxy[0])


def test_lance_that_is_killed_leaves_no_file_that_its_manifest_does_not_know(
    scored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lance = pytest.importorskip("lance", reason="Lance's library is an extra: `lance`")
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(export_folder.RunFolder, "write_json", _interrupted_at_an_account)
        with pytest.raises(KeyboardInterrupt):
            export(scored, out, "lance")
    data = {path.name for path in (out / "train.lance" / "data").iterdir()}
    assert data
    export(scored, out, "lance")
    again = {path.name for path in (out / "train.lance" / "data").iterdir()}
    assert len(again) == len(data)
    assert not again & data
    assert lance.dataset(str(out / "train.lance")).count_rows() == 24


def _interrupted_at_an_account(folder: RunFolder, *names: str, value: Any) -> None:
    if len(names) > 1:
        raise KeyboardInterrupt
    with folder.write(*names) as file:
        file.write(json.dumps(value).encode())


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
    page = (ROOT / "docs" / "exports.md").read_text()
    queries = re.findall(r"```sql\n(.*?)```", page, re.DOTALL)
    assert queries
    for query in queries:
        assert duckdb.sql(query.replace("pairs/", f"{out}/")).fetchall()
    counted = duckdb.sql(f"SELECT split, count(*) FROM '{out}/*/*.parquet' GROUP BY split").fetchall()
    plan = json.loads((out / "export.json").read_text())
    assert dict(counted) == {name: split["samples"] for name, split in plan["splits"].items()}
