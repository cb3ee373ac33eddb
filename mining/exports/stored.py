"""A sample as it lies in a shard: its members out of its bytes in the tar, checked against what the index says."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, cast, get_args

from schemas.errors import IncompleteError
from schemas.rows import SampleRow
from schemas.sample import ImageFormat, member_names

_BLOCK_BYTES = 512
_FORMATS: tuple[ImageFormat, ...] = get_args(ImageFormat)


@dataclass(frozen=True, slots=True)
class StoredSample:
    """A pair of the run: its row of the index, its members, and `span`, all of its bytes in the tar."""

    row: SampleRow
    image_format: ImageFormat
    image: bytes
    mask_png: bytes
    record_json: bytes
    span: bytes

    @property
    def record(self) -> dict[str, Any]:
        """The content of its `.json`; a new dictionary each time."""
        return cast("dict[str, Any]", json.loads(self.record_json))


def parse_sample(span: bytes, row: SampleRow, *, place: str) -> StoredSample:
    """A sample from its bytes in the tar at `place`. Raises IncompleteError when they are not those of the row."""
    members = _members(span)
    names = tuple(name for name, _ in members)
    image_format = next((known for known in _FORMATS if names == member_names(row.key, known)), None)
    if image_format is None:
        raise IncompleteError(
            f"{place}: sample {row.key} is not where the index has it; delete the shard's tar and run `maskmine mine` "
            "again, which makes it anew"
        )
    image, mask_png, _, record_json = (content for _, content in members)
    return StoredSample(row, image_format, image, mask_png, record_json, span)


def _members(span: bytes) -> list[tuple[str, bytes]]:
    """Names and contents as our own writer lays them down: plain USTAR headers; what is odd ends the list.

    By hand, because `tarfile` takes longer for the headers of a sample than a disk for all of its bytes.
    """
    members, start = [], 0
    while start + _BLOCK_BYTES <= len(span):
        header = span[start : start + _BLOCK_BYTES]
        prefix, name = header[345:500].rstrip(b"\0"), header[:100].rstrip(b"\0")
        digits = header[124:135]
        if header[257:262] != b"ustar" or not digits.isdigit():
            break
        size_bytes, start = int(digits, 8), start + _BLOCK_BYTES
        if start + size_bytes > len(span):
            break
        path = prefix + b"/" + name if prefix else name
        members.append((path.decode("utf-8", "replace"), span[start : start + size_bytes]))
        start += size_bytes + -size_bytes % _BLOCK_BYTES
    return members
