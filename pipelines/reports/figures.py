"""The figures of a report: what a finished run holds, from its cells and indexes, in memory that does not grow with it.

Shapes: N samples of a part, Y and X rows and columns of the grid that positions are counted on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mining.query import query_cells
from pipelines.charts import Histogram
from pipelines.run_folder import RunFolder
from schemas.errors import IncompleteError

GRID = 24
_BINS = 40
_SIZE_EDGES = tuple(float(edge) for edge in np.round(np.logspace(-4, 0, 25), 8))
_COMMON, _RARE, _KNOWN, _RANKS = 12, 24, 2_000, 120
_EPSILON = 2e-6  # scores have six digits


@dataclass(frozen=True, slots=True)
class Grid:
    """Counts over all parts of a run: images that came so far, what was found in them, where the masks are.

    Each image in a count is in the one before it. `heat_YX` says, for each place of a picture, how many of the written
    masks' boxes cover it; `sizes` are shares of the picture that masks cover.
    """

    images: int
    with_nouns: int
    with_regions: int
    with_pairs: int
    mentions: int
    regions: int
    pairs: int
    sizes: Histogram
    heat_YX: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class NounCounts:
    """How many pairs nouns have: the commonest, some of the rarest (by hash), and ranks as points of a curve.

    `known` are the first nouns by pairs, for a person to look up; `single` counts the nouns with one pair.
    """

    nouns: int
    single: int
    ranks: tuple[tuple[int, int], ...]
    commonest: tuple[tuple[str, int], ...]
    rarest: tuple[tuple[str, int], ...]
    known: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Scores:
    """Similarities and margins of the written pairs. `alone` pairs took the only region of their image: they have no
    margin to speak of, and are not in it. Medians are None where there is no value."""

    similarity: Histogram
    margin: Histogram | None
    similarity_median: float
    margin_median: float | None
    alone: int


def count_grid(run: RunFolder, *, parts: int) -> Grid:
    """Read the few columns of each part that the counts need."""
    sums = np.zeros(7, np.int64)
    sizes = np.zeros(len(_SIZE_EDGES) - 1, np.int64)
    heat_YX = np.zeros((GRID, GRID), np.int64)
    for part in range(parts):
        name = f"{part:05d}.parquet"
        nouns = _lengths(_columns(run, "nouns", name, ["nouns.list.element.start"])["nouns"])
        seen = _columns(run, "regions", name, ["image_id", "height_px", "width_px", "regions.list.element.area_px"])
        regions = _lengths(seen["regions"])
        pairs = _lengths(_columns(run, "pairs", name, ["pairs.list.element.region"])["pairs"])
        steps = (nouns > 0, (nouns > 0) & (regions > 0), (nouns > 0) & (regions > 0) & (pairs > 0))
        sums += [len(nouns), *(int(step.sum()) for step in steps), nouns.sum(), regions.sum(), pairs.sum()]
        more, boxes_YX = _masks(_columns(run, "shards", name, ["image_id", "box_xyxy", "area_px"]), seen)
        sizes += more
        heat_YX += boxes_YX
    counts = tuple(int(count) for count in sizes)
    heat = tuple(tuple(int(cell) for cell in row) for row in heat_YX)
    images, with_nouns, with_regions, with_pairs, mentions, found, paired = (int(count) for count in sums)
    return Grid(
        images,
        with_nouns,
        with_regions,
        with_pairs,
        mentions=mentions,
        regions=found,
        pairs=paired,
        sizes=Histogram(_SIZE_EDGES, counts),
        heat_YX=heat,
    )


def count_nouns(indexes: Sequence[str], *, memory_limit: str) -> NounCounts:
    """Over the index tables at these paths."""
    with query_cells(indexes, memory_limit=memory_limit) as (db, cells):
        db.execute(
            "CREATE TEMP TABLE counted AS SELECT noun, count(*) AS pairs FROM read_parquet($cells) GROUP BY noun",
            {"cells": cells},
        )
        order = "SELECT noun, pairs FROM counted ORDER BY pairs DESC, encode(noun)"
        known = db.execute(f"{order} LIMIT {_KNOWN}").fetchall()
        nouns, single = db.execute("SELECT count(*), count(*) FILTER (pairs = 1) FROM counted").fetchone()
        rarest = db.execute(f"SELECT noun, pairs FROM counted ORDER BY pairs, sha256(noun) LIMIT {_RARE}").fetchall()
        ranks = sorted({max(1, round(nouns ** (step / _RANKS))) for step in range(_RANKS + 1)})
        points = db.execute(
            "SELECT rank, pairs FROM (SELECT pairs, row_number() OVER (ORDER BY pairs DESC) AS rank FROM counted)"
            " WHERE list_contains($ranks, rank) ORDER BY rank",
            {"ranks": ranks},
        ).fetchall()
    return NounCounts(nouns, single, tuple(points), tuple(known[:_COMMON]), tuple(rarest), tuple(known))


def count_scores(indexes: Sequence[str], *, memory_limit: str) -> Scores | None:
    """Over the index tables at these paths; None when no CLIP made the pairs."""
    with query_cells(indexes, memory_limit=memory_limit) as (db, cells):
        db.execute(
            f"""
            CREATE TEMP TABLE score AS
            SELECT similarity, margin, abs(margin - similarity - 1) < {_EPSILON} AS alone FROM read_parquet($cells)
            WHERE similarity IS NOT NULL
            """,
            {"cells": cells},
        )
        similarity, median = _histogram(db, "similarity", "TRUE")
        margin, margin_median = _histogram(db, "margin", "NOT alone")
        (alone,) = db.execute("SELECT count(*) FILTER (alone) FROM score").fetchone()
    if similarity is None or median is None:
        return None
    return Scores(similarity, margin, median, margin_median, alone)


def _histogram(db: Any, column: str, where: str) -> tuple[Histogram | None, float | None]:
    low, high, median = db.execute(
        f"SELECT min({column}), max({column}), quantile_disc({column}, 0.5) FROM score WHERE {where}"
    ).fetchone()
    if low is None:
        return None, None
    low, high = (low, high) if high > low else (low - 0.01, high + 0.01)
    edges = tuple(round(float(edge), 6) for edge in np.linspace(low, high, _BINS + 1))
    counted = db.execute(
        f"SELECT least({_BINS - 1}, floor(({column} - $low) / ($high - $low) * {_BINS})::BIGINT) AS bin, count(*)"
        f" FROM score WHERE {where} GROUP BY bin",
        {"low": low, "high": high},
    ).fetchall()
    counts = dict(counted)
    return Histogram(edges, tuple(counts.get(number, 0) for number in range(_BINS))), float(median)


def _masks(index: pa.Table, seen: pa.Table) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The sizes of a part's samples as counts between the edges, and how many boxes cover each place of the grid."""
    rows = pc.index_in(index["image_id"], seen["image_id"].combine_chunks()).to_numpy()
    height_N, width_N = (seen[name].to_numpy()[rows] for name in ("height_px", "width_px"))
    boxes_N4 = np.stack(index["box_xyxy"].to_pylist()) if len(index) else np.zeros((0, 4))
    shares_N = index["area_px"].to_numpy() / (height_N * width_N)
    counts, _ = np.histogram(np.clip(shares_N, _SIZE_EDGES[0], 1.0), _SIZE_EDGES)
    centres = (np.arange(GRID) + 0.5) / GRID
    x0, y0, x1, y1 = (boxes_N4[:, side, None] for side in range(4))
    inside_NX = (x0 <= centres * width_N[:, None]) & (centres * width_N[:, None] < x1)
    inside_NY = (y0 <= centres * height_N[:, None]) & (centres * height_N[:, None] < y1)
    return counts, inside_NY.T.astype(np.int64) @ inside_NX.astype(np.int64)


def _lengths(column: pa.ChunkedArray) -> np.ndarray[Any, np.dtype[np.int64]]:
    lengths: np.ndarray[Any, np.dtype[np.int64]] = pc.list_value_length(column).to_numpy().astype(np.int64)
    return lengths


def _columns(run: RunFolder, step: str, name: str, columns: list[str]) -> pa.Table:
    try:
        with run.open(step, name) as file:
            return pq.ParquetFile(file).read(columns=columns)
    except (FileNotFoundError, pa.ArrowInvalid) as error:
        raise IncompleteError(f"{run.path(step, name)}: missing or not whole; run `maskmine mine` again") from error
