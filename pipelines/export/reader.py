"""The run as an export reads it: finished, one shard at a time, each checked against its checksum before it is used."""

from __future__ import annotations

import hashlib
import io
import posixpath
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from typing import IO, Any, cast

import pyarrow as pa

from mining.exports.selection import Selection, select_rows
from mining.exports.stored import StoredSample, parse_sample
from mining.stores import scheme_of
from pipelines.publish import SUCCESS_FILE
from pipelines.run_folder import RunFolder
from pipelines.verify import read_manifest
from schemas.errors import IncompleteError
from schemas.manifest import Manifest, ShardEntry
from schemas.rows import ImageRow, SampleRow
from schemas.tables import arrow_schema, read_parquet

_BLOCK_BYTES = 1 << 20


def read_finished(run: RunFolder) -> Manifest:
    """The manifest of a finished run. Raises IncompleteError when it is not finished."""
    manifest = read_manifest(run)
    if not run.exists(SUCCESS_FILE):
        raise IncompleteError(f"{run.root}: not finished (no {SUCCESS_FILE}); run `maskmine mine` again")
    return manifest


class RunReader:
    """Rows and samples of a run. A shard is open at a time; `close` it, or use it as a context."""

    def __init__(self, run: RunFolder, manifest: Manifest) -> None:
        self._run = run
        self._shards = {shard.name: shard for shard in manifest.shards}
        self._checked: set[str] = set()
        self._open: tuple[str, IO[bytes]] | None = None
        self._closing = ExitStack()
        self._names: tuple[str, dict[str, str]] | None = None

    def __enter__(self) -> RunReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def tables(self, selection: Selection, *, split: str | None = None) -> Iterator[pa.Table]:
        """The selected rows of each shard, in order, with a column `split`; of one split, or of all."""
        for shard in self._shards.values():
            kept = select_rows(self._index(shard), selection)
            if split is not None:
                kept = kept.filter(pa.compute.equal(kept["split"], split))
            if len(kept):
                yield kept

    def read(self, row: SampleRow) -> StoredSample:
        """See `mining.exports.pieces.Run`."""
        span = self.read_bytes(row.shard, row.offset, row.size_bytes)
        return parse_sample(span, row, place=self._run.path("shards", row.shard))

    def read_bytes(self, shard: str, offset: int, size_bytes: int) -> bytes:
        """See `mining.exports.pieces.Run`."""
        file = self._tar(shard)
        file.seek(offset)
        content = file.read(size_bytes)
        if len(content) != size_bytes:
            raise self._broken(shard)
        return content

    def file_name(self, row: SampleRow) -> str:
        """See `mining.exports.pieces.Run`."""
        if self._names is None or self._names[0] != row.shard:
            images = self._run.read_rows("images", _index_name(row.shard), row_type=ImageRow)
            self._names = row.shard, {image.image_id: posixpath.basename(image.path or "") for image in images}
        return self._names[1].get(row.image_id) or row.image_id

    def _index(self, shard: ShardEntry) -> pa.Table:
        name = _index_name(shard.name)
        try:
            content = self._run.read_bytes("shards", name)
        except FileNotFoundError as error:
            raise IncompleteError(f"{self._run.path('shards', name)}: missing; run `maskmine mine` again") from error
        if hashlib.sha256(content).hexdigest() != shard.index_sha256:
            raise self._broken(name)
        table = read_parquet(io.BytesIO(content)).replace_schema_metadata(None)
        for field in list(arrow_schema(SampleRow))[table.num_columns :]:  # columns that format version 1 did not have
            table = table.append_column(field, pa.nulls(len(table), field.type))
        return table

    def _tar(self, name: str) -> IO[bytes]:
        if self._open is None or self._open[0] != name:
            self._closing.close()
            try:
                self._open = name, self._open_checked(name)
            except FileNotFoundError as error:
                place = self._run.path("shards", name)
                raise IncompleteError(f"{place}: missing; run `maskmine mine` again") from error
        return self._open[1]

    def _open_checked(self, name: str) -> IO[bytes]:
        """The tar, checked once; one that is far away is fetched once and read here."""
        file: Any = self._closing.enter_context(self._run.open("shards", name))
        if scheme_of(self._run.root) != "file":
            copy = self._closing.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 (the stack closes it)
            shutil.copyfileobj(file, copy, _BLOCK_BYTES)
            file = copy
        if name not in self._checked:
            file.seek(0)
            if hashlib.file_digest(file, "sha256").hexdigest() != self._shards[name].sha256:
                raise self._broken(name)
            self._checked.add(name)
        return cast("IO[bytes]", file)

    def _broken(self, name: str) -> IncompleteError:
        return IncompleteError(
            f"{self._run.path('shards', name)}: its SHA-256 is not the one in manifest.json; delete it and run "
            "`maskmine mine` again, which makes it anew, then export again"
        )


def _index_name(shard: str) -> str:
    return shard.replace(".tar", ".parquet")
