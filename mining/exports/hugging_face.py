"""Parquet with pictures inside that Hugging Face `datasets` opens as a folder; and Parquet without, for analysts."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mining.exports.pictures import decode, map_in_order, shrink
from mining.exports.pieces import Folder, Piece
from mining.exports.selection import index_schema
from mining.exports.stored import StoredSample
from mining.shards import encode_mask

_ROWS_AT_ONCE = 100  # pictures are large: a reader has a group of rows in memory
_PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_SCALARS: dict[str, pa.DataType] = {
    "text": pa.string(),
    "image_id": pa.string(),
    "caption": pa.string(),
    "source": pa.string(),
    "lemma": pa.string(),
    **dict.fromkeys(("start", "end", "rank", "area_px"), pa.int64()),
    **dict.fromkeys(("similarity", "margin", "score"), pa.float64()),
    "label": pa.string(),
    **dict.fromkeys(("x0", "y0", "x1", "y1", "crop_x0", "crop_y0", "crop_x1", "crop_y1"), pa.int64()),
    "key": pa.string(),
}


def hugging_face_schema() -> pa.Schema:
    """The columns, and beside them what `datasets` reads to show `image` and `mask` as pictures."""
    kinds = {"image": {"_type": "Image"}, "mask": {"_type": "Image"}}
    kinds |= {name: {"dtype": _dtype(kind), "_type": "Value"} for name, kind in _SCALARS.items()}
    columns = {"image": _PICTURE, "mask": _PICTURE} | _SCALARS
    fields = [pa.field(name, kind) for name, kind in columns.items()]
    return pa.schema(fields, {"huggingface": json.dumps({"info": {"features": kinds}})})


def write_hugging_face(folder: Folder, piece: Piece) -> None:
    """`data/SPLIT-00000-of-00001.parquet`: crops and masks as files inside, nouns as `text`, and the scores."""

    def row(sample: StoredSample) -> dict[str, Any]:
        pictures, stored = piece.pictures, sample.row
        image_format, image, mask_png = sample.image_format, sample.image, sample.mask_png
        if not pictures.keeps(sample):
            cutout = shrink(decode(sample), max_side_px=pictures.max_side_px)
            image_format = pictures.image_format or image_format
            image, mask_png = pictures.encode(cutout.rgb_HW3, image_format), encode_mask(cutout.mask_HW)
        boxes = zip(("x0", "y0", "x1", "y1"), stored.box_xyxy, stored.crop_xyxy, strict=True)
        made: dict[str, Any] = {
            "image": {"bytes": image, "path": f"{stored.key}.{image_format}"},
            "mask": {"bytes": mask_png, "path": f"{stored.key}.mask.png"},
            "text": stored.noun,
        }
        made |= {name: getattr(stored, name) for name in _SCALARS if hasattr(stored, name)}
        return made | {n: v for name, box, crop in boxes for n, v in ((name, box), (f"crop_{name}", crop))}

    schema = hugging_face_schema()
    # Pictures are compressed already; trying again takes time and gives nothing.
    compression = dict.fromkeys(_SCALARS, "zstd") | {"image.bytes": "none", "mask.bytes": "none"}
    compression |= {"image.path": "zstd", "mask.path": "zstd"}
    name = f"{piece.split}-{piece.number:05d}-of-{piece.of:05d}.parquet"
    with (
        folder.write("data", name) as file,
        pq.ParquetWriter(file, schema, compression=compression, use_dictionary=False) as writer,
    ):
        for rows in _batches(map_in_order(row, piece.samples(), threads=piece.pictures.workers)):
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))
            piece.tick(len(rows))


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


def _batches(rows: Iterable[dict[str, Any]]) -> Iterable[list[dict[str, Any]]]:
    batch: list[dict[str, Any]] = []
    for row in rows:
        batch.append(row)
        if len(batch) == _ROWS_AT_ONCE:
            yield batch
            batch = []
    if batch:
        yield batch
