"""COCO instances JSON: the pairs as annotations of the photographs, with nouns as categories."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from typing import IO, Any

import numpy as np

from maskmine.mining.exports.export_shards import ExportShard, Folder
from maskmine.mining.exports.images import decode_mask
from maskmine.mining.storage.stores import scheme_of
from maskmine.mining.storage.urls import URL_SCHEMES
from maskmine.schemas.mask import Mask
from maskmine.schemas.sample import StoredSample
from maskmine.schemas.settings import canonical_json

_COPIED_BYTES = 1 << 20  # of a read: large enough for a disk to be fast


def write_coco(folder: Folder, shard: ExportShard) -> None:
    """`SPLIT.json` in the form of COCO's instances. Image ids are those of the run where all of them are numbers.

    Otherwise images are numbered, and each says its own as `image_id`. Beyond COCO's keys, annotations have `score`
    (the proposal's), `similarity`, `margin`, `lift`, `evidence`, `confidence`, `caption` and `key`; of checked pairs
    also `presence` and `agreement`.
    """
    categories = {noun: number for number, noun in enumerate(shard.totals.nouns, start=1)}
    with folder.write(f"{shard.split}.json") as file, tempfile.TemporaryFile() as images:
        head = {"description": f"mask-noun pairs, {shard.split}"}
        named = [{"id": number, "name": noun, "supercategory": "noun"} for noun, number in categories.items()]
        file.write(f'{{"info":{canonical_json(head)},"licenses":[],"categories":{canonical_json(named)}'.encode())
        file.write(b',"annotations":[\n')
        for number, entry in enumerate(_entries(shard, images, categories), start=1):
            file.write((b",\n" if number > 1 else b"") + canonical_json({"id": number} | entry).encode())
            shard.tick(1)
        file.write(b'\n],"images":[\n')
        images.seek(0)
        while block := images.read(_COPIED_BYTES):
            file.write(block)
        file.write(b"\n]}\n")


def _entries(shard: ExportShard, images: IO[bytes], categories: dict[str, int]) -> Iterator[dict[str, Any]]:
    """The annotations; each image is written to `images` when its first one comes, for they lie side by side."""
    last, images_before = None, 0
    for sample in shard.samples():
        row, record = sample.row, sample.record
        if row.image_id != last:
            last, images_before = row.image_id, images_before + 1
            file_name = shard.run.file_name(row)
            image = {
                "id": int(row.image_id) if shard.totals.numbered else images_before,
                "file_name": file_name,
                **({"coco_url": file_name} if scheme_of(file_name) in URL_SCHEMES else {}),
                "height": record["height_px"],
                "width": record["width_px"],
            }
            own = {} if shard.totals.numbered else {"image_id": row.image_id}
            images.write((b",\n" if images_before > 1 else b"") + json.dumps(image | own).encode())
        x0, y0, x1, y1 = row.box_xyxy
        mask = _whole_mask(sample, record)
        yield {
            "image_id": int(row.image_id) if shard.totals.numbered else images_before,
            "category_id": categories[row.noun],
            "segmentation": {"size": [mask.height_px, mask.width_px], "counts": mask.counts.decode("ascii")},
            "area": mask.area_px,
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "iscrowd": 0,
            "score": row.score,
            "similarity": row.similarity,
            "margin": row.margin,
            "lift": row.lift,
            "evidence": row.evidence,
            "confidence": row.confidence,
            **({"presence": row.presence, "agreement": row.agreement} if shard.checked else {}),
            "caption": row.caption,
            "key": row.key,
        }


def _whole_mask(sample: StoredSample, record: dict[str, Any]) -> Mask:
    """The mask in the frame of the photograph."""
    x0, y0, x1, y1 = sample.row.crop_xyxy
    # column after column, as run lengths go
    mask_HW = np.zeros((record["height_px"], record["width_px"]), np.uint8, order="F")
    mask_HW[y0:y1, x0:x1] = decode_mask(sample)
    return Mask.from_array(mask_HW)
