"""The index of the full ADE20K, a pickle: read without running anything that a pickle may ask for."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from schemas.errors import InputError

_MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")
_BROKEN = (
    *(pickle.UnpicklingError, EOFError, AttributeError, ImportError, MemoryError, RecursionError),
    *(ValueError, TypeError, LookupError, OverflowError),
)
_ARRAY = object()
_SCALAR = np.float64(0).__reduce__()[0]
_AGAIN = "download ADE20K_2021_17_01 again"


@dataclass(frozen=True, slots=True)
class AdeIndex:
    """What of the index is used: every picture's path, relative to the folder of the download's folder, and its split.

    `objects` are the names of the things; the number of one in the label maps is its place, counted from 1.
    """

    pictures: tuple[PurePosixPath, ...]
    objects: tuple[str, ...]


def read_ade_index(path: Path) -> AdeIndex:
    """Read `index_ade20k.pkl`.

    A pickle can call any function; here only NumPy arrays can be built, and what asks for anything else is refused
    before it is called. Raises InputError for such a file and for one that is broken or of another form.
    """
    try:
        with path.open("rb") as file:
            index = _ArraysOnly(file).load()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); {_AGAIN}") from error
    except _BROKEN as error:
        raise InputError(f"{path}: is not the index of ADE20K ({error}); nothing of it was run; {_AGAIN}") from error
    if not isinstance(index, dict) or not {"filename", "folder", "objectnames"} <= index.keys():
        raise InputError(f"{path}: has no lists `filename`, `folder` and `objectnames`; {_AGAIN}")
    folders, files, objects = (_texts(index[key], key, path) for key in ("folder", "filename", "objectnames"))
    if len(folders) != len(files):
        raise InputError(f"{path}: has {len(files):,} names of files and {len(folders):,} of folders; {_AGAIN}")
    pictures = [PurePosixPath(folder, file) for folder, file in zip(folders, files, strict=True)]
    for picture in pictures:
        if picture.is_absolute() or ".." in picture.parts:
            raise InputError(f"{path}: the picture {picture} is outside of the data set; {_AGAIN}")
    return AdeIndex(tuple(pictures), objects)


class _ArraysOnly(pickle.Unpickler):
    """Builds lists, dictionaries, texts, numbers and NumPy arrays of them."""

    def find_class(self, module: str, name: str, /) -> Any:
        if module in _MULTIARRAY and name == "_reconstruct":
            return _empty_array
        if module in _MULTIARRAY and name == "scalar":
            return _SCALAR
        if (module, name) == ("numpy", "ndarray"):
            return _ARRAY  # named to `_empty_array`, and never to be called
        if (module, name) == ("numpy", "dtype"):
            return np.dtype
        if (module, name) == ("_codecs", "encode"):  # so Python 2 wrote bytes
            return _latin_1
        raise pickle.UnpicklingError(f"asks for {module}.{name}")


def _empty_array(*_: object) -> Any:
    """What a pickled array begins with, whatever it asks for here; its shape and content follow."""
    return np.ndarray((0,), "b")


def _latin_1(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"asks for the encoding {encoding}")
    return text.encode("latin-1")


def _texts(values: Any, key: str, path: Path) -> tuple[str, ...]:
    if not isinstance(values, list | tuple | np.ndarray) or not all(isinstance(value, str) for value in values):
        raise InputError(f"{path}: `{key}` is no list of texts; {_AGAIN}")
    return tuple(str(value) for value in values)
