"""Files that appear whole or not at all: what stood there before survives a full disk and a killed process."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from schemas.errors import IncompleteError


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Write beside the file, sync, then rename.

    Raises IncompleteError when the disk is full or the folder cannot be written; the file is then as it was.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        cause, remedy = ("the disk is full", "free some space") if full else (error.strerror, "mend the cause")
        partial.unlink(missing_ok=True)
        raise IncompleteError(f"{path}: cannot be written, {cause}; {remedy} and run the same command again") from error
