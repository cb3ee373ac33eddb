"""One set of captioned pictures in every wrapping that a caption source reads."""

from __future__ import annotations

import csv
import gzip
import io
import json
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from maskmine.pipelines.planning.plan import Plan, make_plan
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.pipelines.settings.mining import load_mining
from maskmine.schemas.rows import CaptionsRow, ImageRow
from tests.support import toy

Wrap = Callable[[Path, Sequence["Captioned"]], dict[str, Any]]


@dataclass(frozen=True)
class Captioned:
    """A picture as a file's bytes, None where there is none; its id, without slashes and dots, and its captions."""

    id: str
    picture: bytes | None
    captions: tuple[str, ...]
    suffix: str = "jpg"


def wrap_coco(folder: Path, images: Sequence[Captioned]) -> dict[str, Any]:
    save_pictures(folder / "images", images)
    listed = [{"id": image.id, "file_name": f"{image.id}.{image.suffix}"} for image in images]
    said = [
        {"id": 10 * n + m, "image_id": image.id, "caption": caption}
        for n, image in enumerate(images)
        for m, caption in enumerate(image.captions)
    ]
    (folder / "captions.json").write_text(json.dumps({"images": listed, "annotations": said}))
    return {"kind": "coco", "annotations": str(folder / "captions.json"), "images": str(folder / "images")}


def wrap_jsonl(folder: Path, images: Sequence[Captioned]) -> dict[str, Any]:
    """Zipped, a row an image with its list of captions, paths from an image folder elsewhere."""
    save_pictures(folder / "photos", images)
    rows = [{"key": i.id, "file": f"{i.id}.{i.suffix}", "texts": list(i.captions)} for i in images]
    (folder / "list").mkdir()
    (folder / "list" / "a.jsonl.gz").write_bytes(gzip.compress("".join(json.dumps(r) + "\n" for r in rows).encode()))
    columns = {"id_col": "key", "path_col": "file", "caption_col": "texts"}
    return {"kind": "jsonl", "files": str(folder / "list"), "images": str(folder / "photos"), **columns}


def wrap_csv(folder: Path, images: Sequence[Captioned]) -> dict[str, Any]:
    return _wrap_text(folder, images, kind="csv", delimiter=",")


def wrap_tsv(folder: Path, images: Sequence[Captioned]) -> dict[str, Any]:
    return _wrap_text(folder, images, kind="tsv", delimiter="\t")


def wrap_parquet(folder: Path, images: Sequence[Captioned]) -> dict[str, Any]:
    """Two files, a row a caption."""
    save_pictures(folder, images)
    rows = _rows(images)
    for n, some in enumerate((rows[: len(rows) // 2], rows[len(rows) // 2 :])):
        columns = [[row[c] for row in some] for c in range(3)]
        table = pa.table(columns, names=["image_id", "image_path", "caption"])
        pq.write_table(table, folder / f"part-{n}.parquet")
    return {
        "kind": "parquet",
        "files": str(folder / "part-*.parquet"),
        "id_col": "image_id",
        "path_col": "image_path",
    }


def wrap_img2dataset(folder: Path, images: Sequence[Captioned]) -> dict[str, Any]:
    """Tars of five samples with a caption in the .txt, all captions in the .json, and img2dataset's Parquet."""
    folder.mkdir(parents=True, exist_ok=True)
    for n in range(0, len(images), 5):
        some = images[n : n + 5]
        members: list[tuple[str, bytes]] = []
        for image in some:
            if image.picture is not None:
                members.append((f"{image.id}.{image.suffix}", image.picture))
            members.append((f"{image.id}.json", json.dumps({"key": image.id, "captions": image.captions}).encode()))
            members.append((f"{image.id}.txt", (image.captions or ("",))[0].encode("utf-8", "replace")))
        (folder / f"{n // 5:05d}.tar").write_bytes(tar_of(members))
        keys = [image.id for image in some]
        table = pa.table({"key": keys, "status": ["success"] * len(some)})
        pq.write_table(table, folder / f"{n // 5:05d}.parquet")
    return {"kind": "img2dataset", "files": str(folder), "caption_col": "captions"}


def wrap_hf(folder: Path, images: Sequence[Captioned]) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    image = pa.array(
        [{"bytes": i.picture, "path": f"{i.id}.jpg"} for i in images],
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    )
    table = pa.table({"image": image, "key": [i.id for i in images], "caption": [list(i.captions) for i in images]})
    pq.write_table(table, folder / "train-00000-of-00001.parquet", row_group_size=2)
    return {"kind": "hf", "files": str(folder), "id_col": "key"}


def wrap_folder(folder: Path, images: Sequence[Captioned]) -> dict[str, Any]:
    save_pictures(folder, images)
    for image in images:
        (folder / f"{image.id}.txt").write_text("\n".join(image.captions), encoding="utf-8", errors="replace")
    return {"kind": "folder", "files": str(folder)}


def wrap_run(folder: Path, images: Sequence[Captioned]) -> dict[str, Any]:
    """An earlier run, of which no more than the plan was made."""
    captions = {**wrap_coco(folder, images), "per_image": "all"}
    settings = load_mining(str(toy.write_config(folder, captions=captions)))
    make_plan(RunFolder(settings.out), settings)
    return {"kind": "run", "files": settings.out, "per_image": 1}


WRAPPINGS: Mapping[str, Wrap] = {
    "coco": wrap_coco,
    "jsonl": wrap_jsonl,
    "csv": wrap_csv,
    "tsv": wrap_tsv,
    "parquet": wrap_parquet,
    "img2dataset": wrap_img2dataset,
    "hf": wrap_hf,
    "folder": wrap_folder,
    "run": wrap_run,
}


def save_pictures(folder: Path, images: Sequence[Captioned]) -> None:
    """Write the pictures as `ID.jpg` and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    for image in images:
        if image.picture is not None:
            (folder / f"{image.id}.{image.suffix}").write_bytes(image.picture)


def tar_of(members: Sequence[tuple[str, bytes] | tarfile.TarInfo], **options: Any) -> bytes:
    """A tar of named contents, or of bare headers."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", **options) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            tar.addfile(info, io.BytesIO(member[1]))
    return buffer.getvalue()


def _rows(images: Sequence[Captioned]) -> list[tuple[str, str, str]]:
    """A row for each caption, and one for an image without."""
    return [
        (image.id, f"{image.id}.{image.suffix}", caption) for image in images for caption in (image.captions or ("",))
    ]


def _wrap_text(folder: Path, images: Sequence[Captioned], *, kind: str, delimiter: str) -> dict[str, Any]:
    """A row a caption, after a byte order mark as Excel writes it; paths from the folder of the table."""
    save_pictures(folder, images)
    with (folder / f"captions.{kind}").open("w", encoding="utf-8-sig", newline="", errors="replace") as file:
        rows = csv.writer(file, delimiter=delimiter)
        rows.writerow(("key", "image_path", "caption"))
        rows.writerows(_rows(images))
    return {"kind": kind, "files": str(folder / f"captions.{kind}"), "id_col": "key", "path_col": "image_path"}


def config_of(folder: Path, captions: Any, regions: dict[str, Any] | None = None, **changes: Any) -> Path:
    """A configuration of some sources; without regions one that is only good for planning."""
    regions = regions or {"proposals": {"kind": "ground_truth", "annotations": "none.json"}, "clip": None}
    return toy.write_config(folder, captions=captions, regions=regions, **changes)


def planned(config: Path, *overrides: str, limit: int | None = None) -> tuple[Plan, list[ImageRow], list[CaptionsRow]]:
    """The plan of a configuration and what it wrote."""
    settings = load_mining(str(config), overrides=overrides)
    run = RunFolder(settings.out)
    plan = make_plan(run, settings, limit=limit)
    names = [f"{part:05d}.parquet" for part in range(plan.parts)]
    images = [row for name in names for row in run.read_rows("images", name, row_type=ImageRow)]
    return plan, images, [row for name in names for row in run.read_rows("captions", name, row_type=CaptionsRow)]
