"""The driver's side of a run on workers: who makes which cell when, and what the death of a worker costs.

It knows nothing of where the workers are: `ray_workers.py` has Ray's actors, `processes.py` processes of this machine.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from maskmine.pipelines.engines.cell_queue import Cell, CellQueue, ReadyCells
from maskmine.pipelines.engines.engine import RunObserver, reports_by_step
from maskmine.pipelines.steps.jobs import Job, MakeCell, PartReport, each_report, no_tick
from maskmine.schemas.errors import IncompleteError
from maskmine.schemas.sample import part_name

RESIZE_EVERY_S = 10.0  # machines join a cluster within minutes
OPEN_JOBS = 2  # a worker that takes pairs and shards in turn keeps both open; three models would fill a GPU


class OpenJobs:
    """What a worker runs: it makes cells, and keeps the jobs of the steps open that it worked on last."""

    def __init__(self, jobs: Mapping[str, Job]) -> None:
        self._jobs = jobs
        self._open: dict[str, MakeCell] = {}

    def make(self, step: str, part: int) -> Sequence[PartReport]:
        """Make a cell, or those of a pass that makes two."""
        make_cell = self._open.pop(step, None)
        if make_cell is None:
            while len(self._open) >= OPEN_JOBS:
                del self._open[next(iter(self._open))]
            make_cell = self._jobs[step].open()
        self._open[step] = make_cell  # the last one is the newest
        return each_report(make_cell(part, no_tick))


class WorkerDiedError(Exception):
    """A worker has gone while it was called; the message says why, as far as that is known."""


class Workers(Protocol):
    """Where workers are, and how they are called. A worker and a call are whatever the implementation says."""

    @property
    def engine(self) -> str:
        """What messages call it, such as `Ray`."""

    @property
    def wait_for(self) -> str:
        """What a worker that does not start waits for, such as `a free CPU or GPU`."""

    def start(self, options: Mapping[str, Any]) -> tuple[Any, Any]:
        """Start a worker; returns it with the call that ends when it is there."""

    def make(self, worker: Any, step: str, part: int) -> Any:
        """Call a worker to make a cell."""

    def wait(self, calls: Sequence[Any], *, timeout_s: float) -> Any | None:
        """A call that has ended; None when none has in that time, or sooner. Raises IncompleteError when no worker can
        answer any more."""

    def result(self, call: Any) -> Any:
        """What a call returned. Raises what the job raised, or WorkerDiedError."""

    def kill(self, worker: Any) -> None:
        """End a worker, whatever it is doing."""


@dataclass
class WorkerPool:
    """The workers of one kind and the cells that are ready for them; `starting` workers have not yet answered."""

    size: int
    options: dict[str, Any]
    ready: ReadyCells = field(default_factory=ReadyCells)
    workers: list[Any] = field(default_factory=list)
    idle: list[Any] = field(default_factory=list)
    starting: int = 0
    failed_starts: int = 0


class _Call(NamedTuple):
    """A call of a worker: for a cell, or (None) to see whether the worker is there."""

    pool: WorkerPool
    worker: Any
    cell: Cell | None


@dataclass
class Scheduler:
    """Submits cells to workers and collects their reports until no cell is left.

    `pool_of` has the pool of each step. `resize` is called now and then, and may give pools another size: new workers
    are started for the cells that are left, and those that are there go on.
    """

    queue: CellQueue
    observer: RunObserver
    workers: Workers
    pools: list[WorkerPool]
    pool_of: list[WorkerPool]
    max_attempts: int
    no_progress_timeout_s: float
    resize: Callable[[], None] = lambda: None
    _calls: dict[Any, _Call] = field(default_factory=dict)
    _started: set[int] = field(default_factory=set)
    _deaths: Counter[Cell] = field(default_factory=Counter)
    _given_up: dict[Cell, str] = field(default_factory=dict)

    def run(self) -> None:
        """Work until every cell is made or given up. What a worker raises is raised here, as it is.

        Raises IncompleteError for cells whose workers die, or when nothing is finished.
        """
        self._enqueue(self.queue.ready())
        until = time.monotonic() + self.no_progress_timeout_s
        resize_at = time.monotonic() + RESIZE_EVERY_S
        while True:
            if time.monotonic() >= resize_at:
                self.resize()
                resize_at = time.monotonic() + RESIZE_EVERY_S
            for pool in self.pools:
                self._submit(pool)
            if not any(pool.ready for pool in self.pools) and all(call.cell is None for call in self._calls.values()):
                break
            if (left_s := until - time.monotonic()) <= 0:
                raise IncompleteError(self._no_progress())
            wait_s = min(left_s, max(0.0, resize_at - time.monotonic()))
            if (call := self.workers.wait(list(self._calls), timeout_s=wait_s)) is not None:
                self._collect(call)
                until = time.monotonic() + self.no_progress_timeout_s
        if self._given_up:
            cell, reason = min(self._given_up.items())
            others = f" (and {len(self._given_up) - 1} other parts)" if len(self._given_up) > 1 else ""
            raise IncompleteError(
                f"{self._name(cell)}{others}: its worker died {self._deaths[cell]} times ({reason}); what does not "
                "need it is finished. Give workers more memory (fewer of them), and run the same command again"
            )

    def kill_workers(self) -> None:
        """Kill all workers, whatever they are doing."""
        for pool in self.pools:
            for worker in pool.workers:
                self.workers.kill(worker)

    def _enqueue(self, cells: Iterable[Cell]) -> None:
        for cell in cells:
            self.pool_of[cell.step].ready.push(cell)

    def _submit(self, pool: WorkerPool) -> None:
        """Give cells to idle workers, and start workers for the cells that are left."""
        while pool.ready and pool.idle:
            cell, worker = pool.ready.pop(), pool.idle.pop()
            self._start(cell.step)
            self._calls[self.workers.make(worker, self.queue.steps[cell.step].name, cell.part)] = _Call(
                pool, worker, cell
            )
        while len(pool.ready) > pool.starting and len(pool.workers) < pool.size:
            worker, call = self.workers.start(pool.options)
            pool.workers.append(worker)
            pool.starting += 1
            self._calls[call] = _Call(pool, worker, None)

    def _collect(self, ended: Any) -> None:
        """Take the result of a call: a report, a worker that has started, an error of the job, or a death."""
        call = self._calls.pop(ended)
        pool, worker, cell = call
        pool.starting -= cell is None
        try:
            result = self.workers.result(ended)
        except WorkerDiedError as error:
            pool.workers.remove(worker)
            self.workers.kill(worker)  # it may be out of reach only
            self._handle_death(call, str(error))
            return
        pool.idle.append(worker)
        if cell is not None:
            self._report(result)
        else:
            pool.failed_starts = 0

    def _report(self, made: Sequence[PartReport]) -> None:
        """Tell of the cells of a pass; the last is finished first, or it would be given out as ready to be made."""
        steps = self.queue.steps
        reports = reports_by_step(made, steps)
        for report, step in reports:
            self._start(steps.index(step))
            self.observer.on_records(report.step, report.images)
            self.observer.on_part_done(report)
        for report, step in reversed(reports):
            self._enqueue(self.queue.finish(Cell(steps.index(step), report.part)))
        for _, step in reports:
            if self.queue.is_complete(steps.index(step)):
                self.observer.on_step_done(step)

    def _start(self, step: int) -> None:
        if step not in self._started:
            self._started.add(step)
            self.observer.on_step_start(self.queue.steps[step], self.queue.todo[step])

    def _handle_death(self, call: _Call, reason: str) -> None:
        """A worker is gone. Its cell is given to another one, up to `max_attempts`."""
        if call.cell is None:
            call.pool.failed_starts += 1
            if call.pool.failed_starts >= self.max_attempts:
                raise IncompleteError(
                    f"{self.workers.engine}: {call.pool.failed_starts} workers in a row died before they began "
                    f"({reason}); mend the cause and run the same command again"
                )
            return
        self._deaths[call.cell] += 1
        if self._deaths[call.cell] < self.max_attempts:
            self._enqueue([call.cell])
        else:
            self._given_up[call.cell] = reason

    def _no_progress(self) -> str:
        cells = sorted(call.cell for call in self._calls.values() if call.cell is not None)
        starting = sum(pool.starting for pool in self.pools)
        parts = [self._name(cell) for cell in cells[:5]] + (["…"] if len(cells) > 5 else [])
        parts += [f"{starting} workers that wait for {self.workers.wait_for}"] if starting else []
        return (
            f"{self.workers.engine}: nothing was finished in {self.no_progress_timeout_s:g} s; in hand: "
            f"{', '.join(parts)}. Run the same command again, with a longer no_progress_timeout_s if a part may take "
            "so long"
        )

    def _name(self, cell: Cell) -> str:
        return f"{self.queue.steps[cell.step].name} {part_name(cell.part)}"
