"""The load of the engines' bench, and its runs by each engine, each in a process of its own, with a log of its cells.

The log is written by the workers themselves, so it means the same on every engine: when a job was opened, when a cell
was begun and ended, and by which process. All figures of `bench_engines` are taken from it.

    start ─▶ open nouns ─▶ begin 0 ─▶ end 0 ─▶ report 0 … ─▶ open vocabulary … ─▶ end ─▶ return
    driver   worker                            driver                                   driver
"""

from __future__ import annotations

import hashlib
import json
import math
import multiprocessing
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any, Literal, NamedTuple

import psutil

from maskmine.pipelines.engines.choose import choose_engine
from maskmine.pipelines.engines.engine import Engine, RunObserver
from maskmine.pipelines.estimate import estimate
from maskmine.pipelines.mine import mine
from maskmine.pipelines.planning.plan import make_plan
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.pipelines.settings.mining import load_mining, parse_mining
from maskmine.pipelines.steps.grid import Step, plan_steps
from maskmine.pipelines.steps.identity import identify
from maskmine.pipelines.steps.jobs import Job, MakeCell, PartReport, Tick, no_tick
from maskmine.pipelines.steps.ties import Input
from maskmine.schemas.errors import IncompleteError, InputError

TWO_PROCESSES = "two processes"


class Event(NamedTuple):
    """Something that happened in a run; `at_s` is the machine's monotonic clock, which all processes share.

    `rss_bytes` is the resident memory of the process at that moment.
    """

    what: Literal["start", "open", "begin", "end", "report", "return"]
    step: str
    part: int
    pid: int
    at_s: float
    rss_bytes: int


@dataclass(frozen=True)
class LoggedJob:
    """A job that writes down what it does."""

    job: Job
    step: str
    log: str

    @property
    def device(self) -> str | None:
        """As the job's own."""
        return self.job.device

    @property
    def inputs(self) -> Sequence[Input]:
        """As the job's own."""
        return self.job.inputs

    def open(self) -> MakeCell:
        """As the job's own."""
        _note(self.log, "open", self.step)
        make = self.job.open()

        def logged(part: int, tick: Tick) -> PartReport | Sequence[PartReport]:
            _note(self.log, "begin", self.step, part)
            report = make(part, tick)
            _note(self.log, "end", self.step, part)
            return report

        return logged


def complete_run(config: Path, engine: str, *, workers: int, log: Path, only: str = "") -> list[Event]:
    """Run a configuration, or what is left of it, in a new process; `only` names a step to run.

    Returns what happened in the order of time. Raises InputError when the run fails.
    """
    log.touch()
    process = multiprocessing.get_context("spawn").Process(
        target=_drive, args=(str(config), engine, workers, str(log), only)
    )
    process.start()
    process.join()
    if process.exitcode:
        raise InputError(f"bench: the run of {config} by {engine} ended with exit code {process.exitcode}")
    return read_events(log)


def read_events(log: Path) -> list[Event]:
    """What happened so far, in the order of time."""
    events = [Event(*json.loads(line)) for line in log.read_text().splitlines()]
    return sorted(events, key=lambda event: event.at_s)


class TwoProcesses:
    """The plain way without an engine: two processes, each makes every other part, and they meet at `once` steps.

    A part is made by the same process in all steps, so that no other process waits for its cells.
    """

    models_run_here = False

    def run(self, run: RunFolder, steps: Sequence[Step], observer: RunObserver) -> None:
        """Make the missing cells; the observer sees nothing of it."""
        context = multiprocessing.get_context("spawn")
        meeting = context.Barrier(2)
        todo = [step.todo() for step in steps]
        processes = [context.Process(target=_make_half, args=(list(steps), todo, meeting, n)) for n in range(2)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        if any(process.exitcode for process in processes):
            raise IncompleteError(f"{run.root}: one of two processes ended; run the same command again")


@dataclass(frozen=True)
class LoggedReports(RunObserver):
    """Writes down each part that the driver hears of."""

    log: str

    def on_part_done(self, report: PartReport) -> None:
        _note(self.log, "report", report.step, report.part)


@dataclass(frozen=True)
class LoggedEngine:
    """An engine whose jobs write down what they do; models count as running elsewhere."""

    engine: Engine
    log: str
    models_run_here = False

    def run(self, run: RunFolder, steps: Sequence[Step], observer: RunObserver) -> None:
        """As the engine."""
        _note(self.log, "start")
        logged = [replace(step, job=LoggedJob(step.job, step.name, self.log)) for step in steps]
        self.engine.run(run, logged, observer)
        _note(self.log, "return")


def _make_half(steps: list[Step], todo: list[list[int]], meeting: Barrier, number: int) -> None:
    try:
        meeting.wait()
        for step, parts in zip(steps, todo, strict=True):
            if step.once and parts:
                meeting.wait()  # all parts of what it reads are there
            if half := [part for part in parts if part % 2 == number]:
                make = step.job.open()
                for part in half:
                    make(part, no_tick)
            if step.once and parts:
                meeting.wait()
    except BaseException:
        meeting.abort()  # or the other process would wait indefinitely
        raise


def _drive(config: str, name: str, workers: int, log: str, only: str) -> None:
    """A run as `maskmine mine` makes it, in this process."""
    engine, settings = LoggedEngine(_open_engine(name, workers), log), load_mining(config)
    observer = LoggedReports(log)
    if not only:
        mine(settings, engine=engine, observer=observer)
        return
    run = RunFolder(settings.out)
    steps = plan_steps(run, make_plan(run, settings), settings, identify(settings))
    engine.run(run, [replace(step, reads=()) for step in steps if step.name == only], observer)


def _open_engine(name: str, workers: int) -> Engine:
    if name == TWO_PROCESSES:
        return TwoProcesses()
    options = {"local": [], "ray": [f"cpu_workers={workers}"], "beam": [f"workers={workers}"]}
    return choose_engine(name, options=options[name])


def _note(log: str, what: str, step: str = "", part: int = -1) -> None:
    """One short write at the end of the file, which no other process can cut in two."""
    line: list[Any] = [what, step, part, os.getpid(), time.monotonic(), psutil.Process().memory_info().rss]
    with open(log, "ab", buffering=0) as file:
        file.write((json.dumps(line) + "\n").encode())


FEWEST_PARTS = 16


CLIP = "ViT-S-32-alt"


@dataclass(frozen=True)
class Load:
    """A configuration whose runs are compared: one file and one run folder for each engine."""

    folder: Path
    tree: dict[str, Any]
    sha256: dict[str, str] = field(default_factory=dict)  # by step, of the run that was checked first

    def config(self, engine: str) -> Path:
        """The file with the settings of an engine's run."""
        path = self.folder / f"{engine}.yaml"
        path.write_text(json.dumps(self.tree | {"out": str(self.out(engine))}))
        return path

    def out(self, engine: str) -> Path:
        """The run folder of an engine."""
        return self.folder / engine

    def forget(self, engine: str, step: str, *, parts: int) -> None:
        """Delete the cells of the first parts of a step, so that a run has these to make."""
        for path in (self.out(engine) / step).rglob("*"):
            if path.stem.isdecimal() and int(path.stem) < parts:
                path.unlink()

    def check_bytes(self, engine: str, step: str) -> None:
        """Raise InputError if a step's cells have other bytes than those of the run that was checked first."""
        sha256 = cells_sha256(self.out(engine) / step)
        if sha256 != self.sha256.setdefault(step, sha256):
            raise InputError(f"bench: what {engine} wrote into {step} differs from what was written before")

    def log(self, engine: str) -> Path:
        """A new file for what happens in a run."""
        handle, path = tempfile.mkstemp(prefix=f"{engine}-", suffix=".log", dir=self.folder)
        os.close(handle)
        return Path(path)


def make_load(folder: Path, *, name: str, images: int, images_per_part: int, with_clip: bool) -> Load:
    """Write the annotation files of a load that has `images` images of the world in `folder`."""
    own = folder / name
    own.mkdir()
    for kind in ("captions", "instances"):
        world = json.loads((folder / "world" / f"{kind}.json").read_text())
        (own / f"{kind}.json").write_text(json.dumps(repeat_scenes(world, images=images)))
    clip = {"model": CLIP, "pretrained": str(folder / "clip.safetensors"), "batch_size": 4}
    tree = {
        "captions": {
            "kind": "coco",
            "annotations": str(own / "captions.json"),
            "images": str(folder / "world/images"),
            "per_image": "all",
        },
        "regions": {
            "proposals": {"kind": "ground_truth", "annotations": str(own / "instances.json")},
            "clip": clip if with_clip else None,
            "device": "cpu",
            "cpu_threads": 1,
            "decode_threads": 1,
        },
        "vocabulary": {"templates": "raw"},
        "pairs": {"rule": "best_region_per_noun" if with_clip else "labels"},
        "shards": {"images_per_part": images_per_part, "threads": 1},
    }
    return Load(own, tree)


def repeat_scenes(world: Mapping[str, Any], *, images: int) -> dict[str, Any]:
    """COCO annotations that list the world's images again and again under new ids, until there are `images`."""
    listed: list[dict[str, Any]] = world["images"]
    of_image: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in listed}
    for annotation in world["annotations"]:
        of_image[annotation["image_id"]].append(annotation)
    sources = [listed[number % len(listed)] for number in range(images)]
    pairs = [(image_id, one) for image_id, image in enumerate(sources, start=1) for one in of_image[image["id"]]]
    return {
        **world,
        "images": [{**image, "id": image_id} for image_id, image in enumerate(sources, start=1)],
        "annotations": [
            {**one, "id": number, "image_id": image_id} for number, (image_id, one) in enumerate(pairs, start=1)
        ],
    }


def images_for(*, minutes: float, per_image_s: float, workers: int) -> int:
    """How many images keep `workers` busy for `minutes`, with a tenth more: a calibration may err."""
    return max(2 * FEWEST_PARTS, math.ceil(1.1 * minutes * 60 * workers / per_image_s))


def calibrate(folder: Path) -> float:
    """Seconds of one process for an image; `vocabulary` and `levels` are left out: they do not grow with the images."""
    tree = make_load(folder, name="calibration", images=96, images_per_part=32, with_clip=True).tree
    settings = parse_mining({**tree, "out": str(folder / "none")}, place="bench")
    steps = estimate(settings, limit=None, sample=96).steps
    return sum(step.per_image_s for step in steps if step.step not in ("plan", "vocabulary", "levels"))


def cells_sha256(folder: Path) -> str:
    """One hash over the names and bytes of a step's cells; the accounts of shards hold times and do not count.

    Raises InputError where there are none.
    """
    digest = hashlib.sha256()
    paths = sorted(path for path in folder.rglob("*") if path.stem.isdecimal() and path.suffix in (".tar", ".parquet"))
    for path in paths:
        with path.open("rb") as file:
            digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    if not paths:
        raise InputError(f"bench: {folder} has no cells")
    return digest.hexdigest()
