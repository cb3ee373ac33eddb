"""Parquet with a row for each image: the photograph, and lists of its nouns with their masks, boxes and scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from maskmine.mining.exports.export_shards import ExportShard, Folder
from maskmine.mining.exports.hugging_face import (
    CHECKED,
    IMAGE_KIND,
    PICTURE,
    WHOLE,
    cut_by_key,
    parquet_of,
    picture_array,
    schema_with_kinds,
    value_kind,
)
from maskmine.mining.exports.photographs import Photograph, photographs
from maskmine.mining.images.encode import encode_mask
from maskmine.schemas.mask import Mask
from maskmine.schemas.sample import CHECKED_VERSION, WHOLE_VERSION

_ROWS = 50  # of a row group, about; a reader has them in memory with their images
_OF_IMAGE: dict[str, pa.DataType] = {"image_id": pa.string(), "height_px": pa.int64(), "width_px": pa.int64()}
# What each list has, and the field of a pair that it comes from.
_LISTS: dict[str, tuple[str, pa.DataType]] = {
    "nouns": ("noun", pa.string()),
    "captions": ("caption", pa.string()),
    "sources": ("source", pa.string()),
    "lemmas": ("lemma", pa.string()),
    **{name: (name, pa.int64()) for name in ("start", "end", "rank")},
    **{
        name: (name, pa.float64())
        for name in ("similarity", "margin", "lift", "evidence", "confidence", "score", *CHECKED)
    },
    **{name: (name, kind) for name, kind in WHOLE.items()},
    "labels": ("label", pa.string()),
    "keys": ("key", pa.string()),
}


def images_schema(version: int) -> pa.Schema:
    """The columns for a set of a format version, and beside them what `datasets` takes them for."""
    later = {**dict.fromkeys(CHECKED, CHECKED_VERSION), **dict.fromkeys(WHOLE, WHOLE_VERSION)}
    lists = {name: kind for name, (_, kind) in _LISTS.items() if version >= later.get(name, 0)}
    columns = {"image": PICTURE, **_OF_IMAGE, "masks": pa.list_(PICTURE), "boxes": pa.list_(pa.list_(pa.int64()))}
    kinds = {"image": IMAGE_KIND, **{name: value_kind(kind) for name, kind in _OF_IMAGE.items()}}
    kinds |= {"masks": _list_of(IMAGE_KIND), "boxes": _list_of(_list_of(value_kind(pa.int64())))}
    kinds |= {name: _list_of(value_kind(kind)) for name, kind in lists.items()}
    return schema_with_kinds(columns | {name: pa.list_(kind) for name, kind in lists.items()}, kinds)


def write_images(folder: Folder, shard: ExportShard) -> None:
    """`data/SPLIT-00000-of-00001.parquet`: photographs, masks in their frame as PNG files, boxes as x0, y0, x1, y1."""
    schema = images_schema(shard.version)
    with parquet_of(folder, shard, schema) as writer:
        for batch in cut_by_key(photographs(shard), key=lambda photograph: photograph.name, rows=_ROWS):
            writer.write_table(_table(batch, schema))


def _list_of(kind: dict[str, Any]) -> dict[str, Any]:
    return {"feature": kind, "_type": "List"}


def _table(batch: Sequence[Photograph], schema: pa.Schema) -> pa.Table:
    pairs = [(sample, mask_HW) for one in batch for sample, mask_HW in zip(one.samples, one.masks, strict=True)]
    offsets = [0]
    for one in batch:
        offsets.append(offsets[-1] + len(one.samples))

    def lists(values: pa.Array) -> pa.ListArray:
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)

    columns: dict[str, pa.Array] = {
        "image": picture_array([one.content for one in batch], [f"{one.name}.{one.image_format}" for one in batch]),
        **{name: pa.array([getattr(one, name) for one in batch], kind) for name, kind in _OF_IMAGE.items()},
        "masks": lists(
            picture_array(
                [encode_mask(mask_HW) for _, mask_HW in pairs], [f"{sample.row.key}.mask.png" for sample, _ in pairs]
            )
        ),
        "boxes": lists(
            pa.array([list(Mask.from_array(mask_HW).box_xyxy) for _, mask_HW in pairs], pa.list_(pa.int64()))
        ),
    }
    for name, (field, kind) in _LISTS.items():
        if name in schema.names:
            columns[name] = lists(pa.array([getattr(sample.row, field) for sample, _ in pairs], kind))
    return pa.Table.from_arrays([columns[name] for name in schema.names], schema=schema)
