"""What every caption source gives: entries, one for each caption and for each image that it lists.

image_id    the image that is meant, in this source or in another one
path        where its image lies (`mining/storage/locations.py`); null when the entry only says something of the image
part        the part that the image belongs to, counted from 0 in this source; null where the plan cuts the parts
position    orders the captions of an image, and the images of a part
caption     null when the entry only lists the image; empty when its caption is no text
additional  what is kept of the record beside them, as JSON
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa

from maskmine.mining.sources.values import id_text, texts_in
from maskmine.mining.storage.json_repair import HALVED, UNREADABLE
from maskmine.mining.storage.locations import rejected_location
from maskmine.mining.storage.names import composed
from maskmine.schemas.rows import Rejection
from maskmine.schemas.settings import canonical_json

Entry = tuple[str, str | None, int | None, int, str | None, str]

ENTRIES = pa.schema(
    [
        ("image_id", pa.string()),
        ("path", pa.string()),
        ("part", pa.int64()),
        ("position", pa.int64()),
        ("caption", pa.string()),
        ("additional", pa.string()),
    ]
)
_HALF = re.compile("[\ud800-\udfff]")  # how Python holds half of a character
NOTHING_MORE = "{}"  # `additional` of a record of which nothing else is kept
_BATCH_ROWS, _BATCH_CHARS = 10_000, 2_000_000  # a few megabytes of a table
_MAX_DETAIL_CHARS = 160  # about a line of a terminal


def as_tables(entries: Iterable[Entry]) -> Iterator[pa.Table]:
    """Entries as Arrow tables, some thousands at a time, fewer where captions are long."""
    entries = iter(entries)
    while batch := list(islice(entries, 1)):
        chars = 0
        for entry in islice(entries, _BATCH_ROWS - 1):
            batch.append(entry)
            chars += len(entry[4] or "")
            if chars > _BATCH_CHARS:
                break
        yield pa.table([list(column) for column in zip(*batch, strict=True)], schema=ENTRIES)


def broken(image_id: str, position: int, detail: str, *, part: int | None = None) -> Entry:
    """The entry of a record that cannot be used: its image will have the rejection `broken_record`."""
    location = rejected_location(Rejection("broken_record", clean_text(detail)[:_MAX_DETAIL_CHARS]))
    return image_id, location, part, position, None, NOTHING_MORE


def captions_of(value: Any, *, encoding: str = "utf-8") -> list[str]:
    """The captions in a field (`mining/sources/values.py`); one that is missing or no text is empty.

    Raises UnicodeDecodeError for bytes that are no text.
    """
    return [_caption(text) for text in texts_in(value, encoding=encoding)]


def _caption(text: str) -> str:
    """A caption; U+FFFD stands for half of a character, of an emoji that was cut in two."""
    return whole_text(text) if text.startswith(UNREADABLE) else clean_text(text.removeprefix(HALVED))


def id_of(value: Any, *, encoding: str = "utf-8") -> str | None:
    """An id as text: whole numbers of any type, texts, UUIDs and bytes of them; None for anything else.

    Accents are composed, as in the ids of folders and tars, so that lists written on any system name the same images.
    Raises UnicodeDecodeError for bytes that are no id.
    """
    text = id_text(value, encoding=encoding)
    return None if text is None else composed(whole_text(text))


def whole_text(text: str) -> str:
    """`text` as it is. Raises UnicodeDecodeError where it has half of a character, or what JSON could not tell."""
    if not text.isascii() and (_HALF.search(text) or text.startswith((UNREADABLE, HALVED))):
        raw = text.strip(UNREADABLE + HALVED).encode("utf-8", "surrogatepass")
        raise UnicodeDecodeError("utf-8", raw, 0, len(raw), "half of a character")
    return text


def kept_columns(record: Mapping[str, Any], columns: Sequence[str]) -> str:
    """The values of some columns as JSON; what JSON has no word for is kept as text."""
    if not columns:
        return NOTHING_MORE
    return canonical_json({column: _plain(record.get(column)) for column in columns})


def clean_text(text: str) -> str:
    """`text` as UTF-8 can hold it: a lone surrogate becomes U+FFFD, which has the same length, so spans stay true."""
    return text if text.isascii() else text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, np.floating):
        return _plain(float(value))
    if isinstance(value, bytes):
        value = value.decode("utf-8", "backslashreplace")
    if isinstance(value, str):
        return clean_text(value)
    return value if value is None or isinstance(value, int | float) else clean_text(str(value))
