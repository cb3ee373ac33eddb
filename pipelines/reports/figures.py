"""The counts of a report: what a finished run holds, from its cells and indexes, in bounded memory.

Shapes: N samples of a part, Y and X rows and columns of the grid that positions are counted on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from maskmine.mining.storage.query import query_cells
from maskmine.pipelines.dataset.finished_run import FinishedRun
from maskmine.pipelines.reports.charts import Histogram
from maskmine.schemas.rows import NounsRow, OriginRow, PairsRow, RegionsRow, SampleRow

GRID = 24  # cells along each side of the heat map, as many as its drawing can show
_OF_MASKS = ("image_id", "box_xyxy", "area_px")  # what the index has of a mask
_BINS = 40  # bars of a histogram in a chart of 5 inches
# Mask sizes are compared by order of magnitude: six bins for each power of ten of the image's share.
_SIZE_EDGES = tuple(float(edge) for edge in np.round(np.logspace(-4, 0, 25), 8))
# Nouns in the page: the lists that are shown, those that can be looked up, and points of the rank curve.
_COMMON, _RARE, _KNOWN, _RANKS = 12, 24, 2_000, 120
# Filters of checks that are tried: presence has another scale with every verifier, so by what they leave; agreement is
# an IoU.
_LEFT, _AGREEMENTS = (0.95, 0.9, 0.8, 0.5), (0.25, 0.5, 0.75, 0.9)
_EPSILON = 2e-6  # scores have six digits


@dataclass(frozen=True, slots=True)
class Grid:
    """Counts over all parts of a run: images left after each step, nouns, regions and pairs, sizes of masks.

    Each image in a count is in the one before it. `heat_YX` counts, for each cell of a grid over the image, the written
    masks whose boxes cover it; `sizes` are the shares of the image that the masks cover.
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
    """How many pairs nouns have: the most frequent, some of the rarest (by hash), and points of the rank curve.

    `known` are the most frequent nouns, which can be looked up; `single` counts the nouns with one pair.
    """

    nouns: int
    single: int
    ranks: tuple[tuple[int, int], ...]
    commonest: tuple[tuple[str, int], ...]
    rarest: tuple[tuple[str, int], ...]
    known: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Scores:
    """Similarities and margins of the written pairs.

    `alone` pairs took the only region of their image; their margins mean nothing and are left out.
    """

    similarity: Histogram
    margin: Histogram | None
    similarity_median: float
    margin_median: float | None
    alone: int


@dataclass(frozen=True, slots=True)
class Filtered:
    """How many of the written pairs a filter such as `min_presence` would leave at a threshold."""

    setting: str
    threshold: float
    pairs: int


@dataclass(frozen=True, slots=True)
class Checked:
    """What the verifier says of the written pairs; `unread` are those of nouns that it cannot read."""

    presence: Histogram
    agreement: Histogram
    presence_median: float
    agreement_median: float
    unread: int
    filtered: tuple[Filtered, ...]


@dataclass(frozen=True, slots=True)
class Unshown:
    """The negatives of the images with pairs: how many images have some, how many there are, the most frequent ones."""

    images: int
    negatives: int
    nouns: int
    commonest: tuple[tuple[str, int], ...]


def count_grid(finished: FinishedRun) -> Grid:
    """Read the few columns of each part that the counts need; of a mix, whose images all have pairs, those it has."""
    if finished.is_mix:
        return _count_grid_of_mix(finished)
    sums = np.zeros(7, np.int64)
    sizes = np.zeros(len(_SIZE_EDGES) - 1, np.int64)
    heat_YX = np.zeros((GRID, GRID), np.int64)
    for part in finished.parts:
        nouns = _lengths(finished.columns(part, NounsRow, ["nouns.list.element.start"])["nouns"])
        columns = ["image_id", "height_px", "width_px", "regions.list.element.area_px"]
        seen = finished.columns(part, RegionsRow, columns)
        regions = _lengths(seen["regions"])
        pairs = _lengths(finished.columns(part, PairsRow, ["pairs.list.element.region"])["pairs"])
        steps = (nouns > 0, (nouns > 0) & (regions > 0), (nouns > 0) & (regions > 0) & (pairs > 0))
        sums += [len(nouns), *(int(step.sum()) for step in steps), nouns.sum(), regions.sum(), pairs.sum()]
        more, boxes_YX = _masks(finished.columns(part, SampleRow, _OF_MASKS), seen)
        sizes += more
        heat_YX += boxes_YX
    return _grid(sums.tolist(), sizes, heat_YX)


def _count_grid_of_mix(finished: FinishedRun) -> Grid:
    sizes = np.zeros(len(_SIZE_EDGES) - 1, np.int64)
    heat_YX = np.zeros((GRID, GRID), np.int64)
    for part in finished.parts:
        seen = finished.columns(part, OriginRow, ["image_id", "height_px", "width_px"])
        seen = seen.filter(pc.and_(pc.is_valid(seen["height_px"]), pc.is_valid(seen["width_px"])))
        index = finished.columns(part, SampleRow, _OF_MASKS)
        known = pc.is_in(index["image_id"], seen["image_id"].combine_chunks())
        more, boxes_YX = _masks(index.filter(known), seen)
        sizes += more
        heat_YX += boxes_YX
    totals = finished.manifest.totals
    return _grid([totals.images] * 4 + [totals.samples] * 3, sizes, heat_YX)


def _grid(sums: Sequence[int], sizes: np.ndarray[Any, Any], heat_YX: np.ndarray[Any, Any]) -> Grid:
    names = ("images", "with_nouns", "with_regions", "with_pairs", "mentions", "regions", "pairs")
    counts: dict[str, Any] = dict(zip(names, sums, strict=True))
    histogram = Histogram(_SIZE_EDGES, tuple(sizes.tolist()))
    return Grid(**counts, sizes=histogram, heat_YX=tuple(map(tuple, heat_YX.tolist())))


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


def count_checks(indexes: Sequence[str], *, memory_limit: str) -> Checked | None:
    """Over the index tables at these paths, of a run with checks; None when the verifier could read no noun."""
    with query_cells(indexes, memory_limit=memory_limit) as (db, cells):
        db.execute("CREATE TEMP TABLE score AS SELECT presence, agreement FROM read_parquet($cells)", {"cells": cells})
        presence, presence_median = _histogram(db, "presence", "presence IS NOT NULL")
        if presence is None or presence_median is None:
            return None
        agreement = count_bins(db, "agreement", "score WHERE agreement IS NOT NULL", low=0.0, high=1.0)
        quantiles = ", ".join(f"quantile_disc(presence, {1 - left:g})" for left in _LEFT)
        median, unread, *thresholds = db.execute(
            f"SELECT quantile_disc(agreement, 0.5), count(*) FILTER (presence IS NULL), {quantiles} FROM score"
        ).fetchone()
        tried = [("presence", float(f"{value:.2g}")) for value in dict.fromkeys(thresholds)]
        tried += [("agreement", value) for value in _AGREEMENTS]
        counts = ", ".join(f"count(*) FILTER ({score} >= {least!r})" for score, least in tried)
        left = db.execute(f"SELECT {counts} FROM score").fetchone()
    filtered = (Filtered(f"min_{score}", least, pairs) for (score, least), pairs in zip(tried, left, strict=True))
    return Checked(presence, agreement, presence_median, median, unread, tuple(filtered))


def count_negatives(indexes: Sequence[str], *, memory_limit: str) -> Unshown:
    """Over the index tables at these paths, of a run with negatives; those of an image count once."""
    with query_cells(indexes, memory_limit=memory_limit) as (db, cells):
        db.execute(
            """
            CREATE TEMP TABLE unshown AS SELECT image_id, unnest(negatives) AS noun
            FROM (SELECT image_id, any_value(negatives) AS negatives FROM read_parquet($cells) GROUP BY image_id)
            """,
            {"cells": cells},
        )
        counts = "SELECT count(DISTINCT image_id), count(*), count(DISTINCT noun) FROM unshown"
        images, negatives, nouns = db.execute(counts).fetchone()
        order = "GROUP BY noun ORDER BY count(*) DESC, encode(noun)"
        commonest = db.execute(f"SELECT noun, count(*) FROM unshown {order} LIMIT {_COMMON}").fetchall()
    return Unshown(images, negatives, nouns, tuple(commonest))


def _histogram(db: Any, column: str, where: str) -> tuple[Histogram | None, float | None]:
    low, high, median = db.execute(
        f"SELECT min({column}), max({column}), quantile_disc({column}, 0.5) FROM score WHERE {where}"
    ).fetchone()
    if low is None:
        return None, None
    low, high = (low, high) if high > low else (low - 0.01, high + 0.01)
    return count_bins(db, column, f"score WHERE {where}", low=low, high=high), float(median)


def count_bins(db: Any, value: str, source: str, *, low: float, high: float) -> Histogram:
    """The histogram of an SQL expression over the rows of `source`, in equal bins from `low` to `high`."""
    counts = dict(
        db.execute(
            f"SELECT least({_BINS - 1}, floor(({value} - $low) / ($high - $low) * {_BINS})::BIGINT) AS bin, count(*)"
            f" FROM {source} GROUP BY bin",
            {"low": low, "high": high},
        ).fetchall()
    )
    edges = tuple(round(float(edge), 6) for edge in np.linspace(low, high, _BINS + 1))
    return Histogram(edges, tuple(counts.get(number, 0) for number in range(_BINS)))


def _masks(index: pa.Table, seen: pa.Table) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The sizes of a part's samples as counts between the edges, and how many boxes cover each cell of the grid."""
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
