"""Verdicts on pairs: read from the Parquet files of `maskmine review`, from one file or from a CSV; and written.

A pair is known by image, noun and mask, so a verdict outlives the run that it was given on.
"""

from __future__ import annotations

import posixpath
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import IO

import pyarrow as pa

from maskmine.mining.evaluation.corrections import Correction, Decisions, checked_mask, checked_noun
from maskmine.mining.evaluation.verdict_tables import csv_lines
from maskmine.mining.storage.stores import describe, fetch, open_store, os_errors
from maskmine.schemas.annotation_tools import PairId as PairId
from maskmine.schemas.errors import InputError
from maskmine.schemas.rows import VERDICTS, PlainVerdictRow, Verdict, VerdictRow
from maskmine.schemas.settings import fingerprint
from maskmine.schemas.tables import from_table, read_parquet, to_table, write_parquet

WRONG: tuple[Verdict, ...] = ("wrong_noun", "bad_mask")
"""The verdicts that say a pair is wrong."""

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

    @property
    def wrong(self) -> frozenset[PairId]:
        """The pairs whose last verdict is one of WRONG, and what is wrong with them was not replaced."""
        return self.decisions.wrong

    @cached_property
    def decisions(self) -> Decisions:
        """What the last verdicts come to: pairs that are left out, and pairs that are written corrected."""
        wrong, corrections = set[PairId](), dict[PairId, Correction]()
        for pair, row in sorted(self.latest.items()):
            correction = correction_of(row)
            missing = {"wrong_noun": correction.noun, "bad_mask": correction.mask}
            if row.verdict in WRONG and missing[row.verdict] is None:
                wrong.add(pair)
            elif correction.names:
                corrections[pair] = correction
        return Decisions(frozenset(wrong), corrections)

    @property
    def counts(self) -> Mapping[str, Mapping[str, int]]:
        """How many pairs have each verdict as their last one, and of how many noun or mask are corrected."""
        words = Counter(row.verdict for row in self.latest.values())
        corrected = Counter(name for one in self.decisions.corrections.values() for name in one.names)
        return {"verdicts": dict(sorted(words.items())), "corrected": dict(sorted(corrected.items()))}

    @property
    def digest(self) -> str:
        """A hash of the pairs that are wrong and of the corrections, whoever said so and when."""
        corrections = [
            [*pair, one.noun, one.mask and one.mask.digest] for pair, one in self.decisions.corrections.items()
        ]
        return fingerprint([sorted(self.wrong), sorted(corrections)] if corrections else sorted(self.wrong))

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


def correction_of(row: VerdictRow) -> Correction:
    """What a row replaces of its pair; what is as it was is not replaced."""
    noun = None if row.corrected_noun == row.noun else row.corrected_noun
    mask = row.corrected_mask
    return Correction(noun, None if mask is not None and mask.digest == row.mask else mask)


def read_verdicts(path: str, *, pair_of_key: Mapping[str, PairId] | None = None) -> Verdicts:
    """The verdicts in a folder of Parquet files, in one such file, or in a CSV; on a disk or an object store.

    The CSV, which may be as a spreadsheet saves it (semicolons or tabs, UTF-16, `sep=;`), has
    `image_id,noun,mask,verdict`, or `key,verdict` with the keys of samples, which `pair_of_key` explains; further
    columns may be `reviewer`, `at`, `seconds`, `corrected_noun` and `corrected_mask`; lines without a verdict are left
    out. Raises InputError when something cannot be read.
    """
    about = describe(path)
    if about is None:
        raise InputError(f"{path}: no such file or folder; give a folder that `maskmine review` wrote, or a CSV")
    if about["type"] == "directory":
        return Verdicts(tuple(row for file in _parquet_files(path) for row in read_verdict_file(file)))
    if path.endswith(".parquet") or _read(path, max_bytes=len(_PARQUET_MAGIC)) == _PARQUET_MAGIC:
        return Verdicts(tuple(read_verdict_file(path)))
    rows, unknown = list[VerdictRow](), list[str]()
    for line in csv_lines(path, pair_of_key):
        if fault := line.fault or next(iter(line.refused.values()), ""):
            raise InputError(f"{path}: {fault}")
        if line.row is not None:
            rows.append(line.row)
        else:
            unknown.append(line.unknown_key)
    return Verdicts(tuple(rows), tuple(unknown))


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
    for row in rows:
        try:
            _check_correction(row)
        except ValueError as error:
            raise InputError(f"{path}: {error}; restore the file, or move it away") from error
    return rows


def _check_correction(row: VerdictRow) -> None:
    """Raises ValueError for a noun or a mask that no import lets through."""
    if row.corrected_noun is not None and checked_noun(row.corrected_noun) != row.corrected_noun:
        raise ValueError("a corrected noun is not in the form of a run's nouns")
    if (mask := row.corrected_mask) is not None:
        checked_mask(mask.to_coco(), height_px=mask.height_px, width_px=mask.width_px)


def write_verdicts(file: IO[bytes], rows: Sequence[VerdictRow]) -> None:
    """Write rows as Parquet, as `read_verdict_file` reads them; without corrections in the columns of earlier ones."""
    corrected = any(row.corrected_noun is not None or row.corrected_mask is not None for row in rows)
    write_parquet(to_table(rows, VerdictRow if corrected else PlainVerdictRow), file)


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
