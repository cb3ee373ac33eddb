"""How fast exports are written: against copying the same bytes, against a plain loop, and what bounds them.

A form that copies pictures is bound by the disk and by SHA-256; one that makes new pictures by their codecs, which take
many times as long as a copy. So each form says how much of its time that work alone takes, in as many threads.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from pycocotools import mask as coco_mask

from mining.decoder import Decoding
from mining.exports.pictures import CLIP_MEAN_PX, Pictures, decode, decode_mask, map_in_order
from mining.exports.selection import Selection
from mining.exports.stored import StoredSample
from mining.exports.tars import KEY_COLOUR
from mining.shards import ImageToWrite, Shards, write_shard
from pipelines.export import Export, export_run
from pipelines.export_reader import RunReader, read_finished
from pipelines.plan import PLANNED
from pipelines.publish import SUCCESS_FILE
from pipelines.run_folder import RunFolder
from schemas.manifest import Manifest, ShardEntry, Totals
from schemas.mask import Mask
from schemas.rows import ImageRow, SampleRow
from schemas.sample import FORMAT_VERSION, ImageFormat
from schemas.tables import from_table
from scripts.measures import Measure, in_turns

_PICTURES = Pictures(threads=os.cpu_count() or 2)
_SHARDS = 4
_REPEATS = 8
"""How often the shards stand in the run for the forms that copy, so that not their first and last steps are timed."""

Pair = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Case:
    """How a form is measured: over which run, what a user would write without this project, and what bounds it.

    `plain` writes to a folder; `bound` gives the work alone, from the run, the export and a folder to write to.
    """

    bound_by: str
    bound: Callable[[RunFolder, Path, Path], Callable[[], object]]
    plain: Callable[[RunFolder, Path], None] | None = None
    repeats: int = 1


def bench_export(items: Sequence[ImageToWrite]) -> Iterator[Measure]:
    """MB/s of each export of a run made of these images, as a share of a plain copy of what it wrote, and its bounds.

    Export and copy sync every file to the disk; plain loops are one process that syncs nothing. MosaicML's writer is
    measured where it is installed.
    """
    with tempfile.TemporaryDirectory() as scratch:
        small = _write_run(Path(scratch) / "run", items)
        runs = {1: small, _REPEATS: _repeat(small, Path(scratch) / "large", times=_REPEATS)}
        for name, case in _cases().items():
            if name != "mds" or _has_mds():
                yield from _measure(name, case, runs[case.repeats], Path(scratch))


def _measure(name: str, case: _Case, run: RunFolder, scratch: Path) -> Iterator[Measure]:
    export = Export(format=name, pictures=_PICTURES)
    out, copy, plain = scratch / "out", scratch / "copy", scratch / "plain"
    _export(run, export, out)
    works: list[Callable[[], object]] = [
        partial(_export, run, export, out),
        partial(_copy, out, copy),
        case.bound(run, out, copy),
    ]
    works += [partial(_afresh, case.plain, run, plain)] if case.plain else []
    export_s, copy_s, bound_s, *plain_s = in_turns(*works)
    size_mb = sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) / 1e6
    share = copy_s / export_s
    yield Measure(f"{name}: {size_mb:,.3g} MB written", size_mb / export_s, "MB/s", "", None)
    yield Measure(f"{name}: of the speed of a copy", 100 * share, "%", "≥ 50", share >= 0.5)
    yield Measure(f"{name}: {case.bound_by}, of its time", 100 * bound_s / export_s, "%", "", None)
    for seconds in plain_s:
        yield Measure(f"{name}: against a plain loop", seconds / export_s, "×", "", None)


def _cases() -> dict[str, _Case]:
    jpeg, png = "decoding JPEG and mask, encoding JPEG", "decoding JPEG and mask, deflating PNG"
    copied = partial(_Case, "a copy with SHA-256 of what is read, written", _hashed_copy, repeats=_REPEATS)
    masks = "decoding masks, run lengths"
    as_they_are = partial(_plain_tar, make=lambda pair: {k: v for k, v in pair.items() if not k.startswith("__")})
    return {
        "webdataset": copied(as_they_are),
        "openclip": _Case(jpeg, partial(_codecs, image_format="jpg"), partial(_plain_tar, make=_plain_masked)),
        "ovseg": _Case(png, partial(_codecs, image_format="png"), _plain_files),
        "ovseg-shards": _Case(png, partial(_codecs, image_format="png"), partial(_plain_tar, make=_plain_keyed)),
        "alpha-clip": _Case(masks, partial(_run_lengths, whole=False), partial(_plain_tar, make=_plain_alpha)),
        "energon": copied(as_they_are),
        "coco": _Case(masks, partial(_run_lengths, whole=True), _plain_coco),
        "hf": copied(_plain_rows),
        "mds": copied(),
        "parquet": _Case("reading and writing Parquet", _parquet, repeats=_REPEATS),
    }


# What bounds a form.


def _hashed_copy(run: RunFolder, out: Path, copy: Path) -> Callable[[], object]:
    def work() -> None:
        _copy(out, copy)
        for path in chain(Path(run.path("shards")).glob("*.tar"), copy.rglob("*")):
            if path.is_file():
                with path.open("rb") as file:
                    hashlib.file_digest(file, "sha256")

    return work


def _codecs(run: RunFolder, out: Path, _: Path, *, image_format: ImageFormat) -> Callable[[], object]:
    """Decode what is stored, encode what was exported."""
    paths = sorted(out.rglob("*.tar"))
    files = chain.from_iterable(map(_tar_members, paths)) if paths else ((p.name, p.read_bytes()) for p in _pngs(out))
    made = {name: Image.open(io.BytesIO(content)) for name, content in files if name.endswith(image_format)}
    pairs = [(sample, made[f"{sample.row.key}.{image_format}"].convert("RGB")) for sample in _samples(run)]

    def one(pair: tuple[StoredSample, Image.Image]) -> None:
        decode(pair[0])
        _PICTURES.encode(pair[1], image_format)

    return lambda: list(map_in_order(one, pairs, threads=_PICTURES.threads))


def _run_lengths(run: RunFolder, *_: Path, whole: bool) -> Callable[[], object]:
    samples = _samples(run)

    def one(sample: StoredSample) -> Mask:
        return Mask.from_array(_in_photograph(sample) if whole else decode_mask(sample))

    return lambda: list(map(one, samples))


def _in_photograph(sample: StoredSample) -> np.ndarray[Any, Any]:
    record, (x0, y0, x1, y1) = sample.record, sample.row.crop_xyxy
    mask_HW = np.zeros((record["height_px"], record["width_px"]), np.uint8, order="F")
    mask_HW[y0:y1, x0:x1] = decode_mask(sample)
    return mask_HW


def _parquet(run: RunFolder, _: Path, copy: Path) -> Callable[[], object]:
    paths = sorted(Path(run.path("shards")).glob("*.parquet"))
    target = copy.with_suffix(".parquet")
    return lambda: pq.write_table(pa.concat_tables(map(pq.read_table, paths)), target, compression="zstd")


def _samples(run: RunFolder) -> list[StoredSample]:
    with RunReader(run, read_finished(run)) as reader:
        tables = (table.drop_columns(["split"]) for table in reader.tables(Selection()))
        return [reader.read(row) for table in tables for row in from_table(table, SampleRow)]


def _tar_members(path: Path) -> Iterator[tuple[str, bytes]]:
    import tarfile

    with tarfile.open(path) as tar:
        for info in tar:
            file = tar.extractfile(info)
            yield info.name, file.read() if file else b""


def _pngs(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.png"))


# What a user would write.


def _afresh(work: Callable[[RunFolder, Path], None], run: RunFolder, out: Path) -> None:
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    work(run, out)


def _stored_pairs(run: RunFolder) -> Any:
    import webdataset

    tars = sorted(map(str, Path(run.path("shards")).glob("*.tar")))
    return webdataset.WebDataset(tars, shardshuffle=False)


def _plain_tar(run: RunFolder, out: Path, *, make: Callable[[Pair], Pair]) -> None:
    import webdataset

    with webdataset.TarWriter(str(out / "plain.tar")) as writer:
        for pair in _stored_pairs(run):
            writer.write({"__key__": pair["__key__"], **make(pair)})


def _plain_files(run: RunFolder, out: Path) -> None:
    for pair in _stored_pairs(run):
        (out / f"{pair['__key__']}.png").write_bytes(_plain_keyed(pair)["png"])


def _plain_masked(pair: Pair) -> Pair:
    buffer = io.BytesIO()
    _plain_cut(pair, CLIP_MEAN_PX).save(buffer, "JPEG", quality=_PICTURES.quality)
    return {"jpg": buffer.getvalue(), "txt": pair["txt"], "json": pair["json"]}


def _plain_keyed(pair: Pair) -> Pair:
    buffer = io.BytesIO()
    _plain_cut(pair, KEY_COLOUR).save(buffer, "PNG")
    return {"png": buffer.getvalue(), "txt": pair["txt"]}


def _plain_cut(pair: Pair, colour: tuple[int, int, int]) -> Image.Image:
    box = json.loads(pair["json"])["box_crop_xyxy"]
    image, mask = (Image.open(io.BytesIO(pair[name])).crop(box) for name in ("jpg", "mask.png"))
    return Image.composite(image, Image.new("RGB", image.size, colour), mask)


def _plain_alpha(pair: Pair) -> Pair:
    mask_HW = np.array(Image.open(io.BytesIO(pair["mask.png"]))) // 255
    record = json.loads(pair["json"])
    references = {"caption": record["caption"], "ref_exps": [[record["start"], record["end"], record["similarity"]]]}
    return {
        "jpg": pair["jpg"],
        "txt": pair["txt"],
        "json": json.dumps({**references, "seudo_masks": [_plain_run_lengths(mask_HW)]}),
    }


def _plain_coco(run: RunFolder, out: Path) -> None:
    annotations = []
    for pair in _stored_pairs(run):
        record = json.loads(pair["json"])
        x0, y0, x1, y1 = record["crop_xyxy"]
        mask_HW = np.zeros((record["height_px"], record["width_px"]), np.uint8)
        mask_HW[y0:y1, x0:x1] = np.array(Image.open(io.BytesIO(pair["mask.png"]))) // 255
        annotations.append({"image_id": record["image_id"], "segmentation": _plain_run_lengths(mask_HW)})
    (out / "plain.json").write_text(json.dumps({"annotations": annotations}))


def _plain_run_lengths(mask_HW: np.ndarray[Any, Any]) -> dict[str, Any]:
    encoded = coco_mask.encode(np.asfortranarray(mask_HW))
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


def _plain_rows(run: RunFolder, out: Path) -> None:
    rows = [
        {"image": {"bytes": p["jpg"]}, "mask": {"bytes": p["mask.png"]}, "text": p["txt"].decode()}
        | json.loads(p["json"])
        for p in _stored_pairs(run)
    ]
    pq.write_table(pa.Table.from_pylist(rows), out / "plain.parquet", row_group_size=100)


# The runs, and their copies.


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
    _finish(run, entries, images=len(items))
    return run


def _repeat(run: RunFolder, folder: Path, *, times: int) -> RunFolder:
    """A run whose shards are those of another, each some times."""
    large, entries = RunFolder(str(folder)), []
    (folder / "shards").mkdir(parents=True)
    for number, entry in enumerate(read_finished(run).shards * times):
        name = f"{number:05d}"
        os.link(run.path("shards", entry.name), folder / "shards" / f"{name}.tar")
        table = run.read_table("shards", entry.name.replace(".tar", ".parquet"))
        column = table.column_names.index("shard")
        table = table.set_column(column, "shard", pa.array([f"{name}.tar"] * len(table)))
        large.write_table("shards", f"{name}.parquet", table=table, row_type=SampleRow, fingerprint="")
        sha256 = hashlib.sha256(large.read_bytes("shards", f"{name}.parquet")).hexdigest()
        entries.append(entry.model_copy(update={"name": f"{name}.tar", "index_sha256": sha256}))
    _finish(large, entries, images=sum(entry.images for entry in entries))
    return large


def _finish(run: RunFolder, entries: Sequence[ShardEntry], *, images: int) -> None:
    totals = Totals(
        images=images,
        with_pairs=images,
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


def _has_mds() -> bool:
    from importlib.util import find_spec

    return find_spec("streaming") is not None
