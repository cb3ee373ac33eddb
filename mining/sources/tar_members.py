"""The headers of a tar, one after the other, in time and memory that do not depend on what they say.

Python's `tarfile` believes a header: it goes back where a size is negative, reads into memory whatever an extended
header is said to have, and takes minutes for lengths of many digits. Here a number is bounded before it is one, only
the fields that matter are kept of extended headers, and nothing is read of a member.

https://www.gnu.org/software/tar/manual/html_node/Standard.html, and POSIX `pax` for extended headers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, Literal

BLOCK_BYTES = 512
"""Of which a tar is made."""
Kind = Literal["file", "folder", "other"]

_MAX_EXTENDED_BYTES = 1 << 20  # long names and PAX headers are far shorter
_MAX_DIGITS = 20
_LARGEST = 1 << 62
_FILES, _FOLDER, _SPARSE = (b"0", b"\0", b"7"), b"5", b"S"
_WITHOUT_CONTENT = (b"1", b"2", b"3", b"4", b"5", b"6")  # links, devices, folders, pipes: their size says nothing
_LONG_NAME, _LONG_LINK, _PAX, _PAX_OF_ALL = b"L", b"K", (b"x", b"X"), b"g"
_SPARSE_MARK = b"GNU.sparse"


@dataclass(frozen=True, slots=True)
class Header:
    """A member: its name, what it is, and where its content lies. A sparse file is none that could be read there."""

    name: str
    kind: Kind
    offset: int
    size_bytes: int


class BadHeaderError(ValueError):
    """What stands at `offset` is no header, or one of which no tar has."""

    def __init__(self, reason: str, offset: int) -> None:
        super().__init__(reason)
        self.offset = offset


class CutError(ValueError):
    """The file ends inside of a member or header; `rest_bytes` are there of the header."""

    def __init__(self, offset: int, rest_bytes: int) -> None:
        super().__init__("cut off")
        self.offset, self.rest_bytes = offset, rest_bytes


@dataclass(slots=True)
class _Extended:
    """What extended headers say of the next member, and of all that follow."""

    name: bytes | None = None
    size_bytes: int | None = None
    sparse: bool = False


@dataclass(slots=True)
class TarMembers:
    """The headers of one archive in a file, from `offset` on; `offset` goes along and ends at the end mark."""

    file: IO[bytes]
    offset: int
    size_bytes: int
    _of_all: _Extended = field(default_factory=_Extended)

    def __iter__(self) -> Iterator[Header]:
        """Up to the end mark. Raises BadHeaderError and CutError."""
        start, extended = self.offset, _Extended()
        while (block := self._block()) is not None:
            size = _number(block[124:136])
            if size is None or not _is_header(block):
                raise BadHeaderError("no header", start)
            kind = block[156:157]
            content = self.offset + BLOCK_BYTES
            if kind in (_LONG_NAME, _LONG_LINK, _PAX_OF_ALL, *_PAX):
                said = self._extended(content, size, start)
                if kind == _LONG_NAME:
                    extended.name = said.split(b"\0", 1)[0]
                elif kind in _PAX:
                    _read_pax(said, extended, start)
                elif kind == _PAX_OF_ALL:
                    _read_pax(said, self._of_all, start)
                self.offset = content + _blocks(size)
                continue
            if kind == _SPARSE:
                content = self._behind_sparse(block, content)
            yield self._member(block, kind, size, content, extended)
            start, extended = self.offset, _Extended()

    def _member(self, block: bytes, kind: bytes, size: int, content: int, extended: _Extended) -> Header:
        """A member; moves on to the next header."""
        of_all = self._of_all
        stated = extended.size_bytes if extended.size_bytes is not None else of_all.size_bytes
        size = size if stated is None else stated
        plain, prefix = _text(block[0:100]), _text(block[345:500])
        if prefix and kind not in (_SPARSE, _LONG_NAME, _LONG_LINK):
            plain = prefix + b"/" + plain
        name = (extended.name or of_all.name or plain).decode("utf-8", "surrogateescape")
        is_folder = kind == _FOLDER or (kind == b"\0" and name.endswith("/"))
        is_file = kind in _FILES and not is_folder and not (extended.sparse or of_all.sparse)
        self.offset = content + (0 if kind in _WITHOUT_CONTENT else _blocks(size))
        what: Kind = "folder" if is_folder else "file" if is_file else "other"
        return Header(name, what, content, size)

    def _block(self) -> bytes | None:
        """The next header; None for the end mark."""
        if self.offset > self.size_bytes:
            raise CutError(self.size_bytes, 0)
        self.file.seek(self.offset)
        block = self.file.read(BLOCK_BYTES)
        if len(block) < BLOCK_BYTES:
            raise CutError(self.offset, len(block))
        return block if block.count(0) < BLOCK_BYTES else None

    def _extended(self, offset: int, size: int, start: int) -> bytes:
        if size > _MAX_EXTENDED_BYTES:
            raise BadHeaderError(f"a header of {size} bytes", start)
        self.file.seek(offset)
        said = self.file.read(size)
        if len(said) < size:
            raise CutError(self.size_bytes, 0)
        return said

    def _behind_sparse(self, block: bytes, content: int) -> int:
        """Where the content begins behind the maps of an old sparse file."""
        goes_on = block[482]
        while goes_on:
            self.file.seek(content)
            more = self.file.read(BLOCK_BYTES)
            if len(more) < BLOCK_BYTES:
                raise CutError(self.size_bytes, 0)
            content, goes_on = content + BLOCK_BYTES, more[504]
        return content


def _is_header(block: bytes) -> bool:
    """Whether the sum that a header states is that of its bytes, counted with or without their signs."""
    stated = _number(block[148:156])
    rest = block[:148] + block[156:]
    unsigned = 8 * 0x20 + sum(rest)
    return stated == unsigned or stated == unsigned - 256 * sum(byte > 127 for byte in rest)


def _number(text: bytes) -> int | None:
    """A number in octal digits, or in binary behind a mark; None for what is none, is negative or beyond all files."""
    if text[0] == 0x80:
        return min(int.from_bytes(text[1:], "big"), _LARGEST)
    digits = _text(text).strip()
    if not digits:
        return 0
    try:
        return int(digits, 8) if digits[:1] != b"-" else None
    except ValueError:
        return None


def _read_pax(said: bytes, extended: _Extended, start: int) -> None:
    """Take what matters from records `LENGTH KEY=VALUE\\n`. Raises BadHeaderError."""
    at = 0
    while at < len(said) and said[at]:
        space = said.find(b" ", at, at + _MAX_DIGITS)
        digits = said[at:space] if space > 0 else b""
        end = at + int(digits) if digits.isdigit() else 0
        if not space < end <= len(said) or said[end - 1 : end] != b"\n":
            raise BadHeaderError("a broken extended header", start)
        key, equals, value = said[space + 1 : end - 1].partition(b"=")
        if not equals:
            raise BadHeaderError("a broken extended header", start)
        if key == b"path" or key == b"GNU.sparse.name":
            extended.name = value
        elif key == b"size":
            if not value.isdigit():
                raise BadHeaderError("a broken extended header", start)
            extended.size_bytes = min(int(value), _LARGEST) if len(value) <= _MAX_DIGITS else _LARGEST
        extended.sparse = extended.sparse or key.startswith(_SPARSE_MARK)
        at = end


def _text(field: bytes) -> bytes:
    return field.split(b"\0", 1)[0]


def _blocks(size: int) -> int:
    return -(-size // BLOCK_BYTES) * BLOCK_BYTES
