"""OVSeg's training data as its authors hand it to open_clip: a tab-separated table and one PNG a pair."""

from __future__ import annotations

import csv
import io
import posixpath

from maskmine.mining.exports.export_shards import ExportShard, ExportSummary, Folder
from maskmine.mining.exports.tars import key_crop
from maskmine.mining.storage.prefetch import map_in_order
from maskmine.schemas.sample import StoredSample

# Each file is on the disk before it has its name; while some threads wait for that, others encode.
_WAITING = 6


def write_ovseg(folder: Folder, shard: ExportShard) -> None:
    """`SPLIT/00000/KEY.png`: keyed crops (see `key_crop`)."""

    def write(sample: StoredSample) -> None:
        png = key_crop(sample, shard.pictures)
        with folder.write(shard.split, shard.name, f"{sample.row.key}.png") as file:
            file.write(png)

    for _ in map_in_order(write, shard.samples(), threads=shard.pictures.threads + _WAITING):
        shard.tick(1)


def write_tables(folder: Folder, summary: ExportSummary) -> None:
    """`SPLIT.csv` with the columns `filepath` and `title`; paths begin with the prefix that was asked for."""
    for split, shards in summary.shards.items():
        folders = (f"{number:05d}" for number, samples in enumerate(shards) for _ in range(samples))
        with folder.write(f"{split}.csv") as file:
            file.write(_lines([("filepath", "title")]))
            for table in summary.tables(split):
                pairs = zip(table["key"].to_pylist(), table["noun"].to_pylist(), strict=True)
                places = ((posixpath.join(summary.csv_prefix, split, next(folders), f"{k}.png"), n) for k, n in pairs)
                file.write(_lines(list(places)))


def _lines(rows: list[tuple[str, str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, delimiter="\t", lineterminator="\n").writerows(rows)
    return text.getvalue().encode()
