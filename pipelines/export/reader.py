"""A finished run for an export: one shard is read at a time, after it was verified against its checksum."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.compute as pc

from maskmine.mining.exports.filters import Selection, columns_that_decide, select_rows
from maskmine.mining.images.decode import MAX_SIDE_PX
from maskmine.mining.images.read import max_bytes, read_bytes
from maskmine.mining.storage.stores import scheme_of
from maskmine.mining.storage.urls import Fetch
from maskmine.pipelines.dataset.finished_run import FinishedRun
from maskmine.pipelines.export.file_names import FileNames
from maskmine.pipelines.run_folder.folder import part_of_cell
from maskmine.pipelines.run_folder.parts import Parts
from maskmine.schemas.errors import IncompleteError
from maskmine.schemas.rows import ImageRow, OriginRow, ProposalsRow, Rejection, SampleRow
from maskmine.schemas.sample import StoredSample, index_type, parse_sample
from maskmine.schemas.shard_entries import ShardEntry, shard_named
from maskmine.schemas.tables import INDEX_COLUMNS, check_index, read_verified, with_later_columns

_BLOCK_BYTES = 1 << 20  # of a copy from an object store


class RunReader:
    """Rows and samples of a run; a context, which closes the shard that is open."""

    def __init__(self, finished: FinishedRun) -> None:
        self._finished, self._run, self._is_mix = finished, finished.folder, finished.is_mix
        self._shards = finished.manifest.shards
        self.version = finished.manifest.format_version
        self._row_type = index_type(self.version)
        self._checked = Parts()
        self._open: tuple[str, IO[bytes]] | None = None
        self._closing = ExitStack()
        self._file_names = FileNames(finished)
        self._names: tuple[str, dict[str, str | None]] | None = None
        self._hashes: tuple[str, dict[str, str | None]] | None = None

    def __enter__(self) -> RunReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def tables(self, selection: Selection) -> Iterator[pa.Table]:
        """The selected rows of each shard that has some, in order, with a column `split`."""
        tables = (select_rows(self._index(shard), selection) for shard in self._shards)
        return (table for table in tables if len(table))

    def table(self, part: int, selection: Selection, split: str) -> pa.Table:
        """The selected rows of the shard of a part that are in a split, with that as a column."""
        rows = select_rows(self._index(self._shards[part]), selection)
        return rows.filter(pc.equal(rows["split"], split))

    def selected_columns(self, selection: Selection, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Some columns of the selected rows of every shard, in order, and `split`; no others are read but those that
        decide, and those that tell whether the rows name samples of their shard alone."""
        read = {*columns, *columns_that_decide(selection), *INDEX_COLUMNS}
        for shard in self._shards:
            table = self._checked_index(shard, list(read))
            check_index(table, shard=shard, path=self._run.path("shards", _index_name(shard.name)))
            yield select_rows(table, selection).select([*columns, "split"])

    def has_score(self, score: str) -> bool:
        """Whether any pair of the run has a score."""
        tables = (self._checked_index(shard, [score]) for shard in self._shards)
        return any(score in table.column_names and table[score].null_count < len(table) for table in tables)

    def read(self, row: SampleRow) -> StoredSample:
        """See `maskmine.mining.exports.export_shards.Run`."""
        span = self.read_bytes(row.shard, row.offset, row.size_bytes)
        return parse_sample(span, row, path=self._run.path("shards", row.shard))

    def read_bytes(self, shard: str, offset: int, size_bytes: int) -> bytes:
        """See `maskmine.mining.exports.export_shards.Run`."""
        file = self._tar(shard)
        file.seek(offset)
        content = file.read(size_bytes)
        if len(content) != size_bytes:
            raise self._broken(shard)
        return content

    def file_name(self, row: SampleRow) -> str:
        """See `maskmine.mining.exports.export_shards.Run`."""
        name = self._named(row.shard).get(row.image_id)
        if name is None or self._is_mix:  # a mix remembers the names that its runs had for them
            return name or row.image_id
        return self._file_names.name(row.image_id, name)

    def photograph(self, row: SampleRow, *, fetch: Fetch) -> bytes | Rejection:
        """See `maskmine.mining.exports.export_shards.Run`. Raises IncompleteError for a fault of the disk or store."""
        if self._is_mix:
            return Rejection("missing_file", "a mix does not know where the images of its runs are")
        path, sha256 = self._named(row.shard).get(row.image_id), self._sha256(row)
        try:
            data = read_bytes(path, max_bytes=max_bytes(MAX_SIDE_PX**2), urls=fetch)
        except OSError as error:
            raise IncompleteError(
                f"{path}: cannot be read ({error.strerror or error}); mend the cause and run the same command again"
            ) from error
        if isinstance(data, bytes) and sha256 not in (None, hashlib.sha256(data).hexdigest()):
            return Rejection("image_changed", "the file is not the one that its masks were made from")
        return data

    def _sha256(self, row: SampleRow) -> str | None:
        """The hash of the file that an image's masks were made from; None where the run does not have it any more."""
        if self._hashes is None or self._hashes[0] != row.shard:
            part = int(row.shard.removesuffix(".tar"))
            try:
                known = self._finished.columns(part, ProposalsRow, ["image_id", "sha256"])
            except IncompleteError:  # a finished set is whole without its cells
                known = None
            hashes = {} if known is None else dict(zip(*(column.to_pylist() for column in known.columns), strict=True))
            self._hashes = row.shard, hashes
        return self._hashes[1].get(row.image_id)

    def _named(self, shard: str) -> dict[str, str | None]:
        """Where the images of a shard are, by their ids; of a mix the names of their files."""
        if self._names is None or self._names[0] != shard:
            if self._is_mix:
                origins = self._run.read_rows("origins", _index_name(shard), row_type=OriginRow)
                self._names = shard, {origin.image_id: origin.file for origin in origins}
            else:
                images = self._run.read_rows("images", _index_name(shard), row_type=ImageRow)
                self._names = shard, {image.image_id: image.path for image in images}
        return self._names[1]

    def _index(self, shard: ShardEntry) -> pa.Table:
        """The index of a shard, which names samples of that alone."""
        table = with_later_columns(self._checked_index(shard), self._row_type)
        check_index(table, shard=shard, path=self._run.path("shards", _index_name(shard.name)))
        return table

    def _checked_index(self, shard: ShardEntry, columns: Sequence[str] | None = None) -> pa.Table:
        """The index of a shard as the manifest vouches for it, or those of some columns that it has."""
        name = _index_name(shard.name)
        try:
            content = self._run.read_bytes("shards", name)
        except FileNotFoundError as error:
            raise IncompleteError(f"{self._run.path('shards', name)}: missing; run `maskmine mine` again") from error
        if hashlib.sha256(content).hexdigest() != shard.index_sha256:
            raise self._broken(name)
        try:
            return read_verified(content, columns)
        except (pa.ArrowInvalid, OSError) as error:  # the manifest vouches for what is no index
            raise self._broken(name) from error

    def _tar(self, name: str) -> IO[bytes]:
        if self._open is None or self._open[0] != name:
            self._closing.close()
            try:
                self._open = name, self._open_checked(name)
            except FileNotFoundError as error:
                raise IncompleteError(
                    f"{self._run.path('shards', name)}: missing; run `maskmine mine` again"
                ) from error
        return self._open[1]

    def _open_checked(self, name: str) -> IO[bytes]:
        """The tar, verified once; one on an object store is downloaded first."""
        file: Any = self._closing.enter_context(self._run.open("shards", name))
        if scheme_of(self._run.root) != "file":
            copy = self._closing.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 (the stack closes it)
            shutil.copyfileobj(file, copy, _BLOCK_BYTES)
            file = copy
        part = part_of_cell(name)
        if part is None or part not in self._checked:
            file.seek(0)
            if hashlib.file_digest(file, "sha256").hexdigest() != shard_named(self._shards, name).sha256:
                raise self._broken(name)
            if part is not None:
                self._checked.add(part)
        return cast("IO[bytes]", file)

    def _broken(self, name: str) -> IncompleteError:
        return IncompleteError(
            f"{self._run.path('shards', name)}: its SHA-256 is not the one in manifest.json; delete it and run "
            "`maskmine mine` again, which writes it again, then export again"
        )


def _index_name(shard: str) -> str:
    return shard.replace(".tar", ".parquet")
