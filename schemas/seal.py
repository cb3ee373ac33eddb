"""Sealed Parquet files: each says what it must hold, so that a damaged one is never read as other data.

    PAR1 ─ pages, each with a CRC-32 ─ footer: …, maskmine.rows, maskmine.seal ─ length ─ PAR1

`maskmine.rows` is the SHA-256 of all bytes before the footer, `maskmine.seal` that of the footer and all behind it,
taken with 64 zeros in the seal's own place. So the seal covers every byte of the file, and stands for its content: it
is the identity of a cell, and costs a reader the footer alone. Pages are checked when they are read. Files of earlier
versions have no seal; nothing can be said of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import IO, Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from maskmine.schemas.sample import Writer

_ROWS_KEY, _SEAL_KEY = "maskmine.rows", "maskmine.seal"
_UNSEALED = b"0" * 64
_MAGIC = b"PAR1"
_TAIL_BYTES = 1 << 16  # nearly every footer, so that an object store is asked once
_END_BYTES = 8  # the length of the footer, and the magic number
_HASHED_AT_ONCE_BYTES = 1 << 20
_PARSED_KEPT, _KEPT_BYTES = 256, 1 << 15  # footers that stay parsed, and how long they are at most


class DamagedFileError(pa.ArrowInvalid):  # type: ignore[misc]
    """A Parquet file that is not what was written; handled as Arrow's own answer to such files."""


@dataclass(frozen=True, slots=True)
class CheckedFile:
    """A Parquet file of which every byte was checked: its SHA-256, and the metadata of its footer."""

    sha256: str
    metadata: Mapping[str, str]

    @property
    def identity(self) -> str:
        """What stands for its content: the seal, or the SHA-256 where there is none."""
        return identity_of(self.metadata) or self.sha256


class _Footer(NamedTuple):
    """A checked footer: its metadata, what Arrow made of it, and where in the file it starts."""

    metadata: dict[str, str]
    parsed: pq.FileMetaData
    start: int


def write_sealed(
    tables: Iterable[pa.Table], file: Writer, schema: pa.Schema, *, metadata: Mapping[str, str] | None = None
) -> None:
    """Write tables of one schema as a sealed Parquet file, each a row group; one of them is in memory at a time."""
    schema = schema.with_metadata(dict(sorted((metadata or {}).items())))
    out: Any = _SealedWriter(file)
    with pq.ParquetWriter(out, schema, compression="zstd", write_page_checksum=True) as writer:
        for table in tables:
            writer.write_table(table.replace_schema_metadata(schema.metadata), row_group_size=max(1, len(table)))
        writer.add_key_value_metadata({_ROWS_KEY: out.end_rows(), _SEAL_KEY: _UNSEALED.decode()})
    out.seal()


def open_sealed(file: IO[bytes]) -> pq.ParquetFile:
    """Open a Parquet file whose footer was checked; pages are checked as they are read.

    Raises DamagedFileError, or ArrowInvalid and OSError as Arrow does, which is also what reading pages raises.
    """
    return _opened(file, _checked_footer(file))


def check_sealed(file: IO[bytes]) -> CheckedFile:
    """Check every byte of a Parquet file, in one pass. Raises as `open_sealed`."""
    return _checked(file, _checked_footer(file))


def check_and_open(file: IO[bytes]) -> tuple[CheckedFile, pq.ParquetFile]:
    """`check_sealed` and then `open_sealed`, by one reading of the footer."""
    footer = _checked_footer(file)
    return _checked(file, footer), _opened(file, footer)


def read_footer(file: IO[bytes]) -> dict[str, str]:
    """The metadata in the footer of a Parquet file, after its check. Raises as `open_sealed`."""
    return _checked_footer(file).metadata


def identity_of(metadata: Mapping[str, str]) -> str | None:
    """What stands for the content of a file with this metadata; None where a file has no seal."""
    return metadata.get(_SEAL_KEY)


def own_metadata(metadata: Mapping[bytes, bytes] | None) -> dict[bytes, bytes]:
    """Metadata of a footer without what the seal added."""
    added = (_ROWS_KEY.encode(), _SEAL_KEY.encode())
    return {key: value for key, value in (metadata or {}).items() if key not in added}


class _SealedWriter:
    """What Arrow writes a Parquet file to: it hashes the rows, and keeps the footer back until that is sealed."""

    closed = False  # what Arrow asks of a file in Python, with `tell` and `flush`

    def __init__(self, file: Writer) -> None:
        self._file = file
        self._rows = hashlib.sha256()
        self._size_bytes = 0
        self._footer: bytearray | None = None

    def write(self, content: Any, /) -> int:
        data = bytes(content)
        if self._footer is None:
            self._rows.update(data)
            self._file.write(data)
        else:
            self._footer += data
        self._size_bytes += len(data)
        return len(data)

    def tell(self) -> int:
        return self._size_bytes

    def flush(self) -> None:
        pass  # the owner of the file flushes it

    def end_rows(self) -> str:
        """The SHA-256 of all that was written; what comes now is the footer."""
        self._footer = bytearray()
        return self._rows.hexdigest()

    def seal(self) -> None:
        """Write the footer with its own SHA-256 in it."""
        assert self._footer is not None
        if int.from_bytes(self._footer[-_END_BYTES:-4], "little") != len(self._footer) - _END_BYTES:
            raise AssertionError("Arrow wrote pages after the last row group, which no checksum covers")
        place = _seal_place(self._footer)
        self._footer[place : place + len(_UNSEALED)] = hashlib.sha256(self._footer).hexdigest().encode()
        self._file.write(bytes(self._footer))


def _opened(file: IO[bytes], footer: _Footer) -> pq.ParquetFile:
    file.seek(0)
    return pq.ParquetFile(file, metadata=footer.parsed, page_checksum_verification=True)


def _checked(file: IO[bytes], footer: _Footer) -> CheckedFile:
    file.seek(0)
    digest, left = hashlib.sha256(), footer.start
    while left and (content := file.read(min(left, _HASHED_AT_ONCE_BYTES))):
        digest.update(content)
        left -= len(content)
    if _SEAL_KEY in footer.metadata and digest.hexdigest() != footer.metadata[_ROWS_KEY]:
        raise DamagedFileError("its pages are not those that were written")
    digest.update(file.read())
    return CheckedFile(digest.hexdigest(), footer.metadata)


def _checked_footer(file: IO[bytes]) -> _Footer:
    """The footer of a file, after its check."""
    size_bytes = file.seek(0, 2)
    tail_start = file.seek(max(0, size_bytes - _TAIL_BYTES))
    tail = file.read(_TAIL_BYTES)
    end = tail[-_END_BYTES:]
    length = int.from_bytes(end[:4], "little")
    start = size_bytes - _END_BYTES - length
    if len(end) < _END_BYTES or end[4:] != _MAGIC or start < len(_MAGIC):
        raise DamagedFileError("it has no footer of a Parquet file")
    if start < tail_start:
        file.seek(start)
        tail, tail_start = file.read(length + _END_BYTES), start
    footer = bytearray(tail[start - tail_start :])
    stored = bytes(footer)
    # Looked for in the bytes, and before they are parsed: a damaged footer may parse without its metadata.
    if any(key.encode() in stored for key in (_SEAL_KEY, _ROWS_KEY)):
        place = _seal_place(footer)
        footer[place : place + len(_UNSEALED)] = _UNSEALED
        if hashlib.sha256(footer).hexdigest().encode() != stored[place : place + len(_UNSEALED)]:
            raise DamagedFileError("its footer is not the one that was written")
    try:
        parsed = _parsed_again(stored) if len(stored) <= _KEPT_BYTES else _parsed(stored)
        found = parsed.metadata or {}
        return _Footer(
            {key.decode(): value.decode() for key, value in found.items() if key != b"ARROW:schema"}, parsed, start
        )
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
        raise DamagedFileError(f"its footer cannot be read: {error}") from error


def _parsed(footer: bytes) -> pq.FileMetaData:
    return pq.read_metadata(pa.BufferReader(_MAGIC + footer))


@lru_cache(maxsize=_PARSED_KEPT)
def _parsed_again(footer: bytes) -> pq.FileMetaData:
    """`_parsed` of one of the last footers: steps read the same ones after another, each checks its bytes anew, and
    the same bytes parse to the same."""
    return _parsed(footer)


def _seal_place(footer: bytes | bytearray) -> int:
    """Where the seal stands: behind its key, the byte of the field's type and that of its length."""
    return footer.find(_SEAL_KEY.encode()) + len(_SEAL_KEY) + 2
