"""The set in Croissant 1.1, the metadata that data catalogues and loaders of several frameworks read.

The tars and their indexes are files with sizes and checksums; the records are those of the indexes, a row a pair.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from maskmine.pipelines.dataset.cards import filters_of
from maskmine.pipelines.settings.licences import strictest, url_of
from maskmine.schemas.manifest import Manifest
from maskmine.schemas.sample import index_type
from maskmine.schemas.tables import arrow_schema

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
        "distribution": [*_files(manifest), _file_set()],
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


def _files(manifest: Manifest) -> Iterable[dict[str, Any]]:
    for shard in manifest.shards:
        index = shard.name.replace(".tar", ".parquet")
        yield _file(shard.name, "application/x-tar", shard.sha256) | {"contentSize": f"{shard.size_bytes} B"}
        yield _file(index, "application/x-parquet", shard.index_sha256)


def _file(name: str, kind: str, sha256: str) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject",
        "@id": f"shards/{name}",
        "name": name,
        "contentUrl": f"shards/{name}",
        "encodingFormat": kind,
        "sha256": sha256,
    }


def _file_set() -> dict[str, Any]:
    return {
        "@type": "cr:FileSet",
        "@id": "indexes",
        "name": "indexes",
        "description": "the index of each shard, a row a pair",
        "encodingFormat": "application/x-parquet",
        "includes": "shards/*.parquet",
    }


def _records(manifest: Manifest) -> dict[str, Any]:
    fields = [
        {
            "@type": "cr:Field",
            "@id": f"pairs/{field.name}",
            "name": field.name,
            "description": _WORDS.get(field.name, field.name),
            "dataType": _TYPES[str(field.type)],
            "source": {"fileSet": {"@id": "indexes"}, "extract": {"column": field.name}},
        }
        for field in arrow_schema(index_type(manifest.format_version))
        if str(field.type) in _TYPES
    ]
    return {
        "@type": "cr:RecordSet",
        "@id": "pairs",
        "name": "pairs",
        "description": "the pairs, without pictures",
        "key": {"@id": "pairs/key"},
        "field": fields,
    }
