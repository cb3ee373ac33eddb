"""The verdicts of a run on its disk or object store: each is there before its reviewer sees the next pair.

Every reviewer has files of their own, `RUN/verdicts/<reviewer>-<time of the first verdict>.parquet`, which are written
whole. So reviewers never wait for each other, and a killed server loses nothing.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from threading import Lock

from maskmine.mining.evaluation.verdict_tables import as_utc
from maskmine.mining.evaluation.verdicts import PairId, pair_of, read_verdict_file, write_verdicts
from maskmine.pipelines.run_folder.folder import VERDICTS_FOLDER, RunFolder
from maskmine.schemas.errors import InputError
from maskmine.schemas.rows import Verdict, VerdictRow

FOLDER = VERDICTS_FOLDER
MAX_ROWS = 1000
"""Verdicts of a file: writing one whole then takes some milliseconds."""

_REVIEWER = re.compile(r"\w[\w-]{0,39}")  # of any script; nothing that a path could take for more than a name


def check_reviewer(name: str) -> str:
    """The name in Unicode's normal form. Raises InputError for one that cannot be a part of a file's name."""
    normal = unicodedata.normalize("NFC", name.strip())
    if not _REVIEWER.fullmatch(normal):
        raise InputError(
            f"reviewer `{name[:60]}`: a name has letters, digits, - and _ alone, up to 40; give another one"
        )
    return normal


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file of verdicts that was there before, and its rows."""

    name: str
    rows: Sequence[VerdictRow]


def read_stored(run: RunFolder) -> list[StoredFile]:
    """The files of earlier reviews. Raises InputError for one that is broken: its verdicts would be lost silently."""
    names = [name for name in run.names(FOLDER) if name.endswith(".parquet")]
    return [StoredFile(name, read_verdict_file(run.path(FOLDER, name))) for name in names]


class Store:
    """All verdicts of a run, those of `stored` files included; used by many threads.

    `now` is the time in UTC. Writing raises IncompleteError as `RunFolder.write`; the verdict is then not taken.
    """

    def __init__(
        self,
        run: RunFolder,
        stored: Collection[StoredFile] = (),
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._run, self._now = run, now
        self._files = {file.name: list(file.rows) for file in stored}
        self._current: dict[str, str] = {}  # by reviewer the file that this server adds to
        self._by_pair: defaultdict[PairId, list[VerdictRow]] = defaultdict(list)
        self._by_reviewer: defaultdict[str, list[VerdictRow]] = defaultdict(list)  # the last one at the end
        for row in sorted((row for file in stored for row in file.rows), key=lambda row: row.at):
            self._remember(row)
        self._writing: defaultdict[str, Lock] = defaultdict(Lock)  # one writer at a time for each reviewer
        self._guard = Lock()

    def latest(self, pair: PairId) -> VerdictRow | None:
        """The verdict that counts for a pair."""
        rows = self._by_pair.get(pair)
        return max(rows, key=lambda row: (row.at, row.reviewer, row.verdict), default=None) if rows else None

    def last_of(self, reviewer: str) -> VerdictRow | None:
        """The last verdict that a reviewer gave."""
        rows = self._by_reviewer.get(reviewer)
        return rows[-1] if rows else None

    def add(self, pair: PairId, verdict: Verdict, *, reviewer: str, seconds: float | None) -> None:
        """Write a verdict; it is on the disk when this returns. The same one sent twice is taken once."""
        image_id, noun, mask = pair
        with self._lock_of(reviewer):
            last = self.last_of(reviewer)
            if last is not None and (pair_of(last), last.verdict) == (pair, verdict):
                return  # a form that was sent twice
            row = VerdictRow(
                image_id=image_id,
                noun=noun,
                mask=mask,
                verdict=verdict,
                reviewer=reviewer,
                at=self._time_after(last),
                seconds=seconds,
            )
            name = self._current.get(reviewer)
            if name is None or len(self._files[name]) >= MAX_ROWS:
                name = f"{reviewer}-{re.sub('[-:.]', '', row.at.partition('+')[0])}Z.parquet"
            self._write(name, [*self._files.get(name, ()), row])
            self._current[reviewer] = name
            self._remember(row)

    def undo(self, reviewer: str) -> VerdictRow | None:
        """Take back a reviewer's last verdict, also one of an earlier day; returns it, or None where there is none."""
        with self._lock_of(reviewer):
            row = self.last_of(reviewer)
            if row is None:
                return None
            name = next(name for name, rows in list(self._files.items()) if row in rows)
            # Another server may have added to a file that is not of this one.
            rows = self._files[name] if name == self._current.get(reviewer) else self._read(name)
            self._write(name, [other for other in rows if other != row])
            self._by_reviewer[reviewer].remove(row)
            self._by_pair[pair_of(row)].remove(row)
            return row

    def _lock_of(self, reviewer: str) -> Lock:
        with self._guard:
            return self._writing[reviewer]

    def _time_after(self, last: VerdictRow | None) -> str:
        """Now, and later than the reviewer's last verdict, whatever the clock of the machine did."""
        now = self._now()
        if last is not None and last.at:
            now = max(now, datetime.fromisoformat(last.at) + timedelta(microseconds=1))
        return as_utc(now)

    def _remember(self, row: VerdictRow) -> None:
        self._by_pair[pair_of(row)].append(row)
        self._by_reviewer[row.reviewer].append(row)

    def _read(self, name: str) -> list[VerdictRow]:
        return read_verdict_file(self._run.path(FOLDER, name)) if self._run.exists(FOLDER, name) else []

    def _write(self, name: str, rows: list[VerdictRow]) -> None:
        with self._run.write(FOLDER, name) as file:
            write_verdicts(file, rows)
        self._files[name] = rows


def strangers(stored: Collection[StoredFile], *, images: Collection[str]) -> Mapping[str, int]:
    """By file how many of its verdicts are of images that the run does not have."""
    counts = {file.name: sum(row.image_id not in images for row in file.rows) for file in stored}
    return {name: count for name, count in counts.items() if count}
