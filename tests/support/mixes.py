"""Small runs of the demo world that can be mixed, and what tests read of mixes."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from maskmine.pipelines.mix.choice import parse_mixing
from maskmine.pipelines.mix.mix import Mixed, mix_sets
from maskmine.pipelines.mix.sources import parse_weights
from maskmine.schemas.rows import SampleRow
from maskmine.schemas.sample import CHECKED_VERSION, member_names, sample_members, write_end_of_tar, write_members
from maskmine.schemas.settings import canonical_json
from maskmine.schemas.tables import from_table, read_parquet, write_parquet_rows
from tests.support.runs import run_toy

SCENES = 10


def mine_sets(folder: Path) -> dict[str, Path]:
    """Runs of `red` and of `blue` scenes, which have the same ids; `copies`, the red scenes as JPEGs of low quality,
    which have the same fingerprint; and `again`, the red scenes with wider crops in other parts."""
    from maskmine.scripts.demo_world.draw import draw_world

    for name, seed in (("red", 3), ("blue", 4)):
        draw_world(folder / "worlds" / name, scenes=SCENES, seed=seed)
    copied = shutil.copytree(folder / "worlds/red", folder / "worlds/copies")
    for path in (copied / "images").iterdir():
        Image.open(path).save(path, quality=5)
    by = {"captions": "CC-BY-4.0", "pictures": "CC-BY-NC-4.0"}
    return {
        "red": mine(folder / "worlds/red", folder / "red"),
        "blue": mine(folder / "worlds/blue", folder / "blue", licences=by),
        "copies": mine(copied, folder / "copies"),
        "again": mine(folder / "worlds/red", folder / "again", shards={"images_per_part": 3, "expand_ratio": 1.5}),
    }


def mine(world: Path, out: Path, **changes: Any) -> Path:
    """Mine a world with its own masks, by label."""
    tree: dict[str, Any] = {
        "captions": {"kind": "coco", "annotations": f"{world}/captions.json", "images": f"{world}/images"},
        "regions": {
            "proposals": {"kind": "ground_truth", "annotations": f"{world}/instances.json"},
            "clip": None,
            "decode_threads": 1,
        },
        "pairs": {"rule": "labels"},
        "shards": {"images_per_part": 4},
        "out": str(out),
    }
    config = out.with_suffix(".json")  # JSON is YAML
    config.write_text(json.dumps(tree | changes))
    run_toy(config)
    return out


def mix(out: Path, *given: str, **options: Any) -> Mixed:
    """Mix sets, each given as `FOLDER:WEIGHT`."""
    return mix_sets(parse_weights(given), parse_mixing(**options), out=str(out))


def index(folder: Path) -> pa.Table:
    """The index of all shards."""
    return pa.concat_tables([pq.read_table(path) for path in sorted((folder / "shards").glob("*.parquet"))])


def origins(folder: Path) -> list[dict[str, Any]]:
    """Where the images of a mix are from."""
    paths = sorted((folder / "origins").glob("*.parquet"))
    return [row for path in paths for row in pq.read_table(path).to_pylist()]


def spans(folder: Path) -> dict[str, bytes]:
    """The bytes of every sample in its tar, by key."""
    rows, tars = index(folder).to_pylist(), {path.name: path.read_bytes() for path in folder.glob("shards/*.tar")}
    return {row["key"]: tars[row["shard"]][row["offset"] : row["offset"] + row["size_bytes"]] for row in rows}


def as_checked(run: Path, to: Path) -> Path:
    """A copy of a finished run as if a verifier had checked its pairs: of format version 4, every presence 0.75."""
    shutil.copytree(run, to)
    checks = {"presence": 0.75, "agreement": 0.5}
    manifest = json.loads((to / "manifest.json").read_text())
    manifest |= {"format_version": CHECKED_VERSION, "fingerprint": "c" * 64}
    for entry in manifest["shards"]:
        tar, rows = io.BytesIO(), []
        path = to / "shards" / entry["name"]
        stored = path.read_bytes()
        for row in from_table(read_parquet(pa.OSFile(str(path.with_suffix(".parquet")))), SampleRow):
            image_format, *contents, record = sample_members(stored[row.offset : row.offset + row.size_bytes], row.key)
            checked = canonical_json(json.loads(record) | checks).encode()
            offset, names = tar.tell(), member_names(row.key, image_format)
            size_bytes = write_members(tar, zip(names, [*contents, checked], strict=True))
            crc32 = zlib.crc32(tar.getvalue()[offset:])
            rows.append(replace(row, offset=offset, size_bytes=size_bytes, crc32=crc32, **checks))
        write_end_of_tar(tar, size_bytes=tar.tell())
        path.write_bytes(tar.getvalue())
        with path.with_suffix(".parquet").open("wb") as file:
            write_parquet_rows(rows, file, SampleRow)
        entry["size_bytes"] = len(tar.getvalue())
        entry["sha256"] = hashlib.sha256(tar.getvalue()).hexdigest()
        entry["index_sha256"] = hashlib.sha256(path.with_suffix(".parquet").read_bytes()).hexdigest()
    (to / "manifest.json").write_text(json.dumps(manifest))
    return to
