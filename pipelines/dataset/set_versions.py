"""The versions of a set in its manifest, and the fingerprint that covers all of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

from maskmine.pipelines.planning.plan import Plan
from maskmine.pipelines.planning.versions import Version
from maskmine.schemas.manifest import Manifest, VersionEntry
from maskmine.schemas.settings import fingerprint
from maskmine.schemas.shard_entries import ShardEntry


def set_fingerprint(versions: Sequence[Version], shards: str) -> str:
    """The identity of a set whose shards have this fingerprint: the same where nothing was appended."""
    return (
        shards if len(versions) == 1 else fingerprint([shards, *(_fingerprint(v.plan, shards) for v in versions[1:])])
    )


def planned_sha256(versions: Sequence[Version]) -> str:
    """The identity of the plans of a set."""
    whole: list[object] = []
    for version in versions:
        whole += [version.plan.images_sha256, version.plan.parts]
    return fingerprint(whole)


def version_entries(
    versions: Sequence[Version], shards: Iterable[ShardEntry], *, fingerprint: str, sources: Sequence[Sequence[str]]
) -> tuple[VersionEntry, ...]:
    """What the manifest says of each version; nothing where nothing was appended. `fingerprint` is that of the shards,
    `sources` are the names of the sources of each version."""
    if len(versions) == 1:
        return ()
    remaining = iter(shards)
    samples = [sum(shard.samples for shard in islice(remaining, version.plan.parts)) for version in versions]
    return tuple(
        VersionEntry(
            name=version.name,
            first=version.first,
            parts=version.plan.parts,
            images=version.plan.images,
            samples=samples[number],
            known=version.known,
            fingerprint=_fingerprint(version.plan, fingerprint) if number else fingerprint,
            sources=tuple(names),
        )
        for number, (version, names) in enumerate(zip(versions, sources, strict=True))
    )


def is_listed(manifest: Manifest, version: Version) -> bool:
    """Whether a manifest is of a set that has this version, of these pictures and captions."""
    own = _fingerprint(version.plan, manifest.shards_fingerprint)
    return any(entry.name == version.name and entry.fingerprint == own for entry in manifest.versions)


def source_names(captions: Any) -> list[str]:
    """The names of caption sources by their settings, as samples have them."""
    listed = captions if isinstance(captions, list | tuple) else [captions]
    return [str(source.get("name") or source.get("kind")) for source in listed]


def _fingerprint(plan: Plan, shards: str) -> str:
    """The identity of what was appended by a plan to a set whose shards have this fingerprint."""
    return fingerprint([shards, plan.images_sha256, plan.captions_sha256, plan.sources_sha256, plan.parts])
