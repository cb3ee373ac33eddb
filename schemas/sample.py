"""One sample of a shard: its key, its members, and its bytes in the tar.

A sample is one pair. Its members, always these and in this order: `.jpg` (or `.png`, `.webp`) the crop, not blanked;
`.mask.png` the mask in the crop's frame, 0 or 255; `.txt` the noun; `.json` everything else.
"""

from __future__ import annotations

import hashlib
import re
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Protocol

from schemas.settings import canonical_json

FORMAT_VERSION = 2
READABLE_VERSIONS = (1, 2)
"""Version 2 added `source` and `additional` to every .json, and `source` to the index."""

ImageFormat = Literal["jpg", "png", "webp"]

# Every sample's .json has exactly these keys.
RECORD_KEYS = frozenset(
    {
        "additional",
        "area_px",
        "box_crop_xyxy",
        "box_xyxy",
        "caption",
        "crop_xyxy",
        "end",
        "height_px",
        "image_id",
        "label",
        "lemma",
        "margin",
        "noun",
        "rank",
        "score",
        "similarity",
        "source",
        "start",
        "width_px",
    }
)
_ADDED = {2: frozenset({"source", "additional"})}
_SAFE_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_BLOCK_BYTES = 512


class Writer(Protocol):
    """What a shard is written to: a file, or anything else that takes bytes."""

    def write(self, content: bytes, /) -> int:
        """Take all of `content`; returns its length."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A pair as it is written: encoded crop and mask, the noun, and the record (see `RECORD_KEYS`)."""

    key: str
    image: bytes
    mask_png: bytes
    noun: str
    record: dict[str, object]


def safe_id(image_id: str) -> str:
    """`image_id` where it can stand in a file name and a WebDataset key; else 16 hex digits of its SHA-256."""
    if _SAFE_ID.fullmatch(image_id):
        return image_id
    return hashlib.sha256(image_id.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def sample_key(image_id: str, number: int) -> str:
    """The key of an image's pair `number`: unique in the set, and the same whatever the filters let through."""
    return f"{safe_id(image_id)}-{number:03d}"


def record_keys(version: int) -> frozenset[str]:
    """The keys of a sample's .json in a format version."""
    later = [keys for added, keys in _ADDED.items() if added > version]
    return RECORD_KEYS.difference(*later)


def member_names(key: str, image_format: ImageFormat) -> tuple[str, str, str, str]:
    """The names of a sample's members, in the order in which they stand in the tar."""
    return (f"{key}.{image_format}", f"{key}.mask.png", f"{key}.txt", f"{key}.json")


def write_sample(file: Writer, sample: Sample, *, image_format: ImageFormat) -> int:
    """Append a sample to a tar that is being written; returns the bytes written, headers and padding included."""
    contents = (sample.image, sample.mask_png, sample.noun.encode(), canonical_json(sample.record).encode())
    return write_members(file, zip(member_names(sample.key, image_format), contents, strict=True))


def write_members(file: Writer, members: Iterable[tuple[str, bytes]]) -> int:
    """Append `(name, content)` members to a tar; returns the bytes written, headers and padding included."""
    written = 0
    for name, content in members:
        written += file.write(_tar_header(name, len(content)))
        written += file.write(content)
        written += file.write(b"\0" * (-len(content) % _BLOCK_BYTES))
    return written


def write_end_of_tar(file: Writer, *, size_bytes: int) -> int:
    """Close a tar of `size_bytes`: two empty blocks, then zeros up to a whole record, as tar(1) does."""
    padding = 2 * _BLOCK_BYTES
    padding += -(size_bytes + padding) % tarfile.RECORDSIZE
    return file.write(b"\0" * padding)


def _tar_header(name: str, size_bytes: int) -> bytes:
    # Owner, mode and time are fixed: the same samples give the same bytes whoever writes them, and whenever.
    info = tarfile.TarInfo(name)
    info.size = size_bytes
    info.mode = 0o644
    return info.tobuf(tarfile.USTAR_FORMAT)
