"""What a run has done so far, added up from its events: bars, lines, metrics and the summary show this.

Work counts from the driver's side: a part fills the seconds before its report came. So rates are those of all workers
together, whatever their number, and what an earlier run did is counted apart.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from itertools import pairwise

from maskmine.pipelines.engines.engine import RunObserver
from maskmine.pipelines.planning.plan import Plan
from maskmine.pipelines.run_folder.parts import Parts
from maskmine.pipelines.steps.grid import Step
from maskmine.pipelines.steps.jobs import PartReport

LAST_WHILE_S = 60.0
_PARTS_IN_A_WHILE = 3
_POINTS_IN_A_WHILE = 120


@dataclass(frozen=True, slots=True)
class StepFigures:
    """A step of the grid at one moment; `label` is the word for what it makes.

    Images are nouns in the steps that run `once`; there `images` is None as long as it is not known.
    `…_before` is what earlier runs did, `…_done` counts it too, all else is this run's alone. `busy_s` is the time
    during which at least one worker made a part, `worker_s` the sum of all their times. Rates are those of all workers
    over the last while, and over all of `busy_s` when the step has ended; None as long as nothing is known.
    """

    step: str
    label: str
    once: bool
    ended: bool
    parts: int
    parts_done: int
    parts_made: int
    images: int | None
    images_before: int
    images_done: int
    images_made: int
    rejected: int
    made: int
    busy_s: float
    worker_s: float
    images_per_s: float | None
    made_per_s: float | None
    left_s: float | None
    gpu_percent: float | None
    gpu_peak_bytes: int | None


class RunProgress(RunObserver):
    """Adds up what a run has done. Other threads may read it at any time. `clock` is monotonic, in seconds."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._plan: Plan | None = None
        self._steps: dict[str, _Step] = {}
        self._busy = Spans()
        self._begun_s = self._moved_s = clock()

    def on_plan(self, plan: Plan) -> None:
        with self._lock:
            self._plan = plan
            self._moved_s = self._clock()

    def on_step_start(self, step: Step, todo: Collection[int]) -> None:
        with self._lock:
            self._moved_s = self._clock()
            images, images_before = None, 0
            if self._plan is not None and not step.once:
                whole = step.parts == self._plan.parts
                images = self._plan.images if whole else sum(map(self._plan.part_size, step.numbers))
                images_before = images - sum(map(self._plan.part_size, todo))
            begun = self._steps.get(step.name)
            if begun is not None and step.first > begun.first:  # what was appended comes after what was there
                begun.grow(step, images=images or 0, images_before=images_before, todo=todo)
                return
            self._steps[step.name] = _Step(
                step.name, step.label, step.once, step.parts, images, images_before, Parts(todo), first=step.first
            )

    def on_total(self, step: str, records: int) -> None:
        with self._lock:
            self._moved_s = self._clock()
            self._steps[step].images = records

    def on_records(self, step: str, records: int) -> None:
        with self._lock:
            self._moved_s = self._clock()
            self._steps[step].tick(self._moved_s, records)

    def on_part_done(self, report: PartReport) -> None:
        with self._lock:
            self._moved_s = self._clock()
            begun_s = max(self._begun_s, self._moved_s - report.seconds)
            self._busy.add(max(self._begun_s, begun_s - report.before_s), self._moved_s)
            self._steps[report.step].on_part_done(report, begun_s, self._moved_s)

    def on_step_done(self, step: Step) -> None:
        with self._lock:
            self._moved_s = self._clock()
            self._steps[step.name].ended = True

    def figures(self) -> list[StepFigures]:
        """The steps that this run has begun, in that order, as they are now."""
        with self._lock:
            now_s = self._clock()
            return [step.figures(now_s) for step in self._steps.values()]

    def in_hand(self) -> list[tuple[str, tuple[int, ...]]]:
        """The steps that have begun and not ended, with their unfinished parts in order; `once` steps have none."""
        with self._lock:
            at_work = [step for step in self._steps.values() if not step.ended]
            return [(step.name, () if step.once else tuple(sorted(step.left))) for step in at_work]

    @property
    def still_s(self) -> float:
        """Seconds since anything moved."""
        return self._clock() - self._moved_s

    @property
    def elapsed_s(self) -> float:
        """Seconds since the run began."""
        return self._clock() - self._begun_s

    @property
    def busy_s(self) -> float:
        """Seconds during which at least one part of any step was in the making."""
        return self._busy.total_s


class Spans:
    """The time that some spans cover together; they come in the order of their ends."""

    def __init__(self) -> None:
        self.total_s = 0.0
        self._apart: list[tuple[float, float]] = []

    def add(self, begin_s: float, end_s: float) -> None:
        """A further span, which ends no earlier than those before it."""
        while self._apart and self._apart[-1][1] >= begin_s:
            begin, end = self._apart.pop()
            self.total_s -= end - begin
            begin_s = min(begin_s, begin)
        self._apart.append((begin_s, end_s))
        self.total_s += end_s - begin_s


class Rate:
    """Records a second over the last while, from records that come one by one or by the thousand.

    It is the slope between two moments at which records came: by the hand of a clock, the rate of parts that take
    minutes would sink until the next one comes. Only a pause longer than any in the last while makes it sink.
    """

    def __init__(self) -> None:
        self._window_s = LAST_WHILE_S
        self._total = 0
        self._points: deque[tuple[float, int]] = deque()  # moments, and the records until then
        self._whole = True  # whether the points go back to the beginning

    def add(self, now_s: float, records: int) -> None:
        """`records` more came."""
        self._total += records
        points = self._points
        if len(points) > 1 and now_s - points[-2][0] < self._window_s / _POINTS_IN_A_WHILE:
            points.pop()
        points.append((now_s, self._total))
        while len(points) > 2 and points[1][0] <= now_s - self._window_s:
            points.popleft()
            self._whole = False

    def began(self, begun_s: float) -> None:
        """Work that has been reported began then; without this the first records are only a beginning."""
        if not self._whole or not self._points or begun_s >= self._points[0][0]:
            return
        if self._points[0][1] == 0:
            self._points.popleft()
        self._points.appendleft((begun_s, 0))

    def look_back(self, window_s: float) -> None:
        """Look back over `window_s`, at least."""
        self._window_s = max(self._window_s, window_s)

    def per_second(self, now_s: float) -> float | None:
        """The rate at this moment; None before there are two moments to compare."""
        moments = [moment for moment, _ in self._points]
        if len(moments) < 2:
            return None
        longest_pause_s = max(later - earlier for earlier, later in pairwise(moments))
        until_s = max(moments[-1], now_s - longest_pause_s)
        past_s = until_s - moments[0]
        return (self._points[-1][1] - self._points[0][1]) / past_s if past_s > 0 else None


@dataclass
class _Step:
    """The sums of a step."""

    name: str
    label: str
    once: bool
    parts: int
    images: int | None
    images_before: int
    left: Parts
    first: int = 0
    ended: bool = False
    images_ticked: int = 0
    largest_tick: int = 0
    parts_made: int = 0
    images_made: int = 0
    rejected: int = 0
    made: int = 0
    worker_s: float = 0.0
    rate: Rate = field(default_factory=Rate)
    busy: Spans = field(default_factory=Spans)
    gpu: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=32))  # percent, seconds
    gpu_peak_bytes: int | None = None

    def grow(self, step: Step, *, images: int, images_before: int, todo: Collection[int]) -> None:
        """The same step goes on with further parts."""
        self.parts, self.first, self.ended = self.parts + step.parts, step.first, False
        self.images = (self.images or 0) + images
        self.images_before += images_before
        for part in todo:
            self.left.add(part)

    def tick(self, now_s: float, records: int) -> None:
        self.images_ticked += records
        self.largest_tick = max(self.largest_tick, records)
        self.rate.add(now_s, records)

    def on_part_done(self, report: PartReport, begun_s: float, now_s: float) -> None:
        self.left.discard(report.part)
        self.parts_made += 1
        self.images_made += report.images
        self.rejected += report.rejected
        self.made += report.made
        self.worker_s += report.seconds
        self.busy.add(begun_s, now_s)
        self.rate.began(begun_s)
        if report.images <= self.largest_tick:  # whole parts come, so a while must hold several
            self.rate.look_back(_PARTS_IN_A_WHILE * report.seconds)
        if report.gpu_percent is not None:
            self.gpu.append((report.gpu_percent, report.seconds))
        if report.gpu_peak_bytes is not None:
            self.gpu_peak_bytes = max(report.gpu_peak_bytes, self.gpu_peak_bytes or 0)

    def figures(self, now_s: float) -> StepFigures:
        per_s = self.rate.per_second(now_s)
        if self.ended:
            per_s = self.images_made / self.busy.total_s if self.images_made and self.busy.total_s else None
        done = self.images_before + self.images_ticked
        left = None if self.images is None or self.ended else max(0, self.images - done)
        return StepFigures(
            step=self.name,
            label=self.label,
            once=self.once,
            ended=self.ended,
            parts=self.parts,
            parts_done=self.parts - len(self.left),
            parts_made=self.parts_made,
            images=self.images,
            images_before=self.images_before,
            images_done=self.images if self.ended and self.images is not None else done,
            images_made=self.images_made,
            rejected=self.rejected,
            made=self.made,
            busy_s=self.busy.total_s,
            worker_s=self.worker_s,
            images_per_s=per_s,
            made_per_s=per_s * self.made / self.images_made if per_s and self.images_made else None,
            left_s=left / per_s if left is not None and per_s else None,
            gpu_percent=self._gpu_percent(),
            gpu_peak_bytes=self.gpu_peak_bytes,
        )

    def _gpu_percent(self) -> float | None:
        """The mean over the last parts, by their seconds."""
        seconds = sum(part_s for _, part_s in self.gpu)
        return sum(percent * part_s for percent, part_s in self.gpu) / seconds if seconds else None
