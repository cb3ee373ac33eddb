"""Verification of a finished set: everything is hashed, counted and read again, as its readers would.

A tar that was cut between two members reads as a shorter data set without any error; only the counts and checksums
from when it was written reveal that.
"""

from __future__ import annotations

import json
import posixpath
import tarfile
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import numpy as np

from maskmine.mining.images.child_decoder import Decoding
from maskmine.mining.images.decode import MAX_SIDE_PX
from maskmine.pipelines.dataset.finished_run import FinishedRun
from maskmine.pipelines.dataset.limits import why_not_published
from maskmine.pipelines.dataset.repeated_keys import RepeatedKeys
from maskmine.pipelines.dataset.stored_shards import SIZES_FILE, sizes_lines
from maskmine.pipelines.dataset.sums import RUN_SUMS_FILE, SUMS_FILE, FileSums, hash_file, lookup, read_sums
from maskmine.pipelines.planning.plan import PLAN_FILE
from maskmine.pipelines.planning.versions import Version, all_parts, read_appended
from maskmine.pipelines.run_folder.caption_cells import CAPTIONING
from maskmine.pipelines.run_folder.folder import (
    IDENTITY_FILE,
    MIX_FILE,
    SUCCESS_FILE,
    VERDICTS_FOLDER,
    RunFolder,
    part_of_cell,
)
from maskmine.pipelines.run_folder.parts import Parts
from maskmine.pipelines.run_folder.region_cells import CHECKS, EMBEDDINGS
from maskmine.schemas.errors import IncompleteError, InputError
from maskmine.schemas.manifest import Manifest
from maskmine.schemas.mask import Mask
from maskmine.schemas.memory import give_back_memory
from maskmine.schemas.rows import OriginRow, Rejection, SampleRow
from maskmine.schemas.sample import ImageFormat, cell_name, member_names, record_keys
from maskmine.schemas.seal import open_sealed
from maskmine.schemas.shard_entries import SHARDS_TABLE, ShardEntry, ShardsInTable, shard_named

# What .json and index both have, and only a mistake in writing can make differ.
_SCORES = ("similarity", "margin", "rank", "score", "lift", "evidence", "confidence", "presence", "agreement")
_IN_BOTH = ("image_id", *_SCORES, "negatives", "corrected")
_AGAIN = "run `maskmine mine` again"
_REMEDY = f"delete it and {_AGAIN}"  # ends every message about a damaged file
_SUMS_FILES = (SUMS_FILE, RUN_SUMS_FILE)
_DECODING = Decoding()
_SHARDS_AT_ONCE = 256  # read before memory is given back
_SIGNED_SINCE = 3  # the format version that brought SHA256SUMS.run


@dataclass(frozen=True, slots=True)
class Problem:
    """A fault of the set."""

    file: str
    what: str
    mend_settings: bool = False
    """Whether running again does not help, but another setting."""

    def __str__(self) -> str:
        return f"{self.file}: {self.what}"


def verify_run(run: RunFolder, *, index_only: bool = False) -> Iterator[Problem]:
    """Every problem of a finished run or a mix. Nothing is changed.

    `index_only` reads no tar and no cell of a step, which only have to be there: what describes the set is hashed, with
    the indexes and accounts of its shards, and counts are compared. In memory is a shard at a time, and no more for
    many of them.

    Of format version 3 on every file of the folder is vouched for, see `publish.py`; of earlier ones the set alone.
    """
    finished = FinishedRun.open(run)
    try:
        next(iter(finished.manifest.shards), None)
    except IncompleteError as error:  # without its shards, nothing can be said of them
        what = str(error).removeprefix(f"{run.path(SHARDS_TABLE)}: ")
        yield Problem(SHARDS_TABLE, what)
        return
    for problem in (_problems_of_mix if finished.is_mix else _problems_of_run)(finished, index_only=index_only):
        what = problem.what.replace(_AGAIN, finished.again)
        yield Problem(problem.file, what, problem.mend_settings)


def _problems_of_mix(finished: FinishedRun, *, index_only: bool) -> Iterator[Problem]:
    """One file of sums vouches for all of a mix."""
    run, manifest = finished.folder, finished.manifest
    unsigned: list[Problem] = []
    with _read_sums(run, SUCCESS_FILE) as of_success, _read_sums(run, SUMS_FILE) as of_set:
        if not run.exists(SUCCESS_FILE):
            yield Problem(SUCCESS_FILE, f"missing: the set is not complete; {_AGAIN}")
        else:
            unsigned = list(_check_listed(run, SUCCESS_FILE, of_success, (SUMS_FILE,)))
            yield from unsigned
        yield from _check_sums_of_set(run, manifest, of_set, (MIX_FILE,), index_only=index_only)
        if run.exists(SUMS_FILE):
            yield from _check_additions(run, manifest, (of_set,), begun=(), whole_folder=not unsigned)
    yield from _check_set(run, manifest, index_only=index_only)
    for shard in () if index_only else manifest.shards:
        yield from _check_origins(run, shard.name.replace(".tar", ".parquet"))


def _check_origins(run: RunFolder, cell: str) -> Iterator[Problem]:
    """Whether the origins of a shard are those of the images in its index, in their order."""
    try:
        there = [row.image_id for row in run.read_rows("origins", cell, row_type=OriginRow)]
        wanted = dict.fromkeys(row.image_id for row in run.read_rows("shards", cell, row_type=SampleRow))
    except (IncompleteError, ValueError) as error:
        yield Problem(f"origins/{cell}", f"cannot be compared with the index: {error}")
        return
    if there != list(wanted):
        yield Problem(f"origins/{cell}", f"not of the images in the index; {_REMEDY}")


def _problems_of_run(finished: FinishedRun, *, index_only: bool) -> Iterator[Problem]:
    run, manifest = finished.folder, finished.manifest
    signed = manifest.format_version >= _SIGNED_SINCE
    unsigned: list[Problem] = []
    with ExitStack() as stack:
        if not run.exists(SUCCESS_FILE):
            why = why_not_published(run)
            yield Problem(SUCCESS_FILE, f"missing: {why or f'the set is not complete; {_AGAIN}'}", why is not None)
        elif signed:
            of_success = stack.enter_context(_read_sums(run, SUCCESS_FILE))
            unsigned = list(_check_listed(run, SUCCESS_FILE, of_success, _SUMS_FILES))
            yield from unsigned
        sums = [stack.enter_context(_read_sums(run, name)) for name in (_SUMS_FILES if signed else (SUMS_FILE,))]
        yield from _check_sums_of_set(run, manifest, sums[0], index_only=index_only)
        for of_rest in sums[1:]:
            wanted = (PLAN_FILE, IDENTITY_FILE, "mining.yaml")
            yield from _check_listed(run, RUN_SUMS_FILE, of_rest, wanted, index_only=index_only)
        if all(run.exists(name) for name in (_SUMS_FILES if signed else (SUMS_FILE,))):  # else what belongs is unknown
            begun, whole = _begun(run, manifest), signed and not unsigned
            yield from _check_additions(run, manifest, sums, begun=begun, whole_folder=whole)
    yield from _check_set(run, manifest, index_only=index_only)


def _check_sums_of_set(
    run: RunFolder, manifest: Manifest, of_set: _Sums, more: Sequence[str] = (), *, index_only: bool
) -> Iterator[Problem]:
    wanted = chain((f"shards/{name}" for name, _ in _files_of(manifest)), ("manifest.json", *more))
    yield from _check_listed(run, SUMS_FILE, of_set, wanted, index_only=index_only)
    for name, sha256 in _files_of(manifest):
        if (of_set.get(f"shards/{name}") or sha256) != sha256:
            yield Problem(f"shards/{name}", f"its SHA-256 in {SUMS_FILE} is not the one in manifest.json; {_REMEDY}")


def _check_set(run: RunFolder, manifest: Manifest, *, index_only: bool) -> Iterator[Problem]:
    yield from _check_counts(run, manifest)
    try:
        image_format: ImageFormat = manifest.setting("shards", "image_format")
    except InputError as error:
        place, _, what = str(error).partition(": ")
        yield Problem(place, what)
        return
    with RepeatedKeys() as keys:
        for number, shard in enumerate(manifest.shards):
            if number % _SHARDS_AT_ONCE == 0:
                give_back_memory()
            rows = yield from _read_index(run, shard, index_only=index_only)
            if rows is None:
                continue
            keys.add(rows if index_only else (row.key for row in rows), shard=number)
            if not index_only:
                yield from _check_shard(run, shard, rows, manifest.format_version, image_format)
        for key, number in keys.found():
            yield Problem(f"shards/{manifest.shards[number].name}", f"key {key} is in the set twice")


class _Sums(FileSums):
    """What a file of sums says, and its lines that say nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.broken: list[str] = []

    def __enter__(self) -> _Sums:
        return self


def _read_sums(run: RunFolder, name: str) -> _Sums:
    found = _Sums()
    with suppress(FileNotFoundError, NotADirectoryError, IncompleteError):  # found where it is named
        for line in read_sums(run, name):
            if isinstance(line, str):
                found.broken.append(line)
            elif found.get(line[0]) is not None:
                found.broken.append(f"{line[1]}  {line[0]}")
            else:
                found.put(*line)
    return found


def _reason(error: IncompleteError) -> str:
    """Why a file cannot be opened, without its path."""
    return getattr(error.__cause__, "strerror", None) or str(error)


def _check_listed(
    run: RunFolder, name: str, found: _Sums, wanted: Iterable[str], *, index_only: bool = False
) -> Iterator[Problem]:
    """The files that a file of sums names, and whether it names those that it has to."""
    if not run.exists(name):
        yield Problem(name, f"missing; {_AGAIN}")
        return
    yield from (
        Problem(name, f"a line is no sum of a file of its own ({line[:80]!r}); {_REMEDY}") for line in found.broken
    )
    yield from (Problem(name, f"has no line for {file}; {_REMEDY}") for file in wanted if found.get(file) is None)
    is_there = lookup(run)
    for file, expected in found.sorted():
        try:
            if index_only and _is_content(file):
                if not is_there(file):
                    raise FileNotFoundError(file)
            elif hash_file(run, file) != expected:
                yield Problem(file, f"its SHA-256 is not the one in {name}; {_REMEDY}")
        except (FileNotFoundError, NotADirectoryError):
            if file not in _SUMS_FILES:  # which say so themselves
                yield Problem(file, f"missing, though {name} names it; {_AGAIN}")
        except IncompleteError as error:  # a folder, or what may not be read
            yield Problem(file, f"cannot be read, though {name} names it ({_reason(error)}); {_REMEDY}")


def _is_content(file: str) -> bool:
    """Whether a file is a tar or a cell of a step, and no index, account or description."""
    folder = file.rpartition("/")[0]
    return file.endswith(".tar") if folder == "shards" else folder != ""


def _begun(run: RunFolder, manifest: Manifest) -> list[Version]:
    """What is being appended to the set of a manifest."""
    with suppress(InputError):
        return [version for version in read_appended(run) if version.name not in {v.name for v in manifest.versions}]
    return []


def _check_additions(
    run: RunFolder, manifest: Manifest, sums: Sequence[_Sums], *, begun: Sequence[Version], whole_folder: bool
) -> Iterator[Problem]:
    """Files that belong to no run. Verdicts come after a run, and lie in a folder of their own; embeddings by a CLIP
    that the run had before, checks by a verifier and captions by a model are kept in folders of their own, of which the
    set needs none.

    Cells of versions that are `begun`, and what lies beside them, are those of an append that was stopped.
    """
    current = {"shards"}.union(*(one.folders for one in sums))
    folders, parts = tuple(f"{version.folder}/" for version in begun), Parts(all_parts(begun))
    unfinished = ""
    ours = (*_SUMS_FILES, SUCCESS_FILE)
    others = (name for name in run.walk() if name not in ours and not any(one.get(name) for one in sums))
    for name in sorted(name for name in others if not _is_of_shards(manifest, name)):
        folder, within = name.partition("/")[0], posixpath.dirname(name)
        if folder == VERDICTS_FOLDER or (folder in (EMBEDDINGS, CHECKS) and within not in {folder, *current}):
            continue
        if folder.startswith(CAPTIONING) and within not in current:
            continue
        is_cell = within in current and part_of_cell(posixpath.basename(name)) in parts
        if begun and (is_cell or name.startswith(folders)):
            unfinished = unfinished or name
            continue
        is_account = name.endswith(".json")  # which earlier versions did not vouch for
        if whole_folder or (folder == "shards" and not is_account):
            yield Problem(name, "is no file of this run; move it away")
    if unfinished:
        yield Problem(unfinished, "of an append that is not finished; run that, or `maskmine mine`, again")


def _is_of_shards(manifest: Manifest, name: str) -> bool:
    folder, _, file = name.rpartition("/")
    stem, _, suffix = file.rpartition(".")
    with suppress(IncompleteError):
        return folder == "shards" and suffix in ("tar", "parquet") and bool(shard_named(manifest.shards, f"{stem}.tar"))
    return False


def _files_of(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Tars and indexes of the shards, with their SHA-256."""
    for shard in manifest.shards:
        yield shard.name, shard.sha256
        yield shard.name.replace(".tar", ".parquet"), shard.index_sha256


def _check_counts(run: RunFolder, manifest: Manifest) -> Iterator[Problem]:
    totals = manifest.totals
    if totals.images != totals.with_pairs + sum(totals.rejected.values()):
        yield Problem("manifest.json", "images are not those with pairs plus those rejected")
    if totals.samples != sum(shard.samples for shard in manifest.shards):
        yield Problem("manifest.json", "the shards' samples do not add up to the total")
    if any(shard.name != cell_name(number, "tar") for number, shard in enumerate(manifest.shards)):
        yield Problem("manifest.json", "the shards' numbers have a gap")
    with suppress(IncompleteError, FileNotFoundError, NotADirectoryError):  # a folder is found where it is named
        if _has_sizes(run, manifest):
            return
    yield Problem(SIZES_FILE, f"not the samples of the manifest; {_REMEDY}")


def _has_sizes(run: RunFolder, manifest: Manifest) -> bool:
    if not isinstance(manifest.shards, ShardsInTable):
        stored: Any = run.read_json(*SIZES_FILE.split("/"))
        return bool(stored == {shard.name: shard.samples for shard in manifest.shards})
    with run.open(*SIZES_FILE.split("/")) as file:
        return all(file.read(len(line)) == line for line in sizes_lines(manifest.shards)) and not file.read(1)


def _read_index(run: RunFolder, shard: ShardEntry, *, index_only: bool) -> Generator[Problem, None, Any]:
    """The rows of an index, or only their keys; None when it cannot be read."""
    name, index = f"shards/{shard.name}", shard.name.replace(".tar", ".parquet")
    try:
        if index_only:
            with run.open("shards", index) as file:
                rows = open_sealed(file).read(columns=["key"], use_threads=False)["key"].to_pylist()
        else:
            rows = run.read_rows("shards", index, row_type=SampleRow)
    except (IncompleteError, ValueError, FileNotFoundError, NotADirectoryError) as error:
        yield Problem(name, f"its index cannot be read: {error}")
        return None
    if len(rows) != shard.samples:
        yield Problem(name, f"the index has {len(rows)} samples, the manifest {shard.samples}")
    return rows


def _check_shard(
    run: RunFolder, shard: ShardEntry, index: Sequence[SampleRow], version: int, image_format: ImageFormat
) -> Iterator[Problem]:
    name = f"shards/{shard.name}"
    if not run.exists("shards", shard.name):
        return  # reported with the checksums
    try:
        with run.open("shards", shard.name) as file:
            members = _members(file)
            for row in index:
                yield from _check_sample(name, row, members, image_format, record_keys(version))
            if extra := next(members, None):
                yield Problem(name, f"member {extra.name} is in no sample of the index; {_REMEDY}")
    except tarfile.TarError as error:
        yield Problem(name, f"not a whole tar ({error}); {_REMEDY}")
    except IncompleteError as error:
        yield Problem(name, f"cannot be read ({_reason(error)}); {_REMEDY}")


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
    of_sample = list(islice(members, 4))
    names = tuple(member.name for member in of_sample)
    if names != member_names(row.key, image_format):
        yield Problem(shard, f"sample {row.key}: its members are {', '.join(names) or 'missing'}; {_REMEDY}")
        return
    if (of_sample[0].start, of_sample[-1].end) != (row.offset, row.offset + row.size_bytes):
        yield Problem(shard, f"sample {row.key}: does not lie where the index says; {_REMEDY}")
    if not all(member.plain for member in of_sample):
        yield Problem(shard, f"sample {row.key}: a member is no plain file of fixed mode and time")
    image, mask_png, noun, record = (member.content for member in of_sample)
    faults = _check_content(row, image, mask_png, noun, record, keys=keys)
    yield from (Problem(shard, f"sample {row.key}: {what}") for what in faults)


def _check_content(
    row: SampleRow, image: bytes, mask_png: bytes, noun: bytes, record_json: bytes, *, keys: frozenset[str]
) -> Iterator[str]:
    try:
        record = json.loads(record_json)
    except (ValueError, RecursionError) as error:
        yield f"a member cannot be read: {error}"
        return
    mask, crop = _DECODING.decode_stored(mask_png, max_pixels=MAX_SIDE_PX**2), _DECODING.decode_header(image)
    if isinstance(mask, Rejection) or isinstance(crop, Rejection):
        yield f"a member cannot be read: {mask.detail if isinstance(mask, Rejection) else crop.detail}"  # type: ignore[union-attr]
        return
    mask_HW = mask.pixels
    if not isinstance(record, dict) or record.keys() != keys:
        yield "its .json does not have the keys of the format"
        return
    x0, y0, x1, y1 = row.crop_xyxy
    if not crop.stored_px == (y1 - y0, x1 - x0) == mask_HW.shape:
        yield "crop, mask and index differ in size"
    if not np.isin(mask_HW, (0, 255)).all() or not mask_HW.any():
        yield "the mask has other values than 0 and 255, or no foreground"
    elif list(Mask.from_array(mask_HW).box_xyxy) != record["box_crop_xyxy"]:
        yield "the mask's box is not the recorded one"
    if not noun.decode("utf-8", "replace") == record["noun"] == row.noun:
        yield "the noun differs between .txt, .json and index"
    if any(record[name] != _plain(getattr(row, name)) for name in _IN_BOTH if name in keys):
        yield ".json and index differ"
    if row.noun in row.negatives:
        yield "its noun is among the nouns that its image does not show"


def _plain(value: Any) -> Any:
    """A value of a row as JSON has it."""
    return list(value) if isinstance(value, tuple) else value
