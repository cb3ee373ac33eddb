"""The end of a mix: manifest, card and checksums of all its files, then `_SUCCESS`."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

from maskmine.pipelines.dataset.accounts import shard_entry
from maskmine.pipelines.dataset.publish import count_nouns, describe_set
from maskmine.pipelines.dataset.stored_shards import describing_files, in_tables, store_shards
from maskmine.pipelines.dataset.sums import SUMS_FILE, FileSums, hash_all, write_sums
from maskmine.pipelines.mix.choice import SourceCounts
from maskmine.pipelines.mix.shards import ORIGINS, SHARDS
from maskmine.pipelines.mix.sources import MixSource, common_format
from maskmine.pipelines.run_folder.folder import MIX_FILE, SUCCESS_FILE, RunFolder
from maskmine.schemas.manifest import Manifest, MixedSource, ModelRecord, SourceEntry, Totals
from maskmine.schemas.sample import cell_name
from maskmine.schemas.settings import fingerprint
from maskmine.schemas.shard_entries import ShardEntry, Shards

# Libraries whose version can change what is chosen, or the bytes of what is written.
_LIBRARIES = ("maskmine", "duckdb", "imagehash", "numpy", "pillow", "pyarrow")
Entry = TypeVar("Entry", ModelRecord, SourceEntry)
_DESCRIBING = ("README.md", "croissant.json", "manifest.json", MIX_FILE)


def publish_mix(
    folder: RunFolder,
    sources: Sequence[MixSource],
    counts: Sequence[SourceCounts],
    accounts: Iterable[dict[str, Any]],
    *,
    parts: int,
    identity: str,
    version: int,
    settings: dict[str, Any],
) -> Manifest:
    """Write what describes the set of so many shards with these accounts, `_SUCCESS` last. `identity` is the
    fingerprint of the mix."""
    with FileSums() as sums:
        shards = store_shards(folder, in_tables(_entries(accounts, sums)), count=parts)
        manifest = _manifest(folder, sources, counts, shards, identity=identity, version=version, settings=settings)
        describe_set(folder, manifest, filters={})
        for name, sha256 in hash_all(folder, _all_else(shards)):
            sums.put(name, sha256)
        write_sums(folder, SUMS_FILE, sums.sorted())
    write_sums(folder, SUCCESS_FILE, hash_all(folder, [SUMS_FILE]))
    return manifest


def _manifest(
    folder: RunFolder,
    sources: Sequence[MixSource],
    counts: Sequence[SourceCounts],
    shards: Shards,
    *,
    identity: str,
    version: int,
    settings: dict[str, Any],
) -> Manifest:
    mixed_from = tuple(_entry(*pair) for pair in zip(sources, counts, strict=True))
    calibrations = {source.calibration for source in mixed_from}
    return Manifest(
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


def _totals(folder: RunFolder, shards: Shards) -> Totals:
    """Every image of a mix has pairs, and none was rejected."""
    nouns, _ = count_nouns(folder, len(shards))
    images = samples = size_bytes = 0
    for shard in shards:
        images, samples, size_bytes = images + shard.images, samples + shard.samples, size_bytes + shard.size_bytes
    return Totals(images=images, with_pairs=images, rejected={}, samples=samples, nouns=nouns, size_bytes=size_bytes)


def _entries(accounts: Iterable[dict[str, Any]], sums: FileSums) -> Iterator[ShardEntry]:
    """The shards of accounts; the sums of their files are noted on the way."""
    for account in accounts:
        part = account["part"]
        sums.put_cell(SHARDS, part, account["sha256"], suffix="tar")
        sums.put_cell(SHARDS, part, account["index_sha256"])
        sums.put_cell(ORIGINS, part, account["origins_sha256"])
        yield shard_entry(account)


def _all_else(shards: Shards) -> Iterator[str]:
    yield from (*_DESCRIBING, *describing_files(shards))
    yield from (f"{SHARDS}/{cell_name(part, 'json')}" for part in range(len(shards)))
