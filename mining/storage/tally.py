"""Counts by key that blocks of rows bring, summed up as they grow, in tables of DuckDB: memory holds each key once or
twice, and goes to temporary files beyond the connection's limit.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

_LEAST_ROWS = 1 << 13  # of a table, before it is made smaller


@dataclass
class Growth:
    """When a table that blocks add rows to is to be made smaller: where it has twice the rows that were left."""

    rows: int = 0
    most: int = field(default_factory=lambda: _LEAST_ROWS)

    def is_due(self, more: int) -> bool:
        """Whether it is, after so many more rows."""
        self.rows += more
        return self.rows > self.most

    def left(self, rows: int) -> None:
        """Note what was left of them."""
        self.rows, self.most = rows, max(_LEAST_ROWS, 2 * rows)


class Tally:
    """A table `name` of `keys` (as `noun VARCHAR`) with the sum `n` of what was added for them."""

    def __init__(self, db: Any, name: str, keys: str) -> None:
        self._db, self._name, self._growth = db, name, Growth()
        db.execute(f"CREATE TEMP TABLE {name} ({keys}, n BIGINT)")

    def add(self, query: str) -> None:
        """Add the rows of a query: the keys, and a count."""
        (more,) = self._db.execute(f"INSERT INTO {self._name} {query}").fetchall()[0]
        if self._growth.is_due(more):
            self.sum_up()

    def sum_up(self) -> str:
        """Have one row for each key; returns the name of the table."""
        of_key = f"SELECT * EXCLUDE (n), sum(n)::BIGINT AS n FROM {self._name} GROUP BY ALL"
        self._db.execute(f"CREATE OR REPLACE TEMP TABLE {self._name} AS {of_key}")
        (rows,) = self._db.execute(f"SELECT count(*) FROM {self._name}").fetchall()[0]
        self._growth.left(rows)
        return self._name
