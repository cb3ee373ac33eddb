"""The Ray engine: what all engines must do, workers that die, and faults that end in one line instead of a hang."""

from __future__ import annotations

import math
import os
import platform
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskmine.mining.proposers.ground_truth import GroundTruth
from maskmine.mining.regions import Regions
from maskmine.pipelines.engines import ray as on_ray
from maskmine.pipelines.engines import ray_workers, scheduler
from maskmine.pipelines.engines.cell_queue import Cell, CellQueue
from maskmine.pipelines.engines.ray import OBJECT_STORE_BYTES as STORE_BYTES
from maskmine.pipelines.engines.ray import RayEngine
from maskmine.pipelines.engines.ray_sizes import Node
from maskmine.pipelines.engines.ray_workers import Worker
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.pipelines.steps.cells_of_run import run_cells
from maskmine.pipelines.steps.grid import Step
from maskmine.pipelines.steps.jobs import PartReport, Tick
from maskmine.pipelines.steps.regions_jobs import ProposalsJob
from maskmine.schemas.errors import IncompleteError, InputError
from tests.support import conformance
from tests.support.runs import Recorder, fake_step
from tests.support.toy_jobs import (
    Events,
    Interrupted,
    ToyJob,
    dies,
    dies_once,
    hangs,
    toy_step,
    waits_for_pairs_of_part_0,
    wants_something,
)

ray = pytest.importorskip("ray", reason="needs Ray: pip install '.[ray]'")

# A worker loads spaCy for seconds: two are at work where they could get into each other's way. Their bytes are compared
# on two nodes (below).
CHECKS = [
    (conformance.same_bytes_as_local, 1),
    (conformance.real_models_give_the_same_bytes, 1),
    (conformance.regenerated_data_is_that_of_a_full_run, 1),
    (conformance.a_bottleneck_is_that_of_the_local_engine, 1),
    (conformance.only_missing_cells_are_made, 1),
    (conformance.poisonous_pictures_cost_themselves_alone, 2),
    (conformance.the_account_holds_whatever_fails, 2),
    (conformance.the_exit_codes_are_the_same, 1),
    (conformance.faults_reach_the_driver, 1),
]

# Ray leaves the handles of the processes that it starts to the garbage collector.
pytestmark = [
    pytest.mark.usefixtures("workers_find_the_tests"),
    pytest.mark.filterwarnings("ignore:.*:ResourceWarning"),
]


@pytest.fixture
def run(empty_run: RunFolder) -> RunFolder:
    return empty_run


@pytest.fixture(scope="module")
def _ray_ends_with_its_tests(workers_find_the_tests: None) -> Iterator[None]:
    yield
    ray.shutdown()


@pytest.fixture
def here(_ray_ends_with_its_tests: None) -> None:
    """Ray on this machine, which the engine finds running; the GPU is one in name only. Many tests use the same."""
    options = {"include_dashboard": False, "log_to_driver": False, "object_store_memory": STORE_BYTES}
    if not ray.is_initialized():
        ray.init("local", num_cpus=3, num_gpus=1, **options)


@pytest.fixture
def no_ray() -> None:
    """No Ray runs for this process, whatever tests came before."""
    ray.shutdown()


# What can be said without Ray.

GRID = [
    toy_step(RunFolder(""), "nouns", parts=3),
    toy_step(RunFolder(""), "vocabulary", parts=1, once=True, reads=("nouns",)),
    toy_step(RunFolder(""), "proposals", parts=3),
    replace(toy_step(RunFolder(""), "levels", parts=1, once=True, reads=("vocabulary", "proposals")), first_parts=2),
    toy_step(RunFolder(""), "pairs", parts=3, reads=("nouns", "vocabulary", "proposals", "levels")),
    toy_step(RunFolder(""), "selection", parts=1, once=True, reads=("pairs",)),
    toy_step(RunFolder(""), "shards", parts=3, reads=("pairs", "selection")),
]

PASS = [
    toy_step(RunFolder(""), "proposals", parts=3),
    toy_step(RunFolder(""), "embeddings", parts=3, reads=("proposals",)),
    toy_step(RunFolder(""), "pairs", parts=3, reads=("proposals", "embeddings")),
]


@given(st.data())
def test_every_missing_cell_is_made_once_and_after_all_that_its_step_reads(data: st.DataObject) -> None:
    todo = [sorted(data.draw(st.sets(st.integers(0, step.parts - 1)))) for step in GRID]
    queue = CellQueue(GRID, todo)
    ready, made = list(queue.ready()), list[Cell]()
    while ready:
        cell = ready.pop(data.draw(st.integers(0, len(ready) - 1)))
        made.append(cell)
        ready += queue.finish(cell)
    assert sorted(made) == [Cell(step, part) for step, parts in enumerate(todo) for part in parts]
    upstream = {1: [0], 3: [0, 1, 2], 4: [0, 1, 2, 3], 5: [0, 1, 2, 3, 4], 6: [0, 1, 2, 3, 4, 5]}
    for position, cell in enumerate(made):
        for read in upstream.get(cell.step, []):
            whole = GRID[cell.step].once or GRID[read].once
            needed = todo[read] if whole else [part for part in todo[read] if part == cell.part]
            if GRID[cell.step].first_parts and not GRID[read].once:
                needed = [part for part in needed if part < 2]
            assert {Cell(read, part) for part in needed} <= set(made[:position])


def test_a_part_goes_on_before_the_others_of_its_step_are_made() -> None:
    queue = CellQueue(GRID, [[], [], [0, 1, 2], [], [0, 1, 2], [], []])
    assert list(queue.finish(Cell(2, 1))) == [Cell(4, 1)]


def test_what_one_pass_made_with_another_cell_is_not_given_out_again() -> None:
    queue = CellQueue(PASS, [[0, 1], [0, 1, 2], [0]])
    assert list(queue.ready()) == [Cell(0, 0), Cell(0, 1), Cell(1, 2)]
    assert list(queue.finish(Cell(1, 0))) == []  # the last of a pass comes first
    assert list(queue.finish(Cell(0, 0))) == [Cell(2, 0)]
    assert list(queue.finish(Cell(0, 1))) == [Cell(1, 1)]


def test_pairs_wait_for_the_levels_of_the_first_parts_and_not_for_the_others() -> None:
    queue = CellQueue(GRID, [[], [], [0, 1, 2], [0], [0, 1, 2], [], []])
    assert list(queue.finish(Cell(2, 0))) == []
    assert list(queue.finish(Cell(2, 1))) == [Cell(3, 0)]
    assert list(queue.finish(Cell(3, 0))) == [Cell(4, 0), Cell(4, 1)]
    assert list(queue.finish(Cell(2, 2))) == [Cell(4, 2)]


def test_a_worker_keeps_two_steps_open(run: RunFolder) -> None:
    opened = []

    @dataclass(frozen=True)
    class Counted(ToyJob):
        def open(self) -> Callable[[int, Tick], PartReport]:
            opened.append(self.step)
            return super().open()

    worker = Worker(jobs={name: Counted(run, name) for name in "abc"}, seen_path=None, token="")
    for name in "aabbaacac":
        worker.make(name, 0)
    assert opened == ["a", "b", "c"]
    worker.make("b", 0)
    assert opened == ["a", "b", "c", "b"]


def test_without_ray_the_message_says_what_to_install(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"pip install -e '\.\[ray\]' in a checkout"):
        RayEngine().run(run, [toy_step(run, "nouns")], Recorder())


@pytest.mark.usefixtures("no_ray")
def test_an_address_that_does_not_answer_is_one_line(run: RunFolder) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(InputError, match=f"Ray at `{address}` does not answer within 2 s") as caught:
            RayEngine(address=address, connect_timeout_s=2).run(run, [toy_step(run, "nouns")], Recorder())
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="no connection to Ray at `nowhere`") as caught:
        RayEngine(address="nowhere").run(run, [toy_step(run, "nouns")], Recorder())
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("no_ray")
def test_a_ray_that_the_engine_starts_it_also_stops(run: RunFolder) -> None:
    before = signal.getsignal(signal.SIGTERM)
    RayEngine(cpu_workers=1).run(run, [toy_step(run, "nouns")], Recorder())
    assert not ray.is_initialized()
    assert signal.getsignal(signal.SIGTERM) is before
    assert run.done("nouns") == {0, 1}


# On one machine.


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(("check", "workers"), CHECKS, ids=lambda value: getattr(value, "__name__", f"{value} workers"))
def test_the_ray_engine_conforms(check: conformance.Check, workers: int, tmp_path: Path) -> None:
    check(RayEngine(cpu_workers=workers), tmp_path)


@pytest.mark.usefixtures("here")
def test_a_part_is_paired_while_another_one_still_waits_for_its_regions(run: RunFolder) -> None:
    steps = [
        toy_step(run, "proposals", waits_for_pairs_of_part_0),
        toy_step(run, "pairs", reads=("proposals",)),
    ]
    recorder = Events()
    RayEngine(cpu_workers=2).run(run, steps, recorder)
    assert recorder.seen == [
        ("begins", "proposals", [0, 1]),
        ("proposals", 0),
        ("begins", "pairs", [0, 1]),
        ("pairs", 0),
        ("proposals", 1),
        ("ends", "proposals"),
        ("pairs", 1),
        ("ends", "pairs"),
    ]
    assert recorder.ticks == 40


@pytest.mark.usefixtures("here")
def test_a_part_whose_worker_dies_once_is_made_by_another_one(run: RunFolder) -> None:
    recorder = Recorder()
    RayEngine(cpu_workers=1).run(run, [toy_step(run, "pairs", dies_once, parts=1)], recorder)
    assert recorder.made == [("pairs", 0)]
    assert Path(run.path("attempts")).read_text() == "0\n0\n"


@pytest.mark.usefixtures("here")
def test_a_part_that_kills_its_workers_is_named_and_the_others_are_finished(run: RunFolder) -> None:
    steps = [
        toy_step(run, "proposals", dies, parts=3),
        toy_step(run, "pairs", reads=("proposals",), parts=3),
        toy_step(run, "selection", reads=("pairs",), parts=1, once=True),
    ]
    with pytest.raises(IncompleteError, match=r"^proposals 00001: its worker died 2 times \(.*run the same") as caught:
        RayEngine(cpu_workers=2, max_attempts=2).run(run, steps, Recorder())
    assert "\n" not in str(caught.value)
    assert run.done("proposals") == run.done("pairs") == {0, 2}
    assert run.names("selection") == []


@pytest.mark.usefixtures("here")
def test_a_fault_that_a_worker_raises_arrives_as_it_was_and_is_not_tried_again(run: RunFolder) -> None:
    with pytest.raises(InputError) as caught:
        RayEngine(cpu_workers=1).run(run, [toy_step(run, "nouns", wants_something)], Recorder())
    assert type(caught.value) is InputError
    assert str(caught.value) == "images: no such folder; give another one"
    assert Path(run.path("attempts")).read_text() == "once\n"


class Lines(Recorder):
    """Remembers what a person is told."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def on_line(self, line: str) -> None:
        self.lines.append(line)


@pytest.mark.usefixtures("here")
def test_a_machine_with_other_versions_of_libraries_is_told_once(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = ray_workers.decisive_versions()
    monkeypatch.setattr(ray_workers, "decisive_versions", lambda: {**here, "torch": "1.13.0"})
    recorder = Lines()
    RayEngine(cpu_workers=2).run(run, [toy_step(run, "nouns", takes_a_while, parts=4)], recorder)
    (line,) = recorder.lines
    assert line.startswith(f"Ray: {platform.node()} has torch {here['torch']} (here 1.13.0); what it makes may differ")
    assert run.done("nouns") == {0, 1, 2, 3}


@pytest.mark.usefixtures("here")
def test_when_nothing_moves_on_the_run_ends_and_says_what_was_in_hand(run: RunFolder) -> None:
    started = time.monotonic()
    with pytest.raises(IncompleteError, match="nothing was finished in 20 s; in hand: nouns 00000"):
        RayEngine(cpu_workers=1, no_progress_timeout_s=20).run(run, [toy_step(run, "nouns", hangs)], Recorder())
    assert time.monotonic() - started < 60


@pytest.mark.usefixtures("here")
def test_when_all_machines_are_dead_the_run_ends_and_does_not_wait_for_a_place_on_them(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = iter([[Node(3, 0)]])
    for module in (on_ray, ray_workers):
        monkeypatch.setattr(module, "alive_nodes", lambda: next(seen, []))
    monkeypatch.setattr(ray_workers, "CHECK_NODES_EVERY_S", 0.5)
    with pytest.raises(IncompleteError, match=r"Ray: all of its nodes are dead .*; run the same command again"):
        RayEngine(cpu_workers=1).run(run, [toy_step(run, "nouns", hangs)], Recorder())


@pytest.mark.usefixtures("here")
def test_more_workers_than_cpus_are_refused_at_once(run: RunFolder) -> None:
    with pytest.raises(InputError, match="cpu_workers: 4 of 1 CPUs do not fit, Ray has 3 CPUs"):
        RayEngine(cpu_workers=4).run(run, [toy_step(run, "nouns")], Recorder())
    assert run.names() == []


@dataclass(frozen=True)
class GpuJob(ProposalsJob):
    """Writes down which GPUs its worker was given."""

    def open(self) -> Callable[[int, Tick], PartReport]:
        def make(part: int, tick: Tick) -> PartReport:
            given = ray.get_runtime_context().get_accelerator_ids()["GPU"]
            with self.cells.proposals.run.write(*self.cells.proposals.names(part)) as file:
                file.write(str(given).encode())
            return PartReport(step="proposals", part=part, images=10, rejected=0, made=0, seconds=0.0)

        return make


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(("device", "given"), [("auto", "['0']"), ("cuda", "['0']"), ("cpu", "[]")])
def test_regions_run_on_a_gpu_worker_where_their_device_allows(run: RunFolder, device: str, given: str) -> None:
    RayEngine(cpu_workers=1).run(run, [regions_step(run, device)], Recorder())
    assert Path(run.cell_path("proposals", 0)).read_text() == given


@pytest.mark.usefixtures("here")
def test_more_gpus_than_there_are_are_refused_at_once(run: RunFolder) -> None:
    with pytest.raises(InputError, match="gpu_workers: 2 of 1 GPUs and 1 CPUs do not fit, Ray has 3 CPUs and 1 GPUs"):
        RayEngine(gpu_workers=2).run(run, [regions_step(run, "auto")], Recorder())


def regions_step(run: RunFolder, device: str) -> Step:
    proposals = GroundTruth(kind="ground_truth", annotations="none.json")
    job = GpuJob(run_cells(run), Regions(proposals=proposals, clip=None, device=device), 1)
    return fake_step(run, "proposals", job, parts=1)


@pytest.mark.usefixtures("here")
def test_a_folder_that_the_workers_do_not_see_is_refused(run: RunFolder) -> None:
    folder = os.open(run.root, os.O_RDONLY)
    try:
        mine_alone = RunFolder(f"/proc/self/fd/{folder}")  # another process has another file under that number
        with pytest.raises(InputError, match=r"does not see what is written there; give an `out` that all nodes share"):
            RayEngine(cpu_workers=1).run(mine_alone, [toy_step(mine_alone, "nouns")], Recorder())
    finally:
        os.close(folder)
    assert run.names() == []


@pytest.mark.usefixtures("here")
def test_an_interruption_kills_the_workers_and_leaves_the_callers_ray_alone(run: RunFolder) -> None:
    steps = [toy_step(run, "nouns"), toy_step(run, "proposals", hangs)]
    with pytest.raises(KeyboardInterrupt) as caught:  # its traceback keeps the workers' handles alive
        RayEngine(cpu_workers=2).run(run, steps, Interrupted())
    assert ray.is_initialized()
    assert [name for name in os.listdir(run.root) if name.startswith(".")] == []
    until = time.monotonic() + 15
    while not math.isclose(ray.available_resources().get("CPU", 0), 3):
        assert time.monotonic() < until, "a worker is still at work"
        time.sleep(0.1)
    assert caught.traceback


# On two machines.


@pytest.fixture
def cluster(no_ray: None) -> Iterator[str]:
    """Two nodes with a CPU each; the address."""
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": STORE_BYTES, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES)
    cluster.wait_for_nodes()
    yield cluster.address
    cluster.shutdown()


def test_two_nodes_write_the_same_bytes_as_this_process(cluster: str, tmp_path: Path) -> None:
    conformance.same_bytes_as_local(RayEngine(address=cluster, cpu_workers=2), tmp_path)
    assert not ray.is_initialized()


def takes_a_while(run: RunFolder, part: int) -> None:
    time.sleep(1.0)
    with open(run.path("hosts"), "a") as file:
        file.write(f"{ray.get_runtime_context().get_node_id()}\n")


class Grows(Recorder):
    """A machine joins when the first part is made."""

    def __init__(self, join: Callable[[], object]) -> None:
        super().__init__()
        self._join: Callable[[], object] | None = join

    def on_part_done(self, report: PartReport) -> None:
        super().on_part_done(report)
        if self._join is not None:
            self._join()
            self._join = None


def test_a_machine_that_joins_later_takes_parts(no_ray: None, run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.cluster_utils import Cluster

    monkeypatch.setattr(scheduler, "RESIZE_EVERY_S", 1.0)
    node = {"num_cpus": 1, "object_store_memory": STORE_BYTES}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    try:
        recorder = Grows(lambda: cluster.add_node(**{**node, "num_cpus": 2}))
        engine = RayEngine(address=cluster.address)
        engine.run(run, [toy_step(run, "nouns", takes_a_while, parts=20)], recorder)
    finally:
        cluster.shutdown()
    assert sorted(part for _, part in recorder.made) == list(range(20))
    assert len(set(Path(run.path("hosts")).read_text().split())) == 2
