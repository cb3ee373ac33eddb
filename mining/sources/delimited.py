"""Records of CSV and TSV files, whose dialect is found out from their first lines where no setting names it.

A quote that is never closed, or that would take in rows that are whole by themselves, costs its own line and no other.
"""

from __future__ import annotations

import csv
import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import IO, Any, Literal

from maskmine.mining.sources.files import column_missing
from maskmine.mining.sources.text_files import BAD_BYTE, open_text
from maskmine.mining.storage.bounded.limits import USUAL, Limits
from maskmine.schemas.errors import InputError

Quoting = Literal["none", "doubled", "backslash"]
Record = dict[str, Any] | str
"""A record, or what is wrong with it."""

_DELIMITER_NAMES = {"\t": "tab", ",": "comma", ";": "semicolon", "|": "bar"}
_CANDIDATES = {"csv": ",;\t|", "tsv": "\t,;|"}
_SEPARATOR_LINE = re.compile(r"\"?sep=(.)\"?")  # Excel's first line
_TOO_LONG = "\udcfe"  # begins a line that stands for another; no text in any encoding holds it
_SAMPLE_LINES, _SAMPLE_CHARS = 5_000, 1_000_000
_MAX_RECORD_LINES = 1_000
_ESCAPED: Mapping[Quoting, str] = {"doubled": '""', "backslash": '\\"'}


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a file is read. `spaced`: spaces around values belong to the file, not to the values. `first_line`: how many
    lines stand before the first record."""

    encoding: str
    delimiter: str
    quoting: Quoting
    columns: tuple[str, ...]
    has_header: bool
    first_line: int
    spaced: bool

    def told(self) -> str:
        """What was found out, for people."""
        fields = _DELIMITER_NAMES.get(self.delimiter, f"`{self.delimiter}`")
        quotes = {"none": "unquoted", "doubled": "quoted", "backslash": "quoted with backslashes"}
        header = "" if self.has_header else ", no header line"
        return f"{fields}-separated, {quotes[self.quoting]}, {self.encoding.removesuffix('-sig')}{header}"


@dataclass(frozen=True, slots=True)
class Asked:
    """What settings say of a dialect; None leaves it to be found out. `columns` are wanted, with their settings."""

    kind: Literal["csv", "tsv"]
    columns: Mapping[str, str]
    delimiter: str | None = None
    quoting: Quoting | None = None
    column_names: Sequence[str] = ()
    encoding: str | None = None


def delimited_records(path: str, asked: Asked, limits: Limits = USUAL) -> Iterator[tuple[int, Record]]:
    """The records of a file with the numbers of their first lines, from 1. Raises InputError, in one line."""
    with open_text(path, encoding=asked.encoding, limits=limits) as (text, encoding):
        lines = _Lines(_file_lines(text, limits.max_record_bytes))
        dialect = _dialect(lines.sample(), path, asked, encoding)
        deque(islice(lines, dialect.first_line), maxlen=0)
        yield from _records(lines, dialect, _Guard.of(dialect, asked))


def dialect_of(path: str, asked: Asked) -> Dialect:
    """The dialect of a file. Raises InputError when it cannot be read, or lacks a column."""
    with open_text(path, encoding=asked.encoding) as (text, encoding):
        return _dialect(_Lines(_file_lines(text, USUAL.max_record_bytes)).sample(), path, asked, encoding)


class _Lines(Iterator[str]):
    """Lines, some of which can be looked at before or given back; `number` is that of the last one, from 1."""

    def __init__(self, lines: Iterable[str]) -> None:
        self.number = 0
        self._lines = iter(lines)
        self._ahead: deque[str] = deque()

    def sample(self) -> list[str]:
        """The first lines, which stay to be read."""
        chars = 0
        while len(self._ahead) < _SAMPLE_LINES and chars < _SAMPLE_CHARS and (line := next(self._lines, "")):
            self._ahead.append(line)
            chars += len(line)
        return list(self._ahead)

    def back(self, lines: Sequence[str]) -> None:
        """Give back lines, which come next."""
        self._ahead.extendleft(reversed(lines))
        self.number -= len(lines)

    def __next__(self) -> str:
        line = self._ahead.popleft() if self._ahead else next(self._lines)
        self.number += 1
        return line


def _file_lines(text: IO[str], max_chars: int) -> Iterator[str]:
    """The lines of a file; in the place of one that is too long one that says so."""
    first = True
    while line := text.readline(max_chars):
        if len(line) == max_chars and not line.endswith("\n"):
            while line and not line.endswith("\n"):
                line = text.readline(max_chars)
            line = f"{_TOO_LONG}longer than {max_chars:,} characters\n"
        yield line.removeprefix("\ufeff") if first else line
        first = False


@dataclass(frozen=True, slots=True)
class _Guard:
    """Tells a quote that takes in whole rows from a value of several lines: each line has all fields of a row, and the
    field that names the image is of one form in all of them (`12.jpg`, `340.jpg`)."""

    width: int
    named: int | None

    @staticmethod
    def of(dialect: Dialect, asked: Asked) -> _Guard | None:
        """None where a setting says that fields are in quotes."""
        if asked.quoting is not None:
            return None
        setting_of = {setting: name for name, setting in asked.columns.items()}
        named = next((setting_of[key] for key in ("path_col", "url_col", "id_col") if key in setting_of), None)
        return _Guard(len(dialect.columns), dialect.columns.index(named) if named in dialect.columns else None)

    def takes_in_rows(self, lines: Sequence[str], delimiter: str) -> bool:
        """Whether the lines of one record are rows by themselves."""
        rows = [line.rstrip("\r\n").split(delimiter) for line in lines]
        if len(rows) < 2 or any(len(row) != self.width for row in rows):
            return False
        return self.named is None or len({_form(row[self.named]) for row in rows}) == 1


def _form(value: str) -> str:
    return re.sub(r"[^\W\d_]+", "a", re.sub(r"\d+", "0", value.strip().strip('"')))


def _records(lines: _Lines, dialect: Dialect, guard: _Guard | None) -> Iterator[tuple[int, Record]]:
    columns, width = dialect.columns, len(dialect.columns)
    for row_lines, row in _rows(lines, dialect, guard):
        number = lines.number - len(row_lines) + 1
        if isinstance(row, str):
            yield number, f"line {number}: {row}" if not row.startswith("it is") else f"line {number}{row[2:]}"
        elif any(BAD_BYTE in line for line in row_lines):
            where = f"line {number} is" if len(row_lines) == 1 else f"lines {number} to {lines.number} are"
            yield number, f"{where} no text in {dialect.encoding}; name the encoding by `encoding`"
        elif len(row) != width:
            of = "the header" if dialect.has_header else "`column_names`"
            yield number, f"line {number} has {len(row)} fields, {of} {width}"
        else:
            yield number, dict(zip(columns, row, strict=True))


def _rows(lines: _Lines, dialect: Dialect, guard: _Guard | None) -> Iterator[tuple[Sequence[str], list[str] | str]]:
    """The lines of each row and its fields, or what is wrong with it."""
    for line in lines:
        if not line.strip(" \r\n"):
            continue
        if line.startswith(_TOO_LONG):
            yield (line,), f"it is {line[1:].strip()}"
            continue
        if dialect.quoting == "none" or ('"' not in line and "\\" not in line):
            row: list[str] | str = line.rstrip("\r\n").split(dialect.delimiter)
            taken: Sequence[str] = (line,)
        else:
            taken, row = _quoted_row(line, lines, dialect, guard)
        if dialect.spaced and not isinstance(row, str):
            row = [value.strip() for value in row]
        yield taken, row


def _quoted_row(
    line: str, lines: _Lines, dialect: Dialect, guard: _Guard | None
) -> tuple[Sequence[str], list[str] | str]:
    """A row that begins with a line and may go on in the next ones; where it cannot be read, they are given back."""
    taken = [line]

    def feed() -> Iterator[str]:
        yield line
        for further in islice(lines, _MAX_RECORD_LINES):
            taken.append(further)
            yield further

    try:
        row = next(csv.reader(feed(), strict=True, **_csv_options(dialect)))
    except (csv.Error, StopIteration) as error:
        lines.back(taken[1:])
        return taken[:1], f"a quote in it is not closed, or not as `quoting: {dialect.quoting}` has it ({error})"
    if len(taken) > 1 and len(row) != len(dialect.columns):
        lines.back(taken[1:])
        return taken[
            :1
        ], f"a quote in it takes in {len(taken) - 1} lines behind it, and the row then has {len(row)} fields"
    if guard is not None and guard.takes_in_rows(taken, dialect.delimiter):
        lines.back(taken[1:])
        return taken[:1], f"a quote in it would take in the {len(taken) - 1} rows behind it; `quoting: none` reads it"
    return taken, row


def _csv_options(dialect: Dialect) -> dict[str, Any]:
    escape = {"escapechar": "\\", "doublequote": False} if dialect.quoting == "backslash" else {}
    return {"delimiter": dialect.delimiter, "skipinitialspace": dialect.spaced, **escape}


def _dialect(sample: list[str], path: str, asked: Asked, encoding: str) -> Dialect:
    """The dialect that the first lines of a file show."""
    lines = [line.rstrip("\r\n") for line in sample]
    first = next((n for n, line in enumerate(lines) if line.strip()), 0)
    stated = _SEPARATOR_LINE.fullmatch(lines[first].strip(" ")) if lines else None
    delimiters = stated[1] if stated else _CANDIDATES[asked.kind]
    first += stated is not None
    while first < len(lines) and not lines[first].strip():
        first += 1
    lines = lines[first:]
    delimiters = asked.delimiter or delimiters
    top = lines[0] if lines else ""
    if top.startswith(_TOO_LONG):
        raise InputError(f"{path}: its first line is {top[1:]}; is it a table in text?")
    if BAD_BYTE in top and not asked.column_names:
        raise InputError(f"{path}: its header line is no text in {encoding}; name its encoding by `encoding`")

    headers = {delimiter: _header(top, delimiter) for delimiter in delimiters}
    if asked.column_names:
        columns = tuple(asked.column_names)
        delimiter = max(delimiters, key=lambda one: (_of_width(lines, one, len(columns)), -delimiters.index(one)))
        has_header = headers[delimiter] == columns
        _refuse_other_width(path, lines, delimiter, columns)
    else:
        delimiter = _of_columns(headers, asked.columns)
        columns, has_header = headers[delimiter], True
    _refuse_columns(path, columns, asked)
    spaced = len(columns) > 1 and all(field[:1] == " " for field in top.split(delimiter)[1:])
    head = Dialect(encoding, delimiter, "none", columns, has_header, first + has_header, spaced)
    quoting = asked.quoting or _quoting(lines[has_header:], top if has_header else "", head, asked)
    return Dialect(encoding, delimiter, quoting, columns, has_header, first + has_header, spaced)


def _header(line: str, delimiter: str) -> tuple[str, ...]:
    try:
        fields = next(csv.reader([line], delimiter=delimiter, skipinitialspace=True), [])
    except csv.Error:
        fields = line.split(delimiter)
    return tuple(name.strip() for name in fields)


def _of_columns(headers: Mapping[str, tuple[str, ...]], columns: Iterable[str]) -> str:
    """The delimiter by which a header has the most of the columns, then the most columns at all."""
    wanted = set(columns)
    return max(headers, key=lambda one: (len(wanted & set(headers[one])), len(headers[one])))


def _of_width(lines: Sequence[str], delimiter: str, width: int) -> int:
    return sum(len(next(csv.reader([line], delimiter=delimiter), [])) == width for line in lines[:200] if line)


def _refuse_other_width(path: str, lines: Sequence[str], delimiter: str, columns: Sequence[str]) -> None:
    if lines and not _of_width(lines, delimiter, len(columns)):
        raise InputError(
            f"{path}: its lines have {len(lines[0].split(delimiter))} fields, `column_names` has {len(columns)}; "
            "name each field"
        )


def _refuse_columns(path: str, columns: Sequence[str], asked: Asked) -> None:
    for column, setting in asked.columns.items():
        if columns.count(column) > 1:
            raise InputError(f"{path}: two columns are called `{column}`; rename one")
        if column not in columns:
            raise column_missing(path, column, columns, setting=setting, hint=_HINT)


_HINT = "; for another delimiter set `delimiter`, for a file without header line `column_names`"


def _quoting(lines: Sequence[str], top: str, dialect: Dialect, asked: Asked) -> Quoting:
    """How the first lines use quotes: by the reading that makes rows of most of them. TSV is plain where two do."""
    width, delimiter = len(dialect.columns), dialect.delimiter
    default: Quoting = "doubled" if asked.kind == "csv" and delimiter in ",;" else "none"
    telling = [line for line in lines if '"' in line]
    if not telling:
        return "doubled" if top.count('"') >= 2 * width else default
    good = {"none": sum(len(line.split(delimiter)) == width for line in lines)}
    for quoting in ("doubled", "backslash"):
        tried = Dialect(dialect.encoding, delimiter, quoting, dialect.columns, True, 0, dialect.spaced)
        good[quoting] = _rows_read(lines, tried, asked)
    if good["backslash"] > good["doubled"] and any('\\"' in line for line in telling):
        quoted: Quoting = "backslash"
    else:
        quoted = "doubled"
    if good[quoted] != good["none"]:
        return quoted if good[quoted] > good["none"] else "none"
    return quoted if default != "none" or _shows_quoting(telling, top, dialect, quoted) else "none"


def _rows_read(lines: Sequence[str], dialect: Dialect, asked: Asked) -> int:
    """How many of the lines belong to rows that are read; the last row may go on behind the sample."""
    rows = _rows(_Lines(f"{line}\n" for line in lines), dialect, _Guard.of(dialect, asked))
    width = len(dialect.columns)
    return sum(len(taken) for taken, row in rows if not isinstance(row, str) and len(row) == width)


def _shows_quoting(lines: Sequence[str], top: str, dialect: Dialect, quoting: Quoting) -> bool:
    """Whether something is as only a writer of quotes has it: each name in quotes, or an escaped quote in a field."""
    width = len(dialect.columns)
    if top.count('"') >= 2 * width:
        return True
    fields = [field.strip() for line in lines for field in line.split(dialect.delimiter)]
    in_quotes = [field[1:-1] for field in fields if len(field) > 1 and field[0] == field[-1] == '"']
    escaped = _ESCAPED[quoting]
    return any(escaped in field and '"' not in field.replace(escaped, "") for field in in_quotes)
