"""Verdicts on pairs: read from the Parquet files of `maskmine review`, from one file or from a CSV; and written.

A pair is known by image, noun and mask, so a verdict outlives the run that it was given on.
"""

from __future__ import annotations

import posixpath
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import IO, Any

import pyarrow as pa

from maskmine.mining.sources.delimited import Asked, delimited_records, dialect_of
from maskmine.mining.storage.stores import describe, fetch, open_store, os_errors
from maskmine.schemas.errors import InputError
from maskmine.schemas.rows import VERDICTS, Verdict, VerdictRow
from maskmine.schemas.settings import fingerprint
from maskmine.schemas.tables import from_table, read_parquet, to_table, write_parquet

PairId = tuple[str, str, str]
"""Image id, noun, and `Mask.digest` of the region's mask."""
WRONG: tuple[Verdict, ...] = ("wrong_noun", "bad_mask")
"""The verdicts that say a pair is wrong."""

_COLUMNS, _KEY_COLUMNS = ("image_id", "noun", "mask", "verdict"), ("key", "verdict")
_PARQUET_MAGIC = b"PAR1"


@dataclass(frozen=True)
class Verdicts:
    """All rows of a source, and what they come to; `unknown_keys` are keys of a CSV that the run does not have."""

    rows: tuple[VerdictRow, ...]
    unknown_keys: tuple[str, ...] = ()

    @cached_property
    def latest(self) -> Mapping[PairId, VerdictRow]:
        """The row that counts for each pair: the last one; of the same time, by reviewer and verdict.

        Rows without a time are in the order of their lines, before all others.
        """
        return {pair_of(row): row for row in sorted(self.rows, key=_order)}

    @cached_property
    def disagreements(self) -> tuple[PairId, ...]:
        """The pairs, sorted, on which the last verdicts of the reviewers differ."""
        return tuple(sorted(pair for pair, words in self._last_words().items() if len(words) > 1))

    @cached_property
    def wrong(self) -> frozenset[PairId]:
        """The pairs whose last verdict is one of WRONG."""
        return frozenset(pair for pair, row in self.latest.items() if row.verdict in WRONG)

    @property
    def digest(self) -> str:
        """A hash of the pairs that are wrong, whoever said so and when."""
        return fingerprint(sorted(self.wrong))

    def _last_words(self) -> Mapping[PairId, set[Verdict]]:
        """By pair what its reviewers say; who says two things at one time is counted with both."""
        last: dict[tuple[PairId, str], tuple[str, set[Verdict]]] = {}
        for row in sorted(self.rows, key=_order):
            at, said = last.get((pair_of(row), row.reviewer), ("", set[Verdict]()))
            at_once = said if row.at and row.at == at else set[Verdict]()
            last[pair_of(row), row.reviewer] = (row.at, at_once | {row.verdict})
        words: defaultdict[PairId, set[Verdict]] = defaultdict(set)
        for (pair, _), (_, said) in last.items():
            words[pair] |= said
        return words


def _order(row: VerdictRow) -> tuple[str, str, str]:
    """What sorts rows by their time; those without one stay as they are."""
    return (row.at, row.reviewer, row.verdict) if row.at else ("", "", "")


def pair_of(row: VerdictRow) -> PairId:
    """The pair that a verdict is about."""
    return row.image_id, row.noun, row.mask


def read_verdicts(path: str, *, pair_of_key: Mapping[str, PairId] | None = None) -> Verdicts:
    """The verdicts in a folder of Parquet files, in one such file, or in a CSV; on a disk or an object store.

    The CSV, which may be as a spreadsheet saves it (semicolons or tabs, UTF-16, `sep=;`), has
    `image_id,noun,mask,verdict`, or `key,verdict` with the keys of samples, which `pair_of_key` explains; further
    columns may be `reviewer`, `at` and `seconds`; lines without a verdict are left out. Raises InputError when
    something cannot be read.
    """
    about = describe(path)
    if about is None:
        raise InputError(f"{path}: no such file or folder; give a folder that `maskmine review` wrote, or a CSV")
    if about["type"] == "directory":
        return Verdicts(tuple(row for file in _parquet_files(path) for row in read_verdict_file(file)))
    if path.endswith(".parquet") or _read(path, max_bytes=len(_PARQUET_MAGIC)) == _PARQUET_MAGIC:
        return Verdicts(tuple(read_verdict_file(path)))
    return _read_csv(path, pair_of_key)


def read_verdict_file(path: str) -> list[VerdictRow]:
    """The rows of one Parquet file. Raises InputError when it is broken or holds something else."""
    try:
        rows = from_table(read_parquet(pa.BufferReader(_read(path))), VerdictRow)
    except (pa.ArrowInvalid, OSError) as error:  # so Arrow answers to bytes that are no Parquet
        raise InputError(f"{path}: not a whole Parquet file; restore it, or move it away") from error
    except ValueError as error:
        raise InputError(f"{path}: holds no verdicts; move it away, or give the folder of a review") from error
    unknown = next((row.verdict for row in rows if row.verdict not in VERDICTS), None)
    if unknown is not None:
        raise InputError(f"{path}: `{unknown}` is no verdict; expected {', '.join(VERDICTS)}")
    return rows


def write_verdicts(file: IO[bytes], rows: Sequence[VerdictRow]) -> None:
    """Write rows as Parquet, as `read_verdict_file` reads them."""
    write_parquet(to_table(rows, VerdictRow), file)


def _parquet_files(folder: str) -> list[str]:
    fs, inner = open_store(folder)
    try:
        with os_errors(folder):
            found = sorted(posixpath.basename(str(entry)) for entry in fs.ls(inner, detail=False))
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({error.strerror or error}); mend the cause") from error
    return [posixpath.join(folder, name) for name in found if name.endswith(".parquet")]


def _read(path: str, *, max_bytes: int | None = None) -> bytes:
    try:
        return fetch(path, start=0, max_bytes=max_bytes)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); mend the cause") from error


def _read_csv(path: str, pair_of_key: Mapping[str, PairId] | None) -> Verdicts:
    try:
        found = dialect_of(path, Asked("csv", {})).columns
    except InputError as error:
        raise InputError(f"{path}: neither Parquet nor a CSV in UTF-8 or UTF-16; give a file of verdicts") from error
    columns = _needed_columns(path, found, pair_of_key)
    asked = Asked("csv", {name: name for name in columns})
    rows: list[VerdictRow] = []
    unknown: list[str] = []
    for line, record in delimited_records(path, asked):
        if isinstance(record, str):
            raise InputError(f"{path}: {record.partition(';')[0]}; mend the line, or save the table as CSV in UTF-8")
        values = {name: str(text or "").strip() for name, text in record.items()}
        if not values["verdict"]:
            continue
        missing = next((name for name in columns if not values[name]), None)
        if missing:
            raise InputError(f"{path}: line {line}: no `{missing}`; complete the line")
        if pair_of_key is not None and "key" in columns:
            pair = pair_of_key.get(values["key"])
            if pair is None:
                unknown.append(values["key"])
                continue
        else:
            pair = (values["image_id"], values["noun"], values["mask"])
        rows.append(_row(pair, values, place=f"{path}: line {line}"))
    return Verdicts(tuple(rows), tuple(unknown))


def _needed_columns(path: str, found: Iterable[str], pair_of_key: Mapping[str, PairId] | None) -> tuple[str, ...]:
    names = set(found)
    if names.issuperset(_COLUMNS):
        return _COLUMNS
    if not names.issuperset(_KEY_COLUMNS):
        missing = next(name for name in _COLUMNS if name not in names)
        raise InputError(f"{path}: no column `{missing}`; expected {','.join(_COLUMNS)}, or {','.join(_KEY_COLUMNS)}")
    if pair_of_key is None:
        raise InputError(f"{path}: keys of samples mean nothing here; give the columns {','.join(_COLUMNS)}")
    return _KEY_COLUMNS


def _row(pair: PairId, values: Mapping[str, str], *, place: str) -> VerdictRow:
    word = values["verdict"].lower().replace(" ", "_").replace("-", "_")
    if word not in VERDICTS:
        raise InputError(f"{place}: `{values['verdict']}` is no verdict; expected {', '.join(VERDICTS)}")
    image_id, noun, mask = pair
    optional: dict[str, Any] = {}
    try:
        if values.get("seconds"):
            optional["seconds"] = float(values["seconds"])
        at = as_utc(datetime.fromisoformat(values["at"])) if values.get("at") else ""
    except ValueError as error:
        raise InputError(
            f"{place}: {error}; `at` is a time such as 2026-01-31T12:00:00Z, `seconds` a number"
        ) from error
    return VerdictRow(
        image_id=image_id,
        noun=noun,
        mask=mask,
        verdict=word,
        reviewer=values.get("reviewer", ""),
        at=at,
        **optional,
    )


def as_utc(time: datetime) -> str:
    """A time as `VerdictRow.at` has it; one without a zone counts as UTC."""
    aware = time if time.tzinfo else time.replace(tzinfo=UTC)
    return aware.astimezone(UTC).isoformat(timespec="microseconds")
