"""Tasks for Label Studio: a pair each, with its mask as a brush to correct and a verdict to choose.

The forms are those of https://labelstud.io/guide/predictions and https://labelstud.io/tags/brushlabels; the brush is
packed as by label-studio-sdk, see `mining/images/mask_codes.py`.
"""

from __future__ import annotations

from typing import Any

from maskmine.mining.exports.annotation_tools.photographs import Photograph, photographs
from maskmine.mining.exports.coco import whole_mask
from maskmine.mining.exports.export_shards import ExportShard, ExportSummary, Folder
from maskmine.mining.images.mask_codes import encode_brush
from maskmine.schemas.annotation_tools import BETTER_NOUN, BRUSH, PAIR, VERDICT, pair_line
from maskmine.schemas.sample import StoredSample
from maskmine.schemas.settings import canonical_json

LABELS = f"""<View>
  <Header value="$noun"/>
  <Text name="said" value="$caption"/>
  <Image name="image" value="$image" zoom="true" zoomControl="true"/>
  <BrushLabels name="{BRUSH}" toName="image">
    <Label value="mask" background="#d60093"/>
  </BrushLabels>
  <Choices name="{VERDICT}" toName="image" choice="single-radio" required="true" showInline="true">
    <Choice value="right" hotkey="1"/>
    <Choice value="wrong noun" hotkey="2"/>
    <Choice value="bad mask" hotkey="3"/>
    <Choice value="cannot say" hotkey="4"/>
  </Choices>
  <TextArea name="{BETTER_NOUN}" toName="image" rows="1" maxSubmissions="1" placeholder="a better noun"/>
</View>
"""
"""The labelling interface of the project."""


def write_label_studio(folder: Folder, shard: ExportShard) -> None:
    """`SPLIT.json`: a task a pair. Its data has `image`, `noun`, `caption`, `key`, and `pair`, by which answers are
    known; its prediction is the mask."""
    with folder.write(f"{shard.split}.json") as file:
        file.write(b"[\n")
        between = b""
        for photograph in photographs(folder, shard, below=("images",)):
            for sample in photograph.samples:
                task = _task(sample, photograph, prefix=shard.pictures.prefix)
                file.write(between + canonical_json(task).encode())
                between = b",\n"
        file.write(b"\n]\n")


def write_labels(folder: Folder, summary: ExportSummary) -> None:
    """`labels.xml`: what the project's labelling interface is to be."""
    with folder.write("labels.xml") as file:
        file.write(LABELS.encode())


def _task(sample: StoredSample, photograph: Photograph, *, prefix: str) -> dict[str, Any]:
    row, mask = sample.row, whole_mask(sample)
    region = {
        "id": "mask",
        "type": "brushlabels",
        "from_name": BRUSH,
        "to_name": "image",
        "original_width": photograph.width_px,
        "original_height": photograph.height_px,
        "image_rotation": 0,
        "value": {"format": "rle", "rle": encode_brush(mask.to_array()), "brushlabels": ["mask"]},
    }
    data = {"image": photograph.address(prefix), "noun": row.noun, "caption": row.caption, "key": row.key}
    pair = pair_line((row.image_id, row.noun, mask.digest))
    return {"data": {**data, PAIR: pair}, "predictions": [{"model_version": "maskmine", "result": [region]}]}
