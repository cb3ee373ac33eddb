"""The manifest: what a finished set holds, and all that made it. No times, no paths: same run, same file."""

from __future__ import annotations

from typing import Any, Literal

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


class SourceEntry(Settings):
    """Captions or images that the set was made from: the name of the source, and its licence as the user stated it."""

    role: Literal["captions", "images"]
    name: str
    licence: str


class DerivedFrom(Settings):
    """The run whose regions were taken: the name of its folder, and the SHA-256 of its manifest then."""

    folder: str
    manifest_sha256: str


class Totals(Settings):
    """The accounting of the run: `images = with_pairs + sum(rejected.values())`."""

    images: int
    with_pairs: int
    rejected: dict[str, int]
    samples: int
    nouns: int
    size_bytes: int


class Manifest(Settings):
    """`fingerprint` names the content: it covers all settings and inputs that decide the bytes of the shards.

    `sources` is empty in runs that were made before licences of captions and images were recorded.
    """

    format_version: int
    fingerprint: str
    plan_sha256: str
    settings: dict[str, Any]
    models: tuple[ModelEntry, ...]
    libraries: dict[str, str]
    shards: tuple[ShardEntry, ...]
    totals: Totals
    sources: tuple[SourceEntry, ...] = ()
    derived_from: DerivedFrom | None = None

    @property
    def licences(self) -> list[str]:
        """The licences of all models and sources."""
        return [*(model.licence for model in self.models), *(source.licence for source in self.sources)]
