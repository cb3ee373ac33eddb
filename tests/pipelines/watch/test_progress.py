"""What a person sees of a run: figures that are right whoever works, bars that fit, and a summary however it ends."""

from __future__ import annotations

import io
import random
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from maskmine.pipelines.steps.grid import Step
from maskmine.pipelines.steps.jobs import PartReport
from maskmine.pipelines.watch.bars import PartLines, part_line, render_bars, render_summary
from maskmine.pipelines.watch.observers import RunObservers, observe
from maskmine.pipelines.watch.progress import RunProgress, StepFigures
from maskmine.pipelines.watch.stall import Watchdog, stall_line
from maskmine.schemas.errors import IncompleteError
from tests.support.progress import PART_IMAGES, PARTS, PLAN, make_step, report
from tests.support.runs import Recorder


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def begun(clock: Clock, todo: Sequence[int] = range(PARTS), step: Step | None = None) -> RunProgress:
    """A progress whose only step has begun."""
    progress = RunProgress(clock=clock)
    progress.on_plan(PLAN)
    progress.on_step_start(step or make_step(), todo)
    return progress


def bring(progress: RunProgress, one: PartReport) -> None:
    """A whole part comes, as from a worker elsewhere."""
    progress.on_records(one.step, one.images)
    progress.on_part_done(one)


def ends_of_parts(rng: random.Random, workers: int, part_s: float, rounds: int) -> Iterator[float]:
    """When parts come from workers who began at different times and never rest."""
    begins = [0.0, *(rng.uniform(0, part_s) for _ in range(workers - 1))]
    return iter(sorted(begin + part_s * (number + 1) for begin in begins for number in range(rounds)))


@given(st.randoms(use_true_random=False), st.integers(1, 8), st.floats(1, 2000))
def test_the_rate_is_that_of_all_workers_together_and_not_of_one(
    rng: random.Random, workers: int, part_s: float
) -> None:
    clock = Clock()
    progress = begun(clock)
    truth = workers * PART_IMAGES / part_s
    begin_s = clock.now_s
    for number, end_s in enumerate(ends_of_parts(rng, workers, part_s, rounds=5)):
        clock.now_s = begin_s + end_s
        bring(progress, report(number, part_s))
        (step,) = progress.figures()
        if 4 * part_s < end_s <= 5 * part_s:  # all work; one more or less has brought its part: one in three at most
            assert step.images_per_s == pytest.approx(truth, rel=0.34)
            assert step.made_per_s == pytest.approx(3 * truth, rel=0.34)
            assert step.left_s == pytest.approx((PLAN.images - step.images_done) / step.images_per_s)


def test_workers_in_step_are_counted_together_when_their_parts_come_at_once() -> None:
    clock = Clock()
    progress = begun(clock)
    for number in range(12):
        clock.now_s += 50 if number % 4 == 0 else 0
        bring(progress, report(number, 50))
    clock.now_s += 40
    assert progress.figures()[0].images_per_s == pytest.approx(4 * PART_IMAGES / 50)


def test_a_worker_that_waits_between_parts_makes_the_rate_lower_than_its_own() -> None:
    clock = Clock()
    progress = begun(clock)
    for number in range(9):
        clock.now_s += 20
        bring(progress, report(number, 10))
    assert progress.figures()[0].images_per_s == pytest.approx(PART_IMAGES / 20, rel=0.1)


def test_images_that_come_one_by_one_are_counted_over_the_last_minute_alone() -> None:
    clock = Clock()
    progress = begun(clock)
    clock.now_s += 300  # a model is loaded
    for _ in range(100):
        clock.now_s += 1
        progress.on_records("proposals", 1)
    assert progress.figures()[0].images_per_s == pytest.approx(1)
    progress.on_part_done(report(0, 100.0))
    for _ in range(700):
        clock.now_s += 0.1
        progress.on_records("proposals", 1)
    assert progress.figures()[0].images_per_s == pytest.approx(10)


def test_the_rate_sinks_when_nothing_comes_for_longer_than_before() -> None:
    clock = Clock()
    progress = begun(clock)
    for number in range(6):
        clock.now_s += 10
        bring(progress, report(number, 10))
    clock.now_s += 9
    assert progress.figures()[0].images_per_s == pytest.approx(10)
    clock.now_s += 1000
    slow = progress.figures()[0].images_per_s
    assert slow is not None
    assert slow < 1


def test_after_a_resume_only_the_work_of_this_run_counts_and_the_bar_starts_where_the_last_one_stopped() -> None:
    clock = Clock()
    progress = begun(clock, todo=range(30, PARTS))
    (step,) = progress.figures()
    assert (step.images_done, step.parts_done, step.images_per_s, step.left_s) == (3000, 30, None, None)
    for number in range(30, 34):
        clock.now_s += 10
        bring(progress, report(number, 10))
    (step,) = progress.figures()
    assert (step.images_done, step.images_made, step.parts_done, step.parts_made) == (3400, 400, 34, 4)
    assert step.images_per_s == pytest.approx(10)
    assert step.left_s == pytest.approx(60)


def test_a_finished_step_shows_the_mean_of_its_whole_time() -> None:
    clock = Clock()
    progress = begun(clock, todo=range(30, PARTS))
    for number in range(30, PARTS):
        clock.now_s += 20 if number < 35 else 5
        bring(progress, report(number, 20 if number < 35 else 5))
    progress.on_step_done(make_step())
    clock.now_s += 500
    (step,) = progress.figures()
    assert step.images_per_s == pytest.approx(1000 / 125)
    assert (step.images_done, step.busy_s, step.left_s) == (PLAN.images, 125, None)


def test_time_counts_once_however_many_workers_are_busy_in_it() -> None:
    clock = Clock()
    progress = begun(clock)
    progress.on_step_start(make_step("pairs"), range(PARTS))
    clock.now_s += 10
    bring(progress, report(0, 10))
    clock.now_s += 5
    bring(progress, report(1, 12))
    bring(progress, report(0, 2, step="pairs"))
    clock.now_s += 10
    bring(progress, report(2, 3))
    regions, pairs = progress.figures()
    assert (regions.busy_s, regions.worker_s) == (18, 25)
    assert (pairs.busy_s, pairs.worker_s) == (2, 2)
    assert (progress.busy_s, progress.elapsed_s) == (18, 25)


def test_the_times_of_one_pass_for_two_steps_add_up() -> None:
    clock = Clock()
    progress = begun(clock)
    progress.on_step_start(make_step("embeddings"), range(PARTS))
    for number in range(3):
        clock.now_s += 25
        bring(progress, report(number, 14))
        bring(progress, report(number, 11, step="embeddings", before_s=14.0))
    proposals, embeddings = progress.figures()
    assert (proposals.busy_s, embeddings.busy_s, progress.busy_s) == (42, 33, 75)


def test_use_of_the_gpu_is_the_mean_over_parts_by_their_seconds() -> None:
    clock = Clock()
    progress = begun(clock)
    assert progress.figures()[0].gpu_percent is None
    bring(progress, report(0, 10, gpu_percent=90.0, gpu_peak_bytes=5))
    bring(progress, report(1, 30, gpu_percent=50.0, gpu_peak_bytes=3))
    bring(progress, report(2, 30))
    (step,) = progress.figures()
    assert (step.gpu_percent, step.gpu_peak_bytes) == (60.0, 5)


FULL = StepFigures(
    step="proposals",
    label="regions",
    once=False,
    ended=False,
    parts=119,
    parts_done=57,
    parts_made=45,
    images=118_287,
    images_before=12_000,
    images_done=57_000,
    images_made=45_000,
    rejected=1_204,
    made=440_487,
    busy_s=1440.0,
    worker_s=11_400.0,
    images_per_s=31.2,
    made_per_s=305.4,
    left_s=1964.3,
    gpu_percent=97.2,
    gpu_peak_bytes=10**10,
)
ONCE = replace(
    FULL,
    step="vocabulary",
    label="nouns",
    once=True,
    ended=True,
    images=None,
    images_before=0,
    images_done=11_213,
    images_made=11_213,
)


@pytest.mark.parametrize("columns", [80, 100, 140, 200])
def test_bars_say_everything_in_lines_that_fit(columns: int) -> None:
    console = Console(file=io.StringIO(), width=columns, force_terminal=True, color_system=None, record=True)
    console.print(render_bars([FULL, ONCE], columns=columns))
    text = console.export_text()
    for fact in ("57,000/118,287", "31 images/s", "305 regions/s", "GPU 97%", "1,204 rejected", "12,000 before"):
        assert fact in text
    assert "0:32:44 left" in text
    assert "11,213 nouns" in text
    assert "in 0:24:00" in text
    assert len(text.splitlines()) == (2 if columns >= 140 else 4)
    assert all(len(line) <= columns for line in text.splitlines())
    bars = [line for line in text.splitlines() if "━" in line]
    assert len({line.index("━") for line in bars}) == 1
    assert bars[0].index("118,287") + len("118,287") == bars[1].index("11,213 nouns") + len("11,213 nouns")


def test_a_line_that_is_too_long_is_cut_and_not_broken() -> None:
    console = Console(file=io.StringIO(), width=60, record=True)
    console.print(render_bars([FULL], columns=60))
    assert len(console.export_text().splitlines()) == 2


def test_a_step_that_has_only_begun_is_an_empty_bar_without_a_rate() -> None:
    console = Console(file=io.StringIO(), width=80, record=True)
    console.print(render_bars(begun(Clock()).figures(), columns=80))
    (line,) = console.export_text().splitlines()
    assert line.replace("━", "").split() == ["proposals", "0/4,000"]


def test_a_line_tells_of_its_part_and_of_all_workers() -> None:
    line = part_line(report(17, 20.0, rejected=0, gpu_percent=81.0), FULL)
    assert line == (
        "proposals 00017: 100 → 300 regions, 20.0 s, 5/s, GPU 81%; all workers: 31/s, 57 of 119 parts, 0:32:44 left"
    )
    assert part_line(report(0, 2.0, step="vocabulary", rejected=0), ONCE) == "vocabulary: 100 nouns, 2.0 s, 50/s"
    assert ", 1 rejected," in part_line(report(17, 20.0), FULL)


def test_lines_have_the_rate_of_all_workers() -> None:
    clock = Clock()
    progress = begun(clock)
    console = Console(file=io.StringIO(), width=80)
    watch = RunObservers([progress, PartLines(console, progress)])
    for number in range(6):
        clock.now_s += 10 if number % 2 == 0 else 0
        watch.on_records("proposals", PART_IMAGES)
        watch.on_part_done(report(number, 10))
    last = console.file.getvalue().splitlines()[-1]  # type: ignore[attr-defined]
    assert "10/s; all workers: 20/s, 6 of 40 parts, 0:02:50 left" in last


def test_the_summary_counts_parts_images_and_shares_of_the_time() -> None:
    console = Console(file=io.StringIO(), width=120, record=True)
    console.print(render_summary([FULL, ONCE], elapsed_s=2880.0, busy_s=1440.0))
    assert f"{ONCE.images_made:,} nouns " in console.export_text(clear=False), "not images"
    rows = {line.split()[0]: line.split()[1:] for line in console.export_text().splitlines()}
    assert rows["proposals"] == ["45", "45,000", "1,204", "440,487", "0:24:00", "3:10:00", "31", "50%", "97%"]
    assert rows["all"] == ["else", "0:24:00", "50%"]
    assert rows["in"] == ["all", "0:48:00"]


def test_several_watches_are_told_alike_and_in_order() -> None:
    told: list[tuple[str, str]] = []

    class Named(Recorder):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def on_step_start(self, step: Step, todo: Sequence[int]) -> None:
            told.append((self.name, f"begins {list(todo)}"))

        def on_records(self, step: str, records: int) -> None:
            told.append((self.name, f"tick {records}"))

        def on_part_done(self, report: PartReport) -> None:
            told.append((self.name, f"part {report.part}"))

        def on_step_done(self, step: Step) -> None:
            told.append((self.name, "ends"))

    both = RunObservers([Named("first"), Named("second")])
    both.on_step_start(make_step(), [3])
    both.on_records("proposals", 5)
    both.on_part_done(report(3, 1.0))
    both.on_step_done(make_step())
    assert told == [(name, what) for what in ("begins [3]", "tick 5", "part 3", "ends") for name in ("first", "second")]


@pytest.mark.parametrize("fault", [None, KeyboardInterrupt, IncompleteError])
def test_what_was_made_is_summed_up_however_the_run_ends(fault: type[BaseException] | None) -> None:
    console = Console(file=io.StringIO(), width=80)

    def run() -> None:
        with observe(console, run="run", engine="local") as watch:
            watch.on_plan(PLAN)
            watch.on_step_start(make_step(), range(PARTS))
            watch.on_part_done(report(0, 0.0))
            if fault is not None:
                raise fault

    if fault is None:
        run()
    else:
        with pytest.raises(fault):
            run()
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert [line.split()[:5] for line in said.splitlines() if line.startswith("proposals ")][-1][1:] == [
        "1",
        "100",
        "1",
        "300",
    ]


def test_a_run_that_made_nothing_is_not_summed_up() -> None:
    console = Console(file=io.StringIO(), width=80)
    with observe(console, run="run", engine="local") as watch:
        watch.on_plan(PLAN)
    assert console.file.getvalue() == ""  # type: ignore[attr-defined]


def test_bars_go_with_the_terminal() -> None:
    console = Console(file=io.StringIO(), width=80, force_terminal=True)
    with observe(console, run="run", engine="local") as watch:
        watch.on_plan(PLAN)
        watch.on_step_start(make_step(), range(PARTS))
        watch.on_records("proposals", 7)
    assert "7/4,000" in console.file.getvalue()  # type: ignore[attr-defined]


def watchdog(progress: RunProgress, said: list[str], *, after_s: float = 600.0) -> Watchdog:
    return Watchdog(progress, after_s=after_s, engine="ray", say=said.append)


def test_the_watchdog_speaks_once_in_each_time_without_progress_and_ends_with_the_next_progress() -> None:
    clock = Clock()
    progress = begun(clock, todo=[7, 8, 9])
    said: list[str] = []
    dog = watchdog(progress, said)
    spoken_s = []
    for second in range(0, 4000, 10):
        clock.now_s = 1000.0 + second
        if second == 1500:
            bring(progress, report(7, 1.0))
        before = len(said)
        dog.look()
        spoken_s += [second] * (len(said) - before)
    assert spoken_s == [600, 1200, 2100, 2700, 3300, 3900]
    assert "for 10 min: proposals, unfinished parts 7-9; see `ray status`" in said[0]
    assert "for 20 min" in said[1]
    assert "unfinished parts 8-9" in said[2]


def test_the_watchdog_looks_again_just_when_the_line_may_be_due() -> None:
    clock = Clock()
    progress = begun(clock)
    dog = watchdog(progress, [])
    clock.now_s += 250
    assert dog.look() == 350
    clock.now_s += 350
    assert dog.look() == 600


def test_the_watchdog_thread_speaks_while_the_block_runs_and_is_gone_after_it() -> None:
    progress = begun(Clock())
    spoke = threading.Event()
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        spoke.set()

    still = RunProgress()
    with Watchdog(still, after_s=0.02, engine="local", say=say):
        assert spoke.wait(10)
    count = len(said)
    assert "no step is at work" in said[0]
    assert not [thread for thread in threading.enumerate() if thread.name == "maskmine-watchdog"]
    with Watchdog(progress, after_s=600, engine="local", say=say):
        pass  # ends at once, though the line would be due in ten minutes
    assert len(said) == count


def test_a_step_is_in_hand_until_it_ends_with_the_parts_that_have_not_come() -> None:
    progress = begun(Clock(), todo=[5, 3, 8])
    progress.on_step_start(make_step("vocabulary", parts=1, once=True), [0])
    bring(progress, report(5, 1.0))
    assert progress.in_hand() == [("proposals", (3, 8)), ("vocabulary", ())]
    progress.on_step_done(make_step())
    assert progress.in_hand() == [("vocabulary", ())]


def test_the_stall_line_names_steps_parts_and_where_to_look() -> None:
    in_hand = [("proposals", (3, 4, 5, 9)), ("vocabulary", ())]
    line = stall_line(in_hand, still_s=725.0, look_at="see the disk")
    assert line.endswith("UTC, for 12 min: proposals, unfinished parts 3-5, 9; vocabulary; see the disk")
