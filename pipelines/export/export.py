"""Export: the pairs of a finished run, filtered and split, in the format that another program trains on.

    index of each shard ─▶ selection ─▶ split ─▶ shards of N samples ─▶ files, README, checksums, _SUCCESS

A finished shard is not made again, so an interrupted export can be continued; the same run and settings give the same
bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from maskmine.mining.exports.export_shards import ExportShard, ExportSummary, Tick, Totals
from maskmine.mining.exports.filters import Selection
from maskmine.mining.exports.images import Pictures
from maskmine.pipelines.dataset.finished_run import FinishedRun
from maskmine.pipelines.export.card import export_card
from maskmine.pipelines.export.folder import (
    ExportFolder,
    claim_folder,
    complete,
    counts_of_shards,
    empty,
    shards_done,
    write_shard,
)
from maskmine.pipelines.export.forms import FORMATS, Format
from maskmine.pipelines.export.reader import RunReader
from maskmine.pipelines.export.selected import Selected, SplitRows, Unit, select_samples
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.pipelines.settings.licences import LicencePolicy, refuse_other_licences
from maskmine.schemas.errors import InputError
from maskmine.schemas.manifest import Manifest, refuse_wider_crops
from maskmine.schemas.rows import Rejection, SampleRow
from maskmine.schemas.sample import why_no_score
from maskmine.schemas.settings import AddedLater, ExecutionOnly, Settings, fingerprint, plain_values
from maskmine.schemas.tables import from_table

# Raised when the code of an export changes what it writes; folders of older code then belong to another plan.
EXPORT_VERSION = 5
_TRIED_PHOTOGRAPHS = 20  # before an export of photographs is given up


class Export(Settings):
    """What an export writes: its format, the pairs that go into it, and how images look."""

    format: str
    """One of the formats of docs/exports.md, such as `webdataset`."""
    selection: Selection = Selection()
    """Which pairs are exported, and into which splits."""
    pictures: Pictures = Pictures()
    """How images are written."""
    samples_per_piece: Annotated[int, Field(ge=1)] = 10_000
    """Samples of a shard; those of an image stay together in forms that have a row or a file for each image."""
    by_part: Annotated[bool, AddedLater()] = False
    """A shard for each part of the run, so that a part that changes does not move the samples of the others."""
    licences: tuple[str, ...] | None = None
    """Licences that captions and images may have; null allows any."""
    policy: Annotated[LicencePolicy, ExecutionOnly()] = "any"
    """`commercial` refuses parts that are not known to allow commercial use; `any` refuses none."""
    csv_prefix: str = ""
    """Text before the paths in OVSeg's table."""


@dataclass(frozen=True, slots=True)
class Exported:
    """Counts of an export; `size_bytes` is None when it was complete already. `without_pairs` are nouns that were asked
    for and that no pair has which passes the filters."""

    totals: Totals
    size_bytes: int | None
    without_pairs: tuple[str, ...] = ()


Begin = Callable[[int], Tick]


def export_run(run: RunFolder, export: Export, *, out: str, begin: Begin = lambda _: lambda _: None) -> Exported:
    """Export a finished run to a folder, or continue an export that was interrupted.

    `begin` receives the number of samples and returns the function that is called as they are written. Raises
    InputError for settings that do not fit the run, IncompleteError when the run is not finished or a shard is broken,
    OtherPlanError when the folder holds another export.
    """
    form = _format(export)
    finished = FinishedRun.open_published(run)
    manifest = finished.manifest
    selection = _allowed(export, manifest)
    refuse_wider_crops(manifest, export.pictures.expand_ratio, name="--expand", folder=run.root)
    form.check()
    with RunReader(finished) as reader:
        # Count what passes the filters, and claim the folder for it.
        per_shard = export.samples_per_piece
        selected = select_samples(reader, selection, unit=_unit(export, form), samples_per_shard=per_shard)
        totals = selected.totals
        if not sum(totals.samples.values()):
            raise InputError(_nothing_left(run.root, reader, selection, manifest))
        if form.photographs:
            _require_photographs(reader, selection, export)
        folder = claim_folder(out, _plan(export, form, manifest, totals))
        if folder is None:
            return Exported(totals, None, selected.without_pairs)
        # Write the shards, then the files that describe them.
        _write_shards(folder, selected, export, form, begin(sum(totals.samples.values())))
        others = ExportFolder(folder)
        if form.finish:
            image_format = _image_format(export, form, manifest)
            summary = ExportSummary(selected.shards, image_format, selected.tables, export.csv_prefix, totals.nouns)
            form.finish(others, summary)
        counts = counts_of_shards(folder)
        with others.write("README.md") as file:
            card = export_card(export.format, form, manifest, totals, selected.shards, selection, counts)
            file.write(card.encode())
        return Exported(totals, complete(folder, others), selected.without_pairs)


def _format(export: Export) -> Format:
    form = FORMATS.get(export.format)
    if form is None:
        raise InputError(f"--to {export.format}: unknown; choose one of {', '.join(FORMATS)}")
    if form.lossless and export.pictures.image_format not in (None, "png"):
        raise InputError(f"--to {export.format}: its masks are a colour, which png alone keeps; drop --image-format")
    return form


def _allowed(export: Export, manifest: Manifest) -> Selection:
    """The selection without the caption sources whose licence is not among those asked for; checks the policy."""
    used = [s for s in manifest.sources if export.licences is None or s.licence in export.licences]
    sources = [source for source in manifest.sources if source.role == "captions"]
    # A mix may have captions of one name and several licences, which its pairs do not tell apart.
    others = {source.name for source in sources if source not in used}
    names = tuple(dict.fromkeys(s.name for s in used if s.role == "captions" and s.name not in others))
    refused = [source for source in manifest.sources if source.role == "images" and source not in used]
    if refused or (sources and not names):
        listed = ", ".join(f"{source.role} {source.name}: {source.licence}" for source in refused or sources)
        raise InputError(f"--licences {','.join(export.licences or ())}: leaves nothing of this run ({listed})")
    parts = [(f"model ({model.role})", model.name, model.licence) for model in manifest.models]
    parts += [(source.role, source.name, source.licence) for source in used]
    if not manifest.sources:  # a run of a version that did not record them
        parts += [("captions and images", "of this run", "unknown")]
    refuse_other_licences(parts, policy=export.policy)
    return export.selection.model_copy(update={"sources": names} if others else None)


def _nothing_left(root: str, reader: RunReader, selection: Selection, manifest: Manifest) -> str:
    """Why no pair passes the filters: none has one of the scores, or the filters are too narrow."""
    for score, least in selection.thresholds.items():
        if not reader.has_score(score):
            why = why_no_score(score, manifest.format_version)
            return f"--min-{score} {least:g}: the pairs of {root} have no {score}, {why}"
    return f"{root}: the filters leave none of {manifest.totals.samples:,} pairs; widen them"


def _plan(export: Export, form: Format, manifest: Manifest, totals: Totals) -> dict[str, Any]:
    """The identity of the export, which the folder belongs to, and its counts."""
    settings = {name: value for name, value in plain_values(export).items() if name != "format"}
    licences = [entry.model_dump() for entry in (*manifest.models, *manifest.sources)]
    version = manifest.format_version  # of the samples, which some formats copy as they are
    run = {"fingerprint": manifest.fingerprint, "format_version": version, "licences": licences}
    return {
        "fingerprint": fingerprint([EXPORT_VERSION + form.revision, export.format, settings, run]),
        "format": export.format,
        "settings": settings,
        "run": run,
        "splits": {split: {"samples": n, "images": totals.images[split]} for split, n in totals.samples.items()},
        "nouns": len(totals.nouns),
    }


def _require_photographs(reader: RunReader, selection: Selection, export: Export) -> None:
    """Raise InputError where none of the first photographs can be read any more: then none is expected to be."""
    rows = (row for table in reader.tables(selection) for row in from_table(table.drop_columns(["split"]), SampleRow))
    first: dict[str, Rejection] = {}
    for row in rows:
        found = first.get(row.image_id) or reader.photograph(row, fetch=export.pictures.fetch)
        if not isinstance(found, Rejection):
            return
        first[row.image_id] = found
        if len(first) >= _TRIED_PHOTOGRAPHS:
            break
    one = next(iter(first.values()))
    raise InputError(
        f"--to {export.format}: holds the photographs, and those of this run cannot be read here ({one.reason}: "
        f"{one.detail}); put them where they were mined from, or choose a form that holds crops"
    )


def _unit(export: Export, form: Format) -> Unit:
    """What the shards of an export are cut between."""
    if form.whole:
        return "split"
    return "part" if export.by_part else form.by


def _write_shards(folder: RunFolder, selected: Selected, export: Export, form: Format, tick: Tick) -> None:
    """Write the shards of all splits but those that are there; `tick` counts samples."""
    done, reader = shards_done(folder), selected.reader
    for split, sizes in selected.shards.items():
        rows = SplitRows(selected, split)
        for number, samples in enumerate(sizes):
            name = f"{split}-{number:05d}"
            if name in done:
                rows.skip(samples)
                tick(samples)
                continue
            if form.folder_of:
                empty(folder, form.folder_of(split))
            tables = rows.take(samples)
            shard = ExportShard(
                split, number, len(sizes), tables, reader, export.pictures, selected.totals, tick, reader.version
            )
            write_shard(folder, name, shard, form.write)
            if next(tables, None) is not None:
                raise AssertionError(f"{name}: its writer has not written all samples")


def _image_format(export: Export, form: Format, manifest: Manifest) -> Any:
    stored = manifest.settings.get("shards", {}).get("image_format", "jpg")
    return "png" if form.lossless else export.pictures.image_format or stored
