"""The end of a run: accounts merged and checked, manifest, checksums and dataset card written, `_SUCCESS` last.

Which file vouches for which:

    _SUCCESS ─┬▶ SHA256SUMS ─────▶ the set: shards, indexes, manifest, card
              └▶ SHA256SUMS.run ─▶ all else of the folder: plan, cells, accounts, settings

All four have the form of `sha256sum -c`. The set is the same wherever it is made; the other files know times and paths.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from maskmine.mining.storage.query import QueryError, query_cells
from maskmine.pipelines.dataset.calibrations import calibration_of
from maskmine.pipelines.dataset.cards import filters_of, render_card
from maskmine.pipelines.dataset.croissant import describe_run
from maskmine.pipelines.dataset.set_versions import planned_sha256, set_fingerprint, source_names, version_entries
from maskmine.pipelines.planning.plan import PLAN_FILE, PLANNED_CELLS, Plan
from maskmine.pipelines.planning.versions import Version, all_parts, whole_plan
from maskmine.pipelines.run_folder.folder import FINGERPRINT_FILE, IDENTITY_FILE, SUCCESS_FILE, RunFolder
from maskmine.pipelines.settings.mining import Mining
from maskmine.pipelines.steps.grid import Step
from maskmine.pipelines.steps.identity import Identity, format_version
from maskmine.schemas.errors import IncompleteError
from maskmine.schemas.manifest import DerivedFrom, Manifest, ShardEntry, SourceEntry, Totals
from maskmine.schemas.rows import RejectedImage
from maskmine.schemas.sample import cell_name
from maskmine.schemas.tables import write_parquet_rows

_ACCOUNT_KEYS = {
    *("part", "images", "with_pairs", "rejected", "rejections", "samples", "bytes", "sha256", "index_sha256"),
    "fingerprint",
}
DERIVED_FILE = "derived_from.json"  # names the run whose regions were reused
# Libraries whose version can change the bytes of a set.
_LIBRARIES = (
    *("maskmine", "numpy", "open_clip_torch", "pillow", "pyarrow", "pycocotools", "spacy", "torch", "transformers"),
)
# Files that describe the set, which SHA256SUMS covers; and all that are there besides the cells.
_DESCRIBING = ("README.md", "croissant.json", "errors.parquet", "manifest.json", "shards/sizes.json")
SUMS_FILE, RUN_SUMS_FILE = "SHA256SUMS", "SHA256SUMS.run"
_PUBLISHED = ("mining.yaml", IDENTITY_FILE, SUMS_FILE, RUN_SUMS_FILE, *_DESCRIBING)
_FETCHED_AT_ONCE = 16

Sums = dict[str, str]
"""SHA-256 by file, relative to the folder."""


class BrokenShardsError(IncompleteError):
    """Files of shards were not whole. They were deleted, so the shards can be made again."""


def published(run: RunFolder, versions: Sequence[Version], grids: Sequence[Sequence[Step]], identity: Identity) -> bool:
    """Whether the folder holds the finished set of exactly these settings and inputs, and its manifest says so."""
    manifest, steps = run.read_json("manifest.json"), grids[0]
    return (
        run.exists(SUCCESS_FILE)
        and all(run.exists(*name.split("/")) for name in _PUBLISHED)
        and all(step.once or step.output.is_current() for step in steps)
        and isinstance(manifest, dict)
        and manifest.get("fingerprint") == set_fingerprint(versions, steps[-1].fingerprint)
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
    steps, plan, before = grids[0], whole_plan(versions), _sums_before(run, versions)
    _refuse_other_writer(run, steps)
    of_shards = steps[-1].fingerprint
    accounts, sums = _read_accounts(run, plan, fingerprint=of_shards)
    shards = tuple(shard_entry(account) for account in accounts)
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
    run.write_json("shards", "sizes.json", value={shard.name: shard.samples for shard in shards})
    run.write_json("manifest.json", value=manifest.as_stored())
    run.write_json("croissant.json", value=describe_run(manifest))
    last = shards[-1].name.removesuffix(".tar")
    card = render_card("dataset_card.md", manifest=manifest, shards=f"{{00000..{last}}}", filters=filters_of(manifest))
    write_text(run, "README.md", text=card)
    write_text(run, SUMS_FILE, text=sums_text(_sums_of_set(run, shards)))
    write_text(run, RUN_SUMS_FILE, text=sums_text(sums | _sums_of_rest(run, versions, grids, before)))
    return manifest


def mark_success(run: RunFolder) -> None:
    """Mark the set as complete; nothing is written after this. The mark vouches for the files of sums."""
    write_text(run, SUCCESS_FILE, text=sums_text(hash_all(run, [SUMS_FILE, RUN_SUMS_FILE])))


def _refuse_other_writer(run: RunFolder, steps: Sequence[Step]) -> None:
    foreign = [step.name for step in steps if not step.once and not step.output.is_current()]
    if foreign:
        raise IncompleteError(
            f"{run.root}: another run, of other settings or inputs, writes here as well ({', '.join(foreign)}); "
            "stop it and run the same command again"
        )


def _read_accounts(run: RunFolder, plan: Plan, *, fingerprint: str) -> tuple[list[dict[str, Any]], Sums]:
    """The accounts of all parts, with the sums of their own files and of the cells that they vouch for.

    Their rejections are moved to `errors.parquet`. Raises BrokenShardsError.
    """
    accounts, sums, broken = [], Sums(), 0

    def rejected() -> Iterator[RejectedImage]:
        nonlocal broken
        names = [cell_name(part, "json") for part in range(plan.parts)]
        for part, content in enumerate(_read_all(run, [("shards", name) for name in names])):
            account = _whole_account(content)
            if account is None:
                run.delete("shards", names[part])  # the shard then counts as not made
                broken += 1
                continue
            _refuse_other(account, run.cell_path("shards", part, "json"), fingerprint=fingerprint)
            sums[f"shards/{names[part]}"] = hashlib.sha256(content).hexdigest()
            sums.update({f"{step}/{cell_name(part)}": digest for step, digest in account.get("cells", {}).items()})
            yield from (RejectedImage(part=part, **entry) for entry in account.pop("rejections"))
            accounts.append(account)

    with run.write("errors.parquet") as file:
        write_parquet_rows(rejected(), file, RejectedImage)
    if broken:
        raise BrokenShardsError(f"{run.root}: {broken} shards are not whole; run the same command again")
    return accounts, sums


def _read_all(run: RunFolder, files: Sequence[Sequence[str]]) -> Iterator[bytes]:
    """The contents of small files in order, some read at a time; empty where one is missing."""

    def read(names: Sequence[str]) -> bytes:
        try:
            return run.read_bytes(*names)
        except FileNotFoundError:
            return b""

    with ThreadPoolExecutor(_FETCHED_AT_ONCE) as pool:
        for start in range(0, len(files), _FETCHED_AT_ONCE):
            yield from pool.map(read, files[start : start + _FETCHED_AT_ONCE])


def _whole_account(content: bytes) -> dict[str, Any] | None:
    """An account, or None where it is missing or was cut off; of one that was, JSON may be left."""
    try:
        account = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return account if isinstance(account, dict) and account.keys() >= _ACCOUNT_KEYS else None


def _refuse_other(account: Mapping[str, Any], path: str, *, fingerprint: str) -> None:
    if account["fingerprint"] != fingerprint:
        raise IncompleteError(
            f"{path}: made from other settings or inputs, is another run writing here? "
            "Stop it, delete the file and run the same command again"
        )


def shard_entry(account: Mapping[str, Any]) -> ShardEntry:
    """A shard as the manifest has it, from its account."""
    return ShardEntry(
        name=cell_name(account["part"], "tar"),
        images=account["images"],
        samples=account["samples"],
        size_bytes=account["bytes"],
        sha256=account["sha256"],
        index_sha256=account["index_sha256"],
    )


def _totals(run: RunFolder, plan: Plan, accounts: list[dict[str, Any]], *, checked: Sums) -> tuple[Totals, list[str]]:
    """The sums, and the names of the caption sources that pairs are from. Indexes that are `checked` are not again."""
    rejected: Counter[str] = Counter()
    for account in accounts:
        rejected.update(account["rejected"])
    nouns, sources = _nouns_and_sources(run, plan, accounts, checked)
    totals = Totals(
        images=sum(account["images"] for account in accounts),
        with_pairs=sum(account["with_pairs"] for account in accounts),
        rejected=dict(sorted(rejected.items())),
        samples=sum(account["samples"] for account in accounts),
        nouns=nouns,
        size_bytes=sum(account["bytes"] for account in accounts),
        pairs=sum(account["pairs"] for account in accounts)
        if all("pairs" in account for account in accounts)
        else None,
        masks_left_out=sum(len(account.get("masks_left_out", ())) for account in accounts),
    )
    if not plan.images == totals.images == totals.with_pairs + rejected.total():
        raise AssertionError(
            f"{plan.images} images planned, {totals.images} seen, {totals.with_pairs} with pairs,"
            f" {rejected.total()} rejected: the run has lost images"
        )
    return totals, sources or ["all"]


def _nouns_and_sources(
    run: RunFolder, plan: Plan, accounts: Sequence[Mapping[str, Any]], checked: Sums
) -> tuple[int, list[str] | None]:
    """How many nouns the indexes have, and the names of their sources. Raises BrokenShardsError."""
    paths = [run.cell_path("shards", part) for part in range(plan.parts)]
    known = [checked.get(f"shards/{cell_name(part)}") for part in range(plan.parts)]
    same = (path for path, sha256, one in zip(paths, known, accounts, strict=True) if sha256 == one["index_sha256"])
    try:
        with query_cells(paths, unchecked=frozenset(same)) as (connection, cells):
            found: tuple[int, list[str] | None] = connection.execute(
                "SELECT count(DISTINCT noun), list_sort(list(DISTINCT source) FILTER (source IS NOT NULL))"
                " FROM read_parquet($cells)",
                {"cells": cells},
            ).fetchone()
        return found
    except (QueryError, IncompleteError) as error:
        broken = [part for part in range(plan.parts) if run.read_fingerprint("shards", cell_name(part)) is None]
        if not broken:
            raise
        for part in broken:
            run.delete("shards", cell_name(part))
        raise BrokenShardsError(
            f"{run.root}: {len(broken)} indexes are not whole; run the same command again"
        ) from error


def _sources(settings: Mining, captions: list[str]) -> tuple[SourceEntry, ...]:
    licences = settings.licences
    entries = [SourceEntry(role="captions", name=name, licence=licences.of_captions(name)) for name in captions]
    return (*entries, SourceEntry(role="images", name="all", licence=licences.pictures))


def _derived_from(run: RunFolder) -> DerivedFrom | None:
    stored = run.read_json(DERIVED_FILE)
    return None if stored is None else DerivedFrom.model_validate(stored)


def _sums_of_set(run: RunFolder, shards: tuple[ShardEntry, ...]) -> Sums:
    sums = {f"shards/{shard.name}": shard.sha256 for shard in shards}
    sums |= {f"shards/{shard.name.replace('.tar', '.parquet')}": shard.index_sha256 for shard in shards}
    return sums | hash_all(run, _DESCRIBING)


def _sums_before(run: RunFolder, versions: Sequence[Version]) -> Sums:
    """Where something was appended: the sums that the set had before, of which what did not change is not read again.

    The plan deletes its file of sums before it writes a cell of its own again.
    """
    if len(versions) == 1:
        return Sums()
    found = Sums()
    for name in (SUMS_FILE, RUN_SUMS_FILE):
        content = run.read_bytes(name).decode() if run.exists(name) else ""
        pairs = (line.partition("  ") for line in content.splitlines())
        found.update((file, digest) for digest, _, file in pairs)
    return found


def _sums_of_rest(run: RunFolder, versions: Sequence[Version], grids: Sequence[Sequence[Step]], before: Sums) -> Sums:
    """The sums of what neither the set nor an account vouches for: the plan's cells, and single files."""
    cells = [f"{step}/{cell_name(part)}" for step in PLANNED_CELLS for part in all_parts(versions)]
    stay = {name: before[name] for name in cells if name in before}
    of_steps = [f"{step.name}/{FINGERPRINT_FILE}" for step in grids[0] if not step.once]
    once = ["/".join(step.output.names()) for grid in grids for step in grid if step.once]
    plans = [f"{version.folder}/{PLAN_FILE}" if version.folder else PLAN_FILE for version in versions]
    derived = [DERIVED_FILE] if run.exists(DERIVED_FILE) else []
    single = [*plans, IDENTITY_FILE, "mining.yaml", *derived, *of_steps, *once]
    return stay | hash_all(run, [*single, *(name for name in cells if name not in stay)])


def hash_all(run: RunFolder, names: Sequence[str]) -> Sums:
    """The sums of files of a folder."""

    def digest(name: str) -> str:
        with run.open(*name.split("/")) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]

    with ThreadPoolExecutor(_FETCHED_AT_ONCE) as pool:
        return dict(zip(names, pool.map(digest, names), strict=True))


def sums_text(sums: Mapping[str, str]) -> str:
    """The content of a file of sums."""
    return "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items()))


def write_text(run: RunFolder, *names: str, text: str) -> None:
    """Write a text file, whole or not at all."""
    with run.write(*names) as file:
        file.write(text.encode())
