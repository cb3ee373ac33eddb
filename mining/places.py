"""Where a picture lies that is no file of its own: a slice of a file, or a cell of a table; or why it lies nowhere.

An image's row in the plan holds one text for all of these, so any tool can read the plan, and what a worker has to
read is known to the byte:

    /photos/1.jpg   s3://bucket/1.jpg   https://…     a file of its own
    bytes:1536+20480:/sets/00017.tar                  so many bytes of a file, from an offset
    cell:3/17/image.bytes:/sets/train.parquet         row group, row within it, column
    fault:broken_record:line 7 is no JSON object      nowhere: the rejection that the image will have

Files are named by absolute paths or URLs, so none begins like one of these.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from schemas.rows import Rejection

_PLACE = re.compile(
    r"bytes:(?P<offset>\d+)\+(?P<size>\d+):(?P<whole>.+)"
    r"|cell:(?P<group>\d+)/(?P<row>\d+)/(?P<column>[^:]+):(?P<table>.+)"
    r"|fault:(?P<reason>[a-z_]+):(?P<detail>.*)",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Slice:
    """`size_bytes` bytes of a file, from `offset` on."""

    file: str
    offset: int
    size_bytes: int

    def __str__(self) -> str:
        return f"bytes:{self.offset}+{self.size_bytes}:{self.file}"


@dataclass(frozen=True, slots=True)
class Cell:
    """The bytes in one cell of a Parquet file: row `row` of its row group `group`."""

    file: str
    group: int
    row: int
    column: str

    def __str__(self) -> str:
        return f"cell:{self.group}/{self.row}/{self.column}:{self.file}"


def parse_place(text: str) -> Slice | Cell | Rejection | str:
    """What an image's place stands for; a plain path or URL as it is."""
    found = _PLACE.fullmatch(text)
    if found is None:
        return text
    if found["whole"]:
        return Slice(found["whole"], int(found["offset"]), int(found["size"]))
    if found["table"]:
        return Cell(found["table"], int(found["group"]), int(found["row"]), found["column"])
    return Rejection(found["reason"], found["detail"])  # type: ignore[arg-type]  # one of ours, written by `no_place`


def no_place(rejection: Rejection) -> str:
    """The place of an image that the source names without a picture that could be read."""
    return f"fault:{rejection.reason}:{rejection.detail}"


def moved_place(place: str, root: str) -> str:
    """A place with its file relative to `root`, the same wherever the folder lies."""
    parsed = parse_place(place)
    if isinstance(parsed, Rejection):
        return place
    if isinstance(parsed, str):
        return _relative(parsed, root)
    return str(replace(parsed, file=_relative(parsed.file, root)))


def _relative(path: str, root: str) -> str:
    return path.removeprefix(root).lstrip("/")
