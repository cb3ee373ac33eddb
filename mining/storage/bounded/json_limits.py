"""JSON as a stream with a bound on its depth and on the length of its entries, before a parser sees it.

What lies deeper than a list at the top of the file (`{"images": [` is depth 2) is an entry. An entry that is too long
or too deep leaves the stream, and an object that says so takes its place; so it costs itself and no other.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

TOO_MUCH = "\ufdd2"
"""The one key of the object that takes the place of an entry; its value says what was too much."""

_OUTSIDE = 2  # depth of what is no entry
_ESCAPED = re.compile(rb"\\.", re.DOTALL)
_QUOTE, _OPEN, _CLOSE = 1, 2, 3
_KINDS = np.zeros(256, np.uint8)
_KINDS[list(b'"')], _KINDS[list(b"[{")], _KINDS[list(b"]}")] = _QUOTE, _OPEN, _CLOSE

Places = np.ndarray[Any, np.dtype[np.int64]]


class TooLongError(ValueError):
    """A text or number outside of all entries is too long."""


def bounded_json(chunks: Iterable[bytes], *, max_bytes: int, max_depth: int) -> Iterator[bytes]:
    """The same JSON in UTF-8, in pieces that hold whole entries. Raises TooLongError."""
    state = _State(max_bytes=max_bytes, max_depth=max_depth)
    for chunk in chunks:
        if passed := state.take(chunk):
            yield passed
    if rest := b"".join(state.held):  # the beginning of something that breaks off
        yield rest


@dataclass(slots=True)
class _State:
    """Where in the JSON the last chunk ended, and what is held behind the last end of an entry or list.

    `entry` is where in `held` an entry begins, `last_token` where in the chunk the last quote or bracket is. `dropped`:
    the entry that is being read is passed over.
    """

    max_bytes: int
    max_depth: int
    depth: int = 0
    in_text: bool = False
    escaped: bool = False
    held: list[bytes] = field(default_factory=list)
    held_bytes: int = 0
    entry: int | None = None
    last_token: int = -1
    dropped: bool = False

    def take(self, chunk: bytes) -> bytes:
        """What can be passed on with one more chunk. Brackets B lie outside of texts, and `depth_B` is behind them."""
        places_B, depth_B = self._brackets(chunk)
        ends = places_B[depth_B <= _OUTSIDE]
        begins = places_B[(depth_B == _OUTSIDE + 1) & (np.diff(depth_B, prepend=self.depth) > 0)]
        deep = places_B[depth_B > self.max_depth]
        self.depth = int(depth_B[-1]) if len(depth_B) else self.depth
        pieces, at = list[bytes](), 0
        if len(ends):
            pieces, at = self._up_to_last_end(chunk, ends, begins, deep)
        if self.dropped or at == len(chunk):
            return b"".join(pieces)
        begins = begins[begins >= at]
        if len(begins) and self.entry is None:
            self.entry = self.held_bytes + int(begins[0]) - at
        if self.entry is None and (cut := self._cut_of_plain(chunk, at)) > at:
            pieces += [*self.held, chunk[at:cut]]
            self.held, self.held_bytes, at = [], 0, cut
        self.held.append(chunk[at:])
        self.held_bytes += len(chunk) - at
        start = self.entry or 0
        if len(deep) and deep[-1] >= at:
            pieces += self._drop(f"nested deeper than {self.max_depth} levels")
        elif self.held_bytes - start > self.max_bytes:
            pieces += self._drop(self._too_long)
        return b"".join(pieces)

    def _cut_of_plain(self, chunk: bytes, at: int) -> int:
        """Where a chunk without an entry may be cut: before the text that goes on behind it, or behind a comma."""
        if self.in_text:
            return self.last_token
        return chunk.rfind(b",", max(at, self.last_token)) + 1

    @property
    def _too_long(self) -> str:
        return f"longer than {self.max_bytes:,} bytes"

    def _up_to_last_end(self, chunk: bytes, ends: Places, begins: Places, deep: Places) -> tuple[list[bytes], int]:
        """The chunk up to its last end without the entries that are too much, behind what is held; where that is."""
        pieces, at = self.held, 0
        self.held = []
        if self.dropped:
            pieces, at, self.dropped = [], int(ends[0]) + 1, False
        elif self.entry is not None:
            self.held = pieces
            too_deep = len(deep) and deep[0] < ends[0]
            if too_deep or self.held_bytes - self.entry + int(ends[0]) > self.max_bytes:
                reason = f"nested deeper than {self.max_depth} levels" if too_deep else self._too_long
                pieces, at, self.dropped = self._drop(reason), int(ends[0]) + 1, False
            self.held = []
        for begin, end in self._too_much(ends, begins, deep):
            if begin >= at:
                is_deep = np.searchsorted(deep, begin) < np.searchsorted(deep, end)
                reason = f"nested deeper than {self.max_depth} levels" if is_deep else self._too_long
                pieces += [chunk[at:begin], _marker(reason)]
                at = end + 1
        last = int(ends[-1]) + 1
        pieces.append(chunk[at:last])
        self.held_bytes, self.entry = 0, None
        return pieces, last

    def _too_much(self, ends: Places, begins: Places, deep: Places) -> Iterator[tuple[int, int]]:
        """The first and the last byte of entries within a chunk that are too long or too deep."""
        whole = begins[begins < ends[-1]]
        if not len(whole):
            return
        closes = ends[np.searchsorted(ends, whole)]
        bad = closes - whole >= self.max_bytes
        if len(deep):
            bad |= np.searchsorted(deep, whole) < np.searchsorted(deep, closes)
        yield from zip(whole[bad].tolist(), closes[bad].tolist(), strict=True)

    def _drop(self, reason: str) -> list[bytes]:
        """Pass over the entry that is being read; what is passed on in its place, with what was held before it."""
        if self.entry is None:
            raise TooLongError(f"a text or a number {reason}")
        before = b"".join(self.held)[: self.entry]
        self.held, self.held_bytes, self.entry, self.dropped = [], 0, None, True
        return [before, _marker(reason)]

    def _brackets(self, chunk: bytes) -> tuple[Places, Places]:
        """The places of brackets outside of texts, and the depth behind each."""
        plain = b" " + chunk[1:] if self.escaped and chunk else chunk
        if b"\\" in plain:
            plain = _ESCAPED.sub(b"  ", plain)
        self.escaped = plain.endswith(b"\\") if chunk else self.escaped
        kinds_N = _KINDS[np.frombuffer(plain, np.uint8)]
        places_T = np.flatnonzero(kinds_N)
        kinds_T = kinds_N[places_T]
        self.last_token = int(places_T[-1]) if len(places_T) else -1
        quotes_T = np.cumsum(kinds_T == _QUOTE) + int(self.in_text)
        is_bracket_T = (kinds_T != _QUOTE) & (quotes_T % 2 == 0)
        if len(quotes_T):
            self.in_text = bool(quotes_T[-1] % 2)
        steps_B = np.where(kinds_T[is_bracket_T] == _OPEN, 1, -1)
        return places_T[is_bracket_T], np.cumsum(steps_B) + self.depth


def _marker(said: str) -> bytes:
    return json.dumps({TOO_MUCH: said}).encode()


def keys_in(value: Any) -> Iterator[tuple[str, Any]]:
    """The keys of all mappings in a value, however deep, with their values."""
    waiting = [value]
    while waiting:
        inner = waiting.pop()
        if isinstance(inner, Mapping):
            yield from ((str(key), each) for key, each in inner.items())
            waiting += inner.values()
        elif isinstance(inner, list | tuple):
            waiting += inner
