"""The images in the order of the plan: the entries of each image brought together, and the images sorted."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from maskmine.mining.captions import max_captions, source_name
from maskmine.pipelines.planning.digest import image_lines
from maskmine.pipelines.planning.external_sort import read_spilled, sorted_tables, spill, spilling, whole_groups
from maskmine.pipelines.planning.images import PLANNED_IMAGES, Listed, images_of
from maskmine.pipelines.planning.listing import Loaded, load_entries
from maskmine.pipelines.settings.mining import Mining
from maskmine.schemas.errors import InputError

# What to do, by kind of source, where an image is listed twice.
_HINTS = {"img2dataset": ", or set `ids: tar_and_key`", "hf": ", or leave `id_col` out"}


@dataclass(frozen=True, slots=True)
class OrderedImages:
    """Files with a row for each image of the plan, in its order; `given` are the sizes of the sources' own parts."""

    paths: tuple[str, ...]
    images: int
    given: tuple[int, ...]
    images_sha256: str
    urls: bool | None


def order_images(settings: Mining, scratch: str, *, limit: int | None) -> OrderedImages:
    """Bring the entries of each image together, and the images into their order: first those of given parts.

    With a limit, as many images as that: those whose ids have the smallest hashes, a random sample of any source.
    """
    # Three files: `rest` has the images that the plan cuts into parts, by hash; `brought` those whose source has parts
    # of its own ("given", such as tars), by hash; `given` the latter again, part after part.
    brought, given, rest = (f"{scratch}/{name}.arrow" for name in ("brought", "given", "rest"))
    loaded = Loaded()
    with spilling(rest, schema=PLANNED_IMAGES) as file:
        images_by_hash = _first(_gather(settings, loaded, scratch), limit)
        spill(_divert(images_by_hash, file), brought, schema=PLANNED_IMAGES)
    by_part = sorted_tables(read_spilled(brought), scratch, by=("given", "first", "image_id"))
    spill(by_part, given, schema=PLANNED_IMAGES)

    # One pass over all of them, in order: the hash of the images, their number and the sizes of given parts.
    digest, images, sizes = hashlib.sha256(), 0, Counter[int]()
    roots = [source.roots for source in settings.sources]
    for table in chain(read_spilled(given), read_spilled(rest)):
        images += len(table)
        _count(sizes, table["given"])
        for lines in image_lines(table, roots=roots):
            digest.update(lines)
    in_order = tuple(sizes[part] for part in sorted(sizes))
    if limit is not None:  # a sample has a few images of each given part, which would be as many parts
        in_order = _evenly(sum(in_order), settings.shards.images_in_part(images))
    return OrderedImages((given, rest), images, in_order, digest.hexdigest(), loaded.urls)


def _first(tables: Iterable[pa.Table], rows: int | None) -> Iterator[pa.Table]:
    """The first rows of tables; all without a number. Tables behind them are read all the same, for their faults."""
    for table in tables:
        kept = table if rows is None else table.slice(0, rows)
        rows = None if rows is None else rows - len(kept)
        if len(kept):
            yield kept


def _evenly(images: int, images_per_part: int) -> tuple[int, ...]:
    """The sizes of as few parts as hold the images."""
    parts = -(-images // images_per_part)
    return tuple((part + 1) * images // parts - part * images // parts for part in range(parts))


def _gather(settings: Mining, loaded: Loaded, scratch: str) -> Iterator[pa.Table]:
    """A row for each image, in the order of the hashes."""
    names = [source_name(source) for source in settings.sources]
    limits = [max_captions(source) for source in settings.sources]
    by = ("shuffled", "image_id", "source", "position", "caption")
    entries = sorted_tables(load_entries(settings, loaded), scratch, by=by)
    for table in whole_groups(entries, key="shuffled"):
        yield images_of(table, names=names, max_captions=limits, choose_path=partial(_choose_path, settings))


def _count(counts: Counter[int], values: pa.ChunkedArray) -> None:
    for found in values.drop_null().value_counts().to_pylist():
        counts[found["values"]] += found["counts"]


def _divert(tables: Iterator[pa.Table], rest: Any) -> Iterator[pa.Table]:
    """Pass on the images of given parts; write the others."""
    for table in tables:
        is_given = pc.is_valid(table["given"])
        others = table.filter(pc.invert(is_given))
        if len(others):
            rest.write_table(others)
        if len(others) < len(table):
            yield table.filter(is_given)


def _choose_path(settings: Mining, image_id: str, paths: Listed) -> int:
    """Which of the paths of an image counts: one that can be read before one that cannot.

    Raises InputError when the image lies in two locations.
    """
    real = {path: number for number, (_, path) in reversed([*enumerate(paths)]) if not path.startswith("fault:")}
    if len(real) > 1:
        first, second, *_ = sorted(real)
        source = settings.sources[paths[real[first]][0]]
        raise InputError(
            f"{source.location}: lists image id {image_id} more than once ({first}, {second}); make the ids unique"
            f"{_HINTS.get(source.kind, '')}"
        )
    return next(iter(real.values()), 0)
