"""Locations of images: a file, a slice of a file, a cell of a table; or why there is no image.

An image's row in the plan holds one text for all of these, so any tool can read the plan, and what a worker has to
read is known to the byte:

    /photos/1.jpg   s3://bucket/1.jpg   https://…     a file of its own
    bytes:1536+20480.jpg:/sets/00017.tar              offset + size, the suffix of the member's name, and the file
    cell:3/17/image.bytes:/sets/train.parquet         row group, row within it, column
    fault:broken_record:line 7 is no JSON object      none: the rejection that the image will have
    escaped:/photos/caf%E9.jpg                        a file whose name is no UTF-8, which Arrow cannot hold

Files are named by absolute paths or URLs, so none begins like one of these; what has a number that no file reaches is
a name too. Earlier plans have no suffix of a member.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from urllib.parse import quote, unquote, urlsplit

from maskmine.mining.storage.names import utf8_name
from maskmine.schemas.rows import REASONS, Rejection

_LOCATION = re.compile(
    r"bytes:(?P<offset>[0-9]{1,18})\+(?P<size>[0-9]{1,18})(?:\.(?P<suffix>[\w.-]+))?:(?P<whole>.+)"
    r"|cell:(?P<group>[0-9]{1,9})/(?P<row>[0-9]{1,18})/(?P<column>[^:]+):(?P<table>.+)"
    r"|fault:(?P<reason>[a-z_]+):(?P<detail>.*)",
    re.DOTALL,
)
_SUFFIX = re.compile(r"[\w.-]{1,80}")
_ESCAPED = "escaped:"
_OTHERS = ("bytes:", "cell:", "fault:", _ESCAPED)


@dataclass(frozen=True, slots=True)
class Slice:
    """`size_bytes` bytes of a file, from `offset` on; `suffix` ends the name of the tar's member, such as `jpg`."""

    file: str
    offset: int
    size_bytes: int
    suffix: str = ""

    def __str__(self) -> str:
        suffix = f".{self.suffix}" if _SUFFIX.fullmatch(self.suffix) else ""
        return f"bytes:{self.offset}+{self.size_bytes}{suffix}:{file_location(self.file)}"


@dataclass(frozen=True, slots=True)
class Cell:
    """The bytes in one cell of a Parquet file: row `row` of its row group `group`."""

    file: str
    group: int
    row: int
    column: str

    def __str__(self) -> str:
        return f"cell:{self.group}/{self.row}/{self.column}:{file_location(self.file)}"


def parse_location(text: str) -> Slice | Cell | Rejection | str:
    """The parsed location of an image; a plain path or URL unchanged."""
    match = _LOCATION.fullmatch(text)
    if match is None:
        return _file(text)
    if match["whole"]:
        return Slice(_file(match["whole"]), int(match["offset"]), int(match["size"]), match["suffix"] or "")
    if match["table"]:
        return Cell(_file(match["table"]), int(match["group"]), int(match["row"]), match["column"])
    reason = match["reason"] if match["reason"] in REASONS else "broken_record"
    detail = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in match["detail"])
    return Rejection(reason, detail)  # type: ignore[arg-type]


def file_location(path: str) -> str:
    """The location of a file of its own: its path or URL; escaped where Python holds bytes in it that are no UTF-8."""
    if utf8_name(path) == path:
        return path
    try:
        return _ESCAPED + quote(path, errors="surrogateescape")
    except UnicodeEncodeError:  # half of a surrogate pair, which no name on a disk has
        return utf8_name(path)


def as_plain(path: str) -> str:
    """A path out of data, such that it is not taken for one of the other locations."""
    return f"./{path}" if path.startswith(_OTHERS) else path


def file_name_of(location: str | None) -> str | None:
    """The name of an image's file without its folders; None where it has no file of its own."""
    parsed = parse_location(location) if location else None
    if not isinstance(parsed, str):
        return None
    if "://" in parsed:
        with suppress(ValueError):  # an address in brackets that is none: then what follows the last slash
            parsed = urlsplit(parsed).path
    return posixpath.basename(parsed) or None


def rejected_location(rejection: Rejection) -> str:
    """The location of an image that its source names without a file that could be read."""
    return f"fault:{rejection.reason}:{utf8_name(rejection.detail)}"


def relative_location(location: str, *roots: str) -> str:
    """A location with its file relative to a root, so it does not depend on where the folder is.

    Of several roots it is the longest that the file lies below.
    """
    parsed = parse_location(location)
    if isinstance(parsed, Rejection):
        return location
    if isinstance(parsed, str):
        return file_location(_relative(parsed, roots))
    return str(replace(parsed, file=_relative(parsed.file, roots)))


def _relative(path: str, roots: Sequence[str]) -> str:
    root = max((root for root in roots if path.startswith(root)), key=len, default="")
    return path.removeprefix(root).lstrip("/")


def _file(text: str) -> str:
    """The path that `file_location` gave a text for."""
    return unquote(text.removeprefix(_ESCAPED), errors="surrogateescape") if text.startswith(_ESCAPED) else text
