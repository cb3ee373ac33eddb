"""Sizes of the Ray engine's pools: what fits, and what is refused; a machine that lacks a package."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from typing import Any

import pytest

from maskmine.pipelines.engines.choose import choose_engine
from maskmine.pipelines.engines.ray import RayEngine
from maskmine.pipelines.engines.ray_sizes import Node, Sizes, Takes, pool_sizes
from maskmine.pipelines.engines.ray_workers import Worker
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.schemas.errors import InputError
from tests.support.toy_jobs import toy_step


def sizes(settings: dict[str, Any], nodes: Sequence[Node], *, gpu_steps: bool) -> Sizes:
    fields = {"cpu_workers", "gpu_workers", "cpus_per_worker", "gpus_per_worker"}
    return pool_sizes(nodes, gpu_steps=gpu_steps, **RayEngine(**settings).model_dump(include=fields))


@pytest.mark.parametrize(
    ("settings", "nodes", "gpu_steps", "expected"),
    [
        ({}, [Node(8, 0)], False, Sizes(7, 0)),
        ({}, [Node(1, 0)], False, Sizes(1, 0)),
        ({}, [Node(8, 2)], True, Sizes(5, 2)),
        ({}, [Node(8, 2)], False, Sizes(7, 0)),
        ({}, [Node(8, 0), Node(4, 1)], True, Sizes(10, 1)),
        ({"gpus_per_worker": 0.5}, [Node(8, 1)], True, Sizes(5, 2)),
        ({"cpus_per_worker": 3}, [Node(8, 0), Node(8, 0)], False, Sizes(4, 0)),
        ({"cpu_workers": 8}, [Node(8, 0)], False, Sizes(8, 0)),
        ({"cpu_workers": 2, "gpu_workers": 1}, [Node(8, 2)], True, Sizes(2, 1)),
    ],
)
def test_pools_take_what_fits_and_leave_one_cpu(
    settings: dict[str, Any], nodes: list[Node], gpu_steps: bool, expected: Sizes
) -> None:
    assert sizes(settings, nodes, gpu_steps=gpu_steps) == expected


@pytest.mark.parametrize(
    ("settings", "nodes", "message"),
    [
        ({"cpu_workers": 9}, [Node(8, 0)], "cpu_workers: 9 of 1 CPUs do not fit, Ray has 8 CPUs and 0 GPUs on 1 nodes"),
        ({"cpus_per_worker": 5}, [Node(4, 0), Node(4, 0)], "cpu_workers: 1 of 5 CPUs do not fit, Ray has 8 CPUs"),
        ({"gpu_workers": 3}, [Node(8, 2)], "gpu_workers: 3 of 1 GPUs and 1 CPUs do not fit, Ray has 8 CPUs and 2 GPUs"),
        ({"gpus_per_worker": 2}, [Node(8, 1), Node(8, 1)], "gpu_workers: 1 of 2 GPUs"),
        ({}, [Node(1, 1)], "cpu_workers: 1 of 1 CPUs do not fit beside 1 GPU workers"),
    ],
)
def test_more_than_there_is_is_refused(settings: dict[str, Any], nodes: list[Node], message: str) -> None:
    with pytest.raises(InputError) as caught:
        sizes(settings, nodes, gpu_steps=any(node.gpus for node in nodes))
    assert str(caught.value).startswith(message)


GB = 10**9


@pytest.mark.parametrize(
    ("nodes", "takes", "gpu_steps", "expected"),
    [
        ([Node(64, 0, 20 * GB)], Takes(5 * GB), False, Sizes(4, 0)),
        ([Node(64, 0, 20 * GB), Node(8, 0, 6 * GB)], Takes(5 * GB), False, Sizes(5, 0)),
        ([Node(64, 2, 16 * GB)], Takes(1 * GB, 5 * GB), True, Sizes(6, 2)),
        ([Node(64, 8, 16 * GB)], Takes(1 * GB, 5 * GB), True, Sizes(1, 3)),
        ([Node(4, 0, 1 * GB)], Takes(5 * GB), False, Sizes(1, 0)),
    ],
)
def test_pools_are_no_larger_than_the_memory_and_one_worker_is_always_tried(
    nodes: list[Node], takes: Takes, gpu_steps: bool, expected: Sizes
) -> None:
    settings = {"cpu_workers": None, "gpu_workers": None, "cpus_per_worker": 1, "gpus_per_worker": 1}
    assert pool_sizes(nodes, gpu_steps=gpu_steps, takes=takes.within(nodes), **settings) == expected  # type: ignore[arg-type]


def test_more_workers_than_the_memory_of_the_cluster_holds_are_refused() -> None:
    nodes = [Node(64, 0, 20 * GB)]
    with pytest.raises(
        InputError, match=r"with 20\.0 GB of memory, of which a worker takes about 5\.0 GB; lower cpu_w"
    ):
        pool_sizes(
            nodes,
            cpu_workers=5,
            gpu_workers=None,
            cpus_per_worker=1,
            gpus_per_worker=1,
            gpu_steps=False,
            takes=Takes(5 * GB).within(nodes),
        )


def lacks_a_package(run: RunFolder, part: int) -> None:
    import no_such_package  # type: ignore[import-not-found]  # noqa: F401


def test_a_machine_without_a_package_is_named(empty_run: RunFolder) -> None:
    worker = Worker(jobs={"nouns": toy_step(empty_run, "nouns", lacks_a_package).job}, seen_path=None, token="")
    with pytest.raises(InputError, match=f"on {platform.node()} has no package `no_such_package`; install there"):
        worker.make("nouns", 0)


@pytest.mark.parametrize(
    ("option", "line"),
    [
        ("cpus_per_worker=0.00001", "should be greater than or equal to 0.0001, not 1e-05"),
        ("gpus_per_worker=0.00001", "should be greater than or equal to 0.0001, not 1e-05"),
        ("gpus_per_worker=1.5", "should be a whole number, or below 1 so that workers share a GPU"),
    ],
)
def test_what_ray_cannot_reserve_is_refused_before_it_starts(option: str, line: str) -> None:
    with pytest.raises(InputError) as caught:
        choose_engine("ray", options=[option])
    assert line in str(caught.value)
    choose_engine("ray", options=["gpus_per_worker=0.333333", "cpus_per_worker=1.5"])
