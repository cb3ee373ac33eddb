"""Ray's workers: the actor that makes cells, and how the driver calls it."""

from __future__ import annotations

import math
import platform
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from maskmine.mining.storage.ownership import RAY, owned_prefix
from maskmine.pipelines.engines.ray_sizes import Node
from maskmine.pipelines.engines.scheduler import OpenJobs, WorkerDiedError
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.pipelines.steps.jobs import Job, PartReport
from maskmine.schemas.errors import IncompleteError, InputError
from maskmine.tuning.ray_start import last_line

SEEN_WITHIN_S = 3.0  # a network file system may show a new file late
CHECK_NODES_EVERY_S = 10.0  # a worker that is to start on a dead machine is waited for indefinitely


class Worker(OpenJobs):
    """What a Ray actor runs."""

    def __init__(self, *, jobs: Mapping[str, Job], seen_path: str | None, token: str) -> None:
        super().__init__(jobs)
        self._seen_path = seen_path
        self._token = token

    def make(self, step: str, part: int) -> Sequence[PartReport]:
        """As `OpenJobs.make`. Raises InputError, which names this machine, where it lacks a package."""
        try:
            return super().make(step, part)
        except ModuleNotFoundError as error:
            raise InputError(
                f"{step}: the Ray worker on {platform.node()} has no package `{error.name}`; install there what this "
                "machine has, in the same versions, and run the same command again"
            ) from error

    def blind_host(self) -> str | None:
        """The name of this machine if it does not see the run folder, else None."""
        until = time.monotonic() + SEEN_WITHIN_S
        while self._seen_path is not None and not _holds(self._seen_path, self._token):
            if time.monotonic() > until:
                return platform.node()
            time.sleep(0.2)
        return None


@dataclass(frozen=True)
class RayWorkers:
    """Actors on the machines of a cluster. `jobs` is what they can make; they look for the token at `seen_path`."""

    jobs: Mapping[str, Job]
    seen_path: str | None
    token: str
    engine: str = "Ray"
    wait_for: str = "a free CPU or GPU"

    def start(self, options: Mapping[str, Any]) -> tuple[Any, Any]:
        """An actor with these options of Ray."""
        import ray

        actor: Any = ray.remote(max_restarts=0, max_task_retries=0, **options)(Worker)
        worker = actor.remote(jobs=self.jobs, seen_path=self.seen_path, token=self.token)
        return worker, worker.blind_host.remote()

    def make(self, worker: Any, step: str, part: int) -> Any:
        """The reference to its reports."""
        return worker.make.remote(step, part)

    def wait(self, calls: Sequence[Any], *, timeout_s: float) -> Any | None:
        """A call that has ended. Raises IncompleteError when all machines are dead."""
        import ray

        done, _ = ray.wait(list(calls), num_returns=1, timeout=min(timeout_s, CHECK_NODES_EVERY_S))
        if done:
            return done[0]
        if not alive_nodes():
            raise IncompleteError(
                "Ray: all of its nodes are dead (was there memory enough?); run the same command again"
            )
        return None

    def result(self, call: Any) -> Any:
        """What a call returned. Raises InputError for an actor that does not see the run folder."""
        import ray
        from ray.exceptions import RayError, RayTaskError

        try:
            result = ray.get(call)
        except RayTaskError as error:
            raise error.cause from error
        except RayError as error:
            raise WorkerDiedError(last_line(error)) from error
        if isinstance(result, str):
            raise InputError(
                f"{self.seen_path}: the Ray worker on {result} does not see what is written there; "
                "give an `out` that all nodes share, or one on an object store"
            )
        return result

    def kill(self, worker: Any) -> None:
        """Kill the actor."""
        import ray

        ray.kill(worker)


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
    return [Node(has.get("CPU", 0.0), has.get("GPU", 0.0), has.get("memory", math.inf)) for has in alive]


def _holds(path: str, token: str) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read() == token.encode()
    except OSError:
        return False
