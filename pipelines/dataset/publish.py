"""The end of a run: accounts merged and checked, manifest, checksums and dataset card written, `_SUCCESS` last."""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pyarrow.parquet as pq

from mining.query import query_cells
from pipelines.cards import render_card
from pipelines.croissant import describe_run
from pipelines.grid import Stage
from pipelines.inputs import portable
from pipelines.plan import Plan
from pipelines.run_folder import RunFolder
from pipelines.settings import Mining
from schemas.errors import IncompleteError
from schemas.manifest import DerivedFrom, Manifest, ModelEntry, ShardEntry, SourceEntry, Totals
from schemas.rows import RejectedImage
from schemas.sample import FORMAT_VERSION
from schemas.settings import fingerprint
from schemas.tables import arrow_schema, to_table

SUCCESS_FILE = "_SUCCESS"
DERIVED_FILE = "derived_from.json"
_LIBRARIES = (
    "maskmine",
    "numpy",
    "open_clip_torch",
    "pillow",
    "pyarrow",
    "pycocotools",
    "spacy",
    "torch",
    "transformers",
)
_DESCRIBING = ("README.md", "croissant.json", "errors.parquet", "manifest.json", "shards/sizes.json")
_PUBLISHED = ("mining.yaml", "SHA256SUMS", *_DESCRIBING)
_ROWS_AT_ONCE = 10_000


def published(run: RunFolder, stages: list[Stage], settings: Mining) -> bool:
    """Whether the folder holds the finished set of just these settings and inputs."""
    manifest = run.read_json("manifest.json")
    return (
        run.exists(SUCCESS_FILE)
        and all(run.exists(*name.split("/")) for name in _PUBLISHED)
        and all(stage.once or stage.is_current(run) for stage in stages)
        and isinstance(manifest, dict)
        and manifest.get("fingerprint") == stages[-1].fingerprint
        and manifest.get("settings", {}).get("licences") == portable(settings.licences)
    )


def publish(run: RunFolder, plan: Plan, settings: Mining, stages: list[Stage]) -> Manifest:
    """Write everything but `_SUCCESS`. Raises AssertionError when the accounting equation does not hold.

    Raises IncompleteError when a shard is missing, or when a run of other settings writes here as well.
    """
    _refuse_company(run, stages)
    accounts = _read_accounts(run, plan, fingerprint=stages[-1].fingerprint)
    shards = tuple(_shard_entry(account) for account in accounts)
    totals, sources = _totals(run, plan, accounts)
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        fingerprint=stages[-1].fingerprint,
        plan_sha256=fingerprint([plan.images_sha256, plan.parts]),
        settings=portable(settings),
        models=_models(settings),
        libraries=_versions(),
        shards=shards,
        totals=totals,
        sources=_sources(settings, sources),
        derived_from=_derived_from(run),
    )
    run.write_json("shards", "sizes.json", value={shard.name: shard.samples for shard in shards})
    run.write_json("manifest.json", value=manifest.model_dump(mode="json"))
    run.write_json("croissant.json", value=describe_run(manifest))
    last = f"{len(shards) - 1:05d}"
    card = render_card("dataset_card.md", manifest=manifest, shards=f"{{00000..{last}}}")
    _write_text(run, "README.md", text=card)
    _write_text(run, "SHA256SUMS", text=_checksums(run, shards))
    return manifest


def mark_success(run: RunFolder) -> None:
    """Say that the set is complete; nothing is written after this."""
    _write_text(run, SUCCESS_FILE, text="")


def _refuse_company(run: RunFolder, stages: list[Stage]) -> None:
    foreign = [stage.name for stage in stages if not stage.once and not stage.is_current(run)]
    if foreign:
        raise IncompleteError(
            f"{run.root}: another run, of other settings or inputs, writes here as well ({', '.join(foreign)}); "
            "stop it and run the same command again"
        )


def _read_accounts(run: RunFolder, plan: Plan, *, fingerprint: str) -> list[dict[str, Any]]:
    """The accounts of all parts without their rejections, which are written to `errors.parquet` on the way."""
    accounts = []
    rejected: list[RejectedImage] = []
    schema = arrow_schema(RejectedImage)
    with run.write("errors.parquet") as file, pq.ParquetWriter(file, schema, compression="zstd") as errors:
        for part, stored in enumerate(run.read_jsons("shards", range(plan.parts))):
            account = _account(run.cell_path("shards", part, "json"), stored, fingerprint=fingerprint)
            rejected += [RejectedImage(part=part, **entry) for entry in account.pop("rejections")]
            accounts.append(account)
            if len(rejected) >= _ROWS_AT_ONCE:
                errors.write_table(to_table(rejected, RejectedImage))
                rejected.clear()
        errors.write_table(to_table(rejected, RejectedImage))
    return accounts


def _account(path: str, account: Any, *, fingerprint: str) -> dict[str, Any]:
    if not isinstance(account, dict):
        raise IncompleteError(f"{path}: missing; run the same command again")
    if account["fingerprint"] != fingerprint:
        raise IncompleteError(
            f"{path}: made from other settings or inputs, is another run writing here? "
            "Stop it, delete the file and run the same command again"
        )
    return account


def _shard_entry(account: Mapping[str, Any]) -> ShardEntry:
    return ShardEntry(
        name=f"{account['part']:05d}.tar",
        images=account["images"],
        samples=account["samples"],
        size_bytes=account["bytes"],
        sha256=account["sha256"],
        index_sha256=account["index_sha256"],
    )


def _totals(run: RunFolder, plan: Plan, accounts: list[dict[str, Any]]) -> tuple[Totals, list[str]]:
    """The sums, and the names of the caption sources that pairs are from."""
    rejected: Counter[str] = Counter()
    for account in accounts:
        rejected.update(account["rejected"])
    with query_cells([run.cell_path("shards", part) for part in range(plan.parts)]) as (connection, cells):
        nouns, sources = connection.execute(
            "SELECT count(DISTINCT noun), list_sort(list(DISTINCT source) FILTER (source IS NOT NULL))"
            " FROM read_parquet($cells)",
            {"cells": cells},
        ).fetchone()
    totals = Totals(
        images=sum(account["images"] for account in accounts),
        with_pairs=sum(account["with_pairs"] for account in accounts),
        rejected=dict(sorted(rejected.items())),
        samples=sum(account["samples"] for account in accounts),
        nouns=nouns,
        size_bytes=sum(account["bytes"] for account in accounts),
    )
    if not plan.images == totals.images == totals.with_pairs + rejected.total():
        raise AssertionError(
            f"{plan.images} images planned, {totals.images} seen, {totals.with_pairs} with pairs,"
            f" {rejected.total()} rejected: the run has lost images"
        )
    return totals, sources or ["all"]


def _sources(settings: Mining, captions: list[str]) -> tuple[SourceEntry, ...]:
    licences = settings.licences
    said = [SourceEntry(role="captions", name=name, licence=licences.of_captions(name)) for name in captions]
    return (*said, SourceEntry(role="images", name="all", licence=licences.pictures))


def _derived_from(run: RunFolder) -> DerivedFrom | None:
    stored = run.read_json(DERIVED_FILE)
    return None if stored is None else DerivedFrom.model_validate(stored)


def _models(settings: Mining) -> tuple[ModelEntry, ...]:
    records = [settings.nouns.record(), *settings.regions.records()]
    return tuple(ModelEntry(role=r.role, name=r.name, sha256=r.sha256, licence=r.licence) for r in records)


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in _LIBRARIES}


def _checksums(run: RunFolder, shards: tuple[ShardEntry, ...]) -> str:
    sums = {f"shards/{shard.name}": shard.sha256 for shard in shards}
    sums |= {f"shards/{shard.name.replace('.tar', '.parquet')}": shard.index_sha256 for shard in shards}
    for name in _DESCRIBING:
        with run.open(*name.split("/")) as file:
            sums[name] = hashlib.sha256(file.read()).hexdigest()
    return "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items()))


def _write_text(run: RunFolder, *names: str, text: str) -> None:
    with run.write(*names) as file:
        file.write(text.encode())
