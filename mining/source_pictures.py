"""Captioned images beside or inside their records: Hugging Face Parquet, a folder of pictures, an earlier run."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from mining.caption_entries import NOTHING_MORE, Entry, as_tables, captions_of, clean_text, id_of, kept_columns
from mining.places import Cell, no_place
from mining.source_files import (
    SourceFile,
    check_images,
    column_missing,
    joined,
    list_files,
    one_line_parquet,
    open_source,
    source_root,
    walk_files,
)
from mining.stores import describe
from mining.table_cells import MOST_GROUP_BYTES
from mining.tars import PICTURES
from schemas.errors import InputError
from schemas.rows import CaptionsRow, ImageRow, Rejection
from schemas.settings import Settings
from schemas.tables import arrow_schema

_MOST_TEXT_BYTES = 1 << 20
_READ_ROWS, _BUFFER_BYTES = 2_000, 1 << 20
_MINE_AGAIN = "run the same `maskmine mine` there again"


class HuggingFace(Settings):
    """Parquet as Hugging Face keeps data sets of images: a column of `{bytes, path}`, and captions, one or a list.

    `files`: a file, a folder or a pattern. A part is a run of row groups, so a worker reads each picture near its
    neighbours. `image_col` may also be a column of plain bytes. Rows whose bytes are absent name a file by `path`,
    below the folder `images`. An image's id is `id_col`, or else its file's name and its row.
    """

    kind: Literal["hf"]
    name: str | None = None
    files: str
    images: str | None = None
    image_col: str = "image"
    caption_col: str = "caption"
    id_col: str | None = None
    save_additional_columns: Annotated[tuple[str, ...], Field(strict=False)] = ()
    per_image: Annotated[int, Field(ge=1)] | Literal["all"] = 1

    @property
    def place(self) -> str:
        """What messages call the source."""
        return self.files

    @property
    def root(self) -> str:
        """The folder that the files' names are told from."""
        return self.images or source_root(self.files)

    def list_files(self) -> list[SourceFile]:
        """The Parquet files. Raises InputError when there is none."""
        return list_files(self.files, suffixes=(".parquet",))

    def check(self) -> None:
        """Raises InputError when the files, or the folder of the images, are not there."""
        self.list_files()
        check_images(self.images)

    def read(self, *, images_per_part: int) -> Iterator[pa.Table]:
        """The entries (`mining/caption_entries.py`). Raises InputError when a file cannot be read."""
        return as_tables(self._entries(images_per_part))

    def _entries(self, images_per_part: int) -> Iterator[Entry]:
        part = position = in_part = 0
        for file in self.list_files():
            with open_source(file.path) as opened, one_line_parquet(file.path):
                table = pq.ParquetFile(opened, buffer_size=_BUFFER_BYTES, pre_buffer=False)
                leaf = self._leaf(table, file.path)
                for group in range(table.num_row_groups):
                    rows = table.metadata.row_group(group).num_rows
                    if in_part and in_part + rows > images_per_part:
                        part, in_part = part + 1, 0
                    in_part += rows
                    for entry in self._of_group(table, file, group, leaf, part, position):
                        yield entry
                        position += 1
            part, in_part = part + bool(in_part), 0
        if not position:
            raise InputError(f"{self.files}: no row in it; there is nothing to mine")

    def _leaf(self, table: Any, path: str) -> str:
        """The column of the bytes as Parquet names it. Raises InputError when there is none, or columns are missing."""
        named = {self.image_col: "image_col", self.caption_col: "caption_col"}
        named |= {self.id_col: "id_col"} if self.id_col else {}
        named |= dict.fromkeys(self.save_additional_columns, "save_additional_columns")
        for column, setting in named.items():
            if column not in table.schema_arrow.names:
                raise column_missing(path, column, table.schema_arrow.names, setting=setting)
        leaves = [table.schema.column(n).path for n in range(len(table.schema.names))]
        for leaf in (f"{self.image_col}.bytes", self.image_col):
            if leaf in leaves:
                return leaf
        raise InputError(f"{path}: `image_col: {self.image_col}` holds no bytes; is it the column of the images?")

    def _of_group(
        self, table: Any, file: SourceFile, group: int, leaf: str, part: int, position: int
    ) -> Iterator[Entry]:
        about = table.metadata.row_group(group)
        chunk = next(about.column(n) for n in range(about.num_columns) if about.column(n).path_in_schema == leaf)
        if chunk.total_uncompressed_size > MOST_GROUP_BYTES:
            raise InputError(
                f"{file.path}: row group {group} has {chunk.total_uncompressed_size:,} bytes of pictures, and all are "
                f"read for one; write the file again with row groups of at most {MOST_GROUP_BYTES:,} bytes"
            )
        first = sum(table.metadata.row_group(n).num_rows for n in range(group))
        absent = chunk.statistics is not None and chunk.statistics.null_count == about.num_rows
        path_leaf = f"{self.image_col}.path"
        columns = [self.caption_col, *([self.id_col] if self.id_col else []), *self.save_additional_columns]
        columns += [path_leaf] if absent and path_leaf != leaf else []
        row = 0
        for batch in table.iter_batches(_READ_ROWS, row_groups=[group], columns=columns, use_threads=False):
            for record in batch.to_pylist():
                image_id = id_of(record.get(self.id_col)) if self.id_col else None
                image_id = image_id or f"{posixpath.splitext(file.name)[0]}-{first + row}"
                place = self._named(record, file) if absent else str(Cell(file.path, group, row, leaf))
                more = kept_columns(record, self.save_additional_columns)
                for caption in captions_of(record.get(self.caption_col)):
                    yield image_id, place, part, position, caption, more
                    position += 1
                row += 1

    def _named(self, record: dict[str, Any], file: SourceFile) -> str:
        struct = record.get(self.image_col)
        path = struct.get("path") if isinstance(struct, dict) else None
        if not isinstance(path, str) or not path:
            return no_place(Rejection("missing_file", "the record has no bytes and names no file"))
        return joined(self.images or posixpath.dirname(file.path), clean_text(path))


class Folder(Settings):
    """A folder with pictures (.jpg, .jpeg, .png, .webp) and a .txt of the same name beside each; folders in it, too.

    Every line of a .txt that is not empty is a caption. An image's id is its path in the folder without the suffix.
    """

    kind: Literal["folder"]
    name: str | None = None
    files: str
    per_image: Annotated[int, Field(ge=1)] | Literal["all"] = 1

    @property
    def place(self) -> str:
        """What messages call the source."""
        return self.files

    @property
    def root(self) -> str:
        """The folder."""
        return self.files

    def list_files(self) -> Iterator[SourceFile]:
        """The pictures and texts; those of one folder are in memory together."""
        for _, files in walk_files(self.files):
            yield from files

    def check(self) -> None:
        """Raises InputError when the folder is none."""
        found = describe(self.files)
        if found is None or found["type"] != "directory":
            raise InputError(f"captions.files: {self.files} is no folder; give one with .jpg and .txt files")

    def read(self, *, images_per_part: int) -> Iterator[pa.Table]:
        """The entries (`mining/caption_entries.py`). Raises InputError when there is no such folder."""
        self.check()
        return as_tables(self._entries())

    def _entries(self) -> Iterator[Entry]:
        position = 0
        for folder, files in walk_files(self.files):
            stems: dict[str, list[str]] = {}
            for file in files:
                name = posixpath.basename(file.path)
                stem, suffix = posixpath.splitext(name)
                if suffix.lower().removeprefix(".") in (*PICTURES, "txt"):
                    stems.setdefault(stem, []).append(name)
            for stem, found in stems.items():
                for entry in self._of_stem(folder, stem, found, position):
                    yield entry
                    position += 1
        if not position:
            raise InputError(f"{self.files}: no .jpg, .png, .webp or .txt in it; there is nothing to mine")

    def _of_stem(self, folder: str, stem: str, names: list[str], position: int) -> Iterator[Entry]:
        image_id = clean_text(posixpath.join(folder, stem).removeprefix(self.files).lstrip("/"))
        texts = [name for name in names if name.lower().endswith(".txt")]
        pictures = [name for name in names if name not in texts]
        if len(pictures) == 1:
            place = posixpath.join(folder, pictures[0])
        elif pictures:
            place = no_place(Rejection("broken_record", f"{len(pictures)} pictures of this name"))
        else:
            place = no_place(Rejection("missing_file", "no picture beside the .txt"))
        captions = _lines(posixpath.join(folder, texts[0])) if texts else []
        for n, caption in enumerate(captions or [""]):
            yield image_id, place, None, position + n, caption, NOTHING_MORE


class EarlierRun(Settings):
    """The images of an earlier run, in the same parts; with `captions: true` its captions too.

    Other sources, listed beside it, may then name the images by their ids.
    """

    kind: Literal["run"]
    name: str | None = None
    files: str
    captions: bool = True
    per_image: Annotated[int, Field(ge=1)] | Literal["all"] = "all"

    @property
    def place(self) -> str:
        """What messages call the source."""
        return self.files

    @property
    def root(self) -> str:
        """Pictures lie where the earlier run found them."""
        return ""

    def list_files(self) -> list[SourceFile]:
        """The lists of images of its parts. Raises InputError when it is no run folder."""
        if describe(posixpath.join(self.files, "plan.json")) is None:
            raise InputError(f"captions.files: {self.files} is no run folder; give the `out` of a `maskmine mine` run")
        return list_files(posixpath.join(self.files, "images"), suffixes=(".parquet",))

    def check(self) -> None:
        """Raises InputError when it is no run folder."""
        self.list_files()

    def read(self, *, images_per_part: int) -> Iterator[pa.Table]:
        """The entries (`mining/caption_entries.py`). Raises InputError when the run cannot be read."""
        return as_tables(self._entries())

    def _entries(self) -> Iterator[Entry]:
        for part, name in enumerate(self._cells()):
            said: dict[str, Any] = {}
            if self.captions:
                path = posixpath.join(self.files, "captions", name)
                said = dict(zip(*_columns(path, CaptionsRow, "image_id", "captions"), strict=True))
            images = _columns(posixpath.join(self.files, "images", name), ImageRow, "image_id", "path")
            position = 0
            for image_id, path in zip(*images, strict=True):
                place = path or no_place(Rejection("missing_file", "the earlier run did not know where it is"))
                for caption in said.get(image_id) or [None]:
                    yield image_id, place, part, position, caption, NOTHING_MORE
                    position += 1

    def _cells(self) -> list[str]:
        """The names of the run's cells, one a part. Raises InputError when parts of its plan are missing."""
        plan = posixpath.join(self.files, "plan.json")
        there = {file.name for file in self.list_files()}
        try:
            with open_source(plan) as file:
                cells = [f"{part:05d}.parquet" for part in range(json.load(file)["parts"])]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{plan}: not a whole plan; {_MINE_AGAIN}") from error
        for name in cells:
            if name not in there:
                raise InputError(f"{posixpath.join(self.files, 'images', name)}: missing; {_MINE_AGAIN}")
        return cells


def _columns(path: str, row_type: type, *names: str) -> list[list[Any]]:
    """Columns of a cell of a run. Raises InputError when it does not have them as runs do."""
    with open_source(path) as file, one_line_parquet(path):
        table = pq.ParquetFile(file).read()
    for name in names:
        field = arrow_schema(row_type).field(name)
        is_there = name in table.column_names and table.schema.field(name).type == field.type
        if not is_there or (table[name].null_count and not field.nullable):
            raise InputError(f"{path}: has no column `{name}` as runs have it; {_MINE_AGAIN}")
    return [table[name].to_pylist() for name in names]


def _lines(path: str) -> list[str]:
    with open_source(path) as file:
        text = file.read(_MOST_TEXT_BYTES).decode("utf-8-sig", "replace")
    return [line.strip() for line in text.splitlines() if line.strip()]
