"""Files that appear whole or not at all: the earlier content survives a full disk and a killed process."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from maskmine.schemas.errors import IncompleteError
from maskmine.schemas.sample import Writer


@contextmanager
def replace_file(path: str | Path, *, temporary: str | Path) -> Iterator[IO[bytes]]:
    """A file to write, which takes the name `path`, synced, when the block ends well, and is removed otherwise.

    `temporary` is its name until then, in the same folder. Raises OSError.
    """
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def put_whole(path: Path, content: bytes | memoryview) -> None:
    """Write a file. What a killed process leaves of it, `NAME.partial`, goes when the file is written again.

    Raises OSError; the file is then as it was.
    """
    with replace_file(path, temporary=path.with_name(f"{path.name}.partial")) as file:
        file.write(content)


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """`put_whole` below a folder that may be new.

    Raises IncompleteError when the disk is full or the folder cannot be written; the file is then as it was.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        put_whole(path, content)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        cause, remedy = ("the disk is full", "free some space") if full else (error.strerror, "mend the cause")
        raise IncompleteError(f"{path}: cannot be written, {cause}; {remedy} and run the same command again") from error


def regular(path: str | Path) -> Path:
    """The path, of a file of bytes or of nothing. Raises OSError for a pipe or a device, which a reader might wait for
    or never come to the end of."""
    path = Path(path)
    if path.exists() and not path.is_file():
        raise OSError(f"{path} is no regular file")
    return path


@contextmanager
def sole_writer(folder: str) -> Iterator[None]:
    """Keep other processes of this machine from writing to a folder on a disk while the block runs.

    The lock ends with the process, however that ends. A folder that is made for it goes again where nothing was written
    to it. Raises IncompleteError when another process is at work there.
    """
    made: list[str] = []
    handle = None
    try:
        path = os.path.abspath(folder)
        while not os.path.exists(path):
            made.append(path)
            path = os.path.dirname(path)
        os.makedirs(folder, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
        _forget_in_forks(handle)
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        if handle is not None:
            os.close(handle)
        raise IncompleteError(
            f"{folder}: another process is at work in this folder; wait for it, or stop it, and run the same command "
            "again"
        ) from error
    except OSError:  # no folder can be made, or this file system has no locks: what is wrong shows when it is used
        pass
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)
        for path in made:
            with suppress(OSError):
                os.rmdir(path)


def _forget_in_forks(handle: int) -> None:
    """Close a handle in processes that are forked from this one, or they would hold its lock."""
    about = os.fstat(handle)

    def forget() -> None:
        with suppress(OSError):
            now = os.fstat(handle)
            if (now.st_dev, now.st_ino) == (about.st_dev, about.st_ino):
                os.close(handle)

    os.register_at_fork(after_in_child=forget)


class HashingFile:
    """A file that knows its size and SHA-256 while it is written, so that nothing is read again."""

    closed = False  # what Arrow asks of a file in Python, with `tell` and `flush`

    def __init__(self, file: Writer) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self.size_bytes = 0
        self.crc32 = 0  # of what was written since it was set to 0

    def write(self, content: bytes, /) -> int:
        self._file.write(content)
        self._digest.update(content)
        self.crc32 = zlib.crc32(content, self.crc32)
        self.size_bytes += len(content)
        return len(content)

    def tell(self) -> int:
        return self.size_bytes

    def flush(self) -> None:
        pass  # the owner of the file flushes it

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()
