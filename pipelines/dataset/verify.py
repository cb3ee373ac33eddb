"""Verification of a finished set: everything is hashed, counted and read again, as its readers would.

A tar that was cut between two members reads as a shorter data set without any error; only counts and checksums that
were taken when it was written find that.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError
from pydantic import ValidationError

from pipelines.plan import Plan
from pipelines.publish import SUCCESS_FILE
from pipelines.run_folder import FINGERPRINT_FILE, RunFolder
from pipelines.status import require_plan
from schemas.errors import IncompleteError, InputError
from schemas.manifest import Manifest, ShardEntry
from schemas.mask import Mask
from schemas.rows import SampleRow
from schemas.sample import FORMAT_VERSION, READABLE_VERSIONS, ImageFormat, member_names, record_keys

_REMEDY = "delete it and run `maskmine mine` again"
_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Problem:
    """Something in the set that is not as it must be."""

    file: str
    what: str

    def __str__(self) -> str:
        return f"{self.file}: {self.what}"


def read_manifest(run: RunFolder) -> Manifest:
    """The manifest of a finished run. Raises IncompleteError when there is none yet, InputError when it is odd."""
    stored = run.read_json("manifest.json")
    if stored is None:
        raise IncompleteError(f"{run.root}: not finished (no manifest.json); run `maskmine mine` again")
    try:
        manifest = Manifest.model_validate_json(json.dumps(stored))
    except ValidationError as error:
        raise InputError(f"{run.path('manifest.json')}: not a manifest of this version; {_REMEDY}") from error
    if manifest.format_version not in READABLE_VERSIONS:
        raise InputError(
            f"{run.path('manifest.json')}: format version {manifest.format_version}, this maskmine reads"
            f" {FORMAT_VERSION}; use the maskmine that wrote it"
        )
    return manifest


def read_complete(run: RunFolder) -> tuple[Manifest, Plan]:
    """The manifest and the plan of a run of which every cell is there. Raises as `read_manifest`.

    A manifest can be that of an earlier run, which a run of other settings is about to replace.
    """
    manifest, plan = read_manifest(run), require_plan(run)
    missing = [step for step in ("captions", "nouns", "regions", "pairs", "shards") if len(run.done(step)) < plan.parts]
    if missing or run.read_json("shards", FINGERPRINT_FILE) != {"fingerprint": manifest.fingerprint}:
        why = f"cells of {missing[0]} are missing" if missing else "settings or inputs have changed"
        raise IncompleteError(f"{run.root}: not finished ({why}); run `maskmine mine` again")
    return manifest, plan


def verify_run(run: RunFolder, *, tick: Any = lambda _: None) -> Iterator[Problem]:
    """Every problem of a finished run; `tick` is called with 1 for each shard. Nothing is changed."""
    manifest = read_manifest(run)
    if not run.exists(SUCCESS_FILE):
        yield Problem(SUCCESS_FILE, "missing: the set is not complete; run `maskmine mine` again")
    yield from _check_sums(run)
    yield from _check_counts(run, manifest)
    keys: set[str] = set()
    for shard in manifest.shards:
        yield from _check_shard(run, shard, manifest, keys)
        tick(1)


def _check_sums(run: RunFolder) -> Iterator[Problem]:
    if not run.exists("SHA256SUMS"):
        yield Problem("SHA256SUMS", f"missing; {_REMEDY}")
        return
    with run.open("SHA256SUMS") as file:
        lines = file.read().decode("utf-8", "replace").splitlines()
    for line in lines:
        expected, _, name = line.partition("  ")
        found = _sha256(run, name)
        if found is None:
            yield Problem(name, "missing; run `maskmine mine` again")
        elif found != expected:
            yield Problem(name, f"its SHA-256 is not the one in SHA256SUMS; {_REMEDY}")


def _check_counts(run: RunFolder, manifest: Manifest) -> Iterator[Problem]:
    totals = manifest.totals
    if totals.images != totals.with_pairs + sum(totals.rejected.values()):
        yield Problem("manifest.json", "images are not those with pairs plus those rejected")
    if totals.samples != sum(shard.samples for shard in manifest.shards):
        yield Problem("manifest.json", "the shards' samples do not add up to the total")
    if [shard.name for shard in manifest.shards] != [f"{n:05d}.tar" for n in range(len(manifest.shards))]:
        yield Problem("manifest.json", "the shards' numbers have a gap")
    if run.read_json("shards", "sizes.json") != {shard.name: shard.samples for shard in manifest.shards}:
        yield Problem("shards/sizes.json", f"not the samples of the manifest; {_REMEDY}")


def _check_shard(run: RunFolder, shard: ShardEntry, manifest: Manifest, keys: set[str]) -> Iterator[Problem]:
    name = f"shards/{shard.name}"
    try:
        index = run.read_rows("shards", shard.name.replace(".tar", ".parquet"), row_type=SampleRow)
    except (IncompleteError, ValueError) as error:
        yield Problem(name, f"its index cannot be read: {error}")
        return
    if len(index) != shard.samples:
        yield Problem(name, f"the index has {len(index)} samples, the manifest {shard.samples}")
    yield from (Problem(name, f"key {row.key} is in the set twice") for row in index if row.key in keys)
    keys.update(row.key for row in index)
    if not run.exists("shards", shard.name):
        return  # named by the checksums
    image_format: ImageFormat = manifest.settings["shards"]["image_format"]
    with run.open("shards", shard.name) as file:
        try:
            members = _members(file)
            for row in index:
                yield from _check_sample(name, row, members, image_format, record_keys(manifest.format_version))
            if extra := next(members, None):
                yield Problem(name, f"member {extra.name} is in no sample of the index; {_REMEDY}")
        except tarfile.TarError as error:
            yield Problem(name, f"not a whole tar ({error}); {_REMEDY}")


@dataclass(frozen=True, slots=True)
class _Member:
    name: str
    content: bytes
    start: int
    end: int
    plain: bool


def _members(file: Any) -> Iterator[_Member]:
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for info in tar:
            content = tar.extractfile(info) if info.isreg() else None
            end = info.offset_data + info.size + -info.size % tarfile.BLOCKSIZE
            plain = info.isreg() and (info.mode, info.mtime, info.uid, info.gid) == (0o644, 0, 0, 0)
            yield _Member(info.name, content.read() if content else b"", info.offset, end, plain)


def _check_sample(
    shard: str, row: SampleRow, members: Iterator[_Member], image_format: ImageFormat, keys: frozenset[str]
) -> Iterator[Problem]:
    found = [member for _, member in zip(range(4), members, strict=False)]
    names = tuple(member.name for member in found)
    if names != member_names(row.key, image_format):
        yield Problem(shard, f"sample {row.key}: its members are {', '.join(names) or 'missing'}; {_REMEDY}")
        return
    if (found[0].start, found[-1].end) != (row.offset, row.offset + row.size_bytes):
        yield Problem(shard, f"sample {row.key}: does not lie where the index says; {_REMEDY}")
    if not all(member.plain for member in found):
        yield Problem(shard, f"sample {row.key}: a member is no plain file of fixed mode and time")
    image, mask_png, noun, record = (member.content for member in found)
    faults = _check_content(row, image, mask_png, noun, record, keys=keys)
    yield from (Problem(shard, f"sample {row.key}: {what}") for what in faults)


def _check_content(
    row: SampleRow, image: bytes, mask_png: bytes, noun: bytes, record_json: bytes, *, keys: frozenset[str]
) -> Iterator[str]:
    try:
        record = json.loads(record_json)
        with Image.open(io.BytesIO(mask_png)) as mask_image, Image.open(io.BytesIO(image)) as crop:
            mask_HW, crop_size = np.asarray(mask_image), crop.size
    except (OSError, ValueError, UnidentifiedImageError) as error:
        yield f"a member cannot be read: {error}"
        return
    if not isinstance(record, dict) or record.keys() != keys:
        yield "its .json does not have the keys of the format"
        return
    x0, y0, x1, y1 = row.crop_xyxy
    if not crop_size == (x1 - x0, y1 - y0) == (mask_HW.shape[1], mask_HW.shape[0]):
        yield "crop, mask and index differ in size"
    if not np.isin(mask_HW, (0, 255)).all() or not mask_HW.any():
        yield "the mask has other values than 0 and 255, or no foreground"
    elif list(Mask.from_array(mask_HW).box_xyxy) != record["box_crop_xyxy"]:
        yield "the mask's box is not the recorded one"
    if not noun.decode("utf-8", "replace") == record["noun"] == row.noun:
        yield "the noun differs between .txt, .json and index"
    if record["image_id"] != row.image_id or record["similarity"] != row.similarity:
        yield ".json and index differ"


def _sha256(run: RunFolder, name: str) -> str | None:
    """The SHA-256 of a file, None when it is not there."""
    digest = hashlib.sha256()
    try:
        with run.open(*name.split("/")) as file:
            while block := file.read(_READ_BYTES):
                digest.update(block)
    except FileNotFoundError:
        return None
    return digest.hexdigest()
