"""A Lance dataset of the pairs, written by Lance's own writer."""

from __future__ import annotations

import os
import shutil
import tempfile
from importlib import import_module
from typing import Any

import pyarrow as pa

from maskmine.mining.exports.export_shards import ExportShard, Folder
from maskmine.mining.exports.hugging_face import hugging_face_schema, pair_tables
from maskmine.mining.storage.ownership import SCRATCH, owned_prefix
from maskmine.schemas.errors import InputError, how_to_install

_FILE_ROWS = 20_000  # of one of its files


def folder_of(split: str) -> str:
    """The folder of a split."""
    return f"{split}.lance"


def write_lance(folder: Folder, shard: ExportShard) -> None:
    """`SPLIT.lance/`: a row a pair, with the columns of `hf`; `image` and `mask` are files as bytes.

    Lance names its files at random and notes the time, so their bytes differ from one export to the next; the rows do
    not. Its writer wants a folder of its own, so a split lies on this machine's disk before it is moved; its manifest
    comes last.
    """
    lance = require_lance()
    stored = hugging_face_schema(shard.version)
    schema = pa.schema([_plain(field) for field in stored])
    tables = pair_tables(shard, stored)
    batches = (batch for table in tables for batch in _with_bytes(table, schema).to_batches())
    with tempfile.TemporaryDirectory(prefix=owned_prefix(SCRATCH)) as scratch:
        out = os.path.join(scratch, "lance")
        reader = pa.RecordBatchReader.from_batches(schema, batches)
        lance.write_dataset(reader, out, max_rows_per_file=_FILE_ROWS)
        for path in sorted(_files(out), key=lambda path: (path.startswith("_versions"), path)):
            name = [folder_of(shard.split), *path.split(os.sep)]
            with folder.write(*name) as file, open(os.path.join(out, path), "rb") as written:
                shutil.copyfileobj(written, file)


def require_lance() -> Any:
    """Lance's library. Raises InputError where it is not installed."""
    try:
        return import_module("lance")
    except ImportError as error:
        raise InputError(f"--to lance: Lance's library is not installed; {how_to_install('lance')}") from error


def _plain(field: pa.Field) -> pa.Field:
    return pa.field(field.name, pa.binary()) if pa.types.is_struct(field.type) else field


def _with_bytes(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table with images as bytes alone, without the names of their files."""
    columns = [
        pa.chunked_array([chunk.field("bytes") for chunk in column.chunks], pa.binary())
        if pa.types.is_struct(column.type)
        else column
        for column in table.columns
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def _files(root: str) -> list[str]:
    return [os.path.relpath(os.path.join(at, name), root) for at, _, names in os.walk(root) for name in names]
