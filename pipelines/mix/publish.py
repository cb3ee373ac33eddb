"""The end of a mix: manifest, card and checksums of all its files, then `_SUCCESS`."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from maskmine.mining.storage.query import query_cells
from maskmine.pipelines.dataset.cards import render_card
from maskmine.pipelines.dataset.croissant import describe_run
from maskmine.pipelines.dataset.publish import SUMS_FILE, Sums, hash_all, shard_entry, sums_text, write_text
from maskmine.pipelines.mix.choice import SourceCounts
from maskmine.pipelines.mix.shards import ORIGINS, SHARDS
from maskmine.pipelines.mix.sources import MixSource, common_format
from maskmine.pipelines.run_folder.folder import MIX_FILE, SUCCESS_FILE, RunFolder
from maskmine.schemas.manifest import Manifest, MixedSource, ModelRecord, ShardEntry, SourceEntry, Totals
from maskmine.schemas.sample import cell_name, part_name
from maskmine.schemas.settings import fingerprint

# Libraries whose version can change what is chosen, or the bytes of what is written.
_LIBRARIES = ("maskmine", "duckdb", "imagehash", "numpy", "pillow", "pyarrow")
Entry = TypeVar("Entry", ModelRecord, SourceEntry)
_DESCRIBING = ("README.md", "croissant.json", "manifest.json", MIX_FILE, "shards/sizes.json")


def publish_mix(
    folder: RunFolder,
    sources: Sequence[MixSource],
    counts: Sequence[SourceCounts],
    accounts: Sequence[dict[str, Any]],
    *,
    identity: str,
    version: int,
    settings: dict[str, Any],
) -> Manifest:
    """Write what describes the set of these shards, `_SUCCESS` last. `identity` is the fingerprint of the mix."""
    shards = tuple(map(shard_entry, accounts))
    mixed_from = tuple(_entry(*pair) for pair in zip(sources, counts, strict=True))
    calibrations = {source.calibration for source in mixed_from}
    manifest = Manifest(
        format_version=version,
        fingerprint=identity,
        plan_sha256=fingerprint(settings),
        settings=_common_settings(sources) | {"mix": settings},
        models=_all_models(sources),
        libraries={name: importlib.metadata.version(name) for name in _LIBRARIES},
        shards=shards,
        totals=_totals(folder, shards),
        sources=_all_sources(sources),
        calibration=mixed_from[0].calibration if len(calibrations) == 1 else None,
        mixed_from=mixed_from,
    )
    folder.write_json(SHARDS, "sizes.json", value={shard.name: shard.samples for shard in shards})
    folder.write_json("manifest.json", value=manifest.model_dump(mode="json"))
    folder.write_json("croissant.json", value=describe_run(manifest))
    last = part_name(len(shards) - 1)
    write_text(
        folder,
        "README.md",
        text=render_card("dataset_card.md", manifest=manifest, shards=f"{{00000..{last}}}", filters={}),
    )
    write_text(folder, SUMS_FILE, text=sums_text(_sums_of_shards(accounts) | hash_all(folder, _all_else(accounts))))
    write_text(folder, SUCCESS_FILE, text=sums_text(hash_all(folder, [SUMS_FILE])))
    return manifest


def _entry(source: MixSource, counts: SourceCounts) -> MixedSource:
    manifest = source.run.manifest
    return MixedSource(
        folder=source.name,
        fingerprint=manifest.fingerprint,
        content=source.content,
        format_version=manifest.format_version,
        share=round(float(source.share), 9),
        samples=counts.samples,
        images=counts.images,
        samples_there=counts.samples_there,
        samples_copied=counts.samples_copied,
        images_copied=counts.images_copied,
        not_compared=counts.not_compared,
        models=manifest.models,
        sources=source.licensed,
        calibration=manifest.calibration,
        mixed_from=source.mixed_from,
    )


def _common_settings(sources: Sequence[MixSource]) -> dict[str, Any]:
    """The settings that all sets have alike, and what holds for the crops of all."""
    first, *others = (source.run.manifest.settings for source in sources)
    common = dict(first)
    for other in others:
        common = _in_both(common, other)
    common.pop("mix", None)
    image_format, expand_ratio = common_format(sources)
    crops = {"image_format": image_format} | ({} if expand_ratio is None else {"expand_ratio": expand_ratio})
    return {"pairs": {}} | common | {"shards": common.get("shards", {}) | crops}


def _in_both(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in one.keys() & other.keys():
        if isinstance(one[name], dict) and isinstance(other[name], dict):
            found[name] = _in_both(one[name], other[name])
        elif one[name] == other[name]:
            found[name] = one[name]
    return found


def _all_models(sources: Sequence[MixSource]) -> tuple[ModelRecord, ...]:
    return _distinct(model for source in sources for model in source.run.manifest.models)


def _all_sources(sources: Sequence[MixSource]) -> tuple[SourceEntry, ...]:
    """The captions and images of all sets; images called `all` are called as their set where there are others."""
    entries = [(source.name, entry) for source in sources for entry in source.licensed]
    of_images = {(entry.name, entry.licence) for _, entry in entries if entry.role == "images"}
    apart = [
        entry.model_copy(update={"name": name})
        if entry.name == "all" and entry.role == "images" and len(of_images) > 1
        else entry
        for name, entry in entries
    ]
    return _distinct(sorted(apart, key=lambda entry: entry.role))


def _distinct(entries: Iterable[Entry]) -> tuple[Entry, ...]:
    return tuple({entry.model_dump_json(): entry for entry in entries}.values())


def _totals(folder: RunFolder, shards: Sequence[ShardEntry]) -> Totals:
    """Every image of a mix has pairs, and none was rejected."""
    with query_cells([folder.cell_path(SHARDS, part) for part in range(len(shards))]) as (db, cells):
        (nouns,) = db.execute("SELECT count(DISTINCT noun) FROM read_parquet($cells)", {"cells": cells}).fetchone()
    images = sum(shard.images for shard in shards)
    return Totals(
        images=images,
        with_pairs=images,
        rejected={},
        samples=sum(shard.samples for shard in shards),
        nouns=nouns,
        size_bytes=sum(shard.size_bytes for shard in shards),
    )


def _sums_of_shards(accounts: Sequence[dict[str, Any]]) -> Sums:
    sums: Sums = {}
    for account in accounts:
        part = account["part"]
        sums[f"{SHARDS}/{cell_name(part, 'tar')}"] = account["sha256"]
        sums[f"{SHARDS}/{cell_name(part)}"] = account["index_sha256"]
        sums[f"{ORIGINS}/{cell_name(part)}"] = account["origins_sha256"]
    return sums


def _all_else(accounts: Sequence[dict[str, Any]]) -> list[str]:
    return [*_DESCRIBING, *(f"{SHARDS}/{cell_name(account['part'], 'json')}" for account in accounts)]
