"""Export: the pairs of a finished run, filtered and split, in the form that another program trains on.

    index of each shard ─▶ selection ─▶ split ─▶ pieces of so many samples ─▶ files, README, checksums, _SUCCESS

A piece that is there is not made again, so an export that was interrupted goes on; the same run and the same settings
give the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from mining.exports import coco, hugging_face, mds, ovseg, tars
from mining.exports.pictures import Pictures
from mining.exports.pieces import Ending, Folder, Piece, Tick, Totals
from mining.exports.selection import Selection
from mining.licences import LicencePolicy, refuse_other_licences
from pipelines.export_card import export_card
from pipelines.export_folder import ExportFolder, claim_folder, complete, pieces_done, write_piece
from pipelines.export_reader import RunReader, read_finished
from pipelines.run_folder import RunFolder
from schemas.errors import InputError
from schemas.manifest import Manifest
from schemas.settings import Settings, fingerprint

# Raised when the code of an export changes what it writes; folders of the old code belong to another plan then.
EXPORT_VERSION = 2
_NUMBER = r"^(0|[1-9]\d{0,14})$"


@dataclass(frozen=True, slots=True)
class Format:
    """A form of export: `write` makes the files of a piece, `finish` those that speak of the whole.

    `whole`: a split is one piece. `lossless`: pictures are PNG, whatever is asked for. `check` is called before
    anything is done.
    """

    write: Callable[[Folder, Piece], None]
    finish: Callable[[Folder, Ending], None] | None = None
    whole: bool = False
    lossless: bool = False
    check: Callable[[], object] = lambda: None


FORMATS = {
    "webdataset": Format(tars.write_webdataset, tars.write_sizes),
    "openclip": Format(tars.write_openclip, tars.write_sizes),
    "ovseg": Format(ovseg.write_ovseg, ovseg.write_tables, lossless=True),
    "ovseg-shards": Format(tars.write_ovseg_tar, tars.write_sizes, lossless=True),
    "alpha-clip": Format(tars.write_alpha_clip, tars.write_sizes),
    "energon": Format(tars.write_webdataset, tars.write_energon_templates),
    "coco": Format(coco.write_coco, whole=True),
    "hf": Format(hugging_face.write_hugging_face),
    "mds": Format(mds.write_mds, whole=True, check=mds.require_mds),
    "parquet": Format(hugging_face.write_table),
}


class Export(Settings):
    """What an export is: a format, what goes into it, how pictures look, and how many samples a piece has.

    `licences` are those that captions and images may have, None for any. `csv_prefix` is put before the paths in
    OVSeg's table.
    """

    format: str
    selection: Selection = Selection()
    pictures: Pictures = Pictures()
    samples_per_piece: Annotated[int, Field(ge=1)] = 10_000
    licences: tuple[str, ...] | None = None
    policy: LicencePolicy = "any"
    csv_prefix: str = ""


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export wrote; `size_bytes` is None when it was complete already."""

    totals: Totals
    size_bytes: int | None


Begin = Callable[[int], Tick]


def export_run(run: RunFolder, export: Export, *, out: str, begin: Begin = lambda _: lambda _: None) -> Exported:
    """Export a finished run to a folder, or what is left of it.

    `begin` is told the number of samples and gives what is called as they are done. Raises InputError for settings that
    do not fit the run, IncompleteError when the run is not finished or a shard is broken, OtherPlanError when another
    export lies in the folder.
    """
    form = _format(export)
    manifest = read_finished(run)
    selection = _allowed(export, manifest)
    form.check()
    with RunReader(run, manifest) as reader:
        totals = _count(reader, selection)
        if not sum(totals.samples.values()):
            raise InputError(f"{run.root}: the filters leave none of {manifest.totals.samples:,} pairs; widen them")
        folder = claim_folder(out, _plan(export, manifest, totals))
        if folder is None:
            return Exported(totals, None)
        pieces = {split: _sizes(count, export, whole=form.whole) for split, count in totals.samples.items()}
        _write_pieces(folder, form, export, selection, reader, totals, pieces, tick=begin(sum(totals.samples.values())))
        others = ExportFolder(folder)
        if form.finish:
            image_format = _image_format(export, form, manifest)
            tables = partial(_tables_of_split, reader, selection)
            form.finish(others, Ending(pieces, image_format, tables, export.csv_prefix))
        with others.write("README.md") as file:
            file.write(export_card(export.format, manifest, totals, pieces, selection).encode())
        return Exported(totals, complete(folder, others))


def _format(export: Export) -> Format:
    form = FORMATS.get(export.format)
    if form is None:
        raise InputError(f"--to {export.format}: unknown; choose one of {', '.join(FORMATS)}")
    if form.lossless and export.pictures.image_format not in (None, "png"):
        raise InputError(f"--to {export.format}: its masks are a colour, which png alone keeps; drop --image-format")
    return form


def _allowed(export: Export, manifest: Manifest) -> Selection:
    """The selection without the caption sources whose licence is not among those asked for; checks the policy."""
    used = [source for source in manifest.sources if _is_listed(source.licence, export)]
    sources = [source for source in manifest.sources if source.role == "captions"]
    kept = tuple(source.name for source in used if source.role == "captions")
    refused = [source for source in manifest.sources if source.role == "images" and source not in used]
    if refused or (sources and not kept):
        said = ", ".join(f"{source.role} {source.name}: {source.licence}" for source in refused or sources)
        raise InputError(f"--licences {','.join(export.licences or ())}: leaves nothing of this run ({said})")
    parts = [(f"model ({model.role})", model.name, model.licence) for model in manifest.models]
    parts += [(source.role, source.name, source.licence) for source in used]
    if not manifest.sources:  # a run of a version that did not record them
        parts += [("captions and images", "of this run", "unknown")]
    refuse_other_licences(parts, policy=export.policy)
    if len(kept) == len(sources):
        return export.selection
    return export.selection.model_copy(update={"sources": kept})


def _is_listed(licence: str, export: Export) -> bool:
    return export.licences is None or licence in export.licences


def _count(reader: RunReader, selection: Selection) -> Totals:
    samples = {split.name: 0 for split in selection.splits}
    images = dict(samples)
    nouns: set[str] = set()
    numbered = True
    for table in reader.tables(selection):
        nouns.update(pc.unique(table["noun"]).to_pylist())
        for split in samples:
            ids = table["image_id"].filter(pc.equal(table["split"], split))
            samples[split] += len(ids)
            images[split] += pc.count_distinct(ids).as_py()  # an image lies in one shard
        numbered = numbered and bool(pc.all(pc.match_substring_regex(table["image_id"], _NUMBER)).as_py())
    return Totals(samples, images, tuple(sorted(nouns)), numbered)


def _plan(export: Export, manifest: Manifest, totals: Totals) -> dict[str, Any]:
    """What the folder belongs to; says how the work is done in nothing."""
    settings = export.model_dump(mode="json", exclude={"format": True, "policy": True, "pictures": {"threads"}})
    licences = [entry.model_dump() for entry in (*manifest.models, *manifest.sources)]
    run = {"fingerprint": manifest.fingerprint, "licences": licences}
    return {
        "fingerprint": fingerprint([EXPORT_VERSION, export.format, settings, run]),
        "format": export.format,
        "settings": settings,
        "run": run,
        "splits": {split: {"samples": n, "images": totals.images[split]} for split, n in totals.samples.items()},
        "nouns": len(totals.nouns),
    }


def _sizes(samples: int, export: Export, *, whole: bool) -> list[int]:
    """The samples of each piece of a split; an empty split is an empty piece, so that its readers find a file."""
    if whole or not samples:
        return [samples]
    full, rest = divmod(samples, export.samples_per_piece)
    return [export.samples_per_piece] * full + ([rest] if rest else [])


def _write_pieces(
    folder: RunFolder,
    form: Format,
    export: Export,
    selection: Selection,
    reader: RunReader,
    totals: Totals,
    pieces: dict[str, list[int]],
    *,
    tick: Tick,
) -> None:
    done = pieces_done(folder)
    for split, sizes in pieces.items():
        rows = _Rows(_tables_of_split(reader, selection, split))
        for number, samples in enumerate(sizes):
            name = f"{split}-{number:05d}"
            tables = rows.take(samples)
            if name in done:
                tick(sum(map(len, tables)))
                continue
            piece = Piece(split, number, len(sizes), tables, reader, export.pictures, totals, tick)
            write_piece(folder, name, partial(_write, form, piece))


def _write(form: Format, piece: Piece, folder: ExportFolder) -> None:
    form.write(folder, piece)


def _tables_of_split(reader: RunReader, selection: Selection, split: str) -> Iterator[pa.Table]:
    return reader.tables(selection, split=split)


class _Rows:
    """The rows of tables that come one by one, taken some at a time."""

    def __init__(self, tables: Iterator[pa.Table]) -> None:
        self._tables = tables

    def take(self, rows: int) -> Iterator[pa.Table]:
        """The next rows; the tables before must have been read to their end."""
        while rows > 0 and (table := next(self._tables, None)) is not None:
            taken, rest = table[:rows], table[rows:]
            if len(rest):
                self._tables = chain([rest], self._tables)
            rows -= len(taken)
            yield taken


def _image_format(export: Export, form: Format, manifest: Manifest) -> Any:
    stored = manifest.settings.get("shards", {}).get("image_format", "jpg")
    return "png" if form.lossless else export.pictures.image_format or stored
