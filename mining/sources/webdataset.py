"""Captioned images in WebDataset tars, as img2dataset writes them: one tar is one part."""

from __future__ import annotations

import json
import posixpath
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import IO, Annotated, Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from mining.caption_entries import Entry, as_tables, broken, captions_of, kept_columns
from mining.places import Slice, no_place
from mining.source_files import SourceFile, list_files, open_source, source_root
from mining.stores import describe, scheme_of
from mining.tars import PICTURES, TarListing, TarSample, list_tar
from schemas.errors import InputError
from schemas.rows import Rejection
from schemas.settings import Settings

_MOST_TEXT_BYTES = 1 << 20
_STORED_AT_ONCE = 8
"""Tars of an object store that are read at a time; on a disk one is, for there reading them is work of one core."""


class Img2dataset(Settings):
    """WebDataset tars of pictures (.jpg, .jpeg, .png, .webp) with their captions (.txt) and metadata (.json).

    `files`: a tar, a folder of them or a pattern. The caption is the .txt, or with `caption_col` a field of the .json.
    An image's id is its key; `ids: tar_and_key` puts the tar's name before it, for sets whose tars use the same keys.
    A tar without its end mark was cut off: it is refused, or with `truncated: keep` its whole samples are used. Where
    img2dataset's .parquet lies beside a tar, the keys that it counts as a success and the tar lacks are rejected.
    """

    kind: Literal["img2dataset"]
    name: str | None = None
    files: str
    ids: Literal["key", "tar_and_key"] = "key"
    caption_col: str | None = None
    save_additional_columns: Annotated[tuple[str, ...], Field(strict=False)] = ()
    truncated: Literal["refuse", "keep"] = "refuse"
    per_image: Annotated[int, Field(ge=1)] | Literal["all"] = 1

    @property
    def place(self) -> str:
        """What messages call the source."""
        return self.files

    @property
    def root(self) -> str:
        """The folder that the tars' names are told from."""
        return source_root(self.files)

    def list_files(self) -> list[SourceFile]:
        """The tars. Raises InputError when there is none."""
        return list_files(self.files, suffixes=(".tar",))

    def check(self) -> None:
        """Raises InputError when there are no tars."""
        self.list_files()

    def read(self, *, images_per_part: int) -> Iterator[pa.Table]:
        """The entries (`mining/caption_entries.py`). Raises InputError when a tar cannot be read."""
        return as_tables(self._entries())

    def _entries(self) -> Iterator[Entry]:
        tars = self.list_files()
        at_once = 1 if scheme_of(self.files) == "file" else _STORED_AT_ONCE
        some = False
        for entry in _in_order(lambda part: self._of_tar(tars[part], part), len(tars), at_once=at_once):
            some = True
            yield entry
        if not some:
            raise InputError(f"{self.files}: no sample in any tar; there is nothing to mine")

    def _of_tar(self, tar: SourceFile, part: int) -> Iterator[Entry]:
        needs_json = self.caption_col is not None or self.save_additional_columns
        suffixes = {*PICTURES, *(() if self.caption_col else ("txt",)), *(("json",) if needs_json else ())}
        with open_source(tar.path) as file:
            listing = list_tar(file, path=tar.path, size_bytes=tar.size_bytes, wanted=suffixes.__contains__)
            self._refuse_cut(tar, listing)
            position = 0
            for key, sample in listing.samples.items():
                captions, more = self._texts(file, sample)
                for caption in captions:
                    yield self._id(tar, key), _place(tar, sample), part, position, caption, more
                    position += 1
        for number, key in enumerate(_lost(tar, listing), start=position):
            yield broken(self._id(tar, key), number, "img2dataset counts this key, the tar lacks it", part=part)

    def _refuse_cut(self, tar: SourceFile, listing: TarListing) -> None:
        if listing.end == "whole" or self.truncated == "keep":
            return
        how = "cut off" if listing.end == "cut" else "damaged"
        raise InputError(
            f"{tar.path}: {how} at byte {listing.end_offset:,}; get the tar again, or set `truncated: keep` to use its "
            f"first {len(listing.samples):,} samples"
        )

    def _id(self, tar: SourceFile, key: str) -> str:
        return key if self.ids == "key" else f"{tar.name.removesuffix('.tar')}/{key}"

    def _texts(self, file: IO[bytes], sample: TarSample) -> tuple[list[str], str]:
        record: Any = None
        if "json" in sample.members:
            try:
                record = json.loads(_text(file, sample, "json"))
            except (ValueError, RecursionError):
                record = None
        record = record if isinstance(record, dict) else {}
        more = kept_columns(record, self.save_additional_columns)
        if self.caption_col is not None:
            return captions_of(record.get(self.caption_col)), more
        return captions_of(_text(file, sample, "txt")), more


def _in_order(read: Callable[[int], Iterator[Entry]], count: int, *, at_once: int) -> Iterator[Entry]:
    """What `read` gives for 0, 1, … `count` - 1, in this order, however many are read at a time."""
    if at_once == 1:
        for number in range(count):
            yield from read(number)
        return
    waiting: deque[Future[list[Entry]]] = deque()
    with ThreadPoolExecutor(at_once) as pool:
        try:
            for number in range(count):
                waiting.append(pool.submit(lambda part: list(read(part)), number))
                if len(waiting) == at_once:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        finally:  # where one is refused, or nobody asks for more, those behind it are not begun
            for one in waiting:
                one.cancel()


def _text(file: IO[bytes], sample: TarSample, suffix: str) -> str:
    """What a member says; empty where there is none, or it is no text of a sensible size."""
    member = sample.members.get(suffix)
    if member is None or member.fault or member.size_bytes > _MOST_TEXT_BYTES:
        return ""
    file.seek(member.offset)
    return file.read(member.size_bytes).decode("utf-8-sig", "replace")


def _place(tar: SourceFile, sample: TarSample) -> str:
    if sample.faults:
        return no_place(Rejection("broken_record", sample.faults[0]))
    if sample.picture is None:
        return no_place(Rejection("missing_file", "the tar has no picture of this key"))
    _, member = sample.picture
    if member.fault:
        return no_place(Rejection("broken_record", member.fault))
    return str(Slice(tar.path, member.offset, member.size_bytes))


def _lost(tar: SourceFile, listing: TarListing) -> Iterator[str]:
    """The keys of images that img2dataset says it wrote, and that are not there."""
    beside = f"{posixpath.splitext(tar.path)[0]}.parquet"
    if describe(beside) is None:
        return
    with open_source(beside) as file:
        try:
            table = pq.ParquetFile(file)
            if not {"key", "status"} <= set(table.schema_arrow.names):
                return
            for batch in table.iter_batches(columns=["key", "status"], use_threads=False):
                for key, status in zip(batch["key"].to_pylist(), batch["status"].to_pylist(), strict=True):
                    if status == "success" and str(key) not in listing.samples:
                        yield str(key)
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{beside}: not a whole Parquet file; get it again, or delete it") from error
