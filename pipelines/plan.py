"""The plan: which images a run has, cut once into numbered parts. It is written first and never changes within a run.

Images are ordered by the SHA-256 of their id and cut evenly, so that every part, and so every shard, is already a
random sample of the whole, and the first parts serve as a smaller data set.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any

import duckdb
import pyarrow as pa

from mining.stores import describe, scheme_of
from pipelines.inputs import portable
from pipelines.ownership import SCRATCH, owned_prefix
from pipelines.run_folder import RunFolder
from pipelines.settings import Mining
from schemas.errors import IncompleteError, InputError, OtherPlanError
from schemas.rows import CaptionsRow, ImageRow
from schemas.settings import canonical_json, fingerprint

PLAN_FILE = "plan.json"
PLANNED = "plan"
_PLANNED = ("images", "captions")
_TRIED_FILE = ".writable"
_BATCH = 10_000


@dataclass(frozen=True, slots=True)
class Plan:
    """How many images and parts there are, and the SHA-256 of what was planned (ids and files; captions).

    `source` holds the settings that decide which images there are, `inputs` what the source's files held.
    """

    images: int
    parts: int
    images_sha256: str
    captions_sha256: str
    source: dict[str, Any]
    inputs: Any

    def part_size(self, part: int) -> int:
        """The number of images of a part; parts differ by one image at most."""
        return part_size(part, images=self.images, parts=self.parts)


def part_size(part: int, *, images: int, parts: int) -> int:
    """The size of a part when `images` are cut evenly into `parts`."""
    return (part + 1) * images // parts - part * images // parts


def read_plan(run: RunFolder) -> Plan | None:
    """The plan of a run folder; None when it has none yet."""
    stored = run.read_json(PLAN_FILE)
    return Plan(**stored) if stored else None


def make_plan(run: RunFolder, settings: Mining, *, limit: int | None = None) -> Plan:
    """The plan of this run: the stored one where nothing changed, else cut anew from the caption source.

    New captions of the same images replace the old ones. Raises OtherPlanError, with what differs, when the folder
    belongs to other images or another cut; InputError when the source is faulty or an object store cannot be used.
    """
    describe(run.root)
    source = {
        "captions.kind": settings.captions.kind,
        "captions.images": settings.captions.images,
        "shards.images_per_part": settings.shards.images_per_part,
        "limit": limit,
    }
    inputs = portable(settings.captions)
    stored = read_plan(run)
    if stored:
        _refuse_other_source(run, stored, source)
        if stored.inputs == inputs and all(run.done(name) == set(range(stored.parts)) for name in _PLANNED):
            return stored
    _refuse_unwritable_store(run)
    plan = _cut(run, settings, limit=limit, source=source, inputs=inputs, stored=stored)
    run.write_json(PLAN_FILE, value=asdict(plan))
    return plan


def _refuse_other_source(run: RunFolder, stored: Plan, source: dict[str, Any]) -> None:
    differing = [
        f"{key}: {stored.source.get(key)} there, {value} here"
        for key, value in source.items()
        if stored.source.get(key) != value
    ]
    if differing:
        raise OtherPlanError(
            f"{run.root}: belongs to another plan ({'; '.join(differing)}); choose another `out`, or delete the folder"
        )


def _refuse_unwritable_store(run: RunFolder) -> None:
    """Try an object store before a large source is read: the right to list does not tell of the right to write."""
    if scheme_of(run.root) == "file":
        return
    try:
        run.write_json(_TRIED_FILE, value=None)
        run.delete(_TRIED_FILE)
    except IncompleteError as error:
        raise InputError(str(error)) from error


def _cut(
    run: RunFolder, settings: Mining, *, limit: int | None, source: dict[str, Any], inputs: Any, stored: Plan | None
) -> Plan:
    with (
        tempfile.TemporaryDirectory(prefix=owned_prefix(SCRATCH)) as scratch,
        duckdb.connect(f"{scratch}/plan.duckdb") as db,
    ):
        db.execute("SET memory_limit = '1GB'; SET preserve_insertion_order = false")
        _load(db, settings)
        total = _count(db, "SELECT count(*) FROM images")
        images = min(total, limit) if limit else total
        parts = max(1, -(-images // settings.shards.images_per_part))
        images_sha256 = _hash_images(db, images, root=settings.captions.images)
        if stored and images_sha256 != stored.images_sha256:
            raise OtherPlanError(
                f"{run.root}: belongs to another plan ({settings.captions.annotations} has other images than the file "
                "that the plan was cut from); choose another `out`, or delete the folder"
            )
        if stored:  # from here on until the new plan is written, the captions in the folder belong to no plan
            run.write_json(PLAN_FILE, value=asdict(replace(stored, inputs=None)))
        captions_sha256 = _write_parts(run, db, images=images, parts=parts, most=settings.captions.most_captions)
    return Plan(images, parts, images_sha256, captions_sha256, source, inputs)


def _load(db: duckdb.DuckDBPyConnection, settings: Mining) -> None:
    """Read the source once into tables on the disk; memory does not grow with the data set."""
    place = settings.captions.annotations
    image_type = pa.schema([("image_id", pa.string()), ("path", pa.string())])
    caption_type = pa.schema([("image_id", pa.string()), ("position", pa.int64()), ("caption", pa.string())])
    db.execute("CREATE TABLE listed (image_id VARCHAR, path VARCHAR)")
    db.execute("CREATE TABLE captions (image_id VARCHAR, position BIGINT, caption VARCHAR)")
    for table, schema, rows in (
        ("listed", image_type, settings.captions.read_images()),
        ("captions", caption_type, settings.captions.read_captions()),
    ):
        for batch in _batches(rows, schema):
            db.register("batch", batch)
            db.execute(f"INSERT INTO {table} SELECT * FROM batch")
    twice = db.execute(
        "SELECT image_id, min(path), max(path) FROM listed GROUP BY image_id HAVING count(*) > 1 ORDER BY 1 LIMIT 1"
    ).fetchone()
    if twice:
        raise InputError(
            f"{place}: lists image id {twice[0]} more than once ({twice[1]}, {twice[2]}); make the ids unique"
        )
    if not _count(db, "SELECT count(*) FROM listed"):
        raise InputError(f"{place}: `images` is empty; there is nothing to mine")
    if not _count(db, "SELECT count(*) FROM captions WHERE caption <> ''"):
        raise InputError(f"{place}: no annotation has a `caption`; is this the captions file, and not the instances?")
    # A caption of an image that is not listed keeps its record: an image without a path, rejected as a missing file.
    db.execute(
        "CREATE TABLE images AS SELECT coalesce(l.image_id, c.image_id) AS image_id, l.path AS path,"
        " sha256(coalesce(l.image_id, c.image_id)) AS shuffled"
        " FROM listed l FULL JOIN (SELECT DISTINCT image_id FROM captions) c USING (image_id)"
    )


def _hash_images(db: duckdb.DuckDBPyConnection, images: int, *, root: str) -> str:
    """SHA-256 over ids and files in the plan's order; paths relative to the image folder, so that it may be moved."""
    digest = hashlib.sha256()
    cursor = db.execute(f"SELECT image_id, path FROM images ORDER BY shuffled, image_id LIMIT {images}")
    for image_id, path in _fetch(cursor):
        relative = path.removeprefix(root).lstrip("/") if path is not None else None
        digest.update(canonical_json([image_id, relative]).encode() + b"\n")
    return digest.hexdigest()


def _write_parts(run: RunFolder, db: duckdb.DuckDBPyConnection, *, images: int, parts: int, most: int | None) -> str:
    first_captions = "" if most is None else f"WHERE number <= {most}"
    cursor = db.cursor().execute(
        "SELECT i.image_id, i.path, c.texts FROM"
        f" (SELECT * FROM images ORDER BY shuffled, image_id LIMIT {images}) i LEFT JOIN"
        " (SELECT image_id, list(caption ORDER BY number) AS texts FROM"
        "   (SELECT *, row_number() OVER (PARTITION BY image_id ORDER BY position, caption) AS number FROM captions)"
        f"  {first_captions} GROUP BY image_id) c USING (image_id)"
        " ORDER BY i.shuffled, i.image_id"
    )
    rows = _fetch(cursor)
    captions_sha256 = hashlib.sha256()
    for part in range(parts):
        planned = list(islice(rows, part_size(part, images=images, parts=parts)))
        image_rows = [ImageRow(image_id, path) for image_id, path, _ in planned]
        caption_rows = [CaptionsRow(image_id, tuple(texts or ())) for image_id, _, texts in planned]
        captions_sha256.update(fingerprint([[r.image_id, r.captions] for r in caption_rows]).encode())
        run.write_rows("images", f"{part:05d}.parquet", rows=image_rows, row_type=ImageRow, fingerprint=PLANNED)
        run.write_rows("captions", f"{part:05d}.parquet", rows=caption_rows, row_type=CaptionsRow, fingerprint=PLANNED)
    return captions_sha256.hexdigest()


def _batches(rows: Iterable[tuple[Any, ...]], schema: pa.Schema) -> Iterator[pa.Table]:
    rows = iter(rows)
    while batch := list(islice(rows, _BATCH)):
        yield pa.table([list(column) for column in zip(*batch, strict=True)], schema=schema)


def _fetch(cursor: duckdb.DuckDBPyConnection) -> Iterator[tuple[Any, ...]]:
    while batch := cursor.fetchmany(_BATCH):
        yield from batch


def _count(db: duckdb.DuckDBPyConnection, query: str) -> int:
    row = db.execute(query).fetchone()
    return int(row[0]) if row else 0
