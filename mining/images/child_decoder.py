"""Decoding in child processes: an image that crashes its decoder, never ends or eats all memory costs itself alone.

Image libraries are C code that reads bytes from strangers. The parent reads the file and sends its bytes; the child
answers with pixels or a reason. It is under the kernel's limits of time and memory, so it ends by itself even when
its parent is gone; then another one is started.

    parent ── op, max_pixels, timeout_s, memory_bytes, length │ the file's bytes ──▶ child
    child  ── length │ JSON: the answer and the size of what follows │ pixels ─────▶ parent
"""

from __future__ import annotations

import atexit
import fcntl
import json
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from pydantic import Field

from maskmine.mining.images.decode import MAX_SIDE_PX, DecodedImage, Header, StoredImage
from maskmine.mining.images.decoder_process import (
    ABOUT,
    HEADER,
    LENGTH,
    READY,
    REQUEST,
    STORED,
    UPRIGHT,
    read_exactly,
)
from maskmine.mining.images.orientation import Orientation
from maskmine.mining.images.read import max_bytes, read_bytes, read_head
from maskmine.mining.storage.urls import Fetch
from maskmine.schemas.errors import InputError
from maskmine.schemas.rows import Rejection
from maskmine.schemas.settings import Settings


class Decoding(Settings):
    """Limits of the child processes that decode images; they keep a harmful image from stopping the run."""

    timeout_s: float = Field(default=25.0, gt=0)
    """Seconds of decoding after which an attempt ends; an image of which all do is rejected as `record_timeout`."""
    memory_gb: float = Field(default=4.0, ge=0.5)
    """Address space of a child in 10⁹ bytes; an image that needs more is rejected as `worker_crash`."""
    attempts: int = Field(default=2, ge=1)
    """Attempts before an image that ends its process is rejected; a process may also be killed from outside."""
    fetch: Fetch = Fetch()
    """Whether and how images are read from URLs."""

    def size(self, path: str | None, *, max_pixels: int) -> tuple[int, int] | Rejection:
        """The size of the upright image, `(height_px, width_px)`, from the head of its file.

        An image whose header lies elsewhere, as some TIFFs have it, is rejected here and may yet be read. So is one
        at a URL, which would be fetched twice.
        """
        header = self.decode_header(read_head(path), max_pixels=max_pixels)
        return header if isinstance(header, Rejection) else header.upright_px

    def header(self, path: str | None) -> Header | Rejection:
        """The sizes and the turn of an image, wherever in its file they stand."""
        header = self.decode_header(read_head(path))
        if isinstance(header, Rejection) and header.reason == "decode_error":
            header = self.decode_header(read_bytes(path))
        return header

    def read(self, path: str | None, *, max_pixels: int) -> DecodedImage | Rejection:
        """The image at `path`: a plain path, `file://`, an object store (`s3://`, `gs://`), or a location in a tar or
        table on one of these (`mining/storage/locations.py`); a URL where `fetch` allows it.

        Rejected are `missing_file`, `decode_error`, `worker_crash`, `record_timeout` and, from the header alone,
        `image_too_large`. Raises OSError for a fault of the disk, IncompleteError for one of an object store, and
        InputError when the library for such a store is not installed or no child can be started.
        """
        data = self.read_file(path, max_pixels=max_pixels)
        return data if isinstance(data, Rejection) else self.decode(data, max_pixels=max_pixels)

    def read_file(self, path: str | None, *, max_pixels: int) -> bytes | Rejection:
        """The bytes that `read` decodes; rejects and raises as that before it does."""
        return read_bytes(path, max_bytes=max_bytes(max_pixels), urls=self.fetch)

    def decode(self, data: bytes, *, max_pixels: int) -> DecodedImage | Rejection:
        """The image in the bytes of a file; as `decode.decode_image`, in a child process; rejects as `read`."""
        answer = self._ask(UPRIGHT, data, max_pixels=max_pixels)
        if isinstance(answer, Rejection):
            return answer
        about, pixels = answer
        return DecodedImage(_array(about, pixels), **{name: about[name] for name in ABOUT})

    def read_stored(self, path: str | None, *, max_pixels: int) -> StoredImage | Rejection:
        """The image at `path` as it is stored, in its own mode: see `decode_stored`. Rejects and raises as `read`."""
        data = read_bytes(path, max_bytes=max_bytes(max_pixels))
        return data if isinstance(data, Rejection) else self.decode_stored(data, max_pixels=max_pixels)

    def decode_stored(self, data: bytes, *, max_pixels: int, mode: str | None = None) -> StoredImage | Rejection:
        """The image as it is stored, in Pillow's `mode`; as `decode.decode_stored`, in a child process."""
        answer = self._ask(mode or STORED, data, max_pixels=max_pixels)
        if isinstance(answer, Rejection):
            return answer
        about, pixels = answer
        return StoredImage(_array(about, pixels), about["mode"], about["format"], Orientation(*about["orientation"]))

    def decode_header(self, data: bytes | Rejection, *, max_pixels: int = MAX_SIDE_PX**2) -> Header | Rejection:
        """What stands before the pixels in the bytes of a file, or in the first of them."""
        answer = self._ask(HEADER, data, max_pixels=max_pixels)
        if isinstance(answer, Rejection):
            return answer
        about, _ = answer
        return Header(tuple(about["stored_px"]), tuple(about["upright_px"]), Orientation(*about["orientation"]))

    def _ask(
        self, op: str, data: bytes | Rejection, *, max_pixels: int
    ) -> tuple[dict[str, Any], bytearray] | Rejection:
        if isinstance(data, Rejection):
            return data
        ended = 0
        for _ in range(self.attempts):
            child = _take_child()
            _asked.add(child)
            try:
                _refuse_if_over()
                about, pixels = child.ask(op, data, max_pixels=max_pixels, decoding=self)
            except (EOFError, BrokenPipeError, ConnectionResetError):
                ended = child.end()
                continue
            except BaseException:  # an interrupt in the middle of an answer: this child is of no use any more
                child.end()
                raise
            finally:
                _asked.discard(child)
            _idle.append(child)
            return Rejection(*about["rejection"]) if "rejection" in about else (about, pixels)
        _refuse_if_over()  # it was not the image that ended them
        return self._rejection(ended)

    def _rejection(self, ended: int) -> Rejection:
        tried = f"{self.attempts} times" if self.attempts > 1 else "once"
        if ended == -signal.SIGALRM:
            return Rejection("record_timeout", f"decoding took more than {self.timeout_s:g} s, tried {tried}")
        how = signal.Signals(-ended).name if ended < 0 else f"exit code {ended}"
        return Rejection("worker_crash", f"decoding ended its process with {how}, tried {tried}")


def _array(about: dict[str, Any], pixels: bytearray) -> np.ndarray[Any, Any]:
    return np.frombuffer(pixels, np.dtype(about["type"])).reshape(about["shape"])


_PIPE_BYTES = 1 << 20  # as much as Linux allows every user; an image then takes one or two writes

# Children that wait for work. They hold no state between images, so all steps of this process share them.
_idle: list[_Child] = []
_inherited: list[_Child] = []  # of the process that this one was forked from: their pipes are not ours
_asked: set[_Child] = set()  # those whose answers threads of this process wait for
_is_over = False  # this process ends, see `end_decoding`


class DecodingOverError(Exception):
    """This process is about to end, and decodes nothing any more."""


def end_decoding() -> None:
    """Kill the children that are at work, and let no other begin: this process is about to end, as by Ctrl-C. Its
    threads, which it waits for, would wait in turn for each harmful image that they have in hand.

    May be called in the handler of a signal. Whoever waits for an image, or asks for one from here on, gets a
    DecodingOverError.
    """
    global _is_over
    _is_over = True
    for child in list(_asked):
        child.process.kill()


def _refuse_if_over() -> None:
    if _is_over:
        raise DecodingOverError


@dataclass(eq=False)
class _Child:
    """A decoder process as its parent sees it; used by one thread at a time."""

    process: subprocess.Popen[bytes]
    to_child: IO[bytes]
    from_child: IO[bytes]

    def ask(self, op: str, data: bytes, *, max_pixels: int, decoding: Decoding) -> tuple[dict[str, Any], bytearray]:
        """Send a request and wait for its answer. Raises EOFError or BrokenPipeError when the process ends."""
        limits = (decoding.timeout_s, int(decoding.memory_gb * 1e9))
        self.to_child.write(REQUEST.pack(op.encode(), max_pixels, *limits, len(data)))
        self.to_child.write(data)
        self.to_child.flush()
        (length,) = LENGTH.unpack(read_exactly(self.from_child, LENGTH.size))
        about: dict[str, Any] = json.loads(read_exactly(self.from_child, length))
        return about, read_exactly(self.from_child, about.get("bytes", 0))

    def end(self) -> int:
        """Close the pipes, kill what is left, and return how the process ended (a signal as a negative number)."""
        for pipe in (self.to_child, self.from_child):
            with suppress(BrokenPipeError):  # what was still to be sent is of no interest
                pipe.close()
        try:
            return self.process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


def _take_child() -> _Child:
    """A waiting child, or a new one. Those that were killed while they waited, as where memory was short, are no
    attempt at an image."""
    _refuse_if_over()
    while True:
        try:
            child = _idle.pop()
        except IndexError:
            return _start_child()
        if child.process.poll() is None:
            return child
        child.end()


def _start_child(*, tries: int = 3) -> _Child:
    """A new child that has said that it is ready. Raises InputError with its last words when it does not.

    One that is killed while it starts was no image's doing, and another one is started.
    """
    code = str(Path(__file__).parents[3])  # where `maskmine` is
    paths = [code, *filter(None, [os.environ.get("PYTHONPATH")])]
    # one thread of BLAS, which nothing here uses: each one reserves address space, and that is limited
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OPENBLAS_NUM_THREADS": "1"}
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "maskmine.mining.images.decoder_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        child = _Child(process, process.stdin, process.stdout)
        _widen(process.stdin, process.stdout)
        try:
            read_exactly(child.from_child, len(READY))
        except EOFError as error:
            ended = child.end()
            if ended < 0 and tries > 1:
                return _start_child(tries=tries - 1)
            errors.seek(0)
            said = errors.read().decode(errors="replace").strip().splitlines() or [f"it ended with {ended}"]
            raise InputError(
                f"the process that decodes pictures does not start ({said[-1][:200]}); "
                f"`{sys.executable} -m maskmine.mining.images.decoder_process </dev/null` says more"
            ) from error
    return child


def _widen(*pipes: IO[bytes]) -> None:
    for pipe in pipes:
        if hasattr(fcntl, "F_SETPIPE_SZ"):
            with suppress(PermissionError):  # this user has many pipes; smaller ones do as well
                fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)


def _end_children() -> None:
    while _idle:
        _idle.pop().end()


def _forget_children() -> None:
    _inherited.extend([*_idle, *_asked])
    _idle.clear()
    _asked.clear()


atexit.register(_end_children)
os.register_at_fork(after_in_child=_forget_children)
