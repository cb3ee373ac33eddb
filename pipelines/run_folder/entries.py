"""What lies in a folder, as the system gives it: a folder with a million files is not sorted, nor held in memory."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from maskmine.mining.storage.listings import in_folder


def each_file(folder: str) -> Iterator[str]:
    """All files below a folder on a disk, which are not in memory all at once."""
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from each_file(entry.path)
            else:
                yield entry.path


def each_entry(fs: Any, folder: str) -> Iterator[str]:
    """The names in a folder; they come as the system gives them, or the store."""
    if not is_local(fs):
        yield from map(posixpath.basename, in_folder(fs, folder))
        return
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        for entry in entries:
            yield entry.name


def folders_in(folder: str) -> list[str]:
    """The folders in a folder on a disk."""
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        return [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    return []


def is_local(fs: Any) -> bool:
    """Whether a file system is this machine's."""
    return "file" in (fs.protocol if isinstance(fs.protocol, tuple) else (fs.protocol,))
