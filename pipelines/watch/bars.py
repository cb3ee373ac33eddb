"""What a person sees of a run: bars on a terminal, one line a part elsewhere, and at the end where the time went."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.text import Text

from maskmine.pipelines.engines.engine import RunObserver
from maskmine.pipelines.steps.jobs import PartReport
from maskmine.pipelines.watch.progress import RunProgress, StepFigures
from maskmine.schemas.sample import part_name
from maskmine.schemas.wording import counted
from maskmine.tuning.console import TextTable, rate

ONE_LINE_FROM_COLUMNS = 140
_COUNTED_ONCE = "nouns"  # what the steps that run once go through, and make
_NAME_COLUMNS = 10  # the longest name of a step
_SUMMARY_COLUMNS = 120  # enough for any run; a figure is never cut, whatever the width of the terminal
_DETAIL = "bright_black"  # grey on most terminals


class ProgressBars(RunObserver):
    """A bar for each step that has begun, for all workers together, redrawn four times a second."""

    def __init__(self, console: Console, progress: RunProgress) -> None:
        self._progress = progress
        self._console = console
        self._live = Live(console=console, get_renderable=self._render, refresh_per_second=4)

    def __enter__(self) -> ProgressBars:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def _render(self) -> RenderableType:
        return render_bars(self._progress.figures(), columns=self._console.width)


class PartLines(RunObserver):
    """One line a part, for logs and pipes."""

    def __init__(self, console: Console, progress: RunProgress) -> None:
        self._console = console
        self._progress = progress

    def on_part_done(self, report: PartReport) -> None:
        """Print what the part gave, and how fast all workers are together."""
        step = next(figures for figures in self._progress.figures() if figures.step == report.step)
        self._console.print(part_line(report, step), soft_wrap=True, highlight=False, markup=False)


def render_bars(steps: Sequence[StepFigures], *, columns: int) -> RenderableType:
    """The bars of the steps; where a line is too short for everything, the details stand below each bar."""
    wide = columns >= ONE_LINE_FROM_COLUMNS
    details = [Text(", ".join(_details(step)), style=_DETAIL, no_wrap=True, overflow="ellipsis") for step in steps]
    counts, details_columns, times = (
        max(map(len, texts), default=0) for texts in (map(_count, steps), details, map(_time, steps))
    )
    lines: list[RenderableType] = []
    for step, detail in zip(steps, details, strict=True):
        grid = TextTable.grid(padding=(0, 1), expand=True)
        grid.add_column(width=_NAME_COLUMNS, no_wrap=True)
        grid.add_column(ratio=1)
        grid.add_column(width=counts, justify="right", no_wrap=True)
        if wide:
            grid.add_column(width=details_columns, no_wrap=True)
        grid.add_column(width=times, justify="right", no_wrap=True)
        grid.add_row(step.step, _bar(step), _count(step), *([detail] if wide else []), _time(step))
        lines.append(grid)
        if detail and not wide:
            lines.append(Padding(detail, (0, 0, 0, _NAME_COLUMNS + 1)))
    return Group(*lines)


def part_line(report: PartReport, step: StepFigures) -> str:
    """`regions 00017: 1,000 → 9,812 regions, 31.4 s, 32/s; all workers: 241/s, 18 of 119 parts, 0:07:00 left`.

    A step that runs once has nouns in the place of images: `vocabulary: 1,539 nouns, 31.4 s, 49/s`.
    """
    made = f"{report.made:,} {step.label}"
    rejected = f", {report.rejected:,} rejected" if report.rejected else ""
    gpu = f", GPU {report.gpu_percent:.0f}%" if report.gpu_percent is not None else ""
    per_s = report.images / report.seconds if report.seconds else 0
    if step.once:
        return f"{report.step}: {counted(report.images, 'noun')}, {report.seconds:.1f} s, {rate(per_s)}/s{gpu}"
    name = f"{report.step} {part_name(report.part)}"
    line = f"{name}: {report.images:,} → {made}{rejected}, {report.seconds:.1f} s, {rate(per_s)}/s"
    together = [f"{rate(step.images_per_s)}/s"] if step.images_per_s else []
    left = [_time(step)] if step.left_s else []
    parts = f"{step.parts_done:,} of {counted(step.parts, 'part')}"
    return f"{line}{gpu}; all workers: {', '.join([*together, parts, *left])}"


def print_summary(console: Console, progress: RunProgress) -> None:
    """What is left of steps that were cut short, and where the time of the run went; nothing when nothing moved."""
    begun = progress.figures()
    if any(step.parts_made or step.images_done > step.images_before for step in begun):
        steps = [step for step in begun if step.parts_made or not step.ended]
        table = render_summary(steps, elapsed_s=progress.elapsed_s, busy_s=progress.busy_s)
        console.print()
        for step in begun:
            if not step.ended:
                console.print(left_line(step), soft_wrap=True, highlight=False, markup=False)
        console.print(table, soft_wrap=False, crop=False, width=_SUMMARY_COLUMNS)


def left_line(step: StepFigures) -> str:
    """`left of regions: 62 of 119 parts, 61,287 of 118,287 images`."""
    images = ""
    if step.images is not None:
        of = "noun" if step.once else "image"
        whole = step.images_before + step.images_made  # what was done of a part that was cut short is done again
        images = f", {step.images - whole:,} of {counted(step.images, of)}"
    return f"left of {step.step}: {step.parts - step.parts_done:,} of {counted(step.parts, 'part')}{images}"


def render_summary(steps: Sequence[StepFigures], *, elapsed_s: float, busy_s: float) -> RenderableType:
    """A line a step: what this run made, how long, how fast, and in which share of its time."""
    with_gpu = any(step.gpu_percent is not None for step in steps)
    table = TextTable(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("step", "parts", "images", "rejected", "made", "time", "work", "images/s", "share"):
        table.add_column(name, justify="left" if name == "step" else "right", no_wrap=True)
    if with_gpu:
        table.add_column("GPU", justify="right", no_wrap=True)
    for step in steps:
        gpu = "" if step.gpu_percent is None else f"{step.gpu_percent:.0f}%"
        table.add_row(*_summary_row(step, elapsed_s), *([gpu] if with_gpu else []))
    rest_s = max(0.0, elapsed_s - busy_s)
    table.add_row("all else", "", "", "", "", _clock(rest_s), "", "", f"{rest_s / elapsed_s:.0%}" if elapsed_s else "")
    table.add_row("in all", "", "", "", "", _clock(elapsed_s))
    return table


def _summary_row(step: StepFigures, elapsed_s: float) -> list[str]:
    unit = f" {_COUNTED_ONCE}" if step.once else ""
    return [
        step.step,
        f"{step.parts_made:,}",
        f"{step.images_made:,}{unit}",
        f"{step.rejected:,}",
        f"{step.made:,}",
        _clock(step.busy_s),
        _clock(step.worker_s),
        f"{rate(step.images_made / step.busy_s)}{unit and f'{unit}/s'}" if step.busy_s else "",
        f"{step.busy_s / elapsed_s:.0%}" if elapsed_s else "",
    ]


def _bar(step: StepFigures) -> ProgressBar:
    if step.images is None:
        return ProgressBar(total=1 if step.ended else None, completed=int(step.ended), pulse=not step.ended)
    return ProgressBar(total=step.images, completed=step.images_done)


def _count(step: StepFigures) -> str:
    if step.images is None:
        return f"{max(step.images_done, step.images_made):,} {_COUNTED_ONCE}"
    return f"{step.images_done:,}/{step.images:,}{f' {_COUNTED_ONCE}' if step.once else ''}"


def _time(step: StepFigures) -> str:
    if step.ended:
        return f"in {_clock(step.busy_s)}"
    return f"{_clock(step.left_s)} left" if step.left_s is not None else ""


def _details(step: StepFigures) -> Iterator[str]:
    if step.images_per_s is not None:
        yield f"{rate(step.images_per_s)} {_COUNTED_ONCE if step.once else 'images'}/s"
    if step.made_per_s is not None and not step.once:
        yield f"{rate(step.made_per_s)} {step.label}/s"
    if step.gpu_percent is not None:
        yield f"GPU {step.gpu_percent:.0f}%"
    if step.rejected:
        yield f"{step.rejected:,} rejected"
    if step.images_before:
        yield f"{step.images_before:,} before"


def _clock(seconds: float) -> str:
    """`0:07:02`, and with tenths what is shorter than a minute; days are hours."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest_s = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest_s:02}"
