"""Captions in tables: Parquet, JSON, CSV and TSV, with img2dataset's names for the columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from maskmine.mining.sources.delimited import Asked, Quoting, delimited_records, dialect_of
from maskmine.mining.sources.entries import Entry, broken, captions_of, id_of, kept_columns, whole_text
from maskmine.mining.sources.files import (
    FileSource,
    SourceFile,
    check_images,
    column_missing,
    is_url,
    list_files,
    one_line_parquet,
    open_source,
    source_root,
)
from maskmine.mining.sources.json_records import LAYOUT_NAMES, json_layout, json_records
from maskmine.mining.sources.named_files import named_file
from maskmine.mining.sources.text_files import COMPRESSED_SUFFIXES, Encoding
from maskmine.mining.sources.values import parquet_values, shown, typeless, typeless_id
from maskmine.mining.storage.bounded.limits import Limits
from maskmine.mining.storage.bounded.parquet_child import StrangeParquet
from maskmine.mining.storage.locations import rejected_location
from maskmine.mining.storage.stores import scheme_of
from maskmine.mining.storage.urls import URL_SCHEMES
from maskmine.schemas.errors import InputError
from maskmine.schemas.rows import Rejection
from maskmine.schemas.settings import AnyPath

Record = dict[str, Any] | str
"""A row of a table, or what is wrong with it."""

TableKind = Literal["parquet", "jsonl", "csv", "tsv"]

TABLE_SUFFIXES: Mapping[TableKind, tuple[str, ...]] = {
    "parquet": (".parquet",),
    "jsonl": tuple(f"{suffix}{packed}" for suffix in (".jsonl", ".ndjson") for packed in COMPRESSED_SUFFIXES),
    "csv": tuple(f".csv{packed}" for packed in COMPRESSED_SUFFIXES),
    "tsv": tuple(f".tsv{packed}" for packed in COMPRESSED_SUFFIXES),
}
"""Files of a folder that are read as tables of a kind."""
_TEXT_ONLY = ("delimiter", "quoting", "column_names")
_TOLD_FILES = 8  # further ones are opened only when they are read
_READ_ROWS = 2_000


class TableCaptions(FileSource):
    """A table with one record a row: the image's path or URL, and its caption or a list of captions.

    A table with neither `path_col` nor `url_col` adds captions to images that another source lists, by `id_col`.
    """

    kind: TableKind
    """Format of the tables: `jsonl` has an object a line, or a list of objects; all but `parquet` may be compressed
    (gzip, bzip2, xz, zstd)."""
    name: str | None = None
    """Name of the source in samples and in `licences.captions`; its `kind` when null."""
    files: AnyPath
    """A table, a folder of tables, or a pattern."""
    images: AnyPath | None = None
    """Folder that the paths in `path_col` are relative to; the table's own folder when null."""
    outside: bool = False
    """Whether `path_col` may name images outside of that folder: by absolute paths, `..` or other buckets."""
    id_col: str | None = None
    """Column of image ids; null uses the path or URL. Rows of the same id are captions of one image. Whole numbers of
    any type are the same id (1, 1.0, b"1")."""
    path_col: str | None = None
    """Column of image paths; give either this or `url_col`."""
    url_col: str | None = None
    """Column of image URLs, which are read only with `maskmine mine --fetch allow`."""
    caption_col: str = "caption"
    """Column of captions, each a text, a record with one (`raw`, `caption`, `text`, …), or a list of these."""
    save_additional_columns: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Columns that are copied into the samples."""
    per_image: Annotated[int, Field(ge=1)] | Literal["all"] = 1
    """Captions read of each image, the first ones with text: a number, or `all`."""
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] | None = None
    """Character between the fields of `csv` and `tsv`; null finds it out among comma, semicolon, tab and bar, by the
    names of the columns."""
    quoting: Quoting | None = None
    """Quotes in `csv` and `tsv`: `none` makes them ordinary characters; `doubled` and `backslash` let fields stand in
    quotes, with `""` or `\\"` for a quote in them. Null finds it out by the first lines, and takes none in tsv unless
    they show otherwise."""
    column_names: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Names of the columns of `csv` and `tsv` files without a header line, in their order, such as `[caption, url]`."""
    encoding: Encoding | None = None
    """Encoding of texts without a byte order mark, such as `cp1252`; null is UTF-8, or UTF-16 where that shows."""

    @model_validator(mode="after")
    def _names_the_images(self) -> TableCaptions:
        if self.path_col and self.url_col:
            raise ValueError("`path_col` and `url_col` are both given; leave one out")
        if not (self.path_col or self.url_col or self.id_col):
            raise ValueError("nothing names the images; give `path_col`, `url_col`, or `id_col` of another source's")
        if self.kind not in ("csv", "tsv") and (given := [name for name in _TEXT_ONLY if getattr(self, name)]):
            raise ValueError(f"`{given[0]}` is for `csv` and `tsv`; leave it out")
        return self

    @property
    def root(self) -> str:
        """The folder that relative paths of images start from."""
        return self.images or source_root(self.files)

    def list_files(self) -> list[SourceFile]:
        """The tables. Raises InputError when there is none."""
        return list_files(self.files, suffixes=TABLE_SUFFIXES[self.kind])

    def check(self) -> None:
        """Raises InputError when the files, or the folder of the images, are not there."""
        super().check()
        check_images(self.images)

    def guesses(self) -> list[str]:
        """How the first few text files are read, found out by their first lines: a line for each way.

        Raises InputError when one cannot be read.
        """
        read_as: dict[str, list[str]] = {}
        for file in self.list_files()[:_TOLD_FILES]:
            if self.kind == "jsonl":
                layout, encoding = json_layout(file.path, columns=self._columns(), encoding=self.encoding)
                told = f"{LAYOUT_NAMES[layout]}, {encoding.removesuffix('-sig')}"
                read_as.setdefault("" if (layout, encoding) == ("lines", "utf-8") else told, []).append(file.name)
            elif self.kind != "parquet":
                read_as.setdefault(dialect_of(file.path, self._asked()).told(), []).append(file.name)
        lines = []
        for told, names in read_as.items():
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            lines += [f"{names[0]}{more}: read as {told} (seen from its first lines)"] if told else []
        return lines

    def _entries(self, images_per_part: int, limits: Limits) -> Iterator[Entry]:
        position = usable = 0
        first_fault = ""
        for file in self.list_files():
            for number, record in self._records(file.path, limits):
                for entry in self._of_record(record, f"{file.name}#{number}", file, position):
                    usable += entry[4] is not None
                    first_fault = first_fault or (entry[1] or "" if entry[4] is None else "")
                    yield entry
                    position += 1
        if not position:
            raise InputError(f"{self.files}: no row in it; there is nothing to mine")
        if not usable:
            used = ", ".join(f"`{setting}: {column}`" for column, setting in self._columns().items())
            raise InputError(
                f"{self.files}: no row can be used with {used} ({first_fault.split(':', 2)[-1]}); "
                "check the names of the columns"
            )

    def _columns(self) -> dict[str, str]:
        """The columns that are read, with the settings that name them."""
        named = dict.fromkeys(self.save_additional_columns, "save_additional_columns")
        for setting in ("caption_col", "url_col", "path_col", "id_col"):
            if column := getattr(self, setting):
                named[column] = setting
        return named

    def _asked(self) -> Asked:
        return Asked(
            kind="csv" if self.kind == "csv" else "tsv",
            columns=self._columns(),
            delimiter=self.delimiter,
            quoting=self.quoting,
            column_names=self.column_names,
            encoding=self.encoding,
        )

    def _records(self, path: str, limits: Limits) -> Iterator[tuple[int, Record]]:
        """The rows of a table with their numbers, those of text files as lines."""
        if self.kind == "parquet":
            return _parquet_records(path, self._columns(), limits)
        if self.kind == "jsonl":
            return json_records(path, columns=self._columns(), encoding=self.encoding, limits=limits)
        return delimited_records(path, self._asked(), limits)

    def _of_record(self, record: Record, nameless: str, file: SourceFile, position: int) -> Iterator[Entry]:
        if isinstance(record, str):
            yield broken(nameless, position, record)
            return
        column = ""
        try:
            column = self.id_col or self.path_col or self.url_col or ""
            image_id = self._id(record, nameless)
            column = self.path_col or self.url_col or ""
            path = self._path(record, file)
            column = self.caption_col
            captions = captions_of(self._value(record, column), encoding=self.encoding or "utf-8")
        except UnicodeDecodeError as error:
            yield broken(nameless, position, f"`{column}` is no text in {error.encoding}: {shown(error.object)}")
            return
        if image_id is None:
            value = shown(record.get(self.id_col or ""))
            yield broken(nameless, position, f"no usable `{self.id_col}`: {value}")
            return
        more = kept_columns(record, self.save_additional_columns)
        for n, caption in enumerate(captions):
            yield image_id, path, None, position + n, caption, more

    def _value(self, record: dict[str, Any], column: str) -> Any:
        value = record.get(column)
        return typeless(value) if self.kind in ("csv", "tsv") else value

    def _id(self, record: dict[str, Any], nameless: str) -> str | None:
        """The image's id; None where the column of ids has none."""
        if self.id_col is None:
            return self._named(record) or nameless
        value = record.get(self.id_col)
        return id_of(typeless_id(value) if self.kind in ("csv", "tsv") else value, encoding=self.encoding or "utf-8")

    def _named(self, record: dict[str, Any]) -> str | None:
        """The path or URL of a record."""
        value = self._value(record, self.path_col or self.url_col or "")
        if isinstance(value, Mapping):  # as Hugging Face has them
            value = value.get("path")
        if isinstance(value, bytes):
            value = value.decode(self.encoding or "utf-8")
        return whole_text(value.strip()) or None if isinstance(value, str) else None

    def _path(self, record: dict[str, Any], file: SourceFile) -> str | None:
        column = self.path_col or self.url_col
        if column is None:
            return None
        value = self._named(record)
        if value is None or "\0" in value:
            return rejected_location(Rejection("missing_file", f"the record's `{column}` names no file"))
        if self.url_col and scheme_of(value) in URL_SCHEMES:
            return value
        if self.url_col and not is_url(value):
            return rejected_location(Rejection("missing_file", f"`{column}` is no URL"))
        path = named_file(self.images or file.path.rpartition("/")[0], value, outside=self.outside)
        return rejected_location(path) if isinstance(path, Rejection) else path


def _parquet_records(path: str, columns: Mapping[str, str], limits: Limits) -> Iterator[tuple[int, Record]]:
    with open_source(path) as file, one_line_parquet(path):
        table = StrangeParquet(file, path, list(columns), limits)
        known = table.about().columns
        for column, setting in columns.items():
            if known.count(column) > 1:
                raise InputError(f"{path}: two columns are called `{column}`; rename one")
            if column not in known:
                raise column_missing(path, column, known, setting=setting)
        number = 0
        for batch, long in table.batches(_READ_ROWS):
            values = [parquet_values(batch.column(column)) for column in columns]
            for n, row in enumerate(zip(*values, strict=True)):
                yield number, long.get(n) or dict(zip(columns, row, strict=True))
                number += 1
