"""WebDataset tars: which samples are in one, and where their members lie; only headers are read.

Nothing is unpacked, so names and links can lead nowhere.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import IO, Literal

from maskmine.mining.sources.entries import clean_text
from maskmine.mining.sources.tar_members import BLOCK_BYTES, BadHeaderError, CutError, Header, TarMembers
from maskmine.mining.storage.bounded.limits import USUAL, Limits
from maskmine.mining.storage.names import PICTURE_SUFFIXES, composed, is_leftover, utf8_name
from maskmine.schemas.errors import InputError

End = Literal["whole", "cut", "damaged", "followed"]
"""How a tar ends: with its mark, in the middle, at what is no header, or with what is no tar behind the mark."""

_SCANNED_BYTES = 1 << 20  # behind an end mark, at a time
_TEXT_SUFFIXES = ("txt", "json")


@dataclass(frozen=True, slots=True)
class Member:
    """Where a member's content lies; `suffix` is its name behind the key, `fault` says why it cannot be used."""

    offset: int
    size_bytes: int
    suffix: str
    fault: str | None = None


@dataclass(frozen=True, slots=True)
class TarSample:
    """The members of a key, by their lower-case suffixes; `faults` say what is wrong with the whole."""

    members: dict[str, Member] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    @property
    def image(self) -> Member | None:
        """The image."""
        return next((self.members[suffix] for suffix in PICTURE_SUFFIXES if suffix in self.members), None)

    @property
    def has_text(self) -> bool:
        """Whether a caption may be in it."""
        return any(suffix in self.members for suffix in _TEXT_SUFFIXES)


@dataclass(frozen=True, slots=True)
class TarListing:
    """The samples of a tar by their keys, in the order of their first members; how it ends, and where.

    `leftovers` counts what macOS and others left in it, which is passed over.
    """

    samples: dict[str, TarSample]
    end: End
    end_offset: int
    leftovers: int = 0


@dataclass(slots=True)
class _Found:
    """What has been read of a tar: the members by WebDataset's key and by what stands before the last suffix."""

    groups: dict[str, dict[str, TarSample]] = field(default_factory=dict)
    leftovers: int = 0
    members: int = 0


class _TooManyError(Exception):
    """The tar has more members than the limit."""


def list_tar(
    file: IO[bytes], *, path: str, size_bytes: int, wanted: Callable[[str], bool], limits: Limits = USUAL
) -> TarListing:
    """The samples of an uncompressed tar; members with other suffixes than `wanted` are passed over.

    The members of a key may stand anywhere. Tars that were joined (`cat a.tar b.tar`) are read to the end of the last
    one. Raises InputError when the file is no tar, or has more members than the limit.
    """
    _refuse_compressed(file, path)
    found = _Found()
    start: int | None = 0
    end: End = "whole"
    offset = 0
    while start is not None:
        try:
            end, offset = _read_archive(file, start, found, size_bytes=size_bytes, wanted=wanted, limits=limits)
        except BadHeaderError as error:
            raise InputError(f"{path}: not a tar ({error}); `captions.files` names WebDataset tars") from error
        except _TooManyError:
            raise InputError(
                f"{path}: more than {limits.max_tar_members:,} members; cut it into several tars, or raise "
                "`limits.max_tar_members`"
            ) from None
        if end == "damaged" and offset == start > 0:
            end = "followed"
        start = _next_archive(file, offset) if end == "whole" else None
    return TarListing(_samples(found.groups), end, offset, found.leftovers)


def _read_archive(
    file: IO[bytes], start: int, found: _Found, *, size_bytes: int, wanted: Callable[[str], bool], limits: Limits
) -> tuple[End, int]:
    """Read the headers from `start` to the first end mark; how the archive ends, and where. Raises BadHeaderError."""
    members = TarMembers(file, start, size_bytes)
    try:
        for header in members:
            found.members += 1
            if found.members > limits.max_tar_members:
                raise _TooManyError
            _add(found, header, size_bytes=size_bytes, wanted=wanted)
    except CutError as error:
        return "damaged" if error.rest_bytes > 1 else "cut", error.offset
    except BadHeaderError as error:
        if not found.members and not start:
            raise
        return "damaged", error.offset
    return "whole", members.offset


def _next_archive(file: IO[bytes], offset: int) -> int | None:
    """Where something follows the end mark at `offset`; None where only zeros do."""
    file.seek(offset)
    while block := file.read(_SCANNED_BYTES):
        zeros = len(block) - len(block.lstrip(b"\0"))
        if zeros < len(block):
            return offset + zeros - zeros % BLOCK_BYTES
        offset += len(block)
    return None


def _refuse_compressed(file: IO[bytes], path: str) -> None:
    start = file.read(4)
    file.seek(0)
    if start[:2] == b"\x1f\x8b" or start in (b"\x28\xb5\x2f\xfd", b"BZh9", b"\xfd7zX"):
        raise InputError(f"{path}: a compressed tar, in which no picture can be found by its place; unpack it to .tar")


def _add(found: _Found, info: Header, *, size_bytes: int, wanted: Callable[[str], bool]) -> None:
    name = composed(clean_text(utf8_name(info.name))).replace("\\", "/").removeprefix("./")
    if info.kind == "folder":
        return
    if is_leftover(name):
        found.leftovers += 1
        return
    key, suffixes = _split(name)
    before, _, suffix = suffixes.rpartition(".")
    suffix = suffix.lower()
    if not wanted(suffix):
        return
    sample = found.groups.setdefault(key, {}).setdefault(before, TarSample())
    if suffix in sample.members:
        sample.faults.append(f"two members .{suffixes} of this key")
        return
    fault = None
    if info.kind != "file":
        fault = f"a link, a device or a sparse file in the place of the .{suffixes}"
    elif info.offset + info.size_bytes > size_bytes:
        fault = "the tar ends inside this member"
    sample.members[suffix] = Member(info.offset, info.size_bytes, suffixes, fault)


def _split(name: str) -> tuple[str, str]:
    """A member's key and what follows it: as in WebDataset, the first dot of the last name divides them."""
    folder, last = posixpath.split(name)
    dots = len(last) - len(last.lstrip("."))  # of a hidden file
    stem, _, suffixes = last[dots:].partition(".")
    return posixpath.join(folder, last[:dots] + stem), suffixes


def _samples(groups: dict[str, dict[str, TarSample]]) -> dict[str, TarSample]:
    samples: dict[str, TarSample] = {}
    for key, group in groups.items():
        if group.keys() == {""}:
            samples[key] = group[""]
        else:
            samples.update(_divided(key, group))
    first = {key: min(member.offset for member in sample.members.values()) for key, sample in samples.items()}
    return {key: samples[key] for key in sorted(samples, key=first.__getitem__)}


def _divided(key: str, group: dict[str, TarSample]) -> Iterator[tuple[str, TarSample]]:
    """The samples of a WebDataset key some of whose suffixes have dots themselves.

    `x.rf.1.jpg` and `x.rf.1.txt` (Roboflow, times, versions) are a sample of their own, `x.rf.1`. For others
    WebDataset's reading holds: `x.left.jpg` and `x.txt` are one sample, and `x.mask.png` beside `x.jpg` is a further
    member of `x`.
    """
    plain = group.get("", TarSample())
    dotted = {before: sample for before, sample in group.items() if before}
    texts = {suffix for sample in group.values() for suffix in sample.members if suffix in _TEXT_SUFFIXES}
    caption = "txt" if "txt" in texts else "json"  # of both, the .txt has it
    own = {before: sample for before, sample in dotted.items() if sample.image and caption in sample.members}
    pictures = {before: sample for before, sample in dotted.items() if sample.image and before not in own}
    others = {before: sample for before, sample in dotted.items() if not sample.image}
    yield from ((f"{key}.{before}", sample) for before, sample in own.items())
    if plain.image:
        # What is left belongs to it: a text that it lacks, or members that nobody asked for.
        alone = [] if plain.has_text or len(others) != 1 else [*others.values()]
        yield key, _joined([plain, *alone])
    elif plain.has_text and len(pictures) > 1:
        names = ", ".join(f".{sample.image.suffix}" for sample in pictures.values() if sample.image)
        yield key, TarSample(plain.members, [*plain.faults, f"{len(pictures)} pictures of this key: {names}"])
    elif plain.has_text:
        yield key, _joined([plain, *pictures.values()])
    elif len(pictures) == 1 == len(others) and not own:
        yield key, _joined([*pictures.values(), *others.values()])
    else:
        yield from ((f"{key}.{before}", sample) for before, sample in (pictures | others).items())


def _joined(samples: list[TarSample]) -> TarSample:
    members = {suffix: member for sample in reversed(samples) for suffix, member in sample.members.items()}
    return TarSample(members, [fault for sample in samples for fault in sample.faults])
