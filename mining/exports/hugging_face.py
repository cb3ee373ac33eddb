"""Parquet with images inside, which Hugging Face `datasets` opens as a folder; and Parquet without, for analysis."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from maskmine.mining.exports.export_shards import ExportShard, Folder
from maskmine.mining.exports.filters import index_schema
from maskmine.mining.storage.prefetch import map_in_order, read_ahead
from maskmine.schemas.rows import SampleRow
from maskmine.schemas.sample import CHECKED_VERSION, WHOLE_VERSION, ImageFormat, StoredSample

_ROWS = 100  # of a row group, about; a reader has them in memory with their images
PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])  # how `datasets` stores an image
IMAGE_KIND = {"_type": "Image"}
# Of a table without images: parts that are row groups of their own, and rows of the row groups that follow.
_OWN_GROUPS, _TABLE_ROWS = 100, 250
# The sides of boxes as columns, which tools can filter by.
_BOX, _CROP_BOX = ("x0", "y0", "x1", "y1"), ("crop_x0", "crop_y0", "crop_x1", "crop_y1")
# Further columns, in their order.
SCALARS: dict[str, pa.DataType] = {
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
CHECKED = dict.fromkeys(("presence", "agreement"), pa.float64())  # at the end, where a verifier checked the pairs
WHOLE = dict.fromkeys(("negatives", "corrected"), pa.list_(pa.string()))  # and after them, where a set has either
In = TypeVar("In")
_Files = tuple[SampleRow, ImageFormat, bytes, bytes]
"""A pair, the format of its image, the image and the mask as files."""


def hugging_face_schema(version: int) -> pa.Schema:
    """The columns of a set of a format version, and beside them what `datasets` reads to show `image` and `mask` as
    images."""
    scalars = SCALARS | (CHECKED if version >= CHECKED_VERSION else {}) | (WHOLE if version >= WHOLE_VERSION else {})
    kinds = {"image": IMAGE_KIND, "mask": IMAGE_KIND} | {name: value_kind(kind) for name, kind in scalars.items()}
    return schema_with_kinds({"image": PICTURE, "mask": PICTURE} | scalars, kinds)


def schema_with_kinds(columns: Mapping[str, pa.DataType], kinds: Mapping[str, Any]) -> pa.Schema:
    """A schema that says in its metadata what `datasets` takes the columns for."""
    fields = [pa.field(name, kind) for name, kind in columns.items()]
    return pa.schema(fields, {"huggingface": json.dumps({"info": {"features": kinds}})})


def value_kind(kind: pa.DataType) -> dict[str, Any]:
    """What `datasets` calls a type."""
    if pa.types.is_list(kind):
        return {"feature": value_kind(kind.value_type), "_type": "List"}
    return {"dtype": {pa.string(): "string", pa.int64(): "int64", pa.float64(): "float64"}[kind], "_type": "Value"}


def write_hugging_face(folder: Folder, shard: ExportShard) -> None:
    """`data/SPLIT-00000-of-00001.parquet`: crops and masks as files inside, nouns as `text`, and the scores."""
    schema = hugging_face_schema(shard.version)
    with parquet_of(folder, shard, schema) as writer:
        for table in pair_tables(shard, schema):
            writer.write_table(table)


def pair_tables(shard: ExportShard, schema: pa.Schema) -> Iterator[pa.Table]:
    """The pairs of a shard as tables of a few rows; their `image` and `mask` are files."""

    def files(sample: StoredSample) -> _Files:
        return (sample.row, *shard.pictures.files(sample))

    rows = map_in_order(files, shard.samples(), threads=shard.pictures.workers)
    for batch in read_ahead(cut_by_key(rows, key=lambda files: files[0].key, rows=_ROWS)):
        yield _table(batch, schema)
        shard.tick(len(batch))


def cut_by_key(items: Iterable[In], *, key: Callable[[In], str], rows: int) -> Iterator[list[In]]:
    """The items in lists of about `rows`, four times as many at most, that end after items whose key says so.

    So a row that comes or goes changes its own row group, and not where all that follow begin.
    """
    batch: list[In] = []
    for item in items:
        batch.append(item)
        if zlib.crc32(key(item).encode()) % rows == 0 or len(batch) >= 4 * rows:
            yield batch
            batch = []
    if batch:
        yield batch


@contextmanager
def parquet_of(folder: Folder, shard: ExportShard, schema: pa.Schema) -> Iterator[pq.ParquetWriter]:
    """`data/SPLIT-00000-of-00001.parquet`, which appears when the block ends well.

    Its pages have an index, so that a reader who wants some rows reads no others, and are cut by their content: of a
    file of which a little has changed, stores that know the rest (Hugging Face's Xet) take the changed pages alone.
    """
    name = f"{shard.split}-{shard.number:05d}-of-{shard.of:05d}.parquet"
    with (
        folder.write("data", name) as file,
        pq.ParquetWriter(
            file,
            schema,
            # Images are compressed already; trying again takes time and gains nothing.
            compression={leaf: "none" if leaf.endswith(".bytes") else "zstd" for leaf in _leaves(schema)},
            use_dictionary=False,
            write_page_index=True,
            use_content_defined_chunking=True,
        ) as writer,
    ):
        yield writer


def picture_array(files: Sequence[bytes], paths: Sequence[str]) -> pa.StructArray:
    """Files as `datasets` stores images."""
    return pa.StructArray.from_arrays([pa.array(files, pa.binary()), pa.array(paths, pa.string())], fields=[*PICTURE])


def _leaves(schema: pa.Schema) -> list[str]:
    """The paths of the columns of a Parquet file with this schema."""
    buffer = pa.BufferOutputStream()
    pq.write_table(schema.empty_table(), buffer)
    stored = pq.ParquetFile(pa.BufferReader(buffer.getvalue())).schema
    return [stored.column(number).path for number in range(len(stored))]


def write_table(folder: Folder, shard: ExportShard) -> None:
    """`SPLIT/00000.parquet`: the index without images, a row a pair, as in the run."""
    with (
        folder.write(shard.split, f"{shard.name}.parquet") as file,
        pq.ParquetWriter(file, index_schema(shard.version), compression="zstd") as writer,
    ):
        for table in _larger_groups(shard.tables):
            writer.write_table(table)
            shard.tick(len(table))


def _larger_groups(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The tables as row groups: each for itself, and after many of them joined until they are large.

    What a file says of a row group takes as much as a hundred rows, and stays in memory until the file is written.
    """
    held: list[pa.Table] = []
    for number, table in enumerate(tables):
        held.append(table)
        if number < _OWN_GROUPS or sum(map(len, held)) >= _TABLE_ROWS:
            yield pa.concat_tables(held).combine_chunks()
            held = []
    if held:
        yield pa.concat_tables(held).combine_chunks()


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
    pictures = [picture_array(images, image_paths), picture_array(masks, mask_paths)]
    return pa.Table.from_arrays(
        [*pictures, *(pa.array(columns[name], schema.field(name).type) for name in scalars)], schema=schema
    )
