"""MosaicML's shards for StreamingDataset, written by MosaicML's own writer."""

from __future__ import annotations

import os
import shutil
import tempfile
from importlib import import_module
from typing import Any

from mining.exports.pictures import decode, map_in_order, shrink
from mining.exports.pieces import Folder, Piece
from mining.exports.stored import StoredSample
from mining.shards import encode_mask
from schemas.errors import InputError

_COLUMNS = {"image": "bytes", "mask": "bytes", "text": "str", "record": "json"}
_SHARD_BYTES = 1 << 26


def write_mds(folder: Folder, piece: Piece) -> None:
    """`SPLIT/` with `index.json` and shards of 64 MiB; columns `image`, `mask` (files), `text` and `record`.

    The writer wants a folder of its own, so a split lies on this machine's disk before it is moved.
    """
    writer_type = require_mds()

    def row(sample: StoredSample) -> dict[str, Any]:
        pictures, image, mask_png = piece.pictures, sample.image, sample.mask_png
        if not pictures.keeps(sample):
            cutout = shrink(decode(sample), max_side_px=pictures.max_side_px)
            image = pictures.encode(cutout.image, pictures.image_format or sample.image_format)
            mask_png = encode_mask(cutout.mask_array())
        return {"image": image, "mask": mask_png, "text": sample.row.noun, "record": sample.record}

    with tempfile.TemporaryDirectory(prefix="maskmine-") as scratch:
        out = os.path.join(scratch, "mds")
        with writer_type(out=out, columns=_COLUMNS, hashes=["sha256"], size_limit=_SHARD_BYTES) as writer:
            for columns in map_in_order(row, piece.samples(), threads=piece.pictures.workers):
                writer.write(columns)
                piece.tick(1)
        for name in sorted(os.listdir(out), key=lambda name: (name == "index.json", name)):  # the index comes last
            with folder.write(piece.split, name) as file, open(os.path.join(out, name), "rb") as made:
                shutil.copyfileobj(made, file)


def require_mds() -> Any:
    """MosaicML's writer. Raises InputError where it is not installed."""
    try:
        return import_module("streaming").MDSWriter
    except ImportError as error:
        raise InputError(
            "--to mds: MosaicML's writer is not installed; docs/exports.md says how to put it beside transformers 5"
        ) from error
