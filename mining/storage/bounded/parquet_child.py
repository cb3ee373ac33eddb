"""Parquet of strangers, read by a child process: a file that ends its reader, or eats all memory, ends that alone.

    parent ── a line of JSON ──▶ child     what is wanted of a file
    child  ── WANTS ──▶ parent             bytes of the file, which the parent sends
    child  ── ABOUT, ROWS, LONG, DONE, FAULT, MEMORY ──▶ parent

The child is under the kernel's limits of memory and of computing time, and one is started again where it ended.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from maskmine.mining.storage.bounded.limits import USUAL, Limits
from maskmine.mining.storage.bounded.parquet_process import (
    ABOUT,
    DONE,
    FAULT,
    FRAME,
    LENGTH,
    LONG,
    MEMORY,
    PLACE,
    READY,
    ROWS,
    WANTS,
)
from maskmine.schemas.errors import InputError

Long = Mapping[int, str]
"""What is too long in rows of a batch, by their numbers in it."""


@dataclass(frozen=True, slots=True)
class ParquetAbout:
    """What a footer says: the names of all columns; the leaves of the wanted ones with their physical and logical type;
    of each row group the number of `rows`, and of its `leaves` the `size_bytes` and `nulls`, None where not known."""

    columns: Sequence[str]
    leaves: Mapping[str, Sequence[str]]
    groups: Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class StrangeParquet:
    """A Parquet file of a stranger, open for reading, of which some columns are wanted.

    Its methods raise ArrowInvalid for a file that is damaged, and InputError for one that needs more than the limits.
    """

    file: IO[bytes]
    path: str
    columns: Sequence[str]
    limits: Limits = USUAL

    def about(self) -> ParquetAbout:
        """What its footer says."""
        (content,) = (content for kind, content in self._ask("about") if kind == ABOUT)
        return ParquetAbout(**json.loads(content))

    def batches(
        self, rows: int, *, group: int | None = None, any_length: bool = False
    ) -> Iterator[tuple[pa.RecordBatch, Long]]:
        """The wanted columns of a row group, or of all, at most so many rows at a time.

        With `any_length` cells may be as long as memory allows, and the rows are as many; otherwise cells beyond the
        limit are null.
        """
        long: dict[int, str] = {}
        groups = None if group is None else [group]
        max_bytes = 1 << 62 if any_length else self.limits.max_record_bytes
        for kind, content in self._ask("rows", rows=rows, groups=groups, whole=any_length, max_cell_bytes=max_bytes):
            if kind == LONG:
                long = {row: f"`{column}` has {size:,} bytes" for row, column, size in json.loads(content)}
            elif kind == ROWS:
                with pa.ipc.open_stream(pa.py_buffer(content)) as reader:
                    yield reader.read_next_batch(), long
                long = {}

    def _ask(self, op: str, **more: Any) -> Iterator[tuple[bytes, bytes]]:
        """The answers to one request. Raises as the class says."""
        size_bytes = self.file.seek(0, os.SEEK_END)
        request = {"op": op, "columns": list(self.columns), "size_bytes": size_bytes, **more}
        request["file"] = f"{size_bytes} {self.path}"  # what the child remembers its footer by
        request |= {"memory_bytes": int(self.limits.table_memory_gb * 1e9), "timeout_s": self.limits.table_timeout_s}
        child = _take_child()
        try:
            yield from child.ask(request, self.file)
        except (EOFError, BrokenPipeError, ConnectionResetError):
            raise self._refusal(child.end()) from None
        except MemoryError:
            raise InputError(self._too_large()) from None
        except BaseException:  # an interrupt, or who asked wants no more: what the child still sends is for nobody
            if not child.is_idle:
                child.end()
            raise
        finally:
            if child.is_idle:
                _idle.append(child)

    def _refusal(self, ended: int) -> Exception:
        if ended == -signal.SIGPROF:
            limit = f"{self.limits.table_timeout_s:g} s"
            return InputError(f"{self.path}: reading some rows takes more than {limit} (`limits.table_timeout_s`)")
        if ended == -signal.SIGKILL:
            return InputError(self._too_large())
        how = signal.Signals(-ended).name if ended < 0 else f"exit code {ended}"
        damaged: Exception = pa.ArrowInvalid(f"reading it ends the process that does with {how}")
        return damaged

    def _too_large(self) -> str:
        return (
            f"{self.path}: reading some rows needs more than {self.limits.table_memory_gb:g} GB of memory; write it "
            "again with shorter cells or row groups, or raise `limits.table_memory_gb`"
        )


_idle: list[_Child] = []
_inherited: list[_Child] = []  # of the process that this one was forked from: their pipes are not ours


@dataclass(eq=False, slots=True)
class _Child:
    """A reading process as its parent sees it; used by one request at a time."""

    process: subprocess.Popen[bytes]
    to_child: IO[bytes]
    from_child: IO[bytes]
    is_idle: bool = True

    def ask(self, request: Mapping[str, Any], file: IO[bytes]) -> Iterator[tuple[bytes, bytes]]:
        """The answers to a request, while the child is given the bytes of the file. Raises EOFError when it ends."""
        self.is_idle = False
        self._send(json.dumps(request).encode() + b"\n")
        while True:
            kind, content = self.answer()
            if kind == WANTS:
                offset, size_bytes = PLACE.unpack(content)
                file.seek(offset)
                wanted = file.read(size_bytes)
                self._send(LENGTH.pack(len(wanted)) + wanted)
                continue
            self.is_idle = kind in (DONE, FAULT, MEMORY)
            if kind == DONE:
                return
            if kind == FAULT:
                raise pa.ArrowInvalid(content.decode())
            if kind == MEMORY:
                raise MemoryError
            yield kind, content

    def answer(self) -> tuple[bytes, bytes]:
        """The next frame. Raises EOFError when the process has ended."""
        kind, length = FRAME.unpack(self._exactly(FRAME.size))
        return kind, self._exactly(length)

    def end(self) -> int:
        """Close the pipes, kill what is left, and return how the process ended (a signal as a negative number)."""
        self.is_idle = False
        for pipe in (self.to_child, self.from_child):
            with suppress(BrokenPipeError):
                pipe.close()
        try:
            return self.process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def _send(self, content: bytes) -> None:
        self.to_child.write(content)
        self.to_child.flush()

    def _exactly(self, length: int) -> bytes:
        content = self.from_child.read(length)
        if len(content) < length:
            raise EOFError
        return content


def _take_child() -> _Child:
    """A waiting child, or a new one. Those that were killed while they waited say nothing of a file."""
    while _idle:
        child = _idle.pop()
        if child.process.poll() is None:
            return child
        child.end()
    return _start_child()


def _start_child(*, tries: int = 3) -> _Child:
    """A new child that has said that it is ready. Raises InputError when none can be started; one that is killed while
    it starts was no file's doing, and another one is started."""
    code = str(Path(__file__).parents[4])  # where `maskmine` is
    paths = [code, *filter(None, [os.environ.get("PYTHONPATH")])]
    # threads of BLAS, which nothing here uses, and Arrow's own pools reserve address space, and that is limited
    sparing = {"OPENBLAS_NUM_THREADS": "1", "ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_ARENA_MAX": "2"}
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "maskmine.mining.storage.bounded.parquet_process"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **sparing, "PYTHONPATH": os.pathsep.join(paths)},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    child = _Child(process, process.stdin, process.stdout)
    try:
        kind, _ = child.answer()
        assert kind == READY
    except EOFError as error:
        if (ended := child.end()) < 0 and tries > 1:
            return _start_child(tries=tries - 1)
        raise InputError(
            f"the process that reads Parquet does not start (it ended with {ended}); "
            f"`{sys.executable} -m maskmine.mining.storage.bounded.parquet_process </dev/null` says more"
        ) from error
    return child


def _end_children() -> None:
    while _idle:
        _idle.pop().end()


def _forget_children() -> None:
    _inherited.extend(_idle)
    _idle.clear()


atexit.register(_end_children)
os.register_at_fork(after_in_child=_forget_children)
