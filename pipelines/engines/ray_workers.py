"""The Ray engine: one pool of workers for CPU stages and one for GPU stages; part 17 goes on as soon as it can.

Plain actors, no Ray Data: a row would be a part number, and what is left of an engine then is who makes which cell
when. Only part numbers and reports travel; cells are read and written by the worker that makes them. A worker is
never restarted by Ray (`max_restarts=0`): the driver starts another one and counts the attempts of the part that was
in hand, so that a part that kills its worker ends after `max_attempts` and cannot loop.
"""

from __future__ import annotations

import math
import platform
import secrets
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Annotated, Any, NamedTuple

from pydantic import Field

from pipelines.cells import Job, MakeCell, PartReport
from pipelines.engine import Watch
from pipelines.grid import Stage
from pipelines.ownership import RAY, owned_prefix
from pipelines.run_folder import RunFolder
from schemas.errors import IncompleteError, InputError
from schemas.settings import Settings

SEEN_WITHIN_S = 3.0  # a network file system may show a new file late
LOOK_AT_NODES_S = 10.0  # a worker that waits for a place on a dead machine waits for ever
KEPT_OPEN = 2  # a worker that takes pairs and shards in turn keeps both open; three models would fill a GPU
_WITH_TOKEN = "(one that asks for a token needs RAY_AUTH_MODE=token and the token)"
OBJECT_STORE_BYTES = 100 * 2**20  # nothing large goes through it


class RayEngine(Settings):
    """Makes cells in Ray actors. The fields are what `--engine-opt name=value` sets.

    `address` None starts Ray on this machine; `auto`, `host:port` or `ray://host:port` is a running cluster, which
    is sent this code but must have what it depends on. A process that is connected to Ray keeps its connection.
    `cpu_workers`, `gpu_workers` None: as many as fit, with one CPU left free. Steps with models run on GPU
    workers when their device is `cuda`, or is `auto` and the cluster has GPUs. `max_attempts` is how often a part is
    tried whose worker dies.
    """

    address: str | None = None
    cpu_workers: Annotated[int, Field(ge=1)] | None = None
    gpu_workers: Annotated[int, Field(ge=1)] | None = None
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1
    gpus_per_worker: Annotated[float, Field(gt=0)] = 1
    connect_timeout_s: Annotated[float, Field(gt=0)] = 30
    no_progress_timeout_s: Annotated[float, Field(gt=0)] = 1800
    max_attempts: Annotated[int, Field(ge=1)] = 3

    def __call__(self, run: RunFolder, stages: Sequence[Stage], watch: Watch) -> None:
        """Make the missing cells of all stages. What a worker raises is raised here, as it is.

        Raises InputError when Ray is not installed, does not answer or has less than was asked for, or when its
        workers do not see the run folder; IncompleteError for parts whose workers die, or when nothing moves on.
        """
        todo = [stage.todo(run) for stage in stages]
        if not any(todo):
            return
        with _connected(self), _seen_file(run) as (seen_path, token):
            at_work = [stage for stage, parts in zip(stages, todo, strict=True) if parts]
            nodes = _nodes()
            on_gpu = {stage.name for stage in at_work if _wants_gpu(stage.job, gpus=sum(node.gpus for node in nodes))}
            sizes = pool_sizes(self, nodes, gpu_stages=bool(on_gpu))
            gpu_pool = _Pool(sizes.gpu, {"num_cpus": self.cpus_per_worker, "num_gpus": self.gpus_per_worker})
            cpu_pool = _Pool(sizes.cpu, {"num_cpus": self.cpus_per_worker, "num_gpus": 0})
            crew = _Crew(
                engine=self,
                order=Order(stages, todo),
                watch=watch,
                pools=[gpu_pool, cpu_pool],  # GPU workers are placed first, before their nodes' CPUs are taken
                pool_of=[gpu_pool if stage.name in on_gpu else cpu_pool for stage in stages],
                hire={"jobs": {stage.name: stage.job for stage in at_work}, "seen_path": seen_path, "token": token},
            )
            try:
                crew.work()
            finally:
                crew.dismiss()


class Cell(NamedTuple):
    """A cell of the grid, by the number of its stage."""

    stage: int
    part: int


class Order:
    """Which cells can be made: a cell waits for what its stage reads, directly or not.

    A `once` stage waits for all parts of what it reads; a part waits for `once` stages and for the same part.
    """

    def __init__(self, stages: Sequence[Stage], todo: Sequence[Sequence[int]]) -> None:
        self.stages = stages
        self.todo = [sorted(parts) for parts in todo]
        number = {stage.name: index for index, stage in enumerate(stages)}
        self._reads: list[set[int]] = []
        for stage in stages:  # each stands after those that it reads
            direct = {number[name] for name in stage.after}
            self._reads.append(direct.union(*(self._reads[index] for index in direct)))
        self._left = [set(parts) for parts in todo]
        self._blockers = {
            Cell(index, part): sum(self._blocking(index, part, read) for read in self._reads[index])
            for index, parts in enumerate(self.todo)
            for part in parts
        }

    def first(self) -> list[Cell]:
        """The cells that wait for nothing."""
        return [cell for cell, blockers in self._blockers.items() if not blockers]

    def finish(self, cell: Cell) -> list[Cell]:
        """A cell is made; returns those that waited for nothing else."""
        self._left[cell.stage].remove(cell.part)
        freed = []
        for index, reads in enumerate(self._reads):
            if cell.stage not in reads:
                continue
            whole = self.stages[index].once or self.stages[cell.stage].once
            for waiting in (Cell(index, part) for part in (self.todo[index] if whole else [cell.part])):
                if waiting in self._blockers:
                    self._blockers[waiting] -= 1
                    if not self._blockers[waiting]:
                        freed.append(waiting)
        return freed

    def is_complete(self, stage: int) -> bool:
        """Whether all cells of a stage are made."""
        return not self._left[stage]

    def _blocking(self, index: int, part: int, read: int) -> int:
        if self.stages[index].once or self.stages[read].once:
            return len(self._left[read])
        return int(part in self._left[read])


class Node(NamedTuple):
    """What a machine of the cluster has."""

    cpus: float
    gpus: float


class Sizes(NamedTuple):
    """How many workers each pool may have."""

    cpu: int
    gpu: int


def pool_sizes(engine: RayEngine, nodes: Sequence[Node], *, gpu_stages: bool) -> Sizes:
    """How many workers: what was asked for if it exists, else as many as fit, one CPU left free where there are two.

    Raises InputError, which says how much there is.
    """
    have = f"Ray has {sum(n.cpus for n in nodes):g} CPUs and {sum(n.gpus for n in nodes):g} GPUs on {len(nodes)} nodes"
    cpus, gpus = engine.cpus_per_worker, engine.gpus_per_worker
    gpu_workers = 0
    if gpu_stages:
        fit = sum(_fit(node, cpus, gpus) for node in nodes)
        gpu_workers = engine.gpu_workers or max(fit, 1)
        if gpu_workers > fit:
            raise InputError(
                f"gpu_workers: {gpu_workers} of {gpus:g} GPUs and {cpus:g} CPUs do not fit, {have}; "
                "lower gpu_workers or gpus_per_worker, or use `regions.device: cpu`"
            )
    rest, left = [], gpu_workers
    for node in nodes:
        here = min(left, _fit(node, cpus, gpus))
        rest.append(Node(node.cpus - here * cpus, 0))
        left -= here
    fit = sum(_fit(node, cpus, 0) for node in rest)
    spare = math.floor((sum(node.cpus for node in rest) - 1) / cpus)
    cpu_workers = engine.cpu_workers or max(min(fit, spare), 1)
    if cpu_workers > fit:
        beside = f" beside {gpu_workers} GPU workers" if gpu_workers else ""
        raise InputError(
            f"cpu_workers: {cpu_workers} of {cpus:g} CPUs do not fit{beside}, {have}; "
            "lower cpu_workers or cpus_per_worker"
        )
    return Sizes(cpu_workers, gpu_workers)


class Worker:
    """What a Ray actor runs: it makes cells, and keeps open the stages that it worked on last."""

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

    def make(self, stage: str, part: int) -> PartReport:
        """Make a cell."""
        make_cell = self._open.pop(stage, None)
        if make_cell is None:
            while len(self._open) >= KEPT_OPEN:
                del self._open[next(iter(self._open))]
            make_cell = self._jobs[stage].open()
        self._open[stage] = make_cell  # the last one is the newest
        return make_cell(part, _no_tick)


@dataclass
class _Pool:
    """The workers of a kind and the cells that wait for them; `starting` have not yet answered."""

    size: int
    options: dict[str, Any]
    ready: list[Cell] = field(default_factory=list)
    workers: list[Any] = field(default_factory=list)
    idle: list[Any] = field(default_factory=list)
    starting: int = 0
    failed_starts: int = 0


class _Call(NamedTuple):
    """What a worker was asked for: a cell, or (None) whether it is there."""

    pool: _Pool
    worker: Any
    cell: Cell | None


@dataclass
class _Crew:
    """The driver's side of a run: it hands out cells and takes in reports until none is left."""

    engine: RayEngine
    order: Order
    watch: Watch
    pools: list[_Pool]
    pool_of: list[_Pool]
    hire: dict[str, Any]
    _calls: dict[Any, _Call] = field(default_factory=dict)
    _begun: set[int] = field(default_factory=set)
    _deaths: Counter[Cell] = field(default_factory=Counter)
    _given_up: dict[Cell, str] = field(default_factory=dict)

    def work(self) -> None:
        """Until every cell is made or given up."""
        self._await(self.order.first())
        while True:
            for pool in self.pools:
                self._hand_out(pool)
            if not any(pool.ready for pool in self.pools) and all(call.cell is None for call in self._calls.values()):
                break
            self._take_in(self._next_answer())
        if self._given_up:
            cell, reason = min(self._given_up.items())
            others = f" (and {len(self._given_up) - 1} other parts)" if len(self._given_up) > 1 else ""
            raise IncompleteError(
                f"{self._name(cell)}{others}: its worker died {self._deaths[cell]} times ({reason}); what does not "
                "need it is finished. Give workers more memory (fewer of them), and run the same command again"
            )

    def dismiss(self) -> None:
        """Kill all workers, whatever they are doing."""
        import ray

        for pool in self.pools:
            for worker in pool.workers:
                ray.kill(worker)

    def _next_answer(self) -> Any:
        """Wait for a worker. Raises IncompleteError when nothing comes, or when all machines are dead."""
        import ray

        until = time.monotonic() + self.engine.no_progress_timeout_s
        while (left_s := until - time.monotonic()) > 0:
            done, _ = ray.wait(list(self._calls), num_returns=1, timeout=min(left_s, LOOK_AT_NODES_S))
            if done:
                return done[0]
            if not _nodes():
                raise IncompleteError(
                    "Ray: all of its nodes are dead (was there memory enough?); run the same command again"
                )
        raise IncompleteError(self._stuck())

    def _await(self, cells: Sequence[Cell]) -> None:
        for cell in cells:
            heappush(self.pool_of[cell.stage].ready, cell)

    def _hand_out(self, pool: _Pool) -> None:
        import ray

        while pool.ready and pool.idle:
            cell, worker = heappop(pool.ready), pool.idle.pop()
            if cell.stage not in self._begun:
                self._begun.add(cell.stage)
                self.watch.stage_begins(self.order.stages[cell.stage], self.order.todo[cell.stage])
            ref = worker.make.remote(self.order.stages[cell.stage].name, cell.part)
            self._calls[ref] = _Call(pool, worker, cell)
        while len(pool.ready) > pool.starting and len(pool.workers) < pool.size:
            actor: Any = ray.remote(max_restarts=0, max_task_retries=0, **pool.options)(Worker)
            worker = actor.remote(**self.hire)
            pool.workers.append(worker)
            pool.starting += 1
            self._calls[worker.blind_host.remote()] = _Call(pool, worker, None)

    def _take_in(self, ref: Any) -> None:
        import ray
        from ray.exceptions import RayError, RayTaskError

        call = self._calls.pop(ref)
        pool, worker, cell = call
        pool.starting -= cell is None
        try:
            answer = ray.get(ref)
        except RayTaskError as error:
            raise error.cause from error
        except RayError as error:
            pool.workers.remove(worker)
            ray.kill(worker)  # it may be out of reach only
            self._bury(call, _last_line(error))
            return
        pool.idle.append(worker)
        if cell is not None:
            self._report(cell, answer)
            return
        pool.failed_starts = 0
        if answer is not None:
            raise InputError(
                f"{self.hire['seen_path']}: the Ray worker on {answer} does not see what is written there; "
                "give an `out` that all nodes share, or one on an object store"
            )

    def _report(self, cell: Cell, report: PartReport) -> None:
        self.watch.tick(report.step, report.images)
        self.watch.part_ends(report)
        self._await(self.order.finish(cell))
        if self.order.is_complete(cell.stage):
            self.watch.stage_ends(self.order.stages[cell.stage])

    def _bury(self, call: _Call, reason: str) -> None:
        """A worker is gone. Its part waits for another one, until there were enough."""
        if call.cell is None:
            call.pool.failed_starts += 1
            if call.pool.failed_starts >= self.engine.max_attempts:
                raise IncompleteError(
                    f"Ray: {call.pool.failed_starts} workers in a row died before they began ({reason}); "
                    "mend the cause and run the same command again"
                )
            return
        self._deaths[call.cell] += 1
        if self._deaths[call.cell] < self.engine.max_attempts:
            self._await([call.cell])
        else:
            self._given_up[call.cell] = reason

    def _stuck(self) -> str:
        cells = sorted(call.cell for call in self._calls.values() if call.cell is not None)
        starting = sum(pool.starting for pool in self.pools)
        parts = [self._name(cell) for cell in cells[:5]] + (["…"] if len(cells) > 5 else [])
        parts += [f"{starting} workers that wait for a free CPU or GPU"] if starting else []
        return (
            f"Ray: nothing was finished in {self.engine.no_progress_timeout_s:g} s; in hand: {', '.join(parts)}. Run "
            "the same command again, with a longer no_progress_timeout_s if a part may take so long"
        )

    def _name(self, cell: Cell) -> str:
        return f"{self.order.stages[cell.stage].name} {cell.part:05d}"


@contextmanager
def _connected(engine: RayEngine) -> Iterator[None]:
    """Ray while the block runs; what is started here is stopped here, a connection of the caller is left alone."""
    try:
        import ray
    except ImportError as error:
        raise InputError("engine ray: Ray is not installed; pip install 'maskmine[ray]'") from error

    if ray.is_initialized():
        yield
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        if engine.address is None:
            ray.init("local", include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES, **quiet)
        else:
            _check_answers(engine.address, timeout_s=engine.connect_timeout_s)
            ray.init(engine.address, runtime_env={"py_modules": _our_packages()}, **quiet)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)  # Ray puts its own in its place
        yield
    finally:
        ray.shutdown()


def _check_answers(address: str, *, timeout_s: float) -> None:
    """Connect from another process first: here, Ray tries for two minutes and then ends the process."""
    program = "import sys, ray; ray.init(sys.argv[1], log_to_driver=False, logging_level='ERROR')"
    try:
        tried = subprocess.run(
            [sys.executable, "-c", program, address], capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise InputError(
            f"address: Ray at `{address}` does not answer within {timeout_s:g} s; give host:port of a running cluster "
            f"{_WITH_TOKEN}, or leave it out to start Ray on this machine"
        ) from error
    if tried.returncode:
        raise InputError(
            f"address: no connection to Ray at `{address}` ({_last_line(tried.stderr)}); give host:port of a running "
            f"cluster {_WITH_TOKEN}, or leave it out to start Ray on this machine"
        )


def _our_packages() -> list[str]:
    """What a cluster's workers are sent, so that they run the driver's code whatever they have installed."""
    import mining
    import pipelines
    import schemas
    import tuning

    return [package.__path__[0] for package in (schemas, mining, tuning, pipelines)]


@contextmanager
def _seen_file(run: RunFolder) -> Iterator[tuple[str | None, str]]:
    """A file that the workers look for, and what it holds; None where the folder is not one of a machine.

    Its name is this driver's own: another one may be at work in the folder.
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


def _holds(path: str, token: str) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read() == token.encode()
    except OSError:
        return False


def _nodes() -> list[Node]:
    import ray

    list_nodes: Any = ray.nodes  # it has no types
    alive = [node["Resources"] for node in list_nodes() if node["Alive"]]
    return [Node(resources.get("CPU", 0.0), resources.get("GPU", 0.0)) for resources in alive]


def _fit(node: Node, cpus: float, gpus: float) -> int:
    by_gpu = math.floor(node.gpus / gpus) if gpus else math.inf
    return int(min(math.floor(node.cpus / cpus), by_gpu))


def _wants_gpu(job: Job, *, gpus: float) -> bool:
    device = job.device
    return device is not None and (device.startswith("cuda") or (device == "auto" and gpus > 0))


def _last_line(error: object) -> str:
    lines = str(error).strip().splitlines() or ["no reason given"]
    return textwrap.shorten(lines[-1], width=200, placeholder=" …")


def _no_tick(records: int) -> None:
    pass
