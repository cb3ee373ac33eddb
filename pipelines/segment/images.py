"""Which pictures and classes a person means: files, folders and patterns, on a disk or on an object store; names."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Sequence
from typing import Any

from mining.stores import describe, fault_line, open_input, open_store, os_errors, scheme_of
from schemas.errors import InputError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
OURS = (".labels.png", ".overlay.png")
"""The ends of what `segment` writes, which is not taken for a picture where a folder is listed."""


def find_pictures(names: Sequence[str]) -> list[str]:
    """The paths of pictures, each once, sorted: files as they are named, the pictures of a folder, those of a pattern.

    A folder's own folders are passed over; `**` in a pattern goes into them. Files that are named need not be there:
    what is wrong with one is found when it is read. Raises InputError when nothing is there, or a store fails.
    """
    found = [path for name in names for path in _find(name)]
    if not found:
        known = " ".join(SUFFIXES)
        raise InputError(f"{', '.join(names)[:200]}: no pictures found ({known}); give files, folders or patterns")
    if not any(describe(path) for path in found):
        raise InputError(f"{found[0]}: no such file or folder; check the path")
    return sorted(set(found))


def read_classes(names: str, file: str | None) -> tuple[str, ...]:
    """Names with commas between them, and those in the lines of a text file; empty ones are passed over.

    In a file a name may have commas. Raises InputError when the file cannot be read.
    """
    found = [name.strip() for name in names.split(",")]
    if file is not None:
        found += read_names(file, option="--classes-from")
    return tuple(name for name in found if name)


def read_names(file: str, *, option: str) -> list[str]:
    """The lines of a text file without the space around them. Raises InputError when it cannot be read."""
    try:
        with open_input(file) as lines:
            return [line.strip() for line in lines.read().decode("utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{option} {file}: cannot be read ({type(error).__name__}); give a UTF-8 text file, a name a line"
        ) from error


def picture_id(path: str) -> str:
    """What annotations in COCO's form call a picture: its name without ending, and a number without zeros before it."""
    stem = posixpath.splitext(posixpath.basename(path))[0]
    return str(int(stem)) if stem.isdecimal() and stem.isascii() else stem


def _find(name: str) -> list[str]:
    fs, inner = open_store(name)
    about = describe(name)
    if about is not None and about["type"] == "directory":
        return _pictures(name, fs, inner.rstrip("/") + "/*")
    if about is None and re.search(r"[*?\[]", name):
        return _pictures(name, fs, inner)
    return [_full(name, fs, inner)]


def _pictures(name: str, fs: Any, pattern: str) -> list[str]:
    try:
        with os_errors(name):
            found = fs.glob(pattern, detail=True).items()  # which calls a link to a file "other"
            listed = [str(path) for path, about in found if about["type"] == "file" or about.get("islink")]
    except OSError as error:
        raise InputError(fault_line(error, name)) from error
    named = ((path, posixpath.basename(path).lower()) for path in listed)
    return [_full(name, fs, path) for path, low in named if low.endswith(SUFFIXES) and not low.endswith(OURS)]


def _full(name: str, fs: Any, inner: str) -> str:
    """The path with the scheme of `name`."""
    return inner if scheme_of(name) == "file" else str(fs.unstrip_protocol(inner))
