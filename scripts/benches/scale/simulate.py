"""A finished run of any number of parts, simulated: to every reader it is one that was mined.

    python -m maskmine.scripts.benches.scale.simulate FOLDER --parts 100000

writes FOLDER/run-100000, beside the drawn images and the few parts that were mined (`templates.py`), of whose cells the
run's are copies (`stencils.py`): another id for each image, and the fingerprints, identities and checksums that follow
from that. Fingerprints, what runs once and what describes the set are by the run's own functions. Two things are not as
a run would have them: levels are those of the mined parts, and the index has no CRC-32, as in early format versions.
"""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import typer

from maskmine.pipelines.dataset.finished_run import FinishedRun
from maskmine.pipelines.dataset.publish import mark_success, publish
from maskmine.pipelines.planning.plan import PLAN_FILE, Plan, require_plan
from maskmine.pipelines.planning.versions import BASE, Version
from maskmine.pipelines.regenerate import write_identity
from maskmine.pipelines.run_folder.cells import Cells
from maskmine.pipelines.run_folder.folder import SUCCESS_FILE, RunFolder, json_file
from maskmine.pipelines.settings.mining import dump_yaml
from maskmine.pipelines.steps.cells_of_run import RunCells, run_cells
from maskmine.pipelines.steps.grid import Step, plan_grids
from maskmine.pipelines.steps.identity import identify, step_fingerprints
from maskmine.pipelines.steps.ties import identities
from maskmine.schemas.rows import SampleRow, VocabularyRow
from maskmine.schemas.sample import (
    FORMAT_VERSION,
    Sample,
    cell_name,
    index_type,
    part_name,
    sample_key,
    write_end_of_tar,
    write_sample,
)
from maskmine.schemas.tables import to_table
from maskmine.scripts.benches.scale.stencils import NoStencilError, ParquetStencil, TarStencil
from maskmine.scripts.benches.scale.templates import IMAGES, PARTS, mine_templates, template_settings

MOST = 100_000
"""Parts of a simulated run at most: a number of more digits would not fit the place of another."""
_FINGERPRINT_KEY, _MADE_FROM_KEY = "maskmine.fingerprint", "maskmine.made_from"
_OWN_KEYS = frozenset({_FINGERPRINT_KEY, _MADE_FROM_KEY, "maskmine.rows", "maskmine.seal"})
_DIGESTS = ("images_sha256", "captions_sha256", "sources_sha256")  # of a plan
_ID_DIGITS, _ID_BITS = 12, 48
_ID_FACTOR = 0x9E3779B97F4B  # an odd factor, so that no two numbers have one id
_SALTS, _PART_MARK = 64, "37184"
_PARTS_AT_ONCE, _PROCESSES = 250, 2
_FINISHED = "2026-01-01T00:00:00Z"

Made = dict[str, tuple[str, str]]
"""Identity and SHA-256 of the cells of a part, by step."""


@dataclass(frozen=True)
class _Cell:
    """The stencil of a step's cell. Behind ids and part it has marks for the identities of what it `reads`."""

    title: str
    folder: str
    stencil: ParquetStencil
    reads: tuple[str, ...]


@dataclass(frozen=True)
class _Template:
    """Stencils of files of a part, with `marks` for ids and part; the `account` has names in braces for sums."""

    cells: tuple[_Cell, ...]
    marks: tuple[bytes, ...]
    tar: TarStencil | None = None
    account: bytes = b""


Say = Callable[[str], None]


def simulate(folder: Path, *, parts: int, say: Say = lambda line: None) -> RunFolder:
    """The finished run of so many parts in a folder, made where it is not there yet; `say` is told how far it is."""
    if not PARTS <= parts <= MOST:
        raise ValueError(f"{parts} parts: give {PARTS} to {MOST:,}")
    run = RunFolder(str(folder.resolve() / f"run-{parts}"))
    if run.exists(SUCCESS_FILE):
        say(f"{run.root} is there")
        return run
    templates = RunFolder(mine_templates(folder.resolve()).out)
    settings, plan = template_settings(folder.resolve(), out=run.root), _plan(require_plan(templates), parts)
    run.write_json(PLAN_FILE, value=asdict(plan))
    with run.write("mining.yaml") as file:
        file.write(dump_yaml(settings).encode())
    identity = identify(settings)
    write_identity(run, identity)
    versions = (Version(BASE, plan),)
    grids = plan_grids(run, versions, settings, identity)
    _write_cells(
        templates, run_cells(run, step_fingerprints(plan, identity), version=FORMAT_VERSION), grids[0], parts, say
    )
    say(f"{run.root}: publishing")
    publish(run, versions, settings, identity, grids)
    mark_success(run)
    return run


def _plan(of_templates: Plan, parts: int) -> Plan:
    """The plan of the copies. No source lists their images, so it is never cut again."""
    content = f"{parts} copies of {of_templates.images_sha256}"
    digests: dict[str, Any] = {name: hashlib.sha256(f"{name}: {content}".encode()).hexdigest() for name in _DIGESTS}
    return replace(of_templates, images=parts * IMAGES, parts=parts, **digests)


def _write_cells(templates: RunFolder, cells: RunCells, steps: Sequence[Step], parts: int, say: Say) -> None:
    """Write the cells of a run: those of parts as copies, in the order in which one knows the identity of another."""
    of = {step.name: step for step in steps}
    stored = run_cells(templates)
    first = ("images", "captions", "nouns", "proposals", "embeddings")
    last = ("pairs", "shards")
    run, cut = cells.images.run, partial(_cut_with, stored=stored, cells=cells, of=of)
    for step in (*first, *last):
        os.makedirs(run.path(_named(cells, step).folder), exist_ok=True)
    with ProcessPoolExecutor(_PROCESSES, multiprocessing.get_context("spawn")) as pool:
        chunks = [range(start, min(start + _PARTS_AT_ONCE, parts)) for start in range(0, parts, _PARTS_AT_ONCE)]
        stencils = [_cut(partial(cut, part=part, steps=first, known={}), part) for part in range(PARTS)]
        fill = partial(_fill_parts, run.root, stencils)
        filled = _told(pool.map(fill, chunks, [[]] * len(chunks)), parts, say, f"{run.root}: cells before the pairs")
        made = list(chain.from_iterable(filled))
        known = _write_once(stored, cells, of, made)
        stencils = [_cut(partial(cut, part=part, steps=last, known=known), part) for part in range(PARTS)]
        fill = partial(_fill_parts, run.root, stencils)
        filled = pool.map(fill, chunks, [made[chunk.start : chunk.stop] for chunk in chunks])
        for _ in _told(filled, parts, say, f"{run.root}: pairs and shards"):
            pass
    for one in steps:
        if not one.once:
            one.output.mark_current()


def _told(chunks: Iterable[list[Made]], parts: int, say: Say, what: str) -> Iterator[list[Made]]:
    """Chunks as they come; what is done is said ten times."""
    done = 0
    for chunk in chunks:
        before, done = done, done + len(chunk)
        if before * 10 // parts != done * 10 // parts:
            say(f"{what}: {done:,} of {parts:,} parts")
        yield chunk


def _named(cells: RunCells, step: str) -> Cells[Any]:
    found: Cells[Any] = getattr(cells, step)
    return found


def _write_once(stored: RunCells, cells: RunCells, of: Mapping[str, Step], made: Sequence[Made]) -> dict[str, str]:
    """Write vocabulary and levels; returns their identities by step."""
    known: dict[str, str] = {}

    def identity(other: Cells[Any], part: int) -> str | None:
        return known.get(other.title) or made[part][other.title][0]

    for step, content in (("vocabulary", _vocabulary(stored, len(made))), ("levels", stored.levels.read_table())):
        metadata = _metadata(_named(stored, step).read_metadata())
        made_from = identities(of[step].job.inputs, 0, read=identity)
        _named(cells, step).write(0, content, metadata=metadata, made_from=made_from)
        known[step] = str(_named(cells, step).identity())
    return known


def _vocabulary(stored: RunCells, parts: int) -> Iterator[VocabularyRow]:
    """The vocabulary of the mined parts, each noun counted as often as its part was copied."""
    images, mentions = Counter[str](), Counter[str]()
    for part in range(PARTS):
        copies = len(range(part, parts, PARTS))
        for row in stored.nouns.read(part):
            said = Counter(noun.text for noun in row.nouns)
            images.update(dict.fromkeys(said, copies))
            mentions.update({noun: copies * count for noun, count in said.items()})
    for noun in stored.vocabulary.read():
        yield replace(noun, images=images[noun.noun], mentions=mentions[noun.noun])


def _cut(cut_with: Callable[[str], _Template], part: int) -> _Template:
    """The stencils of a mined part's cells, by the first marks that its files have as they are."""
    for salt in range(_SALTS):
        with suppress(NoStencilError):
            return cut_with(f"{part}-{salt}")
    raise AssertionError(f"part {part}: no marks stand in its files as they are")


def _cut_with(
    salt: str,
    *,
    stored: RunCells,
    cells: RunCells,
    of: Mapping[str, Step],
    part: int,
    steps: Sequence[str],
    known: Mapping[str, str],
) -> _Template:
    """The stencils of some steps' cells of a mined part, with marks that follow from the salt."""
    ids = sorted(_digest(f"{salt}-{number}")[:_ID_DIGITS] for number in range(IMAGES))
    of_ids = dict(zip(stored.images.read_table(part)["image_id"].to_pylist(), ids, strict=True))
    marks = [*(one.encode() for one in ids), _PART_MARK.encode()]
    tar, index = _marked_shard(stored, part, of_ids) if "shards" in steps else (b"", None)
    found = []
    for step in steps:
        inputs = of[step].job.inputs if step in of else ()
        reads = tuple(one.cells.title for one in inputs if one.cells.title not in known)
        read = {title: known.get(title) or _digest(f"{salt}-{title}") for title in (*reads, *known)}
        own, metadata = _named(stored, step), {_FINGERPRINT_KEY: _named(cells, step).fingerprint}
        if inputs:
            made_from = identities(inputs, 0, read=lambda other, _, read=read: read[other.title])  # type: ignore[misc]
            metadata[_MADE_FROM_KEY] = json.dumps(made_from, sort_keys=True)
        table = index if step == "shards" and index is not None else _with_ids(own.read_table(part), of_ids)
        all_marks = [*marks, *(read[title].encode() for title in reads)]
        stencil = ParquetStencil.cut(table, metadata=_metadata(own.read_metadata(part)) | metadata, marks=all_marks)
        found.append(_Cell(step, _named(cells, step).folder, stencil, reads))
    if index is None:
        return _Template(tuple(found), tuple(marks))
    account = _marked_account(stored, cells, part, of_ids, found[-1].reads, size_bytes=len(tar))
    return _Template(tuple(found), tuple(marks), TarStencil.cut(tar, marks), account)


def _with_ids(table: pa.Table, ids: Mapping[str, str]) -> pa.Table:
    """The rows of a cell with other ids of the images."""
    column = pa.array([ids[one] for one in table["image_id"].to_pylist()], pa.string())
    return table.set_column(table.column_names.index("image_id"), table.schema.field("image_id"), column)


def _marked_shard(stored: RunCells, part: int, ids: Mapping[str, str]) -> tuple[bytes, pa.Table]:
    """The tar of a part and its index with other ids of the images, and with the mark in place of the part."""
    finished, tar, rows = FinishedRun.open(stored.shards.run), io.BytesIO(), []
    for row in finished.rows(part, SampleRow):
        sample, offset = finished.sample(row), tar.tell()
        image_id, number = ids[row.image_id], row.key.rpartition("-")[2]
        record = sample.record | {"image_id": image_id}
        key = sample_key(image_id, int(number))
        size_bytes = write_sample(
            tar, Sample(key, sample.image, sample.mask_png, row.noun, record), image_format=sample.image_format
        )
        place: dict[str, Any] = {
            "key": key,
            "shard": f"{_PART_MARK}.tar",
            "offset": offset,
            "size_bytes": size_bytes,
            "crc32": None,
        }
        rows.append(replace(row, image_id=image_id, **place))
    write_end_of_tar(tar, size_bytes=tar.tell())
    return tar.getvalue(), to_table(rows, index_type(FORMAT_VERSION))


def _marked_account(
    stored: RunCells, cells: RunCells, part: int, ids: Mapping[str, str], reads: Sequence[str], *, size_bytes: int
) -> bytes:
    """The account of a part with marks, and names in braces in place of sums."""
    account = stored.shards.run.read_json(*stored.shards.names(part, "json"))
    rejections = [{**one, "image_id": ids[one["image_id"]]} for one in account["rejections"]]
    marked = account | {
        "fingerprint": cells.shards.fingerprint,
        "part": int(_PART_MARK),
        "bytes": size_bytes,
        "sha256": "{tar}",
        "index_sha256": "{shards}",
        "cells": {_named(cells, title).folder: f"{{{title}}}" for title in reads},
        "rejections": rejections,
        "finished": _FINISHED,
    }
    return json_file(marked)


def _fill_parts(root: str, templates: Sequence[_Template], parts: range, made: Sequence[Made]) -> list[Made]:
    """Write the files of some parts; `made` are their cells that are there already. Returns these and the new ones."""
    found = []
    for number, part in enumerate(parts):
        of_part = dict(made[number]) if made else {}
        template = templates[part % PARTS]
        ids = sorted(f"{(part * IMAGES + one) * _ID_FACTOR % (1 << _ID_BITS):0{_ID_DIGITS}x}" for one in range(IMAGES))
        values = [*(one.encode() for one in ids), part_name(part).encode()]
        if template.tar is not None:
            tar = template.tar.fill(values)
            of_part["tar"] = "", _write(tar, root, "shards", cell_name(part, "tar"))
        for cell in template.cells:
            content, identity = cell.stencil.fill([*values, *(of_part[title][0].encode() for title in cell.reads)])
            of_part[cell.title] = identity, _write(content, root, cell.folder, cell_name(part))
        if template.account:
            account = template.account.replace(b'"part": %s' % _PART_MARK.encode(), b'"part": %d' % part)
            for mark, value in zip(template.marks, values, strict=True):
                account = account.replace(mark, value)
            for title, (_, sha256) in of_part.items():
                account = account.replace(b"{%s}" % title.encode(), sha256.encode())
            _write(account, root, "shards", cell_name(part, "json"))
        found.append(of_part)
    return found


def _write(content: bytes, *names: str) -> str:
    """Write a file, which need not survive a fault of the machine; returns its SHA-256."""
    with open(os.path.join(*names), "wb") as file:
        file.write(content)
    return hashlib.sha256(content).hexdigest()


def _metadata(stored: Mapping[str, str]) -> dict[str, str]:
    """The metadata of a cell without what is another one's in a copy."""
    return {key: value for key, value in stored.items() if key not in _OWN_KEYS}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def main(
    folder: Annotated[Path, typer.Argument(help="The folder to write into.")],
    parts: Annotated[int, typer.Option(min=PARTS, max=MOST, help="Parts of the run.")] = 1000,
) -> None:
    """Write a simulated run."""
    typer.echo(simulate(folder, parts=parts, say=partial(typer.echo, err=True)).root)


if __name__ == "__main__":
    typer.run(main)
