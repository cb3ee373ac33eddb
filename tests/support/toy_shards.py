"""Finished shards of shapes in colours, written without mining; what tests read of shards and exports."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from maskmine.mining.exports.filters import Selection, Split
from maskmine.mining.images.encode import encode_mask
from maskmine.pipelines.dataset.finished_run import FinishedRun
from maskmine.pipelines.export.export import Export, export_run
from maskmine.pipelines.export.reader import RunReader
from maskmine.pipelines.run_folder.folder import RunFolder, read_folder
from maskmine.schemas.manifest import Manifest, Totals
from maskmine.schemas.rows import SampleRow
from maskmine.schemas.sample import (
    FORMAT_VERSION,
    RECORD_KEYS,
    WHOLE_VERSION,
    Sample,
    StoredSample,
    index_type,
    member_names,
    record_keys,
    sample_members,
    write_end_of_tar,
    write_members,
    write_sample,
)
from maskmine.schemas.seal import own_metadata
from maskmine.schemas.settings import canonical_json
from maskmine.schemas.shard_entries import ShardEntry
from maskmine.schemas.tables import from_table, to_table, write_parquet

COLOURS = {"cherry": (220, 40, 40), "sky": (60, 90, 230), "leaf": (40, 170, 60), "lemon": (230, 220, 40)}
SIZE_PX = 40


def write_toy_shards(
    folder: Path,
    *,
    nouns: Sequence[str] = tuple(COLOURS),
    samples: int = 24,
    per_shard: int = 10,
    seed: int = 0,
    scores: bool = False,
    confident: bool = False,
    negatives: Mapping[str, Sequence[str]] | None = None,
) -> Path:
    """Write a folder with the shards, indexes and manifest of a finished run: corners in the colours of their nouns.

    With `scores` sample n has a similarity of n / 100, a margin of 1 less that, and, but for sample 0, a lift of
    n / 100 - 0.1 and an evidence of n - 12. Where they are `confident`, it has a confidence of n / 100. `negatives` are
    those of the image of each noun, which make the set one of format version 5.
    """
    rng, version = np.random.default_rng(seed), FORMAT_VERSION if negatives is None else WHOLE_VERSION
    (folder / "shards").mkdir(parents=True)
    entries = []
    for first in range(0, samples, per_shard):
        name = f"{first // per_shard:05d}"
        made = [
            _sample(n, nouns[n % len(nouns)], rng, scores=scores, confident=confident, negatives=negatives)
            for n in range(first, min(samples, first + per_shard))
        ]
        entries.append(_write_shard(folder / "shards", name, made, version=version))
    manifest = Manifest(
        format_version=version,
        fingerprint=hashlib.sha256("".join(e.sha256 for e in entries).encode()).hexdigest(),
        plan_sha256="0" * 64,
        settings={},
        models=(),
        libraries={},
        shards=tuple(entries),
        totals=Totals(images=samples, with_pairs=samples, rejected={}, samples=samples, nouns=len(nouns), size_bytes=0),
    )
    (folder / "manifest.json").write_text(manifest.model_dump_json())
    return folder


def as_version(run: Path, to: Path, version: int) -> Path:
    """A copy of a finished run as format version 1 or 2 wrote it: without the files, columns and keys added since."""
    shutil.copytree(run, to)
    for name in ("levels.parquet", "SHA256SUMS.run"):
        (to / name).unlink(missing_ok=True)
    later = RECORD_KEYS - record_keys(version)
    gone = {
        "pairs": {"lift", "lead", "gap", "agreement", "separability", "evidence", "confidence"},
        "captions": {"sources", "additional"} if version < 2 else set(),
        ".": {"lemma"},
    }
    for path in (*to.glob("pairs/*.parquet"), *to.glob("captions/*.parquet"), *to.glob("vocabulary.parquet")):
        _drop_columns(path, gone[path.parent.name if path.parent != to else "."])
    manifest = json.loads((to / "manifest.json").read_text())
    del manifest["totals"]["pairs"]
    manifest["format_version"] = version
    for entry in manifest["shards"]:
        entry |= _older_shard(to / "shards" / entry["name"], later)
    (to / "manifest.json").write_text(json.dumps(manifest))
    if (to / "SHA256SUMS").exists():
        names = [line.split("  ")[1] for line in (to / "SHA256SUMS").read_text().splitlines()]
        sums = (f"{hashlib.sha256((to / name).read_bytes()).hexdigest()}  {name}\n" for name in names)
        (to / "SHA256SUMS").write_text("".join(sums))
    return to


def _drop_columns(path: Path, names: set[str]) -> None:
    """Drop columns of a Parquet file, and fields of the structs in its lists."""
    table = _unsealed(pq.read_table(path))
    table = table.drop_columns([name for name in table.column_names if name in names])
    for place, field in enumerate(table.schema):
        if pa.types.is_list(field.type) and pa.types.is_struct(field.type.value_type):
            item = field.type.value_field
            inner = [one for one in item.type if one.name not in names]
            older = field.with_type(pa.list_(item.with_type(pa.struct(inner))))
            rows = [[{f.name: one[f.name] for f in inner} for one in row] for row in table.column(place).to_pylist()]
            table = table.set_column(place, older, pa.array(rows, older.type))
    pq.write_table(table, path)


def _unsealed(table: pa.Table) -> pa.Table:
    """A table without the seal of the file that it was read from, which a file of other content must not have."""
    return table.replace_schema_metadata(own_metadata(table.schema.metadata))


def _older_shard(path: Path, later: frozenset[str]) -> dict[str, Any]:
    """Write a shard again without some keys of the .json; returns what its entry of the manifest has of it."""
    index = path.with_suffix(".parquet")
    table, stored, tar = _unsealed(pq.read_table(index)), path.read_bytes(), io.BytesIO()
    offsets, sizes = [], []
    for key, offset, size_bytes in zip(*(table[n].to_pylist() for n in ("key", "offset", "size_bytes")), strict=True):
        image_format, *contents, record = sample_members(stored[offset : offset + size_bytes], key)
        kept = {name: value for name, value in json.loads(record).items() if name not in later}
        names = member_names(key, image_format)
        offsets.append(tar.tell())
        sizes.append(write_members(tar, zip(names, [*contents, canonical_json(kept).encode()], strict=True)))
    write_end_of_tar(tar, size_bytes=tar.tell())
    path.write_bytes(tar.getvalue())
    for name, values in (("offset", offsets), ("size_bytes", sizes)):
        table = table.set_column(table.column_names.index(name), table.schema.field(name), pa.array(values, pa.int64()))
    pq.write_table(table, index)
    _drop_columns(index, {*later, "crc32"})
    return {
        "size_bytes": len(tar.getvalue()),
        "sha256": hashlib.sha256(tar.getvalue()).hexdigest(),
        "index_sha256": hashlib.sha256(index.read_bytes()).hexdigest(),
    }


def _sample(
    number: int,
    noun: str,
    rng: np.random.Generator,
    *,
    scores: bool,
    confident: bool,
    negatives: Mapping[str, Sequence[str]] | None,
) -> tuple[Sample, SampleRow]:
    """Two bars that meet in a corner, on noise, in a crop that reaches beyond them; most of their box is blank."""
    y, x = np.mgrid[:SIZE_PX, :SIZE_PX]
    (left, bottom), length, wide = rng.integers(2, 8, size=2), int(rng.integers(20, 30)), int(rng.integers(4, 9))
    up, along = SIZE_PX - bottom - y, x - left
    mask_HW = (up >= 0) & (along >= 0) & (up < length) & (along < length) & ((up < wide) | (along < wide))
    rgb_HW3 = rng.integers(0, 255, size=(SIZE_PX, SIZE_PX, 3)).astype(np.uint8)
    rgb_HW3[mask_HW] = COLOURS.get(noun, (200, 200, 200))
    rows, columns = np.nonzero(mask_HW.any(1))[0], np.nonzero(mask_HW.any(0))[0]
    box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
    picture = io.BytesIO()
    Image.fromarray(rgb_HW3).save(picture, "PNG")
    key = f"{number:04d}-000"
    record: dict[str, Any] = dict.fromkeys(record_keys(FORMAT_VERSION)) | {"noun": noun, "box_crop_xyxy": list(box)}
    if negatives is not None:
        record |= {"presence": None, "agreement": None, "negatives": list(negatives.get(noun, ())), "corrected": []}
    row = SampleRow(
        key=key,
        image_id=f"{number:04d}",
        noun=noun,
        lemma=noun,
        caption=f"A {noun}.",
        start=2,
        end=2 + len(noun),
        box_xyxy=box,
        crop_xyxy=(0, 0, SIZE_PX, SIZE_PX),
        area_px=int(mask_HW.sum()),
        similarity=number / 100 if scores else None,
        margin=1 - number / 100 if scores else None,
        rank=0,
        score=1.0,
        label=None,
        shard="",
        offset=0,
        size_bytes=0,
        lift=round(number / 100 - 0.1, 6) if scores and number else None,
        evidence=number - 12.0 if scores and number else None,
        confidence=number / 100 if confident else None,
        negatives=tuple((negatives or {}).get(noun, ())),
    )
    return Sample(key, picture.getvalue(), encode_mask(mask_HW), noun, record), row


def _write_shard(folder: Path, name: str, made: Sequence[tuple[Sample, SampleRow]], *, version: int) -> ShardEntry:
    tar, rows = io.BytesIO(), []
    for sample, row in made:
        offset = tar.tell()
        size_bytes = write_sample(tar, sample, image_format="png")
        fields = {name: getattr(row, name) for name in SampleRow.__dataclass_fields__}
        rows.append(SampleRow(**fields | {"shard": f"{name}.tar", "offset": offset, "size_bytes": size_bytes}))
    write_end_of_tar(tar, size_bytes=tar.tell())
    index = io.BytesIO()
    write_parquet(to_table(rows, index_type(version)), index)
    (folder / f"{name}.tar").write_bytes(tar.getvalue())
    (folder / f"{name}.parquet").write_bytes(index.getvalue())
    return ShardEntry(
        name=f"{name}.tar",
        images=len(made),
        samples=len(made),
        size_bytes=len(tar.getvalue()),
        sha256=hashlib.sha256(tar.getvalue()).hexdigest(),
        index_sha256=hashlib.sha256(index.getvalue()).hexdigest(),
    )


def export(run: Path, out: Path, to: str, **settings: Any) -> Path:
    """Export a run; `settings` are those of `Export`."""
    export_run(read_folder(str(run)), Export(format=to, **settings), out=str(out))
    return out


def samples(run: Path) -> Iterator[StoredSample]:
    """The samples of a run, as they are stored."""
    folder = RunFolder(str(run))
    with RunReader(FinishedRun.open_published(folder)) as reader:
        for table in reader.tables(Selection()):
            for row in from_table(table.drop_columns(["split"]), SampleRow):
                yield reader.read(row)


def members(*tars: Path) -> dict[str, bytes]:
    """The members of tars by their names."""
    found = {}
    for path in tars:
        with tarfile.open(path) as tar:
            found |= {info.name: file.read() for info in tar if (file := tar.extractfile(info))}
    return found


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def mask_of(sample: StoredSample) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(BytesIO(sample.mask_png))) > 0


def halves() -> Selection:
    return Selection(splits=(Split(name="train", share=0.5), Split(name="val", share=0.5)))


def stored_picture(rgb_HW3: np.ndarray[Any, Any], mask_HW: np.ndarray[Any, Any]) -> StoredSample:
    """A sample whose crop is a picture, the tight box of whose mask is all of it."""
    height_px, width_px = mask_HW.shape
    buffer = BytesIO()
    Image.fromarray(rgb_HW3).save(buffer, "PNG")
    box = (0, 0, width_px, height_px)
    row = SampleRow(
        key="k-000",
        image_id="k",
        noun="n",
        lemma="n",
        caption="n",
        start=0,
        end=1,
        box_xyxy=box,
        crop_xyxy=box,
        area_px=1,
        similarity=None,
        margin=None,
        rank=0,
        score=1.0,
        label=None,
        shard="00000.tar",
        offset=0,
        size_bytes=0,
    )
    record = json.dumps({"box_crop_xyxy": list(box)}).encode()
    return StoredSample(row, "png", buffer.getvalue(), encode_mask(mask_HW.astype(np.uint8)), record, b"")
