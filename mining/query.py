"""Queries over the Parquet cells of a step, in bounded memory: DuckDB, which goes on in temporary files beyond it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import Any

import duckdb
import fsspec


@contextmanager
def query_cells(paths: Sequence[str], *, memory_limit: str = "1GB") -> Iterator[tuple[Any, list[str]]]:
    """A DuckDB connection, and the paths in the form that its `read_parquet` takes.

    Paths are files here, or on any file system of fsspec (`s3://…`); `*`, `?` and `[` in them are no wildcards.
    """
    with TemporaryDirectory(prefix="maskmine-") as spill, duckdb.connect() as connection:
        connection.execute("SET memory_limit = ?", [memory_limit])
        connection.execute("SET temp_directory = ?", [spill])
        connection.execute("SET preserve_insertion_order = false")
        for protocol in sorted({path.partition("://")[0] for path in paths if "://" in path}):
            connection.register_filesystem(fsspec.filesystem(protocol))
        yield connection, [re.sub(r"([*?\[])", r"[\1]", path) for path in paths]
