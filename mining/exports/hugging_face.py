"""Parquet with pictures inside that Hugging Face `datasets` opens as a folder; and Parquet without, for analysts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mining.exports.pictures import decode, map_in_order, read_ahead, shrink
from mining.exports.pieces import Folder, Piece
from mining.exports.selection import index_schema
from mining.exports.stored import StoredSample
from mining.shards import encode_mask
from schemas.rows import SampleRow
from schemas.sample import ImageFormat

_ROWS_AT_ONCE = 100  # pictures are large: a reader has a group of rows in memory
_PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_BOX, _CROP_BOX = ("x0", "y0", "x1", "y1"), ("crop_x0", "crop_y0", "crop_x1", "crop_y1")
_SCALARS: dict[str, pa.DataType] = {
    "text": pa.string(),
    "image_id": pa.string(),
    "caption": pa.string(),
    "source": pa.string(),
    "lemma": pa.string(),
    **dict.fromkeys(("start", "end", "rank", "area_px"), pa.int64()),
    **dict.fromkeys(("similarity", "margin", "score"), pa.float64()),
    "label": pa.string(),
    **dict.fromkeys((*_BOX, *_CROP_BOX), pa.int64()),
    "key": pa.string(),
}
_Files = tuple[SampleRow, ImageFormat, bytes, bytes]
"""A pair, the format of its picture, the picture and the mask as files."""


def hugging_face_schema() -> pa.Schema:
    """The columns, and beside them what `datasets` reads to show `image` and `mask` as pictures."""
    kinds = {"image": {"_type": "Image"}, "mask": {"_type": "Image"}}
    kinds |= {name: {"dtype": _dtype(kind), "_type": "Value"} for name, kind in _SCALARS.items()}
    columns = {"image": _PICTURE, "mask": _PICTURE} | _SCALARS
    fields = [pa.field(name, kind) for name, kind in columns.items()]
    return pa.schema(fields, {"huggingface": json.dumps({"info": {"features": kinds}})})


def write_hugging_face(folder: Folder, piece: Piece) -> None:
    """`data/SPLIT-00000-of-00001.parquet`: crops and masks as files inside, nouns as `text`, and the scores."""

    def files(sample: StoredSample) -> _Files:
        pictures, row = piece.pictures, sample.row
        if pictures.keeps(sample):
            return row, sample.image_format, sample.image, sample.mask_png
        cutout = shrink(decode(sample), max_side_px=pictures.max_side_px)
        image_format = pictures.image_format or sample.image_format
        return row, image_format, pictures.encode(cutout.image, image_format), encode_mask(cutout.mask_array())

    schema = hugging_face_schema()
    # Pictures are compressed already; trying again takes time and gives nothing.
    compression = dict.fromkeys(_SCALARS, "zstd") | {"image.bytes": "none", "mask.bytes": "none"}
    compression |= {"image.path": "zstd", "mask.path": "zstd"}
    name = f"{piece.split}-{piece.number:05d}-of-{piece.of:05d}.parquet"
    with (
        folder.write("data", name) as file,
        pq.ParquetWriter(file, schema, compression=compression, use_dictionary=False) as writer,
    ):
        made = map_in_order(files, piece.samples(), threads=piece.pictures.workers)
        for batch in read_ahead(iter(lambda: list(islice(made, _ROWS_AT_ONCE)), [])):
            writer.write_table(_table(batch, schema))
            piece.tick(len(batch))


def write_table(folder: Folder, piece: Piece) -> None:
    """`SPLIT/00000.parquet`: the index without pictures, a row a pair, as it lies in the run."""
    with (
        folder.write(piece.split, f"{piece.name}.parquet") as file,
        pq.ParquetWriter(file, index_schema(), compression="zstd") as writer,
    ):
        for table in piece.tables:
            writer.write_table(table)
            piece.tick(len(table))


def _dtype(kind: pa.DataType) -> str:
    return {pa.string(): "string", pa.int64(): "int64", pa.float64(): "float64"}[kind]


def _table(batch: Sequence[_Files], schema: pa.Schema) -> pa.Table:
    """Column by column, because a dictionary for each row takes longer than all else that is done with a picture."""
    rows, formats, images, masks = zip(*batch, strict=True)
    image_paths = [f"{row.key}.{image_format}" for row, image_format in zip(rows, formats, strict=True)]
    mask_paths = [f"{row.key}.mask.png" for row in rows]
    columns: dict[str, Sequence[Any]] = {"text": [row.noun for row in rows]}
    columns |= zip(_BOX, zip(*(row.box_xyxy for row in rows), strict=True), strict=True)
    columns |= zip(_CROP_BOX, zip(*(row.crop_xyxy for row in rows), strict=True), strict=True)
    columns |= {name: [getattr(row, name) for row in rows] for name in _SCALARS.keys() - columns.keys()}
    pictures = [
        pa.StructArray.from_arrays([pa.array(files, pa.binary()), pa.array(paths, pa.string())], fields=list(_PICTURE))
        for files, paths in ((images, image_paths), (masks, mask_paths))
    ]
    return pa.Table.from_arrays(
        [*pictures, *(pa.array(columns[name], kind) for name, kind in _SCALARS.items())], schema=schema
    )
