"""Captioned images in Parquet, as Hugging Face keeps them: in a column of the table, or in files that it names."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import pyarrow.compute as pc
from pydantic import Field

from maskmine.mining.sources.entries import Entry, broken, captions_of, clean_text, id_of, kept_columns
from maskmine.mining.sources.files import (
    FileSource,
    SourceFile,
    check_images,
    column_missing,
    one_line_parquet,
    open_source,
    source_root,
)
from maskmine.mining.sources.named_files import named_file
from maskmine.mining.sources.text_files import Encoding
from maskmine.mining.sources.values import parquet_values, shown
from maskmine.mining.storage.bounded.limits import Limits
from maskmine.mining.storage.bounded.parquet_child import ParquetAbout, StrangeParquet
from maskmine.mining.storage.locations import Cell, rejected_location
from maskmine.mining.storage.table_cells import MAX_GROUP_BYTES
from maskmine.schemas.errors import InputError
from maskmine.schemas.rows import Rejection
from maskmine.schemas.settings import AnyPath

_READ_ROWS = 2_000  # of captions in memory
_FEW_PICTURES = 64  # are in memory while it is looked for those that are not there
_BYTES = ("BYTE_ARRAY", "FIXED_LEN_BYTE_ARRAY")


class HuggingFace(FileSource):
    """Parquet as Hugging Face keeps data sets of images: a column of `{bytes, path}`, and captions, one or a list.

    A part is a run of row groups, so a worker reads each image near its neighbours.
    """

    kind: Literal["hf"]
    """Parquet with the images in it, as `datasets` writes it."""
    name: str | None = None
    """Name of the source in samples and in `licences.captions`; its `kind` when null."""
    files: AnyPath
    """A Parquet file, a folder of them, or a pattern."""
    images: AnyPath | None = None
    """Folder of the images of rows that hold a path and no bytes."""
    outside: bool = False
    """Whether rows may name images outside of that folder: by absolute paths, `..` or other buckets."""
    image_col: str = "image"
    """Column of images: `{bytes, path}`, or plain bytes."""
    caption_col: str = "caption"
    """Column of captions, each a text, a record with one (`raw`, `caption`, `text`, …), or a list of these."""
    id_col: str | None = None
    """Column of image ids; null uses the file's name and the row number. Whole numbers of any type are the same id (1,
    1.0, b"1")."""
    save_additional_columns: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Columns that are copied into the samples."""
    per_image: Annotated[int, Field(ge=1)] | Literal["all"] = 1
    """Captions read of each image, the first ones with text: a number, or `all`."""
    encoding: Encoding | None = None
    """Encoding of texts that the file holds as bytes, such as `cp1252`; null is UTF-8."""

    suffixes: ClassVar = (".parquet",)

    @property
    def root(self) -> str:
        """The folder that relative paths of images start from."""
        return self.images or source_root(self.files)

    def check(self) -> None:
        """Raises InputError when the files, or the folder of the images, are not there."""
        super().check()
        check_images(self.images)

    def _entries(self, images_per_part: int, limits: Limits) -> Iterator[Entry]:
        part = position = in_part = 0
        for file in self.list_files():
            with open_source(file.path) as opened, one_line_parquet(file.path):
                columns = [self.image_col, *self._columns()]
                table = StrangeParquet(opened, file.path, columns, limits)
                about = table.about()
                leaf = self._leaf(about, file.path)
                first = 0  # the number of the group's first row in the file
                for group, described in enumerate(about.groups):
                    rows = described["rows"]
                    if in_part and in_part + rows > images_per_part:
                        part, in_part = part + 1, 0
                    in_part += rows
                    place = (group, described, leaf)
                    for entry in self._of_group(table, file, place, part, position, first):
                        yield entry
                        position += 1
                    first += rows
            part, in_part = part + bool(in_part), 0
        if not position:
            raise InputError(f"{self.files}: no row in it; there is nothing to mine")

    def _columns(self) -> list[str]:
        """The columns beside the images."""
        named = [self.caption_col, *([self.id_col] if self.id_col else []), *self.save_additional_columns]
        return list(dict.fromkeys(named))

    def _leaf(self, about: ParquetAbout, path: str) -> str:
        """The column of the bytes as Parquet names it. Raises InputError when there is none, or columns are missing."""
        named = {self.image_col: "image_col", self.caption_col: "caption_col"}
        named |= {self.id_col: "id_col"} if self.id_col else {}
        named |= dict.fromkeys(self.save_additional_columns, "save_additional_columns")
        known = about.columns
        for column, setting in named.items():
            if column not in known:
                raise column_missing(path, column, known, setting=setting)
            if known.count(column) > 1:
                raise InputError(f"{path}: two columns are called `{column}`; rename one")
        for leaf in (f"{self.image_col}.bytes", self.image_col):
            if leaf in about.leaves and _holds_bytes(*about.leaves[leaf]):
                return leaf
        raise InputError(
            f"{path}: `image_col: {self.image_col}` holds no bytes; is it the column of the images? "
            "`kind: parquet` reads paths"
        )

    def _of_group(
        self,
        table: StrangeParquet,
        file: SourceFile,
        place: tuple[int, Mapping[str, Any], str],
        part: int,
        position: int,
        first: int,
    ) -> Iterator[Entry]:
        group, about, leaf = place
        size_bytes = about["leaves"][leaf]["size_bytes"]
        if size_bytes > MAX_GROUP_BYTES:
            raise InputError(
                f"{file.path}: row group {group} has {size_bytes:,} bytes of pictures, and all are "
                f"read for one; write the file again with row groups of at most {MAX_GROUP_BYTES:,} bytes"
            )
        paths = self._paths(table, *place)
        names, row = self._columns(), 0
        for batch, long in replace(table, columns=names).batches(_READ_ROWS, group=group):
            for n, values in enumerate(zip(*[parquet_values(batch.column(name)) for name in names], strict=True)):
                nameless = f"{posixpath.splitext(file.name)[0]}-{first + row}"
                location = self._named(paths[row], file) if row in paths else str(Cell(file.path, group, row, leaf))
                record = dict(zip(names, values, strict=True))
                entries = self._of_record(record, nameless, location, part, position)
                for entry in [broken(nameless, position, long[n], part=part)] if n in long else entries:
                    yield entry
                    position += 1
                row += 1

    def _of_record(
        self, record: dict[str, Any], nameless: str, location: str, part: int, position: int
    ) -> Iterator[Entry]:
        column, encoding = self.id_col, self.encoding or "utf-8"
        try:
            image_id = id_of(record[column], encoding=encoding) if column else nameless
            column = self.caption_col
            captions = captions_of(record[column], encoding=encoding)
        except UnicodeDecodeError as error:
            detail = f"`{column}` is no text in {error.encoding}: {shown(error.object)}"
            yield broken(nameless, position, detail, part=part)
            return
        if image_id is None:
            detail = f"no usable `{self.id_col}`: {shown(record.get(self.id_col or ''))}"
            yield broken(nameless, position, detail, part=part)
            return
        more = kept_columns(record, self.save_additional_columns)
        for n, caption in enumerate(captions):
            yield image_id, location, part, position + n, caption, more

    def _paths(self, table: StrangeParquet, group: int, about: Mapping[str, Any], leaf: str) -> dict[int, Any]:
        """The rows of a group that have no bytes, with the paths that they name instead.

        Parquet's statistics say whether there are such rows. Where there are, or the writer left statistics out, the
        bytes of this group are read a few at a time.
        """
        nulls = about["leaves"][leaf]["nulls"]
        if nulls == 0:
            return {}
        is_struct = leaf != self.image_col
        path_leaf = f"{self.image_col}.path"
        has_paths = is_struct and path_leaf in about["leaves"]
        columns = [*([path_leaf] if has_paths else []), *([leaf] if nulls != about["rows"] else [])]
        if not columns:
            return dict.fromkeys(range(about["rows"]))
        paths: dict[int, Any] = {}
        first = 0
        for batch, _ in replace(table, columns=columns).batches(_FEW_PICTURES, group=group, any_length=True):
            column = batch.column(0)
            named = parquet_values(pc.struct_field(column, "path")) if has_paths else [None] * len(column)
            there = [False] * len(column)
            if leaf in columns:
                there = (pc.struct_field(column, "bytes") if is_struct else column).is_valid().to_pylist()
            paths |= {first + n: path for n, path in enumerate(named) if not there[n]}
            first += len(column)
        return paths

    def _named(self, path: Any, file: SourceFile) -> str:
        try:
            path = path.decode() if isinstance(path, bytes) else path
        except UnicodeDecodeError:
            return rejected_location(Rejection("broken_record", f"its path is no text in utf-8: {shown(path)}"))
        if not isinstance(path, str) or not path:
            return rejected_location(Rejection("missing_file", "the record has no bytes and names no file"))
        named = named_file(self.images or posixpath.dirname(file.path), clean_text(path), outside=self.outside)
        return rejected_location(named) if isinstance(named, Rejection) else named


def _holds_bytes(physical: str, logical: str) -> bool:
    """Whether a column of such types holds bytes that are not said to be a text."""
    return physical in _BYTES and logical not in ("STRING", "JSON", "ENUM")
