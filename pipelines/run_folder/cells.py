"""A typed handle for the cells of a step: a file for each part, or one for the whole run, whose rows have one type."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import Generic, NamedTuple, TypeVar

import pyarrow as pa

from maskmine.pipelines.run_folder.folder import FINGERPRINT_FILE, RunFolder
from maskmine.pipelines.run_folder.parts import Parts
from maskmine.schemas.errors import IncompleteError
from maskmine.schemas.sample import cell_name
from maskmine.schemas.seal import CheckedFile
from maskmine.schemas.tables import from_pieces

Row = TypeVar("Row")

_MADE_FROM_KEY = "maskmine.made_from"
_EARLIER = "earlier.parquet"  # ends the name of the copy of a cell that was deleted
_ANSWERS = "answers"  # ends the name of the folder with the first rows of cells that are being made
_FOLDER_DIGITS = 12  # of a fingerprint, as the name of a folder
_ANSWER_DIGITS = 16  # of the hash of some rows, as the name of a file


class Ties(NamedTuple):
    """What stands for the content of a cell, and for that of the cells that it was made from, by step."""

    identity: str | None
    made_from: dict[str, str] | None


@dataclass(frozen=True)
class Cells(Generic[Row]):
    """The cells of a step in a run folder. A handle is a value and may travel to a worker.

    What is written carries `fingerprint`, and a cell that has another one is not read; with an empty fingerprint
    everything is read. A step that runs `once` has part 0 alone, as a file beside the folders of the others. A cell
    exists when its files of all `suffixes` do. Cells `by_fingerprint` lie in a folder for each fingerprint, so that
    those of several stand beside each other; the file that says which are current stands above them. Of cells that
    `keep_earlier` the last one is kept when it is deleted, so that the next one can take over what it knew. Of cells
    that `keep_answers` the first rows may be written before the cell is whole, so that they need not be made twice.
    """

    run: RunFolder
    step: str
    row_type: type[Row]
    fingerprint: str = ""
    once: bool = False
    suffixes: tuple[str, ...] = ("parquet",)
    by_fingerprint: bool = False
    keep_earlier: bool = False
    within: str = ""
    keep_answers: bool = False

    @property
    def title(self) -> str:
        """What tells these cells from all others of the run."""
        return f"{self.within}/{self.step}" if self.within else self.step

    @property
    def folder(self) -> str:
        """The folder of the cells, relative to that of the run."""
        return f"{self.step}/{self.fingerprint[:_FOLDER_DIGITS]}" if self.by_fingerprint else self.step

    def names(self, part: int = 0, suffix: str = "parquet") -> tuple[str, ...]:
        """A file of a cell, as the methods of `RunFolder` take it."""
        return (f"{self.title}.{suffix}",) if self.once else (self.folder, cell_name(part, suffix))

    def path(self, part: int = 0, suffix: str = "parquet") -> str:
        """The path of a file of a cell."""
        return self.run.path(*self.names(part, suffix))

    def read(self, part: int = 0) -> list[Row]:
        """The rows of a cell. Raises IncompleteError as `RunFolder.read_table` does."""
        return self.run.read_rows(*self.names(part), row_type=self.row_type, fingerprint=self.fingerprint or None)

    def read_table(self, part: int = 0) -> pa.Table:
        """The rows of a cell as a table."""
        return self.run.read_table(*self.names(part), fingerprint=self.fingerprint or None)

    def read_columns_with_ties(self, part: int, columns: Sequence[str]) -> tuple[pa.Table, dict[str, str] | None]:
        """Some columns of a cell, without reading the others, and what it was made from, as `ties` has it."""
        table = self.run.read_columns(*self.names(part), columns=columns, fingerprint=self.fingerprint or None)
        metadata = table.schema.metadata or {}
        return table, _made_from({key.decode(): value.decode() for key, value in metadata.items()})

    def read_metadata(self, part: int = 0) -> dict[str, str]:
        """The metadata in the footer of a cell; empty when there is none."""
        return self.run.read_metadata(*self.names(part))

    def write(
        self,
        part: int,
        rows: Iterable[Row] | pa.Table,
        *,
        metadata: Mapping[str, str] | None = None,
        made_from: Mapping[str, str] | None = None,
    ) -> None:
        """Write a cell from rows as they come, or a table with their columns, whole or not at all.

        `made_from` has the identities of the cells that it was made from, by the names of their steps.
        """
        self.run.write_rows(
            *self.names(part),
            rows=rows,
            row_type=self.row_type,
            fingerprint=self.fingerprint,
            metadata={**(metadata or {}), **_tied(made_from)},
        )

    def write_pieces(
        self, part: int, pieces: Iterable[pa.Table], *, made_from: Mapping[str, str] | None = None
    ) -> None:
        """`write` of tables of a few rows as they come, see `rows_in_order`."""
        self.run.write_pieces(
            *self.names(part),
            pieces=pieces,
            row_type=self.row_type,
            fingerprint=self.fingerprint,
            metadata=_tied(made_from),
        )

    def read_blocks(self, part: int = 0) -> Iterator[list[Row]]:
        """The rows of a cell, one row group in memory at a time."""
        return self.run.read_blocks(*self.names(part), row_type=self.row_type, fingerprint=self.fingerprint or None)

    def read_groups(self, part: int = 0, *, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The row groups of a cell as tables, or some columns of them, one in memory at a time."""
        return self.run.read_groups(*self.names(part), fingerprint=self.fingerprint or None, columns=columns)

    def read_rows(self, part: int = 0) -> Iterator[Row]:
        """The rows of a cell one after the other, one row group in memory at a time."""
        tables = self.read_groups(part)
        return (row for table in tables for row in from_pieces(table, self.row_type))

    def write_blocks(
        self, part: int, blocks: Iterable[Sequence[Row]], *, metadata: Mapping[str, str] | None = None
    ) -> None:
        """`write` of blocks of rows as they come."""
        self.write(part, chain.from_iterable(blocks), metadata=metadata)

    def check(self, part: int = 0) -> CheckedFile:
        """Check every byte of a cell. Raises IncompleteError as `RunFolder.read_table` does."""
        return self.run.check_table(*self.names(part), fingerprint=self.fingerprint or None)

    def identity(self, part: int = 0) -> str | None:
        """What stands for the content of a cell, from its footer; None when it is missing or damaged."""
        return self.run.identity(*self.names(part))

    def ties(self, part: int = 0) -> Ties:
        """Identity and what a cell was made from, by one reading of its footer."""
        metadata = self.read_metadata(part)
        return Ties(self.run.identity_in(metadata, *self.names(part)), _made_from(metadata))

    def exists(self, part: int) -> bool:
        """Whether a cell is there, whatever it was made from."""
        return all(self.run.exists(*self.names(part, suffix)) for suffix in self.suffixes)

    def done(self) -> Parts:
        """The parts whose cells are there, whatever they were made from, by one listing."""
        if self.once:
            return Parts([0] if self.exists(0) else ())
        return self.run.done(self.folder, suffixes=self.suffixes)

    def missing(self, parts: int, *, first: int = 0) -> Parts:
        """Of so many parts from the `first` on, those whose cells are not there."""
        return self.done().missing(range(first, first + parts))

    def is_current(self) -> bool:
        """Whether all that is there was made with this fingerprint, as the folder says; of `once` cells the file."""
        if self.once:
            return self.run.read_fingerprint(*self.names()) == self.fingerprint
        return bool(self.run.read_json(self.step, FINGERPRINT_FILE) == {"fingerprint": self.fingerprint})

    def mark_current(self) -> None:
        """Say in the folder that all cells there have this fingerprint."""
        self.run.write_json(self.step, FINGERPRINT_FILE, value={"fingerprint": self.fingerprint})

    def delete(self, part: int) -> None:
        """Remove the files of a cell, after a copy for `read_earlier` where it is to be kept."""
        if self.keep_earlier and self.exists(part):
            with self.run.write(*self.names(part, _EARLIER)) as file:
                file.write(self.run.read_bytes(*self.names(part)))
        for suffix in self.suffixes:
            self.run.delete(*self.names(part, suffix))

    def read_earlier(self, part: int) -> list[Row]:
        """The rows of the cell that was deleted last; none where none was, or where it was not whole."""
        names = self.names(part, _EARLIER)
        if not self.run.exists(*names):
            return []
        try:
            return self.run.read_rows(*names, row_type=self.row_type, fingerprint=self.fingerprint)
        except IncompleteError:
            return []

    def drop_earlier(self) -> None:
        """Remove copies of deleted cells, and first rows: all cells are there, and took over what was to be."""
        for name in self.run.names(self.folder) if self.keep_earlier else []:
            if name.endswith(f".{_EARLIER}"):
                self.run.delete(self.folder, name)
        for name in self.run.names(self.answers_folder) if self.keep_answers else []:
            self.run.delete(self.answers_folder, name)

    @property
    def answers_folder(self) -> str:
        """Where the first rows of cells are that are being made: beside the cells, as parts may be many."""
        return f"{self.folder}-{_ANSWERS}"

    def write_answers(self, part: int, rows: Sequence[Row]) -> None:
        """Write some rows of a cell that is being made, in any order; they are durable when this returns."""
        digest = hashlib.sha256(repr(rows).encode("utf-8", "surrogatepass")).hexdigest()[:_ANSWER_DIGITS]
        name = cell_name(part, f"{digest}.parquet")
        self.run.write_rows(self.answers_folder, name, rows=rows, row_type=self.row_type, fingerprint=self.fingerprint)

    def read_answers(self, part: int) -> list[Row]:
        """The rows that `write_answers` wrote for a part; of a file that is not whole none."""
        rows: list[Row] = []
        for names in self._answers(part):
            with suppress(IncompleteError):
                rows += self.run.read_rows(*names, row_type=self.row_type, fingerprint=self.fingerprint)
        return rows

    def drop_answers(self, part: int) -> None:
        """Remove them: the cell is whole."""
        for names in self._answers(part):
            self.run.delete(*names)

    def _answers(self, part: int) -> list[tuple[str, str]]:
        first, folder = cell_name(part, ""), self.answers_folder
        return [(folder, name) for name in self.run.names(folder) if name.startswith(first)]


def _tied(made_from: Mapping[str, str] | None) -> dict[str, str]:
    return {} if made_from is None else {_MADE_FROM_KEY: json.dumps(dict(made_from), sort_keys=True)}


def _made_from(metadata: Mapping[str, str]) -> dict[str, str] | None:
    stored = metadata.get(_MADE_FROM_KEY)
    return None if stored is None else json.loads(stored)
