"""The folder of an export: it belongs to one plan, grows piece by piece, and is whole when `_SUCCESS` is there."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import IO, Any, cast

from mining.shards import HashingFile
from mining.stores import describe, plain_path, scheme_of
from pipelines.run_folder import RunFolder, sweep
from schemas.errors import InputError, OtherPlanError

SUCCESS_FILE = "_SUCCESS"
PLAN_FILE = "export.json"
SUMS_FILE = "SHA256SUMS"
_PIECES = ".pieces"


@dataclass(frozen=True, slots=True)
class WrittenFile:
    """A file of an export, by its path below the folder."""

    name: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class ExportFolder:
    """Writes below one folder, from any thread; knows size and hash of what it has written without reading it."""

    root: RunFolder
    written: list[WrittenFile] = field(default_factory=list)

    @contextmanager
    def write(self, *names: str) -> Iterator[IO[bytes]]:
        """See `mining.exports.pieces.Folder`."""
        with self.root.write(*names) as file:
            hashing = HashingFile(file)
            yield cast("IO[bytes]", hashing)
        self.written.append(WrittenFile("/".join(names), hashing.size_bytes, hashing.sha256))


def claim_folder(out: str, plan: dict[str, Any]) -> RunFolder | None:
    """The folder for an export of this plan, new or begun; None when it is complete already.

    Raises InputError when something else lies there, OtherPlanError when another export does.
    """
    is_local = scheme_of(out) == "file"
    folder = RunFolder(os.path.abspath(os.path.expanduser(plain_path(out))) if is_local else out)
    found = describe(folder.root)
    if found is not None and found["type"] != "directory":
        raise InputError(f"{out}: a file; give a folder that is empty or not there yet")
    stored = folder.read_json(PLAN_FILE)
    if stored is None and (names := folder.names()):
        raise InputError(f"{out}: not empty ({names[0]} lies there), and no export; give another --out")
    if stored is not None and stored.get("fingerprint") != plan["fingerprint"]:
        raise OtherPlanError(f"{out}: belongs to another export ({_differences(stored, plan)}); give another --out")
    for name in ("", *plan["splits"]):  # what killed exports left in the making
        if folder.names(name) and is_local:
            sweep(RunFolder(folder.path(name)))
    if folder.exists(SUCCESS_FILE):
        _drop_accounts(folder)
        return None
    folder.write_json(PLAN_FILE, value=plan)
    return folder


def write_piece(folder: RunFolder, name: str, write: Callable[[ExportFolder], None]) -> None:
    """Make the files of a piece; its account, written last, says that they are there."""
    piece = ExportFolder(folder)
    write(piece)
    files = sorted(piece.written, key=lambda file: file.name)  # threads may have written them
    folder.write_json(_PIECES, f"{name}.json", value=[asdict(file) for file in files])


def pieces_done(folder: RunFolder) -> set[str]:
    """The names of the pieces that are there."""
    return {name.removesuffix(".json") for name in folder.names(_PIECES)}


def files_of_pieces(folder: RunFolder) -> Iterator[WrittenFile]:
    """The files of all pieces, in the order of their names."""
    for name in sorted(pieces_done(folder)):
        for entry in folder.read_json(_PIECES, f"{name}.json"):
            yield WrittenFile(**entry)


def complete(folder: RunFolder, others: ExportFolder) -> int:
    """Write the checksums of all files, then `_SUCCESS`; returns the bytes of the whole export."""
    size_bytes = 0
    with others.root.open(PLAN_FILE) as file:
        plan = file.read()
    with others.write(PLAN_FILE) as file:
        file.write(plan)
    own = sorted(others.written, key=lambda file: file.name)
    with folder.write(SUMS_FILE) as sums:
        for entries in (own, files_of_pieces(folder)):
            for entry in entries:
                sums.write(f"{entry.sha256}  {entry.name}\n".encode())
                size_bytes += entry.size_bytes
    with folder.write(SUCCESS_FILE):
        pass
    _drop_accounts(folder)
    return size_bytes


def _drop_accounts(folder: RunFolder) -> None:
    for name in folder.names(_PIECES):
        folder.delete(_PIECES, name)
    if scheme_of(folder.root) == "file" and os.path.isdir(folder.path(_PIECES)):
        os.rmdir(folder.path(_PIECES))


def _differences(stored: dict[str, Any], plan: dict[str, Any]) -> str:
    """The first settings that differ, `there` and `here`."""
    there, here = (_flat({key: tree.get(key) for key in ("format", "run", "settings")}) for tree in (stored, plan))
    changed = [key for key in sorted({*there, *here}) if there.get(key) != here.get(key)]
    said = [f"{key}: {there.get(key)} there, {here.get(key)} here" for key in changed[:3]]
    return "; ".join(said) or "another version of maskmine made it"


def _flat(tree: Any, place: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {place: tree}
    inner = [_flat(value, f"{place}.{key}" if place else key) for key, value in tree.items()]
    return {key: value for flat in inner for key, value in flat.items()}
