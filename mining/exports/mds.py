"""MosaicML's shards for StreamingDataset, written by MosaicML's own writer."""

from __future__ import annotations

import os
import shutil
import tempfile
from importlib import import_module
from typing import Any

from maskmine.mining.exports.export_shards import ExportShard, Folder
from maskmine.mining.storage.ownership import SCRATCH, owned_prefix
from maskmine.mining.storage.prefetch import map_in_order
from maskmine.schemas.errors import InputError
from maskmine.schemas.sample import StoredSample

_COLUMNS = {"image": "bytes", "mask": "bytes", "text": "str", "record": "json"}  # names and MosaicML's encodings
_SHARD_BYTES = 1 << 26  # the default of MosaicML's writer


def write_mds(folder: Folder, shard: ExportShard) -> None:
    """`SPLIT/` with `index.json` and shards of 64 MiB; columns `image`, `mask` (files), `text` and `record`.

    The writer wants a folder of its own, so a split lies on this machine's disk before it is moved.
    """
    writer_type = require_mds()

    def row(sample: StoredSample) -> dict[str, Any]:
        _, image, mask_png = shard.pictures.files(sample)
        return {"image": image, "mask": mask_png, "text": sample.row.noun, "record": sample.record}

    with tempfile.TemporaryDirectory(prefix=owned_prefix(SCRATCH)) as scratch:
        out = os.path.join(scratch, "mds")
        with writer_type(out=out, columns=_COLUMNS, hashes=["sha256"], size_limit=_SHARD_BYTES) as writer:
            for columns in map_in_order(row, shard.samples(), threads=shard.pictures.workers):
                writer.write(columns)
                shard.tick(1)
        for name in sorted(os.listdir(out), key=lambda name: (name == "index.json", name)):  # the index comes last
            with folder.write(shard.split, name) as file, open(os.path.join(out, name), "rb") as written:
                shutil.copyfileobj(written, file)


def require_mds() -> Any:
    """MosaicML's writer. Raises InputError where it is not installed."""
    try:
        return import_module("streaming").MDSWriter
    except ImportError as error:
        raise InputError(
            "--to mds: MosaicML's writer is not installed; docs/exports.md says how to put it beside transformers 5"
        ) from error
