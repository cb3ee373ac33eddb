"""Records of JSON files: an object a line (JSON lines), or objects in a list, in a named list, or one after another.

Which it is shows in how the file begins. Only JSON lines go on after a broken record; elsewhere a fault ends the file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from typing import IO, Any, Literal

from maskmine.mining.sources.text_files import BAD_BYTE, open_text
from maskmine.mining.storage.bounded.limits import USUAL, Limits
from maskmine.schemas.errors import InputError

Layout = Literal["lines", "list", "named list", "one after another"]
LAYOUT_NAMES: dict[Layout, str] = {
    "lines": "JSON lines",
    "list": "a JSON list",
    "named list": "a JSON list in an object",
    "one after another": "JSON objects one after another",
}
Record = dict[str, Any] | str
"""A record, or what is wrong with it."""

_READ_CHARS = 1 << 18
_BETWEEN = " \t\r\n,"
_SOMETHING = re.compile(f"[^{_BETWEEN}]")
_EMPTY_LINES = re.compile(r"(?:[ \t\r]*+\n)*+")
_NESTING = re.compile(r'"(?:[^"\\]|\\.)*+"|[][{}]', re.DOTALL)
_DECODER = json.JSONDecoder()
# Python makes no number of more than 4300 digits, and says so in an error of no class of its own.
_LENIENT = json.JSONDecoder(parse_int=lambda digits: int(digits) if len(digits) < 4_000 else digits)


def json_records(
    path: str, *, columns: Collection[str], encoding: str | None = None, limits: Limits = USUAL
) -> Iterator[tuple[int, Record]]:
    """The records of a file with their numbers: of lines from 1 in JSON lines, of entries from 0 elsewhere.

    `columns` are the names that a record has some of. A record beyond the limits is a broken one. Raises InputError, in
    one line, when the file cannot be read.
    """
    with open_text(path, encoding=encoding, universal=True, limits=limits) as (text, used):
        reader = _Reader(text, path, limits)
        layout = _layout(reader, columns)
        records = _lines(reader, encoding=used) if layout == "lines" else _entries(reader, layout=layout)
        for number, record in records:
            too_deep = isinstance(record, dict) and is_deeper(record, limits.max_depth)
            what = "line" if layout == "lines" else "entry"
            yield number, f"{what} {number} is nested deeper than {limits.max_depth} levels" if too_deep else record


def json_layout(path: str, *, columns: Collection[str], encoding: str | None = None) -> tuple[Layout, str]:
    """How the records of a file lie in it, and its encoding. Raises InputError when the file cannot be read."""
    with open_text(path, encoding=encoding, universal=True) as (text, used):
        return _layout(_Reader(text, path, USUAL), columns), used


def is_deeper(value: Any, max_depth: int) -> bool:
    """Whether lists and objects lie deeper in each other."""
    level = [value]
    for _ in range(max_depth + 1):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return False
    return True


class _Reader:
    """A text as it is read, of which a piece is in memory: `ahead`, from `at` on."""

    def __init__(self, text: IO[str], path: str, limits: Limits) -> None:
        self.path = path
        self.max_chars = limits.max_record_bytes
        self._text = text
        self.ahead = text.read(_READ_CHARS).removeprefix("\ufeff")
        self.at = 0

    def more(self) -> bool:
        """Read another piece, and as much again where that is long already; False at the end."""
        piece = self._text.read(max(_READ_CHARS, len(self.ahead) - self.at))
        self.ahead, self.at = self.ahead[self.at :] + piece, 0
        return bool(piece)

    def peek(self) -> str:
        """The next character that is no space or comma; empty at the end."""
        while True:
            if found := _SOMETHING.search(self.ahead, self.at):
                self.at = found.start()
                return found[0]
            self.at = len(self.ahead)
            if not self.more():
                return ""

    def value(self) -> tuple[Any, bool]:
        """The next JSON value, and whether all its bytes were text. Raises ValueError where none is, RecursionError."""
        self.peek()
        while True:
            try:
                value, end = _decoded(self.ahead, self.at)
            except ValueError:
                if len(self.ahead) - self.at > self.max_chars or not self.more():
                    raise
                continue
            except RecursionError:
                value, end = None, self._end_of_nested()
            # a number at the end of the piece may go on behind it
            if end == len(self.ahead) and self.ahead[end - 1] not in '}]"' and self.more():
                continue
            end = min(end, len(self.ahead))
            is_text = BAD_BYTE not in self.ahead[self.at : end]
            self.at = end
            return value, is_text

    def line(self) -> str:
        """The next line with its end, or the beginning of one that is too long; empty at the end."""
        while (end := self.ahead.find("\n", self.at)) < 0:
            if len(self.ahead) - self.at > self.max_chars:
                line = self.ahead[self.at :]
                self._skip_line()
                return line
            if not self.more():
                end = len(self.ahead) - 1
                break
        line, self.at = self.ahead[self.at : end + 1], end + 1
        return line

    def skip_empty(self) -> int:
        """Pass over the empty lines that come next in the piece; how many they are."""
        found = _EMPTY_LINES.match(self.ahead, self.at)
        assert found is not None
        self.at = found.end()
        return found[0].count("\n")

    def _end_of_nested(self) -> int:
        """Where the list or object that begins here ends. Raises ValueError where it does not, or is too long."""
        while True:
            depth = 0
            for token in _NESTING.finditer(self.ahead, self.at):
                depth += (token[0] in ("[", "{")) - (token[0] in ("]", "}"))
                if not depth:
                    return token.end()
            if len(self.ahead) - self.at > self.max_chars or not self.more():
                raise ValueError("nested too deep, and without end")

    def _skip_line(self) -> None:
        """Read on behind the end of this line, and keep nothing of it."""
        self.at = len(self.ahead)
        while self.more():
            end = self.ahead.find("\n")
            self.at = len(self.ahead) if end < 0 else end + 1
            if end >= 0:
                return


def _decoded(text: str, at: int) -> tuple[Any, int]:
    """The JSON value at a place, and where it ends. Raises ValueError, RecursionError."""
    try:
        return _DECODER.raw_decode(text, at)
    except ValueError as error:
        if type(error) is not ValueError:
            raise
        return _LENIENT.raw_decode(text, at)  # a number of too many digits, which is then a text


def _layout(reader: _Reader, columns: Collection[str]) -> Layout:
    """How the records lie, with the reader where they begin: before the first line, or in the list."""
    first = reader.peek()
    start = reader.at
    if first == "[":
        line_end = reader.ahead.find("\n", start)
        if (
            line_end >= 0
            and reader.ahead[line_end:].strip()
            and _is_list_of_others(reader.ahead[start:line_end], columns)
        ):
            return "lines"  # each line is rejected by itself
        reader.at += 1
        return "list"
    if first == "{" and not _is_record(reader.ahead[start : _line_end(reader, start)], columns):
        if _to_named_list(reader, columns):
            return "named list"
        reader.at = start
        try:
            whole, _ = _DECODER.raw_decode(reader.ahead, start)
        except (ValueError, RecursionError):
            whole = None
        if _has_some(whole, columns) and not _is_json(reader.ahead[start : _line_end(reader, start)]):
            return "one after another"
    reader.at = 0
    return "lines"


def _line_end(reader: _Reader, start: int) -> int:
    end = reader.ahead.find("\n", start)
    return end if end >= 0 else len(reader.ahead)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _is_list_of_others(line: str, columns: Collection[str]) -> bool:
    """Whether a line is a whole list, and not one of records."""
    try:
        entries = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return not any(_has_some(entry, columns) for entry in entries)


def _is_record(line: str, columns: Collection[str]) -> bool:
    try:
        return _has_some(json.loads(line), columns)
    except (ValueError, RecursionError):
        return False


def _has_some(record: Any, columns: Collection[str]) -> bool:
    return isinstance(record, dict) and any(column in record for column in columns)


def _to_named_list(reader: _Reader, columns: Collection[str]) -> bool:
    """Move into the first list at the top of an object whose first entry has some of the columns; False without one.

    It has to begin in the piece that is in memory.
    """
    at = reader.at + 1
    text = reader.ahead
    try:
        while True:
            at = _skip(text, at)
            name, at = _DECODER.raw_decode(text, at)
            at = _skip(text, at)
            if not isinstance(name, str) or text[at] != ":":
                return False
            at = _skip(text, at + 1)
            if text[at] == "[":
                entry = _skip(text, at + 1)
                if text[entry] == "{" and _has_some(_DECODER.raw_decode(text, entry)[0], columns):
                    reader.at = at + 1
                    return True
            _, at = _DECODER.raw_decode(text, at)
    except (ValueError, IndexError, RecursionError):
        return False


def _skip(text: str, at: int) -> int:
    while text[at] in _BETWEEN:
        at += 1
    return at


def _lines(reader: _Reader, *, encoding: str) -> Iterator[tuple[int, Record]]:
    number = reader.skip_empty()
    while line := reader.line():
        number += 1
        if len(line) > reader.max_chars:
            yield number, f"line {number} is longer than {reader.max_chars:,} characters"
        elif line.strip():
            yield number, _record_of(line, number, encoding)
        number += reader.skip_empty()


def _record_of(line: str, number: int, encoding: str) -> Record:
    if BAD_BYTE in line:
        return f"line {number} is no text in {encoding}; name its encoding by `encoding`"
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return f"line {number} is no JSON"
    return record if isinstance(record, dict) else f"line {number} is no JSON object"


def _entries(reader: _Reader, *, layout: Layout) -> Iterator[tuple[int, Record]]:
    number, ends_at = 0, "" if layout == "one after another" else "]"
    while True:
        following = reader.peek()
        if following == ends_at:
            if layout != "list" or not _to_next_list(reader):
                return
            continue
        if not following:
            raise InputError(f"{reader.path}: breaks off after {number:,} entries; get the file again")
        try:
            record, is_text = reader.value()
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{reader.path}: entry {number} is no JSON ({' '.join(str(error).split())[:80]}); get the file again"
            ) from error
        if not is_text:
            yield number, f"entry {number} holds bytes that are no text in the file's encoding; name it by `encoding`"
        else:
            yield number, record if isinstance(record, dict) else f"entry {number} is no JSON object"
        number += 1


def _to_next_list(reader: _Reader) -> bool:
    """Move into the list behind one that ended, as in files that were put together; False at the end of the file."""
    reader.at += 1
    following = reader.peek()
    if following == "[":
        reader.at += 1
    elif following:
        raise InputError(f"{reader.path}: something stands behind the end of its list; get the file again")
    return bool(following)
