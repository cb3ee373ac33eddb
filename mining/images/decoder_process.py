"""The program of the child processes that decode images (see `child_decoder.py`, their parent).

It imports what decodes and nothing of settings or storage: a run starts a child for each of its threads, and each one
that a harmful image has ended is started again.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import struct
import sys
from typing import IO, Any

import numpy as np
from PIL import AvifImagePlugin

from maskmine.mining.images.decode import DecodedImage, StoredImage, decode_image, decode_stored, read_header
from maskmine.schemas.rows import Rejection

# Fixed heads of requests and answers, see the top of `child_decoder.py`, and what a child sends when it is ready.
REQUEST = struct.Struct("<6sQdQQ")
LENGTH = struct.Struct("<I")
READY = b"ready\n"
ABOUT = ("sha256", "orientation", "turned_by")  # what an answer says of an image besides its pixels
HEADER = "header"
UPRIGHT = "decode"
STORED = "stored"  # and a mode of Pillow in its place, into which the image is converted


def main() -> None:
    """The child: answers requests until its parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent; without it this process ends too
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # one for each core would reserve more address space than is allowed
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # the kernel ends the process, whatever code it is in
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    answers.write(READY)
    answers.flush()
    nothing = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # libraries write warnings about broken files there
        os.dup2(nothing, stream)
    while True:
        try:
            op, max_pixels, timeout_s, memory_bytes, length = REQUEST.unpack(read_exactly(requests, REQUEST.size))
            data = bytes(read_exactly(requests, length))
        except EOFError:
            return
        _limit_memory(memory_bytes)
        signal.setitimer(signal.ITIMER_REAL, timeout_s)
        about, pixels = _answer(op.rstrip(b"\0").decode(), data, max_pixels=max_pixels, memory_bytes=memory_bytes)
        signal.setitimer(signal.ITIMER_REAL, 0)
        text = json.dumps(about).encode()
        try:
            answers.write(LENGTH.pack(len(text)) + text)
            answers.write(pixels)
            answers.flush()
        except BrokenPipeError:
            os._exit(0)


def _answer(op: str, data: bytes, *, max_pixels: int, memory_bytes: int) -> tuple[dict[str, Any], bytes | memoryview]:
    answer: Any
    try:
        if op == HEADER:
            answer = read_header(data)
        elif op == UPRIGHT:
            answer = decode_image(data, max_pixels=max_pixels)
        else:
            answer = decode_stored(data, max_pixels=max_pixels, mode=None if op == STORED else op)
    except MemoryError:
        return {"rejection": ["worker_crash", f"decoding needs more than {memory_bytes / 1e9:g} GB of memory"]}, b""
    if isinstance(answer, Rejection):
        return {"rejection": [answer.reason, answer.detail]}, b""
    if isinstance(answer, DecodedImage):
        return _with_pixels(answer.rgb_HW3, {name: getattr(answer, name) for name in ABOUT})
    if isinstance(answer, StoredImage):
        about = {"mode": answer.mode, "format": answer.format, "orientation": answer.orientation}
        return _with_pixels(answer.pixels, about)
    return {"stored_px": answer.stored_px, "upright_px": answer.upright_px, "orientation": answer.orientation}, b""


def _with_pixels(pixels: np.ndarray[Any, Any], about: dict[str, Any]) -> tuple[dict[str, Any], memoryview]:
    pixels = np.ascontiguousarray(pixels)
    about |= {"shape": pixels.shape, "type": pixels.dtype.str, "bytes": pixels.nbytes}
    return about, pixels.reshape(-1).view(np.uint8).data


def _limit_memory(max_bytes: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    max_bytes = max_bytes if hard == resource.RLIM_INFINITY else min(max_bytes, hard)
    resource.setrlimit(resource.RLIMIT_AS, (max_bytes, hard))


def read_exactly(file: IO[bytes], length: int) -> bytearray:
    """`length` bytes. Raises EOFError when the other side is gone before."""
    buffer = bytearray(length)
    view, got = memoryview(buffer), 0
    while got < length:
        read: int | None = file.readinto(view[got:])  # type: ignore[attr-defined]
        if not read:
            raise EOFError
        got += read
    return buffer


if __name__ == "__main__":
    main()
