"""The manifest: what a finished set holds, and all that made it. No times, no paths: same run, same file."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from maskmine.schemas.errors import InputError
from maskmine.schemas.rows import NOTHING_FOUND
from maskmine.schemas.sample import FORMAT_VERSION, READABLE_VERSIONS, ImageFormat
from maskmine.schemas.settings import Settings
from maskmine.schemas.shard_entries import SHARDS_TABLE, OpenFile, Shards, ShardsInTable, TableOfShards

TABLE_VERSION = 6
"""The format version that a `manifest.json` states whose shards stand in a table; `sample_version` is then that of its
samples."""


class ModelRecord(Settings):
    """A model that made part of the data: `role` is `proposals`, `clip` or `nouns`, `name` what the user asked for.

    `sha256` covers the weights that were loaded (None for a model without weights). `licence` is an SPDX identifier or
    `unknown`; it limits who may use the masks.
    """

    role: str
    """What the model did, such as `proposals`."""
    name: str
    """Name or path of the model."""
    sha256: str | None
    """SHA-256 of its weights; null for something without weights."""
    licence: str
    """Its licence, or `unknown`."""


class SourceEntry(Settings):
    """Captions or images that the set was made from."""

    role: Literal["captions", "images"]
    """What the source contributes."""
    name: str
    """Name of the source."""
    licence: str
    """Its licence as the user stated it."""


class DerivedFrom(Settings):
    """The run whose regions were reused."""

    folder: str
    """Name of its folder."""
    manifest_sha256: str
    """SHA-256 of its manifest at that time."""


class CalibrationEntry(Settings):
    """The calibration that gave the pairs their confidence, and what it was measured on."""

    sha256: str
    """SHA-256 of its file."""
    run: str
    """Fingerprint of the run whose pairs were judged."""
    folder: str
    """Name of that run's folder."""
    measured_on: tuple[str, ...]
    """Names of that run's caption sources."""
    judged_by: str
    """`verdicts` of reviewers, or the name of annotations."""
    verdicts: dict[str, int]
    """How many verdicts of each kind."""
    reviewers: tuple[str, ...]
    """Who gave them."""
    precision: tuple[float, float, float]
    """Share of right pairs in that run, with the ends of its 95 % interval."""
    calibration_error: float
    """Expected calibration error there."""
    foreign: str | None
    """What that run has different that its scores depend on, such as `another CLIP`; null where nothing is."""


class MixedSource(Settings):
    """A set that a mix was made from, and what of it is in the mix."""

    folder: str
    """Name of its folder, with the start of `content` where two have one name."""
    fingerprint: str
    """Its fingerprint."""
    content: str
    """SHA-256 of its fingerprint and its shards' checksums, for image files may change and the fingerprint does not."""
    format_version: int
    """Version of its sample format."""
    share: float
    """Its weight, as a share of all."""
    samples: int
    """Its pairs in the mix."""
    images: int
    """Images that these are of."""
    samples_there: int
    """All of its pairs."""
    samples_copied: int
    """Pairs of images that were left out, as a source before has them too."""
    images_copied: int
    """These images."""
    not_compared: int
    """Images with pairs that were not compared by how they look: that cannot be read, have changed or no contrast."""
    models: tuple[ModelRecord, ...]
    """The models that made it."""
    sources: tuple[SourceEntry, ...]
    """Its captions and images, with their licences."""
    calibration: CalibrationEntry | None
    """The calibration of its confidence."""
    mixed_from: tuple[MixedSource, ...] = Field(default=(), exclude_if=lambda sources: not sources)
    """What it was mixed from itself."""


class VersionEntry(Settings):
    """A version of a set that grew: what it was mined of first, or what was appended."""

    name: str
    """`000` for what was there first; `001`, `002`, … for what was appended."""
    first: int
    """Number of its first shard."""
    parts: int
    """How many shards it has."""
    images: int
    """Images of its plan."""
    samples: int
    """Pairs in its shards."""
    known: int
    """Images of its sources that were in the set before, and were left out."""
    fingerprint: str
    """Identity of its content; that of the first version is what its set had alone, and what all shards carry."""
    sources: tuple[str, ...]
    """Names of its caption sources."""


class Totals(Settings):
    """The accounting of the run: `images = with_pairs + sum(rejected.values())`."""

    images: int
    """Images of the plan."""
    with_pairs: int
    """Images with at least one pair."""
    rejected: dict[str, int]
    """Rejected images by `step: reason`."""
    samples: int
    """Pairs in all shards."""
    nouns: int
    """Different nouns of the pairs."""
    size_bytes: int
    """Size of all tars."""
    pairs: int | None = None
    """Pairs that the rule made, of which `samples` passed the filters; null in runs made before they were counted."""
    masks_left_out: int = 0
    """Annotated masks that could not be read, of images that have others; `maskmine errors` names them."""

    @property
    def faults(self) -> dict[str, int]:
        """Of `rejected`, the images that could not be used."""
        return {key: count for key, count in self.rejected.items() if not _nothing_found(key)}

    @property
    def empty(self) -> dict[str, int]:
        """Of `rejected`, the images that could be used and have no pair."""
        return {key: count for key, count in self.rejected.items() if _nothing_found(key)}


@with_config(ConfigDict(extra="allow"))
class _Pairs(TypedDict, total=False):
    rule: str


@with_config(ConfigDict(extra="allow"))
class _Regions(TypedDict, total=False):
    clip: dict[str, Any] | None


@with_config(ConfigDict(extra="allow", allow_inf_nan=False))
class _Shards(TypedDict, total=False):
    image_format: ImageFormat
    expand_ratio: float


@with_config(ConfigDict(extra="allow"))
class _Stored(TypedDict, total=False):
    """Of the settings that a manifest records, those that readers of a run ask for."""

    pairs: _Pairs
    regions: _Regions
    shards: _Shards


def _as_stored(settings: dict[str, Any]) -> dict[str, Any]:
    _STORED.validate_python(settings)
    return settings


_STORED = TypeAdapter(_Stored)


class Manifest(Settings):
    """What a finished run is made of and contains."""

    format_version: int
    """Version of the sample format."""
    fingerprint: str
    """Identity of the content: it covers all settings and inputs that decide the bytes of the shards."""
    plan_sha256: str
    """SHA-256 of plan.json."""
    settings: Annotated[dict[str, Any], AfterValidator(_as_stored)]
    """The settings of the run without those that only say how it was done; files by name and SHA-256."""
    models: tuple[ModelRecord, ...]
    """Models that took part."""
    libraries: dict[str, str]
    """Versions of the libraries by name."""
    shards: Shards
    """The shards in order: a tuple, or read in pieces from the table beside the manifest where they are many."""
    totals: Totals
    """The accounting of the run."""
    sources: tuple[SourceEntry, ...] = ()
    """Sources and their licences; empty in runs made before these were recorded."""
    derived_from: DerivedFrom | None = None
    """The run whose regions were reused."""
    calibration: CalibrationEntry | None = None
    """The calibration of the pairs' confidence; null without one."""
    mixed_from: tuple[MixedSource, ...] = Field(default=(), exclude_if=lambda sources: not sources)
    """The sets that a mix was made from, those with the largest shares first; only a mix has them."""
    versions: tuple[VersionEntry, ...] = ()
    """The versions of a set to which something was appended; empty for others."""

    @property
    def shards_fingerprint(self) -> str:
        """What the shards carry, which stay as they are when something is appended."""
        return self.versions[0].fingerprint if self.versions else self.fingerprint

    def as_stored(self) -> dict[str, Any]:
        """Plain values for `manifest.json`: of a set to which nothing was appended, as they always were.

        One whose shards stand in a table has a format version of its own, which earlier readers refuse in one line.
        """
        stored = self.model_dump(mode="json")
        if isinstance(self.shards, ShardsInTable):
            stored |= {"format_version": TABLE_VERSION, "sample_version": self.format_version}
        return stored if self.versions else {name: value for name, value in stored.items() if name != "versions"}

    def setting(self, *names: str) -> Any:
        """A setting that every run has, by its names from the outside in. Raises InputError where it is missing."""
        value: Any = self.settings
        for name in names:
            if not isinstance(value, dict) or name not in value:
                raise InputError(f"manifest.json: its settings have no `{'.'.join(names)}`; run `maskmine mine` again")
            value = value[name]
        return value

    @property
    def licences(self) -> list[str]:
        """The licences of all models and sources."""
        return [*(model.licence for model in self.models), *(source.licence for source in self.sources)]


def _nothing_found(key: str) -> bool:
    """Whether the reason in `step: reason` is no fault; one that only another version knows counts as a fault."""
    return key.rpartition(": ")[2] in NOTHING_FOUND


def refuse_wider_crops(manifest: Manifest, ratio: float, *, name: str, folder: str) -> None:
    """Raises InputError when the crops of a run end before boxes that are grown `ratio` times; `name` is that setting.

    Pixels beyond a crop are not in the set, so a reader would show less than was asked for.
    """
    cut: float | None = manifest.settings.get("shards", {}).get("expand_ratio")
    if cut is not None and ratio > cut:
        raise InputError(
            f"{name}: {ratio:g}, and the crops of {folder} end at {cut:g} times the box; choose {cut:g} at most, or "
            f"mine again with `shards.expand_ratio: {ratio:g}`, which cuts anew and runs no model"
        )


def parse_manifest(stored: Any, *, path: str, open_file: OpenFile) -> Manifest:
    """The manifest from the content of a `manifest.json`. Raises InputError when this maskmine cannot read it.

    `open_file` opens a file beside it: the table of its shards, where it has one, when that is asked for.
    """
    fields = stored if isinstance(stored, dict) else {}
    in_table = fields.get("format_version") == TABLE_VERSION
    version = fields.get("sample_version" if in_table else "format_version")
    if isinstance(version, int) and version not in READABLE_VERSIONS:
        raise InputError(
            f"{path}: format version {version}, this maskmine reads {FORMAT_VERSION}; use the maskmine that wrote it"
        )
    if in_table:
        fields = {name: value for name, value in fields.items() if name != "sample_version"}
        stored = fields | {"format_version": version, "shards": []}
    try:
        named = TableOfShards.model_validate(fields.get("shards")) if in_table else None
        manifest = Manifest.model_validate_json(json.dumps(stored))  # lists become the tuples of a strict model
    except ValidationError as error:
        raise InputError(f"{path}: not a manifest of this version; delete it and run `maskmine mine` again") from error
    if named is None:
        return manifest
    table = ShardsInTable(named, path=path.replace("manifest.json", SHARDS_TABLE), open_file=open_file)
    return manifest.model_copy(update={"shards": table})
