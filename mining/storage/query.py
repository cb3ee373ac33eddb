"""Queries over the Parquet cells of a step, in bounded memory: DuckDB, which goes on in temporary files beyond it."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import Any

import duckdb
import pyarrow as pa

from maskmine.mining.storage.ownership import SCRATCH, owned_prefix
from maskmine.mining.storage.stores import fault_line, fetch, plain_path, scheme_of
from maskmine.schemas.errors import IncompleteError
from maskmine.schemas.seal import check_sealed

QueryError = duckdb.Error
"""What a query raises, such as for a cell that is no Parquet."""
_FETCHED_AT_ONCE = 16  # cells are small: the wait is for the store, not for the network


@contextmanager
def query_cells(
    paths: Sequence[str], *, memory_limit: str = "1GB", unchecked: Collection[str] = ()
) -> Iterator[tuple[Any, list[str]]]:
    """A DuckDB connection, and the paths in the form that its `read_parquet` takes.

    DuckDB believes what it reads, so every byte of the cells is checked first, but for those `unchecked`: the caller
    checks of them what was used, by `check_cell`.

    Paths are files here, or on an object store (`s3://…`), from where they are copied into the temporary folder; `*`,
    `?` and `[` in them are no wildcards, and folders called `name=value` make no columns. Raises IncompleteError when
    they cannot be fetched, or are damaged.
    """
    with _connect(memory_limit) as (connection, scratch):
        yield connection, _for_duckdb(_local_paths(paths, scratch, unchecked))


@contextmanager
def query_slices(
    slices: Iterable[tuple[Sequence[str], Collection[str]]], *, memory_limit: str = "1GB"
) -> Iterator[tuple[Any, Iterator[list[str]]]]:
    """`query_cells` of more cells than one query can have open: slices of paths, and which of them stay unchecked.

    All slices have one connection; those of object stores are on the disk one after the other.
    """
    with _connect(memory_limit) as (connection, scratch):

        def local() -> Iterator[list[str]]:
            for paths, unchecked in slices:
                with TemporaryDirectory(dir=scratch) as folder:
                    yield _for_duckdb(_local_paths(paths, folder, unchecked))

        yield connection, local()


@contextmanager
def query_tables(*, memory_limit: str = "1GB") -> Iterator[Any]:
    """A DuckDB connection for tables in memory (`register`), and for its own, which go to temporary files beyond the
    limit. A result has to be fetched whole before another table is registered."""
    with _connect(memory_limit) as (connection, _):
        # each thread keeps memory of what it counted; tables of a block are too small for several
        connection.execute("SET threads = 1")
        yield connection


@contextmanager
def local_cells(paths: Sequence[str]) -> Iterator[list[str]]:
    """The paths as in `query_cells`, of whose cells every byte was checked, for a connection that is open already."""
    with TemporaryDirectory(prefix=owned_prefix(SCRATCH)) as folder:
        yield _for_duckdb(_local_paths(paths, folder, ()))


@contextmanager
def _connect(memory_limit: str) -> Iterator[tuple[Any, str]]:
    """A connection with a folder for temporary files."""
    with TemporaryDirectory(prefix=owned_prefix(SCRATCH)) as scratch, duckdb.connect() as connection:
        connection.execute("SET memory_limit = ?", [memory_limit])
        connection.execute("SET temp_directory = ?", [scratch])
        connection.execute("SET preserve_insertion_order = false")
        # a cell is read once, so what it holds of cells that were read is memory that grows with their number
        connection.execute("SET enable_external_file_cache = false")
        yield connection, scratch


def _for_duckdb(paths: Sequence[str]) -> list[str]:
    """Paths in which nothing is a wildcard."""
    return [re.sub(r"([*?\[])", r"[\1]", path) for path in paths]


def columns_of(connection: Any, cells: Sequence[str]) -> frozenset[str]:
    """The columns of cells of one step, which an earlier format version may have fewer of."""
    described = connection.execute("DESCRIBE SELECT * FROM read_parquet($cells)", {"cells": list(cells[:1])}).fetchall()
    return frozenset(name for name, *_ in described)


def check_cell(path: str) -> None:
    """Check every byte of a cell in a file here. Raises IncompleteError when it is missing or damaged."""
    _check(path, path)


def _local_paths(paths: Sequence[str], folder: str, unchecked: Collection[str]) -> list[str]:
    """Files here as they are or by a link, objects as copies: DuckDB makes nine requests for each that it reads."""
    copies = [os.path.join(folder, f"{number:08d}.parquet") for number in range(len(paths))]
    with ThreadPoolExecutor(_FETCHED_AT_ONCE) as pool:
        local = list(pool.map(_local_path, paths, copies))
        checked = [(path, file) for path, file in zip(paths, local, strict=True) if path not in unchecked]
        list(pool.map(lambda one: _check(*one), checked))
        return local


def _check(path: str, file: str) -> None:
    try:
        with open(file, "rb") as opened:
            check_sealed(opened)
    except FileNotFoundError as error:
        raise IncompleteError(f"{path}: missing; run the same command again") from error
    except (pa.ArrowInvalid, OSError) as error:
        raise IncompleteError(f"{path}: not a whole Parquet file; delete it and run the same command again") from error


def _local_path(path: str, copy: str) -> str:
    if scheme_of(path) == "file":
        path = os.path.abspath(plain_path(path))
        if "=" not in path:
            return path
        # DuckDB would take `noun=cat/` for a column `noun`, in place of the file's own
        os.symlink(path, copy)
        return copy
    try:
        content = fetch(path)
    except FileNotFoundError as error:
        raise IncompleteError(f"{path}: missing; run the same command again") from error
    except OSError as error:
        raise IncompleteError(fault_line(error, path)) from error
    with open(copy, "wb") as file:
        file.write(content)
    return copy
