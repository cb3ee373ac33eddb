"""The files of sums of a folder, written and read a line at a time: SHA-256 of files, in the form of `sha256sum -c`."""

from __future__ import annotations

import hashlib
import heapq
import posixpath
import re
from collections.abc import Callable, Iterable, Iterator
from functools import cache

from maskmine.mining.storage.prefetch import map_in_order
from maskmine.pipelines.run_folder.folder import RunFolder, part_of_cell
from maskmine.pipelines.run_folder.hashes import HashColumns
from maskmine.pipelines.run_folder.parts import Parts
from maskmine.schemas.sample import cell_name

SUMS_FILE, RUN_SUMS_FILE = "SHA256SUMS", "SHA256SUMS.run"
Sum = tuple[str, str]
"""A file, relative to the folder, and its SHA-256."""
_SUM = re.compile(r"([0-9a-f]{64})  ((?!/)[^\\]+)")
_MOST_COLUMNS, _MOST_PARTS = 64, 1 << 24  # beyond what any run has: a line may name anything
_AT_ONCE = 16  # files that are hashed at a time


class FileSums:
    """Sums of files, in any order: those of cells in temporary files, for they are many, and those of single files.

    A context, which closes the temporary files.
    """

    def __init__(self) -> None:
        self._cells = HashColumns()
        self._single: dict[str, str] = {}

    def __enter__(self) -> FileSums:
        return self

    def __exit__(self, *about: object) -> None:
        self._cells.__exit__(None, None, None)

    def put_cell(self, folder: str, part: int, sha256: str, *, suffix: str = "parquet") -> None:
        """Note that of a cell. Raises ValueError for what is none."""
        self._cells.column(folder, suffix).put(part, sha256)

    def put(self, name: str, sha256: str) -> None:
        """Note that of any file. Raises ValueError for what is none."""
        cell = _cell_of(name)
        if cell is not None and (self._cells.get(*cell[::2]) or len(self._cells.names()) < _MOST_COLUMNS):
            folder, part, suffix = cell
            self.put_cell(folder, part, sha256, suffix=suffix)
        else:
            self._single[name] = sha256

    def of_cell(self, folder: str, part: int, *, suffix: str = "parquet") -> str | None:
        """That of a cell; None where none was noted."""
        column = self._cells.get(folder, suffix)
        return None if column is None else column.get(part)

    def get(self, name: str) -> str | None:
        """That of any file; None where none was noted."""
        cell = _cell_of(name)
        found = None if cell is None else self.of_cell(cell[0], cell[1], suffix=cell[2])
        return found or self._single.get(name)

    @property
    def folders(self) -> set[str]:
        """The folders of the files; that of the folder itself is empty."""
        return {folder for folder, _ in self._cells.names()} | {posixpath.dirname(name) for name in self._single}

    def sorted(self) -> Iterator[Sum]:
        """All of them by the names of the files."""
        columns = (self._of_column(folder, suffix) for folder, suffix in self._cells.names())
        return heapq.merge(sorted(self._single.items()), *columns)

    def _of_column(self, folder: str, suffix: str) -> Iterator[Sum]:
        for part, sha256 in self._cells.column(folder, suffix).by_name():
            yield f"{folder}/{cell_name(part, suffix)}", sha256


def _cell_of(name: str) -> tuple[str, int, str] | None:
    """Folder, part and suffix of the name of a cell; None for another file."""
    folder, _, file = name.rpartition("/")
    part, suffix = part_of_cell(file), file.rpartition(".")[2]
    is_cell = folder and part is not None and part < _MOST_PARTS and file == cell_name(part, suffix)
    return (folder, part, suffix) if is_cell and part is not None else None


def write_sums(run: RunFolder, name: str, sums: Iterable[Sum]) -> None:
    """Write a file of sums, given by the names of the files."""
    with run.write(name) as file:
        lines = (f"{sha256}  {of}\n".encode() for of, sha256 in sums)
        file.writelines(lines)


def hash_file(run: RunFolder, name: str) -> str:
    """The SHA-256 of a file of a folder."""
    with run.open(*name.split("/")) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


def hash_all(run: RunFolder, names: Iterable[str]) -> Iterator[Sum]:
    """The sums of files of a folder, in their order, some hashed at a time."""
    return map_in_order(lambda name: (name, hash_file(run, name)), names, threads=_AT_ONCE)


def read_sums(run: RunFolder, name: str) -> Iterator[Sum | str]:
    """The lines of a file of sums one after the other; as they are, as text, where they are no sum of a file below the
    folder. Raises FileNotFoundError."""
    with run.open(name) as file:
        for line in file:
            text = line.decode("utf-8", "replace").removesuffix("\n")
            match = _SUM.fullmatch(text)
            yield (match[2], match[1]) if match is not None and _is_below(match[2]) else text


def lookup(run: RunFolder) -> Callable[[str], bool]:
    """Whether a file of a folder is there; of cells by one listing of each folder."""

    @cache
    def cells(step: str, suffix: str) -> Parts:
        return run.done(step, suffixes=(suffix,))

    def is_there(name: str) -> bool:
        cell = _cell_of(name)
        return run.exists(*name.split("/")) if cell is None else cell[1] in cells(cell[0], cell[2])

    return is_there


def _is_below(name: str) -> bool:
    """Whether a name is that of something in the folder, and not of what lies outside or can be no file at all."""
    return posixpath.normpath(name) == name != "." and name.partition("/")[0] != ".." and "\0" not in name
