"""A run as JSON lines, one object an event, for whatever collects logs."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from typing import IO, Any

from maskmine.pipelines.engines.engine import RunObserver
from maskmine.pipelines.planning.plan import Plan
from maskmine.pipelines.steps.grid import Step
from maskmine.pipelines.steps.jobs import PartReport
from maskmine.pipelines.watch.progress import RunProgress, StepFigures
from maskmine.schemas.errors import Exit, InputError


class EventLog(RunObserver):
    """Appends to a file, one whole line at a time and at once, so that others can follow it.

    Every line has `time` (UTC), `event` and `run`, the run folder. When the file cannot be written any more, `say`
    prints one line and the run goes on. Raises InputError when it cannot be opened.
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

    def on_plan(self, plan: Plan) -> None:
        self._write("planned", images=plan.images, parts=plan.parts)

    def on_line(self, line: str) -> None:
        self._write("note", line=line)

    def on_step_start(self, step: Step, todo: Collection[int]) -> None:
        self._write("stage_begins", step=step.name, parts=step.parts, todo=len(todo))

    def on_part_done(self, report: PartReport) -> None:
        self._write("part", **_rounded(asdict(report)))

    def on_step_done(self, step: Step) -> None:
        self._write("stage_ends", step=step.name)

    def stalled(self, line: str) -> None:
        """Log that nothing has been finished for a while."""
        self._write("stalled", line=line)

    def run_ends(self, how: Exit, *, error: BaseException | None, progress: RunProgress) -> None:
        """Log why the run is over, and what it did in total."""
        self._write(
            "run_ends",
            reason=how.word,
            exit_code=int(how),
            error=None if error is None else " ".join(str(error).split()) or type(error).__name__,
            seconds=round(progress.elapsed_s, 3),
            busy_seconds=round(progress.busy_s, 3),
            steps=[_step_fields(step) for step in progress.figures()],
        )

    def close(self) -> None:
        """Close the file; nothing is written after this."""
        with self._lock:
            self._drop()

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


def _step_fields(step: StepFigures) -> dict[str, Any]:
    """A step without its label, which is for people."""
    fields = _rounded(asdict(step))
    del fields["label"]
    return fields


def _rounded(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: round(value, 3) if isinstance(value, float) else value for name, value in fields.items()}
