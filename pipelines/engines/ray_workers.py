"""Ray's workers: the actor that makes cells, and the driver's side that gives them work and handles their deaths."""

from __future__ import annotations

import platform
import secrets
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Any, NamedTuple

from maskmine.mining.storage.ownership import RAY, owned_prefix
from maskmine.pipelines.engines.cell_queue import Cell, CellQueue
from maskmine.pipelines.engines.engine import RunObserver, reports_by_step
from maskmine.pipelines.engines.ray_sizes import Node
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.pipelines.steps.jobs import Job, MakeCell, PartReport, each_report, no_tick
from maskmine.schemas.errors import IncompleteError, InputError
from maskmine.schemas.sample import part_name
from maskmine.tuning.ray_start import last_line

SEEN_WITHIN_S = 3.0  # a network file system may show a new file late
CHECK_NODES_EVERY_S = 10.0  # a worker that is to start on a dead machine is waited for indefinitely
OPEN_JOBS = 2  # a worker that takes pairs and shards in turn keeps both open; three models would fill a GPU


class Worker:
    """What a Ray actor runs: it makes cells, and keeps the jobs of the steps open that it worked on last."""

    def __init__(self, *, jobs: Mapping[str, Job], seen_path: str | None, token: str) -> None:
        self._jobs = jobs
        self._seen_path = seen_path
        self._token = token
        self._open: dict[str, MakeCell] = {}

    def blind_host(self) -> str | None:
        """The name of this machine if it does not see the run folder, else None."""
        until = time.monotonic() + SEEN_WITHIN_S
        while self._seen_path is not None and not _holds(self._seen_path, self._token):
            if time.monotonic() > until:
                return platform.node()
            time.sleep(0.2)
        return None

    def make(self, step: str, part: int) -> Sequence[PartReport]:
        """Make a cell, or those of a pass that makes two."""
        make_cell = self._open.pop(step, None)
        if make_cell is None:
            while len(self._open) >= OPEN_JOBS:
                del self._open[next(iter(self._open))]
            make_cell = self._jobs[step].open()
        self._open[step] = make_cell  # the last one is the newest
        return each_report(make_cell(part, no_tick))


@dataclass
class WorkerPool:
    """The workers of one kind and the cells that are ready for them; `starting` workers have not yet answered."""

    size: int
    options: dict[str, Any]
    ready: list[Cell] = field(default_factory=list)
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
    """The driver's side of a run: submits cells to workers and collects their reports until no cell is left.

    `pool_of` has the pool of each step, `env` what each worker is started with.
    """

    queue: CellQueue
    observer: RunObserver
    pools: list[WorkerPool]
    pool_of: list[WorkerPool]
    env: dict[str, Any]
    max_attempts: int
    no_progress_timeout_s: float
    _calls: dict[Any, _Call] = field(default_factory=dict)
    _started: set[int] = field(default_factory=set)
    _deaths: Counter[Cell] = field(default_factory=Counter)
    _given_up: dict[Cell, str] = field(default_factory=dict)

    def run(self) -> None:
        """Work until every cell is made or given up."""
        self._enqueue(self.queue.ready())
        while True:
            for pool in self.pools:
                self._submit(pool)
            if not any(pool.ready for pool in self.pools) and all(call.cell is None for call in self._calls.values()):
                break
            self._collect(self._next_result())
        if self._given_up:
            cell, reason = min(self._given_up.items())
            others = f" (and {len(self._given_up) - 1} other parts)" if len(self._given_up) > 1 else ""
            raise IncompleteError(
                f"{self._name(cell)}{others}: its worker died {self._deaths[cell]} times ({reason}); what does not "
                "need it is finished. Give workers more memory (fewer of them), and run the same command again"
            )

    def kill_workers(self) -> None:
        """Kill all workers, whatever they are doing."""
        import ray

        for pool in self.pools:
            for worker in pool.workers:
                ray.kill(worker)

    def _next_result(self) -> Any:
        """Wait for a worker. Raises IncompleteError when nothing comes, or when all machines are dead."""
        import ray

        until = time.monotonic() + self.no_progress_timeout_s
        while (left_s := until - time.monotonic()) > 0:
            done, _ = ray.wait(list(self._calls), num_returns=1, timeout=min(left_s, CHECK_NODES_EVERY_S))
            if done:
                return done[0]
            if not alive_nodes():
                raise IncompleteError(
                    "Ray: all of its nodes are dead (was there memory enough?); run the same command again"
                )
        raise IncompleteError(self._no_progress())

    def _enqueue(self, cells: Sequence[Cell]) -> None:
        for cell in cells:
            heappush(self.pool_of[cell.step].ready, cell)

    def _submit(self, pool: WorkerPool) -> None:
        """Give cells to idle workers, and start workers for the cells that are left."""
        import ray

        while pool.ready and pool.idle:
            cell, worker = heappop(pool.ready), pool.idle.pop()
            self._start(cell.step)
            ref = worker.make.remote(self.queue.steps[cell.step].name, cell.part)
            self._calls[ref] = _Call(pool, worker, cell)
        while len(pool.ready) > pool.starting and len(pool.workers) < pool.size:
            actor: Any = ray.remote(max_restarts=0, max_task_retries=0, **pool.options)(Worker)
            worker = actor.remote(**self.env)
            pool.workers.append(worker)
            pool.starting += 1
            self._calls[worker.blind_host.remote()] = _Call(pool, worker, None)

    def _collect(self, ref: Any) -> None:
        """Take the result of a call: a report, a worker that has started, an error of the job, or a death."""
        import ray
        from ray.exceptions import RayError, RayTaskError

        call = self._calls.pop(ref)
        pool, worker, cell = call
        pool.starting -= cell is None
        try:
            result = ray.get(ref)
        except RayTaskError as error:
            raise error.cause from error
        except RayError as error:
            pool.workers.remove(worker)
            ray.kill(worker)  # it may be out of reach only
            self._handle_death(call, last_line(error))
            return
        pool.idle.append(worker)
        if cell is not None:
            self._report(result)
            return
        pool.failed_starts = 0
        if result is not None:
            raise InputError(
                f"{self.env['seen_path']}: the Ray worker on {result} does not see what is written there; "
                "give an `out` that all nodes share, or one on an object store"
            )

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
                    f"Ray: {call.pool.failed_starts} workers in a row died before they began ({reason}); "
                    "mend the cause and run the same command again"
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
        parts += [f"{starting} workers that wait for a free CPU or GPU"] if starting else []
        return (
            f"Ray: nothing was finished in {self.no_progress_timeout_s:g} s; in hand: {', '.join(parts)}. Run "
            "the same command again, with a longer no_progress_timeout_s if a part may take so long"
        )

    def _name(self, cell: Cell) -> str:
        return f"{self.queue.steps[cell.step].name} {part_name(cell.part)}"


@contextmanager
def seen_file(run: RunFolder) -> Iterator[tuple[str | None, str]]:
    """A file that workers look for, to see whether they have the run folder, and its content.

    The path is None on an object store, which every machine sees. The name is this driver's own: another one may be
    at work in the folder.
    """
    token = secrets.token_hex(8)
    if "://" in run.root:
        yield None, token
        return
    name = f"{owned_prefix(RAY)}{token}"
    with run.write(name) as file:
        file.write(token.encode())
    try:
        yield run.path(name), token
    finally:
        run.delete(name)


def alive_nodes() -> list[Node]:
    """The machines of the cluster that are alive."""
    import ray

    list_nodes: Any = ray.nodes  # it has no types
    alive = [node["Resources"] for node in list_nodes() if node["Alive"]]
    return [Node(resources.get("CPU", 0.0), resources.get("GPU", 0.0)) for resources in alive]


def _holds(path: str, token: str) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read() == token.encode()
    except OSError:
        return False
