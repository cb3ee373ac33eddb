"""The index of the full ADE20K, a pickle, read without executing anything in it."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from maskmine.schemas.errors import InputError

_BROKEN = (
    *(pickle.UnpicklingError, EOFError, AttributeError, MemoryError, RecursionError, OverflowError),
    *(ValueError, TypeError, LookupError),
)  # whatever a broken pickle raises
_AGAIN = "download ADE20K_2021_17_01 again"


@dataclass(frozen=True, slots=True)
class AdeIndex:
    """The paths of all images, relative to the root of the download, and the names of `objects`.

    The number of an object in the label maps is its index here plus 1.
    """

    images: tuple[PurePosixPath, ...]
    objects: tuple[str, ...]


def read_ade_index(path: Path) -> AdeIndex:
    """Read `index_ade20k.pkl`: its lists, also those within NumPy arrays.

    A pickle can call any function; here `_StandIn` takes the place of NumPy's, and a pickle that names others is
    refused. Raises InputError for such a file and for one that is broken or has other content.
    """
    try:
        with path.open("rb") as file:
            index = _Unpickler(file).load()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); {_AGAIN}") from error
    except _BROKEN as error:
        raise InputError(f"{path}: is not the index of ADE20K ({error}); nothing of it was run; {_AGAIN}") from error
    if not isinstance(index, dict) or not {"filename", "folder", "objectnames"} <= index.keys():
        raise InputError(f"{path}: has no lists `filename`, `folder` and `objectnames`; {_AGAIN}")
    folders, files, objects = (_texts(index[key], key, path) for key in ("folder", "filename", "objectnames"))
    if len(folders) != len(files):
        raise InputError(f"{path}: has {len(files):,} names of files and {len(folders):,} of folders; {_AGAIN}")
    images = [PurePosixPath(folder, file) for folder, file in zip(folders, files, strict=True)]
    for image in images:
        if image.is_absolute() or ".." in image.parts:
            raise InputError(f"{path}: the picture {image} is outside of the data set; {_AGAIN}")
    return AdeIndex(tuple(images), objects)


class _StandIn:
    """In place of every NumPy object; `values` are the elements where it is an array of Python objects."""

    values: Any = None

    def __new__(cls, *_: object) -> _StandIn:
        return super().__new__(cls)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.values = state[-1]


class _Unpickler(pickle._Unpickler):
    """The one in Python: that in C makes room for as many objects as a pickle of some bytes says that it has."""

    def find_class(self, module: str, name: str, /) -> type[_StandIn]:
        if module.partition(".")[0] in ("numpy", "_codecs"):  # Python 2 wrote bytes by `_codecs.encode`
            return _StandIn
        raise pickle.UnpicklingError(f"asks for {module}.{name}")


def _texts(values: Any, key: str, path: Path) -> tuple[str, ...]:
    values = values.values if isinstance(values, _StandIn) else values
    if not isinstance(values, list | tuple) or not all(isinstance(value, str) for value in values):
        raise InputError(f"{path}: `{key}` is no list of texts; {_AGAIN}")
    return tuple(values)
