"""SHA-256 of files, of folders with weights, and of objects in a store."""

from __future__ import annotations

import functools
import hashlib
import os
import posixpath
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from maskmine.mining.storage.names import is_leftover
from maskmine.mining.storage.stores import (
    OBJECT_STORES,
    describe,
    fault_line,
    open_store,
    os_errors,
    plain_path,
    scheme_of,
)
from maskmine.schemas.errors import InputError

WEIGHT_SUFFIXES = {".safetensors", ".bin", ".pt", ".pth"}  # of safetensors and of torch
# A folder with one of these was saved by transformers or open_clip, and is identified by its weights.
_MODEL_CONFIGS = ("config.json", "open_clip_config.json")


def weights_sha256(path: str | Path) -> str:
    """SHA-256 of a file, or of a folder's weight and JSON files in the order of their names (names are hashed too)."""
    path = Path(path)
    if path.is_file():
        return file_sha256(path)
    files = sorted(f for f in path.iterdir() if f.suffix in WEIGHT_SUFFIXES | {".json"} and f.is_file())
    return named_sha256((file.name, file) for file in files)


def named_sha256(files: Iterable[tuple[str, Path]]) -> str:
    """One SHA-256 of several files in their order, each by a name and its content; read again as `file_sha256`."""
    return _named_sha256(tuple((name, str(file), _version(file)) for name, file in files))


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file, which is read again only when the file system says that it was written to. Raises OSError."""
    return _file_sha256(str(path), _version(path))


def files_sha256(files: Iterable[Path], *, below: Path) -> str:
    """One SHA-256 of several files: of their paths below a folder and their contents, in the order of the paths."""
    named = sorted((file.relative_to(below).as_posix(), str(file)) for file in files)
    return hashlib.sha256("".join(f"{name}\0{file_sha256(file)}\n" for name, file in named).encode()).hexdigest()


def content_identity(path: str) -> dict[str, str]:
    """The `name` of a file or folder and, of a file or a folder with weights, the `sha256` of its content.

    `path` is on a disk or an object store. Raises InputError for a store that cannot be used.
    """
    if scheme_of(path) in OBJECT_STORES:
        return _remote_identity(path)
    path = plain_path(path)
    name = os.path.basename(path.rstrip("/"))
    if os.path.isfile(path):
        return {"name": name, "sha256": file_sha256(path)}
    if any(os.path.isfile(os.path.join(path, config)) for config in _MODEL_CONFIGS):
        return {"name": name, "sha256": weights_sha256(path)}
    return {"name": name}


def folder_identity(path: str) -> dict[str, str | None]:
    """The `name` of a folder and the `sha256` of all files below it, on a disk or an object store.

    Leftovers, such as the `.DS_Store` of whoever looked into it, do not count.

    Files on a store count by size and ETag, which the listing tells; files on a disk are read. `sha256` is None when
    there is no such folder. Raises InputError for a store that cannot be used.
    """
    name = posixpath.basename(plain_path(path).rstrip("/"))
    if scheme_of(path) not in OBJECT_STORES:
        folder = Path(plain_path(path))
        files = [file for file in folder.rglob("*") if not is_leftover(file.relative_to(folder).as_posix())]
        files = [file for file in files if file.is_file()]
        return {"name": name, "sha256": files_sha256(files, below=folder) if folder.is_dir() else None}
    fs, inner = open_store(path)
    try:
        with os_errors(path):
            found = fs.find(inner, detail=True)
    except FileNotFoundError:
        return {"name": name, "sha256": None}
    except OSError as error:
        raise InputError(fault_line(error, path)) from error
    listed = [
        f"{file.removeprefix(inner)}\0{about.get('size')}\0{version_of(about)}\n"
        for file, about in sorted(found.items())
        if not is_leftover(file.removeprefix(inner).lstrip("/"))
    ]
    return {"name": name, "sha256": hashlib.sha256("".join(listed).encode()).hexdigest()}


def version_of(about: Mapping[str, Any]) -> str:
    """The file system's ETag, checksum or time, which changes when the file is written again."""
    return next((str(about[key]) for key in ("ETag", "etag", "md5Hash", "mtime", "LastModified") if key in about), "")


def _remote_identity(url: str) -> dict[str, str]:
    name = posixpath.basename(url.rstrip("/"))
    about = describe(url)
    if about is None or about["type"] != "file":
        return {"name": name}
    return {"name": name, "sha256": _remote_sha256(url, str(about))}


_Version = tuple[int, int, int, int]


def _version(path: str | Path) -> _Version:
    """What changes when a file is written: the time of the last change of its inode cannot be set back by anyone."""
    about = os.stat(path)
    return about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns


@functools.lru_cache(maxsize=1 << 18)
def _file_sha256(path: str, version: _Version) -> str:
    digest = hashlib.sha256()
    _hash_file(Path(path), digest)
    return digest.hexdigest()


@functools.lru_cache(maxsize=64)
def _named_sha256(files: tuple[tuple[str, str, _Version], ...]) -> str:
    """The SHA-256 of files one after the other, each after its name."""
    digest = hashlib.sha256()
    for name, path, _ in files:
        digest.update(name.encode() + b"\0")
        _hash_file(Path(path), digest)
    return digest.hexdigest()


@functools.cache
def _remote_sha256(url: str, version: str) -> str:
    """The SHA-256 of an object, which is fetched again only when the store says of it something else than `version`."""
    fs, path = open_store(url)
    try:
        with os_errors(url), fs.open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(fault_line(error, url)) from error


def _hash_file(path: Path, digest: hashlib._Hash) -> None:
    with path.open("rb") as file:
        hashlib.file_digest(file, lambda: digest)
