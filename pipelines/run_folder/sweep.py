"""What killed processes left in a run folder, and among temporary files, is deleted."""

from __future__ import annotations

import posixpath
import secrets
import tempfile
from contextlib import suppress
from typing import Any

import fsspec

from maskmine.mining.storage.ownership import BEAM, RAY, WRITING, owned_prefix, owner_state
from maskmine.mining.storage.stores import open_store
from maskmine.pipelines.run_folder.entries import each_entry, folders_in, is_local
from maskmine.pipelines.run_folder.folder import RunFolder

_DAY_S = 24 * 60 * 60.0


def sweep(run: RunFolder) -> None:
    """Delete what killed processes left: files that never became whole, and files of engines for their workers.

    Also among the system's temporary files, where the planner has folders, and files wait for upload to object stores.

    Files of living processes stay. Processes of another machine cannot be seen: their files count as abandoned when
    they were not written to for a day, and those of their engines (a few bytes) after a month.
    """
    fs, root = open_store(run.root)
    folders = [(fs, root), (fsspec.filesystem("file"), tempfile.gettempdir())]
    if is_local(fs):
        folders += [(fs, path) for step in folders_in(root) for path in (step, *folders_in(step))]
    for fs, folder in folders:
        for name in each_entry(fs, folder):
            path, state = posixpath.join(folder, name), owner_state(name)
            patience_s = 30 * _DAY_S if name.startswith((BEAM, RAY)) else _DAY_S
            if state == "dead" or (state == "elsewhere" and _untouched_s(fs, path) > patience_s):
                with suppress(OSError):  # another user's, or another driver sweeps too; it does no harm where it lies
                    fs.rm(path, recursive=True)


def _untouched_s(fs: Any, path: str) -> float:
    """How long ago the newest file of a path was written; 0 where the file system does not say.

    By the clock of the file system, which stamps what all machines write: that of this machine may be days off.
    """
    probe = posixpath.join(posixpath.dirname(path), f"{owned_prefix(WRITING)}{secrets.token_hex(4)}")
    try:
        written = max(fs.modified(file).timestamp() for file in fs.find(path) or [path])
        fs.pipe_file(probe, b"0")
        try:
            now = fs.modified(probe).timestamp()
        finally:
            fs.rm_file(probe)
    except (OSError, NotImplementedError):
        return 0.0
    return float(now) - float(written)
