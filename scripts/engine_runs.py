"""Runs of one load by each engine, every run in a process of its own, with a log of all cells that were made.

The log is written by the workers themselves, so it means the same on every engine: when a job was opened, when a cell
was begun and ended, and by which process. All figures of `bench_engines` are taken from it.

    start ─▶ open nouns ─▶ begin 0 ─▶ end 0 ─▶ begin 1 … ─▶ open vocabulary … ─▶ end ─▶ return
    driver   worker                                                                     driver
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

from pipelines.cells import Job, MakeCell, PartReport, Tick
from pipelines.choose import choose_engine
from pipelines.engine import Engine, Watch
from pipelines.grid import Stage, plan_stages
from pipelines.local import run_local
from pipelines.mine import mine
from pipelines.plan import make_plan
from pipelines.run_folder import RunFolder
from pipelines.settings import load_mining
from schemas.errors import IncompleteError, InputError
from scripts.bench_mining import Seconds

TWO_PROCESSES = "two processes"
_INCOMPLETE = 4


class Event(NamedTuple):
    """Something that happened in a run; `at_s` is the machine's monotonic clock, which all processes share."""

    what: Literal["start", "open", "begin", "end", "return"]
    stage: str
    part: int
    pid: int
    at_s: float


@dataclass(frozen=True)
class LoggedJob:
    """A job that writes down what it does."""

    job: Job
    stage: str
    log: str

    @property
    def device(self) -> str | None:
        """As the job's own."""
        return self.job.device

    def open(self) -> MakeCell:
        """As the job's own."""
        _note(self.log, "open", self.stage)
        make = self.job.open()

        def logged(part: int, tick: Tick) -> PartReport:
            _note(self.log, "begin", self.stage, part)
            report = make(part, tick)
            _note(self.log, "end", self.stage, part)
            return report

        return logged


def start_run(config: Path, engine: str, *, workers: int, log: Path, only: str = "") -> BaseProcess:
    """Start the run of a configuration, or of what is left of it, in a new process; `only` names a stage to run."""
    log.touch()
    arguments = (str(config), engine, workers, str(log), only)
    process = multiprocessing.get_context("spawn").Process(target=_drive, args=arguments)
    process.start()
    return process


def complete_run(config: Path, engine: str, *, workers: int, log: Path, only: str = "") -> list[Event]:
    """Run a configuration to its end; returns what happened. Raises InputError when the run fails."""
    process = start_run(config, engine, workers=workers, log=log, only=only)
    process.join()
    if process.exitcode:
        raise InputError(f"bench: the run of {config} by {engine} ended with exit code {process.exitcode}")
    return read_events(log)


def is_incomplete(process: BaseProcess) -> bool:
    """Whether a run that ended has to be run again: it was killed, or says so."""
    if process.exitcode not in (0, _INCOMPLETE) and (process.exitcode or 0) > 0:
        raise InputError(f"bench: a run ended with exit code {process.exitcode}")
    return process.exitcode != 0


def read_events(log: Path) -> list[Event]:
    """What happened so far, in the order of time."""
    with log.open() as file:
        return sorted(new_events(file), key=lambda event: event.at_s)


def new_events(log: IO[str]) -> Iterator[Event]:
    """What was written since this file was last read."""
    return (Event(*json.loads(line)) for line in log)


def run_two_processes(run: RunFolder, stages: Sequence[Stage], watch: Watch) -> None:
    """The plain way without an engine: two processes, each makes every other part, and they meet at `once` stages.

    A part is made by the same process in all stages, so that nobody waits for its cells but that process itself.
    """
    context = multiprocessing.get_context("spawn")
    meeting = context.Barrier(2)
    todo = [stage.todo(run) for stage in stages]
    processes = [context.Process(target=_make_half, args=(list(stages), todo, meeting, number)) for number in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise IncompleteError(f"{run.root}: one of two processes ended; run the same command again")


def _make_half(stages: list[Stage], todo: list[list[int]], meeting: Barrier, number: int) -> None:
    try:
        meeting.wait()
        for stage, parts in zip(stages, todo, strict=True):
            if stage.once and parts:
                meeting.wait()  # all parts of what it reads are there
            if half := [part for part in parts if part % 2 == number]:
                make = stage.job.open()
                for part in half:
                    make(part, _no_tick)
            if stage.once and parts:
                meeting.wait()
    except BaseException:
        meeting.abort()  # or the other process would wait for ever
        raise


def _drive(config: str, name: str, workers: int, log: str, only: str) -> None:
    """A run as `maskmine mine` makes it, in this process."""
    engine, settings = _open_engine(name, workers), load_mining(config)

    def logged(run: RunFolder, stages: Sequence[Stage], watch: Watch) -> None:
        _note(log, "start")
        engine(run, [replace(stage, job=LoggedJob(stage.job, stage.name, log)) for stage in stages], watch)
        _note(log, "return")

    try:
        if not only:
            mine(settings, engine=logged, watch=Seconds(), models_run_here=False)
            return
        run = RunFolder(settings.out)
        stages = plan_stages(run, make_plan(run, settings), settings)
        logged(run, [replace(stage, after=()) for stage in stages if stage.name == only], Seconds())
    except IncompleteError as error:
        print(f"    {error}", flush=True)
        sys.exit(_INCOMPLETE)


def _open_engine(name: str, workers: int) -> Engine:
    if name == TWO_PROCESSES:
        return run_two_processes
    if name == "local":
        return run_local
    return choose_engine(name, options=[f"{'cpu_workers' if name == 'ray' else 'workers'}={workers}"])


def _note(log: str, what: str, stage: str = "", part: int = -1) -> None:
    """One short write at the end of the file, which no other process can cut in two."""
    line: list[Any] = [what, stage, part, os.getpid(), time.monotonic()]
    with open(log, "ab", buffering=0) as file:
        file.write((json.dumps(line) + "\n").encode())


def _no_tick(records: int) -> None:
    pass
