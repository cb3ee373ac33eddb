"""The folder of an export: it belongs to one plan, grows shard by shard, and is complete with `_SUCCESS`."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import IO, Any, cast

from maskmine.mining.exports.export_shards import ExportShard, Folder
from maskmine.mining.storage.files import HashingFile
from maskmine.mining.storage.stores import describe, scheme_of
from maskmine.pipelines.run_folder.folder import SUCCESS_FILE, RunFolder, folder_at, json_file
from maskmine.pipelines.run_folder.sweep import sweep
from maskmine.schemas.errors import InputError, OtherPlanError

# Files beside the data: the identity of the export, and the checksums.
PLAN_FILE = "export.json"
SUMS_FILE = "SHA256SUMS"
# Accounts of finished shards, until the export is complete; named as in earlier versions, whose exports can continue.
_ACCOUNTS = ".pieces"


@dataclass(frozen=True, slots=True)
class WrittenFile:
    """A file of an export, by its path below the folder."""

    name: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class ExportFolder:
    """Writes below one folder, from any thread, and hashes what it writes."""

    root: RunFolder
    written: list[WrittenFile] = field(default_factory=list)

    @contextmanager
    def write(self, *names: str) -> Iterator[IO[bytes]]:
        """See `maskmine.mining.exports.export_shards.Folder`."""
        with self.root.write(*names) as file:
            hashing = HashingFile(file)
            yield cast("IO[bytes]", hashing)
        self.written.append(WrittenFile("/".join(names), hashing.size_bytes, hashing.sha256))


def claim_folder(out: str, plan: dict[str, Any]) -> RunFolder | None:
    """The folder for an export of this plan, new or begun; None when it is complete already.

    Raises InputError when something else lies there, OtherPlanError when another export does.
    """
    folder = folder_at(out)
    about = describe(folder.root)
    if about is not None and about["type"] != "directory":
        raise InputError(f"{out}: a file; give a folder that is empty or not there yet")
    stored = folder.read_json(PLAN_FILE)
    if stored is None and (names := folder.names()):
        raise InputError(f"{out}: not empty ({names[0]} lies there), and no export; give another --out")
    if stored is not None and stored.get("fingerprint") != plan["fingerprint"]:
        raise OtherPlanError(f"{out}: belongs to another export ({_differences(stored, plan)}); give another --out")
    if scheme_of(folder.root) == "file":
        for name in ("", *plan["splits"]):  # unfinished files of killed exports
            sweep(RunFolder(folder.path(name)))
    if folder.exists(SUCCESS_FILE):
        _drop_accounts(folder)
        return None
    folder.write_json(PLAN_FILE, value=plan)
    return folder


def write_shard(folder: RunFolder, name: str, shard: ExportShard, write: Callable[[Folder, ExportShard], None]) -> None:
    """Write the files of a shard; its account, written last, says that they are complete, and what was counted."""
    target = ExportFolder(folder)
    write(target, shard)
    files = sorted(target.written, key=lambda file: file.name)  # threads may have written them
    account = {"files": [asdict(file) for file in files], "counts": dict(shard.counts)}
    folder.write_json(_ACCOUNTS, f"{name}.json", value=account)


def shards_done(folder: RunFolder) -> set[str]:
    """The names of the complete shards."""
    return {name.removesuffix(".json") for name in folder.names(_ACCOUNTS)}


def empty(folder: RunFolder, name: str) -> None:
    """Remove what a killed export left in a folder whose files are called otherwise each time."""
    below = RunFolder(folder.path(name))
    for path in sorted(below.walk()):
        below.delete(*path.split("/"))


def files_of_shards(folder: RunFolder) -> Iterator[WrittenFile]:
    """The files of all shards, in the order of their names."""
    for account in _accounts(folder):
        for entry in account["files"]:
            yield WrittenFile(**entry)


def counts_of_shards(folder: RunFolder) -> Counter[str]:
    """What the writers of all shards counted."""
    counts = Counter[str]()
    for account in _accounts(folder):
        counts.update(account["counts"])
    return counts


def _accounts(folder: RunFolder) -> Iterator[dict[str, Any]]:
    for name in sorted(shards_done(folder)):
        yield folder.read_json(_ACCOUNTS, f"{name}.json")


def complete(folder: RunFolder, others: ExportFolder) -> int:
    """Write the checksums of all files, then `_SUCCESS`; returns the bytes of the whole export."""
    size_bytes = 0
    plan, counts = folder.read_json(PLAN_FILE), counts_of_shards(folder)
    with others.write(PLAN_FILE) as file:
        file.write(json_file(plan | ({"counts": dict(counts)} if counts else {})))
    own = sorted(others.written, key=lambda file: file.name)
    with folder.write(SUMS_FILE) as sums:
        for entries in (own, files_of_shards(folder)):
            for entry in entries:
                sums.write(f"{entry.sha256}  {entry.name}\n".encode())
                size_bytes += entry.size_bytes
    with folder.write(SUCCESS_FILE):
        pass
    _drop_accounts(folder)
    return size_bytes


def _drop_accounts(folder: RunFolder) -> None:
    for name in folder.names(_ACCOUNTS):
        folder.delete(_ACCOUNTS, name)
    if scheme_of(folder.root) == "file" and os.path.isdir(folder.path(_ACCOUNTS)):
        os.rmdir(folder.path(_ACCOUNTS))


def _differences(stored: dict[str, Any], plan: dict[str, Any]) -> str:
    """The first settings that differ, `there` and `here`."""
    there, here = (_flat({key: tree.get(key) for key in ("format", "run", "settings")}) for tree in (stored, plan))
    changed = [key for key in sorted({*there, *here}) if there.get(key) != here.get(key)]
    listed = [f"{key}: {there.get(key)} there, {here.get(key)} here" for key in changed[:3]]
    return "; ".join(listed) or "another version of maskmine made it"


def _flat(tree: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {path: tree}
    inner = [_flat(value, f"{path}.{key}" if path else key) for key, value in tree.items()]
    return {key: value for flat in inner for key, value in flat.items()}
