"""The blocks of a JPEG or GIF, walked before Pillow does: small files can hold so many that decoding takes minutes.

Pillow copies what it has of a comment or of EXIF for each further block, and libjpeg goes over the whole picture for
each scan, however little it holds.
"""

from __future__ import annotations

import re

MAX_SCANS = 500
"""Scans of a JPEG: encoders write a dozen, and the fuzzers of libjpeg-turbo read as many."""
MAX_SEGMENTS = 10_000
"""Segments of a JPEG before its pixels; a colour profile has 255 at most."""

_MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])", re.DOTALL)  # not the escapes and restarts within a scan
_SCAN = b"\xff\xda"
_END_OF_JPEG, _START_OF_SCAN, _WITHOUT_LENGTH = 0xD9, 0xDA, (0x01, 0xD8)

_GIF_HEAD_BYTES, _PALETTE_BIT = 13, 0x80
_EXTENSION, _FRAME, _TRAILER, _CONTROL = 0x21, 0x2C, 0x3B, 0xF9


def jpeg_fault(data: bytes) -> str:
    """Why a JPEG is not read; empty where it is. What lies behind its end, as previews do, does not count."""
    at = segments = scans = 0
    few = data.count(_SCAN) <= MAX_SCANS  # as in nearly every file: then scans need not be walked
    while (found := _MARKER.search(data, at)) is not None:
        marker, at = found[1][0], found.end()
        segments += not scans
        scans += marker == _START_OF_SCAN
        if segments > MAX_SEGMENTS:
            return f"more than {MAX_SEGMENTS:,} segments"
        if scans > MAX_SCANS:
            return f"more than {MAX_SCANS} scans"
        if marker == _END_OF_JPEG or (few and scans):
            break
        at += 0 if marker in _WITHOUT_LENGTH else int.from_bytes(data[at : at + 2], "big")
    return ""


def gif_for_pixels(data: bytes) -> bytes:
    """A GIF without what stands before its first frame, but what makes a colour transparent."""
    at = _GIF_HEAD_BYTES
    if len(data) > at and data[10] & _PALETTE_BIT:
        at += 3 * 2 ** (data[10] % 8 + 1)
    head, control = data[:at], b""
    while at < len(data) and data[at] not in (_FRAME, _TRAILER):
        start, at = at, at + 1
        if data[start] != _EXTENSION or at == len(data):
            continue  # Pillow passes over what is no block
        label, at = data[at], at + 1
        while at < len(data) and data[at]:
            at += 1 + data[at]
        at += 1
        if label == _CONTROL:
            control = data[start:at]
    return head + control + data[at:]
