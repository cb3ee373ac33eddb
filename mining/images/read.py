"""Images: from a path to the bytes of a file, or to the reason why not. What decodes them is a process of its own
(`mining/images/child_decoder.py`), whoever wrote them."""

from __future__ import annotations

import errno
import os
import posixpath
import stat
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from typing import IO

from maskmine.mining.images.decode import MAX_SIDE_PX, Result
from maskmine.mining.storage.locations import Cell, Slice, parse_location
from maskmine.mining.storage.names import other_spellings, path_as_stored, utf8_name
from maskmine.mining.storage.stores import (
    OBJECT_STORES,
    describe,
    fault_line,
    fetch,
    plain_path,
    scheme_of,
)
from maskmine.mining.storage.urls import URL_SCHEMES, Fetch, fetch_url
from maskmine.schemas.errors import IncompleteError, InputError
from maskmine.schemas.rows import Rejection


def read_bytes(path: str | None, *, max_bytes: int = 1 << 30, urls: Fetch | None = None) -> bytes | Rejection:
    """The bytes of the file at `path`, `missing_file`, or `image_too_large` beyond `max_bytes`.

    A path is a plain one, `file://`, one on an object store (`s3://`, `gs://`), or a location in a tar or table on one
    of these (`mining/storage/locations.py`). A URL is read when `urls` allows it, and may be `fetch_failed` or
    `fetch_refused`. Raises OSError for a fault of the disk, IncompleteError for one of an object store, and InputError
    when the library for such a store is not installed.
    """
    data: bytes | Rejection
    if path is not None and urls is not None and urls.allow and scheme_of(path) in URL_SCHEMES:
        data = fetch_url(path, fetch=urls)
    else:
        data = _with_file(path, lambda file: _read_most(file, max_bytes + 1))
    if isinstance(data, bytes) and len(data) > max_bytes:
        return Rejection("image_too_large", f"a file of more than {max_bytes:,} bytes")
    return data


def _read_most(file: IO[bytes], most: int) -> bytes:
    """No more than so many bytes of a file, by as much memory as it needs: asked for more, Python takes that first."""
    size_bytes = file.seek(0, os.SEEK_END)
    file.seek(0)
    content = file.read(min(size_bytes + 1, most))
    return content if len(content) <= size_bytes else content + file.read(most - len(content))  # it has grown


def read_head(path: str | None) -> bytes | Rejection:
    """The first bytes of the file at `path`, enough for nearly every header; rejects and raises as `read_bytes`."""
    return _with_file(path, lambda file: file.read(_HEAD_BYTES), most=_HEAD_BYTES)


def max_bytes(max_pixels: int) -> int:
    """The largest file that an image of `max_pixels` may have."""
    return max_pixels * _MAX_BYTES_PER_PIXEL + _HEADER_BYTES


_HEAD_BYTES = 1 << 18  # a camera's EXIF and colour profile are 64 kB each at most


# No image needs more: four channels of 16 bits without compression, and what cameras write beside the pixels.
_MAX_BYTES_PER_PIXEL, _HEADER_BYTES = 8, 64_000_000


def _with_file(path: str | None, read: Callable[[IO[bytes]], Result], *, most: int | None = None) -> Result | Rejection:
    """The result of `read` on the open file; a file that cannot be read is `missing_file`.

    From an object store no more than `most` bytes are fetched, by default as many as an image may have. That such a
    store fails is no fault of the image: it raises IncompleteError.
    """
    if path is None:
        return Rejection("missing_file", "the captions name this image, the image list does not")
    location = parse_location(path)
    if isinstance(location, Rejection):
        return location
    path = location if isinstance(location, str) else location.file
    name = utf8_name(posixpath.basename(path))  # whole: a backslash in it may be what is wrong
    try:
        file = _open_location(location, most=most)
        if isinstance(file, Rejection):
            return file
        if isinstance(file, str):
            return Rejection("missing_file", f"{name}: {file}")
        with file:
            return read(file)
    except (FileNotFoundError, NotADirectoryError):
        return Rejection("missing_file", f"{name}: no such file")
    except IsADirectoryError:
        return Rejection("missing_file", f"{name}: a folder")
    except PermissionError:
        if scheme_of(path) in OBJECT_STORES:
            _refuse_if_all_is_refused(path)
        return Rejection("missing_file", f"{name}: not readable")
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            return Rejection("missing_file", f"{name[:80]}: no such file")
        if scheme_of(path) in OBJECT_STORES:
            raise IncompleteError(fault_line(error, path)) from error
        raise


def _open_location(location: str | Slice | Cell, *, most: int | None) -> IO[bytes] | Rejection | str:
    """The bytes at a location as an open file, or why there are none; of a slice, only the slice is read."""
    if isinstance(location, str):
        return _open_file(location, most=most)
    if isinstance(location, Cell):
        from maskmine.mining.storage.table_cells import read_cell  # Arrow is large, and decoders have no use for it

        data = read_cell(location)
        return data if isinstance(data, Rejection) else BytesIO(data)
    size_bytes = min(location.size_bytes, most or max_bytes(MAX_SIDE_PX**2))
    if scheme_of(location.file) != "file":
        return BytesIO(fetch(location.file, start=location.offset, max_bytes=size_bytes))
    file = _open_local(plain_path(location.file))
    if isinstance(file, str):
        return file
    with file:
        file.seek(location.offset)
        return BytesIO(file.read(size_bytes))


def _open_file(path: str, *, most: int | None) -> IO[bytes] | str:
    """The open file, or why it is not to be opened."""
    if scheme_of(path) == "file":
        return _open_local(plain_path(path))
    if scheme_of(path) not in OBJECT_STORES or "::" in path:
        return "nothing is fetched from a URL unless the user allows it"
    # an image with a side of more pixels is rejected, so a file with more bytes is none that is wanted
    most = most or max_bytes(MAX_SIDE_PX**2)
    try:
        return BytesIO(fetch(path, max_bytes=most))
    except FileNotFoundError:
        for other in other_spellings(path):
            with suppress(FileNotFoundError):
                return BytesIO(fetch(other, max_bytes=most))
        raise


def _refuse_if_all_is_refused(path: str) -> None:
    """One object may be locked, and is missing; but where the whole folder is refused, the credentials are at fault."""
    try:
        describe(posixpath.dirname(path))
    except InputError as error:
        raise IncompleteError(str(error)) from error


def _open_local(path: str) -> IO[bytes] | str:
    """The open file, or why it is not to be opened; one that is not there is looked for under other spellings.

    Lists made on Windows have backslashes, and macOS decomposes accents, which lists do not.
    """
    try:
        mode = os.stat(path).st_mode
    except ValueError:  # a name that no file can have
        return "no such file"
    except (FileNotFoundError, NotADirectoryError):
        stored = path_as_stored(path)
        if stored is None:
            raise
        path, mode = stored, os.stat(stored).st_mode
    if stat.S_ISDIR(mode):
        return "a folder"
    return open(path, "rb") if stat.S_ISREG(mode) else "not a regular file"
