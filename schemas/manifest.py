"""The manifest: what a finished set holds, and all that made it. No times, no paths: same run, same file."""

from __future__ import annotations

from typing import Any

from schemas.settings import Settings


class ShardEntry(Settings):
    """A shard of the set, in the order of its number."""

    name: str
    images: int
    samples: int
    size_bytes: int
    sha256: str
    index_sha256: str


class ModelEntry(Settings):
    """A model that took part; see `schemas.models.ModelRecord`."""

    role: str
    name: str
    sha256: str | None
    licence: str


class Totals(Settings):
    """The accounting of the run: `images = with_pairs + sum(rejected.values())`."""

    images: int
    with_pairs: int
    rejected: dict[str, int]
    samples: int
    nouns: int
    size_bytes: int


class Manifest(Settings):
    """`fingerprint` names the content: it covers all settings and inputs that decide the bytes of the shards."""

    format_version: int
    fingerprint: str
    plan_sha256: str
    settings: dict[str, Any]
    models: tuple[ModelEntry, ...]
    libraries: dict[str, str]
    shards: tuple[ShardEntry, ...]
    totals: Totals
