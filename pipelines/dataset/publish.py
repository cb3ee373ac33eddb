"""The end of a run: accounts merged and checked, manifest, checksums and dataset card written, `_SUCCESS` last.

Which file vouches for which:

    _SUCCESS ─┬▶ SHA256SUMS ─────▶ the set: shards, indexes, manifest, card
              └▶ SHA256SUMS.run ─▶ all else of the folder: plan, cells, accounts, settings

All four have the form of `sha256sum -c`. The set is the same wherever it is made; the other files know times and paths.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from maskmine.mining.storage.query import QueryError, query_slices
from maskmine.pipelines.dataset.accounts import Accounts, BrokenShardsError
from maskmine.pipelines.dataset.calibrations import calibration_of
from maskmine.pipelines.dataset.cards import filters_of, render_card
from maskmine.pipelines.dataset.croissant import describe_run
from maskmine.pipelines.dataset.set_versions import planned_sha256, set_fingerprint, source_names, version_entries
from maskmine.pipelines.dataset.stored_shards import SIZES_FILE, describing_files, write_sizes
from maskmine.pipelines.dataset.sums import RUN_SUMS_FILE, SUMS_FILE, FileSums, hash_all, read_sums, write_sums
from maskmine.pipelines.planning.plan import PLAN_FILE, PLANNED_CELLS, Plan
from maskmine.pipelines.planning.versions import Version, whole_plan
from maskmine.pipelines.run_folder.folder import FINGERPRINT_FILE, IDENTITY_FILE, SUCCESS_FILE, RunFolder
from maskmine.pipelines.settings.mining import Mining
from maskmine.pipelines.steps.grid import Step
from maskmine.pipelines.steps.identity import Identity, format_version
from maskmine.schemas.errors import IncompleteError
from maskmine.schemas.manifest import DerivedFrom, Manifest, SourceEntry, Totals
from maskmine.schemas.sample import cell_name
from maskmine.schemas.shard_entries import SHARDS_TABLE, Shards

DERIVED_FILE = "derived_from.json"  # names the run whose regions were reused
# Libraries whose version can change the bytes of a set.
_LIBRARIES = (
    *("maskmine", "numpy", "open_clip_torch", "pillow", "pyarrow", "pycocotools", "spacy", "torch", "transformers"),
)
# Files that describe the set, which SHA256SUMS covers; and all that are there besides the cells.
_DESCRIBING = ("README.md", "croissant.json", "errors.parquet", "manifest.json")
_PUBLISHED = ("mining.yaml", IDENTITY_FILE, SUMS_FILE, RUN_SUMS_FILE, *_DESCRIBING, SIZES_FILE)
_INDEXES_AT_ONCE = 500  # in one query, which has some memory for each


def published(run: RunFolder, versions: Sequence[Version], grids: Sequence[Sequence[Step]], identity: Identity) -> bool:
    """Whether the folder holds the finished set of exactly these settings and inputs, and its manifest says so."""
    manifest, steps = run.read_json("manifest.json"), grids[0]
    return (
        run.exists(SUCCESS_FILE)
        and all(run.exists(*name.split("/")) for name in _PUBLISHED)
        and all(step.once or step.output.is_current() for step in steps)
        and isinstance(manifest, dict)
        and manifest.get("fingerprint") == set_fingerprint(versions, steps[-1].fingerprint)
        and (isinstance(manifest.get("shards"), list) or run.exists(SHARDS_TABLE))
        and manifest.get("settings") == json.loads(json.dumps(identity.settings))  # also what is for the record alone
    )


def publish(
    run: RunFolder,
    versions: Sequence[Version],
    settings: Mining,
    identity: Identity,
    grids: Sequence[Sequence[Step]],
) -> Manifest:
    """Write everything but `_SUCCESS`. Raises AssertionError when the accounting equation does not hold.

    Raises IncompleteError when a shard is missing, or when a run of other settings writes here as well. A shard whose
    account is not whole is deleted first, so that it is made again.
    """
    steps, plan = grids[0], whole_plan(versions)
    _refuse_other_writer(run, steps)
    of_shards = steps[-1].fingerprint
    with FileSums() as of_set, FileSums() as of_rest, FileSums() as before:
        if len(versions) > 1:
            _read_sums_before(run, before)
        accounts = Accounts(run, of_shards, of_set, of_rest)
        shards = accounts.gather(plan.parts)
        totals, sources = _totals(run, plan, accounts, checked=before)
        named = [source_names(version.captions or identity.settings["captions"]) for version in versions]
        checks = settings.checks
        captioned = [captioner.record() for captioner in settings.captioners]
        checked = [checks.record()] if checks is not None else []
        models = (*captioned, settings.nouns.record(), *settings.regions.records(), *checked)
        manifest = Manifest(
            format_version=format_version(settings, corrected=bool(identity.decisions.corrections)),
            fingerprint=set_fingerprint(versions, of_shards),
            plan_sha256=planned_sha256(versions),
            settings=dict(identity.settings),
            models=models,
            libraries={name: importlib.metadata.version(name) for name in _LIBRARIES},
            shards=shards,
            totals=totals,
            sources=_sources(settings, sources),
            derived_from=_derived_from(run),
            calibration=calibration_of(settings, identity.settings, models),
            versions=version_entries(versions, shards, fingerprint=of_shards, sources=named),
        )
        describe_set(run, manifest, filters=filters_of(manifest))
        _sum_set(run, shards, of_set)
        write_sums(run, SUMS_FILE, of_set.sorted())
        _sum_rest(run, versions, grids, of_rest, before=before)
        write_sums(run, RUN_SUMS_FILE, of_rest.sorted())
    return manifest


def describe_set(run: RunFolder, manifest: Manifest, *, filters: Mapping[str, Any]) -> None:
    """Write the files that describe a set: sizes of its shards, manifest, Croissant and card."""
    write_sizes(run, manifest.shards)
    run.write_json("manifest.json", value=manifest.as_stored())
    run.write_json("croissant.json", value=describe_run(manifest))
    last = manifest.shards[-1].name.removesuffix(".tar")
    card = render_card("dataset_card.md", manifest=manifest, shards=f"{{00000..{last}}}", filters=filters)
    write_text(run, "README.md", text=card)


def mark_success(run: RunFolder) -> None:
    """Mark the set as complete; nothing is written after this. The mark vouches for the files of sums."""
    write_sums(run, SUCCESS_FILE, hash_all(run, [SUMS_FILE, RUN_SUMS_FILE]))


def _refuse_other_writer(run: RunFolder, steps: Sequence[Step]) -> None:
    foreign = [step.name for step in steps if not step.once and not step.output.is_current()]
    if foreign:
        raise IncompleteError(
            f"{run.root}: another run, of other settings or inputs, writes here as well ({', '.join(foreign)}); "
            "stop it and run the same command again"
        )


def _totals(run: RunFolder, plan: Plan, accounts: Accounts, *, checked: FileSums) -> tuple[Totals, list[str]]:
    """The sums, and the names of the caption sources that pairs are from. Indexes that are `checked` are not again."""
    counts = accounts.counts
    nouns, sources = _nouns_and_sources(run, plan, accounts.of_set, checked)
    totals = Totals(
        images=counts.images,
        with_pairs=counts.with_pairs,
        rejected=dict(sorted(counts.rejected.items())),
        samples=counts.samples,
        nouns=nouns,
        size_bytes=counts.size_bytes,
        pairs=counts.pairs,
        masks_left_out=counts.masks_left_out,
    )
    if not plan.images == totals.images == totals.with_pairs + counts.rejected.total():
        raise AssertionError(
            f"{plan.images} images planned, {totals.images} seen, {totals.with_pairs} with pairs,"
            f" {counts.rejected.total()} rejected: the run has lost images"
        )
    return totals, sources or ["all"]


def _nouns_and_sources(run: RunFolder, plan: Plan, of_set: FileSums, checked: FileSums) -> tuple[int, list[str]]:
    """How many nouns the indexes have, and the names of their sources. Raises BrokenShardsError."""

    def is_known(part: int) -> bool:
        return checked.of_cell("shards", part) == of_set.of_cell("shards", part)

    try:
        return count_nouns(run, plan.parts, is_known=is_known, with_sources=True)
    except (QueryError, IncompleteError) as error:
        broken = [part for part in range(plan.parts) if run.read_fingerprint("shards", cell_name(part)) is None]
        if not broken:
            raise
        for part in broken:
            run.delete("shards", cell_name(part))
        raise BrokenShardsError(
            f"{run.root}: {len(broken)} indexes are not whole; run the same command again"
        ) from error


def count_nouns(
    run: RunFolder, parts: int, *, is_known: Callable[[int], bool] = lambda part: False, with_sources: bool = False
) -> tuple[int, list[str]]:
    """How many nouns the indexes of so many parts have, and the names of their sources where they are asked for.

    Indexes that are known are not checked again. Raises QueryError for one that is none, IncompleteError for one that
    is missing or damaged. In memory are some indexes at a time, and the nouns, which go to the disk beyond a gigabyte.
    """

    def slices() -> Iterator[tuple[list[str], frozenset[str]]]:
        for start in range(0, parts, _INDEXES_AT_ONCE):
            paths = {part: run.cell_path("shards", part) for part in range(start, min(start + _INDEXES_AT_ONCE, parts))}
            yield list(paths.values()), frozenset(path for part, path in paths.items() if is_known(part))

    columns = "noun, source" if with_sources else "noun"
    with query_slices(slices()) as (connection, remaining):
        connection.execute("CREATE TEMP TABLE named (noun VARCHAR, source VARCHAR)")
        for cells in remaining:  # each by itself: what the slices have in common is found once, at the end
            select = f"INSERT INTO named BY NAME SELECT DISTINCT {columns} FROM read_parquet($cells)"
            connection.execute(select, {"cells": cells})
        # Grouped first: unlike count(DISTINCT …), that can spill to disk.
        (nouns,) = connection.execute("SELECT count(*) FROM (SELECT noun FROM named GROUP BY noun)").fetchone()
        sources = connection.execute("SELECT DISTINCT source FROM named WHERE source IS NOT NULL").fetchall()
    return nouns, sorted(source for (source,) in sources)


def _sources(settings: Mining, captions: list[str]) -> tuple[SourceEntry, ...]:
    licences = settings.licences
    entries = [SourceEntry(role="captions", name=name, licence=licences.of_captions(name)) for name in captions]
    return (*entries, SourceEntry(role="images", name="all", licence=licences.pictures))


def _derived_from(run: RunFolder) -> DerivedFrom | None:
    stored = run.read_json(DERIVED_FILE)
    return None if stored is None else DerivedFrom.model_validate(stored)


def _sum_set(run: RunFolder, shards: Shards, of_set: FileSums) -> None:
    """Add the files that describe the set to those of the shards."""
    for name, sha256 in hash_all(run, (*_DESCRIBING, *describing_files(shards))):
        of_set.put(name, sha256)


def _read_sums_before(run: RunFolder, before: FileSums) -> None:
    """Where something was appended: the sums that the set had before, of which what did not change is not read again.

    The plan deletes its file of sums before it writes a cell of its own again.
    """
    for name in (SUMS_FILE, RUN_SUMS_FILE):
        if run.exists(name):
            for one in read_sums(run, name):
                if isinstance(one, tuple):
                    before.put(*one)


def _sum_rest(
    run: RunFolder,
    versions: Sequence[Version],
    grids: Sequence[Sequence[Step]],
    of_rest: FileSums,
    *,
    before: FileSums,
) -> None:
    """Add the sums of what neither the set nor an account vouches for: the plan's cells, and single files."""
    of_steps = [f"{step.name}/{FINGERPRINT_FILE}" for step in grids[0] if not step.once]
    once = ["/".join(step.output.names()) for grid in grids for step in grid if step.once]
    plans = [f"{version.folder}/{PLAN_FILE}" if version.folder else PLAN_FILE for version in versions]
    derived = [DERIVED_FILE] if run.exists(DERIVED_FILE) else []
    single = [*plans, IDENTITY_FILE, "mining.yaml", *derived, *of_steps, *once]

    def unknown() -> Iterator[str]:
        yield from single
        for step in PLANNED_CELLS:
            for part in chain.from_iterable(version.parts for version in versions):
                known = before.of_cell(step, part)
                if known is None:
                    yield f"{step}/{cell_name(part)}"
                else:
                    of_rest.put_cell(step, part, known)

    for name, sha256 in hash_all(run, unknown()):
        of_rest.put(name, sha256)


def write_text(run: RunFolder, *names: str, text: str) -> None:
    """Write a text file, whole or not at all."""
    with run.write(*names) as file:
        file.write(text.encode())
