"""ODVG: captions of photographs with the boxes that their phrases name, as Grounding DINO's trainers read them.

The form is that of https://github.com/open-mmlab/mmdetection/blob/main/configs/mm_grounding_dino/dataset_prepare.md.
"""

from __future__ import annotations

from itertools import groupby
from typing import Any

from maskmine.mining.exports.coco import whole_mask
from maskmine.mining.exports.export_shards import ExportShard, Folder
from maskmine.schemas.sample import StoredSample
from maskmine.schemas.settings import canonical_json


def write_odvg(folder: Folder, shard: ExportShard) -> None:
    """`SPLIT.jsonl`: a line for each caption of a photograph, `filename`, `height`, `width` and `grounding`.

    A region has `phrase`, as the caption writes it, `tokens_positive`, its characters in the caption, and `bbox`, x0,
    y0, x1, y1 in pixels; beyond the form `segmentation`, the mask in the photograph's frame as COCO's run lengths,
    `noun`, `similarity` and `key`. Captions have no space around them, which trainers would strip. A noun by which a
    reviewer replaced the caption's, and which it does not say, grounds nothing and is left out.
    """
    with folder.write(f"{shard.split}.jsonl") as file:
        for _, grouped in groupby(shard.samples(), key=lambda sample: sample.row.image_id):
            samples = list(grouped)
            by_caption: dict[str, list[StoredSample]] = {}
            for sample in samples:
                by_caption.setdefault(sample.row.caption, []).append(sample)
            for caption, of_caption in by_caption.items():
                record, row = of_caption[0].record, of_caption[0].row
                said = [sample for sample in of_caption if sample.row.start < sample.row.end]
                grounding = {"caption": caption.strip(), "regions": [_region(sample) for sample in said]}
                size = {"height": record["height_px"], "width": record["width_px"]}
                line = {"filename": shard.run.file_name(row), **size, "grounding": grounding}
                file.write(f"{canonical_json(line)}\n".encode())
            shard.tick(len(samples))


def _region(sample: StoredSample) -> dict[str, Any]:
    row, mask = sample.row, whole_mask(sample)
    before = len(row.caption) - len(row.caption.lstrip())
    return {
        "bbox": list(row.box_xyxy),
        "phrase": row.caption[row.start : row.end],
        "tokens_positive": [[row.start - before, row.end - before]],
        "segmentation": mask.as_json(),
        "noun": row.noun,
        "similarity": row.similarity,
        "key": row.key,
    }
