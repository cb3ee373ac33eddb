"""The counts of a report: what a finished run holds. Each is a class that is given a block of parts after the other
(`blocks.py`) and asked for its result after the last one; memory is bounded.

Shapes: N samples, Y and X rows and columns of the grid that positions are counted on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from maskmine.mining.storage.tally import Tally
from maskmine.pipelines.reports.blocks import Block
from maskmine.pipelines.reports.charts import Histogram
from maskmine.pipelines.reports.spreads import Spreads
from maskmine.schemas.manifest import Totals
from maskmine.schemas.rows import NounsRow, OriginRow, PairsRow, RegionsRow, SampleRow

GRID = 24  # cells along each side of the heat map, as many as its drawing can show
_ROWS_AT_ONCE = 8192  # samples whose places are counted at a time
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


class GridCounter:
    """Counts the grid; of a mix, whose images all have pairs, only what is known of its masks."""

    def __init__(self) -> None:
        self._sums = np.zeros(7, np.int64)
        self._sizes = np.zeros(len(_SIZE_EDGES) - 1, np.int64)
        self._heat_YX = np.zeros((GRID, GRID), np.int64)

    def add(self, block: Block) -> None:
        """Count a block of a run."""
        nouns, regions, pairs = (
            _lengths(block[row_type][name])
            for row_type, name in ((NounsRow, "nouns"), (RegionsRow, "regions"), (PairsRow, "pairs"))
        )
        steps = (nouns > 0, (nouns > 0) & (regions > 0), (nouns > 0) & (regions > 0) & (pairs > 0))
        counts = (len(nouns), *(int(step.sum()) for step in steps), nouns.sum(), regions.sum(), pairs.sum())
        self._sums += np.array(counts)
        self._add_masks(block[SampleRow], block[RegionsRow])

    def add_of_mix(self, block: Block) -> None:
        """Count a block of a mix: the masks of images whose sizes it knows."""
        seen, index = block[OriginRow], block[SampleRow]
        seen = seen.filter(pc.and_(pc.is_valid(seen["height_px"]), pc.is_valid(seen["width_px"])))
        known = pc.is_in(index["image_id"], seen["image_id"].combine_chunks())
        self._add_masks(index.filter(known), seen)

    def result(self, *, mix: Totals | None = None) -> Grid:
        """The counts; of a mix those that its totals say."""
        sums = self._sums.tolist() if mix is None else [mix.images] * 4 + [mix.samples] * 3
        names = ("images", "with_nouns", "with_regions", "with_pairs", "mentions", "regions", "pairs")
        counts: dict[str, Any] = dict(zip(names, sums, strict=True))
        histogram = Histogram(_SIZE_EDGES, tuple(self._sizes.tolist()))
        return Grid(**counts, sizes=histogram, heat_YX=tuple(map(tuple, self._heat_YX.tolist())))

    def _add_masks(self, index: pa.Table, seen: pa.Table) -> None:
        image_ids = seen["image_id"].combine_chunks()
        sizes = [seen[name].to_numpy() for name in ("height_px", "width_px")]
        for start in range(0, len(index), _ROWS_AT_ONCE):
            samples = index.slice(start, _ROWS_AT_ONCE)
            rows = pc.index_in(samples["image_id"], image_ids).to_numpy()
            counts, boxes_YX = _masks(samples, *(size[rows] for size in sizes))
            self._sizes += counts
            self._heat_YX += boxes_YX


class NounCounter:
    """Counts pairs by noun, in a table `counted` of DuckDB: `noun`, and its pairs `n`."""

    def __init__(self, db: Any) -> None:
        self._db, self._tally = db, Tally(db, "counted", "noun VARCHAR")

    def add(self) -> None:
        """Count the view `sample` of a block."""
        self._tally.add("SELECT noun, count(*) FROM sample GROUP BY noun")

    def sum_up(self) -> None:
        """Have one row for each noun in `counted`."""
        self._tally.sum_up()

    def result(self) -> NounCounts:
        """The nouns; what was added is summed up."""
        db, counted = self._db, self._tally.sum_up()
        known = db.execute(f"SELECT noun, n FROM {counted} ORDER BY n DESC, encode(noun) LIMIT {_KNOWN}").fetchall()
        nouns, single = db.execute(f"SELECT count(*), count(*) FILTER (n = 1) FROM {counted}").fetchall()[0]
        rarest = db.execute(f"SELECT noun, n FROM {counted} ORDER BY n, sha256(noun) LIMIT {_RARE}").fetchall()
        ranks = sorted({max(1, round(nouns ** (step / _RANKS))) for step in range(_RANKS + 1)})
        points = db.execute(
            f"SELECT rank, n FROM (SELECT n, row_number() OVER (ORDER BY n DESC) AS rank FROM {counted})"
            " WHERE list_contains($ranks, rank) ORDER BY rank",
            {"ranks": ranks},
        ).fetchall()
        return NounCounts(nouns, single, tuple(points), tuple(known[:_COMMON]), tuple(rarest), tuple(known))


class ScoreCounter:
    """Counts similarities and margins."""

    def __init__(self, db: Any, spreads: Spreads) -> None:
        self._db, self._spreads, self._alone = db, spreads, 0

    def add(self) -> None:
        """Count the view `sample` of a block."""
        scored = (
            f"(SELECT *, abs(margin - similarity - 1) < {_EPSILON} AS alone FROM sample WHERE similarity IS NOT NULL)"
        )
        self._spreads.add("similarity", value="similarity", source=scored)
        self._spreads.add("margin", value="margin", source=f"{scored} WHERE NOT alone")
        self._alone += self._db.execute(f"SELECT count(*) FILTER (alone) FROM {scored}").fetchall()[0][0]

    def result(self) -> Scores | None:
        """The scores; None when no CLIP made the pairs."""
        similarity, median = _spread(self._spreads, "similarity")
        margin, margin_median = _spread(self._spreads, "margin")
        if similarity is None or median is None:
            return None
        return Scores(similarity, margin, median, margin_median, self._alone)


class CheckCounter:
    """Counts what the verifier says, of a run with checks."""

    def __init__(self, db: Any, spreads: Spreads) -> None:
        self._db, self._spreads, self._unread = db, spreads, 0

    def add(self) -> None:
        """Count the view `sample` of a block."""
        for score in ("presence", "agreement"):
            self._spreads.add(score, value=score, source="sample")
        self._unread += self._db.execute("SELECT count(*) FROM sample WHERE presence IS NULL").fetchall()[0][0]

    def result(self) -> Checked | None:
        """The checks; None when the verifier could read no noun."""
        spreads = self._spreads
        presence, presence_median = _spread(spreads, "presence")
        agreement_median = spreads.quantile("agreement", 0.5)
        if presence is None or presence_median is None or agreement_median is None:
            return None
        thresholds = [spreads.quantile("presence", float(f"{1 - left:g}")) for left in _LEFT]
        tried = [("presence", float(f"{value:.2g}")) for value in dict.fromkeys(thresholds)]
        tried += [("agreement", value) for value in _AGREEMENTS]
        filtered = (Filtered(f"min_{score}", least, spreads.at_least(score, least)) for score, least in tried)
        agreement = spreads.histogram("agreement", low=0.0, high=1.0)
        return Checked(presence, agreement, presence_median, agreement_median, self._unread, tuple(filtered))


class NegativeCounter:
    """Counts negatives, of a run that has them; those of an image, whose samples lie in one part, count once."""

    def __init__(self, db: Any) -> None:
        self._db, self._images, self._tally = db, 0, Tally(db, "unshown", "noun VARCHAR")

    def add(self) -> None:
        """Count the view `sample` of a block."""
        self._db.execute(
            """
            CREATE OR REPLACE TEMP TABLE of_image AS
            SELECT image_id, any_value(negatives) AS negatives FROM sample GROUP BY image_id
            """
        )
        self._images += self._db.execute("SELECT count(*) FROM of_image WHERE len(negatives) > 0").fetchall()[0][0]
        self._tally.add("SELECT noun, count(*) FROM (SELECT unnest(negatives) AS noun FROM of_image) GROUP BY noun")

    def result(self) -> Unshown:
        """The negatives."""
        unshown = self._tally.sum_up()
        negatives, nouns = self._db.execute(f"SELECT coalesce(sum(n), 0)::BIGINT, count(*) FROM {unshown}").fetchall()[
            0
        ]
        commonest = self._db.execute(f"SELECT noun, n FROM {unshown} ORDER BY n DESC, encode(noun) LIMIT {_COMMON}")
        return Unshown(self._images, negatives, nouns, tuple(commonest.fetchall()))


def _spread(spreads: Spreads, score: str) -> tuple[Histogram | None, float | None]:
    """The histogram of a score between its least and its largest value, and its median."""
    ends = spreads.ends(score)
    if ends is None:
        return None, None
    return spreads.histogram(score, low=ends[0], high=ends[1]), spreads.quantile(score, 0.5)


def _masks(
    index: pa.Table, height_N: np.ndarray[Any, Any], width_N: np.ndarray[Any, Any]
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The sizes of samples as counts between the edges, and how many boxes cover each cell of the grid."""
    boxes_N4 = pc.list_flatten(index["box_xyxy"]).to_numpy().reshape(-1, 4)
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
