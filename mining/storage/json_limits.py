"""JSON as a stream with a bound on its depth and on the length of its entries, before a parser sees it.

What lies deeper than a list at the top of the file (`{"images": [` is depth 2) is an entry. An entry that is too long
or too deep leaves the stream, and an object that says so takes its place; so it costs itself and no other.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

TOO_MUCH = "\ufdd2"
"""The one key of the object that takes the place of an entry; its value says what was too much."""

_OUTSIDE = 2  # depth of what is no entry
_ESCAPED = re.compile(rb"\\.", re.DOTALL)
_QUOTE, _OPEN, _CLOSE, _TO_CURLY = 0x22, 0x7B, 0x7D, 0x20
# Bytes behind which the text may be cut: no token goes on behind one.
_ENDS = np.zeros(256, np.bool_)
_ENDS[list(b",:[]{} \t\r\n")] = True

Flags = np.ndarray[Any, np.dtype[np.bool_]]


class TooLongError(ValueError):
    """A text or number outside of all entries is too long."""


def bounded_json(chunks: Iterable[bytes], *, max_bytes: int, max_depth: int) -> Iterator[bytes]:
    """The same JSON in UTF-8, in pieces that hold whole entries. Raises TooLongError."""
    state = _State(max_bytes=max_bytes, max_depth=max_depth)
    for chunk in chunks:
        if passed := state.take(chunk):
            yield passed
    if rest := state.rest():
        yield rest


@dataclass(slots=True)
class _State:
    """Where in the JSON the last chunk ended, and what is held of an entry that goes on behind it.

    `dropped` says what is wrong with the entry that is being passed over.
    """

    max_bytes: int
    max_depth: int
    depth: int = 0
    in_text: bool = False
    escaped: bool = False
    held: list[bytes] = field(default_factory=list)
    held_bytes: int = 0
    dropped: str = ""

    @property
    def _too_deep(self) -> str:
        return f"nested deeper than {self.max_depth} levels"

    @property
    def _too_long(self) -> str:
        return f"longer than {self.max_bytes:,} bytes"

    def take(self, chunk: bytes) -> bytes:
        """What can be passed on with one more chunk."""
        is_end, depth_N = self._scan(chunk)
        ends = np.flatnonzero(is_end)
        last = int(ends[-1]) + 1 if len(ends) else 0
        passed = self._passed(chunk, ends, depth_N) if last else b""
        tail = chunk[last:]
        if tail and not self.dropped:
            self.held.append(tail)
            self.held_bytes += len(tail)
            if depth_N[last:].max() > self.max_depth:
                self._drop(self._too_deep)
            elif self.held_bytes > self.max_bytes:
                self._drop(self._too_long)
        return passed

    def rest(self) -> bytes:
        """What is held at the end of the file: the beginning of something that breaks off."""
        return b"".join(self.held)

    def _passed(self, chunk: bytes, ends: Any, depth_N: Any) -> bytes:
        """The chunk up to its last end, behind what is held, without the entries that are too deep."""
        first, last = int(ends[0]), int(ends[-1]) + 1
        pieces, start = self.held, 0
        if self.dropped:
            pieces, start = [_marker(self.dropped)], first + 1
            self.dropped = ""
        elif self.held_bytes + first > self.max_bytes:
            self.held.append(chunk[:first])
            self._drop(self._too_long)
            pieces, start = [_marker(self.dropped)], first + 1
            self.dropped = ""
        deep = np.flatnonzero(depth_N[:last] > self.max_depth)
        long = ends[1:][np.diff(ends) > self.max_bytes] - 1
        for place in np.union1d(deep, long).tolist():
            if place < start:
                continue  # in the entry before
            after = int(np.searchsorted(ends, place))
            begin = int(ends[after - 1]) + 1 if after else 0
            reason = self._too_deep if depth_N[begin : int(ends[after])].max() > self.max_depth else self._too_long
            if chunk[begin : begin + 1] not in (b"{", b"["):
                raise TooLongError(f"a text or a number {reason}")
            pieces = [] if begin == 0 else pieces  # what was held is of this entry
            pieces += [chunk[start:begin], _marker(reason)]
            start = int(ends[after]) + 1
        pieces.append(chunk[start:last])
        self.held, self.held_bytes = [], 0
        return b"".join(pieces)

    def _drop(self, reason: str) -> None:
        if self.held and self.held[0][:1] not in (b"{", b"["):
            raise TooLongError(f"a text or a number {reason}")
        self.held, self.held_bytes, self.dropped = [], 0, reason

    def _scan(self, chunk: bytes) -> tuple[Flags, Any]:
        """For each byte whether the text may be cut behind it, and the depth behind it."""
        plain = chunk
        if self.escaped and chunk:
            plain = b" " + chunk[1:]
        if b"\\" in plain:
            plain = _ESCAPED.sub(b"  ", plain)
        self.escaped = plain.endswith(b"\\")
        bytes_N = np.frombuffer(plain, np.uint8)
        quotes_N = np.cumsum(bytes_N == _QUOTE, dtype=np.int32) + int(self.in_text)
        outside_N = (quotes_N & 1) == 0
        curly_N = bytes_N | _TO_CURLY
        steps_N = (curly_N == _OPEN).astype(np.int8) - (curly_N == _CLOSE).astype(np.int8)
        depth_N = np.cumsum(steps_N * outside_N, dtype=np.int32) + self.depth
        if len(bytes_N):
            self.depth, self.in_text = int(depth_N[-1]), not outside_N[-1]
        return outside_N & (depth_N <= _OUTSIDE) & _ENDS[bytes_N], depth_N


def _marker(said: str) -> bytes:
    return json.dumps({TOO_MUCH: said}).encode()
