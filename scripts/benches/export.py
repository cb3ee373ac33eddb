"""How fast exports are written: against copying the same bytes, against a plain loop, and what bounds them.

A form that copies images is bound by the disk and by SHA-256; one that makes new images by their codecs, which take
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

from maskmine.mining.exports.filters import Selection
from maskmine.mining.exports.images import CLIP_MEAN_PX, Pictures, decode, decode_mask
from maskmine.mining.exports.tars import KEY_COLOUR
from maskmine.mining.storage.prefetch import map_in_order
from maskmine.pipelines.dataset.finished_run import FinishedRun
from maskmine.pipelines.engines.engine import RunObserver
from maskmine.pipelines.engines.local import LocalEngine
from maskmine.pipelines.export.export import Export, export_run
from maskmine.pipelines.export.reader import RunReader
from maskmine.pipelines.mine import mine
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.pipelines.settings.mining import parse_mining
from maskmine.schemas.mask import Mask
from maskmine.schemas.rows import SampleRow
from maskmine.schemas.sample import ImageFormat, StoredSample
from maskmine.schemas.tables import from_table
from maskmine.scripts.benches.fixtures import drawn_photos
from maskmine.scripts.benches.shards import ellipse_masks
from maskmine.scripts.measures import Measure, in_turns

_PICTURES = Pictures(threads=os.cpu_count() or 2)
_SHARDS = 4
_NOUNS = ("dog", "cat", "horse", "bird", "tree", "car")
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


def bench_exports(photos: Sequence[Path]) -> Iterator[Measure]:
    """MB/s of each export of about a thousand pairs, as a share of a plain copy of what it wrote, and its bounds.

    Export and copy sync every file to the disk; plain loops are one process that syncs nothing. MosaicML's writer is
    measured where it is installed.
    """
    with tempfile.TemporaryDirectory() as scratch:
        paths = list(photos) or drawn_photos(Path(scratch))
        print("  mining", flush=True)
        runs = {times: _mine(paths, Path(scratch) / f"run-{times}", images=160 * times) for times in (1, _REPEATS)}
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
    yield Measure(f"{name}: {size_mb:,.3g} MB written", size_mb / export_s, "MB/s")
    yield Measure(f"{name}: of the speed of a copy", 100 * share, "%", "≥ 50", share >= 0.5)
    yield Measure(f"{name}: {case.bound_by}, of its time", 100 * bound_s / export_s, "%")
    for seconds in plain_s:
        yield Measure(f"{name}: against a plain loop", seconds / export_s, "×")


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
    with RunReader(FinishedRun.open_published(run)) as reader:
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
        copied = target / path.relative_to(source)
        if path.is_dir():
            copied.mkdir(parents=True)
            continue
        copied.parent.mkdir(parents=True, exist_ok=True)
        with path.open("rb") as read, copied.open("wb") as written:
            shutil.copyfileobj(read, written, 1 << 20)
            written.flush()
            os.fsync(written.fileno())


def _mine(paths: Sequence[Path], folder: Path, *, images: int) -> RunFolder:
    """A finished run of photographs, listed again until there are `images`, with a noun for each of some ellipses."""
    folder.mkdir()
    listed, captions, objects = list[Pair](), list[Pair](), list[Pair]()
    for image_id in range(images):
        for number, mask in enumerate(ellipse_masks(paths[image_id % len(paths)], seed=image_id, count=len(_NOUNS))):
            size_hw, (x0, y0, x1, y1) = [mask.height_px, mask.width_px], mask.box_xyxy
            objects.append(
                {
                    "id": len(objects),
                    "image_id": image_id,
                    "category_id": number,
                    "segmentation": {"size": size_hw, "counts": mask.counts.decode()},
                    "area": mask.area_px,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "iscrowd": 0,
                }
            )
        captions.append({"id": image_id, "image_id": image_id, "caption": ", ".join(f"a {noun}" for noun in _NOUNS)})
        listed.append(
            {"id": image_id, "file_name": paths[image_id % len(paths)].name, "height": size_hw[0], "width": size_hw[1]}
        )
    categories = [{"id": number, "name": noun} for number, noun in enumerate(_NOUNS)]
    head = {"images": listed, "categories": categories}
    for name, of_images in (("captions", captions), ("instances", objects)):
        (folder / f"{name}.json").write_text(json.dumps({**head, "annotations": of_images}))
    tree = {
        "captions": {"kind": "coco", "annotations": str(folder / "captions.json"), "images": str(paths[0].parent)},
        "regions": {
            "proposals": {"kind": "ground_truth", "annotations": str(folder / "instances.json")},
            "keep": {"min_score": 0.0, "min_area_px": 1, "max_area_ratio": 1.0, "max_iou": 1.0},
            "clip": None,
        },
        "pairs": {"rule": "labels"},
        "shards": {"images_per_part": -(-images // _SHARDS)},
        "out": str(folder / "mined"),
    }
    mine(parse_mining(tree, place="bench"), engine=LocalEngine(), observer=RunObserver())
    return RunFolder(str(folder / "mined"))


def _has_mds() -> bool:
    from importlib.util import find_spec

    return find_spec("streaming") is not None
