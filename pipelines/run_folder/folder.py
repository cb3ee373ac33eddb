"""The run folder: a grid of steps × parts, one file a cell; a file appears whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import posixpath
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import IO, Any, TypeVar

import pyarrow as pa

from maskmine.mining.storage.files import replace_file
from maskmine.mining.storage.listings import below_folder
from maskmine.mining.storage.ownership import SCRATCH, WRITING, owned_prefix, owner_state
from maskmine.mining.storage.stores import (
    describe,
    fault_line,
    fetch,
    open_store,
    os_errors,
    plain_path,
    scheme_of,
    upload,
)
from maskmine.pipelines.run_folder.entries import each_entry, each_file, is_local
from maskmine.pipelines.run_folder.parts import Parts
from maskmine.schemas.columns import arrow_schema
from maskmine.schemas.errors import IncompleteError, InputError
from maskmine.schemas.sample import cell_name
from maskmine.schemas.seal import (
    CheckedFile,
    DamagedFileError,
    check_and_open,
    check_sealed,
    identity_of,
    open_sealed,
    read_footer,
)
from maskmine.schemas.tables import (
    from_table,
    read_blocks,
    read_parquet,
    write_parquet,
    write_parquet_pieces,
    write_parquet_rows,
)

Row = TypeVar("Row")

FINGERPRINT_FILE = "_fingerprint.json"
MIX_FILE = "mix.json"  # a folder with this file is a mix: a set that was put together from others, without cells
IDENTITY_FILE = "identity.json"  # the settings of a run, with the content of what they name
SUCCESS_FILE = "_SUCCESS"  # written last, so a set or an export with this file is complete
VERDICTS_FOLDER = "verdicts"  # of reviewers, who come after the run
_READ_AT_ONCE, _READ_AHEAD = 16, 256
_COPIED_AT_ONCE_BYTES = 1 << 20
_FETCHED_AT_ONCE_BYTES = 1 << 28  # of an object: nearly every cell, so that a store is asked once
_CELL = re.compile(r"(\d{5,})\.(parquet|tar|json)")
_FINGERPRINT_KEY = "maskmine.fingerprint"


@dataclass(frozen=True)
class RunFolder:
    """Paths, reads and whole-or-nothing writes below one folder, on a disk or on an object store (fsspec)."""

    root: str

    def path(self, *names: str) -> str:
        """The full path of something below the folder."""
        return posixpath.join(self.root, *names)

    def cell_path(self, step: str, part: int, suffix: str = "parquet") -> str:
        """The path of a cell."""
        return self.path(step, cell_name(part, suffix))

    def done(self, step: str, *, suffixes: Sequence[str] = ("parquet",)) -> Parts:
        """The parts whose cells exist, by one listing of the step's folder; every suffix must be there."""
        found = {suffix: Parts() for suffix in suffixes}
        for name in self.each_name(step):
            match = _CELL.fullmatch(name)
            if match and match[2] in found:
                found[match[2]].add(int(match[1]))
        whole, *others = found.values()
        for part in whole if others else ():
            if not all(part in other for other in others):
                whole.discard(part)
        return whole

    def names(self, *names: str) -> list[str]:
        """The names in a folder, sorted; none when there is no folder. What is still being written is not there yet."""
        return sorted(self.each_name(*names))

    def each_name(self, *names: str) -> Iterator[str]:
        """`names` one after the other, in any order; those of a folder on a disk are not in memory all at once."""
        fs, path = self._fs(*names)
        with _one_line_faults(self.path(*names)):
            for entry in each_entry(fs, path):
                if not entry.startswith(f"{WRITING}-"):
                    yield entry

    def exists(self, *names: str) -> bool:
        """Whether a file is there."""
        fs, path = self._fs(*names)
        with _one_line_faults(self.path(*names)):
            return bool(fs.exists(path))

    def delete(self, *names: str) -> None:
        """Remove a file; nothing happens when it is not there."""
        fs, path = self._fs(*names)
        with suppress(FileNotFoundError, NotADirectoryError), _one_line_faults(self.path(*names)):
            fs.rm_file(path)

    @contextmanager
    def open(self, *names: str) -> Iterator[IO[bytes]]:
        """Open a file for reading, piece by piece. Raises FileNotFoundError."""
        fs, path = self._fs(*names)
        with _one_line_faults(self.path(*names)), _plain_files(fs, path), fs.open(path, "rb") as file:
            yield file

    def read_bytes(self, *names: str) -> bytes:
        """The whole of a file, from an object store by one request. Raises FileNotFoundError."""
        fs, path = self._fs(*names)
        with _one_line_faults(self.path(*names)), _plain_files(fs, path):
            return fetch(self.path(*names))

    @contextmanager
    def write(self, *names: str) -> Iterator[IO[bytes]]:
        """Write a file that appears when the block ends well, and not at all otherwise.

        On a disk: a temporary file beside it, synced, then renamed. On an object store: one upload of a finished file.
        Raises IncompleteError when the disk is full or the folder cannot be written.
        """
        fs, path = self._fs(*names)
        try:
            if is_local(fs):
                folder = os.path.dirname(path)
                os.makedirs(folder, exist_ok=True)
                temporary = os.path.join(folder, f"{owned_prefix(WRITING)}{secrets.token_hex(4)}")
                with replace_file(path, temporary=temporary) as file:
                    os.fchmod(file.fileno(), 0o644)
                    yield file
            else:
                with tempfile.NamedTemporaryFile(prefix=owned_prefix(WRITING)) as finished:
                    yield finished.file
                    finished.flush()
                    upload(finished.name, self.path(*names))
        except OSError as error:
            raise _write_fault(error, self.path(*names)) from error

    def link_or_copy(self, other: RunFolder, *names: str) -> None:
        """Have the same file as another run: as a hard link on one disk, else as a copy, whole or not at all.

        No file of a run is ever changed, only replaced, so a link does neither run harm. Raises IncompleteError.
        """
        if scheme_of(self.root) == "file" == scheme_of(other.root):
            os.makedirs(os.path.dirname(self.path(*names)), exist_ok=True)
            with suppress(OSError):  # another disk, or one without links; what is wrong with the file shows below
                os.link(other.path(*names), self.path(*names))
                return
        try:
            with other.open(*names) as source, self.write(*names) as file:
                shutil.copyfileobj(source, file, _COPIED_AT_ONCE_BYTES)
        except FileNotFoundError as error:
            raise IncompleteError(f"{other.path(*names)}: missing; run `maskmine mine` there again") from error

    def copy(self, names: Sequence[str], to: Sequence[str]) -> None:
        """Have a file of the run a second time, whole or not at all; a piece of it is in memory. Raises
        FileNotFoundError."""
        with self.open(*names) as source, self.write(*to) as file:
            shutil.copyfileobj(source, file, _COPIED_AT_ONCE_BYTES)

    def read_json(self, *names: str) -> Any:
        """The content of a JSON file, or None when it is not there or not whole."""
        try:
            return json.loads(self.read_bytes(*names))
        except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
            return None

    def read_jsons(self, step: str, parts: Sequence[int]) -> Iterator[Any]:
        """The JSON cells of a step, in order, each as `read_json` has it. Some are read at a time: stores are slow."""
        with ThreadPoolExecutor(_READ_AT_ONCE) as pool:
            for start in range(0, len(parts), _READ_AHEAD):
                ahead = parts[start : start + _READ_AHEAD]
                yield from pool.map(lambda part: self.read_json(step, cell_name(part, "json")), ahead)

    def write_json(self, *names: str, value: Any) -> None:
        """Write a JSON file for people and programs: sorted keys, indented."""
        with self.write(*names) as file:
            file.write(json_file(value))

    def write_rows(
        self,
        *names: str,
        rows: Iterable[Any] | pa.Table,
        row_type: type,
        fingerprint: str,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Write rows as they come, or a table with their columns, as sealed Parquet.

        The footer has the fingerprint of what made them, and further metadata. Of rows, those of one row group are in
        memory at a time.
        """
        metadata = {**(metadata or {}), _FINGERPRINT_KEY: fingerprint}
        with self.write(*names) as file:
            if isinstance(rows, pa.Table):
                write_parquet(rows.cast(arrow_schema(row_type)), file, metadata=metadata)
            else:
                write_parquet_rows(rows, file, row_type, metadata=metadata)

    def write_pieces(
        self,
        *names: str,
        pieces: Iterable[pa.Table],
        row_type: type,
        fingerprint: str,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """`write_rows` of tables of a few rows as they come, see `rows_in_order`."""
        metadata = {**(metadata or {}), _FINGERPRINT_KEY: fingerprint}
        with self.write(*names) as file:
            write_parquet_pieces(pieces, file, row_type, metadata=metadata)

    def check_table(self, *names: str, fingerprint: str | None = None) -> CheckedFile:
        """Check every byte of a Parquet file without keeping it; faults as in `read_table`."""
        with self._parquet_faults(*names), self._open_whole(*names) as file:
            checked = check_sealed(file)
        self._refuse_foreign(*names, found=checked.metadata.get(_FINGERPRINT_KEY, ""), wanted=fingerprint)
        return checked

    def read_blocks(self, *names: str, row_type: type[Row], fingerprint: str | None = None) -> Iterator[list[Row]]:
        """The rows of a Parquet file, one row group in memory at a time; faults as in `read_groups`."""
        return (from_table(table, row_type) for table in self.read_groups(*names, fingerprint=fingerprint))

    def read_groups(
        self, *names: str, fingerprint: str | None = None, columns: Sequence[str] | None = None
    ) -> Iterator[pa.Table]:
        """The row groups of a Parquet file as tables, or some columns of them, one in memory at a time; faults as in
        `read_table`.

        The file is checked before the first one comes. From an object store it comes whole.
        """
        with self._parquet_faults(*names), self._open_whole(*names) as file:
            checked, parquet = check_and_open(file)
            self._refuse_foreign(*names, found=checked.metadata.get(_FINGERPRINT_KEY, ""), wanted=fingerprint)
            yield from read_blocks(parquet, columns=columns)

    def read_table(self, *names: str, fingerprint: str | None = None) -> pa.Table:
        """Read a Parquet file, of which every byte is checked.

        Raises IncompleteError for a missing or damaged file and, with a fingerprint, for one that was made from
        anything else.
        """
        with self._parquet_faults(*names):
            table = read_parquet(pa.BufferReader(self.read_bytes(*names)))
        found = (table.schema.metadata or {}).get(_FINGERPRINT_KEY.encode(), b"").decode()
        self._refuse_foreign(*names, found=found, wanted=fingerprint)
        return table

    def read_columns(self, *names: str, columns: Sequence[str], fingerprint: str | None = None) -> pa.Table:
        """Some columns of a Parquet file, of which the others are not read; faults as in `read_table`."""
        with self._parquet_faults(*names), self.open(*names) as file:
            table = open_sealed(file).read(columns=list(columns))
        found = (table.schema.metadata or {}).get(_FINGERPRINT_KEY.encode(), b"").decode()
        self._refuse_foreign(*names, found=found, wanted=fingerprint)
        return table

    def read_rows(self, *names: str, row_type: type[Row], fingerprint: str | None = None) -> list[Row]:
        """The rows of a cell; faults as in `read_table`."""
        return from_table(self.read_table(*names, fingerprint=fingerprint), row_type)

    def read_fingerprint(self, *names: str) -> str | None:
        """The fingerprint in a Parquet file's footer; None when the file is missing or not whole."""
        return self.read_metadata(*names).get(_FINGERPRINT_KEY)

    def read_metadata(self, *names: str) -> dict[str, str]:
        """The metadata in a Parquet file's footer; empty when the file is missing, or its footer damaged."""
        try:
            with self.open(*names) as file:
                return read_footer(file)
        except (FileNotFoundError, NotADirectoryError, DamagedFileError):
            return {}

    def identity(self, *names: str) -> str | None:
        """What stands for the content of a Parquet file, from its footer alone; None when it is missing or damaged.

        A file of an earlier version has no seal, and is read.
        """
        return self.identity_in(self.read_metadata(*names), *names)

    def identity_in(self, metadata: Mapping[str, str], *names: str) -> str | None:
        """As `identity`, of a file whose footer has been read."""
        if not metadata:
            return None
        return identity_of(metadata) or self.check_table(*names).identity

    def walk(self) -> Iterator[str]:
        """The paths of all files below the folder, relative to it, in any order; without those of processes at work."""
        fs, root = self._fs()
        with _one_line_faults(self.root):
            for path in each_file(root) if scheme_of(self.root) == "file" else below_folder(fs, root):
                name = posixpath.relpath(str(path), root)
                if not any(map(owner_state, name.split("/"))):
                    yield name

    @contextmanager
    def _open_whole(self, *names: str) -> Iterator[Any]:
        """A file that is read to its end: on a disk piece by piece, from an object store by one request.

        A large one of a store goes through a temporary file: a vocabulary may not fit the memory.
        """
        if scheme_of(self.root) == "file":
            with self.open(*names) as file:
                yield file
            return
        with _one_line_faults(self.path(*names)):
            content = fetch(self.path(*names), max_bytes=_FETCHED_AT_ONCE_BYTES)
        if len(content) < _FETCHED_AT_ONCE_BYTES:
            yield pa.BufferReader(content)
            return
        with tempfile.TemporaryFile(prefix=owned_prefix(SCRATCH)) as copy:
            while content:
                copy.write(content)
                with _one_line_faults(self.path(*names)):
                    content = fetch(self.path(*names), start=copy.tell(), max_bytes=_FETCHED_AT_ONCE_BYTES)
            yield copy

    @contextmanager
    def _parquet_faults(self, *names: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise IncompleteError(f"{self.path(*names)}: missing; run the same command again") from error
        except (pa.ArrowInvalid, OSError) as error:  # so Arrow answers to bytes that are no Parquet, or other pages
            raise IncompleteError(
                f"{self.path(*names)}: not a whole Parquet file; delete it and run the same command again"
            ) from error

    def _refuse_foreign(self, *names: str, found: str, wanted: str | None) -> None:
        if wanted is not None and found != wanted:
            raise IncompleteError(
                f"{self.path(*names)}: made from other settings or inputs, is another run writing here? "
                "Stop it, delete the file and run the same command again"
            )

    def _fs(self, *names: str) -> tuple[Any, str]:
        return open_store(self.path(*names))


def json_file(value: Any) -> bytes:
    """A JSON file for people and programs: sorted keys, indented."""
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def is_cell(name: str) -> bool:
    """Whether a name is that of a cell."""
    return _CELL.fullmatch(name) is not None


def part_of_cell(name: str) -> int | None:
    """The number of the part whose cell has this name; None for another file."""
    match = _CELL.fullmatch(name)
    return int(match[1]) if match else None


def folder_at(path: str) -> RunFolder:
    """A folder at a path as a user gives it: absolute, with `~` expanded, or on an object store."""
    is_local = scheme_of(path) == "file"
    return RunFolder(os.path.abspath(os.path.expanduser(plain_path(path))) if is_local else path)


def read_folder(root: str) -> RunFolder:
    """An existing folder of a run or mix. Raises InputError when there is none, or its object store cannot be used."""
    run = folder_at(root)
    open_store(run.root)  # faults name the path as it was given
    if describe(run.path("plan.json")) is None and not run.exists(MIX_FILE):
        if run.done("images"):
            raise InputError(f"{root}: interrupted before its plan was whole; run the same `maskmine mine` again")
        raise InputError(f"{root}: not a run folder (it has no plan.json); give the `out` of a `maskmine mine` run")
    return run


@contextmanager
def _one_line_faults(path: str) -> Iterator[None]:
    """A disk or an object store that fails is an IncompleteError; that a file is not there is left to the caller."""
    try:
        with os_errors(path):
            yield
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        if scheme_of(path) != "file":
            raise IncompleteError(fault_line(error, path)) from error
        reason = error.strerror or error
        raise IncompleteError(f"{path}: {reason}; mend the cause and run the same command again") from error


@contextmanager
def _plain_files(fs: Any, path: str) -> Iterator[None]:
    """Raises OSError for a pipe or a device on a disk, which have no end; a folder is left to whoever opens it."""
    if is_local(fs):
        mode = os.stat(path).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise OSError(errno.EINVAL, "is no plain file")
    yield


def _write_fault(error: OSError, path: str) -> Exception:
    if scheme_of(path) != "file":
        return IncompleteError(fault_line(error, path))
    if isinstance(error, PermissionError) or error.errno in (errno.EROFS, errno.EACCES):
        return IncompleteError(f"{path}: cannot be written ({os.strerror(error.errno or 0)}); choose another `out`")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return IncompleteError(f"{path}: the disk is full; free some space and run the same command again")
    if isinstance(error, FileExistsError | NotADirectoryError):
        return InputError(f"{path}: a file stands where a folder is needed; choose another `out`")
    return IncompleteError(f"{path}: cannot be written ({error}); mend the cause and run the same command again")
