"""WebDataset tars: which samples are in one, and where their members lie; only headers are read.

Nothing is unpacked, so names and links can lead nowhere.
"""

from __future__ import annotations

import posixpath
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO, Any, Literal

from mining.caption_entries import clean_text
from schemas.errors import InputError

End = Literal["whole", "cut", "damaged"]

PICTURES = ("jpg", "jpeg", "png", "webp")
_MOST_HEADER_BYTES = 1 << 20
_BLOCK_BYTES = 512


@dataclass(frozen=True, slots=True)
class Member:
    """Where a member's content lies; `fault` says why it cannot be used."""

    offset: int
    size_bytes: int
    fault: str | None = None


@dataclass(frozen=True, slots=True)
class TarSample:
    """The members of a key, by their lower-case suffixes; `fault` says what is wrong with the whole."""

    members: dict[str, Member] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    @property
    def picture(self) -> tuple[str, Member] | None:
        """The suffix and the place of the picture."""
        return next(((suffix, self.members[suffix]) for suffix in PICTURES if suffix in self.members), None)


@dataclass(frozen=True, slots=True)
class TarListing:
    """The samples of a tar by their keys, in the order of their first members; how it ends, and where."""

    samples: dict[str, TarSample]
    end: End
    end_offset: int


def list_tar(file: IO[bytes], *, path: str, size_bytes: int, wanted: Callable[[str], bool]) -> TarListing:
    """The samples of an uncompressed tar; members with other suffixes than `wanted` are passed over.

    The members of a key may stand anywhere. Raises InputError when the file is no tar.
    """
    _refuse_compressed(file, path)
    samples: dict[str, TarSample] = {}
    end: End = "whole"
    offset = 0
    try:
        with tarfile.open(fileobj=_Headers(file), mode="r:") as tar:  # type: ignore[call-overload]
            while (info := tar.next()) is not None:
                tar.members = []
                _add(samples, info, size_bytes=size_bytes, wanted=wanted)
            offset = tar.offset
            file.seek(offset)
            block = file.read(_BLOCK_BYTES)
            end = "whole" if len(block) == _BLOCK_BYTES and not any(block) else "damaged" if len(block) > 1 else "cut"
    except tarfile.ReadError as error:
        if not samples and size_bytes and "unexpected end" not in str(error):
            raise InputError(
                f"{path}: not a tar ({str(error)[:80]}); `captions.files` names WebDataset tars"
            ) from error
        end, offset = "cut", size_bytes
    return TarListing(samples, end, offset)


class _Headers:
    """A file from which tarfile may read headers: whatever a header says, no more than a megabyte is read at once."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.seek, self.tell, self.close = file.seek, file.tell, lambda: None

    def read(self, size_bytes: int = -1) -> bytes:
        if not 0 <= size_bytes <= _MOST_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size_bytes} bytes")
        return self._file.read(size_bytes)


def _refuse_compressed(file: IO[bytes], path: str) -> None:
    start = file.read(4)
    file.seek(0)
    if start[:2] == b"\x1f\x8b" or start in (b"\x28\xb5\x2f\xfd", b"BZh9", b"\xfd7zX"):
        raise InputError(f"{path}: a compressed tar, in which no picture can be found by its place; unpack it to .tar")


def _add(samples: dict[str, TarSample], info: Any, *, size_bytes: int, wanted: Callable[[str], bool]) -> None:
    folder, name = posixpath.split(clean_text(info.name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")))
    stem, _, suffix = name.partition(".")
    suffix = suffix.lower()
    if info.isdir() or not wanted(suffix):
        return
    sample = samples.setdefault(posixpath.join(folder, stem).removeprefix("./"), TarSample())
    if suffix in sample.members:
        sample.faults.append(f"two members .{suffix} of this key")
        return
    fault = None
    if not info.isreg() or info.issparse():
        fault = "a link, a device or a sparse file in the place of the picture"
    elif info.offset_data + info.size > size_bytes:
        fault = "the tar ends inside this member"
    sample.members[suffix] = Member(info.offset_data, info.size, fault)
