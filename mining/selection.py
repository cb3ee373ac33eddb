"""Selection: which pairs are written. Thresholds decide pair by pair; the cap per noun looks at the whole run once."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from mining.pairs import ClipPairs, Filters
from mining.query import query_cells
from mining.shards import KeepPair
from schemas.rows import Pair, SelectionRow


def pair_hash(image_id: str, number: int) -> str:
    """What decides which pairs of a too frequent noun stay: a random order that is the same in every run."""
    return hashlib.sha256(f"{image_id} {number}".encode()).hexdigest()


def keep_pair(filters: Filters, *, images_of_noun: Mapping[str, int], last_kept: Mapping[str, str]) -> KeepPair:
    """A function that says of `(image id, number, pair)` whether all filters let it through.

    `images_of_noun` counts the images that say a noun; `last_kept` comes from `cap_nouns`.
    """

    def keep(image_id: str, number: int, pair: Pair) -> bool:
        if images_of_noun.get(pair.noun, 0) < filters.min_count or not _above_thresholds(filters, pair):
            return False
        last = last_kept.get(pair.noun)
        return last is None or pair_hash(image_id, number) <= last

    return keep


def cap_nouns(filters: Filters, pair_cells: Sequence[str], *, memory_limit: str = "1GB") -> list[SelectionRow]:
    """For each noun with more pairs above the thresholds than `max_per_noun`: the hash of the last one kept.

    Reads the Parquet cells of `pairs`; memory stays below `memory_limit`, as DuckDB spills to the disk.
    """
    if filters.max_per_noun is None:
        return []
    similarity, margin = _thresholds(filters)
    with query_cells(pair_cells, memory_limit=memory_limit) as (connection, cells):
        rows = connection.execute(
            """
            WITH numbered AS (
                SELECT image_id, unnest(pairs) AS pair, generate_subscripts(pairs, 1) - 1 AS number
                FROM read_parquet($cells)
            ), hashed AS (
                SELECT pair.noun AS noun, sha256(image_id || ' ' || number) AS hash FROM numbered
                WHERE ($similarity IS NULL OR pair.similarity >= $similarity)
                  AND ($margin IS NULL OR pair.margin >= $margin)
            )
            SELECT noun, hash FROM hashed
            QUALIFY row_number() OVER (PARTITION BY noun ORDER BY hash) = $most
                AND count(*) OVER (PARTITION BY noun) > $most
            ORDER BY noun
            """,
            {"cells": cells, "similarity": similarity, "margin": margin, "most": filters.max_per_noun},
        ).fetchall()
    return [SelectionRow(noun, last) for noun, last in rows]


def _above_thresholds(filters: Filters, pair: Pair) -> bool:
    similarity, margin = _thresholds(filters)
    return (similarity is None or (pair.similarity is not None and pair.similarity >= similarity)) and (
        margin is None or (pair.margin is not None and pair.margin >= margin)
    )


def _thresholds(filters: Filters) -> tuple[float | None, float | None]:
    return (filters.min_similarity, filters.min_margin) if isinstance(filters, ClipPairs) else (None, None)
