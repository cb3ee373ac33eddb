"""Steps whose jobs do what a test asks for, and observers that write down what they see; they travel to workers."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.pipelines.steps.grid import Step
from maskmine.pipelines.steps.jobs import PartReport, Tick
from maskmine.schemas.errors import InputError
from tests.support.runs import Recorder, fake_step

Act = Callable[[RunFolder, int], None]


def nothing(run: RunFolder, part: int) -> None:
    pass


def dies(run: RunFolder, part: int) -> None:
    if part == 1:
        os._exit(1)


def dies_once(run: RunFolder, part: int) -> None:
    with open(run.path("attempts"), "a+") as file:
        file.write(f"{part}\n")
        file.seek(0)
        if file.read().split() == ["0"]:
            os._exit(1)


def wants_something(run: RunFolder, part: int) -> None:
    with open(run.path("attempts"), "a") as file:
        file.write("once\n")
    raise InputError("images: no such folder; give another one")


def hangs(run: RunFolder, part: int) -> None:
    time.sleep(600)


def waits_for_pairs_of_part_0(run: RunFolder, part: int) -> None:
    until = time.monotonic() + 20
    while part == 1 and not run.exists("pairs", "00000.parquet"):
        assert time.monotonic() < until, "part 0 waits for part 1"
        time.sleep(0.05)


@dataclass(frozen=True)
class ToyJob:
    """Writes an empty cell after it did something."""

    device = None
    run: RunFolder
    step: str
    act: Act = nothing

    def open(self) -> Callable[[int, Tick], PartReport]:
        def make(part: int, tick: Tick) -> PartReport:
            self.act(self.run, part)
            with self.run.write(self.step, f"{part:05d}.parquet"):
                pass
            return PartReport(step=self.step, part=part, images=10, rejected=0, made=0, seconds=0.0)

        return make


def toy_step(run: RunFolder, name: str, act: Act = nothing, **changes: Any) -> Step:
    return fake_step(run, name, ToyJob(run, name, act), **{"parts": 2, **changes})


class Events(Recorder):
    """Writes down all events."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Any, ...]] = []

    def on_step_start(self, step: Step, todo: Collection[int]) -> None:
        self.seen.append(("begins", step.name, list(todo)))

    def on_part_done(self, report: PartReport) -> None:
        self.seen.append((report.step, report.part))

    def on_step_done(self, step: Step) -> None:
        self.seen.append(("ends", step.name))


class Interrupted(Recorder):
    """A watch with a person who presses Ctrl-C."""

    def on_part_done(self, report: PartReport) -> None:
        raise KeyboardInterrupt
