"""Selection: which pairs are written. Thresholds decide pair by pair; the cap per noun looks at the whole run once."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType

import pyarrow as pa

from maskmine.mining.evaluation.wrong_pairs import PairNumber
from maskmine.mining.pairs import Filters
from maskmine.mining.shards import KeepCorrected, KeepPair
from maskmine.mining.storage.query import query_cells
from maskmine.schemas.rows import Pair, PairCheck, SelectionRow

THRESHOLDS = ("similarity", "margin", "lift", "evidence", "separability", "confidence")
"""The scores of a pair that have a least value in the settings, as `pairs.min_NAME`."""
CHECKED = ("presence", "agreement")
"""What of a pair's check has one. A pair's own score `agreement` is another: that of its features."""


_CHECKED_PAIRS = """
            looked_at AS (
                SELECT image_id, unnest(checks) AS pair_check, generate_subscripts(checks, 1) - 1 AS number
                FROM read_parquet($checks)
            ), checked AS (FROM numbered JOIN looked_at USING (image_id, number))"""


def pair_hash(image_id: str, number: int) -> str:
    """The sort key that decides which pairs of a too frequent noun stay: random, but the same in every run."""
    return hashlib.sha256(f"{image_id} {number}".encode()).hexdigest()


def keep_pair(filters: Filters, *, images_of_noun: Mapping[str, int], last_kept: Mapping[str, str]) -> KeepPair:
    """A function of `(image id, number, pair, its check)`: whether the pair passes all filters.

    A score that is None, such as those of a noun that the verifier cannot read, reaches no threshold.

    `images_of_noun` counts the images whose captions have a noun, and may lack nouns rarer than `min_count`;
    `last_kept` comes from `cap_nouns`.
    """

    def keep(image_id: str, number: int, pair: Pair, check: PairCheck | None = None) -> bool:
        if filters.min_count > 1 and images_of_noun.get(pair.noun, 0) < filters.min_count:
            return False
        if not _above(_thresholds(filters, THRESHOLDS), pair) or not _above(_thresholds(filters, CHECKED), check):
            return False
        last = last_kept.get(pair.noun)
        return last is None or pair_hash(image_id, number) <= last

    return keep


def keep_corrected(last_kept: Mapping[str, str]) -> KeepCorrected:
    """A function of `(image id, number, corrected noun)`: whether the cut of the noun leaves the pair.

    No other filter is asked: a person has seen what scores can only guess.
    """

    def keep(image_id: str, number: int, noun: str) -> bool:
        last = last_kept.get(noun)
        return last is None or pair_hash(image_id, number) <= last

    return keep


def cap_nouns(
    filters: Filters,
    pair_cells: Sequence[str],
    *,
    check_cells: Sequence[str] = (),
    left_out: Collection[PairNumber] = (),
    corrected: Mapping[PairNumber, str] = MappingProxyType({}),
    written: Sequence[str] = (),
    memory_limit: str = "1GB",
) -> list[SelectionRow]:
    """For each noun with more pairs above the thresholds than `max_per_noun`: the hash of the last one kept.

    Pairs in the indexes `written` are there to stay and take the first places of their noun; where they take all, the
    last one kept is an empty hash. Pairs in `left_out` do not count; those that are `corrected` count by the noun given
    here, whatever their scores. Reads the Parquet cells of `pairs`, and those of `checks` where a filter is of them;
    memory stays below `memory_limit`, as DuckDB spills to the disk.
    """
    if filters.max_per_noun is None:
        return []
    of_pair, of_check = _thresholds(filters, THRESHOLDS), _thresholds(filters, CHECKED)
    checks = check_cells if of_check else ()
    cells_of = [*pair_cells, *checks, *written]
    conditions = [f"pair.{name} >= {least!r}" for name, least in of_pair.items()]
    conditions += [f"pair_check.{name} >= {least!r}" for name, least in of_check.items()]
    with query_cells(cells_of, memory_limit=memory_limit, unchecked=written) as (connection, cells):
        connection.register("left_out", _as_table(dict.fromkeys(left_out, "")))
        connection.register("corrected", _as_table(corrected))
        pairs, rest = cells[: len(pair_cells)], cells[len(pair_cells) :]
        checked, indexes = rest[: len(checks)], rest[len(checks) :]
        connection.execute("CREATE TEMP TABLE taken (noun VARCHAR, pairs BIGINT)")
        if indexes:
            count = "INSERT INTO taken SELECT noun, count(*) FROM read_parquet($indexes) GROUP BY noun"
            connection.execute(count, {"indexes": indexes})
        rows = connection.execute(
            f"""
            WITH numbered AS (
                SELECT image_id, unnest(pairs) AS pair, generate_subscripts(pairs, 1) - 1 AS number
                FROM read_parquet($pairs)
            ), {_CHECKED_PAIRS if of_check else "checked AS (FROM numbered)"}, hashed AS (
                SELECT coalesce(corrected.noun, pair.noun) AS noun, sha256(image_id || ' ' || number) AS hash
                FROM checked ANTI JOIN left_out USING (image_id, number)
                LEFT JOIN corrected USING (image_id, number)
                WHERE corrected.noun IS NOT NULL OR ({" AND ".join(conditions) or "TRUE"})
            ), ranked AS (
                SELECT noun, hash, row_number() OVER (PARTITION BY noun ORDER BY hash) AS rank,
                    count(*) OVER (PARTITION BY noun) AS count,
                    greatest($most - coalesce(taken.pairs, 0), 0) AS room
                FROM hashed LEFT JOIN taken USING (noun)
            )
            SELECT noun, CASE WHEN room = 0 THEN '' ELSE hash END FROM ranked
            WHERE count > room AND rank = greatest(room, 1)
            ORDER BY noun
            """,
            {"pairs": pairs, "most": filters.max_per_noun} | ({"checks": checked} if of_check else {}),
        ).fetchall()
    return [SelectionRow(noun, last) for noun, last in rows]


def _as_table(noun_of: Mapping[PairNumber, str]) -> pa.Table:
    columns = {"image_id": pa.string(), "number": pa.int64(), "noun": pa.string()}
    rows = [(*number, noun) for number, noun in noun_of.items()]
    return pa.table({name: pa.array([row[i] for row in rows], type) for i, (name, type) in enumerate(columns.items())})


def _above(least: Mapping[str, float], scored: Pair | PairCheck | None) -> bool:
    scores = ((getattr(scored, name, None), value) for name, value in least.items())
    return all(score is not None and score >= value for score, value in scores)


def _thresholds(filters: Filters, scores: Sequence[str]) -> dict[str, float]:
    """The least value of each of these scores that has one."""
    least = {score: getattr(filters, f"min_{score}", None) for score in scores}
    return {score: float(value) for score, value in least.items() if value is not None}
