"""The entries of all caption sources, each source read once, with the key that they are sorted by."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from maskmine.mining.captions import AnySource
from maskmine.mining.sources.entries import ENTRIES
from maskmine.mining.storage.locations import rejected_location
from maskmine.mining.storage.urls import URL_SCHEMES, require_aiohttp
from maskmine.pipelines.settings.mining import Mining
from maskmine.schemas.errors import InputError
from maskmine.schemas.rows import Rejection


def refuse_urls(settings: Mining, where: str) -> None:
    """Refuse images at URLs. Raises InputError where the user did not allow them, or the library is missing."""
    if not settings.regions.decoding.fetch.allow:
        raise InputError(
            f"{where}: has URLs, and nothing is fetched unless you say so; add --fetch allow for a few thousand "
            "pictures, and for more let img2dataset fetch them first"
        )
    require_aiohttp()


@dataclass(slots=True)
class Loaded:
    """Known when all entries have been read: whether a source lists images, and whether some are fetched from URLs;
    None where there are URLs that the user did not allow, whose images are rejected."""

    listed: bool = False
    urls: bool | None = False


_OUTSIDE = rejected_location(Rejection("outside_folder", ""))  # how such locations begin
_NOT_ALLOWED = rejected_location(Rejection("fetch_refused", "a URL, and nothing is fetched without --fetch allow"))
_LOADED = pa.schema([*ENTRIES, pa.field("source", pa.int64()), pa.field("shuffled", pa.uint64())])


def load_entries(settings: Mining, loaded: Loaded) -> Iterator[pa.Table]:
    """Read each source once, a table at a time; memory does not grow with the data set.

    A path that is a URL costs its image alone; where all are, or `url_col` says so, it is the settings' to allow it.
    """
    allowed = settings.regions.decoding.fetch.allow
    for number, source in enumerate(settings.sources):
        listed, outside, urls, first_outside = 0, 0, 0, ""
        for table in source.read(images_per_part=settings.shards.images_in_part(None), limits=settings.limits):
            paths = table["path"].drop_null()
            elsewhere = paths.filter(pc.starts_with(paths, _OUTSIDE))
            listed, outside, urls = listed + len(paths), outside + len(elsewhere), urls + count_urls(paths)
            first_outside = first_outside or (elsewhere[0].as_py() if len(elsewhere) else "")
            loaded.listed = loaded.listed or len(paths) > 0
            if urls and (allowed or means_urls(source)):
                refuse_urls(settings, source.location)
            if urls:
                loaded.urls = True if allowed else None
            columns = [pa.array(np.full(len(table), number)), _shuffled(table["image_id"])]
            yield pa.table([*_without_urls(table, allowed=allowed).columns, *columns], schema=_LOADED)
        if listed and listed == outside + urls and not (urls and allowed):
            if urls:
                refuse_urls(settings, source.location)
            _refuse_outside(settings, number, first_outside.removeprefix(_OUTSIDE))
    if not loaded.listed:
        raise InputError(
            f"{settings.sources[0].location}: says nothing of where the pictures are; give `path_col`, or list the "
            "source of the images (such as `kind: run`) beside it"
        )


def known_entries(image_ids: pa.ChunkedArray, *, source: int) -> pa.Table:
    """Entries that say nothing of images but their ids."""
    columns = {"image_id": image_ids, "source": pa.array(np.full(len(image_ids), source)), "shuffled": None}
    columns["shuffled"] = _shuffled(image_ids)
    empty = {field.name: pa.nulls(len(image_ids), field.type) for field in _LOADED if field.name not in columns}
    return pa.table([{**empty, **columns}[name] for name in _LOADED.names], schema=_LOADED)


def _refuse_outside(settings: Mining, number: int, detail: str) -> NoReturn:
    """A source all of whose images lie elsewhere than its settings say, which is a setting's fault and no record's."""
    source = settings.sources[number]
    place = f"captions.{number}" if len(settings.sources) > 1 else "captions"
    remedy = f"give `{place}.images`, the folder that they lie below"
    if hasattr(source, "outside"):
        remedy += f", or `{place}.outside: true` where you trust the list"
    raise InputError(f"{source.location}: all images that it names lie elsewhere ({detail}); {remedy}")


def _shuffled(image_ids: pa.ChunkedArray) -> pa.Array:
    """The first 64 bits of the SHA-256 of each id; images that share them are ordered by their ids."""
    digests = b"".join([hashlib.sha256(image_id.encode()).digest()[:8] for image_id in image_ids.to_pylist()])
    return pa.array(np.frombuffer(digests, ">u8").astype(np.uint64))


def means_urls(source: AnySource) -> bool:
    """Whether the settings of a source say that its images are at URLs, so that one is no fault of its record."""
    return getattr(source, "url_col", None) is not None


def count_urls(paths: pa.ChunkedArray | Sequence[str]) -> int:
    """How many of the paths of images are URLs."""
    return pc.sum(_at_url(paths)).as_py() or 0 if len(paths) else 0


def _at_url(paths: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.match_substring_regex(paths, f"^({'|'.join(URL_SCHEMES)})://")


def _without_urls(table: pa.Table, *, allowed: bool) -> pa.Table:
    """Entries in which an image at a URL is rejected, unless such are allowed."""
    if allowed:
        return table
    paths = pc.if_else(_at_url(table["path"]), _NOT_ALLOWED, table["path"])
    return table.set_column(table.column_names.index("path"), "path", paths)
