"""Captions in tables: Parquet, JSON lines, CSV and TSV, with img2dataset's names for the columns."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Annotated, Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, model_validator

from mining.caption_entries import Entry, as_tables, broken, captions_of, clean_text, id_of, kept_columns
from mining.places import no_place
from mining.source_files import (
    SourceFile,
    check_images,
    column_missing,
    joined,
    list_files,
    one_line_parquet,
    open_source,
    source_root,
)
from schemas.errors import InputError
from schemas.rows import Rejection
from schemas.settings import Settings

Record = dict[str, Any] | str
"""A row of a table, or what is wrong with it."""

TableKind = Literal["parquet", "jsonl", "csv", "tsv"]

_SUFFIXES = {
    "parquet": (".parquet",),
    "jsonl": (".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz"),
    "csv": (".csv", ".csv.gz"),
    "tsv": (".tsv", ".tsv.gz"),
}
_MOST_LINE_BYTES = 16_000_000
# a file is read a buffer at a time; with `pre_buffer`, which is Arrow's default, all its row groups are read ahead
_READ_ROWS, _BUFFER_BYTES = 2_000, 1 << 20


class TableCaptions(Settings):
    """One record a row: the image's file or URL, its caption or a list of them.

    `files`: a file, a folder or a pattern; JSON lines, CSV and TSV also as `.gz`. `path_col` names the column of the
    pictures' paths, which start from the folder `images`, or else from that of the table; `url_col` that of URLs. With
    neither the table only says something of images that another source lists, and `id_col` is needed. Without
    `id_col` the path or the URL is the image's id; rows of the same one are captions of one image. The first
    `per_image` captions of an image are read. What is in `save_additional_columns` goes into the samples.
    """

    kind: TableKind
    name: str | None = None
    files: str
    images: str | None = None
    id_col: str | None = None
    path_col: str | None = None
    url_col: str | None = None
    caption_col: str = "caption"
    save_additional_columns: Annotated[tuple[str, ...], Field(strict=False)] = ()
    per_image: Annotated[int, Field(ge=1)] | Literal["all"] = 1

    @model_validator(mode="after")
    def _names_the_images(self) -> TableCaptions:
        if self.path_col and self.url_col:
            raise ValueError("`path_col` and `url_col` are both given; leave one out")
        if not (self.path_col or self.url_col or self.id_col):
            raise ValueError("nothing names the images; give `path_col`, `url_col`, or `id_col` of another source's")
        return self

    @property
    def place(self) -> str:
        """What messages call the source."""
        return self.files

    @property
    def root(self) -> str:
        """The folder that paths of pictures are told from."""
        return self.images or source_root(self.files)

    def list_files(self) -> list[SourceFile]:
        """The tables. Raises InputError when there is none."""
        return list_files(self.files, suffixes=_SUFFIXES[self.kind])

    def check(self) -> None:
        """Raises InputError when the tables, or the folder of the images, are not there."""
        self.list_files()
        check_images(self.images)

    def read(self, *, images_per_part: int) -> Iterator[pa.Table]:
        """The entries (`mining/caption_entries.py`). Raises InputError when a table cannot be read."""
        return as_tables(self._entries())

    def _entries(self) -> Iterator[Entry]:
        position = usable = 0
        for file in self.list_files():
            for number, record in self._records(file.path):
                for entry in self._of_record(record, f"{file.name}#{number}", file, position):
                    usable += entry[4] is not None
                    yield entry
                    position += 1
        if not position:
            raise InputError(f"{self.files}: no row in it; there is nothing to mine")
        if not usable:
            used = ", ".join(f"`{setting}: {column}`" for column, setting in self._columns().items())
            raise InputError(f"{self.files}: no row can be used with {used}; check the names of the columns")

    def _columns(self) -> dict[str, str]:
        """The columns that are read, with the settings that name them."""
        named = dict.fromkeys(self.save_additional_columns, "save_additional_columns")
        for setting in ("caption_col", "url_col", "path_col", "id_col"):
            if column := getattr(self, setting):
                named[column] = setting
        return named

    def _records(self, path: str) -> Iterator[tuple[int, Record]]:
        """The rows of a table with their numbers, those of text files as lines."""
        if self.kind == "parquet":
            return _parquet_records(path, self._columns())
        if self.kind == "jsonl":
            return _json_records(path)
        return _csv_records(path, self._columns(), delimiter="\t" if self.kind == "tsv" else ",")

    def _of_record(self, record: Record, nameless: str, file: SourceFile, position: int) -> Iterator[Entry]:
        if isinstance(record, str):
            yield broken(nameless, position, record)
            return
        image_id = id_of(record.get(self.id_col)) if self.id_col else None
        path = self._path(record, file)
        if self.id_col is None:
            named = record.get(self.path_col or self.url_col or "")
            image_id = clean_text(named) if isinstance(named, str) and named else nameless
        if image_id is None:
            yield broken(nameless, position, f"no usable `{self.id_col}`")
            return
        more = kept_columns(record, self.save_additional_columns)
        for n, caption in enumerate(captions_of(record.get(self.caption_col))):
            yield image_id, path, None, position + n, caption, more

    def _path(self, record: dict[str, Any], file: SourceFile) -> str | None:
        column = self.path_col or self.url_col
        if column is None:
            return None
        value = record.get(column)
        if not isinstance(value, str) or not value or "\0" in value:
            return no_place(Rejection("missing_file", f"the record's `{column}` names no file"))
        value = clean_text(value.strip())
        if self.url_col:
            return value if "://" in value else no_place(Rejection("missing_file", f"`{column}` is no URL"))
        return joined(self.images or file.path.rpartition("/")[0], value)


def _parquet_records(path: str, columns: Mapping[str, str]) -> Iterator[tuple[int, Record]]:
    with open_source(path) as file, one_line_parquet(path):
        table = pq.ParquetFile(file, buffer_size=_BUFFER_BYTES, pre_buffer=False)
        known = table.schema_arrow.names
        for column, setting in columns.items():
            if column not in known:
                raise column_missing(path, column, known, setting=setting)
        number = 0
        for batch in table.iter_batches(batch_size=_READ_ROWS, columns=list(columns), use_threads=False):
            values = [_listed(batch.column(column)) for column in columns]
            for row in zip(*values, strict=True):
                yield number, dict(zip(columns, row, strict=True))
                number += 1


def _json_records(path: str) -> Iterator[tuple[int, Record]]:
    with open_source(path) as raw, _unzipped(raw, path) as file:
        number = 0
        while line := file.readline(_MOST_LINE_BYTES):
            number += 1
            if len(line) == _MOST_LINE_BYTES:
                raise InputError(f"{path}: line {number} is longer than {_MOST_LINE_BYTES:,} bytes; is it JSON lines?")
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line.strip():
                yield number, _json_record(line, number)


def _json_record(line: bytes, number: int) -> Record:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return f"line {number} is no JSON"
    return record if isinstance(record, dict) else f"line {number} is no JSON object"


def _csv_records(path: str, columns: Mapping[str, str], *, delimiter: str) -> Iterator[tuple[int, Record]]:
    with open_source(path) as raw, _unzipped(raw, path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="replace", newline="")
        rows = csv.reader(text, delimiter=delimiter)
        try:
            header = next(rows, [])
            for column, setting in columns.items():
                if header.count(column) > 1:
                    raise InputError(f"{path}: two columns are called `{column}`; rename one")
                if column not in header:
                    raise column_missing(path, column, header, setting=setting)
            for row in rows:
                if row and len(row) != len(header):
                    yield rows.line_num, f"line {rows.line_num} has {len(row)} fields, the header has {len(header)}"
                elif row:
                    yield rows.line_num, dict(zip(header, row, strict=True))
        except csv.Error as error:
            raise InputError(f"{path}, line {rows.line_num}: {error}; is a quote not closed before it?") from error


@contextmanager
def _unzipped(file: IO[bytes], path: str) -> Iterator[IO[bytes]]:
    """The file, or what a `.gz` holds, as a stream."""
    if not path.endswith(".gz"):
        yield file
        return
    try:
        with gzip.open(file) as unzipped:
            yield unzipped  # type: ignore[misc]
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path}: not a whole gzip file ({str(error)[:80]}); get the file again") from error


def _listed(column: pa.Array) -> list[Any]:
    """The values; a text that is no UTF-8 has U+FFFD where it breaks."""
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:
        return [value.decode("utf-8", "replace") if value else value for value in column.cast(pa.binary()).to_pylist()]
