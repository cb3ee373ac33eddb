"""Rows of a step that was cut short, totals of steps that run once, and slow rates."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.pipelines.steps.grid import Step
from maskmine.pipelines.watch.bars import left_line, part_line, print_summary, render_bars
from maskmine.pipelines.watch.progress import RunProgress
from maskmine.tuning.console import rate
from tests.support.progress import PARTS, PLAN, make_step, report
from tests.support.runs import fake_step


class Clock:
    """Time that the test sets."""

    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def begun(clock: Clock, step: Step | None = None) -> RunProgress:
    progress = RunProgress(clock=clock)
    progress.on_plan(PLAN)
    progress.on_step_start(step or make_step(), [0] if step else range(PARTS))
    return progress


def test_a_step_that_was_cut_short_has_its_row_with_what_is_left() -> None:
    clock = Clock()
    progress = begun(clock)
    console = Console(file=io.StringIO(), width=120, record=True)
    clock.now_s += 10
    progress.on_records("proposals", 100)
    progress.on_part_done(report(0, 10))
    progress.on_step_done(make_step())
    progress.on_step_start(make_step("pairs"), range(PARTS))
    print_summary(console, progress)
    lines = console.export_text().splitlines()
    rows = [line.split()[:5] for line in lines]
    assert ["proposals", "1", "100", "1", "300"] in rows
    assert ["pairs", "0", "0", "0", "0"] in rows
    assert "left of pairs: 40 of 40 parts, 4,000 of 4,000 images" in lines


def test_a_part_that_was_cut_short_is_left_whole() -> None:
    clock = Clock()
    progress = begun(clock)
    progress.on_records("proposals", 100)
    progress.on_part_done(report(0, 10))
    progress.on_records("proposals", 9)
    (step,) = progress.figures()
    assert left_line(step) == "left of proposals: 39 of 40 parts, 3,900 of 4,000 images"


def test_a_step_that_runs_once_has_a_total_and_a_time_left_when_its_number_is_known() -> None:
    clock = Clock()
    progress = begun(clock, step=fake_step(RunFolder("run"), "vocabulary", None, parts=1, once=True))
    progress.on_total("vocabulary", 400)
    for _ in range(4):
        clock.now_s += 10
        progress.on_records("vocabulary", 50)
    (step,) = progress.figures()
    assert (step.images, step.images_done, step.left_s) == (400, 200, pytest.approx(40))
    console = Console(file=io.StringIO(), width=100, record=True)
    console.print(render_bars([step], columns=100))
    assert "200/400 nouns" in console.export_text()


def test_rates_below_one_have_digits() -> None:
    clock = Clock()
    (step,) = begun(clock).figures()
    assert part_line(report(0, 400.0), step).endswith("400.0 s, 0.25/s; all workers: 0 of 40 parts")
    assert [rate(value) for value in (1907.4, 31.2, 3.21, 0.149, 0.004, 0)] == [
        "1,907",
        "31",
        "3.2",
        "0.15",
        "0.004",
        "0",
    ]
