"""A folder that FiftyOne opens as `COCODetectionDataset`: nouns as categories, and for each pair its verdict.

The form is that of https://docs.voxel51.com/user_guide/import_datasets.html. Annotations are `iscrowd`, which makes
FiftyOne give run lengths back, and not polygons that only come near the mask.
"""

from __future__ import annotations

import json

from maskmine.mining.exports.annotation_tools.photographs import photographs
from maskmine.mining.exports.coco import whole_mask
from maskmine.mining.exports.export_shards import ExportShard, Folder
from maskmine.mining.exports.json_lists import json_lists
from maskmine.schemas.annotation_tools import PAIR, UNJUDGED, VERDICT, pair_line
from maskmine.schemas.settings import canonical_json

# FiftyOne keeps boxes as shares of the image, and cuts off what is behind the point when it makes pixels of them again:
# without this the mask it gives back could lie a pixel too far to the left.
_NUDGE_PX = 2**-10


def write_fiftyone(folder: Folder, shard: ExportShard) -> None:
    """`SPLIT/labels.json`, and copies of the photographs in `SPLIT/data`.

    Each annotation has `verdict` to fill in, `pair`, by which answers are known, `caption`, `key` and the scores.
    """
    below, categories = (shard.split, "data"), {noun: n for n, noun in enumerate(shard.totals.nouns, start=1)}
    named = [{"id": number, "name": noun, "supercategory": "noun"} for noun, number in categories.items()]
    head = {"info": {"description": f"mask-noun pairs, {shard.split}"}, "licenses": [], "categories": named}
    with (
        folder.write(shard.split, "labels.json") as file,
        json_lists(file, head=head, names=("images", "annotations")) as lists,
    ):
        for number, photograph in enumerate(photographs(folder, shard, below=below), start=1):
            name = photograph.name.removeprefix("/".join((*below, "")))
            size = {"height": photograph.height_px, "width": photograph.width_px}
            lists.add("images", json.dumps({"id": number, "file_name": name, **size}))
            for sample in photograph.samples:
                row, mask = sample.row, whole_mask(sample)
                x0, y0, x1, y1 = row.box_xyxy
                annotation = {
                    "id": lists.counts["annotations"] + 1,
                    "image_id": number,
                    "category_id": categories[row.noun],
                    "bbox": [x0 + _NUDGE_PX, y0 + _NUDGE_PX, x1 - x0, y1 - y0],
                    "area": mask.area_px,
                    "segmentation": mask.as_json(),
                    "iscrowd": 1,
                    VERDICT: UNJUDGED,
                    PAIR: pair_line((row.image_id, row.noun, mask.digest)),
                    "caption": row.caption,
                    "key": row.key,
                    **{name: getattr(row, name) for name in ("similarity", "lift", "evidence")},
                    **({} if row.confidence is None else {"score": row.confidence}),  # FiftyOne's own `confidence`
                }
                lists.add("annotations", canonical_json(annotation))
