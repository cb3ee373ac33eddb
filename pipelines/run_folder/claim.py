"""Folders for output: claimed before the work begins, so that nothing is computed that cannot be written."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from maskmine.mining.storage.files import put_whole, sole_writer
from maskmine.mining.storage.stores import scheme_of
from maskmine.pipelines.run_folder.folder import RunFolder, folder_at
from maskmine.schemas.errors import InputError


def claim_folder(to: str | Path, *, run: RunFolder | None = None) -> RunFolder:
    """Make the folder of the option `--to` where it is on a disk; one on an object store is returned as it is.

    Raises InputError when nothing can be written there, or when it is inside the folder of `run`, where its files
    would be taken for a part of the set.
    """
    folder = folder_at(str(to))
    if scheme_of(folder.root) != "file":
        return folder
    if run is not None and Path(folder.root).resolve().is_relative_to(Path(run.root).resolve()):
        raise InputError(f"--to {to}: is in the run's own folder; give another one")
    with writing(to):
        os.makedirs(folder.root, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder.root):
            pass
    return folder


def writing_alone(to: str) -> AbstractContextManager[None]:
    """Keep other processes from writing to a folder meanwhile, where it is on a disk; raises as `sole_writer`."""
    root = folder_at(to).root
    return sole_writer(root) if scheme_of(root) == "file" else nullcontext()


@contextmanager
def writing(to: str | Path, *, option: str = "--to", remedy: str = "give another folder") -> Iterator[None]:
    """Files of an option are written in the block. An OSError there becomes an InputError."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{option} {to}: cannot be written ({error.strerror}); {remedy}") from error


def write_page(to: Path, page: str) -> None:
    """Write the page of the option `--to`. Raises InputError when that is not possible."""
    with writing(to, remedy="give another path"):
        put_whole(to, page.encode())
