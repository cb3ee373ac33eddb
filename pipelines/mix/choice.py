"""Which pairs of the sets are in a mix, under which ids, and in which order: by hashes, in bounded memory.

    images with pairs ─▶ copies left out ─▶ shares ─▶ the first images of each set by hash ─▶ names ─▶ order ─▶ shards

An image's pairs stay together, and of each set one image at most is cut, so that the shares are met. Nothing depends on
the machine, or on the order in which the sets are given.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
from pydantic import Field, ValidationError

from maskmine.mining.images.perceptual_hash import COPY_BITS, near_pairs
from maskmine.mining.storage.query import QueryError, local_cells, query_tables
from maskmine.pipelines.mix.images import FactCells, parts_of
from maskmine.pipelines.mix.shares import most_samples, split_samples
from maskmine.pipelines.mix.sources import MixSource
from maskmine.schemas.columns import arrow_schema
from maskmine.schemas.errors import IncompleteError, InputError
from maskmine.schemas.rows import SampleRow
from maskmine.schemas.sample import SAFE_ID_PATTERN
from maskmine.schemas.settings import Settings

_SUFFIXES = (8, 16, 32, 64)  # digits of a set's SHA-256 that tell images of one id apart, as many as are needed
_ROWS_AT_ONCE = 1000
_PARTS_AT_ONCE = 500  # of a set in one query, which has some memory for each
_NO_LIMIT = 1 << 62
_STEM = f"CASE WHEN regexp_full_match(new_id, '{SAFE_ID_PATTERN}') THEN new_id ELSE substr(sha256(new_id), 1, 16) END"
_NUMBER = "regexp_extract(key, '-([0-9]+)$', 1)::BIGINT"

# Columns of the index that sets of older format versions do not have.
_WITH_DEFAULT = {field.name for field in fields(SampleRow) if field.default is not MISSING}


class Mixing(Settings):
    """What decides a mix beside the sets."""

    samples: Annotated[int, Field(ge=1)] | None = None
    """Pairs of the mix; null takes as many as the weights allow."""
    seed: int = 0
    """Another one takes other images."""
    copy_bits: Annotated[int, Field(ge=0, le=16)] | None = COPY_BITS
    """Bits of 64 in which images that are taken for copies may differ; null keeps copies."""
    samples_per_shard: Annotated[int, Field(ge=1)] = 10_000
    """Pairs of a shard, which ends with a whole image."""


def parse_mixing(**options: Any) -> Mixing:
    """What decides a mix, from the options of a command. Raises InputError for a value that none can have."""
    try:
        return Mixing(**options)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        name, message = str(fault["loc"][0]), fault["msg"]
        option = {"copy_bits": "bits", "samples_per_shard": "shard-size"}.get(name, name)
        raise InputError(f"--{option}: {message[0].lower()}{message[1:]}, not {fault['input']!r}") from error


@dataclass(frozen=True, slots=True)
class SourceCounts:
    """Of one set: its pairs, those of copies with their images, what is in the mix, and images not compared by look."""

    samples_there: int
    samples_copied: int
    images_copied: int
    samples: int
    images: int
    not_compared: int


@dataclass(frozen=True, slots=True)
class Taken:
    """A pair that is mixed: its row in the set of number `of_set`, its shard, its image's id in the mix, and what is
    known of the image."""

    of_set: int
    row: SampleRow
    part: int
    new_id: str
    file: str | None
    sha256: str | None
    look: str | None


@dataclass(frozen=True)
class Choice:
    """The pairs of a mix. `digest` stands for all of it; the connection has the tables."""

    db: Any
    sources: tuple[MixSource, ...]
    counts: tuple[SourceCounts, ...]
    parts: int
    digest: str

    def taken(self, parts: Sequence[int]) -> Iterator[Taken]:
        """The pairs of some shards, shard after shard, in their order; a few thousand are in memory at a time.

        Raises IncompleteError as `choose`.
        """
        with _one_line_faults():
            _gather_pairs(self.db, self.sources, parts)
            result = self.db.execute("SELECT * EXCLUDE (place, number) FROM gathered ORDER BY part, place, number")
            names = [column[0] for column in result.description]
        for values in _rows(result):
            yield _as_taken(dict(zip(names, values, strict=True)))


@contextmanager
def choose(
    sources: Sequence[MixSource], facts: Sequence[FactCells], mixing: Mixing, *, memory_limit: str = "1GB"
) -> Iterator[Choice]:
    """Choose the pairs, from the indexes of the sets and what is known of their images.

    Raises InputError where a set has no pair left, or fewer than `mixing.samples` asks of it, IncompleteError for
    indexes that have other columns or values than runs write.
    """
    with query_tables(memory_limit=memory_limit) as db:
        with _one_line_faults():
            _read_images(db, sources, facts)
            _hash_images(db, sources, seed=mixing.seed)
            if mixing.copy_bits is not None:
                _leave_out_copies(db, len(sources), most_bits=mixing.copy_bits)
            there = _available(db, len(sources))
            _take_images(db, sources, wanted_pairs(sources, [left for _, left, _ in there], mixing))
            _name_images(db, sources)
            _order_images(db, per_shard=mixing.samples_per_shard)
            counts = tuple(_counts(db, there, compared=mixing.copy_bits is not None))
            choice = Choice(db, tuple(sources), counts, *_digest(db))
        yield choice


@contextmanager
def _one_line_faults() -> Iterator[None]:
    """An index that is none, or too little memory or room for temporary files, is an IncompleteError."""
    try:
        yield
    except QueryError as error:
        raise IncompleteError(
            f"the indexes of the sets cannot be put together ({str(error).splitlines()[0]}); mend the cause, or run "
            "`maskmine verify` on each of them, and run the same command again"
        ) from error


def _slices(source: MixSource) -> Iterator[tuple[int, range]]:
    """The parts of a set, some at a time, with the number of each slice."""
    parts = parts_of(source.run)
    return enumerate(parts[start : start + _PARTS_AT_ONCE] for start in range(0, len(parts), _PARTS_AT_ONCE))


def _indexes(source: MixSource, parts: range) -> list[str]:
    """The indexes of some parts of a set."""
    shards = source.run.manifest.shards[parts.start : parts.stop]
    return [source.run.folder.path("shards", shard.name.replace(".tar", ".parquet")) for shard in shards]


def _read_images(db: Any, sources: Sequence[MixSource], facts: Sequence[FactCells]) -> None:
    """Tables of the images that have pairs, with their number, and of what is known of images; of both some parts of a
    set after the others."""
    db.execute("CREATE TEMP TABLE counted (of_set BIGINT, slice BIGINT, image_id VARCHAR, pairs BIGINT)")
    known = "file VARCHAR, sha256 VARCHAR, look VARCHAR"
    db.execute(f"CREATE TEMP TABLE fact (of_set BIGINT, fact_slice BIGINT, image_id VARCHAR, {known})")
    for number, (source, cells_of_facts) in enumerate(zip(sources, facts, strict=True)):
        for of_slice, parts in _slices(source):
            about = {"of_set": number, "slice": of_slice}
            with local_cells(_indexes(source, parts)) as cells:
                db.execute(
                    "INSERT INTO counted SELECT $of_set, $slice, image_id, count(*) FROM read_parquet($cells)"
                    " GROUP BY image_id",
                    about | {"cells": cells},
                )
            with local_cells([cells_of_facts.path(part) for part in parts]) as cells:
                db.execute(
                    "INSERT INTO fact BY NAME SELECT $of_set AS of_set, $slice AS fact_slice, *"
                    " FROM read_parquet($cells)",
                    about | {"cells": cells},
                )


def _hash_images(db: Any, sources: Sequence[MixSource], *, seed: int) -> None:
    """A table `image` with a row for each image that has pairs, and the hash that decides whether it is taken."""
    db.execute("CREATE TEMP TABLE named_set (of_set BIGINT, content VARCHAR)")
    db.executemany("INSERT INTO named_set VALUES (?, ?)", [[n, s.content] for n, s in enumerate(sources)])
    db.execute(
        "CREATE TEMP TABLE image AS SELECT of_set, image_id, pairs, slice, last_slice, f.sha256, f.look,"
        " sha256($seed || ' ' || content || ' ' || image_id) AS hash, FALSE AS copied, row_number() OVER () AS id"
        " FROM (SELECT of_set, image_id, sum(pairs)::BIGINT AS pairs, min(slice) AS slice, max(slice) AS last_slice"
        " FROM counted GROUP BY of_set, image_id)"
        " JOIN named_set USING (of_set) LEFT JOIN fact f USING (of_set, image_id)",
        {"seed": str(seed)},
    )


def _leave_out_copies(db: Any, sources: int, *, most_bits: int) -> None:
    """Mark every image that a set before its own has too: as a file of the same bytes, or one that looks the same.

    Only images that stay count, so that each one left out has a copy among those that can be taken.
    """
    for number in range(1, sources):
        db.execute(
            "UPDATE image SET copied = TRUE WHERE of_set = $number AND sha256 IN"
            " (SELECT sha256 FROM image WHERE of_set < $number AND NOT copied AND sha256 IS NOT NULL)",
            {"number": number},
        )
        ids_N, looks_N = _looks(db, f"of_set = {number}")
        _, others_M = _looks(db, f"of_set < {number}")
        near_N = np.zeros(len(ids_N), bool)
        for pairs in near_pairs(looks_N, np.unique(others_M), most_bits=most_bits):  # type: ignore[arg-type]
            near_N[pairs[:, 0]] = True
        db.register("near", pa.table({"id": ids_N[near_N]}))
        db.execute("UPDATE image SET copied = TRUE WHERE id IN (SELECT id FROM near)")
        db.unregister("near")


def _looks(db: Any, where: str) -> tuple[np.ndarray[Any, np.dtype[np.int64]], np.ndarray[Any, np.dtype[np.uint64]]]:
    """Ids and hashes of the images that are left and have one."""
    result = db.execute(f"SELECT id, look FROM image WHERE {where} AND NOT copied AND look IS NOT NULL ORDER BY id")
    found = np.fromiter(((id, int(look, 16)) for id, look in _rows(result)), np.dtype("i8,u8"))
    return found["f0"], found["f1"]


def _available(db: Any, sources: int) -> list[tuple[int, int, int]]:
    """Of each set its pairs, those that are left without copies, and the images of copies."""
    rows = db.execute(
        "SELECT of_set, sum(pairs)::BIGINT, coalesce(sum(pairs) FILTER (NOT copied), 0)::BIGINT,"
        " count(*) FILTER (copied) FROM image GROUP BY of_set"
    ).fetchall()
    found = {source: tuple(counts) for source, *counts in rows}
    return [found.get(number, (0, 0, 0)) for number in range(sources)]


def wanted_pairs(sources: Sequence[MixSource], left: Sequence[int], mixing: Mixing) -> list[int]:
    """How many pairs each set gives of those that are left of it. Raises InputError where they cannot."""
    for number, (source, samples) in enumerate(zip(sources, left, strict=True)):
        if not samples:
            why = "has no pair"
            if source.run.manifest.totals.samples:
                others = ", ".join(other.name for other in sources[:number])
                why = f"every image of it is in {others} as well; give it the largest weight, or --keep-duplicates"
            raise InputError(f"{source.run.folder.root}: {why}")
    shares = [source.share for source in sources]
    most = most_samples(shares, left)
    if mixing.samples is not None and mixing.samples > most:
        scarce = min(range(len(sources)), key=lambda number: left[number] / shares[number])
        raise InputError(
            f"--samples {mixing.samples}: {sources[scarce].name} has {left[scarce]:,} pairs for a share of "
            f"{float(shares[scarce]):.1%}; ask for {most} at most, or give it a smaller weight"
        )
    samples = most if mixing.samples is None else mixing.samples
    if not samples:
        raise InputError(
            "the sets have too few pairs for these weights: not one; give weights that are nearer to each other"
        )
    return split_samples(samples, shares)


def _take_images(db: Any, sources: Sequence[MixSource], wanted: Sequence[int]) -> None:
    """A table `chosen` of each set's first images by hash; pairs are taken up to the number `last`."""
    db.execute("CREATE TEMP TABLE wanted (of_set BIGINT, samples BIGINT)")
    db.executemany("INSERT INTO wanted VALUES (?, ?)", [[number, samples] for number, samples in enumerate(wanted)])
    db.execute(
        "CREATE TEMP TABLE chosen AS SELECT of_set, image_id, slice, last_slice, image_id AS new_id, hash,"
        f" least(pairs, samples - before) AS take, pairs, {_NO_LIMIT} AS last"
        " FROM (SELECT *, sum(pairs) OVER (PARTITION BY of_set ORDER BY hash, image_id"
        " ROWS UNBOUNDED PRECEDING) - pairs AS before FROM image WHERE NOT copied)"
        " JOIN wanted USING (of_set) WHERE before < samples"
    )
    cut = db.execute("SELECT of_set, image_id, slice, last_slice, take FROM chosen WHERE take < pairs").fetchall()
    for number, image_id, first_slice, last_slice, take in cut:  # one a set at most
        pairs: list[int] = []
        for of_slice, parts in _slices(sources[number]):
            if first_slice <= of_slice <= last_slice:
                with local_cells(_indexes(sources[number], parts)) as cells:
                    query = f"SELECT {_NUMBER} FROM read_parquet($cells) WHERE image_id = $image_id"
                    found = db.execute(query, {"cells": cells, "image_id": image_id}).fetchall()
                    pairs += [pair for (pair,) in found]
        last = sorted(pairs)[take - 1]
        db.execute("UPDATE chosen SET last = ? WHERE of_set = ? AND image_id = ?", [last, number, image_id])


def _name_images(db: Any, sources: Sequence[MixSource]) -> None:
    """Give images that would have the keys of an image before them an id with the start of their set's SHA-256."""
    for digits in _SUFFIXES:
        (same,) = db.execute(f"SELECT count(*) - count(DISTINCT {_STEM}) FROM chosen").fetchone()
        if not same:
            return
        db.execute(
            "CREATE OR REPLACE TEMP TABLE again AS SELECT of_set, image_id FROM chosen QUALIFY"
            f" row_number() OVER (PARTITION BY {_STEM} ORDER BY new_id <> image_id, of_set, image_id) > 1"
        )
        db.execute(
            f"UPDATE chosen SET new_id = chosen.image_id || '-' || substr(content, 1, {digits})"
            " FROM again, named_set WHERE chosen.of_set = again.of_set AND chosen.image_id = again.image_id"
            " AND named_set.of_set = chosen.of_set"
        )
    raise InputError(f"images of {' and '.join(s.name for s in sources)} have ids that cannot be told apart")


def _order_images(db: Any, *, per_shard: int) -> None:
    """Give every chosen image its place and its shard; the order has nothing to do with what was taken."""
    db.execute(
        "CREATE OR REPLACE TEMP TABLE chosen AS SELECT * EXCLUDE (begins), dense_rank() OVER (ORDER BY"
        f" begins // {per_shard}) - 1 AS part FROM (SELECT *, row_number() OVER ordered AS place,"
        " sum(take) OVER ordered - take AS begins FROM chosen WINDOW ordered AS"
        " (ORDER BY sha256('order ' || hash), of_set, image_id ROWS UNBOUNDED PRECEDING)) ORDER BY of_set, slice"
    )


def _gather_pairs(db: Any, sources: Sequence[MixSource], parts: Sequence[int]) -> None:
    """A table `gathered` of the pairs of some shards, with all that is known of each. Indexes with none of them are not
    read; of what is chosen and known, a query looks at what belongs to its slice, which lies together."""
    db.register("no_sample", arrow_schema(SampleRow).empty_table())
    more = "0::BIGINT AS of_set, 0::BIGINT AS part, 0::BIGINT AS place, 0::BIGINT AS number"
    known = "'' AS new_id, '' AS file, '' AS sha256, '' AS look"
    db.execute(f"CREATE OR REPLACE TEMP TABLE gathered AS SELECT *, {more}, {known} FROM no_sample LIMIT 0")
    db.unregister("no_sample")
    db.register("wanted_part", pa.table({"part": pa.array(parts, pa.int64())}))
    db.execute("CREATE OR REPLACE TEMP TABLE wanted_now AS SELECT part FROM wanted_part")
    db.unregister("wanted_part")
    of_shards = "SELECT * FROM chosen WHERE part IN (SELECT part FROM wanted_now)"
    spans = f"SELECT DISTINCT of_set, slice, last_slice FROM ({of_shards})"
    needed = {(of_set, one) for of_set, a, b in db.execute(spans).fetchall() for one in range(a, b + 1)}
    for number, source in enumerate(sources):
        for of_slice, of_source in _slices(source):
            if (number, of_slice) not in needed:
                continue
            with local_cells(_indexes(source, of_source)) as cells:
                db.execute(
                    f"INSERT INTO gathered BY NAME SELECT p.*, c.of_set, c.part, c.place, {_NUMBER} AS number,"
                    " c.new_id, f.file, f.sha256, f.look FROM read_parquet($cells) p"
                    f" JOIN (SELECT * FROM ({of_shards}) WHERE of_set = $of_set AND slice <= $slice"
                    " AND last_slice >= $slice) c USING (image_id) LEFT JOIN"
                    " (SELECT * FROM fact WHERE of_set = $of_set AND fact_slice = $slice) f USING (image_id)"
                    f" WHERE {_NUMBER} <= c.last",
                    {"cells": cells, "of_set": number, "slice": of_slice},
                )


def _counts(db: Any, there: Sequence[tuple[int, int, int]], *, compared: bool) -> Iterator[SourceCounts]:
    taken = db.execute("SELECT of_set, sum(take)::BIGINT, count(*) FROM chosen GROUP BY of_set").fetchall()
    blind = db.execute("SELECT of_set, count(*) FROM image WHERE look IS NULL GROUP BY of_set").fetchall()
    of_source, unseen = {source: counts for source, *counts in taken}, dict(blind)
    for number, (pairs, left, copied) in enumerate(there):
        samples, images = of_source.get(number, (0, 0))
        yield SourceCounts(pairs, pairs - left, copied, samples, images, unseen.get(number, 0) if compared else 0)


def _digest(db: Any) -> tuple[int, str]:
    """The number of shards, and what stands for the images in them, their ids, hashes and order."""
    digest, parts = hashlib.sha256(), 0
    result = db.execute(
        "SELECT part, of_set, image_id, new_id, take, f.file, f.sha256, f.look FROM chosen"
        " LEFT JOIN fact f USING (of_set, image_id) ORDER BY place"
    )
    for row in _rows(result):
        digest.update(repr(row).encode())
        parts = row[0] + 1
    return parts, digest.hexdigest()


def _rows(result: Any) -> Iterator[tuple[Any, ...]]:
    """The rows of a result, some in memory at a time."""
    while True:
        with _one_line_faults():
            rows = result.fetchmany(_ROWS_AT_ONCE)
        if not rows:
            return
        yield from rows


def _as_taken(values: dict[str, Any]) -> Taken:
    about = {name: values.pop(name) for name in ("of_set", "part", "new_id", "file", "sha256", "look")}
    known = {name: value for name, value in values.items() if value is not None or name not in _WITH_DEFAULT}
    lists = {name: tuple(value) for name, value in known.items() if isinstance(value, list | tuple)}
    return Taken(row=SampleRow(**known | lists), **about)
