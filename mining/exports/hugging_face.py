"""Parquet with images inside, which Hugging Face `datasets` opens as a folder; and Parquet without, for analysis."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from maskmine.mining.exports.export_shards import ExportShard, Folder
from maskmine.mining.exports.filters import index_schema
from maskmine.mining.storage.prefetch import map_in_order, read_ahead
from maskmine.schemas.rows import SampleRow
from maskmine.schemas.sample import CHECKED_VERSION, WHOLE_VERSION, ImageFormat, StoredSample

_ROWS_AT_ONCE = 100  # of a row group, which a reader has in memory with its images
_PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])  # how `datasets` stores an image
# The sides of boxes as columns, which tools can filter by.
_BOX, _CROP_BOX = ("x0", "y0", "x1", "y1"), ("crop_x0", "crop_y0", "crop_x1", "crop_y1")
# Further columns, in their order.
_SCALARS: dict[str, pa.DataType] = {
    "text": pa.string(),
    "image_id": pa.string(),
    "caption": pa.string(),
    "source": pa.string(),
    "lemma": pa.string(),
    **dict.fromkeys(("start", "end", "rank", "area_px"), pa.int64()),
    **dict.fromkeys(("similarity", "margin", "lift", "evidence", "confidence", "score"), pa.float64()),
    "label": pa.string(),
    **dict.fromkeys((*_BOX, *_CROP_BOX), pa.int64()),
    "key": pa.string(),
}
_CHECKED = dict.fromkeys(("presence", "agreement"), pa.float64())  # at the end, where a verifier checked the pairs
_WHOLE = dict.fromkeys(("negatives", "corrected"), pa.list_(pa.string()))  # and after them, where a set has either
_Files = tuple[SampleRow, ImageFormat, bytes, bytes]
"""A pair, the format of its image, the image and the mask as files."""


def hugging_face_schema(version: int) -> pa.Schema:
    """The columns of a set of a format version, and beside them what `datasets` reads to show `image` and `mask` as
    images."""
    scalars = _SCALARS | (_CHECKED if version >= CHECKED_VERSION else {}) | (_WHOLE if version >= WHOLE_VERSION else {})
    kinds: dict[str, Any] = {"image": {"_type": "Image"}, "mask": {"_type": "Image"}}
    kinds |= {name: _feature(kind) for name, kind in scalars.items()}
    columns = {"image": _PICTURE, "mask": _PICTURE} | scalars
    fields = [pa.field(name, kind) for name, kind in columns.items()]
    return pa.schema(fields, {"huggingface": json.dumps({"info": {"features": kinds}})})


def write_hugging_face(folder: Folder, shard: ExportShard) -> None:
    """`data/SPLIT-00000-of-00001.parquet`: crops and masks as files inside, nouns as `text`, and the scores."""

    def files(sample: StoredSample) -> _Files:
        return (sample.row, *shard.pictures.files(sample))

    schema = hugging_face_schema(shard.version)
    # Images are compressed already; trying again takes time and gains nothing.
    compression = dict.fromkeys(schema.names[2:], "zstd") | {"image.bytes": "none", "mask.bytes": "none"}
    compression |= {"image.path": "zstd", "mask.path": "zstd"}
    name = f"{shard.split}-{shard.number:05d}-of-{shard.of:05d}.parquet"
    with (
        folder.write("data", name) as file,
        pq.ParquetWriter(file, schema, compression=compression, use_dictionary=False) as writer,
    ):
        rows = map_in_order(files, shard.samples(), threads=shard.pictures.workers)
        for batch in read_ahead(iter(lambda: list(islice(rows, _ROWS_AT_ONCE)), [])):
            writer.write_table(_table(batch, schema))
            shard.tick(len(batch))


def write_table(folder: Folder, shard: ExportShard) -> None:
    """`SPLIT/00000.parquet`: the index without images, a row a pair, as in the run."""
    with (
        folder.write(shard.split, f"{shard.name}.parquet") as file,
        pq.ParquetWriter(file, index_schema(shard.version), compression="zstd") as writer,
    ):
        for table in shard.tables:
            writer.write_table(table)
            shard.tick(len(table))


def _feature(kind: pa.DataType) -> dict[str, Any]:
    if pa.types.is_list(kind):
        return {"feature": _feature(kind.value_type), "_type": "Sequence"}
    dtype = {pa.string(): "string", pa.int64(): "int64", pa.float64(): "float64"}[kind]
    return {"dtype": dtype, "_type": "Value"}


def _table(batch: Sequence[_Files], schema: pa.Schema) -> pa.Table:
    """Column by column, because a dictionary for each row would take longer than all other work on an image."""
    rows, formats, images, masks = zip(*batch, strict=True)
    image_paths = [f"{row.key}.{image_format}" for row, image_format in zip(rows, formats, strict=True)]
    mask_paths = [f"{row.key}.mask.png" for row in rows]
    columns: dict[str, Sequence[Any]] = {"text": [row.noun for row in rows]}
    columns |= zip(_BOX, zip(*(row.box_xyxy for row in rows), strict=True), strict=True)
    columns |= zip(_CROP_BOX, zip(*(row.crop_xyxy for row in rows), strict=True), strict=True)
    scalars = schema.names[2:]
    columns |= {name: [getattr(row, name) for row in rows] for name in set(scalars) - columns.keys()}
    pictures = [
        pa.StructArray.from_arrays([pa.array(files, pa.binary()), pa.array(paths, pa.string())], fields=list(_PICTURE))
        for files, paths in ((images, image_paths), (masks, mask_paths))
    ]
    return pa.Table.from_arrays(
        [*pictures, *(pa.array(columns[name], schema.field(name).type) for name in scalars)], schema=schema
    )
