"""The pairs as annotations of the photographs, in the forms that are derived from COCO's instances: COCO, LVIS, SA-Co.

Their JSON refers to the photographs, which are not copied. Image ids are those of the run where all of them are
numbers; otherwise images are numbered, and each says its own as `image_id`. Beyond the form's keys, annotations have
`score` (the proposal's), `similarity`, `margin`, `lift`, `evidence`, `confidence`, `caption` and `key`; of checked
pairs also `presence` and `agreement`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from typing import Any

import numpy as np

from maskmine.mining.exports.export_shards import ExportShard, Folder
from maskmine.mining.exports.images import decode_mask
from maskmine.mining.exports.json_lists import JsonLists, json_lists
from maskmine.mining.storage.stores import scheme_of
from maskmine.mining.storage.urls import URL_SCHEMES
from maskmine.schemas.mask import Mask
from maskmine.schemas.sample import StoredSample
from maskmine.schemas.settings import canonical_json

_RARE, _COMMON = 10, 100  # images with a category of LVIS, at most: https://www.lvisdataset.org/dataset


def write_coco(folder: Folder, shard: ExportShard) -> None:
    """`SPLIT.json` in the form of COCO's instances, with nouns as categories."""
    categories = {noun: number for number, noun in enumerate(shard.totals.nouns, start=1)}
    named = [{"id": number, "name": noun, "supercategory": "noun"} for noun, number in categories.items()]
    head = {"info": _info(shard), "licenses": [], "categories": named}
    with (
        folder.write(f"{shard.split}.json") as file,
        json_lists(file, head=head, names=("annotations", "images")) as lists,
    ):
        for photograph, samples in _photographs(shard):
            lists.add("images", json.dumps(photograph))
            for sample in samples:
                _annotate(lists, sample, shard, image=photograph["id"], category=categories[sample.row.noun])


def write_lvis(folder: Folder, shard: ExportShard) -> None:
    """`SPLIT.json` in the form of LVIS v1, with nouns as categories.

    A pair is one region of a noun that the caption says, and there may be more of them in the image: so each image has
    all its nouns as `not_exhaustive_category_ids`. Its negatives that are categories, nouns of other pairs, are its
    `neg_category_ids`. Frequencies are by images: `r` up to 10, `c` up to 100, else `f`.
    """
    categories = {noun: number for number, noun in enumerate(shard.totals.nouns, start=1)}
    images_of, instances_of = Counter[str](), Counter[str]()
    with (
        folder.write(f"{shard.split}.json") as file,
        json_lists(
            file, head={"info": _info(shard), "licenses": []}, names=("annotations", "images", "categories")
        ) as lists,
    ):
        for photograph, samples in _photographs(shard):
            nouns = [sample.row.noun for sample in samples]
            images_of.update(set(nouns))
            instances_of.update(nouns)
            there = sorted({categories[noun] for noun in nouns})
            absent = sorted(categories[noun] for noun in samples[0].row.negatives if noun in categories)
            photograph |= {"neg_category_ids": absent, "not_exhaustive_category_ids": there}
            lists.add("images", json.dumps({"coco_url": photograph["file_name"], **photograph}))
            for sample in samples:
                _annotate(lists, sample, shard, image=photograph["id"], category=categories[sample.row.noun])
        for noun, category_id in categories.items():
            images = images_of[noun]
            frequency = "r" if images <= _RARE else "c" if images <= _COMMON else "f"
            counts = {"image_count": images, "instance_count": instances_of[noun], "frequency": frequency}
            named = {"id": category_id, "name": noun, "synset": "", "synonyms": [noun], "def": ""}
            lists.add("categories", canonical_json(named | counts))


def write_sa_co(folder: Folder, shard: ExportShard) -> None:
    """`SPLIT.json` in the form of SA-Co, SAM 3's: an entry of `images` is an image with a noun, its `text_input`.

    The negatives of an image follow its nouns: entries without annotations.

    `bbox` and `area` are shares of the image's sides and pixels, as in SA-Co/Gold; entries of one photograph have the
    same `photograph_id`. The form is described at
    https://github.com/facebookresearch/sam3/blob/main/scripts/eval/gold/README.md.
    """
    concept = {"id": 1, "name": "object", "supercategory": "object"}
    head = {"info": _info(shard), "licenses": [], "categories": [concept]}
    with (
        folder.write(f"{shard.split}.json") as file,
        json_lists(file, head=head, names=("annotations", "images")) as lists,
    ):
        for photograph, samples in _photographs(shard):
            by_noun: dict[str, list[StoredSample]] = {}
            for sample in samples:
                by_noun.setdefault(sample.row.noun, []).append(sample)
            for negative in samples[0].row.negatives:
                by_noun.setdefault(negative, [])
            for noun, of_noun in by_noun.items():
                entry = lists.counts["images"] + 1
                own = {"id": entry, "text_input": noun, "photograph_id": photograph["id"]}
                lists.add("images", json.dumps({**photograph, **own}))
                for sample in of_noun:
                    _annotate(lists, sample, shard, image=entry, category=1, shares_of=photograph)


def _info(shard: ExportShard) -> dict[str, Any]:
    return {"description": f"mask-noun pairs, {shard.split}"}


def _photographs(shard: ExportShard) -> Iterator[tuple[dict[str, Any], list[StoredSample]]]:
    """Entries of images, each with its samples, which lie side by side."""
    of_images = groupby(shard.samples(), key=lambda sample: sample.row.image_id)
    for number, (image_id, grouped) in enumerate(of_images, start=1):
        samples = list(grouped)
        file_name, record = shard.run.file_name(samples[0].row), samples[0].record
        yield (
            {
                "id": int(image_id) if shard.totals.numbered else number,
                "file_name": file_name,
                **({"coco_url": file_name} if scheme_of(file_name) in URL_SCHEMES else {}),
                "height": record["height_px"],
                "width": record["width_px"],
                **({} if shard.totals.numbered else {"image_id": image_id}),
            },
            samples,
        )


def _annotate(
    lists: JsonLists,
    sample: StoredSample,
    shard: ExportShard,
    *,
    image: int,
    category: int,
    shares_of: dict[str, Any] | None = None,
) -> None:
    """Add a sample to the annotations; box and area as shares of a photograph where one is given."""
    instance = _instance(sample, shard)
    number = {"id": lists.counts["annotations"] + 1, "image_id": image, "category_id": category}
    lists.add("annotations", canonical_json(number | (_shares(instance, shares_of) if shares_of else instance)))
    shard.tick(1)


def _instance(sample: StoredSample, shard: ExportShard) -> dict[str, Any]:
    """An annotation without its ids, in pixels of the photograph."""
    row, mask = sample.row, whole_mask(sample)
    x0, y0, x1, y1 = row.box_xyxy
    return {
        "segmentation": mask.as_json(),
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


def _shares(instance: dict[str, Any], photograph: dict[str, Any]) -> dict[str, Any]:
    width_px, height_px = photograph["width"], photograph["height"]
    sides = (width_px, height_px, width_px, height_px)
    box = [value / side for value, side in zip(instance["bbox"], sides, strict=True)]
    return {**instance, "bbox": box, "area": instance["area"] / (width_px * height_px)}


def whole_mask(sample: StoredSample) -> Mask:
    """The mask of a sample in the frame of its photograph."""
    return Mask.from_array(mask_in_photograph(sample))


def mask_in_photograph(sample: StoredSample) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """The mask of a sample in the frame of its photograph, [H, W], column after column as run lengths go."""
    (x0, y0, x1, y1), record = sample.row.crop_xyxy, sample.record
    mask_HW = np.zeros((record["height_px"], record["width_px"]), np.bool_, order="F")
    mask_HW[y0:y1, x0:x1] = decode_mask(sample)
    return mask_HW
