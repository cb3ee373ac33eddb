"""Caption sources: how fast each is read, how much memory a plan takes, and a plan at the scale of the internet.

Each figure of memory is that of a process of its own.
"""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from maskmine.mining.captions import AnySource
from maskmine.mining.sources.coco import CocoCaptions
from maskmine.mining.sources.entries import ENTRIES, NOTHING_MORE
from maskmine.mining.sources.files import SourceFile
from maskmine.mining.sources.hugging_face import HuggingFace
from maskmine.mining.sources.image_folder import Folder
from maskmine.mining.sources.tables import TableCaptions
from maskmine.mining.sources.webdataset import Img2dataset
from maskmine.mining.storage.bounded.limits import USUAL, Limits
from maskmine.pipelines.planning.plan import make_plan
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.pipelines.settings.mining import Mining, parse_mining
from maskmine.pipelines.steps.grid import plan_steps
from maskmine.pipelines.steps.identity import identify
from maskmine.schemas.settings import Settings
from maskmine.scripts.measures import Measure, peak_bytes

ROWS, MANY_ROWS = 200_000, 2_000_000
IMAGES = 10_000
PLANNED = 2_000_000
_KINDS = ("jsonl", "csv", "parquet", "coco")
_AT_ONCE_ROWS = 10_000
_MEMORY_GOAL = "< 1000"  # MB: the process, and the 512 MB that DuckDB sorts in
_SOUNDS = (
    ("b", "c", "d", "f", "g", "l", "m", "n", "r", "t"),
    ("a", "ai", "e", "ea", "ee", "i", "o", "oa", "ou", "u"),
    ("ck", "g", "k", "ll", "mp", "n", "rd", "sh", "st", "t"),
)
_COLUMNS = ("id", "path", "caption")
_ENTRY = tuple[str, str, str]


def bench_sources() -> Iterator[Measure]:
    """Rows that each source gives in a second of a core, and the memory of planning ten times as many rows."""
    with tempfile.TemporaryDirectory(prefix="maskmine-bench-") as folder:
        for name, source in _sources(Path(folder)):
            begin = time.process_time()
            rows = sum(len(table) for table in source.read(images_per_part=1000))
            yield Measure(f"{name}: read", rows / (time.process_time() - begin), "rows/CPU s")
    with tempfile.TemporaryDirectory(prefix="maskmine-bench-") as folder:
        for kind in _KINDS:
            for rows in (ROWS, MANY_ROWS):
                file = _write_captions(Path(folder), kind, rows)
                measured = _in_own_process("file", kind, str(file), f"{folder}/run-{kind}-{rows}")
                peak_bytes = measured["peak_bytes"]
                yield Measure(f"{kind}: plan of {rows:,} rows", rows / measured["cpu_s"], "rows/CPU s")
                yield Measure(
                    f"{kind}: peak memory, {rows:,} rows", peak_bytes / 1e6, "MB", _MEMORY_GOAL, peak_bytes < 1e9
                )
                file.unlink()


def bench_planning(images: int = PLANNED) -> Iterator[Measure]:
    """Generated images with a caption each, cut into parts of 10,000, planned again from what is there, and listed."""
    with tempfile.TemporaryDirectory(prefix="maskmine-bench-") as folder:
        measured = _in_own_process("generated", str(images), f"{folder}/run")
    yield Measure(f"{images:,} images", measured["parts"], "parts")
    yield Measure("plan", measured["cpu_s"], "CPU s")
    yield Measure("plan", images / measured["cpu_s"], "images/CPU s")
    yield Measure("plan", measured["plan_s"], "s")
    yield Measure("a second run finds the plan", measured["resume_s"], "s")
    yield Measure("it lists the cells that are not made", measured["list_s"], "s")
    yield Measure("plan on the disk", measured["size_bytes"] / images, "bytes/image")
    peak_bytes = measured["peak_bytes"]
    yield Measure("peak memory", peak_bytes / 1e6, "MB", _MEMORY_GOAL, peak_bytes < 1e9)


class Generated(Settings):
    """Captioned images that are in no file: ids, paths and captions as long as those of web data."""

    kind: Literal["generated"] = "generated"
    """A source made by the bench."""
    name: str | None = None
    """Name of the source."""
    files: str
    """How many images are generated, as digits."""
    per_image: int = 1
    """Captions of each image."""

    @property
    def location(self) -> str:
        """What messages call the source."""
        return f"{self.files} generated images"

    @property
    def root(self) -> str:
        """The folder that paths are relative to."""
        return "/web"

    def list_files(self) -> list[SourceFile]:
        """There are none."""
        return []

    def check(self) -> None:
        """Nothing can be missing."""

    def read(self, *, images_per_part: int, limits: Limits = USUAL) -> Iterator[pa.Table]:
        """The entries."""
        for number, rows in enumerate(_generated(int(self.files))):
            first = number * _AT_ONCE_ROWS
            yield pa.table(
                [
                    rows["id"],
                    pc.binary_join_element_wise("/web/", rows["path"], ""),
                    pa.nulls(len(rows), pa.int64()),
                    pa.array(np.arange(first, first + len(rows))),
                    rows["caption"],
                    pa.repeat(NOTHING_MORE, len(rows)),
                ],
                schema=ENTRIES,
            )


def _generated(count: int) -> Iterator[pa.Table]:
    """Ids, paths and captions of 10 to 13 words, most of them of a thousand, some thousands of rows at a time."""
    words = pa.array([f"{a}{b}{c}" for a in _SOUNDS[0] for b in _SOUNDS[1] for c in _SOUNDS[2]])
    for start in range(0, count, _AT_ONCE_ROWS):
        numbers = np.arange(start, min(start + _AT_ONCE_ROWS, count))
        lengths = 9 + numbers % 4
        ends = np.cumsum(lengths)
        positions = np.arange(ends[-1]).astype(np.uint64) + np.uint64(12 * start)
        mixed = positions * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ mixed >> np.uint64(29)) * np.uint64(0xBF58476D1CE4E5B9) >> np.uint64(32)
        chosen = words.take(pa.array(mixed % np.uint64(len(words))))
        sentences = pa.ListArray.from_arrays(pa.array(np.append(0, ends), pa.int32()), chosen)
        ids = pc.utf8_lpad(pa.array(numbers).cast(pa.string()), 12, "0")
        folders = pc.utf8_lpad(pa.array(numbers % 4096).cast(pa.string()), 4, "0")
        paths = pc.binary_join_element_wise(folders, "/", ids, ".jpg", "")
        captions = pc.binary_join_element_wise("A ", pc.binary_join(sentences, " "), ".", "")
        yield pa.table([ids, paths, captions], names=list(_COLUMNS))


def _rows(count: int) -> Iterator[_ENTRY]:
    for table in _generated(count):
        yield from zip(*[table[name].to_pylist() for name in _COLUMNS], strict=True)


def _sources(folder: Path) -> Iterator[tuple[str, AnySource]]:
    for kind in ("jsonl", "csv", "tsv", "parquet", "coco"):
        yield kind, _source_of(kind, str(_write_captions(folder, kind, ROWS)))
    buffer = io.BytesIO()
    Image.new("RGB", (64, 48)).save(buffer, "JPEG")
    jpeg = buffer.getvalue()
    (folder / "tars").mkdir()
    _write_tar(folder / "tars" / "00000.tar", jpeg)
    yield "img2dataset", Img2dataset(kind="img2dataset", files=str(folder / "tars"))
    rows = list(_rows(IMAGES))
    images = pa.array([{"bytes": jpeg, "path": path} for _, path, _ in rows])
    table = pa.table({"image": images, "caption": [caption for *_, caption in rows]})
    pq.write_table(table, folder / "hf.parquet", row_group_size=100)
    yield "hf", HuggingFace(kind="hf", files=str(folder / "hf.parquet"))
    (folder / "images").mkdir()
    for image_id, _, caption in rows:
        (folder / "images" / f"{image_id}.jpg").write_bytes(jpeg)
        (folder / "images" / f"{image_id}.txt").write_text(caption)
    yield "folder", Folder(kind="folder", files=str(folder / "images"))


def _source_of(kind: str, file: str) -> CocoCaptions | TableCaptions:
    if kind == "coco":
        return CocoCaptions(annotations=file, images=str(Path(file).parent))
    return TableCaptions.model_validate({"kind": kind, "files": file, "id_col": "id", "path_col": "path"})


def _write_captions(folder: Path, kind: str, count: int) -> Path:
    path = folder / f"{kind}-{count}.{kind}"
    if kind == "parquet":
        with pq.ParquetWriter(path, pa.schema([(name, pa.string()) for name in _COLUMNS])) as writer:
            for table in _generated(count):
                writer.write_table(table)
        return path
    with path.open("w", newline="") as file:
        if kind == "coco":
            file.writelines(_coco_lines(count))
        elif kind == "jsonl":
            file.writelines(json.dumps(dict(zip(_COLUMNS, row, strict=True))) + "\n" for row in _rows(count))
        else:
            table = csv.writer(file, delimiter="\t" if kind == "tsv" else ",")
            table.writerow(_COLUMNS)
            table.writerows(_rows(count))
    return path


def _coco_lines(count: int) -> Iterator[str]:
    """COCO's captions file, an image and an annotation a line."""
    yield '{"images": ['
    for n, (_, path, _) in enumerate(_rows(count)):
        yield ",\n" * (n > 0) + json.dumps({"id": n, "file_name": path})
    yield '],\n"annotations": ['
    for n, (_, _, caption) in enumerate(_rows(count)):
        yield ",\n" * (n > 0) + json.dumps({"id": n, "image_id": n, "caption": caption})
    yield "]}\n"


def _write_tar(path: Path, jpeg: bytes) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for image_id, _, caption in _rows(IMAGES):
            for suffix, content in (("jpg", jpeg), ("txt", caption.encode()), ("json", b"{}")):
                info = tarfile.TarInfo(f"{image_id}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def _in_own_process(*arguments: str) -> dict[str, float]:
    """What a new process measures of itself."""
    command = [sys.executable, "-m", "maskmine.scripts.benches.sources", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured


def _settings(out: str, *, images_per_part: int) -> Mining:
    tree: dict[str, Any] = {
        "captions": {"kind": "jsonl", "files": "none.jsonl", "path_col": "path"},
        "regions": {"proposals": {"kind": "ground_truth", "annotations": "none.json"}, "clip": None},
        "pairs": {"rule": "labels"},
        "shards": {"images_per_part": images_per_part},
        "out": out,
    }
    return parse_mining(tree, place="bench")


def _measure(source: Any, out: str, *, images_per_part: int) -> dict[str, float]:
    """Parts, seconds of a plan and of a second start, peak memory of this process, bytes on the disk."""
    settings = _settings(out, images_per_part=images_per_part).model_copy(update={"captions": source})
    run = RunFolder(out)
    begin, cpu_begin = time.perf_counter(), time.process_time()
    made = make_plan(run, settings)
    plan_s, cpu_s = time.perf_counter() - begin, time.process_time() - cpu_begin
    begin = time.perf_counter()
    plan = make_plan(run, settings)
    resume_s = time.perf_counter() - begin
    if plan != made:
        raise AssertionError("the second run has another plan")
    begin = time.perf_counter()
    left = sum(len(step.todo()) for step in plan_steps(run, plan, settings, identify(settings)))
    list_s = time.perf_counter() - begin
    if left != 4 * plan.parts + 1:
        raise AssertionError(f"{left} cells to make, of {plan.parts} parts")
    size_bytes = sum(os.path.getsize(os.path.join(folder, name)) for folder, _, names in os.walk(out) for name in names)
    return {
        "parts": plan.parts,
        "plan_s": plan_s,
        "cpu_s": cpu_s,
        "resume_s": resume_s,
        "list_s": list_s,
        "peak_bytes": peak_bytes(),
        "size_bytes": size_bytes,
    }


def _main(what: str, *arguments: str) -> None:
    kinds: dict[str, Callable[..., dict[str, float]]] = {
        "file": lambda kind, file, out: _measure(_source_of(kind, file), out, images_per_part=10_000),
        "generated": lambda images, out: _measure(Generated(files=images), out, images_per_part=10_000),
    }
    print(json.dumps(kinds[what](*arguments)))


if __name__ == "__main__":
    _main(*sys.argv[1:])
