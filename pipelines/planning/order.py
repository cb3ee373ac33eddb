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
from maskmine.pipelines.planning.listing import Loaded, known_entries, load_entries
from maskmine.pipelines.settings.mining import Mining
from maskmine.schemas.errors import InputError

# What to do, by kind of source, where an image is listed twice.
_HINTS = {"img2dataset": ", or set `ids: tar_and_key`", "hf": ", or leave `id_col` out"}


@dataclass(frozen=True, slots=True)
class OrderedImages:
    """Files with a row for each image of the plan, in its order; `given` are the sizes of the sources' own parts.
    `known` images of the sources were left out, of some of which `known_paths` has id and path."""

    paths: tuple[str, ...]
    images: int
    given: tuple[int, ...]
    images_sha256: str
    urls: bool | None
    known: int = 0
    known_paths: tuple[tuple[str, str], ...] = ()


def order_images(settings: Mining, scratch: str, *, limit: int | None, known: Iterable[pa.Table] = ()) -> OrderedImages:
    """Bring the entries of each image together, and the images into their order: first those of given parts.

    Tables of `known` have ids of images that are left out.

    With a limit, as many images as that: those whose ids have the smallest hashes, a random sample of any source.
    """
    # Three files: `rest` has the images that the plan cuts into parts, by hash; `brought` those whose source has parts
    # of its own ("given", such as tars), by hash; `given` the latter again, part after part.
    brought, given, rest = (f"{scratch}/{name}.arrow" for name in ("brought", "given", "rest"))
    loaded, left_out = Loaded(), LeftOut(known)
    with spilling(rest, schema=PLANNED_IMAGES) as file:
        images_by_hash = _first(_gather(settings, loaded, left_out, scratch), limit)
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
    return OrderedImages(
        (given, rest), images, in_order, digest.hexdigest(), loaded.urls, left_out.images, tuple(left_out.paths)
    )


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


def _gather(settings: Mining, loaded: Loaded, left_out: LeftOut, scratch: str) -> Iterator[pa.Table]:
    """A row for each image, in the order of the hashes; ids that are known come through the same sort."""
    names = [source_name(source) for source in settings.sources]
    limits = [max_captions(source) for source in settings.sources]
    by = ("shuffled", "image_id", "source", "position", "caption")
    entries = sorted_tables(chain(load_entries(settings, loaded), left_out.entries()), scratch, by=by)
    for table in map(left_out.drop, whole_groups(entries, key="shuffled")):
        if len(table):
            yield images_of(table, names=names, max_captions=limits, choose_path=partial(_choose_path, settings))


class LeftOut:
    """Images that are known elsewhere, by tables of their ids; counts in `images` those that the sources list too, and
    keeps id and path of the first in `paths`."""

    def __init__(self, known: Iterable[pa.Table]) -> None:
        self._known = known
        self.images = 0
        self.paths: list[tuple[str, str]] = []

    def entries(self) -> Iterator[pa.Table]:
        """Their ids as entries of a source before the first, so that they stand first among those of an image."""
        return (known_entries(table["image_id"], source=_KNOWN) for table in self._known)

    def drop(self, entries: pa.Table) -> pa.Table:
        """The entries of the other images, of a table that has all entries of each."""
        is_known = pc.equal(entries["source"], _KNOWN)
        if not pc.any(is_known).as_py():
            return entries
        found = pc.is_in(entries["image_id"], value_set=entries.filter(is_known)["image_id"].combine_chunks())
        listed = entries.filter(pc.and_(found, pc.invert(is_known)))
        self.images += pc.count_distinct(listed["image_id"]).as_py()
        rows = listed.select(["image_id", "path"]).drop_null().slice(0, _COMPARED - len(self.paths))
        self.paths += zip(rows["image_id"].to_pylist(), rows["path"].to_pylist(), strict=True)
        return entries.filter(pc.invert(found))


_KNOWN = -1  # the number of the source of such ids
_COMPARED = 64  # of the images that are left out: of other pictures nearly every one differs


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
