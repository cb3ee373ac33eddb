"""Text files as they come: compressed or not, in UTF-8 or another encoding, after a byte order mark or without.

Bytes that the encoding has no character for become BAD_BYTE, which no text in any encoding holds, so that a reader can
reject the record that they stand in.
"""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Annotated, Any

from pydantic import AfterValidator

from maskmine.mining.sources.files import open_source
from maskmine.mining.storage.bounded.limits import USUAL, Limits
from maskmine.mining.storage.bounded.unpacking import MAGIC, UNPACKING_ERRORS, unpacked
from maskmine.schemas.errors import InputError

BAD_BYTE = "\udcff"
"""Stands for what could not be decoded."""
COMPRESSED_SUFFIXES = ("", ".gz", ".bz2", ".xz", ".zst")

_SAMPLE_BYTES = 1 << 16
_MARK_BAD = "maskmine.bad"  # the error handler of codecs that writes BAD_BYTE
_BOMS = (
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_ARCHIVES = ((b"PK\x03\x04", "a zip archive"), (b"7z\xbc\xaf\x27\x1c", "a 7z archive"), (b"Rar!", "a rar archive"))


def _known_encoding(name: str) -> str:
    try:
        codec = codecs.lookup(name)
    except LookupError:
        raise ValueError(f"`{name}` is no encoding that Python knows; give one such as `utf-8` or `cp1252`") from None
    if not codec._is_text_encoding:  # such as `base64` and `zip`
        raise ValueError(f"`{name}` encodes no text; give an encoding such as `utf-8` or `cp1252`")
    return name


Encoding = Annotated[str, AfterValidator(_known_encoding)]
"""The name of an encoding that Python knows."""


@contextmanager
def open_text(
    path: str, *, encoding: str | None = None, universal: bool = False, limits: Limits = USUAL
) -> Iterator[tuple[IO[str], str]]:
    """A file's text for reading line by line, and the encoding that it is read in; None finds it out.

    Lines end at `\\n`, where a file has none at `\\r`, and at nothing else; with `universal` at both. Raises
    InputError, in one line, when the file cannot be read, is compressed and not whole, or unfolds beyond the limits.
    """
    codecs.register_error(_MARK_BAD, _mark_bad)
    with open_source(path) as raw, _unpacked(raw, path, limits) as file:
        head = file.peek(_SAMPLE_BYTES)
        encoding = _marked_encoding(head) or encoding or guess_encoding(head)
        newline = None if universal else "\n" if "\n" in head.decode(encoding, "ignore") or b"\r" not in head else "\r"
        yield io.TextIOWrapper(file, encoding=encoding, errors=_MARK_BAD, newline=newline), encoding


def plain_text(content: bytes, *, name: str, encoding: str | None = None) -> str:
    """A whole text, without its byte order mark; with no encoding given it is found out as by `guess_encoding`.

    Raises ValueError, with what is wrong with the file of that name.
    """
    try:
        return content.decode(_marked_encoding(content) or encoding or guess_encoding(content)).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise ValueError(f"the {name} is no {error.encoding.upper()} at byte {error.start}") from error


def lines_of(text: str) -> list[str]:
    """The lines of a text, which end at `\\n`, `\\r\\n` or `\\r`, and at nothing else that `str.splitlines` cuts at."""
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def guess_encoding(head: bytes) -> str:
    """UTF-8, UTF-16 or UTF-32 by the byte order mark, UTF-16 also by its NUL bytes; UTF-8 where nothing else shows."""
    if marked := _marked_encoding(head):
        return marked
    half = min(len(head), 1024) // 2
    if half:
        nul_even, nul_odd = head[: 2 * half : 2].count(0), head[1 : 2 * half : 2].count(0)
        # letters of a European language have one NUL byte each
        if nul_odd > half // 2 and not nul_even:
            return "utf-16-le"
        if nul_even > half // 2 and not nul_odd:
            return "utf-16-be"
    return "utf-8"


def _marked_encoding(head: bytes) -> str | None:
    return next((encoding for mark, encoding in _BOMS if head.startswith(mark)), None)


def _mark_bad(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return BAD_BYTE, error.end


@contextmanager
def _unpacked(raw: Any, path: str, limits: Limits) -> Iterator[io.BufferedReader]:
    """The file, or what a compressed one holds, as a stream."""
    plain = io.BufferedReader(raw, _SAMPLE_BYTES)
    head = plain.peek(8)
    for magic, what in _ARCHIVES:
        if head.startswith(magic):
            raise InputError(f"{path}: {what}; unpack it")
    kind = next((kind for magic, kind in MAGIC if head.startswith(magic)), None)
    if kind is None:
        yield plain
        return
    try:
        yield unpacked(plain, kind, path=path, max_ratio=limits.max_unpacked_ratio)
    except UNPACKING_ERRORS as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise InputError(f"{path}: not a whole {kind} file ({str(error)[:80]}); get the file again") from error
