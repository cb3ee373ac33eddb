"""A run as JSON lines, one object an event, for whatever collects logs."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from typing import IO, Any

from pipelines.cells import PartReport
from pipelines.exits import Exit
from pipelines.grid import Stage
from pipelines.plan import Plan
from pipelines.tally import Tally
from schemas.errors import InputError


class EventLog:
    """A watch that appends to a file, one whole line at a time and at once, so that others can follow it.

    Every line has `time` (UTC), `event` and `run`, the run folder. When the file cannot be written any more, `say`
    gets one line and the run goes on. Raises InputError when it cannot be opened.
    """

    def __init__(self, path: str, *, run: str, engine: str, say: Callable[[str], None]) -> None:
        self._path = path
        self._run = run
        self._say = say
        self._lock = threading.Lock()
        try:
            self._file: IO[str] | None = open(path, "a", encoding="utf-8")  # noqa: SIM115 (closed in `close`)
        except OSError as error:
            raise InputError(f"--log-json {path}: cannot be written ({error.strerror}); give another file") from error
        self._write("run_begins", engine=engine)

    def plan_is_made(self, plan: Plan) -> None:
        """How much there is to do, earlier runs' work included."""
        self._write("planned", images=plan.images, parts=plan.parts)

    def stage_begins(self, stage: Stage, todo: Sequence[int]) -> None:
        """See `engine.Watch`."""
        self._write("stage_begins", step=stage.name, parts=stage.cells, todo=len(todo))

    def tick(self, step: str, records: int) -> None:
        """Single images are no events."""

    def part_ends(self, report: PartReport) -> None:
        """See `engine.Watch`."""
        self._write("part", **_rounded(asdict(report)))

    def stage_ends(self, stage: Stage) -> None:
        """See `engine.Watch`."""
        self._write("stage_ends", step=stage.name)

    def stalled(self, line: str) -> None:
        """Nothing has moved for a while."""
        self._write("stalled", line=line)

    def run_ends(self, how: Exit, *, error: BaseException | None, tally: Tally) -> None:
        """Why the run is over, and what it did in all."""
        self._write(
            "run_ends",
            reason=how.word,
            exit_code=int(how),
            error=None if error is None else " ".join(str(error).split()) or type(error).__name__,
            seconds=round(tally.elapsed_s, 3),
            busy_seconds=round(tally.busy_s, 3),
            steps=[_rounded(asdict(step)) for step in tally.figures()],
        )

    def close(self) -> None:
        """Nothing is written any more."""
        with self._lock:
            if self._file is not None:
                self._file.close()
                self._file = None

    def _write(self, event: str, **fields: Any) -> None:
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = json.dumps({"time": now, "event": event, "run": self._run, **fields}, ensure_ascii=False)
        with self._lock:
            if self._file is None:
                return
            try:
                self._file.write(line + "\n")
                self._file.flush()
                return
            except OSError as error:
                fault = error
                self._drop()
        self._say(f"--log-json {self._path}: cannot be written any more ({fault.strerror}); the run goes on without it")

    def _drop(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with suppress(OSError):  # what could not be written cannot be flushed either
                file.close()


def _rounded(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: round(value, 3) if isinstance(value, float) else value for name, value in fields.items()}
