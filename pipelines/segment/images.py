"""The images and class names that a user gives: files, folders and patterns on a disk or an object store; decoding."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Sequence
from typing import Any

from maskmine.mining.images import batches
from maskmine.mining.images.decode import DecodedImage
from maskmine.mining.storage.names import PICTURE_SUFFIXES, is_leftover, is_picture
from maskmine.mining.storage.stores import describe, fault_line, open_input, open_store, os_errors, scheme_of
from maskmine.schemas.errors import InputError
from maskmine.schemas.rows import Rejection
from maskmine.tuning.segmentation.segmenter import Segmenter

SUFFIXES = tuple(f".{suffix}" for suffix in PICTURE_SUFFIXES)
OURS = (".labels.png", ".overlay.png")
"""Suffixes of files that `segment` writes: they are no input when a folder is listed."""
_PATTERN = re.compile(r"[*?\[]")


def check_images(names: Sequence[str], *, classes: Sequence[str]) -> None:
    """Raises InputError where an image is a class that slipped out of its option, or where none is named."""
    if not names:
        raise InputError("IMAGE…: no picture is named; for example: maskmine segment photo.jpg --classes 'dog, tree'")
    strays = [name for name in names if not is_picture(name) and not _PATTERN.search(name) and describe(name) is None]
    if strays:
        together = ", ".join([*classes, *strays]).replace("'", "")[:200]
        raise InputError(
            f"{strays[0][:200]}: no such picture or folder; if that is a class, give all names in one option: "
            f"--classes '{together}'"
        )


def find_images(names: Sequence[str]) -> list[str]:
    """The paths of images, each once, sorted: files as they are named, the images of a folder, those of a pattern.

    Subfolders are skipped; `**` in a pattern includes them. Named files need not exist: their faults show when they
    are read. Raises InputError when no path exists, or a store fails.
    """
    paths = [path for name in names for path in _find(name)]
    if not paths:
        known = " ".join(SUFFIXES)
        raise InputError(f"{', '.join(names)[:200]}: no pictures found ({known}); give files, folders or patterns")
    if not any(describe(path) for path in paths):
        raise InputError(f"{paths[0]}: no such file or folder; check the path")
    return sorted(set(paths))


def decode_batches(
    paths: Sequence[str], *, settings: Segmenter
) -> Iterator[tuple[list[int], list[DecodedImage | Rejection]]]:
    """Batches of images as a segmenter takes them; see `maskmine.mining.images.batches`."""
    return batches.decode_batches(
        paths,
        decoding=settings.decoding,
        max_pixels=settings.max_image_pixels,
        threads=settings.decode_threads,
        batch_size=settings.batch_size,
    )


def read_classes(names: str, file: str | None) -> tuple[str, ...]:
    """Names separated by commas, and those in the lines of a text file; empty ones are skipped.

    In a file a name may contain commas. Raises InputError when the file cannot be read.
    """
    classes = [name.strip() for name in names.split(",")]
    if file is not None:
        classes += read_names(file, option="--classes-from")
    return tuple(filter(None, classes))


def read_names(file: str, *, option: str) -> list[str]:
    """The lines of a text file without surrounding space. Raises InputError when it cannot be read."""
    try:
        with open_input(file) as lines:
            return [line.strip() for line in lines.read().decode("utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{option} {file}: cannot be read ({type(error).__name__}); give a UTF-8 text file, a name a line"
        ) from error


def image_id_of(path: str) -> str:
    """The id of an image in COCO annotations: its file name without suffix, a number without leading zeros."""
    stem = posixpath.splitext(posixpath.basename(path))[0]
    return str(int(stem)) if stem.isdecimal() and stem.isascii() else stem


def _find(name: str) -> list[str]:
    fs, inner = open_store(name)
    about = describe(name)
    if about is not None and about["type"] == "directory":
        return _images(name, fs, _literally(inner.rstrip("/")) + "/*")
    if about is None and _PATTERN.search(name):
        return _images(name, fs, inner)
    return [_full(name, fs, inner)]


def _images(name: str, fs: Any, pattern: str) -> list[str]:
    try:
        with os_errors(name):
            entries = fs.glob(pattern, detail=True).items()  # the type of a link to a file is "other"
            paths = [str(path) for path, about in entries if about["type"] == "file" or about.get("islink")]
    except OSError as error:
        raise InputError(fault_line(error, name)) from error
    pictures = [path for path in paths if is_picture(path) and not is_leftover(posixpath.basename(path))]
    return [_full(name, fs, path) for path in pictures if not path.lower().endswith(OURS)]


def _literally(path: str) -> str:
    """A path as a pattern that stands for it alone, whatever brackets, stars and question marks are in it."""
    return re.sub(r"([*?\[])", r"[\1]", path)


def _full(name: str, fs: Any, inner: str) -> str:
    """The path with the scheme of `name`."""
    return inner if scheme_of(name) == "file" else str(fs.unstrip_protocol(inner))
