"""The shards of a mix: samples copied out of the shards of its sets, each with its index, origins and account."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from maskmine.mining.images.decode import MAX_SIDE_PX
from maskmine.mining.sources.entries import NOTHING_MORE
from maskmine.mining.storage.files import HashingFile
from maskmine.mining.storage.prefetch import map_in_order
from maskmine.pipelines.mix.choice import Taken
from maskmine.pipelines.mix.sources import MixSource
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.schemas.errors import IncompleteError
from maskmine.schemas.rows import OriginRow, SampleRow
from maskmine.schemas.sample import (
    cell_name,
    index_type,
    is_damaged,
    member_names,
    record_keys,
    sample_key,
    sample_members,
    write_end_of_tar,
    write_members,
)
from maskmine.schemas.settings import canonical_json
from maskmine.schemas.shard_entries import shard_named

ORIGINS, SHARDS = "origins", "shards"
Tick = Callable[[int], None]


@dataclass(frozen=True)
class ShardWriter:
    """Writes the shards of one mix: `fingerprint` is that of the mix, `version` that of its samples."""

    folder: RunFolder
    sources: Sequence[MixSource]
    fingerprint: str
    version: int
    image_format: str
    threads: int = 2

    def missing(self, parts: int) -> list[int]:
        """The shards that are not there, or are those of another choice of pairs."""
        whole = self.folder.done(SHARDS, suffixes=("tar", "parquet", "json")) & self.folder.done(ORIGINS)
        return [part for part in range(parts) if part not in whole or self.account(part) is None]

    def account(self, part: int) -> dict[str, Any] | None:
        """What is known of a shard that is there; None where it belongs to another choice, or was not finished."""
        stored = self.folder.read_json(SHARDS, cell_name(part, "json"))
        return stored if isinstance(stored, dict) and stored.get("fingerprint") == self.fingerprint else None

    def accounts(self, parts: int) -> Iterator[dict[str, Any]]:
        """The accounts of so many shards, without those that are not there."""
        return (account for part in range(parts) if (account := self.account(part)) is not None)

    def write(self, taken: Iterable[Taken], *, tick: Tick) -> None:
        """Write shards of all of these pairs, which follow each other by shard and image.

        Raises IncompleteError for a sample that is not what its set's index says.
        """
        copier = _Copier(self.sources, self.version, self.image_format)
        # a generator, so that reading goes on across the borders of shards
        copies = map_in_order(copier.copy, taken, threads=self.threads)
        for part, of_part in groupby(copies, key=lambda copy: copy.taken.part):
            self._write_shard(part, of_part, tick=tick)

    def _write_shard(self, part: int, copies: Iterator[_Copy], *, tick: Tick) -> None:
        names = {suffix: cell_name(part, suffix) for suffix in ("tar", "parquet", "json")}
        index: list[SampleRow] = []
        origins: dict[str, OriginRow] = {}
        with self.folder.write(SHARDS, names["tar"]) as file:
            out = HashingFile(file)
            for copy in copies:
                offset, out.crc32 = out.size_bytes, 0
                size_bytes = copy.write(out)
                span: dict[str, Any] = {
                    "shard": names["tar"],
                    "offset": offset,
                    "size_bytes": size_bytes,
                    "crc32": out.crc32,
                }
                index.append(replace(copy.taken.row, key=copy.key, image_id=copy.taken.new_id, **span))
                if copy.taken.new_id not in origins:
                    origins[copy.taken.new_id] = self._origin(copy)
                tick(1)
            write_end_of_tar(out, size_bytes=out.size_bytes)
        row_type = index_type(self.version)
        self.folder.write_rows(SHARDS, names["parquet"], rows=index, row_type=row_type, fingerprint=self.fingerprint)
        self.folder.write_rows(
            ORIGINS, names["parquet"], rows=origins.values(), row_type=OriginRow, fingerprint=self.fingerprint
        )
        account = {
            "fingerprint": self.fingerprint,
            "part": part,
            "images": len(origins),
            "samples": len(index),
            "bytes": out.size_bytes,
            "sha256": out.sha256,
            "index_sha256": self._sha256(SHARDS, names["parquet"]),
            "origins_sha256": self._sha256(ORIGINS, names["parquet"]),
        }
        self.folder.write_json(SHARDS, names["json"], value=account)

    def _origin(self, copy: _Copy) -> OriginRow:
        taken, (height_px, width_px) = copy.taken, copy.image_px
        return OriginRow(
            image_id=taken.new_id,
            run=self.sources[taken.of_set].name,
            image_there=taken.row.image_id,
            file=taken.file,
            sha256=taken.sha256,
            look=taken.look,
            height_px=height_px,
            width_px=width_px,
        )

    def _sha256(self, *names: str) -> str:
        return hashlib.sha256(self.folder.read_bytes(*names)).hexdigest()


@dataclass(frozen=True, slots=True)
class _Copy:
    """A sample as it is written: all of its bytes as they were, or members of which name or record are new.

    `image_px` are height and width of its image, as its record has them.
    """

    taken: Taken
    key: str
    image_px: tuple[int | None, int | None]
    content: bytes | list[tuple[str, bytes]]

    def write(self, file: HashingFile) -> int:
        return file.write(self.content) if isinstance(self.content, bytes) else write_members(file, self.content)


class _Copier:
    """Reads samples, from any thread, and gives them the key and the record that they have in the mix."""

    def __init__(self, sources: Sequence[MixSource], version: int, image_format: str) -> None:
        self._sources, self._keys, self._format = sources, record_keys(version), image_format
        self._checked: set[tuple[int, str]] = set()
        self._lock = threading.Lock()

    def copy(self, taken: Taken) -> _Copy:
        """Raises IncompleteError for a sample that is not what the index of its set says."""
        run, row = self._sources[taken.of_set].run, taken.row
        if row.crc32 is None:  # of format versions 1 and 2
            self._check_tar(taken)
        span, path = run.span(row), run.folder.path(SHARDS, row.shard)
        try:
            if is_damaged(span, row.crc32):
                raise ValueError("not what was written there")
            image_format, image, mask_png, noun, record = sample_members(span, row.key)
            if image_format != self._format:
                raise ValueError(f"its crop is {image_format}, and not {self._format}")
            renewed, image_px = self._renewed(record, taken)
        except (ValueError, RecursionError) as error:
            raise IncompleteError(
                f"{path}: sample {row.key}: {error}; delete the tar and {run.again}, which writes it again"
            ) from error
        key = sample_key(taken.new_id, int(row.key.rpartition("-")[2]))
        if key == row.key and renewed == record:
            return _Copy(taken, key, image_px, span)
        contents = (image, mask_png, noun, renewed)
        return _Copy(taken, key, image_px, list(zip(member_names(key, image_format), contents, strict=True)))

    def _renewed(self, record_json: bytes, taken: Taken) -> tuple[bytes, tuple[int | None, int | None]]:
        """The record with the id of its image in the mix, and null for what its format version did not have; and the
        size of the image."""
        record = json.loads(record_json)
        if not isinstance(record, dict):
            raise ValueError("its .json is no object")
        later = {name: _unknown(name, taken.row) for name in self._keys - record.keys()}
        renamed = {"image_id": taken.new_id} if taken.new_id != taken.row.image_id else {}
        renewed = canonical_json(record | later | renamed).encode() if later or renamed else record_json
        return renewed, (_whole(record.get("height_px")), _whole(record.get("width_px")))

    def _check_tar(self, taken: Taken) -> None:
        """Hash a tar whose samples have no checksums of their own, once. Raises IncompleteError when it is damaged."""
        run, name = self._sources[taken.of_set].run, taken.row.shard
        with self._lock:
            if (taken.of_set, name) in self._checked:
                return
            wanted = shard_named(run.manifest.shards, name).sha256
            path = run.folder.path(SHARDS, name)
            try:
                with run.folder.open(SHARDS, name) as file:
                    found = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
            except FileNotFoundError as error:
                raise IncompleteError(f"{path}: missing; {run.again}") from error
            if found != wanted:
                raise IncompleteError(
                    f"{path}: its SHA-256 is not the one in manifest.json; delete it and {run.again}, which writes it "
                    "again"
                )
            self._checked.add((taken.of_set, name))


def _unknown(name: str, row: SampleRow) -> object:
    """What a sample has under a key that its format version did not have: what the index has by default."""
    value = NOTHING_MORE if name == "additional" else getattr(row, name)
    return list(value) if isinstance(value, tuple) else value


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and 0 < value <= MAX_SIDE_PX else None
