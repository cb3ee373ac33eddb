"""Files of a run of which many copies are made, each with other ids: bytes are put in the places of marks.

Writing a cell as a run does takes a millisecond or two, for a million files half an hour. A stencil is a cell that was
written once, with a mark of the same length in the place of each id, part and identity. A copy has others there, and
the checksums that follow from them, so that no reader can tell it from a cell of a run.
"""

from __future__ import annotations

import base64
import hashlib
import io
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from maskmine.schemas.tables import read_parquet, write_parquet

_SCHEMA_KEY, _ROWS_KEY, _SEAL_KEY = b"ARROW:schema", b"maskmine.rows", b"maskmine.seal"
_DIGITS = 64  # of a SHA-256
_UNSEALED = b"0" * _DIGITS
_END_BYTES = 8  # the length of a Parquet footer, and the magic number
_VARINT_BYTES = 5  # of a checksum in the header of a page
_BLOCK_BYTES, _SUM_PLACE = 512, 148  # of a tar: its blocks, and where a header has its sum
_CHECK_VALUES = "0123456789abcdef"


class NoStencilError(Exception):
    """The marks do not stand in the file as they are, since it was compressed: others have to be chosen."""


@dataclass(frozen=True)
class _Page:
    """A page of a Parquet file: where its checksum is, and where its bytes are."""

    checksum: slice
    bytes: slice


@dataclass(frozen=True)
class ParquetStencil:
    """A sealed Parquet file with marks. `places` are those of each mark, those in the footer's Arrow schema apart."""

    content: bytes
    places: tuple[tuple[int, ...], ...]
    pages: tuple[_Page, ...]
    footer: int
    schema: tuple[int, int]
    schema_places: tuple[tuple[int, ...], ...]

    @classmethod
    def cut(cls, table: pa.Table, *, metadata: dict[str, str], marks: Sequence[bytes]) -> ParquetStencil:
        """Write a table that has the marks as `write_parquet` does. Raises NoStencilError."""
        file = io.BytesIO()
        write_parquet(table, file, metadata=metadata)
        content = file.getvalue()
        footer = len(content) - _END_BYTES - int.from_bytes(content[-_END_BYTES:-4], "little")
        places = tuple(tuple(_places(content, mark)) for mark in marks)
        schema = _schema(content, footer)
        decoded = base64.b64decode(content[slice(*schema)])
        in_rows = [place for of_mark in places for place in of_mark if place < footer]
        pages = tuple(p for p in _pages(content) if any(p.bytes.start <= place < p.bytes.stop for place in in_rows))
        if any(page.checksum.stop - page.checksum.start != _VARINT_BYTES for page in pages):
            raise NoStencilError
        in_schema = tuple(tuple(_places(decoded, mark)) for mark in marks)
        stencil = cls(content, places, pages, footer, schema, in_schema)
        stencil._check(table, marks)
        return stencil

    def fill(self, values: Sequence[bytes]) -> tuple[bytes, str]:
        """A copy with these values in the places of the marks, in their order, and its identity."""
        copy, end = bytearray(self.content), self.footer
        _put(copy, self.places, values)
        for page in self.pages:
            copy[page.checksum] = _varint(zlib.crc32(copy[page.bytes]))
        schema = slice(*self.schema)
        decoded = bytearray(base64.b64decode(copy[schema]))
        _put(decoded, self.schema_places, values)
        copy[schema] = base64.b64encode(decoded)
        rows, seal = (copy.find(key, end) + len(key) + 2 for key in (_ROWS_KEY, _SEAL_KEY))
        copy[rows : rows + _DIGITS] = hashlib.sha256(memoryview(copy)[:end]).hexdigest().encode()
        copy[seal : seal + _DIGITS] = _UNSEALED
        identity = hashlib.sha256(memoryview(copy)[end:]).hexdigest()
        copy[seal : seal + _DIGITS] = identity.encode()
        return bytes(copy), identity

    def _check(self, table: pa.Table, marks: Sequence[bytes]) -> None:
        """Read a copy with other values as the run does, and compare it with the table that has these."""
        values = [bytes(_CHECK_VALUES[:: 1 if number % 2 else -1], "ascii") * 8 for number in range(len(marks))]
        values = [value[: len(mark)] for value, mark in zip(values, marks, strict=True)]
        try:
            found = read_parquet(pa.BufferReader(self.fill(values)[0]))
        except (pa.ArrowInvalid, OSError) as error:
            raise NoStencilError from error
        if _replaced(table.to_pylist(), marks, values) != found.to_pylist():
            raise NoStencilError


@dataclass(frozen=True)
class TarStencil:
    """A USTAR file with marks; `headers` are the places of the headers that have one."""

    content: bytes
    places: tuple[tuple[int, ...], ...]
    headers: tuple[int, ...]

    @classmethod
    def cut(cls, content: bytes, marks: Sequence[bytes]) -> TarStencil:
        """Of a tar that has the marks."""
        places = tuple(tuple(_places(content, mark)) for mark in marks)
        marked = {place // _BLOCK_BYTES * _BLOCK_BYTES for of_mark in places for place in of_mark}
        headers = (start for start in sorted(marked) if content[start + 257 : start + 262] == b"ustar")
        return cls(content, places, tuple(headers))

    def fill(self, values: Sequence[bytes]) -> bytes:
        """A copy with these values in the places of the marks, in their order."""
        copy = bytearray(self.content)
        _put(copy, self.places, values)
        for start in self.headers:
            place = start + _SUM_PLACE
            copy[place : place + 8] = b" " * 8
            copy[place : place + 8] = b"%06o\0 " % sum(copy[start : start + _BLOCK_BYTES])
        return bytes(copy)


def _put(content: bytearray, places: Sequence[Sequence[int]], values: Sequence[bytes]) -> None:
    for of_mark, value in zip(places, values, strict=True):
        for place in of_mark:
            content[place : place + len(value)] = value


def _places(content: bytes, mark: bytes) -> Iterator[int]:
    place = content.find(mark)
    while place >= 0:
        yield place
        place = content.find(mark, place + 1)


def _pages(content: bytes) -> Iterator[_Page]:
    """The pages of a Parquet file, of which each column of a row group has one, behind its dictionary."""
    metadata = pq.read_metadata(pa.BufferReader(content))
    for group in range(metadata.num_row_groups):
        for number in range(metadata.num_columns):
            column = metadata.row_group(group).column(number)
            first = column.dictionary_page_offset if column.has_dictionary_page else column.data_page_offset
            starts = sorted({first, column.data_page_offset, first + column.total_compressed_size})
            for start, end in pairwise(starts):
                yield _page(content, start, end)


def _schema(content: bytes, footer: int) -> tuple[int, int]:
    """Where the Arrow schema stands in a footer, in base64: behind its key, a byte, and its length."""
    place = content.find(_SCHEMA_KEY, footer) + len(_SCHEMA_KEY) + 1
    length, place = _read_varint(content, place)
    return place, place + length


def _read_varint(content: bytes, place: int) -> tuple[int, int]:
    """A number of seven bits a byte, and where it ends."""
    number = shift = 0
    while content[place] & 0x80:
        number, shift, place = number | (content[place] & 0x7F) << shift, shift + 7, place + 1
    return number | content[place] << shift, place + 1


def _page(content: bytes, start: int, end: int) -> _Page:
    """The header's fields 1 to 4 are numbers: kind, size, compressed size, checksum; each has a byte before it."""
    place, begin, numbers = start, start, []
    for _ in range(4):
        begin = place + 1
        number, place = _read_varint(content, begin)
        numbers.append(number)
    return _Page(slice(begin, place), slice(end - (numbers[2] >> 1), end))


def _varint(checksum: int) -> bytes:
    """A CRC-32 as Thrift has an i32: zigzag, seven bits a byte; here always in five, the last of which may be 0."""
    signed = checksum - (1 << 32) if checksum >> 31 else checksum
    number = (signed << 1) ^ (signed >> 31)
    number &= (1 << 32) - 1
    return bytes([*((number >> shift & 0x7F) | 0x80 for shift in (0, 7, 14, 21)), number >> 28])


def _replaced(value: Any, marks: Sequence[bytes], values: Sequence[bytes]) -> Any:
    if isinstance(value, dict):
        return {name: _replaced(one, marks, values) for name, one in value.items()}
    if isinstance(value, list):
        return [_replaced(one, marks, values) for one in value]
    if isinstance(value, str):
        for mark, other in zip(marks, values, strict=True):
            value = value.replace(mark.decode(), other.decode())
    return value
