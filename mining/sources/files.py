"""The files of a caption source: entry, all of a folder, or those that a pattern names; in the order of their names."""

from __future__ import annotations

import os
import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any, ClassVar

import pyarrow as pa

from maskmine.mining.sources.entries import Entry, as_tables
from maskmine.mining.storage.bounded.limits import USUAL, Limits
from maskmine.mining.storage.content_hash import version_of
from maskmine.mining.storage.names import is_leftover, utf8_name
from maskmine.mining.storage.stores import describe, open_input, open_store, os_errors, plain_path, scheme_of
from maskmine.schemas.errors import InputError
from maskmine.schemas.settings import Settings

_WILDCARDS = "*?["  # of fsspec's `glob`
_BRACES = re.compile(r"\{(-?\d+\.\.-?\d+(?:\.\.-?\d+)?|[A-Za-z]\.\.[A-Za-z]|[^{}]*,[^{}]*)\}")
_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)(?:\.\.(-?\d+))?")
_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://")
_MAX_BRACED = 1_000_000  # names that a pattern with braces stands for


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file, by its full path and by its name below the source's root; `version` changes when it is written again."""

    path: str
    name: str
    size_bytes: int
    version: str = ""


def source_root(files: str) -> str:
    """The folder that the names of a source's files start from."""
    folder, pattern = _split_pattern(files)
    if pattern:
        return folder
    return posixpath.dirname(files) if posixpath.splitext(files.rstrip("/"))[1] else files.rstrip("/")


def list_files(files: str, *, suffixes: Sequence[str]) -> list[SourceFile]:
    """The files that a source's `files` names: a file, a folder (its files with such a suffix), or a pattern.

    In a pattern `*`, `?` and `[…]` stand for characters of a name, and braces for each of some names, as in
    `{00000..00012}.tar` and `{train,val}.tar`. What is there by its name is no pattern. Raises InputError when there is
    none, or when a name in braces is missing.
    """
    about = describe(files)
    if about is not None and about["type"] == "file":
        return [SourceFile(files, posixpath.basename(files), int(about["size"] or 0), version_of(about))]
    if about is not None:
        fs, inner = open_store(files)
        with os_errors(files):
            listed = fs.ls(inner, detail=True)
        listed = [entry for entry in listed if str(entry["name"]).lower().endswith(tuple(suffixes))]
        root = files.rstrip("/")
    else:
        root, pattern = _split_pattern(files)
        listed = list(_matching(root, pattern))
    named = {_full_path(str(entry["name"]), files): entry for entry in listed if entry["type"] == "file"}
    paths = sorted(item for item in named.items() if not is_leftover(posixpath.basename(item[0])))
    if not paths:
        raise InputError(f"{files}: {_none_found(files, about is not None, suffixes)}")
    return [_stored_file(path, entry, root) for path, entry in paths]


def expand_braces(pattern: str) -> Iterator[str]:
    """The names that braces stand for, as WebDataset reads them: `{08..10}` is 08, 09, 10; `{a,b}` is a, b."""
    match = _BRACES.search(pattern)
    if match is None:
        yield pattern
        return
    before, after = pattern[: match.start()], pattern[match.end() :]
    for choice in _choices(match[1]):
        yield from expand_braces(f"{before}{choice}{after}")


def _choices(inner: str) -> Iterable[str]:
    match = _RANGE.fullmatch(inner)
    if match is None and inner[1:3] == "..":
        first, last = ord(inner[0]), ord(inner[3])
        return map(chr, range(first, last + 1) if first <= last else range(first, last - 1, -1))
    if match is None:
        return inner.split(",")
    first, last = int(match[1]), int(match[2])
    step = abs(int(match[3] or 1)) or 1
    width = max(map(len, match.group(1, 2))) if any(re.match(r"-?0\d", end) for end in match.group(1, 2)) else 0
    numbers = range(first, last + 1, step) if first <= last else range(first, last - 1, -step)
    return (f"{number:0{width}d}" for number in numbers)


def _split_pattern(files: str) -> tuple[str, str]:
    """The folder that a pattern starts from, and the pattern below it: empty where `files` is no pattern.

    A folder whose own name has a wildcard or a brace in it is no part of the pattern.
    """
    signs = (*_WILDCARDS, "{")
    if not any(sign in files for sign in signs) or describe(files) is not None:
        return files, ""
    scheme, separator, rest = files.rpartition("://")
    parts = rest.split("/")
    for number, part in enumerate(parts[:-1], start=1):
        folder = f"{scheme}{separator}{'/'.join(parts[:number])}"
        if any(sign in part for sign in signs) and describe(folder) is None:
            break
    else:
        number = len(parts)
    folder = "/".join(parts[: number - 1]) or ("/" if rest.startswith("/") else "")
    return f"{scheme}{separator}{folder}", "/".join(parts[number - 1 :])


def _matching(root: str, pattern: str) -> Iterator[Mapping[str, Any]]:
    """fsspec's descriptions of what a pattern names in a folder. Raises InputError where a braced name is missing."""
    if not pattern:
        return
    fs, inner = open_store(root or ".")
    escaped = re.sub(r"([*?[])", r"[\1]", inner)
    folders: dict[str, dict[str, Any]] = {}
    for number, name in enumerate(expand_braces(pattern)):
        if number >= _MAX_BRACED:
            raise InputError(f"{posixpath.join(root, pattern)}: more than {_MAX_BRACED:,} names; use `*`")
        with os_errors(root):
            if any(sign in name for sign in _WILDCARDS):
                found = list(fs.glob(f"{escaped}/{name}", detail=True).values())
            else:  # names without wildcards are looked up in one listing of their folder
                path = posixpath.join(inner, name)
                folder = posixpath.dirname(path)
                if folder not in folders:
                    folders[folder] = _listing(fs, folder)
                found = [folders[folder][path]] if path in folders[folder] else []
        if not found and name != pattern:
            raise InputError(f"{posixpath.join(root, name)}: no such file, which {pattern} names")
        yield from found


def _listing(fs: Any, folder: str) -> dict[str, Any]:
    try:
        return {str(entry["name"]).rstrip("/"): entry for entry in fs.ls(folder, detail=True)}
    except (FileNotFoundError, NotADirectoryError):
        return {}


def _none_found(files: str, is_folder: bool, suffixes: Sequence[str]) -> str:
    names = "`captions.files` names a file, a folder or a pattern such as part-*.parquet"
    if is_folder:
        return f"no {' or '.join(suffixes)} file in it; {names}"
    read_so = " (`*`, `?`, `[…]` and `{…}` in it were read as a pattern)" if _split_pattern(files)[1] else ""
    return f"no such file{read_so}; {names}"


def walk_files(root: str, *, passed_over: Counter[str] | None = None) -> Iterator[tuple[str, list[SourceFile]]]:
    """Every folder below `root` with its files in the order of their names; links are followed, but to folders above.

    Leftovers of an operating system are not among them: they are counted in `passed_over`. Raises InputError for a
    folder that cannot be read.
    """
    seen: Counter[str] = Counter() if passed_over is None else passed_over
    if scheme_of(root) == "file":
        for folder, inner, names in os.walk(root, followlinks=True, onerror=_refuse_folder):
            inner[:] = sorted(name for name in inner if not _leads_up(folder, name) and not _is_left(name, seen))
            here = sorted(name for name in names if not _is_left(name, seen))
            yield folder, [_local_file(os.path.join(folder, name), root) for name in here]
        return
    fs, path = open_store(root)
    with os_errors(root):
        for folder, inner, entries in fs.walk(path, detail=True):
            del inner
            entry_of = {_full_path(str(entry["name"]), root): entry for entry in entries.values()}
            files = (_stored_file(*item, root) for item in sorted(entry_of.items()))
            yield _full_path(folder, root), [file for file in files if not _is_left(file.name, seen)]


def told_passed_over(passed_over: Counter[str]) -> str:
    """How many leftovers were passed over, and the names of some."""
    some = ", ".join(utf8_name(name) for name in sorted(passed_over)[:3])
    return f"{passed_over.total():,} leftovers of an operating system were passed over ({some})"


def _is_left(name: str, passed_over: Counter[str]) -> bool:
    if not is_leftover(name):
        return False
    passed_over[posixpath.basename(name)] += 1
    return True


def _leads_up(folder: str, name: str) -> bool:
    """Whether a link leads to a folder above it, so that following it would never end."""
    path = os.path.join(folder, name)
    return os.path.islink(path) and f"{os.path.realpath(folder)}/".startswith(f"{os.path.realpath(path)}/")


def _refuse_folder(error: OSError) -> None:
    if isinstance(error, FileNotFoundError | NotADirectoryError):  # the folder that was given; `check` tells it
        return
    raise InputError(f"{error.filename}: cannot be read ({error.strerror}); check the folder and its rights") from error


class FileSource(Settings):
    """What caption sources that read files have in common: `files` is a file, a folder or a pattern."""

    kind: str
    name: str | None = None
    files: str

    suffixes: ClassVar[tuple[str, ...]] = ()
    """Of a folder, the files whose names end so are read."""

    @property
    def location(self) -> str:
        """What messages call the source."""
        return self.files

    @property
    def root(self) -> str:
        """The folder that the names of files, and relative paths of images, start from."""
        return source_root(self.files)

    @property
    def roots(self) -> tuple[str, ...]:
        """The folders that paths of images start from."""
        return (self.root,)

    def list_files(self) -> Iterable[SourceFile]:
        """The files that are read. Raises InputError when there is none."""
        return list_files(self.files, suffixes=self.suffixes)

    def check(self) -> None:
        """Raises InputError when the files, or the folder of the images, are not there."""
        self.list_files()

    def read(self, *, images_per_part: int, limits: Limits = USUAL) -> Iterator[pa.Table]:
        """The entries (`mining/sources/entries.py`). Raises InputError when a file cannot be read."""
        return as_tables(self._entries(images_per_part, limits))

    def _entries(self, images_per_part: int, limits: Limits) -> Iterator[Entry]:
        raise NotImplementedError


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
    about = describe(folder) if folder is not None else {"type": "directory"}
    if about is None or about["type"] != "directory":
        raise InputError(f"captions.images: {folder} is no folder; give the folder of the images")


def is_url(path: str) -> bool:
    """Whether a text of a record begins as a URL."""
    return _URL.match(path) is not None


def joined(root: str, path: str) -> str:
    """A path or URL as a record names it, from the folder that such paths start from."""
    if is_url(path) and scheme_of(path) != "file":
        return path
    path = plain_path(path)
    return path if path.startswith("/") else posixpath.join(root, path)


@contextmanager
def one_line_parquet(path: str) -> Iterator[None]:
    """Raise as InputError, in one line, what Arrow has to say of a file that is no Parquet, or not a whole one."""
    try:
        yield
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        # Arrow raises a plain OSError for bytes that are no Parquet.
        if isinstance(error, OSError) and (error.errno is not None or type(error) is not OSError):
            raise
        raise InputError(f"{path}: not a whole Parquet file ({' '.join(str(error).split())[:80]})") from error


def column_missing(path: str, column: str, known: Sequence[Any], *, setting: str, hint: str = "") -> InputError:
    """That a file has no such column; `hint` says what else may be the cause."""
    there = ", ".join(str(name) for name in list(known)[:20]) or "none"
    return InputError(f"{path}: no column `{column}` (`{setting}`); it has {there}{hint}")


def _stored_file(path: str, entry: Mapping[str, Any], root: str) -> SourceFile:
    return SourceFile(path, path.removeprefix(root).lstrip("/"), int(entry["size"] or 0), version_of(entry))


def _local_file(path: str, root: str) -> SourceFile:
    try:
        about = os.stat(path)
    except OSError:  # a link that leads nowhere
        return SourceFile(path, path.removeprefix(root).lstrip("/"), 0)
    return SourceFile(path, path.removeprefix(root).lstrip("/"), about.st_size, str(about.st_mtime))


def _full_path(name: str, files: str) -> str:
    scheme = scheme_of(files)
    return name if scheme == "file" else f"{scheme}://{name.lstrip('/')}"
