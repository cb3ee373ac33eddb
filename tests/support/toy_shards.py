"""Finished shards of shapes in colours, written without mining: what a tuning run reads."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mining.shards import encode_mask
from schemas.manifest import Manifest, ShardEntry, Totals
from schemas.rows import SampleRow
from schemas.sample import FORMAT_VERSION, RECORD_KEYS, Sample, write_end_of_tar, write_sample
from schemas.tables import to_table, write_parquet

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
) -> Path:
    """Write a folder with the shards, indexes and manifest of a finished run: corners in the colours of their nouns.

    With `scores` sample n has a similarity of n / 100, and a margin of 1 less that.
    """
    rng = np.random.default_rng(seed)
    (folder / "shards").mkdir(parents=True)
    entries = []
    for first in range(0, samples, per_shard):
        name = f"{first // per_shard:05d}"
        made = [
            _sample(n, nouns[n % len(nouns)], rng, scores=scores) for n in range(first, min(samples, first + per_shard))
        ]
        entries.append(_write_shard(folder / "shards", name, made))
    manifest = Manifest(
        format_version=FORMAT_VERSION,
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


def _sample(number: int, noun: str, rng: np.random.Generator, *, scores: bool) -> tuple[Sample, SampleRow]:
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
    record: dict[str, Any] = dict.fromkeys(RECORD_KEYS) | {"noun": noun, "box_crop_xyxy": list(box)}
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
    )
    return Sample(key, picture.getvalue(), encode_mask(mask_HW), noun, record), row


def _write_shard(folder: Path, name: str, made: Sequence[tuple[Sample, SampleRow]]) -> ShardEntry:
    tar, rows = io.BytesIO(), []
    for sample, row in made:
        offset = tar.tell()
        size_bytes = write_sample(tar, sample, image_format="png")
        fields = {name: getattr(row, name) for name in SampleRow.__dataclass_fields__}
        rows.append(SampleRow(**fields | {"shard": f"{name}.tar", "offset": offset, "size_bytes": size_bytes}))
    write_end_of_tar(tar, size_bytes=tar.tell())
    index = io.BytesIO()
    write_parquet(to_table(rows, SampleRow), index)
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
