"""Whoever looks at a run, as one watch for its engine: the tally, bars or lines, JSON lines, metrics, the watchdog."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager

from rich.console import Console

from pipelines.cells import PartReport
from pipelines.engine import Watch
from pipelines.event_log import EventLog
from pipelines.exits import Exit, exit_of
from pipelines.grid import Stage
from pipelines.metrics import Metrics
from pipelines.plan import Plan
from pipelines.progress import PartLines, ProgressBars, print_summary
from pipelines.tally import Tally
from pipelines.watchdog import Watchdog


class Watches:
    """Several watches as one, told in their order."""

    def __init__(self, watches: Sequence[Watch]) -> None:
        self._watches = tuple(watches)

    def stage_begins(self, stage: Stage, todo: Sequence[int]) -> None:
        """See `engine.Watch`."""
        for watch in self._watches:
            watch.stage_begins(stage, todo)

    def tick(self, step: str, records: int) -> None:
        """See `engine.Watch`."""
        for watch in self._watches:
            watch.tick(step, records)

    def part_ends(self, report: PartReport) -> None:
        """See `engine.Watch`."""
        for watch in self._watches:
            watch.part_ends(report)

    def stage_ends(self, stage: Stage) -> None:
        """See `engine.Watch`."""
        for watch in self._watches:
            watch.stage_ends(stage)


class Observation(Watches):
    """What `observe` yields. `ends_as` is how a run ends that raises nothing."""

    def __init__(self, tally: Tally, log: EventLog | None, watches: Sequence[Watch]) -> None:
        super().__init__([tally, *watches])
        self._tally = tally
        self._log = log
        self.ends_as = Exit.COMPLETE

    def plan_is_made(self, plan: Plan) -> None:
        """It is known how much there is to do; comes before any stage."""
        self._tally.plan_is_made(plan)
        if self._log is not None:
            self._log.plan_is_made(plan)


@contextmanager
def observe(
    console: Console,
    *,
    run: str,
    engine: str,
    log_json: str | None = None,
    metrics: str | None = None,
    stalled_after_s: float = 0.0,
) -> Iterator[Observation]:
    """The watch of a run, from before its plan is made until it is over, however it ends.

    At the end the log and the metrics get the last word, and a summary is printed. `stalled_after_s` 0 is without a
    watchdog. Raises InputError, before anything else is done, when `log_json` or `metrics` cannot be written.
    """
    tally = Tally()
    with ExitStack() as stack:
        shown = log = None
        if metrics is not None:
            shown = stack.enter_context(closing(Metrics(metrics, tally, run=run, say=console.print)))
        if log_json is not None:
            log = stack.enter_context(closing(EventLog(log_json, run=run, engine=engine, say=console.print)))
        display = (ProgressBars if console.is_terminal else PartLines)(console, tally)
        observation = Observation(tally, log, [watch for watch in (log, shown, display) if watch is not None])

        def say_last_words(_kind: object, error: BaseException | None, _traceback: object) -> None:
            how = observation.ends_as if error is None else exit_of(error)
            if log is not None:
                log.run_ends(how, error=error, tally=tally)
            if shown is not None:
                shown.run_ends(how)
            print_summary(console, tally)

        def say_stalled(line: str) -> None:
            console.print(line)
            if log is not None:
                log.stalled(line)

        stack.push(say_last_words)
        stack.enter_context(display)
        if stalled_after_s:
            stack.enter_context(Watchdog(tally, after_s=stalled_after_s, engine=engine, say=say_stalled))
        yield observation
