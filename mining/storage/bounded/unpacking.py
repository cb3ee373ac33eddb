"""What compressed files hold, as streams: gzip, bzip2, xz and zstd, none of which may unfold without end."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable
from typing import Any

import pyarrow as pa

from maskmine.schemas.errors import InputError

MAGIC = ((b"\x1f\x8b", "gzip"), (b"BZh", "bzip2"), (b"\xfd7zXZ\0", "xz"), (b"\x28\xb5\x2f\xfd", "zstd"))
"""How compressed files begin."""
UNPACKING_ERRORS = (EOFError, zlib.error, lzma.LZMAError, OSError, pa.ArrowException)
"""What reading a damaged one raises; an OSError also where the disk fails."""

_FREE_BYTES = 1 << 23  # of any file: small texts may repeat themselves
_BUFFER_BYTES = 1 << 16
_XZ_MEMORY_BYTES = 1 << 28  # a file says itself how much it takes; `xz -9` takes a quarter of this


def unpacked(packed: Any, kind: str, *, path: str, max_ratio: float) -> io.BufferedReader:
    """The content of a compressed file as a stream, which raises UNPACKING_ERRORS, and InputError for far too much."""
    opened = _OPEN[kind](packed)
    return io.BufferedReader(_Bounded(opened, packed, path=path, max_ratio=max_ratio), _BUFFER_BYTES)


class _Bounded(io.RawIOBase):
    """A stream that ends with InputError when it is many times longer than what was read for it."""

    def __init__(self, opened: Any, packed: Any, *, path: str, max_ratio: float) -> None:
        self._opened, self._packed = opened, packed
        self._path, self._max_ratio = path, max_ratio
        self._size_bytes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        content = self._opened.read(min(len(buffer), _BUFFER_BYTES))
        buffer[: len(content)] = content
        self._size_bytes += len(content)
        if self._size_bytes > _FREE_BYTES and self._size_bytes > self._max_ratio * self._packed.tell():
            raise InputError(
                f"{self._path}: unfolds to more than {self._max_ratio:g} times its size; if that is meant, unpack it, "
                "or raise `limits.max_unpacked_ratio`"
            )
        return len(content)


class _Xz(io.RawIOBase):
    """The content of an xz file, in bounded memory."""

    def __init__(self, packed: Any) -> None:
        self._packed = packed
        self._decompressor = lzma.LZMADecompressor(memlimit=_XZ_MEMORY_BYTES)

    def read(self, size_bytes: int = -1, /) -> bytes:
        while True:
            if self._decompressor.eof:
                following = self._decompressor.unused_data or self._packed.read(_BUFFER_BYTES)
                following = following.lstrip(b"\0")  # between the streams of a file, and behind the last
                if not following:
                    return b""
                self._decompressor = lzma.LZMADecompressor(memlimit=_XZ_MEMORY_BYTES)
                content = self._decompressor.decompress(following, size_bytes)
            elif self._decompressor.needs_input:
                more = self._packed.read(_BUFFER_BYTES)
                if not more:
                    raise EOFError("it breaks off")
                content = self._decompressor.decompress(more, size_bytes)
            else:
                content = self._decompressor.decompress(b"", size_bytes)
            if content:
                return content


_OPEN: dict[str, Callable[[Any], Any]] = {
    "gzip": lambda packed: gzip.GzipFile(fileobj=packed),
    "bzip2": bz2.BZ2File,
    "xz": _Xz,
    "zstd": lambda packed: pa.CompressedInputStream(pa.PythonFile(packed, "r"), "zstd"),
}
