"""JSON files in COCO's format: lists as streams; ids, sizes and flags as tools write them; compressed annotations.

Tools write one value in several types: an id is 7, 7.0 or "7", `iscrowd` 1, true or "1", a size 480 or "480". All that
pycocotools, pandas and detectron2 take is taken here, in this file alone, and an id has one text whatever its type.
"""

from __future__ import annotations

import gzip
import json
import zlib
from codecs import BOM_UTF8, getincrementaldecoder
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import ijson

from maskmine.mining.storage.bounded.json_limits import TOO_MUCH, TooLongError, bounded_json
from maskmine.mining.storage.bounded.limits import USUAL, Limits
from maskmine.mining.storage.bounded.unpacking import unpacked
from maskmine.mining.storage.json_repair import HALVED, LONE_SURROGATE, UNREADABLE, repaired
from maskmine.mining.storage.names import composed
from maskmine.mining.storage.stores import open_input
from maskmine.schemas.errors import InputError

Need = Literal["items", "list", "nothing"]

_CHUNK_BYTES = 1 << 16
_GZIP = b"\x1f\x8b"
_LARGEST_FLOAT_ID = 2**53  # larger floats are not all whole numbers apart: one could be another id
_NOT = frozenset({"", "0", "0.0", "false", "f", "no", "n", "none", "null", "nan"})  # texts of a flag that is not set
_BROKEN = (
    *(ijson.JSONError, EOFError, zlib.error, gzip.BadGzipFile, UnicodeDecodeError),
    *(TooLongError, ValueError, OverflowError, RecursionError),
)


@dataclass(frozen=True, slots=True)
class FaultLines:
    """Messages for a file that cannot be used: templates for its `path`.

    `absent`: there is none; `folder`: it is one; `broken`: it is no JSON, for a `reason`; `lacking`: it has no list of
    this `name`; `unreadable`: the disk refuses, for a `reason`. Without the last, such an OSError is raised as it is.
    """

    absent: str
    folder: str
    broken: str
    lacking: str
    unreadable: str | None = None


@dataclass(slots=True)
class LeftOut:
    """What a reader of a file could not use: how many entries by reason, and the first of each."""

    counts: dict[str, int] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, place: str, *, count: int = 1) -> None:
        """Count one, or more that have the first in one place."""
        self.counts[reason] = self.counts.get(reason, 0) + count
        self.first.setdefault(reason, place)

    def lines(self) -> tuple[str, ...]:
        """A line for each reason, such as "2 annotations without a usable `image_id` (the first: entry 7)"."""
        return tuple(
            f"{count:,} {reason} ({'the first: ' if count > 1 else ''}{self.first[reason]})"
            for reason, count in self.counts.items()
        )


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
    except gzip.BadGzipFile:  # an OSError of the content, not of the disk
        raise
    except OSError as error:
        if lines.unreadable is None:
            raise
        raise InputError(lines.unreadable.format(path=path, reason=error.strerror)) from error


def coco_lists(
    path: str, needs: Mapping[str, Need], *, lines: FaultLines, limits: Limits = USUAL
) -> Iterator[tuple[str, int, dict[str, Any] | None]]:
    """`(list, number, item)` for the items of lists at the top of a JSON file, which is read once, as a stream.

    An item that is no object comes as None, one beyond the limits as an object that says so, see `too_much`. What JSON
    has no word for (NaN, Infinity) is null, and a whole number beyond 64 bits is a text of its digits. Raises
    InputError when the file cannot be read, is no JSON, or lacks what is needed of a list: items, or the list at least.
    """
    counts = dict.fromkeys(needs, 0)
    try:
        try:
            for name, item in _stream(path, needs, lines=lines, limits=limits, repair=False):
                yield name, counts[name], item if isinstance(item, dict) else None
                counts[name] += 1
        except ijson.JSONError:  # perhaps only for what other readers take: from here on with repairs, which cost time
            skipped = dict(counts)
            for name, item in _stream(path, needs, lines=lines, limits=limits, repair=True):
                if skipped[name]:
                    skipped[name] -= 1
                    continue
                yield name, counts[name], item if isinstance(item, dict) else None
                counts[name] += 1
        for name, need in needs.items():
            if not counts[name] and (need == "items" or (need == "list" and not _has_list(path, name, lines, limits))):
                raise InputError(lines.lacking.format(path=path, name=name))
    except _BROKEN as error:
        reason = " ".join(str(error).split())[:80]
        raise InputError(lines.broken.format(path=path, reason=reason)) from error


def coco_items(
    path: str, name: str, *, lines: FaultLines, need: Need, limits: Limits = USUAL
) -> Iterator[dict[str, Any] | None]:
    """The items of one list, as `coco_lists` gives them."""
    return (item for _, _, item in coco_lists(path, {name: need}, lines=lines, limits=limits))


def too_much(item: Mapping[str, Any] | None) -> str:
    """What is too much in an item beyond the limits; empty for any other."""
    return str((item or {}).get(TOO_MUCH, ""))


def is_unreadable(value: Any) -> bool:
    """Whether a value is a text of which bytes or halves of characters could not be read."""
    return isinstance(value, str) and value.startswith((UNREADABLE, HALVED))


def coco_id(value: Any) -> str | None:
    """An id as text, None for what is none: 7, 7.0 and "7" are one id.

    COCO's ids are whole numbers, other data sets in its form have texts. Other numbers are ids too ("1.5"), but for
    floats of 2**53 and more, of which several numbers have become one. Accents in texts are composed.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str) or is_unreadable(value):
        return None
    if isinstance(value, float):
        if not abs(value) < _LARGEST_FLOAT_ID:
            return None
        return str(int(value)) if value.is_integer() else repr(value)
    text = str(value)
    return composed(text) if text.strip() else None


def known_id(found: str | None, known: Container[str]) -> str | None:
    """An id as the list that it points into writes it: "7.0", as pandas makes text of a column, is 7 there."""
    if found is None or found in known:
        return found
    whole = found.strip().removesuffix(".0")
    return whole if whole in known else None


def coco_number(value: Any) -> int | None:
    """A whole number, also as float or text; None for anything else."""
    if isinstance(value, str):
        try:
            value = float(value) if not value.strip().lstrip("+-").isdecimal() else int(value)
        except ValueError:
            return None
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def coco_flag(value: Any) -> bool:
    """Whether a flag such as `iscrowd` is set: 1, true, "1" and "true" are, 0, "0", null and no value are not."""
    return value.strip().lower() not in _NOT if isinstance(value, str) else bool(value)


def coco_size_px(image: Mapping[str, Any]) -> tuple[int, int] | None:
    """An image's `(height_px, width_px)`, None where it has no valid one."""
    return size_px_of([image.get("height"), image.get("width")])


def size_px_of(sides: Any) -> tuple[int, int] | None:
    """`[height, width]` in whole pixels, as numbers or texts; None for anything else."""
    if not isinstance(sides, Sequence) or isinstance(sides, str) or len(sides) != 2:
        return None
    height_px, width_px = map(coco_number, sides)
    return (height_px, width_px) if height_px and width_px and height_px > 0 and width_px > 0 else None


def pack(value: Any) -> bytes:
    """Compressed JSON, a fifth of what polygons take as Python objects: COCO train2017 has 860,001 masks."""
    return zlib.compress(json.dumps(value).encode(), 1)


def unpack(packed: bytes) -> Any:
    """What was packed."""
    return json.loads(zlib.decompress(packed))


def _stream(
    path: str, names: Mapping[str, Need], *, lines: FaultLines, limits: Limits, repair: bool
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The items of all lists in the order of the file, as far as a chunk of it goes."""
    found = {name: ijson.sendable_list() for name in names}
    parsers = {name: ijson.items_coro(found[name], f"{name}.item", use_float=True) for name in names}
    with open_coco(path, lines=lines) as file:
        chunks = _chunks(file, path, limits)
        for chunk in repaired(chunks) if repair else chunks:
            if not repair and LONE_SURROGATE.search(chunk):
                raise ijson.JSONError("half a character")
            yield from _parsed(parsers, found, chunk)
    yield from _parsed(parsers, found, None)


def _parsed(parsers: Mapping[str, Any], found: Mapping[str, list[Any]], chunk: bytes | None) -> Iterator[Any]:
    """The items that are complete with one more chunk, or at the end; also those before a fault, which is raised."""
    for name, parser in parsers.items():
        fault: ijson.JSONError | None = None
        try:
            if chunk is None:
                parser.close()
            elif chunk:  # an empty one would be the end
                parser.send(chunk)
        except ijson.JSONError as error:
            fault = error
        yield from [(name, item) for item in found[name]]
        found[name].clear()
        if fault is not None:
            raise fault


def _has_list(path: str, name: str, lines: FaultLines, limits: Limits) -> bool:
    with open_coco(path, lines=lines) as file:
        events: list[tuple[str, str, Any]] = ijson.sendable_list()
        parser = ijson.parse_coro(events)
        for chunk in repaired(_chunks(file, path, limits)):
            if chunk:
                parser.send(chunk)
            if any(prefix == name and event == "start_array" for prefix, event, _ in events):
                return True
            events.clear()
    return False


def _chunks(file: Any, path: str, limits: Limits) -> Iterator[bytes]:
    """The file in UTF-8 without a byte order mark, in pieces of whole entries; from gzip, UTF-16 and UTF-32 too."""
    start = file.read(2)
    file.seek(0)
    if start == _GZIP:
        file = unpacked(file, "gzip", path=path, max_ratio=limits.max_unpacked_ratio)
    return bounded_json(_utf8(file), max_bytes=limits.max_record_bytes, max_depth=limits.max_depth)


def _utf8(file: Any) -> Iterator[bytes]:
    head = file.read(4)
    encoding = json.detect_encoding(head)
    if encoding not in ("utf-8", "utf-8-sig"):
        decoder = getincrementaldecoder(encoding)()
        yield decoder.decode(head).encode("utf-8", "surrogatepass")
        while chunk := file.read(_CHUNK_BYTES):
            yield decoder.decode(chunk).encode("utf-8", "surrogatepass")
        yield decoder.decode(b"", final=True).encode()
        return
    yield head.removeprefix(BOM_UTF8)
    while chunk := file.read(_CHUNK_BYTES):
        yield chunk
