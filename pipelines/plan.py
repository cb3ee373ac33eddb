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
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from json.encoder import encode_basestring
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mining.caption_entries import ENTRIES
from mining.captions import CocoCaptions, most_captions, source_name
from mining.fetch import URL_SCHEMES, require_aiohttp
from mining.places import moved_place
from mining.stores import describe, scheme_of
from pipelines.inputs import caption_inputs
from pipelines.ownership import SCRATCH, owned_prefix
from pipelines.plan_sort import read_spilled, sorted_tables, spill
from pipelines.run_folder import RunFolder
from pipelines.settings import Mining
from schemas.errors import IncompleteError, InputError, OtherPlanError
from schemas.rows import CaptionsRow, ImageRow
from schemas.settings import fingerprint
from schemas.tables import arrow_schema

PLAN_FILE = "plan.json"
PLANNED = "plan"
PLAN_VERSION = 2
"""Version 2 brought `sources` and `additional` to the captions; an older plan is cut again, to the same images."""

_PLANNED = ("images", "captions")
_TRIED_FILE = ".writable"
_GROUP_ROWS = 5_000
_PART_BITS, _POSITION_BITS = 32, 40
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
        loaded = _load(settings, f"{scratch}/entries.arrow")
        ordered = _order(settings, loaded, scratch, limit=limit)
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
            urls=loaded.urls,
            version=PLAN_VERSION,
        )
        captions_sha256, sources_sha256 = _write_parts(run, plan, ordered.path)
    return replace(plan, captions_sha256=captions_sha256, sources_sha256=sources_sha256)


@dataclass(frozen=True, slots=True)
class _Loaded:
    """The entries of all sources in one file, its size in memory, and whether pictures are at URLs."""

    path: str
    size_bytes: int
    urls: bool


_LOADED = pa.schema([*ENTRIES, pa.field("source", pa.int64()), pa.field("shuffled", pa.uint64())])


def _load(settings: Mining, path: str) -> _Loaded:
    """Read each source once into a file; memory does not grow with the data set."""
    listed = urls = False

    def tables() -> Iterator[pa.Table]:
        nonlocal listed, urls
        for number, source in enumerate(settings.sources):
            for table in source.read(images_per_part=settings.shards.images_per_part):
                listed = listed or table["path"].null_count < len(table)
                if not urls and any(_is_url(place) for place in table["path"].to_pylist()):
                    refuse_urls(settings, source.place)
                    urls = True
                shuffled = [_shuffled(image_id) for image_id in table["image_id"].to_pylist()]
                columns = [pa.array([number] * len(table), pa.int64()), pa.array(shuffled, pa.uint64())]
                yield pa.table([*table.columns, *columns], schema=_LOADED)

    size_bytes = spill(tables(), path, schema=_LOADED)
    if not listed:
        raise InputError(
            f"{settings.sources[0].place}: says nothing of where the pictures are; give `path_col`, or list the source "
            "of the images (such as `kind: run`) beside it"
        )
    return _Loaded(path, size_bytes, urls)


def _shuffled(image_id: str) -> int:
    """The first 64 bits of the SHA-256 of an id; images that share them are ordered by their ids."""
    return int.from_bytes(hashlib.sha256(image_id.encode()).digest()[:8], "big")


def _is_url(place: str | None) -> bool:
    return place is not None and place.startswith("http") and scheme_of(place) in URL_SCHEMES


@dataclass(frozen=True, slots=True)
class _Ordered:
    """A file with a row for each image of the plan, in its order; `given` are the sizes of the sources' own parts."""

    path: str
    images: int
    given: tuple[int, ...]
    images_sha256: str


_ORDERED = pa.schema(
    [
        arrow_schema(ImageRow).field("image_id"),
        arrow_schema(ImageRow).field("path"),
        *[arrow_schema(CaptionsRow).field(name) for name in ("captions", "sources", "additional")],
        pa.field("listed_by", pa.int64()),
        pa.field("given", pa.int64()),
        pa.field("first", pa.int64()),
    ]
)


def _order(settings: Mining, loaded: _Loaded, scratch: str, *, limit: int | None) -> _Ordered:
    """Lay the entries of each image together, and the images in their order: first those of given parts."""
    path, brought, given = f"{scratch}/ordered.parquet", f"{scratch}/given.arrow", Counter[int]()
    roots = [source.root for source in settings.sources]
    digest, images, sizes = hashlib.sha256(), 0, Counter[int]()
    rest = _gather(settings, loaded, given)
    with pq.ParquetWriter(f"{scratch}/rest.parquet", _ORDERED, compression="zstd") as file:
        brought_bytes = spill(_divert(rest, file, most=limit), brought, schema=_ORDERED)
    with pq.ParquetWriter(path, _ORDERED, compression="zstd") as file:
        for table in chain(
            _by_part(brought, brought_bytes, given),
            (pa.Table.from_batches([batch]) for batch in _parquet_batches(f"{scratch}/rest.parquet")),
        ):
            table = table if limit is None else table.slice(0, max(0, limit - images))
            images += len(table)
            columns = [table[name].to_pylist() for name in ("image_id", "path", "listed_by", "given")]
            for image_id, place, source, part in zip(*columns, strict=True):
                digest.update(_hashed_line(image_id, None if place is None else moved_place(place, roots[source])))
                if part is not None:
                    sizes[part] += 1
            file.write_table(table)
    return _Ordered(path, images, tuple(sizes[part] for part in sorted(sizes)), digest.hexdigest())


def _gather(settings: Mining, loaded: _Loaded, given: Counter[int]) -> Iterator[pa.Table]:
    """A row for each image, in the order of the hashes; counts the images of the parts that sources gave."""
    names = [source_name(source) for source in settings.sources]
    most = [most_captions(source) for source in settings.sources]
    then = ("image_id", "source", "position", "caption")
    columns = ("image_id", "source", "path", "part", "position", "caption", "additional")
    for table in sorted_tables(loaded.path, size_bytes=loaded.size_bytes, key="shuffled", then=then):
        rows: list[tuple[Any, ...]] = []
        for image in _images(zip(*[table[name].to_pylist() for name in columns], strict=True)):
            source, place = _one_place(image, settings)
            chosen = _chosen(image.captions, most)
            said = [[text for _, text, _ in chosen], [names[n] for n, _, _ in chosen], [more for _, _, more in chosen]]
            rows.append((image.image_id, place, *said, source, image.part, image.first))
            if image.part is not None:
                given[image.part] += 1
        yield pa.table([list(column) for column in zip(*rows, strict=True)], schema=_ORDERED)


def _divert(tables: Iterator[pa.Table], rest: pq.ParquetWriter, *, most: int | None) -> Iterator[pa.Table]:
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


def _by_part(path: str, size_bytes: int, given: Counter[int]) -> Iterator[pa.Table]:
    """The images of given parts, part after part, in each by their first entry."""
    ranks = {part: rank for rank, part in enumerate(sorted(given))}
    # keys fill their 64 bits, so that the first of them tell parts apart
    shift = 64 - _POSITION_BITS - max(1, len(ranks).bit_length())
    schema = _ORDERED.append(pa.field("order", pa.uint64()))

    def keyed() -> Iterator[pa.Table]:
        for table in read_spilled(path):
            pairs = zip(table["given"].to_pylist(), table["first"].to_pylist(), strict=True)
            keys = [(ranks[part] << _POSITION_BITS | first) << shift for part, first in pairs]
            yield table.append_column(schema.field("order"), pa.array(keys, pa.uint64()))

    size_bytes = spill(keyed(), f"{path}-keyed", schema=schema)
    for table in sorted_tables(f"{path}-keyed", size_bytes=size_bytes, key="order", then=("image_id",)):
        yield table.drop_columns(["order"])


def _parquet_batches(path: str) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(path) as file:
        yield from file.iter_batches(_GROUP_ROWS, use_threads=False)


def _hashed_line(image_id: str, relative: str | None) -> bytes:
    """`canonical_json([image_id, relative])` and a line's end, in a fifth of its time."""
    path = "null" if relative is None else encode_basestring(relative)
    return f"[{encode_basestring(image_id)},{path}]\n".encode()


@dataclass(slots=True)
class _Image:
    """What the entries say of one image: `(source, path)` wherever it is listed, `(source, caption, additional)`.

    `part` is the first that a source gave it, with the number of the source in the upper bits; `first` is the position
    of its first entry there.
    """

    image_id: str
    part: int | None
    first: int
    places: list[tuple[int, str]]
    captions: list[tuple[int, str, str]]


def _images(rows: Iterator[tuple[Any, ...]]) -> Iterator[_Image]:
    image: _Image | None = None
    for image_id, source, path, part, position, caption, additional in rows:
        if image is None or image.image_id != image_id:
            if image is not None:
                yield image
            image = _Image(image_id, None, 0, [], [])
        if part is not None and image.part is None:
            image.part, image.first = source << _PART_BITS | part, position
        if path is not None:
            image.places.append((source, path))
        if caption is not None:
            image.captions.append((source, caption, additional))
    if image is not None:
        yield image


def _one_place(image: _Image, settings: Mining) -> tuple[int, str] | tuple[None, None]:
    """The source that lists the image and the place of its picture; a place that can be read before one that cannot.

    None and None for an image of which only captions are known: it keeps its record, and is rejected as a missing file.
    Raises InputError when the image lies in two places.
    """
    if len(image.places) < 2:
        return image.places[0] if image.places else (None, None)
    real = {place: source for source, place in reversed(image.places) if not place.startswith("fault:")}
    if len(real) > 1:
        first, second, *_ = sorted(real)
        source = settings.sources[real[first]]
        raise InputError(
            f"{source.place}: lists image id {image.image_id} more than once ({first}, {second}); make the ids unique"
            f"{_HINTS.get(source.kind, '')}"
        )
    return next(((source, place) for place, source in real.items()), image.places[0])


def _chosen(captions: list[tuple[int, str, str]], most: Sequence[int | None]) -> list[tuple[int, str, str]]:
    """The first captions of each source, as many as it may give."""
    chosen: list[tuple[int, str, str]] = []
    counts = [0] * len(most)
    for caption in captions:
        limit = most[caption[0]]
        if limit is None or counts[caption[0]] < limit:
            counts[caption[0]] += 1
            chosen.append(caption)
    return chosen


def _write_parts(run: RunFolder, plan: Plan, path: str) -> tuple[str, str]:
    """Cut the ordered images into parts and write them; returns the SHA-256 of the captions and of their sources."""
    captions_sha256, sources_sha256 = hashlib.sha256(), hashlib.sha256()
    with pq.ParquetFile(path) as file:
        batches = file.iter_batches(_GROUP_ROWS, use_threads=False)
        ahead = _ORDERED.empty_table()
        for part in range(plan.parts):
            size = plan.part_size(part)
            while len(ahead) < size:
                ahead = pa.concat_tables([ahead, pa.Table.from_batches([next(batches)])])
            planned, ahead = ahead.slice(0, size), ahead.slice(size).combine_chunks()
            name = f"{part:05d}.parquet"
            images = planned.select(["image_id", "path"])
            captions = planned.select(["image_id", "captions", "sources", "additional"])
            columns = [captions[name].to_pylist() for name in ("image_id", "captions", "sources", "additional")]
            captions_sha256.update(fingerprint([list(row) for row in zip(*columns[:2], strict=True)]).encode())
            sources_sha256.update(fingerprint(columns[2:]).encode())
            run.write_table("images", name, table=images, row_type=ImageRow, fingerprint=PLANNED)
            run.write_table("captions", name, table=captions, row_type=CaptionsRow, fingerprint=PLANNED)
    return captions_sha256.hexdigest(), sources_sha256.hexdigest()
