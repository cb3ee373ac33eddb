"""Files in COCO's form: their lists as streams, however long, ids and sizes, and how masks wait in memory."""

from __future__ import annotations

import json
import zlib
from codecs import BOM_UTF8
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any, Literal

import ijson

from mining.stores import open_input
from schemas.errors import InputError


@dataclass(frozen=True, slots=True)
class FaultLines:
    """What the user is told of a file that cannot be used: templates for its `path`.

    `absent`: there is none; `folder`: it is one; `broken`: it is no JSON, for a `reason`; `lacking`: it has no list of
    this `name`; `unreadable`: the disk refuses, for a `reason`. Without the last, such an OSError is raised as it is.
    """

    absent: str
    folder: str
    broken: str
    lacking: str
    unreadable: str | None = None


@contextmanager
def open_coco(path: str, *, lines: FaultLines) -> Iterator[Any]:
    """The file for reading. Raises InputError when that cannot be done."""
    try:
        with open_input(path) as file:
            yield file
    except FileNotFoundError as error:
        raise InputError(lines.absent.format(path=path)) from error
    except IsADirectoryError as error:
        raise InputError(lines.folder.format(path=path)) from error
    except OSError as error:
        if lines.unreadable is None:
            raise
        raise InputError(lines.unreadable.format(path=path, reason=error.strerror)) from error


def coco_items(
    path: str, name: str, *, lines: FaultLines, need: Literal["items", "list", "nothing"]
) -> Iterator[dict[str, Any]]:
    """The items of the list `name` at the top of a JSON file, as a stream; one that is no object comes as an empty one.

    Raises InputError when the file cannot be read, is no JSON, or lacks what is needed: items, or the list at least.
    """
    some = False
    try:
        with open_coco(path, lines=lines) as file:
            start = len(BOM_UTF8) if file.read(len(BOM_UTF8)) == BOM_UTF8 else 0
            file.seek(start)
            if need == "list" and not _has_list(file, name):
                raise InputError(lines.lacking.format(path=path, name=name))
            file.seek(start)
            for item in ijson.items(file, f"{name}.item", use_float=True):
                some = True
                yield item if isinstance(item, dict) else {}
    except ijson.JSONError as error:
        reason = " ".join(str(error).split())[:80]
        raise InputError(lines.broken.format(path=path, reason=reason)) from error
    if need == "items" and not some:
        raise InputError(lines.lacking.format(path=path, name=name))


def coco_id(item: Mapping[str, Any], key: str) -> int | str | None:
    """An id: COCO's are whole numbers, other data sets in its form have texts."""
    value = item.get(key)
    return value if isinstance(value, int | str) and not isinstance(value, bool) else None


def coco_size_px(image: Mapping[str, Any]) -> tuple[int, int] | None:
    """An image's `(height_px, width_px)`, None where it has none that is one."""
    sides = [image.get("height"), image.get("width")]
    sides_px = [int(side) for side in sides if isinstance(side, int | float) and side >= 1]
    return (sides_px[0], sides_px[1]) if len(sides_px) == 2 else None


def pack(value: Any) -> bytes:
    """Compressed JSON, a fifth of what polygons take as Python objects: COCO train2017 has 860,001 masks."""
    return zlib.compress(json.dumps(value).encode(), 1)


def unpack(packed: bytes) -> Any:
    """What was packed."""
    return json.loads(zlib.decompress(packed))


def _has_list(file: IO[bytes], name: str) -> bool:
    return any(prefix == name and event == "start_array" for prefix, event, _ in ijson.parse(file))
