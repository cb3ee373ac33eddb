"""Verdicts in a CSV, which people fill in by hand and spreadsheets save: line by line, each fault with its line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from maskmine.mining.evaluation.corrections import checked_mask, checked_noun
from maskmine.mining.sources.delimited import Asked, delimited_records, dialect_of
from maskmine.schemas.annotation_tools import PairId
from maskmine.schemas.errors import InputError
from maskmine.schemas.rows import VERDICTS, VerdictRow

COLUMNS, KEY_COLUMNS = ("image_id", "noun", "mask", "verdict"), ("key", "verdict")
"""What a table has: the pair, or the key of its sample."""


@dataclass(frozen=True, slots=True)
class CsvLine:
    """A line with a verdict: its row, or the key that nobody knows, or what is wrong with it, one of the three.

    A row is without a correction that cannot be one; `refused` says why, by what it is of, `mask` or `noun`.
    """

    row: VerdictRow | None = None
    unknown_key: str = ""
    fault: str = ""
    refused: Mapping[str, str] = field(default_factory=dict)


def csv_lines(
    path: str, pair_of_key: Mapping[str, PairId] | None = None, *, encoding: str | None = None
) -> Iterator[CsvLine]:
    """The lines of a CSV as `read_verdicts` describes it, without those that have no verdict.

    `encoding` is found out where it is None. Raises InputError when it cannot be read, or lacks a column.
    """
    columns = _needed_columns(path, _columns(path, encoding), pair_of_key)
    asked = Asked("csv", {name: name for name in columns}, encoding=encoding)
    for number, record in delimited_records(path, asked):
        if isinstance(record, str):
            what = record.partition(";")[0]
            yield CsvLine(fault=f"{what}; mend the line, or save the table as CSV in UTF-8")
            continue
        values = {name: str(text or "").strip() for name, text in record.items()}
        if values["verdict"]:
            try:
                line = _line(values, columns, pair_of_key)
                yield replace(line, refused={of: f"line {number}: {why}" for of, why in line.refused.items()})
            except ValueError as error:
                yield CsvLine(fault=f"line {number}: {error}")


def _columns(path: str, encoding: str | None) -> tuple[str, ...]:
    """The columns of a CSV. Raises InputError for what is none."""
    try:
        return dialect_of(path, Asked("csv", {}, encoding=encoding)).columns
    except InputError as error:
        raise InputError(f"{path}: neither Parquet nor a CSV in UTF-8 or UTF-16; give a file of verdicts") from error


def _needed_columns(path: str, found: Iterable[str], pair_of_key: Mapping[str, PairId] | None) -> tuple[str, ...]:
    """The columns that name the pairs of a table. Raises InputError when there are none."""
    names = set(found)
    if names.issuperset(COLUMNS):
        return COLUMNS
    if not names.issuperset(KEY_COLUMNS):
        missing = next(name for name in COLUMNS if name not in names)
        raise InputError(f"{path}: no column `{missing}`; expected {','.join(COLUMNS)}, or {','.join(KEY_COLUMNS)}")
    if pair_of_key is None:
        raise InputError(f"{path}: keys of samples mean nothing here; give the columns {','.join(COLUMNS)}")
    return KEY_COLUMNS


def verdict_word(text: str) -> str:
    """A verdict as people write it, such as `Wrong noun`. Raises ValueError for any other word."""
    word = text.strip().lower().replace(" ", "_").replace("-", "_")
    if word not in VERDICTS:
        raise ValueError(f"`{text.strip()[:60]}` is no verdict; expected {', '.join(VERDICTS)}")
    return word


def as_utc(time: datetime) -> str:
    """A time as `VerdictRow.at` has it; one without a zone counts as UTC. Raises ValueError beyond the calendar."""
    aware = time if time.tzinfo else time.replace(tzinfo=UTC)
    try:
        return aware.astimezone(UTC).isoformat(timespec="microseconds")
    except OverflowError as error:
        raise ValueError("a time before the first year or behind the last") from error


def _line(values: Mapping[str, str], columns: tuple[str, ...], pair_of_key: Mapping[str, PairId] | None) -> CsvLine:
    """Raises ValueError."""
    missing = next((name for name in columns if not values[name]), None)
    if missing:
        raise ValueError(f"no `{missing}`; complete the line")
    pair: PairId | None = (values.get("image_id", ""), values.get("noun", ""), values.get("mask", ""))
    if columns == KEY_COLUMNS:
        pair = (pair_of_key or {}).get(values["key"])
    if pair is None:
        return CsvLine(unknown_key=values["key"])
    refused: dict[str, str] = {}
    return CsvLine(_row(pair, values, refused), refused=refused)


def _row(pair: PairId, values: Mapping[str, str], refused: dict[str, str]) -> VerdictRow:
    """Raises ValueError; a correction that cannot be one is left out, and told in `refused`."""
    word: Any = verdict_word(values["verdict"])
    image_id, noun, mask = pair
    optional: dict[str, Any] = {}
    for name, check in (("noun", checked_noun), ("mask", _mask_of)):
        if text := values.get(f"corrected_{name}"):
            try:
                optional[f"corrected_{name}"] = check(text)
            except ValueError as error:
                refused[name] = str(error)
    try:
        if values.get("seconds"):
            optional["seconds"] = float(values["seconds"])
        at = as_utc(datetime.fromisoformat(values["at"])) if values.get("at") else ""
    except ValueError as error:
        raise ValueError(f"{error}; `at` is a time such as 2026-01-31T12:00:00Z, `seconds` a number") from error
    return VerdictRow(
        image_id=image_id,
        noun=noun,
        mask=mask,
        verdict=word,
        reviewer=values.get("reviewer", ""),
        at=at,
        **optional,
    )


def _mask_of(text: str) -> Any:
    """A corrected mask as COCO's run lengths in JSON, which give its size. Raises ValueError."""
    what = '`corrected_mask` is no run lengths ({}); give {{"size": [height, width], "counts": …}} of COCO'
    try:
        stored = json.loads(text)
        height_px, width_px = stored["size"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(what.format("no JSON with a `size` of two sides")) from error
    try:
        return checked_mask(stored, height_px=height_px, width_px=width_px)
    except ValueError as error:
        raise ValueError(what.format(" ".join(str(error).split())[:60])) from error
