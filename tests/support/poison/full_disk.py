"""A disk that is full for one file: the one whose path stands in `._disk-is-full` two folders above it."""

import errno
import os

_rename = os.replace


def install() -> None:
    """From now on, renaming onto that file fails in this process as it would on a full disk."""
    os.replace = _replace


def _replace(source, target, **options):  # type: ignore[no-untyped-def]
    note = os.path.join(os.path.dirname(os.path.dirname(os.fspath(target))), "._disk-is-full")
    if os.path.exists(note):
        with open(note) as file:
            if file.read() == os.fspath(target):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fspath(target))
    return _rename(source, target, **options)
