"""The plan: which images a run has, cut once into numbered parts. It is written first and never changes within a run.

Images are ordered by the SHA-256 of their id and cut evenly, so that every part, and so every shard, is already a
random sample of the whole, and the first parts serve as a smaller data set. Where a source brings its own parts (a tar,
a run of row groups, a part of an earlier run) these come first, in the source's order, so that a worker reads one file.

Nothing here grows with the number of images but files in a temporary folder:

    sources ─▶ entries ─▶ sorted (`plan_sort.py`) ─▶ one row an image, in the plan's order ─▶ images/, captions/
"""

from __future__ import annotations

import hashlib
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mining.caption_entries import ENTRIES
from mining.captions import CocoCaptions, most_captions, source_name
from mining.fetch import URL_SCHEMES, require_aiohttp
from mining.stores import describe, scheme_of
from pipelines.inputs import caption_inputs
from pipelines.ownership import SCRATCH, owned_prefix
from pipelines.plan_digest import image_lines, rows_json
from pipelines.plan_images import PLANNED_IMAGES, Listed, images_of
from pipelines.plan_sort import read_spilled, sorted_tables, spill, spilling
from pipelines.run_folder import RunFolder
from pipelines.settings import Mining
from schemas.errors import IncompleteError, InputError, OtherPlanError
from schemas.rows import CaptionsRow, ImageRow

PLAN_FILE = "plan.json"
PLANNED = "plan"
PLAN_VERSION = 2
"""Version 2 brought `sources` and `additional` to the captions; an older plan is cut again, to the same images."""

_PLANNED = ("images", "captions")
_TRIED_FILE = ".writable"
_POSITION_BITS = 40
_HINTS = {"img2dataset": ", or set `ids: tar_and_key`", "hf": ", or leave `id_col` out"}


@dataclass(frozen=True, slots=True)
class Plan:
    """How many images and parts there are, and the SHA-256 of what was planned (ids and files; captions; sources).

    `source` holds the settings that decide which images there are, `inputs` what the source's files held. `given` are
    the sizes of the first parts, which the source cut; the other images are cut evenly. `urls`: some are fetched.
    """

    images: int
    parts: int
    images_sha256: str
    captions_sha256: str
    source: dict[str, Any]
    inputs: Any
    sources_sha256: str = ""
    given: tuple[int, ...] = ()
    urls: bool = False
    version: int = 1

    def part_size(self, part: int) -> int:
        """The number of images of a part; those that the plan cut differ by one image at most."""
        if part < len(self.given):
            return self.given[part]
        rest, parts = self.images - sum(self.given), self.parts - len(self.given)
        return part_size(part - len(self.given), images=rest, parts=parts)


def part_size(part: int, *, images: int, parts: int) -> int:
    """The size of a part when `images` are cut evenly into `parts`."""
    return (part + 1) * images // parts - part * images // parts


def read_plan(run: RunFolder) -> Plan | None:
    """The plan of a run folder; None when it has none yet."""
    stored = run.read_json(PLAN_FILE)
    return Plan(**{**stored, "given": tuple(stored.get("given", ()))}) if stored else None


def make_plan(run: RunFolder, settings: Mining, *, limit: int | None = None) -> Plan:
    """The plan of this run: the stored one where nothing changed, else cut anew from the caption sources.

    New captions of the same images replace the old ones. Raises OtherPlanError, with what differs, when the folder
    belongs to other images or another cut; InputError when a source is faulty or an object store cannot be used.
    """
    describe(run.root)
    source = _source(settings, limit)
    inputs = caption_inputs(settings.sources)
    stored = read_plan(run)
    if stored:
        _refuse_other_source(run, stored, source)
        unchanged = stored.inputs == inputs and stored.version == PLAN_VERSION
        if unchanged and all(run.done(name) == set(range(stored.parts)) for name in _PLANNED):
            if stored.urls:
                refuse_urls(settings, "the plan")
            return stored
    _refuse_unwritable_store(run)
    plan = _cut(run, settings, limit=limit, source=source, inputs=inputs, stored=stored)
    run.write_json(PLAN_FILE, value=asdict(plan))
    return plan


def refuse_urls(settings: Mining, place: str) -> None:
    """Raises InputError when pictures are at URLs, and the user did not allow that, or the library is not there."""
    if not settings.regions.decoding.fetch.allow:
        raise InputError(
            f"{place}: has URLs, and nothing is fetched unless you say so; add --fetch allow for a few thousand "
            "pictures, and for more let img2dataset fetch them first"
        )
    require_aiohttp()


def _source(settings: Mining, limit: int | None) -> dict[str, Any]:
    """What decides which images there are and how they are cut, as far as settings tell; their hash tells the rest."""
    source = {"shards.images_per_part": settings.shards.images_per_part, "limit": limit}
    if isinstance(settings.captions, CocoCaptions):
        return {"captions.kind": settings.captions.kind, "captions.images": settings.captions.images, **source}
    return source


def _refuse_other_source(run: RunFolder, stored: Plan, source: dict[str, Any]) -> None:
    differing = [
        f"{key}: {stored.source.get(key)} there, {value} here"
        for key, value in source.items()
        if stored.source.get(key) != value
    ]
    if differing:
        raise OtherPlanError(
            f"{run.root}: belongs to another plan ({'; '.join(differing)}); choose another `out`, or delete the folder"
        )


def _refuse_unwritable_store(run: RunFolder) -> None:
    """Try an object store before a large source is read: the right to list does not tell of the right to write."""
    if scheme_of(run.root) == "file":
        return
    try:
        run.write_json(_TRIED_FILE, value=None)
        run.delete(_TRIED_FILE)
    except IncompleteError as error:
        raise InputError(str(error)) from error


def _cut(
    run: RunFolder, settings: Mining, *, limit: int | None, source: dict[str, Any], inputs: Any, stored: Plan | None
) -> Plan:
    with tempfile.TemporaryDirectory(prefix=owned_prefix(SCRATCH)) as scratch:
        ordered = _order(settings, scratch, limit=limit)
        if stored and ordered.images_sha256 != stored.images_sha256:
            raise OtherPlanError(
                f"{run.root}: belongs to another plan ({settings.sources[0].place} has other images than the file "
                "that the plan was cut from); choose another `out`, or delete the folder"
            )
        if stored:  # from here on until the new plan is written, the captions in the folder belong to no plan
            run.write_json(PLAN_FILE, value=asdict(replace(stored, inputs=None)))
        rest = ordered.images - sum(ordered.given)
        parts = max(1, len(ordered.given) + -(-rest // settings.shards.images_per_part))
        plan = Plan(
            images=ordered.images,
            parts=parts,
            images_sha256=ordered.images_sha256,
            captions_sha256="",
            source=source,
            inputs=inputs,
            given=ordered.given,
            urls=ordered.urls,
            version=PLAN_VERSION,
        )
        captions_sha256, sources_sha256 = _write_parts(run, plan, ordered.paths)
    return replace(plan, captions_sha256=captions_sha256, sources_sha256=sources_sha256)


@dataclass(slots=True)
class _Loaded:
    """What is known when all entries have been read: whether a source lists images, and whether some are at URLs."""

    listed: bool = False
    urls: bool = False


_LOADED = pa.schema([*ENTRIES, pa.field("source", pa.int64()), pa.field("shuffled", pa.uint64())])


def _load(settings: Mining, found: _Loaded) -> Iterator[pa.Table]:
    """Read each source once; memory does not grow with the data set."""
    for number, source in enumerate(settings.sources):
        for table in source.read(images_per_part=settings.shards.images_per_part):
            found.listed = found.listed or table["path"].null_count < len(table)
            if not found.urls and _has_url(table["path"]):
                refuse_urls(settings, source.place)
                found.urls = True
            columns = [pa.array(np.full(len(table), number)), _shuffled(table["image_id"])]
            yield pa.table([*table.columns, *columns], schema=_LOADED)
    if not found.listed:
        raise InputError(
            f"{settings.sources[0].place}: says nothing of where the pictures are; give `path_col`, or list the source "
            "of the images (such as `kind: run`) beside it"
        )


def _shuffled(image_ids: pa.ChunkedArray) -> pa.Array:
    """The first 64 bits of the SHA-256 of each id; images that share them are ordered by their ids."""
    digests = b"".join([hashlib.sha256(image_id.encode()).digest()[:8] for image_id in image_ids.to_pylist()])
    return pa.array(np.frombuffer(digests, ">u8").astype(np.uint64))


def _has_url(places: pa.ChunkedArray) -> bool:
    perhaps = places.filter(pc.starts_with(places, "http")).to_pylist()
    return any(scheme_of(place) in URL_SCHEMES for place in perhaps)


@dataclass(frozen=True, slots=True)
class _Ordered:
    """Files with a row for each image of the plan, in its order; `given` are the sizes of the sources' own parts."""

    paths: tuple[str, ...]
    images: int
    given: tuple[int, ...]
    images_sha256: str
    urls: bool


def _order(settings: Mining, scratch: str, *, limit: int | None) -> _Ordered:
    """Lay the entries of each image together, and the images in their order: first those of given parts."""
    brought, given, rest = (f"{scratch}/{name}.arrow" for name in ("brought", "given", "rest"))
    loaded, given_sizes = _Loaded(), Counter[int]()
    with spilling(rest, schema=PLANNED_IMAGES) as file:
        spill(
            _divert(_gather(settings, loaded, scratch, given_sizes), file, most=limit), brought, schema=PLANNED_IMAGES
        )
    spill(_by_part(brought, f"{scratch}/keyed.arrow", given_sizes), given, schema=PLANNED_IMAGES)
    digest, images, sizes = hashlib.sha256(), 0, Counter[int]()
    roots = [source.root for source in settings.sources]
    for table in chain(read_spilled(given), read_spilled(rest)):
        table = table if limit is None else table.slice(0, max(0, limit - images))
        images += len(table)
        _count(sizes, table["given"])
        for lines in image_lines(table, roots=roots):
            digest.update(lines)
    in_order = tuple(sizes[part] for part in sorted(sizes))
    return _Ordered((given, rest), images, in_order, digest.hexdigest(), loaded.urls)


def _gather(settings: Mining, loaded: _Loaded, scratch: str, given: Counter[int]) -> Iterator[pa.Table]:
    """A row for each image, in the order of the hashes; counts the images of the parts that sources gave."""
    names = [source_name(source) for source in settings.sources]
    most = [most_captions(source) for source in settings.sources]
    then = ("image_id", "source", "position", "caption")
    for entries in sorted_tables(_load(settings, loaded), f"{scratch}/entries.arrow", key="shuffled", then=then):
        images = images_of(entries, names=names, most=most, one_place=partial(_one_place, settings))
        _count(given, images["given"])
        yield images


def _count(counts: Counter[int], values: pa.ChunkedArray) -> None:
    for found in values.drop_null().value_counts().to_pylist():
        counts[found["values"]] += found["counts"]


def _divert(tables: Iterator[pa.Table], rest: Any, *, most: int | None) -> Iterator[pa.Table]:
    """Pass on the images of given parts; write the others, up to `most`."""
    left = most
    for table in tables:
        is_given = pc.is_valid(table["given"])
        others = table.filter(pc.invert(is_given))
        others = others if left is None else others.slice(0, left)
        left = None if left is None else left - len(others)
        if len(others):
            rest.write_table(others)
        if len(others) < len(table):
            yield table.filter(is_given)


def _by_part(brought: str, path: str, given: Counter[int]) -> Iterator[pa.Table]:
    """The images of given parts, part after part, in each by their first entry."""
    ranks = {part: rank for rank, part in enumerate(sorted(given))}
    # keys fill their 64 bits, so that the first of them tell parts apart
    shift = 64 - _POSITION_BITS - max(1, len(ranks).bit_length())

    def keyed() -> Iterator[pa.Table]:
        for table in read_spilled(brought):
            pairs = zip(table["given"].to_pylist(), table["first"].to_pylist(), strict=True)
            keys = [(ranks[part] << _POSITION_BITS | first) << shift for part, first in pairs]
            yield table.append_column("order", pa.array(keys, pa.uint64()))

    for table in sorted_tables(keyed(), path, key="order", then=("image_id",)):
        yield table.drop_columns(["order"])


def _one_place(settings: Mining, image_id: str, places: Listed) -> int:
    """Which of the places of an image holds: one that can be read before one that cannot.

    Raises InputError when the image lies in two places.
    """
    real = {place: number for number, (_, place) in reversed([*enumerate(places)]) if not place.startswith("fault:")}
    if len(real) > 1:
        first, second, *_ = sorted(real)
        source = settings.sources[places[real[first]][0]]
        raise InputError(
            f"{source.place}: lists image id {image_id} more than once ({first}, {second}); make the ids unique"
            f"{_HINTS.get(source.kind, '')}"
        )
    return next(iter(real.values()), 0)


def _write_parts(run: RunFolder, plan: Plan, paths: Sequence[str]) -> tuple[str, str]:
    """Cut the ordered images into parts and write them; returns the SHA-256 of the captions and of their sources."""
    captions_sha256, sources_sha256 = hashlib.sha256(), hashlib.sha256()
    tables = chain.from_iterable(map(read_spilled, paths))
    ahead = PLANNED_IMAGES.empty_table()
    for part in range(plan.parts):
        size = plan.part_size(part)
        while len(ahead) < size:
            ahead = pa.concat_tables([ahead, next(tables)])
        planned, ahead = ahead.slice(0, size).combine_chunks(), ahead.slice(size)
        name = f"{part:05d}.parquet"
        images = planned.select(["image_id", "path"])
        captions = planned.select(["image_id", "captions", "sources", "additional"])
        captions_sha256.update(_sha256(rows_json(captions.select(["image_id", "captions"]))))
        sources_sha256.update(_sha256(_sources_json(captions)))
        run.write_table("images", name, table=images, row_type=ImageRow, fingerprint=PLANNED)
        run.write_table("captions", name, table=captions, row_type=CaptionsRow, fingerprint=PLANNED)
    return captions_sha256.hexdigest(), sources_sha256.hexdigest()


def _sources_json(captions: pa.Table) -> Iterator[pa.Buffer | bytes]:
    sources, additional = (rows_json(captions.select([name])) for name in ("sources", "additional"))
    return chain([b"["], sources, [b","], additional, [b"]"])


def _sha256(pieces: Iterable[pa.Buffer | bytes]) -> bytes:
    """The hex digits of what the pieces are together."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest().encode()
