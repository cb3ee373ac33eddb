"""What every caption source gives: entries, one for each caption and for each image that it lists.

image_id    the image that is meant, in this source or in another one
path        where its picture lies (`mining/places.py`); null when the entry only says something of the image
part        the part that the image belongs to, counted from 0 in this source; null where the plan cuts the parts
position    orders the captions of an image, and the images of a part
caption     null when the entry only lists the image; empty when its caption is no text
additional  what is kept of the record beside them, as JSON
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import pyarrow as pa

from mining.places import no_place
from schemas.rows import Rejection
from schemas.settings import canonical_json

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
NOTHING_MORE = "{}"
_BATCH_ROWS, _BATCH_CHARS = 10_000, 2_000_000
_MOST_DETAIL_CHARS = 160


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
    place = no_place(Rejection("broken_record", clean_text(detail)[:_MOST_DETAIL_CHARS]))
    return image_id, place, part, position, None, NOTHING_MORE


def captions_of(value: Any) -> list[str]:
    """The captions in a field, one or a list of them; one that is missing or no text is empty."""
    values = value if isinstance(value, list) else [value]
    return [clean_text(one) if isinstance(one, str) else "" for one in values] or [""]


def id_of(value: Any) -> str | None:
    """An id as text: whole numbers and texts are ids, nothing else is."""
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        return None
    return clean_text(str(value))


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
    if isinstance(value, str):
        return clean_text(value)
    return value if value is None or isinstance(value, int | float) else clean_text(str(value))
