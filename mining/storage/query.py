"""Queries over the Parquet cells of a step, in bounded memory: DuckDB, which goes on in temporary files beyond it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import Any

import duckdb

from mining.stores import fault_line, fetch, plain_path, scheme_of
from schemas.errors import IncompleteError

_FETCHED_AT_ONCE = 16


@contextmanager
def query_cells(paths: Sequence[str], *, memory_limit: str = "1GB") -> Iterator[tuple[Any, list[str]]]:
    """A DuckDB connection, and the paths in the form that its `read_parquet` takes.

    Paths are files here, or on an object store (`s3://…`), from where they are copied into the temporary folder; `*`,
    `?` and `[` in them are no wildcards. Raises IncompleteError when they cannot be fetched.
    """
    with TemporaryDirectory(prefix="maskmine-") as scratch, duckdb.connect() as connection:
        connection.execute("SET memory_limit = ?", [memory_limit])
        connection.execute("SET temp_directory = ?", [scratch])
        connection.execute("SET preserve_insertion_order = false")
        yield connection, [re.sub(r"([*?\[])", r"[\1]", path) for path in _local_paths(paths, scratch)]


def _local_paths(paths: Sequence[str], folder: str) -> list[str]:
    """Files here as they are, objects as copies: through fsspec, DuckDB makes nine requests for each that it reads."""
    copies = [os.path.join(folder, f"{number:08d}.parquet") for number in range(len(paths))]
    with ThreadPoolExecutor(_FETCHED_AT_ONCE) as pool:
        return list(pool.map(_local_path, paths, copies))


def _local_path(path: str, copy: str) -> str:
    if scheme_of(path) == "file":
        return plain_path(path)
    try:
        content = fetch(path)
    except FileNotFoundError as error:
        raise IncompleteError(f"{path}: missing; run the same command again") from error
    except OSError as error:
        raise IncompleteError(fault_line(error, path)) from error
    with open(copy, "wb") as file:
        file.write(content)
    return copy
