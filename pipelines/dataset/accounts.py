"""The accounts of the shards, added up one after the other: what the set holds, and the sums of its files."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from tempfile import TemporaryDirectory
from typing import Any

from maskmine.mining.storage.ownership import SCRATCH, owned_prefix
from maskmine.mining.storage.prefetch import map_in_order
from maskmine.pipelines.dataset.stored_shards import store_shards
from maskmine.pipelines.dataset.sums import FileSums
from maskmine.pipelines.planning.external_sort import read_spilled, spilling
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.schemas.errors import IncompleteError
from maskmine.schemas.rows import RejectedImage
from maskmine.schemas.sample import cell_name
from maskmine.schemas.shard_entries import SHARDS_SCHEMA, ShardEntry, Shards, shards_table
from maskmine.schemas.tables import write_parquet_rows

_KEYS = {
    *("part", "images", "with_pairs", "rejected", "rejections", "samples", "bytes", "sha256", "index_sha256"),
    "fingerprint",
}
_SHA256 = re.compile("[0-9a-f]{64}")
_READ_AT_ONCE = 16
_ENTRIES_AT_ONCE = 1024


class BrokenShardsError(IncompleteError):
    """Files of shards were not whole. They were deleted, so the shards can be made again."""


@dataclass
class Counts:
    """What all accounts say together; `pairs` is None where one of them does not count them."""

    images: int = 0
    with_pairs: int = 0
    samples: int = 0
    size_bytes: int = 0
    pairs: int | None = 0
    masks_left_out: int = 0
    rejected: Counter[str] = field(default_factory=Counter)

    def add(self, account: Mapping[str, Any]) -> None:
        """Count one more."""
        self.images += account["images"]
        self.with_pairs += account["with_pairs"]
        self.samples += account["samples"]
        self.size_bytes += account["bytes"]
        self.pairs = None if self.pairs is None or "pairs" not in account else self.pairs + account["pairs"]
        self.masks_left_out += len(account.get("masks_left_out", ()))
        self.rejected.update(account["rejected"])


@dataclass
class Accounts:
    """The accounts of a run: its counts, the sums of the set's files and of all others that they vouch for."""

    run: RunFolder
    fingerprint: str
    of_set: FileSums
    of_rest: FileSums
    counts: Counts = field(default_factory=Counts)
    broken: int = 0

    def gather(self, parts: int) -> Shards:
        """Read the accounts of so many parts; their rejections are moved to `errors.parquet`.

        Raises BrokenShardsError, after it deleted what is not whole, and IncompleteError for those of another run.
        """
        with TemporaryDirectory(prefix=owned_prefix(SCRATCH)) as scratch:
            spilled = os.path.join(scratch, "shards")
            with spilling(spilled, schema=SHARDS_SCHEMA) as writer, self.run.write("errors.parquet") as file:
                write_parquet_rows(self._rejected(parts, writer), file, RejectedImage)
            if self.broken:
                raise BrokenShardsError(
                    f"{self.run.root}: {self.broken} shards are not whole; run the same command again"
                )
            return store_shards(self.run, read_spilled(spilled), count=parts)

    def _rejected(self, parts: int, writer: Any) -> Iterator[RejectedImage]:
        """The rejected images; on the way shards are written down, and what the accounts say is added up."""
        held: list[ShardEntry] = []
        for part, content in enumerate(map_in_order(self._read, range(parts), threads=_READ_AT_ONCE)):
            account = _whole_account(content)
            if account is None:
                self.run.delete("shards", cell_name(part, "json"))  # the shard then counts as not made
                self.broken += 1
                continue
            self._refuse_other(account, part)
            self.counts.add(account)
            self._note_sums(part, account, content)
            held.append(shard_entry(account))
            if len(held) == _ENTRIES_AT_ONCE:
                writer.write_table(shards_table(held))
                held = []
            yield from (RejectedImage(part=part, **entry) for entry in account["rejections"])
        writer.write_table(shards_table(held))

    def _read(self, part: int) -> bytes:
        """An account; empty where it is missing."""
        try:
            return self.run.read_bytes("shards", cell_name(part, "json"))
        except FileNotFoundError:
            return b""

    def _refuse_other(self, account: Mapping[str, Any], part: int) -> None:
        if account["fingerprint"] != self.fingerprint:
            raise IncompleteError(
                f"{self.run.cell_path('shards', part, 'json')}: made from other settings or inputs, is another run "
                "writing here? Stop it, delete the file and run the same command again"
            )

    def _note_sums(self, part: int, account: Mapping[str, Any], content: bytes) -> None:
        self.of_set.put_cell("shards", part, account["sha256"], suffix="tar")
        self.of_set.put_cell("shards", part, account["index_sha256"])
        self.of_rest.put_cell("shards", part, hashlib.sha256(content).hexdigest(), suffix="json")
        for step, sha256 in account.get("cells", {}).items():
            self.of_rest.put_cell(step, part, sha256)


def shard_entry(account: Mapping[str, Any]) -> ShardEntry:
    """A shard as the manifest has it, from its account."""
    return ShardEntry(
        name=cell_name(account["part"], "tar"),
        images=account["images"],
        samples=account["samples"],
        size_bytes=account["bytes"],
        sha256=account["sha256"],
        index_sha256=account["index_sha256"],
    )


def _whole_account(content: bytes) -> dict[str, Any] | None:
    """An account, or None where it is missing or was cut off; of one that was, JSON may be left."""
    try:
        account = json.loads(content)
    except (ValueError, RecursionError):
        return None
    if not isinstance(account, dict) or not account.keys() >= _KEYS:
        return None
    cells = account.get("cells", {})
    sums = [account["sha256"], account["index_sha256"], *(cells.values() if isinstance(cells, dict) else [None])]
    return account if all(isinstance(one, str) and _SHA256.fullmatch(one) for one in sums) else None
