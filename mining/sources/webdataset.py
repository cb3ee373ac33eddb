"""Captioned images in WebDataset tars, as img2dataset writes them: one tar is one part."""

from __future__ import annotations

import json
import logging
import posixpath
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import IO, Annotated, Any, ClassVar, Literal

import pyarrow as pa
from pydantic import Field

from maskmine.mining.sources.entries import NOTHING_MORE, Entry, broken, captions_of, kept_columns
from maskmine.mining.sources.files import FileSource, SourceFile, open_source
from maskmine.mining.sources.tar_headers import TarListing, TarSample, list_tar
from maskmine.mining.sources.text_files import plain_text
from maskmine.mining.storage.bounded.limits import Limits
from maskmine.mining.storage.bounded.parquet_child import StrangeParquet
from maskmine.mining.storage.locations import Slice, rejected_location
from maskmine.mining.storage.names import PICTURE_SUFFIXES, composed, utf8_name
from maskmine.mining.storage.prefetch import map_in_order
from maskmine.mining.storage.stores import describe, scheme_of
from maskmine.schemas.errors import InputError
from maskmine.schemas.rows import Rejection
from maskmine.schemas.settings import AnyPath

log = logging.getLogger(__name__)

_READ_ROWS = 10_000
_MAX_TEXT_BYTES = 1 << 20  # no caption or record is longer
_ENDS = {"cut": "cut off", "damaged": "damaged", "followed": "followed by something that is no tar"}
_STORED_AT_ONCE = 8
"""Tars of an object store that are read at a time; on a disk one is, for there reading them is work of one core."""


class Img2dataset(FileSource):
    """WebDataset tars of images with captions (.txt) and metadata (.json).

    A key ends at the first dot of a name; `x.rf.1.jpg` beside `x.rf.1.txt` are a sample of the key `x.rf.1`.
    Where img2dataset's .parquet lies beside a tar, the keys that it counts as a success and the tar lacks are rejected.
    """

    kind: Literal["img2dataset"]
    """WebDataset tars as img2dataset writes them."""
    name: str | None = None
    """Name of the source in samples and in `licences.captions`; its `kind` when null."""
    files: AnyPath
    """A tar, a folder of tars, or a pattern such as `web/*.tar`."""
    ids: Literal["key", "tar_and_key"] = "key"
    """What identifies an image: its `key`, or `tar_and_key` (the tar's name before the key) for sets whose tars use the
    same keys."""
    caption_col: str | None = None
    """Field of each sample's .json that holds the caption; null reads the .txt."""
    save_additional_columns: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Fields of the .json that are copied into the samples, such as `[url]`."""
    truncated: Literal["refuse", "keep"] = "refuse"
    """A tar without its end mark was cut off: `refuse` it, or `keep` its complete samples."""
    per_image: Annotated[int, Field(ge=1)] | Literal["all"] = 1
    """Captions read of each image, the first ones: a number, or `all`."""

    suffixes: ClassVar = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")  # all but the first are refused

    def _entries(self, images_per_part: int, limits: Limits) -> Iterator[Entry]:
        tars: Iterable[tuple[int, SourceFile]] = enumerate(self.list_files())
        if scheme_of(self.files) == "file":
            by_tar: Iterable[Iterable[Entry]] = (self._of_tar(part, tar, limits) for part, tar in tars)
        else:
            by_tar = map_in_order(
                lambda numbered: list(self._of_tar(*numbered, limits)),
                tars,
                threads=_STORED_AT_ONCE,
                ahead=_STORED_AT_ONCE - 1,
            )
        some = False
        for entry in chain.from_iterable(by_tar):
            some = True
            yield entry
        if not some:
            raise InputError(f"{self.files}: no sample in any tar; there is nothing to mine")

    def _of_tar(self, part: int, tar: SourceFile, limits: Limits) -> Iterator[Entry]:
        needs_json = self.caption_col is not None or self.save_additional_columns
        suffixes = {*PICTURE_SUFFIXES, *(() if self.caption_col else ("txt",)), *(("json",) if needs_json else ())}
        with open_source(tar.path) as file:
            wanted = suffixes.__contains__
            listing = list_tar(file, path=tar.path, size_bytes=tar.size_bytes, wanted=wanted, limits=limits)
            self._refuse_cut(tar, listing)
            position = 0
            for key, sample in listing.samples.items():
                for caption, location, more in self._of_sample(file, tar, sample):
                    yield self._id(tar, key), location, part, position, caption, more
                    position += 1
        if listing.leftovers:
            log.warning("%s: %d files that macOS or Windows left were passed over", tar.path, listing.leftovers)
        for number, key in enumerate(_lost(tar, listing, limits), start=position):
            yield broken(self._id(tar, key), number, "img2dataset counts this key, the tar lacks it", part=part)

    def _refuse_cut(self, tar: SourceFile, listing: TarListing) -> None:
        if listing.end == "whole":
            return
        how = f"{_ENDS[listing.end]} at byte {listing.end_offset:,}"
        if self.truncated == "keep":
            log.warning("%s: %s; what lies before it is used", tar.path, how)
            return
        raise InputError(
            f"{tar.path}: {how}; get the tar again, or set `truncated: keep` to use its "
            f"first {len(listing.samples):,} samples"
        )

    def _id(self, tar: SourceFile, key: str) -> str:
        return key if self.ids == "key" else f"{utf8_name(tar.name).removesuffix('.tar')}/{key}"

    def _of_sample(self, file: IO[bytes], tar: SourceFile, sample: TarSample) -> Iterator[tuple[str, str, str]]:
        """`(caption, location, additional)` for each caption; a broken text or record makes the sample a broken one."""
        location, more = _location(tar, sample), NOTHING_MORE
        record: Any = None
        try:
            if "json" in sample.members:
                record = _record(_text(file, sample, "json"))
                more = kept_columns(record, self.save_additional_columns)
            elif self.save_additional_columns:
                more = kept_columns({}, self.save_additional_columns)
            if self.caption_col is not None:
                captions = captions_of((record or {}).get(self.caption_col))
            else:
                captions = captions_of(_text(file, sample, "txt"))
        except ValueError as error:
            captions, location = [""], rejected_location(Rejection("broken_record", str(error)))
        for caption in captions:
            yield caption, location, more


def _record(text: str) -> dict[str, Any]:
    """The object of a .json. Raises ValueError, with what is wrong, when it holds none."""
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict):
        raise ValueError("the .json of this key is no JSON object")
    return record


def _text(file: IO[bytes], sample: TarSample, suffix: str) -> str:
    """The text of a member, empty where there is none. Raises ValueError, with what is wrong, when it is no text."""
    member = sample.members.get(suffix)
    if member is None:
        return ""
    if member.fault:
        raise ValueError(member.fault)
    if member.size_bytes > _MAX_TEXT_BYTES:
        raise ValueError(f"the .{suffix} of this key has more than {_MAX_TEXT_BYTES:,} bytes")
    file.seek(member.offset)
    return plain_text(file.read(member.size_bytes), name=f".{suffix} of this key")


def _location(tar: SourceFile, sample: TarSample) -> str:
    if sample.faults:
        return rejected_location(Rejection("broken_record", sample.faults[0]))
    member = sample.image
    if member is None:
        return rejected_location(Rejection("missing_file", "the tar has no picture of this key"))
    if member.fault:
        return rejected_location(Rejection("broken_record", member.fault))
    return str(Slice(tar.path, member.offset, member.size_bytes, member.suffix))


def _lost(tar: SourceFile, listing: TarListing, limits: Limits) -> Iterator[str]:
    """The keys of images that img2dataset says it wrote, and that are not there."""
    beside = f"{posixpath.splitext(tar.path)[0]}.parquet"
    if describe(beside) is None:
        return
    with open_source(beside) as file:
        try:
            table = StrangeParquet(file, beside, ["key", "status"], limits)
            if not {"key", "status"} <= set(table.about().columns):
                return
            for batch, _ in table.batches(_READ_ROWS):
                for key, status in zip(batch["key"].to_pylist(), batch["status"].to_pylist(), strict=True):
                    if status == "success" and composed(str(key)) not in listing.samples:
                        yield str(key)
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{beside}: not a whole Parquet file; get it again, or delete it") from error
