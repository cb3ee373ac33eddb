"""Files that appear whole or not at all: the earlier content survives a full disk and a killed process."""

from __future__ import annotations

import errno
import hashlib
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
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


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Write a file below a folder that may be new.

    Raises IncompleteError when the disk is full or the folder cannot be written; the file is then as it was.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replace_file(path, temporary=path.with_name(f"{path.name}.partial")) as file:
            file.write(content)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        cause, remedy = ("the disk is full", "free some space") if full else (error.strerror, "mend the cause")
        raise IncompleteError(f"{path}: cannot be written, {cause}; {remedy} and run the same command again") from error


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
