"""The forms of an export, each in one place: what writes it, how its shards are cut, how its card says to open it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from maskmine.mining.exports import coco, hugging_face, hugging_face_images, lance_dataset, mds, odvg, ovseg, tars, yolo
from maskmine.mining.exports.annotation_tools import cvat, fiftyone, label_studio
from maskmine.mining.exports.export_shards import ExportShard, ExportSummary, Folder


@dataclass(frozen=True, slots=True)
class Format:
    """A form of export: `write` writes the files of a shard, `finish` those that describe the whole.

    `whole`: a split is one shard. `by`: a shard ends with any pair, or where those of an image end. `lossless`: images
    are always PNG. `photographs`: the run's own images are read. `check` is called first. `folder_of` names the folder
    of a shard whose files are called otherwise each time, which is emptied before it is written again. `revision` is
    raised when what the form writes changes; folders of older code then belong to another plan.

    The card: `data_files` are those of a split for the hub's viewer, `example` opens the folder as `pairs`, `more`
    follows it. In these SPLIT stands for a split's name, FIRST for that of the first one, and LAST for its last shard.
    """

    write: Callable[[Folder, ExportShard], None]
    finish: Callable[[Folder, ExportSummary], None] | None = None
    whole: bool = False
    by: Literal["pair", "image"] = "pair"
    lossless: bool = False
    photographs: bool = False
    check: Callable[[], object] = lambda: None
    folder_of: Callable[[str], str] | None = None
    revision: int = 0
    data_files: str | None = None
    example: str = ""
    more: str = ""


_TARS = "SPLIT/*.tar"
_OPEN_TARS = """import webdataset

pairs = webdataset.WebDataset("FIRST/{00000..LAST}.tar", shardshuffle=False).decode("pil")"""
_DECODE_MASKS = """
pairs = pairs.map_dict(**{"mask.png": lambda mask: mask.convert("L")})  # decoded as RGB, as all images are"""
_OPENCLIP = """```bash
python -m open_clip_train.main --dataset-type webdataset --train-data 'FIRST/{00000..LAST}.tar' --model ViT-B-32
```"""
_ENERGON = (
    "For [Megatron-Energon](https://github.com/NVIDIA/Megatron-Energon), "
    """`.nv-meta` has the fields and the splits. Its index
is made by its own program:

```bash
energon prepare --tar-index-only --num-workers 4 .
```"""
)
_COCO = """from pycocotools.coco import COCO

pairs = COCO("FIRST.json")"""
_OVSEG = """import pandas

pairs = pandas.read_csv("FIRST.csv", sep="\\t", keep_default_na=False)"""
_LVIS = """from lvis import LVIS

pairs = LVIS("FIRST.json")"""
_ODVG = """import json

captions = [json.loads(line)["grounding"] for line in open("FIRST.jsonl", encoding="utf-8")]
pairs = [(caption["caption"], region) for caption in captions for region in caption["regions"]]"""
_HF = """import datasets

pairs = datasets.load_dataset("parquet", data_files="data/FIRST-*.parquet", split="train")"""
_HF_IMAGES = """import datasets

images = datasets.load_dataset("parquet", data_files="data/FIRST-*.parquet", split="train")
pairs = [(noun, box) for image in images for noun, box in zip(image["nouns"], image["boxes"])]"""
_LANCE = """import lance

pairs = lance.dataset("FIRST.lance").to_table(columns=["text", "similarity", "image", "mask"]).to_pylist()"""
_MDS = """import streaming

pairs = streaming.StreamingDataset(local="FIRST", shuffle=False, batch_size=1)"""
_YOLO = """import glob

labels = sorted(glob.glob("labels/FIRST/*.txt"))
pairs = [line.split() for label in labels for line in open(label)]  # class, x, y, x, y, …"""
_ULTRALYTICS = """```bash
yolo segment train data=data.yaml model=yolo11n-seg.pt
```"""
_LABEL_STUDIO = """import json

pairs = [task["data"] for task in json.load(open("FIRST.json", encoding="utf-8"))]"""
_TO_LABEL_STUDIO = """A project takes `labels.xml` as its labelling interface and `FIRST.json` as its tasks. What it
exports as JSON goes back with `maskmine import-verdicts RUN FILE`."""
_CVAT = """import xml.etree.ElementTree

pairs = [mask.attrib for mask in xml.etree.ElementTree.parse("FIRST.xml").iter("mask")]"""
_TO_CVAT = """A task takes `labels.json` in its constructor (Raw), the photographs as its files, and `FIRST.xml` by
*Upload annotations*, `CVAT 1.1`. What it exports as `CVAT for images 1.1` or `COCO 1.0` goes back with
`maskmine import-verdicts RUN FILE`."""
_FIFTYONE = """from pycocotools.coco import COCO

pairs = COCO("FIRST/labels.json").anns"""
_TO_FIFTYONE = """FiftyOne opens it as a `COCODetectionDataset`, with `label_types="segmentations"`. What it exports in
that form goes back with `maskmine import-verdicts RUN labels.json`."""
_TABLE = """import duckdb

pairs = duckdb.sql(
    "SELECT noun, count(*) AS pairs, avg(similarity) FROM '*/*.parquet' GROUP BY noun ORDER BY pairs DESC, noun"
)"""

FORMATS = {
    "webdataset": Format(tars.write_webdataset, tars.write_sizes, data_files=_TARS, example=_OPEN_TARS + _DECODE_MASKS),
    "openclip": Format(tars.write_openclip, tars.write_sizes, data_files=_TARS, example=_OPEN_TARS, more=_OPENCLIP),
    "ovseg": Format(ovseg.write_ovseg, ovseg.write_tables, lossless=True, example=_OVSEG),
    "ovseg-shards": Format(tars.write_ovseg_tar, tars.write_sizes, lossless=True, data_files=_TARS, example=_OPEN_TARS),
    "alpha-clip": Format(tars.write_alpha_clip, tars.write_sizes, data_files=_TARS, example=_OPEN_TARS),
    "energon": Format(
        tars.write_webdataset,
        tars.write_energon_templates,
        data_files=_TARS,
        example=_OPEN_TARS + _DECODE_MASKS,
        more=_ENERGON,
    ),
    "coco": Format(coco.write_coco, whole=True, example=_COCO),
    "lvis": Format(coco.write_lvis, whole=True, example=_LVIS),
    "sa-co": Format(coco.write_sa_co, whole=True, example=f"{_COCO}  # an image with a noun is an entry of its images"),
    "odvg": Format(odvg.write_odvg, whole=True, example=_ODVG),
    "yolo-seg": Format(
        yolo.write_yolo, yolo.write_data_yaml, by="image", photographs=True, example=_YOLO, more=_ULTRALYTICS
    ),
    "hf": Format(hugging_face.write_hugging_face, data_files="data/SPLIT-*.parquet", example=_HF),
    "hf-images": Format(
        hugging_face_images.write_images,
        by="image",
        photographs=True,
        data_files="data/SPLIT-*.parquet",
        example=_HF_IMAGES,
    ),
    "lance": Format(
        lance_dataset.write_lance,
        whole=True,
        check=lance_dataset.require_lance,
        folder_of=lance_dataset.folder_of,
        example=_LANCE,
    ),
    "mds": Format(mds.write_mds, whole=True, check=mds.require_mds, example=_MDS),
    "parquet": Format(hugging_face.write_table, revision=1, data_files="SPLIT/*.parquet", example=_TABLE),
    "label-studio": Format(
        label_studio.write_label_studio,
        label_studio.write_labels,
        whole=True,
        example=_LABEL_STUDIO,
        more=_TO_LABEL_STUDIO,
    ),
    "cvat": Format(cvat.write_cvat, cvat.write_cvat_labels, whole=True, example=_CVAT, more=_TO_CVAT),
    "fiftyone": Format(fiftyone.write_fiftyone, whole=True, example=_FIFTYONE, more=_TO_FIFTYONE),
}
"""The forms by their names, in the order of `docs/exports.md`."""
