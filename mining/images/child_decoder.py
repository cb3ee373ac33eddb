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

from maskmine.mining.images.decode import DecodedImage
from maskmine.mining.images.decoder_process import ABOUT, LENGTH, READY, REQUEST, read_exactly
from maskmine.mining.images.read import max_bytes, read_bytes, read_head
from maskmine.mining.storage.urls import Fetch
from maskmine.schemas.errors import InputError
from maskmine.schemas.rows import Rejection
from maskmine.schemas.settings import Settings


class Decoding(Settings):
    """Limits of the child processes that decode images; they keep a harmful image from stopping the run."""

    timeout_s: float = Field(default=60.0, gt=0)
    """Seconds of decoding after which an image is rejected as `record_timeout`."""
    memory_gb: float = Field(default=4.0, ge=0.5)
    """Address space of a child in 10⁹ bytes; an image that needs more is rejected as `worker_crash`."""
    attempts: int = Field(default=2, ge=1)
    """Attempts before an image that ends its process is rejected; a process may also be killed from outside."""
    fetch: Fetch = Fetch()
    """Whether and how images are read from URLs."""

    def size(self, path: str | None, *, max_pixels: int) -> tuple[int, int] | Rejection:
        """The size of the upright image from the head of its file; as `images.image_size`, in a child process.

        An image whose header lies elsewhere, as some TIFFs have it, is rejected here and may yet be read. So is one
        at a URL, which would be fetched twice.
        """
        answer = self._ask("size", read_head(path), max_pixels=max_pixels)
        return answer if isinstance(answer, Rejection) else tuple(answer[0]["size"])

    def read(self, path: str | None, *, max_pixels: int) -> DecodedImage | Rejection:
        """The image at `path`; as `images.read_image`, in a child process.

        Further reasons are `worker_crash` and `record_timeout`. Raises InputError when no child can be started.
        """
        data = read_bytes(path, max_bytes=max_bytes(max_pixels), urls=self.fetch)
        return data if isinstance(data, Rejection) else self.decode(data, max_pixels=max_pixels)

    def decode(self, data: bytes, *, max_pixels: int) -> DecodedImage | Rejection:
        """The image in the bytes of a file; as `images.decode_image`, in a child process; rejects as `read`."""
        answer = self._ask("decode", data, max_pixels=max_pixels)
        if isinstance(answer, Rejection):
            return answer
        about, pixels = answer
        rgb_HW3 = np.frombuffer(pixels, np.uint8).reshape(about["shape"])
        return DecodedImage(rgb_HW3, **{name: about[name] for name in ABOUT})

    def _ask(
        self, op: str, data: bytes | Rejection, *, max_pixels: int
    ) -> tuple[dict[str, Any], bytearray] | Rejection:
        if isinstance(data, Rejection):
            return data
        ended = 0
        for _ in range(self.attempts):
            child = _take_child()
            try:
                about, pixels = child.ask(op, data, max_pixels=max_pixels, decoding=self)
            except (EOFError, BrokenPipeError, ConnectionResetError):
                ended = child.end()
                continue
            except BaseException:  # an interrupt in the middle of an answer: this child is of no use any more
                child.end()
                raise
            _idle.append(child)
            return Rejection(*about["rejection"]) if "rejection" in about else (about, pixels)
        return self._rejection(ended)

    def _rejection(self, ended: int) -> Rejection:
        tried = f"{self.attempts} times" if self.attempts > 1 else "once"
        if ended == -signal.SIGALRM:
            return Rejection("record_timeout", f"decoding took more than {self.timeout_s:g} s, tried {tried}")
        how = signal.Signals(-ended).name if ended < 0 else f"exit code {ended}"
        return Rejection("worker_crash", f"decoding ended its process with {how}, tried {tried}")


_PIPE_BYTES = 1 << 20  # as much as Linux allows every user; an image then takes one or two writes

# Children that wait for work. They hold no state between images, so all steps of this process share them.
_idle: list[_Child] = []
_inherited: list[_Child] = []  # of the process that this one was forked from: their pipes are not ours


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
        return about, read_exactly(self.from_child, int(np.prod(about.get("shape", [0]))))

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
    """A waiting child, or a new one."""
    try:
        return _idle.pop()
    except IndexError:
        return _start_child()


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
    _inherited.extend(_idle)
    _idle.clear()


atexit.register(_end_children)
os.register_at_fork(after_in_child=_forget_children)
