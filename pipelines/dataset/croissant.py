"""The set in Croissant 1.1, the metadata that data catalogues and loaders of several frameworks read.

The tars and their indexes are files with sizes and checksums; the records are those of the indexes, a row a pair.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from maskmine.pipelines.dataset.cards import filters_of
from maskmine.pipelines.settings.licences import strictest, url_of
from maskmine.schemas.columns import arrow_schema
from maskmine.schemas.manifest import Manifest
from maskmine.schemas.sample import index_type
from maskmine.schemas.shard_entries import Shards, ShardsInTable

# The JSON-LD context of Croissant 1.1, which validators compare word for word.
_CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    **{name: f"cr:{name}" for name in ("arrayShape", "citeAs", "column", "containedIn", "equivalentProperty")},
    **{name: f"cr:{name}" for name in ("extract", "field", "fileProperty", "fileObject", "fileSet", "format")},
    **{name: f"cr:{name}" for name in ("includes", "isArray", "isLiveDataset", "jsonPath", "key", "md5")},
    **{name: f"cr:{name}" for name in ("parentField", "path", "recordSet", "references", "regex", "repeated")},
    **{name: f"cr:{name}" for name in ("replace", "samplingRate", "separator", "source", "subField", "transform")},
    **{name: {"@id": f"cr:{name}", "@type": "@json"} for name in ("data", "examples")},
    **{name: {"@container": "@language"} for name in ("description", "name")},
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "prov": "http://www.w3.org/ns/prov#",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "sc": "https://schema.org/",
}
# Column types that Croissant can describe; lists are left out.
_TYPES = {"string": "sc:Text", "int64": "sc:Integer", "double": "sc:Float"}
_PARQUET = "application/x-parquet"
_TARS = "the shards, each a tar of samples; their sizes and checksums stand in the table of shards"
_INDEXES = "the index of each shard, a row a pair"
# What the columns hold, where the name alone does not say it.
_WORDS = {
    "key": "the key of the sample in its shard",
    "noun": "the noun that names the mask",
    "similarity": "cosine of the CLIP embeddings of noun and region",
    "margin": "similarity less that of the noun's best other region",
    "lift": "similarity less what its noun gets in images that do not say it",
    "evidence": "weighted sum of lift, separability of the noun and four more scores; its order counts",
    "confidence": "calibrated probability that the pair is right; null without a calibration",
    "presence": "whether the verifier finds the noun in the picture at all; null for a noun that it cannot read",
    "agreement": "best IoU of the region with what the verifier finds for the noun; null as `presence`",
    "score": "the score of the proposed mask",
    "rank": "how many nouns of the image fit the region better",
    "source": "the caption source",
    "shard": "the tar that holds crop, mask, noun and record of the pair",
    "offset": "where the sample begins in the tar, in bytes",
}


@dataclass(frozen=True, slots=True)
class SetFile:
    """A file of a set by its path in it; `kind` is its media type."""

    name: str
    size_bytes: int
    sha256: str
    kind: str


def describe_files(plan: Mapping[str, Any], files: Iterable[SetFile], *, columns: Mapping[str, str]) -> dict[str, Any]:
    """The content of `croissant.json` for an export: `plan` is its `export.json`.

    `columns` are those of its Parquet files with their types; such files have records, others stand as files alone.
    """
    licences = [entry["licence"] for entry in plan["run"]["licences"]]
    pairs, images = (sum(split[name] for split in plan["splits"].values()) for name in ("samples", "images"))
    described: dict[str, Any] = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.1",
        "name": "mask-noun-pairs",
        "description": f"{pairs} pairs of a mask and the noun that names it, from {images} images, as {plan['format']}",
        "license": _licence_urls(licences or ["unknown"]),
        "version": f"1.0.0+{plan['fingerprint'][:12]}",
        "rai:dataLimitations": "Masks and nouns were chosen by models, not by people; see `evidence` and `confidence`.",
        "distribution": [
            _file(file.name, file.kind, file.sha256, folder="") | {"contentSize": f"{file.size_bytes} B"}
            for file in files
        ],
    }
    if columns:
        described["distribution"].append(_file_set("*.parquet", name="tables", of="the tables of all splits"))
        described["recordSet"] = [_record_set(columns, file_set="tables", key=None)]
    return described


def describe_run(manifest: Manifest) -> dict[str, Any]:
    """The content of `croissant.json` for a run; without times, so the same run gives the same file."""
    totals = manifest.totals
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.1",
        "name": "mask-noun-pairs",
        "description": (
            f"{totals.samples} pairs of a mask and the noun that names it, from {totals.with_pairs} captioned images, "
            f"made by maskmine {manifest.libraries.get('maskmine', '')}".strip()
        ),
        "license": _licence_urls(manifest.licences),
        "version": f"1.0.0+{manifest.fingerprint[:12]}",
        "rai:dataCollection": "Captioned images; nouns by a parser, masks by a segmentation model, pairs by CLIP.",
        "rai:dataPreprocessingProtocol": _selection(manifest),
        "rai:machineAnnotationTools": [f"{m.role}: {m.name} ({m.licence}, {m.sha256})" for m in manifest.models],
        "rai:dataLimitations": "Masks and nouns were chosen by models, not by people; see `evidence` and `confidence`.",
        "distribution": [*_files(manifest.shards), _file_set("shards/*.parquet", name="indexes", of=_INDEXES)],
        "recordSet": [_records(manifest)],
    }


def _selection(manifest: Manifest) -> list[str]:
    """How the pairs of the set were chosen: the rule, and the filters that were set; of a mix from which sets."""
    totals = manifest.totals
    if manifest.mixed_from:
        return [
            f"mixed: {source.samples} pairs of {source.folder} ({source.fingerprint})" for source in manifest.mixed_from
        ]
    made = "" if totals.pairs is None else f"; {totals.samples} of its {totals.pairs} pairs are in the set"
    settings = [f"{name}: {value}" for name, value in filters_of(manifest).items()]
    return [f"rule: {manifest.settings['pairs']['rule']}{made}", *settings]


def _licence_urls(licences: Iterable[str]) -> list[str]:
    """URLs of the licences of all parts; `unknown` where none is known."""
    known = sorted({licence for licence in licences if licence != "unknown"})
    urls = [url_of(licence) for licence in known]
    return urls if strictest(list(licences)) != "other" or urls else ["unknown"]


def _files(shards: Shards) -> Iterable[dict[str, Any]]:
    """The shards with their indexes; of many, whose checksums stand in a table, that table and all of them as one."""
    if isinstance(shards, ShardsInTable):
        yield _file(shards.named.table, _PARQUET, shards.named.sha256, folder="")
        yield _file_set("shards/*.tar", name="shards", of=_TARS) | {"encodingFormat": "application/x-tar"}
        return
    for shard in shards:
        index = shard.name.replace(".tar", ".parquet")
        yield _file(shard.name, "application/x-tar", shard.sha256) | {"contentSize": f"{shard.size_bytes} B"}
        yield _file(index, _PARQUET, shard.index_sha256)


def _file(name: str, kind: str, sha256: str, *, folder: str = "shards/") -> dict[str, Any]:
    return {
        "@type": "cr:FileObject",
        "@id": f"{folder}{name}",
        "name": name,
        "contentUrl": f"{folder}{name}",
        "encodingFormat": kind,
        "sha256": sha256,
    }


def _file_set(includes: str, *, name: str, of: str) -> dict[str, Any]:
    return {
        "@type": "cr:FileSet",
        "@id": name,
        "name": name,
        "description": of,
        "encodingFormat": _PARQUET,
        "includes": includes,
    }


def _records(manifest: Manifest) -> dict[str, Any]:
    columns = {field.name: str(field.type) for field in arrow_schema(index_type(manifest.format_version))}
    return _record_set(columns, file_set="indexes", key="key")


def _record_set(columns: Mapping[str, str], *, file_set: str, key: str | None) -> dict[str, Any]:
    """The pairs as records with the columns that Croissant can describe, by their types."""
    fields = [
        {
            "@type": "cr:Field",
            "@id": f"pairs/{name}",
            "name": name,
            "description": _WORDS.get(name, name),
            "dataType": _TYPES[kind],
            "source": {"fileSet": {"@id": file_set}, "extract": {"column": name}},
        }
        for name, kind in columns.items()
        if kind in _TYPES
    ]
    return {
        "@type": "cr:RecordSet",
        "@id": "pairs",
        "name": "pairs",
        "description": "the pairs, without pictures",
        **({"key": {"@id": f"pairs/{key}"}} if key else {}),
        "field": fields,
    }
