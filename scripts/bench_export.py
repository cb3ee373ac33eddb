"""How fast exports are written, against copying the same bytes: what a disk allows, and what pictures cost."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from mining.decoder import Decoding
from mining.exports.pictures import Pictures
from mining.shards import ImageToWrite, Shards, write_shard
from pipelines.export import FORMATS, Export, export_run
from pipelines.plan import PLANNED
from pipelines.publish import SUCCESS_FILE
from pipelines.run_folder import RunFolder
from schemas.manifest import Manifest, ShardEntry, Totals
from schemas.rows import ImageRow, SampleRow
from schemas.sample import FORMAT_VERSION
from scripts.measures import Measure, in_turns

_SHARDS = 4


def bench_export(items: Sequence[ImageToWrite]) -> Iterator[Measure]:
    """MB/s of each export of a run made of these images, and that as a share of a plain copy of what it wrote.

    Both sync every file to the disk. MosaicML's writer is measured where it is installed.
    """
    with tempfile.TemporaryDirectory() as scratch:
        run = _write_run(Path(scratch) / "run", items)
        for name in FORMATS:
            if name == "mds" and not _has_mds():
                continue
            export = Export(format=name, pictures=Pictures(threads=os.cpu_count() or 2))
            out, copy = Path(scratch) / "out", Path(scratch) / "copy"
            export_s, copy_s = in_turns(partial(_export, run, export, out), partial(_copy, out, copy))
            size_mb = sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) / 1e6
            share = copy_s / export_s
            yield Measure(f"{name}: {size_mb:,.0f} MB written", size_mb / export_s, "MB/s", "", None)
            yield Measure(f"{name}: of the speed of a copy", 100 * share, "%", "≥ 50", share >= 0.5)


def _export(run: RunFolder, export: Export, out: Path) -> None:
    shutil.rmtree(out, ignore_errors=True)
    export_run(run, export, out=str(out))


def _copy(source: Path, target: Path) -> None:
    """Copy a folder, each file synced."""
    shutil.rmtree(target, ignore_errors=True)
    for path in sorted(source.rglob("*")):
        place = target / path.relative_to(source)
        if path.is_dir():
            place.mkdir(parents=True)
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        with path.open("rb") as read, place.open("wb") as written:
            shutil.copyfileobj(read, written, 1 << 20)
            written.flush()
            os.fsync(written.fileno())


def _write_run(folder: Path, items: Sequence[ImageToWrite]) -> RunFolder:
    """A finished run without the steps before its shards."""
    run, read = RunFolder(str(folder)), partial(Decoding().read, max_pixels=10**8)
    entries = []
    for number in range(_SHARDS):
        part = items[number * len(items) // _SHARDS : (number + 1) * len(items) // _SHARDS]
        name = f"{number:05d}"
        with run.write("shards", f"{name}.tar") as file:
            index, account = write_shard(
                file, part, shards=Shards(), keep=lambda *_: True, shard=f"{name}.tar", read=read
            )
        run.write_rows("shards", f"{name}.parquet", rows=index, row_type=SampleRow, fingerprint="")
        run.write_rows(
            "images", f"{name}.parquet", rows=[item.image for item in part], row_type=ImageRow, fingerprint=PLANNED
        )
        index_sha256 = hashlib.sha256(run.read_bytes("shards", f"{name}.parquet")).hexdigest()
        entries.append(
            ShardEntry(
                name=f"{name}.tar",
                images=len(part),
                samples=len(index),
                size_bytes=account.size_bytes,
                sha256=account.sha256,
                index_sha256=index_sha256,
            )
        )
    totals = Totals(
        images=len(items),
        with_pairs=len(items),
        rejected={},
        samples=sum(entry.samples for entry in entries),
        nouns=1,
        size_bytes=sum(entry.size_bytes for entry in entries),
    )
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        fingerprint="0" * 64,
        plan_sha256="0" * 64,
        settings={},
        models=(),
        libraries={},
        shards=tuple(entries),
        totals=totals,
    )
    run.write_json("manifest.json", value=manifest.model_dump(mode="json"))
    run.write_json("plan.json", value={})
    with run.write(SUCCESS_FILE):
        pass
    return run


def _has_mds() -> bool:
    from importlib.util import find_spec

    return find_spec("streaming") is not None
