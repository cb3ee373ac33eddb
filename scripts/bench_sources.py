"""Caption sources: how fast each is read, how much memory a plan takes, and a plan at the scale of the internet.

Each figure of memory is that of a process of its own.
"""

from __future__ import annotations

import csv
import io
import json
import os
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from mining.caption_entries import NOTHING_MORE, as_tables
from mining.captions import AnySource, CocoCaptions
from mining.source_files import SourceFile
from mining.source_pictures import Folder, HuggingFace
from mining.source_tables import TableCaptions
from mining.source_tars import Img2dataset
from pipelines.grid import plan_stages
from pipelines.plan import make_plan
from pipelines.run_folder import RunFolder
from pipelines.settings import Mining, parse_mining
from schemas.settings import Settings
from scripts.measures import Measure

ROWS, MANY_ROWS = 200_000, 2_000_000
PICTURES = 10_000
PLANNED = (1_000_000, 10_000_000)
_COLUMNS = ("id", "path", "caption")
_ENTRY = tuple[str, str, str]


def bench_sources() -> Iterator[Measure]:
    """Rows a second of each source, and the memory of planning ten times as many rows."""
    with tempfile.TemporaryDirectory(prefix="maskmine-bench-") as folder:
        for name, source in _sources(Path(folder)):
            begin = time.perf_counter()
            rows = sum(len(table) for table in source.read(images_per_part=1000))
            yield Measure(f"{name}: read", rows / (time.perf_counter() - begin), "rows/s", "", None)
    with tempfile.TemporaryDirectory(prefix="maskmine-bench-") as folder:
        for kind in ("jsonl", "csv", "parquet"):
            peaks = []
            for rows in (ROWS, MANY_ROWS):
                file = _write_table(Path(folder), kind, rows)
                measured = _in_own_process("table", kind, str(file), f"{folder}/run-{kind}-{rows}")
                peaks.append(measured["peak_bytes"])
                yield Measure(f"{kind}: plan of {rows:,} rows", rows / measured["plan_s"], "rows/s", "", None)
                yield Measure(f"{kind}: peak memory, {rows:,} rows", measured["peak_bytes"] / 1e6, "MB", "", None)
                file.unlink()
            ratio = peaks[1] / peaks[0]
            yield Measure(f"{kind}: memory of ten times the rows", ratio, "×", "≤ 1.15", ratio <= 1.15)


def bench_planning(sizes: Sequence[int] = PLANNED) -> Iterator[Measure]:
    """Generated images with a caption each, cut into parts of 10,000, listed, and planned again from what is there."""
    for images in sizes:
        with tempfile.TemporaryDirectory(prefix="maskmine-bench-") as folder:
            measured = _in_own_process("generated", str(images), f"{folder}/run")
        of = f"{images:,} images"
        yield Measure(f"{of}: plan", images / measured["plan_s"], "images/s", "", None)
        yield Measure(f"{of}: plan", measured["plan_s"] / 60, "min", "", None)
        yield Measure(f"{of}: listed and resumed", measured["resume_s"], "s", "", None)
        yield Measure(f"{of}: on the disk", measured["size_bytes"] / images, "bytes/image", "", None)
        peak_bytes = measured["peak_bytes"]
        yield Measure(f"{of}: peak memory", peak_bytes / 1e6, "MB", "< 1000", peak_bytes < 1e9)


class Generated(Settings):
    """`files` captioned images that are in no file: ids, paths and captions as long as those of web data."""

    kind: Literal["generated"] = "generated"
    name: str | None = None
    files: str
    per_image: int = 1

    @property
    def place(self) -> str:
        """What messages call the source."""
        return f"{self.files} generated images"

    @property
    def root(self) -> str:
        """The folder that paths are told from."""
        return "/web"

    def list_files(self) -> list[SourceFile]:
        """There are none."""
        return []

    def check(self) -> None:
        """Nothing can be missing."""

    def read(self, *, images_per_part: int) -> Iterator[pa.Table]:
        """The entries."""
        return as_tables(
            (image_id, f"/web/{path}", None, n, caption, NOTHING_MORE)
            for n, (image_id, path, caption) in enumerate(_rows(int(self.files)))
        )


def _rows(count: int) -> Iterator[_ENTRY]:
    """Ids, paths and captions: 9 to 12 words of a thousand."""
    words = [f"{a}{b}{c}" for a in "bcdfglmnrt" for b in ("a", "ee", "o", "ou") for c in ("k", "sh", "rd", "ll", "n")]
    for n in range(count):
        chosen = [words[(n * 31 + k * k * 17 + n // 7) % len(words)] for k in range(9 + n % 4)]
        yield f"{n:012d}", f"{n % 4096:04d}/{n:012d}.jpg", f"A {' '.join(chosen)}."


def _sources(folder: Path) -> Iterator[tuple[str, AnySource]]:
    for kind in ("jsonl", "csv", "tsv", "parquet"):
        yield kind, _table_source(kind, str(_write_table(folder, kind, ROWS)))
    tree = {
        "images": [{"id": n, "file_name": path} for n, (_, path, _) in enumerate(_rows(ROWS))],
        "annotations": [{"id": n, "image_id": n, "caption": c} for n, (_, _, c) in enumerate(_rows(ROWS))],
    }
    (folder / "captions.json").write_text(json.dumps(tree))
    yield "coco", CocoCaptions(annotations=str(folder / "captions.json"), images=str(folder))
    picture = io.BytesIO()
    Image.new("RGB", (64, 48)).save(picture, "JPEG")
    jpeg = picture.getvalue()
    (folder / "tars").mkdir()
    _write_tar(folder / "tars" / "00000.tar", jpeg)
    yield "img2dataset", Img2dataset(kind="img2dataset", files=str(folder / "tars"))
    rows = list(_rows(PICTURES))
    images = pa.array([{"bytes": jpeg, "path": path} for _, path, _ in rows])
    table = pa.table({"image": images, "caption": [caption for *_, caption in rows]})
    pq.write_table(table, folder / "hf.parquet", row_group_size=100)
    yield "hf", HuggingFace(kind="hf", files=str(folder / "hf.parquet"))
    (folder / "pictures").mkdir()
    for image_id, _, caption in rows:
        (folder / "pictures" / f"{image_id}.jpg").write_bytes(jpeg)
        (folder / "pictures" / f"{image_id}.txt").write_text(caption)
    yield "folder", Folder(kind="folder", files=str(folder / "pictures"))


def _table_source(kind: str, file: str) -> TableCaptions:
    return TableCaptions.model_validate({"kind": kind, "files": file, "id_col": "id", "path_col": "path"})


def _write_table(folder: Path, kind: str, count: int) -> Path:
    path = folder / f"{kind}-{count}.{kind}"
    if kind == "parquet":
        schema = pa.schema([(name, pa.string()) for name in _COLUMNS])
        with pq.ParquetWriter(path, schema) as writer:
            rows = _rows(count)
            for _ in range(-(-count // 50_000)):
                some = [row for _, row in zip(range(50_000), rows, strict=False)]
                writer.write_table(pa.table([list(column) for column in zip(*some, strict=True)], schema=schema))
        return path
    with path.open("w", newline="") as file:
        if kind == "jsonl":
            file.writelines(json.dumps(dict(zip(_COLUMNS, row, strict=True))) + "\n" for row in _rows(count))
        else:
            table = csv.writer(file, delimiter="\t" if kind == "tsv" else ",")
            table.writerow(_COLUMNS)
            table.writerows(_rows(count))
    return path


def _write_tar(path: Path, jpeg: bytes) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for image_id, _, caption in _rows(PICTURES):
            for suffix, content in (("jpg", jpeg), ("txt", caption.encode()), ("json", b"{}")):
                info = tarfile.TarInfo(f"{image_id}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def _in_own_process(*arguments: str) -> dict[str, float]:
    """What a new process measures of itself."""
    command = [sys.executable, "-m", "scripts.bench_sources", *arguments]
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
    """Seconds of a plan and of a second start, peak memory of this process, bytes on the disk."""
    settings = _settings(out, images_per_part=images_per_part).model_copy(update={"captions": source})
    run = RunFolder(out)
    begin = time.perf_counter()
    make_plan(run, settings)
    plan_s = time.perf_counter() - begin
    begin = time.perf_counter()
    plan = make_plan(run, settings)
    left = sum(len(stage.todo(run)) for stage in plan_stages(run, plan, settings))
    resume_s = time.perf_counter() - begin
    if left != 4 * plan.parts + 1:
        raise AssertionError(f"{left} cells to make, of {plan.parts} parts")
    size_bytes = sum(os.path.getsize(os.path.join(folder, name)) for folder, _, names in os.walk(out) for name in names)
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"plan_s": plan_s, "resume_s": resume_s, "peak_bytes": peak_bytes, "size_bytes": size_bytes}


def _main(what: str, *arguments: str) -> None:
    kinds: dict[str, Callable[..., dict[str, float]]] = {
        "table": lambda kind, file, out: _measure(_table_source(kind, file), out, images_per_part=10_000),
        "generated": lambda images, out: _measure(Generated(files=images), out, images_per_part=10_000),
    }
    print(json.dumps(kinds[what](*arguments)))


if __name__ == "__main__":
    _main(*sys.argv[1:])
