"""The entries of all caption sources, each source read once, with the key that they are sorted by."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from operator import ne
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from maskmine.mining.sources.entries import ENTRIES
from maskmine.mining.storage.locations import rejected_location
from maskmine.mining.storage.stores import scheme_of
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
    """Known when all entries have been read: whether a source lists images, and whether some are at URLs."""

    listed: bool = False
    urls: bool = False


_MAX_URL_CHARS = 80
_OUTSIDE = rejected_location(Rejection("outside_folder", ""))  # how such locations begin
_LOADED = pa.schema([*ENTRIES, pa.field("source", pa.int64()), pa.field("shuffled", pa.uint64())])


def load_entries(settings: Mining, loaded: Loaded) -> Iterator[pa.Table]:
    """Read each source once, a table at a time; memory does not grow with the data set."""
    for number, source in enumerate(settings.sources):
        listed, elsewhere, refused, first_elsewhere = 0, 0, 0, ""
        for table in source.read(images_per_part=settings.shards.images_in_part(None), limits=settings.limits):
            table, urls = _without_urls(table, source, settings)
            refused += urls
            paths = table["path"].drop_null()
            outside = paths.filter(pc.starts_with(paths, _OUTSIDE))
            listed, elsewhere = listed + len(paths), elsewhere + len(outside)
            first_elsewhere = first_elsewhere or (outside[0].as_py() if len(outside) else "")
            loaded.listed = loaded.listed or len(paths) > 0
            if not loaded.urls and not urls and has_url(table["path"]):
                refuse_urls(settings, source.location)
                loaded.urls = True
            columns = [pa.array(np.full(len(table), number)), _shuffled(table["image_id"])]
            yield pa.table([*table.columns, *columns], schema=_LOADED)
        if refused and listed == elsewhere + refused:
            refuse_urls(settings, source.location)
        if listed and listed == elsewhere:
            _refuse_outside(settings, number, first_elsewhere.removeprefix(_OUTSIDE))
    if not loaded.listed:
        raise InputError(
            f"{settings.sources[0].location}: says nothing of where the pictures are; give `path_col`, or list the "
            "source of the images (such as `kind: run`) beside it"
        )


def _without_urls(table: pa.Table, source: Any, settings: Mining) -> tuple[pa.Table, int]:
    """The entries with a rejection in place of every URL that nobody allowed to be fetched, and how many these are.

    A source of URLs, by its settings, keeps them: it is refused whole, without reading on.
    """
    if settings.regions.decoding.fetch.allow or getattr(source, "url_col", None) or not has_url(table["path"]):
        return table, 0
    stored = table["path"].to_pylist()
    paths = [_unfetched(path) if path is not None and _is_url(path) else path for path in stored]
    place = table.schema.get_field_index("path")
    field = table.schema.field(place)
    return table.set_column(place, field, pa.array(paths, field.type)), sum(map(ne, paths, stored))


def _unfetched(url: str) -> str:
    detail = f"{url[:_MAX_URL_CHARS]}: nothing is fetched from a URL unless the user allows it"
    return rejected_location(Rejection("fetch_refused", detail))


def _is_url(path: str) -> bool:
    return path.startswith("http") and scheme_of(path) in URL_SCHEMES


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


def has_url(paths: pa.ChunkedArray) -> bool:
    """Whether one of the paths of images is a URL."""
    candidates = paths.filter(pc.starts_with(paths, "http")).to_pylist()
    return any(scheme_of(path) in URL_SCHEMES for path in candidates)
