"""What a push sends: the files of a finished export, checked against its checksums, and what is added to them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from maskmine.mining.storage.stores import scheme_of
from maskmine.pipelines.dataset.croissant import SetFile, describe_files
from maskmine.pipelines.export.folder import PLAN_FILE, SUMS_FILE
from maskmine.pipelines.run_folder.folder import SUCCESS_FILE, RunFolder, json_file
from maskmine.schemas.errors import IncompleteError, InputError

MARKER_FILE = "maskmine.json"
"""Which set a repository holds; it is there before any other file of the set."""
CROISSANT_FILE = "croissant.json"
_KINDS = {".tar": "application/x-tar", ".parquet": "application/x-parquet", ".json": "application/json"}
_KINDS |= {".jsonl": "application/jsonlines", ".csv": "text/csv", ".md": "text/markdown", ".png": "image/png"}
_KINDS |= {".jpg": "image/jpeg", ".webp": "image/webp", ".txt": "text/plain", ".yaml": "application/yaml"}


@dataclass(frozen=True)
class Content:
    """A finished export on this machine: `plan` is its `export.json`, `files` all files of its checksums."""

    folder: RunFolder
    plan: dict[str, Any]
    files: tuple[SetFile, ...]

    @property
    def size_bytes(self) -> int:
        """The bytes of all files."""
        return sum(file.size_bytes for file in self.files)

    @property
    def licence_parts(self) -> list[tuple[str, str, str]]:
        """What it is made of: `(what it is, its name, licence)`."""
        return licence_parts(self.plan["run"]["licences"])

    def strangers(self) -> list[str]:
        """Files in the folder that are not of the export, such as caches of programs that read it."""
        root = Path(self.folder.root)
        found = {path.relative_to(root).as_posix() for path in root.glob("**/*") if not path.is_dir()}
        return sorted(found - {file.name for file in self.files})

    def check(self) -> None:
        """Hash every file. Raises IncompleteError for one that is not what the export wrote."""
        for file in self.files:
            with self.folder.open(*file.name.split("/")) as stored:
                digest = hashlib.file_digest(stored, "sha256").hexdigest()  # type: ignore[arg-type]
            if digest != file.sha256:
                raise IncompleteError(
                    f"{self.folder.path(file.name)}: not what the export wrote; delete the folder and export again"
                )

    def closing_files(self) -> dict[str, bytes]:
        """What is sent last: the Croissant, and the checksums of all files, which say that the set is whole."""
        croissant = json_file(describe_files(self.plan, self.files, columns=self._columns()))
        sums = [(file.name, file.sha256) for file in self.files]
        sums.append((CROISSANT_FILE, hashlib.sha256(croissant).hexdigest()))
        lines = "".join(f"{sha256}  {name}\n" for name, sha256 in sorted(sums))
        return {CROISSANT_FILE: croissant, SUMS_FILE: lines.encode()}

    def _columns(self) -> Mapping[str, str]:
        """The columns of its Parquet files with their types; none where it has none."""
        first = next((file.name for file in self.files if file.name.endswith(".parquet")), None)
        if first is None:
            return {}
        with self.folder.open(*first.split("/")) as file:
            return {field.name: str(field.type) for field in pq.read_schema(file)}


def licence_parts(entries: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """Entries of models and sources as a manifest has them, as `(what it is, its name, licence)`."""
    parts = [
        (f"model ({entry['role']})" if "sha256" in entry else entry["role"], entry["name"], entry["licence"])
        for entry in entries
    ]
    return parts or [("captions and images", "of this run", "unknown")]


def open_export(folder: RunFolder) -> Content:
    """A finished export. Raises InputError for one that is not on this machine, IncompleteError for one that is not
    whole."""
    if scheme_of(folder.root) != "file":
        raise InputError(f"{folder.root}: is on an object store; the hub's library sends folders of this machine")
    plan = folder.read_json(PLAN_FILE)
    if plan is None or not folder.exists(SUCCESS_FILE):
        raise IncompleteError(f"{folder.root}: the export is not finished; run the same `maskmine export` again")
    return Content(folder, plan, tuple(_files(folder)))


def _files(folder: RunFolder) -> Iterator[SetFile]:
    sums = folder.read_bytes(SUMS_FILE)
    lines = [line.partition("  ") for line in sums.decode().splitlines()]
    for sha256, _, name in lines:
        path = folder.path(name)
        if not os.path.realpath(path).startswith(f"{os.path.realpath(folder.root)}{os.sep}"):
            raise InputError(f"{folder.path(SUMS_FILE)}: names {name}, which does not lie in the folder")
        if not os.path.isfile(path):
            raise IncompleteError(f"{path}: missing; delete the folder and export again")
        kind = _KINDS.get(os.path.splitext(name)[1], "application/octet-stream")
        yield SetFile(name, os.path.getsize(path), sha256, kind)
