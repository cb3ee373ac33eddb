"""The run folder: a grid of steps × parts, one file a cell; a file appears whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import posixpath
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any, TypeVar

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from schemas.errors import IncompleteError, InputError
from schemas.tables import from_table, read_parquet, to_table, write_parquet

Row = TypeVar("Row")

FINGERPRINT_FILE = "_fingerprint.json"
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
        return self.path(step, f"{part:05d}.{suffix}")

    def done(self, step: str, *, suffixes: Sequence[str] = ("parquet",)) -> set[int]:
        """The parts whose cells exist, by one listing of the step's folder; every suffix must be there."""
        found: dict[str, set[int]] = {suffix: set() for suffix in suffixes}
        for name in self.names(step):
            match = _CELL.fullmatch(name)
            if match and match[2] in found:
                found[match[2]].add(int(match[1]))
        return set.intersection(*found.values())

    def names(self, *names: str) -> list[str]:
        """The names in a folder, sorted; none when there is no folder."""
        fs, path = self._fs(*names)
        try:
            entries = fs.ls(path, detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(posixpath.basename(str(entry).rstrip("/")) for entry in entries)

    def exists(self, *names: str) -> bool:
        """Whether a file is there."""
        fs, path = self._fs(*names)
        return bool(fs.exists(path))

    def delete(self, *names: str) -> None:
        """Remove a file; nothing happens when it is not there."""
        fs, path = self._fs(*names)
        if fs.exists(path):
            fs.rm_file(path)

    @contextmanager
    def open(self, *names: str) -> Iterator[IO[bytes]]:
        """Open a file for reading."""
        fs, path = self._fs(*names)
        with fs.open(path, "rb") as file:
            yield file

    @contextmanager
    def write(self, *names: str) -> Iterator[IO[bytes]]:
        """Write a file that appears when the block ends well, and not at all otherwise.

        On a disk: a temporary file beside it, synced, then renamed. On an object store: one upload of a finished file.
        Raises IncompleteError when the disk is full or the folder cannot be written.
        """
        fs, path = self._fs(*names)
        local = "file" in (fs.protocol if isinstance(fs.protocol, tuple) else (fs.protocol,))
        try:
            if local:
                os.makedirs(os.path.dirname(path), exist_ok=True)
            folder = os.path.dirname(path) if local else None
            handle, temporary = tempfile.mkstemp(prefix=".writing-", dir=folder)
            try:
                with os.fdopen(handle, "wb") as file:
                    yield file
                    file.flush()
                    os.fsync(file.fileno())
                if local:
                    os.chmod(temporary, 0o644)
                    os.replace(temporary, path)
                else:
                    fs.put_file(temporary, path)
            finally:
                if os.path.exists(temporary):
                    os.unlink(temporary)
        except OSError as error:
            raise _write_fault(error, path) from error

    def read_json(self, *names: str) -> Any:
        """The content of a JSON file, or None when it is not there or not whole."""
        try:
            with self.open(*names) as file:
                return json.load(file)
        except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError, UnicodeDecodeError):
            return None

    def write_json(self, *names: str, value: Any) -> None:
        """Write a JSON file for people and programs: sorted keys, indented."""
        with self.write(*names) as file:
            file.write((json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode())

    def write_rows(
        self,
        *names: str,
        rows: Sequence[Any],
        row_type: type,
        fingerprint: str,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Write rows as Parquet that carries the fingerprint of what made it, and further metadata, in its footer."""
        with self.write(*names) as file:
            table = to_table(rows, row_type)
            write_parquet(table, file, metadata={**(metadata or {}), _FINGERPRINT_KEY: fingerprint})

    def read_table(self, *names: str, fingerprint: str | None = None) -> pa.Table:
        """Read a Parquet file. With a fingerprint, a file that was made from anything else is an IncompleteError."""
        try:
            with self.open(*names) as file:
                table = read_parquet(file)
        except FileNotFoundError as error:
            raise IncompleteError(f"{self.path(*names)}: missing; run the same command again") from error
        except pa.ArrowInvalid as error:
            raise IncompleteError(
                f"{self.path(*names)}: not a whole Parquet file; delete it and run the same command again"
            ) from error
        found = (table.schema.metadata or {}).get(_FINGERPRINT_KEY.encode(), b"").decode()
        if fingerprint is not None and found != fingerprint:
            raise IncompleteError(
                f"{self.path(*names)}: made from other settings or inputs, is another run writing here? "
                "Stop it, delete the file and run the same command again"
            )
        return table

    def read_rows(self, *names: str, row_type: type[Row], fingerprint: str | None = None) -> list[Row]:
        """The rows of a cell; faults as in `read_table`."""
        return from_table(self.read_table(*names, fingerprint=fingerprint), row_type)

    def read_fingerprint(self, *names: str) -> str | None:
        """The fingerprint in a Parquet file's footer; None when the file is missing or not whole."""
        return self.read_metadata(*names).get(_FINGERPRINT_KEY)

    def read_metadata(self, *names: str) -> dict[str, str]:
        """The metadata in a Parquet file's footer; empty when the file is missing or not whole."""
        try:
            with self.open(*names) as file:
                metadata = pq.read_metadata(file).metadata or {}
        except (FileNotFoundError, NotADirectoryError, pa.ArrowInvalid):
            return {}
        return {key.decode(): value.decode() for key, value in metadata.items() if key != b"ARROW:schema"}

    def _fs(self, *names: str) -> tuple[Any, str]:
        fs, path = fsspec.core.url_to_fs(self.path(*names))
        return fs, str(path)


def read_folder(root: str) -> RunFolder:
    """An existing run folder. Raises InputError when there is none."""
    run = RunFolder(root if "://" in root else os.path.abspath(os.path.expanduser(root)))
    if not run.exists("plan.json"):
        raise InputError(f"{root}: not a run folder (it has no plan.json); give the `out` of a `maskmine mine` run")
    return run


def _write_fault(error: OSError, path: str) -> Exception:
    if isinstance(error, PermissionError) or error.errno in (errno.EROFS, errno.EACCES):
        return IncompleteError(f"{path}: cannot be written ({os.strerror(error.errno or 0)}); choose another `out`")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return IncompleteError(f"{path}: the disk is full; free some space and run the same command again")
    if isinstance(error, FileExistsError | NotADirectoryError):
        return InputError(f"{path}: a file stands where a folder is needed; choose another `out`")
    return IncompleteError(f"{path}: cannot be written ({error}); mend the cause and run the same command again")
