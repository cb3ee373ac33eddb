"""The files of a caption source: one, all of a folder, or those that a pattern names; in the order of their names."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

import pyarrow as pa

from mining.stores import describe, open_input, open_store, os_errors, scheme_of
from schemas.errors import InputError

_WILDCARDS = "*?["


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file, by its full path and by its name below the source's root; `version` changes when it is written again."""

    path: str
    name: str
    size_bytes: int
    version: str = ""


def source_root(files: str) -> str:
    """The folder that the names of a source's files start from."""
    folder = files
    while any(sign in folder for sign in _WILDCARDS):
        folder = posixpath.dirname(folder)
    if folder != files:
        return folder
    return posixpath.dirname(files) if posixpath.splitext(files.rstrip("/"))[1] else files.rstrip("/")


def list_files(files: str, *, suffixes: Sequence[str]) -> list[SourceFile]:
    """The files that a source's `files` names: a file, a folder (its files with such a suffix), or a pattern.

    Raises InputError when there is none.
    """
    found = describe(files)
    if found is not None and found["type"] == "file":
        return [SourceFile(files, posixpath.basename(files), int(found["size"] or 0), version_of(found))]
    fs, inner = open_store(files)
    with os_errors(files):
        if found is not None:
            listed = [one for one in fs.ls(inner, detail=True) if str(one["name"]).endswith(tuple(suffixes))]
        else:
            listed = list(fs.glob(inner, detail=True).values()) if any(sign in files for sign in _WILDCARDS) else []
    root = source_root(files) if found is None else files.rstrip("/")
    named = {_full_path(str(one["name"]), files): one for one in listed if one["type"] == "file"}
    paths = sorted(named.items())
    if not paths:
        what = f"no {' or '.join(suffixes)} file in it" if found is not None else "no such file"
        raise InputError(
            f"{files}: {what}; `captions.files` names a file, a folder or a pattern such as part-*.parquet"
        )
    return [
        SourceFile(path, path.removeprefix(root).lstrip("/"), int(one["size"] or 0), version_of(one))
        for path, one in paths
    ]


def version_of(about: Mapping[str, Any]) -> str:
    """What a file system says of a file that changes when the file is written again."""
    return next((str(about[key]) for key in ("ETag", "etag", "md5Hash", "mtime", "LastModified") if key in about), "")


def walk_files(root: str) -> Iterator[tuple[str, list[SourceFile]]]:
    """Every folder below `root` with its files in the order of their names; links to folders are not followed."""
    if scheme_of(root) == "file":
        for folder, inner, names in os.walk(root):
            inner.sort()
            yield folder, [_local_file(os.path.join(folder, name), root) for name in sorted(names)]
        return
    fs, path = open_store(root)
    with os_errors(root):
        for folder, inner, found in fs.walk(path, detail=True):
            del inner
            about = {_full_path(str(one["name"]), root): one for one in found.values()}
            yield (
                _full_path(folder, root),
                [
                    SourceFile(path, path.removeprefix(root).lstrip("/"), int(one["size"] or 0), version_of(one))
                    for path, one in sorted(about.items())
                ],
            )


@contextmanager
def open_source(path: str) -> Iterator[IO[bytes]]:
    """A source's file for reading piece by piece. Raises InputError, in one line, when that cannot be done."""
    try:
        with open_input(path) as file:
            yield file
    except (FileNotFoundError, IsADirectoryError) as error:
        raise InputError(f"{path}: no such file; `captions.files` names the files of the source") from error
    except OSError as error:
        if error.strerror is None:
            raise
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the file and its rights") from error


def check_images(folder: str | None) -> None:
    """Raises InputError when the folder of the images is none."""
    found = describe(folder) if folder is not None else {"type": "directory"}
    if found is None or found["type"] != "directory":
        raise InputError(f"captions.images: {folder} is no folder; give the folder of the images")


def joined(root: str, path: str) -> str:
    """A path as a record names it, from the folder that such paths start from."""
    if scheme_of(path) != "file" or path.startswith("/"):
        return path
    return posixpath.join(root, path)


@contextmanager
def one_line_parquet(path: str) -> Iterator[None]:
    """Raise as InputError, in one line, what Arrow has to say of a file that is no Parquet, or not a whole one."""
    try:
        yield
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a whole Parquet file ({' '.join(str(error).split())[:80]})") from error
    except OSError as error:  # so Arrow answers to bytes that are no Parquet
        if error.errno is not None or type(error) is not OSError:
            raise
        raise InputError(f"{path}: not a whole Parquet file ({' '.join(str(error).split())[:80]})") from error


def column_missing(place: str, column: str, known: Sequence[Any], *, setting: str) -> InputError:
    """That a file has no such column."""
    there = ", ".join(str(name) for name in list(known)[:20]) or "none"
    return InputError(f"{place}: no column `{column}` (`{setting}`); it has {there}")


def _local_file(path: str, root: str) -> SourceFile:
    try:
        about = os.stat(path)
    except OSError:  # a link that leads nowhere
        return SourceFile(path, path.removeprefix(root).lstrip("/"), 0)
    return SourceFile(path, path.removeprefix(root).lstrip("/"), about.st_size, str(about.st_mtime))


def _full_path(name: str, files: str) -> str:
    scheme = scheme_of(files)
    if scheme == "file":
        return name
    return f"{scheme}://{name.lstrip('/')}"
