"""The observers of a run as one: its progress, bars or lines, JSON lines, metrics, and the watchdog."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from typing import Literal

from rich.console import Console

from maskmine.pipelines.engines.engine import RunObserver
from maskmine.pipelines.planning.plan import Plan
from maskmine.pipelines.steps.grid import Step
from maskmine.pipelines.steps.jobs import PartReport
from maskmine.pipelines.watch.bars import PartLines, ProgressBars, print_summary
from maskmine.pipelines.watch.event_log import EventLog
from maskmine.pipelines.watch.metrics import Metrics
from maskmine.pipelines.watch.progress import RunProgress
from maskmine.pipelines.watch.stall import Watchdog
from maskmine.schemas.errors import Exit, exit_of
from maskmine.schemas.wording import counted

Detail = Literal["quiet", "normal", "verbose"]
"""How much a person sees of a run."""


class RunObservers(RunObserver):
    """Several observers as one, called in their order. `ends_as` is how a run ends that raises nothing."""

    def __init__(self, observers: Sequence[RunObserver]) -> None:
        self._observers = tuple(observers)
        self.ends_as = Exit.COMPLETE

    def on_plan(self, plan: Plan) -> None:
        for observer in self._observers:
            observer.on_plan(plan)

    def on_line(self, line: str) -> None:
        for observer in self._observers:
            observer.on_line(line)

    def on_step_start(self, step: Step, todo: Collection[int]) -> None:
        for observer in self._observers:
            observer.on_step_start(step, todo)

    def on_total(self, step: str, records: int) -> None:
        for observer in self._observers:
            observer.on_total(step, records)

    def on_records(self, step: str, records: int) -> None:
        for observer in self._observers:
            observer.on_records(step, records)

    def on_part_done(self, report: PartReport) -> None:
        for observer in self._observers:
            observer.on_part_done(report)

    def on_step_done(self, step: Step) -> None:
        for observer in self._observers:
            observer.on_step_done(step)


class PlanLine(RunObserver):
    """Prints how much there is to do, and where the results go."""

    def __init__(self, console: Console, run: str) -> None:
        self._console = console
        self._run = run

    def on_plan(self, plan: Plan) -> None:
        self._console.print(
            f"{counted(plan.images, 'image')} in {counted(plan.parts, 'part')} → {self._run}", markup=False, emoji=False
        )


class NoteLines(RunObserver):
    """Prints what a person should know before the work begins."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say

    def on_line(self, line: str) -> None:
        self._say(line)


@contextmanager
def observe(
    console: Console,
    *,
    run: str,
    engine: str,
    log_json: str | None = None,
    metrics: str | None = None,
    stalled_after_s: float = 0.0,
    plan_line: bool = False,
    detail: Detail = "normal",
) -> Iterator[RunObservers]:
    """The observer of a run, from before its plan is made until it is over, however it ends.

    At the end the log and the metrics record how it ended, and a summary is printed. `plan_line` prints the size of
    the plan; `stalled_after_s` 0 is without a watchdog. `quiet` shows what a person should know and no progress,
    `verbose` a line a part on a terminal too. Raises InputError, before anything else is done, when
    `log_json` or `metrics` cannot be written.
    """
    progress = RunProgress()
    say = partial(console.print, markup=False, emoji=False)
    with ExitStack() as stack:
        # What may be refused, first.
        exporter = log = None
        if metrics is not None:
            exporter = stack.enter_context(closing(Metrics(metrics, progress, run=run, say=say)))
        if log_json is not None:
            log = stack.enter_context(closing(EventLog(log_json, run=run, engine=engine, say=say)))
        bars = console.is_terminal and detail == "normal"
        display = None if detail == "quiet" else (ProgressBars if bars else PartLines)(console, progress)
        line = PlanLine(console, run) if plan_line and detail != "quiet" else None
        all_of_them = (progress, log, exporter, line, NoteLines(say), display)
        observers = RunObservers([one for one in all_of_them if one is not None])

        # Pushed in this order, so that the bars end before the summary is printed.
        def record_end(_kind: object, error: BaseException | None, _traceback: object) -> None:
            how = observers.ends_as if error is None else exit_of(error)
            if log is not None:
                log.run_ends(how, error=error, progress=progress)
            if exporter is not None:
                exporter.run_ends(how)
            if detail != "quiet":
                print_summary(console, progress)

        def report_stall(line: str) -> None:
            say(line)
            if log is not None:
                log.stalled(line)

        stack.push(record_end)
        if isinstance(display, ProgressBars):
            stack.enter_context(display)
        if stalled_after_s:
            stack.enter_context(Watchdog(progress, after_s=stalled_after_s, engine=engine, say=report_stall))
        yield observers
