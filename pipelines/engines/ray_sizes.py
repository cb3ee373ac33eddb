"""How many Ray workers fit on the machines of a cluster."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from rich.filesize import decimal

from maskmine.schemas.errors import InputError


class Node(NamedTuple):
    """What a machine of the cluster has."""

    cpus: float
    gpus: float
    memory_bytes: float = math.inf


class Takes(NamedTuple):
    """The memory that a worker takes, by its pool."""

    cpu_bytes: float = 0
    gpu_bytes: float = 0

    def within(self, nodes: Sequence[Node]) -> Takes:
        """Not more than the largest machine has: the size is estimated, and one worker is always tried."""
        largest = max((node.memory_bytes for node in nodes), default=math.inf)
        return Takes(min(self.cpu_bytes, largest), min(self.gpu_bytes, largest))


class Sizes(NamedTuple):
    """How many workers each pool may have."""

    cpu: int
    gpu: int


def pool_sizes(
    nodes: Sequence[Node],
    *,
    cpu_workers: int | None,
    gpu_workers: int | None,
    cpus_per_worker: float,
    gpus_per_worker: float,
    gpu_steps: bool,
    takes: Takes = Takes(),  # noqa: B008, nothing
) -> Sizes:
    """How many workers: what was asked for if it exists, else as many as fit, one CPU left free where there are two.

    `gpu_steps` says whether there is work for GPU workers. Raises InputError, which says how much there is.
    """
    have = f"Ray has {sum(n.cpus for n in nodes):g} CPUs and {sum(n.gpus for n in nodes):g} GPUs on {len(nodes)} nodes"
    if any(takes) and (memory_bytes := sum(node.memory_bytes for node in nodes)) < math.inf:
        have += (
            f" with {decimal(int(memory_bytes))} of memory, of which a worker takes about {decimal(int(max(takes)))}"
        )
    cpus, gpus = cpus_per_worker, gpus_per_worker

    # GPU workers first: their CPUs are taken from the nodes that have GPUs.
    on_gpu = 0
    if gpu_steps:
        fit = sum(_fit(node, cpus, gpus, takes.gpu_bytes) for node in nodes)
        on_gpu = gpu_workers or max(fit, 1)
        if on_gpu > fit:
            raise InputError(
                f"gpu_workers: {on_gpu} of {gpus:g} GPUs and {cpus:g} CPUs do not fit, {have}; "
                "lower gpu_workers or gpus_per_worker, or use `regions.device: cpu`"
            )

    # CPU workers on what the GPU workers leave.
    rest, left = [], on_gpu
    for node in nodes:
        here = min(left, _fit(node, cpus, gpus, takes.gpu_bytes))
        rest.append(Node(node.cpus - here * cpus, 0, node.memory_bytes - here * takes.gpu_bytes))
        left -= here
    fit = sum(_fit(node, cpus, 0, takes.cpu_bytes) for node in rest)
    spare = math.floor((sum(node.cpus for node in rest) - 1) / cpus)
    on_cpu = cpu_workers or max(min(fit, spare), 1)
    if on_cpu > fit:
        beside = f" beside {on_gpu} GPU workers" if on_gpu else ""
        raise InputError(
            f"cpu_workers: {on_cpu} of {cpus:g} CPUs do not fit{beside}, {have}; lower cpu_workers or cpus_per_worker"
        )
    return Sizes(on_cpu, on_gpu)


def _fit(node: Node, cpus: float, gpus: float, memory_bytes: float) -> int:
    by_gpu = math.floor(node.gpus / gpus) if gpus else math.inf
    by_memory = node.memory_bytes // memory_bytes if memory_bytes and node.memory_bytes < math.inf else math.inf
    return int(min(math.floor(node.cpus / cpus), by_gpu, by_memory))
