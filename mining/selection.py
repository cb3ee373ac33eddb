"""Selection: which pairs are written. Thresholds decide pair by pair; the cap per noun looks at the whole run once."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence

import pyarrow as pa

from maskmine.mining.evaluation.wrong_pairs import PairNumber
from maskmine.mining.pairs import ClipPairs, Filters
from maskmine.mining.shards import KeepPair
from maskmine.mining.storage.query import query_cells
from maskmine.schemas.rows import Pair, SelectionRow

THRESHOLDS = ("similarity", "margin", "lift", "evidence", "separability", "confidence")
"""The scores of a pair that have a least value in the settings, as `pairs.min_NAME`."""


def pair_hash(image_id: str, number: int) -> str:
    """The sort key that decides which pairs of a too frequent noun stay: random, but the same in every run."""
    return hashlib.sha256(f"{image_id} {number}".encode()).hexdigest()


def keep_pair(filters: Filters, *, images_of_noun: Mapping[str, int], last_kept: Mapping[str, str]) -> KeepPair:
    """A function of `(image id, number, pair)`: whether the pair passes all filters.

    `images_of_noun` counts the images whose captions have a noun, and may lack nouns rarer than `min_count`;
    `last_kept` comes from `cap_nouns`.
    """

    def keep(image_id: str, number: int, pair: Pair) -> bool:
        if filters.min_count > 1 and images_of_noun.get(pair.noun, 0) < filters.min_count:
            return False
        if not _above_thresholds(filters, pair):
            return False
        last = last_kept.get(pair.noun)
        return last is None or pair_hash(image_id, number) <= last

    return keep


def cap_nouns(
    filters: Filters,
    pair_cells: Sequence[str],
    *,
    left_out: Collection[PairNumber] = (),
    memory_limit: str = "1GB",
) -> list[SelectionRow]:
    """For each noun with more pairs above the thresholds than `max_per_noun`: the hash of the last one kept.

    Pairs in `left_out` do not count. Reads the Parquet cells of `pairs`; memory stays below `memory_limit`, as DuckDB
    spills to the disk.
    """
    if filters.max_per_noun is None:
        return []
    conditions = " AND ".join(f"pair.{name} >= {least!r}" for name, least in _thresholds(filters).items()) or "TRUE"
    with query_cells(pair_cells, memory_limit=memory_limit) as (connection, cells):
        connection.register("left_out", _as_table(left_out))
        rows = connection.execute(
            f"""
            WITH numbered AS (
                SELECT image_id, unnest(pairs) AS pair, generate_subscripts(pairs, 1) - 1 AS number
                FROM read_parquet($cells)
            ), hashed AS (
                SELECT pair.noun AS noun, sha256(image_id || ' ' || number) AS hash
                FROM numbered ANTI JOIN left_out USING (image_id, number)
                WHERE {conditions}
            )
            SELECT noun, hash FROM hashed
            QUALIFY row_number() OVER (PARTITION BY noun ORDER BY hash) = $most
                AND count(*) OVER (PARTITION BY noun) > $most
            ORDER BY noun
            """,
            {"cells": cells, "most": filters.max_per_noun},
        ).fetchall()
    return [SelectionRow(noun, last) for noun, last in rows]


def _as_table(numbers: Collection[PairNumber]) -> pa.Table:
    columns = {"image_id": pa.string(), "number": pa.int64()}
    return pa.table({name: pa.array([n[i] for n in numbers], type) for i, (name, type) in enumerate(columns.items())})


def _above_thresholds(filters: Filters, pair: Pair) -> bool:
    scores = ((getattr(pair, name), least) for name, least in _thresholds(filters).items())
    return all(score is not None and score >= least for score, least in scores)


def _thresholds(filters: Filters) -> dict[str, float]:
    """The least value of each score of a pair that has one."""
    if not isinstance(filters, ClipPairs):
        return {}
    least = {score: getattr(filters, f"min_{score}") for score in THRESHOLDS}
    return {score: float(value) for score, value in least.items() if value is not None}
