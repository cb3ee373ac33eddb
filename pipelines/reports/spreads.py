"""How the scores of pairs are spread: counts of values, from which quantiles and histograms follow exactly."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from maskmine.mining.storage.tally import Tally
from maskmine.pipelines.reports.charts import Histogram

_BINS = 40  # bars of a histogram in a chart of 5 inches


class Spreads:
    """How scores are spread: the pairs of each value of each score. Scores have six digits, so values repeat."""

    def __init__(self, db: Any) -> None:
        self._db, self._tally = db, Tally(db, "spread", "score VARCHAR, value DOUBLE")

    def add(self, score: str, *, value: str, source: str) -> None:
        """Add the values of an SQL expression over the rows of `source`; null is none."""
        of_value = f"SELECT {value} AS value FROM {source}"
        self._tally.add(f"SELECT '{score}', value, count(*) FROM ({of_value}) WHERE value IS NOT NULL GROUP BY value")

    def sum_up(self) -> None:
        """Sum up what was added, before anything is asked for."""
        self._tally.sum_up()

    def ends(self, score: str) -> tuple[float, float] | None:
        """The least and the largest value, those of a histogram: not the same; None where there is no value."""
        low, high = self._db.execute(f"SELECT min(value), max(value) FROM {_of(score)}").fetchall()[0]
        if low is None:
            return None
        return (low, high) if high > low else (low - 0.01, high + 0.01)

    def quantile(self, score: str, share: float) -> float | None:
        """The value that `share` of all do not exceed, as DuckDB's `quantile_disc`; None where there is no value."""
        (total,) = self._db.execute(f"SELECT sum(n)::BIGINT FROM {_of(score)}").fetchall()[0]
        if not total:
            return None
        place = max(1, total - math.floor(total - total * share))
        (value,) = self._db.execute(
            f"SELECT min(value) FROM (SELECT value, sum(n) OVER (ORDER BY value) AS upto FROM {_of(score)})"
            f" WHERE upto >= {place}"
        ).fetchall()[0]
        return float(value)

    def at_least(self, score: str, least: float) -> int:
        """How many pairs reach a value."""
        query = f"SELECT coalesce(sum(n), 0)::BIGINT FROM {_of(score)} AND value >= {least!r}"
        return int(self._db.execute(query).fetchall()[0][0])

    def histogram(self, score: str, *, low: float, high: float) -> Histogram:
        """The values in equal bins from `low` to `high`."""
        return count_bins(self._db, "value", _of(score), low=low, high=high, count="sum(n)::BIGINT")


def count_bins(db: Any, value: str, source: str, *, low: float, high: float, count: str = "count(*)") -> Histogram:
    """The histogram of an SQL expression over the rows of `source`, in equal bins from `low` to `high`."""
    counts = dict(
        db.execute(
            f"SELECT least({_BINS - 1}, floor(({value} - $low) / ($high - $low) * {_BINS})::BIGINT) AS bin, {count}"
            f" FROM {source} GROUP BY bin",
            {"low": low, "high": high},
        ).fetchall()
    )
    edges = tuple(round(float(edge), 6) for edge in np.linspace(low, high, _BINS + 1))
    return Histogram(edges, tuple(counts.get(number, 0) for number in range(_BINS)))


def _of(score: str) -> str:
    return f"spread WHERE score = '{score}'"
