"""One sample of a shard: its key, its members, and how these are written to a tar and read from it.

A sample is one pair. Its members, always these and in this order: `.jpg` (or `.png`, `.webp`) the crop, not blanked;
`.mask.png` the mask in the crop's frame, 0 or 255; `.txt` the noun; `.json` everything else.
"""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, Protocol, cast, get_args

from maskmine.schemas.errors import IncompleteError
from maskmine.schemas.rows import CheckedSampleRow, SampleRow, UncheckedSampleRow
from maskmine.schemas.settings import canonical_json

FORMAT_VERSION = 3
"""Raised when members, their names or the keys of the .json change."""

CHECKED_VERSION = 4
"""That of sets whose pairs a verifier checked; all others are of `FORMAT_VERSION`, which more readers know."""

WHOLE_VERSION = 5
"""That of sets with negatives or corrections, whose samples have every key and whose index has every column."""

READABLE_VERSIONS = (1, 2, FORMAT_VERSION, CHECKED_VERSION, WHOLE_VERSION)
"""Version 2 added `source` and `additional` to every .json, and `source` to the index; version 3 added `lift`,
`evidence` and `confidence` to both, version 4 `presence` and `agreement`, version 5 `negatives` and `corrected`."""

ImageFormat = Literal["jpg", "png", "webp"]
IMAGE_FORMATS: tuple[ImageFormat, ...] = get_args(ImageFormat)

# Every sample's .json has exactly these keys, less those that later versions than its set's added.
RECORD_KEYS = frozenset(
    {
        *("image_id", "height_px", "width_px", "caption", "source", "additional", "noun", "lemma", "start", "end"),
        *("box_xyxy", "crop_xyxy", "box_crop_xyxy", "area_px", "similarity", "margin", "rank", "score", "label"),
        *("lift", "evidence", "confidence", "presence", "agreement", "negatives", "corrected"),
    }
)
# The keys that a format version added, for reading older ones.
_ADDED = {
    2: frozenset({"source", "additional"}),
    3: frozenset({"lift", "evidence", "confidence"}),
    4: frozenset({"presence", "agreement"}),
    5: frozenset({"negatives", "corrected"}),
}
# Anything else in an id could end a key early, leave the folder, or be unreadable to a WebDataset loader.
SAFE_ID_PATTERN = "[A-Za-z0-9_-]{1,64}"
"""The ids that `safe_id` leaves as they are."""
_SAFE_ID = re.compile(SAFE_ID_PATTERN)
_BLOCK_BYTES = 512  # a tar is made of blocks of this size
_NAME_BYTES, _MOST_IN_OCTAL = 100, 8**11 - 1  # what a header's field of the name holds, and that of the size


class Writer(Protocol):
    """A file, or anything else that bytes can be written to."""

    def write(self, content: bytes, /) -> int:
        """Write all of `content`; returns its length."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A pair as it is written: encoded crop and mask, the noun, and the record (see `RECORD_KEYS`)."""

    key: str
    image: bytes
    mask_png: bytes
    noun: str
    record: dict[str, object]


@dataclass(frozen=True, slots=True)
class StoredSample:
    """A pair read back from a shard: its row of the index, its members, and `span`, all of its bytes in the tar."""

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


def safe_id(image_id: str) -> str:
    """`image_id` where it can stand in a file name and a WebDataset key; else 16 hex digits of its SHA-256."""
    if _SAFE_ID.fullmatch(image_id):
        return image_id
    return hashlib.sha256(image_id.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def sample_key(image_id: str, number: int) -> str:
    """The key of an image's pair `number`: unique in the set, and the same whatever the filters let through."""
    return f"{safe_id(image_id)}-{number:03d}"


KEY_PATTERN = rf"^{_SAFE_ID.pattern}-[0-9]{{3,}}$"
"""What `sample_key` makes: the name of a file, and nothing that a path could take for more."""


def record_keys(version: int) -> frozenset[str]:
    """The keys of a sample's .json in a format version."""
    later = [keys for added, keys in _ADDED.items() if added > version]
    return RECORD_KEYS.difference(*later)


def index_type(version: int) -> Any:
    """The type of the rows of an index of a format version; those before 3 have fewer columns still."""
    if version >= WHOLE_VERSION:
        return SampleRow
    return CheckedSampleRow if version >= CHECKED_VERSION else UncheckedSampleRow


def why_no_score(score: str, version: int) -> str:
    """Why the pairs of a set of a format version have no `score`, and what to do, as the end of a message."""
    if score in _ADDED[3] and version < 3:
        return f"as format version {version} has none; mine again, or leave it out"
    if score in _ADDED[4]:
        return "as no verifier checked them; set `checks.verifier` and mine again, or leave it out"
    if score == "confidence":
        return (
            "as they were mined without a calibration; give one as `pairs.calibration` and mine again, or leave it out"
        )
    return "as no CLIP made them; leave it out"


def member_names(key: str, image_format: ImageFormat) -> tuple[str, str, str, str]:
    """The names of a sample's members, in the order in which they stand in the tar."""
    return (f"{key}.{image_format}", f"{key}.mask.png", f"{key}.txt", f"{key}.json")


def write_sample(file: Writer, sample: Sample, *, image_format: ImageFormat) -> int:
    """Append a sample to a tar that is being written; returns the bytes written, headers and padding included."""
    contents = (sample.image, sample.mask_png, sample.noun.encode(), canonical_json(sample.record).encode())
    return write_members(file, zip(member_names(sample.key, image_format), contents, strict=True))


def write_members(file: Writer, members: Iterable[tuple[str, bytes]]) -> int:
    """Append `(name, content)` members to a tar, at once; returns the bytes written, headers and padding included."""
    pieces: list[bytes] = []
    for name, content in members:
        pieces += (_tar_header(name, len(content)), content, b"\0" * (-len(content) % _BLOCK_BYTES))
    return file.write(b"".join(pieces))


def write_end_of_tar(file: Writer, *, size_bytes: int) -> int:
    """Close a tar of `size_bytes`: two empty blocks, then zeros up to a whole record, as tar(1) does."""
    padding = 2 * _BLOCK_BYTES
    padding += -(size_bytes + padding) % tarfile.RECORDSIZE
    return file.write(b"\0" * padding)


def parse_sample(span: bytes, row: SampleRow, *, path: str) -> StoredSample:
    """A sample from its bytes in the tar at `path`. Raises IncompleteError when they are not those of the row."""
    if is_damaged(span, row.crc32):
        raise IncompleteError(
            f"{path}: sample {row.key} is not what was written there; delete the shard's tar and run `maskmine mine` "
            "again, which writes it again"
        )
    try:
        image_format, image, mask_png, _, record_json = sample_members(span, row.key)
    except ValueError as error:
        raise IncompleteError(
            f"{path}: sample {row.key} is not where the index has it; delete the shard's tar and run `maskmine mine` "
            "again, which writes it again"
        ) from error
    return StoredSample(row, image_format, image, mask_png, record_json, span)


def is_damaged(span: bytes, crc32: int | None) -> bool:
    """Whether bytes of a tar have another CRC-32 than the index says; of sets before version 3 nothing is known."""
    return crc32 is not None and zlib.crc32(span) != crc32


def sample_members(span: bytes, key: str) -> tuple[ImageFormat, bytes, bytes, bytes, bytes]:
    """The crop's format and the contents of the members, in their order. Raises ValueError for other members."""
    members = _read_members(span)
    names = tuple(name for name, _ in members)
    for image_format in IMAGE_FORMATS:
        if names == member_names(key, image_format):
            image, mask_png, noun, record_json = (content for _, content in members)
            return image_format, image, mask_png, noun, record_json
    raise ValueError(f"the members are {', '.join(names) or 'missing'}, not those of sample {key}")


def _read_members(span: bytes) -> list[tuple[str, bytes]]:
    """Names and contents of the members, up to the first header that is not plain USTAR as `write_members` writes it.

    Parsed here because `tarfile` takes longer for the headers of a sample than a disk for all of its bytes.
    """
    members, start = [], 0
    while start + _BLOCK_BYTES <= len(span):
        # Fields of a USTAR header: name 0-100, size (octal) 124-135, magic 257-262, prefix of the name 345-500.
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


def _tar_header(name: str, size_bytes: int) -> bytes:
    """A USTAR header: owner, mode and time are fixed, so that the same samples always give the same bytes.

    Only name, size and checksum of a header differ, so these are put into one that tarfile made, which takes a
    tenth of its time; it makes those itself whose name or size does not fit into its own field.
    """
    encoded = name.encode()
    if not name.isascii() or len(encoded) > _NAME_BYTES or size_bytes > _MOST_IN_OCTAL or not encoded:
        return _made_by_tarfile(name, size_bytes)
    header = bytearray(_blank_header())
    header[: len(encoded)] = encoded
    header[124:135] = b"%011o" % size_bytes
    checksum = _blank_sum() + sum(encoded) + sum(header[124:135]) - 11 * ord("0")
    header[148:154] = b"%06o" % checksum
    return bytes(header)


def _made_by_tarfile(name: str, size_bytes: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = size_bytes
    info.mode = 0o644
    return info.tobuf(tarfile.USTAR_FORMAT)


@cache
def _blank_header() -> bytes:
    """That of an empty file without a name."""
    return _made_by_tarfile("", 0)


@cache
def _blank_sum() -> int:
    """The checksum of that: the sum of its bytes, with spaces for those of the checksum itself."""
    return int(_blank_header()[148:154], 8)


def part_name(part: int) -> str:
    """A part as files and messages name it, such as `00017`."""
    return f"{part:05d}"


def cell_name(part: int, suffix: str = "parquet") -> str:
    """The file name of a part's cell in the folder of a step, such as `00017.parquet`."""
    return f"{part_name(part)}.{suffix}"
