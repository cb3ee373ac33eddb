"""A JSON object with lists that grow side by side, too long to be held in memory."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import IO, Any

from maskmine.schemas.settings import canonical_json

_COPIED_BYTES = 1 << 20  # of a read: large enough for a disk to be fast


class JsonLists:
    """The lists of an open object: `add` appends an entry to one of them, as text that is JSON."""

    def __init__(self, files: dict[str, IO[bytes]]) -> None:
        self._files = files
        self.counts = dict.fromkeys(files, 0)

    def add(self, name: str, entry: str) -> None:
        """Append an entry to the list of this name."""
        self._files[name].write((b",\n" if self.counts[name] else b"") + entry.encode())
        self.counts[name] += 1


@contextmanager
def json_lists(file: IO[bytes], *, head: dict[str, Any], names: Sequence[str]) -> Iterator[JsonLists]:
    """Write an object with the keys of `head`, and lists of these names, into a file. All but the first list wait in
    temporary files until the block ends."""
    with ExitStack() as stack:
        lists = {name: stack.enter_context(tempfile.TemporaryFile()) for name in names[1:]}
        opened = "".join(f'"{name}":{canonical_json(value)},' for name, value in head.items())
        file.write(f'{{{opened}"{names[0]}":[\n'.encode())
        yield JsonLists({names[0]: file, **lists})
        for name, waiting in lists.items():
            file.write(f'\n],"{name}":[\n'.encode())
            waiting.seek(0)
            shutil.copyfileobj(waiting, file, _COPIED_BYTES)
        file.write(b"\n]}\n")
