"""`maskmine import-verdicts`: what people answered in an annotation tool becomes a file of a run's verdicts.

    file ─▶ answers ─▶ held against the run's pairs ─▶ RUN/verdicts/import-NAME-HASH.parquet ─▶ `shards.verdicts`

The file is read twice, so memory is bounded by the pairs that it is about, and by no mask. The same file gives the same
bytes under the same name.
"""

from __future__ import annotations

import hashlib
import posixpath
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from maskmine.mining.evaluation.answers.answer import Answer, Fault, reviewer_in
from maskmine.mining.evaluation.answers.files import AnswerFile, answer_files
from maskmine.mining.evaluation.corrections import checked_noun
from maskmine.mining.evaluation.verdict_tables import as_utc
from maskmine.mining.evaluation.verdicts import Verdicts, pair_of, write_verdicts
from maskmine.mining.storage.stores import describe, open_input
from maskmine.pipelines.dataset.finished_run import FinishedRun
from maskmine.pipelines.review.known_pairs import KnownPair, KnownPairs, find_known_pairs
from maskmine.pipelines.run_folder.folder import VERDICTS_FOLDER, RunFolder
from maskmine.schemas.errors import InputError
from maskmine.schemas.mask import Mask
from maskmine.schemas.rows import Verdict, VerdictRow
from maskmine.schemas.wording import counted

MOST_TOLD = 5
"""Faults that are told with their places; the others are counted."""

_UNNAMED = re.compile(r"[^\w-]+")
_HASHED_CHARS, _NAME_CHARS = 12, 40


@dataclass
class Imported:
    """What became of the answers of a file: counts, the first faults with their places, and the file of verdicts.

    `taken` are pairs with a verdict, by verdict; `corrected` those whose mask or noun is replaced. The rest is not:
    answers without a verdict, on `unknown` pairs, and what could not be read. Of a pair with `contradictions` the last
    answer counts; an answer whose mask or noun is `refused` counts without it.
    """

    file: str = ""
    answers: int = 0
    taken: Counter[str] = field(default_factory=Counter)
    corrected: Counter[str] = field(default_factory=Counter)
    unknown: int = 0
    unjudged: int = 0
    unreadable: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    contradictions: int = 0
    told: list[str] = field(default_factory=list)

    def tell(self, place: str, what: str) -> None:
        """Remember a fault, if it is one of the first."""
        if len(self.told) < MOST_TOLD:
            self.told.append(f"{place}: {what}")

    def as_json(self) -> dict[str, Any]:
        """Plain values for `--json`."""
        return {
            "file": self.file,
            "answers": self.answers,
            "pairs": sum(self.taken.values()),
            "verdicts": dict(sorted(self.taken.items())),
            "corrected": dict(sorted(self.corrected.items())),
            "contradictions": self.contradictions,
            "without_verdict": self.unjudged,
            "unknown_pairs": self.unknown,
            "unreadable": self.unreadable,
            "refused": dict(sorted(self.refused.items())),
            "faults": self.told,
        }


def import_verdicts(run: RunFolder, path: str, *, reviewer: str | None = None, encoding: str | None = None) -> Imported:
    """Read a file of answers, and write those on pairs of the run beside its other verdicts.

    `reviewer` is who answered where the file does not say. Raises InputError when the file cannot be read or nothing in
    it is about a pair of this run, IncompleteError when the run is not finished.
    """
    finished = FinishedRun.open_complete(run)
    imported = Imported()
    with answer_files(path, encoding=encoding) as files:
        image_ids, keys = _asked(files)
        known = find_known_pairs(finished, image_ids=image_ids, keys=keys)
        rows = list(_rows(files, known, imported, reviewer=reviewer_in(reviewer) or "import", since=_saved(path)))
    if not rows:
        raise InputError(_nothing_taken(path, run, imported))
    last_rows = _last_of_each(rows)
    last = Verdicts(tuple(last_rows)).latest
    imported.contradictions = _contradictions(rows)
    imported.taken.update(row.verdict for row in last.values())
    imported.corrected.update("mask" for row in last.values() if row.corrected_mask is not None)
    imported.corrected.update("noun" for row in last.values() if row.corrected_noun is not None)
    imported.file = run.path(VERDICTS_FOLDER, _file_name(path))
    with run.write(VERDICTS_FOLDER, _file_name(path)) as file:
        write_verdicts(file, last_rows)
    return imported


def _asked(files: Sequence[AnswerFile]) -> tuple[set[str], set[str]]:
    """The images and the keys of samples that answers name."""
    image_ids, keys = set[str](), set[str]()
    for file in files:
        for answer in file.answers({}):
            if isinstance(answer, Answer) and answer.pair is not None:
                image_ids.add(answer.pair[0])
            elif isinstance(answer, Answer) and answer.key:
                keys.add(answer.key)
    return image_ids, keys


def _rows(
    files: Sequence[AnswerFile], known: KnownPairs, imported: Imported, *, reviewer: str, since: datetime
) -> Iterator[VerdictRow]:
    """A row for each answer that says something of a pair; the others are counted.

    Answers without a time are from when the file was saved, and in their order.
    """
    pair_of_key = {key: one.pair for key, one in known.by_key.items()}
    for file in files:
        for answer in file.answers(pair_of_key):
            imported.answers += 1
            if isinstance(answer, Fault):
                imported.unreadable += 1
                imported.tell(answer.place, answer.what)
                continue
            one = known.by_pair.get(answer.pair) if answer.pair is not None else known.by_key.get(answer.key)
            if one is None:
                imported.unknown += 1
                imported.tell(answer.place, "no pair of this run")
                continue
            row = _row(answer, one, imported)
            if row is None:
                imported.unjudged += 1
                continue
            at = row.at or as_utc(since + timedelta(microseconds=imported.answers))
            yield replace(row, at=at, reviewer=row.reviewer or reviewer)


def _row(answer: Answer, known: KnownPair, imported: Imported) -> VerdictRow | None:
    """What an answer says of a pair as it was mined; None where it says nothing.

    Who shows a better mask or noun without a verdict says that the pair's own is wrong.
    """
    noun = _noun(answer, known, imported)
    mask = _mask(answer, known, imported)
    corrected_noun = None if noun == known.pair[1] else noun
    corrected_mask = None if mask is None or mask.digest in (known.drawn, known.pair[2]) else mask
    verdict: Verdict | None = answer.verdict
    if verdict is None and _digest(corrected_mask) != _digest(known.shown.mask):
        verdict = "bad_mask"
    elif verdict is None and corrected_noun != known.shown.noun:
        verdict = "wrong_noun"
    if verdict is None:
        return None
    image_id, mined_noun, mined_mask = known.pair
    return VerdictRow(
        image_id=image_id,
        noun=mined_noun,
        mask=mined_mask,
        verdict=verdict,
        reviewer=answer.reviewer,
        at=answer.at,
        seconds=answer.seconds,
        corrected_noun=corrected_noun,
        corrected_mask=corrected_mask,
    )


def _digest(mask: Mask | None) -> str | None:
    return None if mask is None else mask.digest


def _noun(answer: Answer, known: KnownPair, imported: Imported) -> str:
    """The noun that an answer leaves the pair with: as shown where it gives none, or one that cannot be."""
    shown = known.shown.noun or known.pair[1]
    if answer.refused_noun:
        imported.refused["noun"] += 1
        imported.tell(answer.place, answer.refused_noun)
        return shown
    if answer.noun is None or answer.noun == shown:
        return shown
    try:
        return checked_noun(answer.noun)
    except ValueError as error:
        imported.refused["noun"] += 1
        imported.tell(answer.place, str(error))
        return shown


def _mask(answer: Answer, known: KnownPair, imported: Imported) -> Mask | None:
    """The mask that an answer leaves the pair with, as `_noun`; None for the mined one."""
    if answer.mask is None:
        return known.shown.mask
    try:
        mask = answer.mask(known.height_px, known.width_px)
        return Mask.from_array(mask.to_array())  # one mask, one digest, whoever wrote its run lengths
    except ValueError as error:
        imported.refused["mask"] += 1
        imported.tell(answer.place, str(error))
        return known.shown.mask


def _content(row: VerdictRow) -> tuple[str, str | None, str | None]:
    return row.verdict, row.corrected_noun, _digest(row.corrected_mask)


def _contradictions(rows: Sequence[VerdictRow]) -> int:
    """The pairs of which a file says more than one thing."""
    said: dict[Any, set[Any]] = {}
    for row in rows:
        said.setdefault(pair_of(row), set()).add(_content(row))
    return sum(len(contents) > 1 for contents in said.values())


def _last_of_each(rows: Sequence[VerdictRow]) -> list[VerdictRow]:
    """The last word of each person on each pair, sorted; of the same time, the last in the file."""
    last: dict[Any, VerdictRow] = {}
    for row in sorted(rows, key=lambda row: row.at):
        last[pair_of(row), row.reviewer] = row
    return [row for _, row in sorted(last.items(), key=lambda item: item[0])]


def _saved(path: str) -> datetime:
    """When a file was saved, for answers without a time; the beginning of time where its store does not say."""
    about = describe(path) or {}
    saved = about.get("mtime") or about.get("LastModified")
    if isinstance(saved, int | float):
        return datetime.fromtimestamp(saved, UTC)
    return saved.astimezone(UTC) if isinstance(saved, datetime) else datetime(1970, 1, 1, tzinfo=UTC)


def _file_name(path: str) -> str:
    """The name of the file of verdicts: by the name and the content of what was imported."""
    with open_input(path) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:_HASHED_CHARS]
    stem = posixpath.basename(path.rstrip("/")).partition(".")[0]
    return f"import-{_UNNAMED.sub('-', stem)[:_NAME_CHARS].strip('-') or 'answers'}-{digest}.parquet"


def _nothing_taken(path: str, run: RunFolder, imported: Imported) -> str:
    if not imported.answers:
        return f"{path}: has no answers; export them with their annotations"
    parts = [(imported.unknown, "of no pair of this run"), (imported.unjudged, "without a verdict")]
    parts.append((imported.unreadable, "not readable"))
    why = ", ".join(f"{count:,} {what}" for count, what in parts if count)
    first = f"; {imported.told[0]}" if imported.told else ""
    return f"{path}: none of {counted(imported.answers, 'answer')} can be used for {run.root} ({why}{first})"
