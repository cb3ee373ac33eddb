"""The Ray engine: one pool of workers for CPU steps and one for GPU steps; part 17 goes on as soon as it can.

Plain actors, no Ray Data: a row would be a part number, and what an engine does is to say who makes which cell when.
Only part numbers and reports travel; cells are read and written by the worker that makes them. A worker is
never restarted by Ray (`max_restarts=0`): the driver starts another one and counts the attempts of the part that was
in progress, so that a part that kills its worker ends after `max_attempts` and cannot loop.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, Field

import maskmine
from maskmine.mining.models.devices import open_device
from maskmine.pipelines.engines.cell_queue import CellQueue
from maskmine.pipelines.engines.engine import RunObserver
from maskmine.pipelines.engines.memory import worker_bytes
from maskmine.pipelines.engines.ray_sizes import Node, Sizes, Takes, pool_sizes
from maskmine.pipelines.engines.ray_workers import RayWorkers, alive_nodes, seen_file
from maskmine.pipelines.engines.scheduler import Scheduler, WorkerPool
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.pipelines.steps.grid import Step
from maskmine.pipelines.steps.job_models import runs_models
from maskmine.pipelines.steps.jobs import Job
from maskmine.schemas.errors import InputError, how_to_install
from maskmine.schemas.settings import Settings
from maskmine.tuning.ray_start import last_line, starting_ray

_WITH_TOKEN = "(one with a token needs it here, in ~/.ray/auth_token or RAY_AUTH_TOKEN)"
OBJECT_STORE_BYTES = 100 * 2**20  # nothing large goes through it


_LEAST = 0.0001  # of a CPU or GPU that Ray can reserve


def _whole_above_one(gpus: float) -> float:
    if gpus > 1 and gpus % 1:
        raise ValueError("should be a whole number, or below 1 so that workers share a GPU")
    return gpus


class RayEngine(Settings):
    """Makes cells in Ray actors. The fields are what `--engine-opt name=value` sets.

    A process that is connected to Ray keeps its connection. Steps with models run on GPU workers when their device is
    `cuda`, or is `auto` and the cluster has GPUs.
    """

    models_run_here: ClassVar[bool] = False

    address: str | None = None
    """`auto`, `host:port` or `ray://host:port` of a running cluster, which receives this code but must have its
    dependencies; null starts Ray on this machine."""
    cpu_workers: Annotated[int, Field(ge=1)] | None = None
    """Workers without a GPU; null is as many as fit by CPUs and memory, with one CPU left free."""
    gpu_workers: Annotated[int, Field(ge=1)] | None = None
    """Workers with a GPU; null is as many as fit."""
    cpus_per_worker: Annotated[float, Field(ge=_LEAST)] = 1
    """CPUs that a worker reserves."""
    gpus_per_worker: Annotated[float, Field(ge=_LEAST), AfterValidator(_whole_above_one)] = 1
    """GPUs that a GPU worker reserves; below 1 several workers share one."""
    connect_timeout_s: Annotated[float, Field(gt=0)] = 30
    """Seconds to wait for a cluster to answer."""
    no_progress_timeout_s: Annotated[float, Field(gt=0)] = 1800
    """Seconds without a finished part after which the run ends; raise it for parts that take longer."""
    max_attempts: Annotated[int, Field(ge=1)] = 3
    """Attempts at a part whose worker dies."""

    def workers_have_gpus(self) -> bool | None:
        """Whether the cluster has GPUs, which decides what `auto` is; None for Ray on this machine. Raises as `run`."""
        if self.address is None:
            return None
        with _connected(self):
            return sum(node.gpus for node in alive_nodes()) > 0

    def check_workers(self, jobs: Mapping[str, Job]) -> None:
        """Raises InputError where models are to run on a GPU and Ray, started here, will have none. Whatever else a
        cluster lacks shows when it is there."""
        devices = {job.device for job in jobs.values() if job.device is not None and runs_models(job)}
        if self.address is None and not _is_connected():
            for device in (device for device in devices if device.startswith("cuda")):
                try:
                    open_device(device)
                except InputError as error:
                    raise InputError(f"regions.{error}") from error

    def run(self, run: RunFolder, steps: Sequence[Step], observer: RunObserver) -> None:
        """Make the missing cells of all steps. What a worker raises is raised here, as it is.

        Raises InputError when Ray is not installed, does not answer or has less than was asked for, or when its
        workers do not see the run folder; IncompleteError for parts whose workers die, or when nothing is finished.
        """
        todo = [step.todo() for step in steps]
        if not any(todo):
            return
        with _connected(self), seen_file(run) as (seen_path, token):
            # Which steps have work, and which of them on GPUs.
            jobs = {step.name: step.job for step, parts in zip(steps, todo, strict=True) if parts}
            nodes = alive_nodes()
            gpus = sum(node.gpus for node in nodes)
            on_gpu = {name for name, job in jobs.items() if _wants_gpu(job, gpus=gpus)}
            if self.gpu_workers is not None and not on_gpu:
                self._refuse_idle_gpu_workers(jobs, gpus=gpus)
            takes = Takes(
                worker_bytes(job for name, job in jobs.items() if name not in on_gpu),
                worker_bytes(jobs[name] for name in on_gpu),
            ).within(nodes)
            sizes = self._sizes(nodes, gpu_steps=bool(on_gpu), takes=takes)

            # GPU workers are placed first, before their nodes' CPUs are taken.
            cpus = {"num_cpus": self.cpus_per_worker}
            gpu_options = {**cpus, "num_gpus": self.gpus_per_worker, "memory": int(takes.gpu_bytes)}
            gpu_pool = WorkerPool(sizes.gpu, gpu_options)
            cpu_pool = WorkerPool(sizes.cpu, {**cpus, "num_gpus": 0, "memory": int(takes.cpu_bytes)})
            asking = {step.name: WorkerPool(1, {"num_cpus": 0}) for step in steps if step.one_worker}
            pool_of = dict.fromkeys(on_gpu, gpu_pool) | asking
            scheduler = Scheduler(
                queue=CellQueue(steps, todo),
                observer=observer,
                workers=RayWorkers(jobs, seen_path, token, observer.on_line),
                pools=[gpu_pool, cpu_pool, *asking.values()],
                pool_of=[pool_of.get(step.name, cpu_pool) for step in steps],
                max_attempts=self.max_attempts,
                no_progress_timeout_s=self.no_progress_timeout_s,
            )

            def resize() -> None:
                """With the cluster, where it is left to this engine how many workers there are."""
                with suppress(InputError):  # no machine of a kind is left; another one may come
                    sizes = self._sizes(alive_nodes(), gpu_steps=bool(on_gpu), takes=takes)
                    cpu_pool.size, gpu_pool.size = sizes.cpu, sizes.gpu

            scheduler.resize = resize
            try:
                scheduler.run()
            finally:
                scheduler.kill_workers()

    def _sizes(self, nodes: Sequence[Node], *, gpu_steps: bool, takes: Takes) -> Sizes:
        fields = {"cpu_workers", "gpu_workers", "cpus_per_worker", "gpus_per_worker"}
        return pool_sizes(nodes, gpu_steps=gpu_steps, takes=takes, **self.model_dump(include=fields))

    def _refuse_idle_gpu_workers(self, jobs: Mapping[str, Job], *, gpus: float) -> None:
        """Raises InputError where a step runs a model and would do so on the CPU, though GPU workers were asked for."""
        models = [name for name, job in jobs.items() if runs_models(job)]
        if models:
            where = f"Ray has {gpus:g} GPUs" if not gpus else f"`regions.device` is {jobs[models[0]].device}"
            raise InputError(
                f"gpu_workers: {self.gpu_workers} asked for, and {', '.join(models)} would run without a GPU "
                f"({where}); leave gpu_workers out to run on CPUs, or give a cluster with GPUs"
            )


@contextmanager
def _connected(engine: RayEngine) -> Iterator[None]:
    """Ray while the block runs; what is started here is stopped here, a connection of the caller is left alone."""
    try:
        import ray
    except ImportError as error:
        raise InputError(f"engine ray: Ray is not installed; {how_to_install('ray')}") from error

    if ray.is_initialized():
        yield
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        if engine.address is None:
            with starting_ray("engine ray"):
                ray.init("local", include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES, **quiet)
        else:
            _check_answers(engine.address, timeout_s=engine.connect_timeout_s)
            # The workers run the driver's code, whatever they have installed.
            with starting_ray("engine ray"):
                ray.init(engine.address, runtime_env={"py_modules": [maskmine.__path__[0]]}, **quiet)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)  # Ray has replaced it
        yield
    finally:
        ray.shutdown()


def _is_connected() -> bool:
    """Whether this process has a Ray already, whose GPUs may be anywhere."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def _check_answers(address: str, *, timeout_s: float) -> None:
    """Connect from another process first: in this one, Ray would try for two minutes and then end the process."""
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
            f"address: no connection to Ray at `{address}` ({last_line(tried.stderr)}); give host:port of a running "
            f"cluster {_WITH_TOKEN}, or leave it out to start Ray on this machine"
        )


def _wants_gpu(job: Job, *, gpus: float) -> bool:
    device = job.device
    return device is not None and (device.startswith("cuda") or (device == "auto" and gpus > 0))
