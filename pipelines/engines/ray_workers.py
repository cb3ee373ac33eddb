"""Ray's workers: the actor that makes cells, and how the driver calls it."""

from __future__ import annotations

import importlib.metadata
import math
import platform
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

from maskmine.mining.storage.ownership import RAY, owned_prefix
from maskmine.pipelines.engines.ray_sizes import Node
from maskmine.pipelines.engines.scheduler import OpenJobs, WorkerDiedError
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.pipelines.steps.jobs import Job, PartReport
from maskmine.schemas.errors import IncompleteError, InputError
from maskmine.tuning.ray_start import last_line

SEEN_WITHIN_S = 3.0  # a network file system may show a new file late
CHECK_NODES_EVERY_S = 10.0  # a worker that is to start on a dead machine is waited for indefinitely


# Distributions whose versions decide the bytes of cells; the code of maskmine itself comes from the driver.
_DECISIVE = ("numpy", "open_clip_torch", "pillow", "pyarrow", "pycocotools", "spacy", "torch", "transformers")


class Arrival(NamedTuple):
    """What a worker says of its machine when it is there: its name, whether it sees the run folder, and the libraries
    that it has in other versions than the driver."""

    host: str
    sees_run: bool
    other_versions: Mapping[str, str]


class Worker(OpenJobs):
    """What a Ray actor runs; `versions` are those of the driver's libraries."""

    def __init__(
        self,
        *,
        jobs: Mapping[str, Job],
        seen_path: str | None,
        token: str,
        versions: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        super().__init__(jobs)
        self._seen_path = seen_path
        self._token = token
        self._versions = dict(versions)

    def make(self, step: str, part: int) -> Sequence[PartReport]:
        """As `OpenJobs.make`. Raises InputError, which names this machine, where it lacks a package."""
        try:
            return super().make(step, part)
        except ModuleNotFoundError as error:
            raise InputError(
                f"{step}: the Ray worker on {platform.node()} has no package `{error.name}`; install there what this "
                "machine has, in the same versions, and run the same command again"
            ) from error

    def arrive(self) -> Arrival:
        """Look for the run folder, and at the libraries of this machine."""
        here = decisive_versions()
        other = {name: version for name, version in here.items() if self._versions.get(name, version) != version}
        until = time.monotonic() + SEEN_WITHIN_S
        while self._seen_path is not None and not _holds(self._seen_path, self._token):
            if time.monotonic() > until:
                return Arrival(platform.node(), False, other)
            time.sleep(0.2)
        return Arrival(platform.node(), True, other)


@dataclass(frozen=True)
class RayWorkers:
    """Actors on the machines of a cluster. `jobs` is what they can make; they look for the token at `seen_path`.
    `say` is told of machines that may make other bytes."""

    jobs: Mapping[str, Job]
    seen_path: str | None
    token: str
    say: Callable[[str], None]
    engine: str = "Ray"
    wait_for: str = "a free CPU or GPU"
    _versions: Mapping[str, str] = field(default_factory=lambda: decisive_versions())
    _told: set[str] = field(default_factory=set)

    def start(self, options: Mapping[str, Any]) -> tuple[Any, Any]:
        """An actor with these options of Ray."""
        import ray

        actor: Any = ray.remote(max_restarts=0, max_task_retries=0, **options)(Worker)
        worker = actor.remote(jobs=self.jobs, seen_path=self.seen_path, token=self.token, versions=self._versions)
        return worker, worker.arrive.remote()

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
        if isinstance(result, Arrival):
            self._look_at(result)
        return result

    def _look_at(self, arrival: Arrival) -> None:
        """Tell of a machine whose libraries differ, once. Raises InputError for one that does not see the folder."""
        if not arrival.sees_run:
            raise InputError(
                f"{self.seen_path}: the Ray worker on {arrival.host} does not see what is written there; "
                "give an `out` that all nodes share, or one on an object store"
            )
        if arrival.other_versions and arrival.host not in self._told:
            self._told.add(arrival.host)
            named = ", ".join(f"{name} {v} (here {self._versions[name]})" for name, v in arrival.other_versions.items())
            self.say(
                f"Ray: {arrival.host} has {named}; what it makes may differ from what this machine would make, so "
                "install the same versions there"
            )

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


def decisive_versions() -> dict[str, str]:
    """The versions of this machine's libraries that decide bytes; those that it lacks are left out."""
    found = {}
    for name in _DECISIVE:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


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
