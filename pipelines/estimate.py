"""What a run will cost: a few of its images are mined in a temporary folder, and all of it is estimated from them."""

from __future__ import annotations

import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.filesize import decimal
from rich.text import Text

from maskmine.mining.captioners.endpoint import Endpoint
from maskmine.mining.captioners.florence2 import Florence2
from maskmine.mining.models.devices import open_device
from maskmine.mining.models.hub import require_hub
from maskmine.mining.pairs import ClipPairs
from maskmine.mining.storage.ownership import SCRATCH, owned_prefix
from maskmine.pipelines.dataset.calibrations import check_calibration
from maskmine.pipelines.mine import check_inputs, notes_of
from maskmine.pipelines.planning.plan import Plan, check_folder, make_plan
from maskmine.pipelines.regenerate import known_identity
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.pipelines.settings.mining import Mining
from maskmine.pipelines.steps.captioning_job import CaptioningJob, UnaskedJob
from maskmine.pipelines.steps.grid import Step, plan_steps
from maskmine.pipelines.steps.identity import identify
from maskmine.pipelines.steps.jobs import MakeCell, PartReport, each_report, no_tick
from maskmine.pipelines.steps.status import rejected_images
from maskmine.schemas.wording import counted
from maskmine.tuning.console import TextTable

# A step that takes less is run twice and the second time counts: the first includes warming up.
_REPEATED_BELOW_S = 5.0
# Heaps' law: n times the images say n^0.6 times the nouns. Half of COCO's val2017 has 52 nouns in 16 captions, 1,539 in
# 2,500, and the exponent falls from 0.8 to 0.5 on the way.
_NOUN_GROWTH = 0.6


@dataclass(frozen=True, slots=True, kw_only=True)
class StepEstimate:
    """A step's part of the whole: seconds to begin, seconds an image, and bytes that it leaves on the disk."""

    step: str
    on_gpu: bool
    start_up_s: float
    per_image_s: float
    total_s: float
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Requests:
    """What a run asks of a server: so many requests, one for each image, of which `answered` are there already; at
    most so many a minute."""

    place: str
    model: str
    url: str
    images: int
    answered: int
    per_minute: float | None


@dataclass(frozen=True, slots=True)
class Estimate:
    """Time and disk of a whole run from nothing by the local engine on this machine, from `sampled` of its `images`.

    `steps` are the plan and then the steps of the run, of which the last writes the shards. `samples` are the pairs
    expected, `rejected` counts the rejected images of the sample by reason.
    `unfiltered` says that `pairs.min_count` or `pairs.max_per_noun` are set: they look at the whole set, so they were
    left out, and there will be fewer pairs. `requests` go to servers that write captions, which an estimate does not
    ask. Only `images`, `parts`, `requests` and the size of the plan are exact.
    """

    images: int
    parts: int
    sampled: int
    steps: tuple[StepEstimate, ...]
    samples: int
    rejected: dict[str, int]
    unfiltered: bool
    requests: tuple[Requests, ...] = ()

    @property
    def gpu_hours(self) -> float:
        """Hours of the steps that run on a GPU, their start-up included."""
        return sum(step.total_s for step in self.steps if step.on_gpu) / 3600

    @property
    def cpu_hours(self) -> float:
        """Hours of the other steps, in one process."""
        return sum(step.total_s for step in self.steps if not step.on_gpu) / 3600

    @property
    def shard_bytes(self) -> int:
        """Bytes of the shards with their indexes and accounts."""
        return self.steps[-1].size_bytes

    @property
    def cell_bytes(self) -> int:
        """Bytes of the plan and of the cells between the steps."""
        return sum(step.size_bytes for step in self.steps[:-1])


def estimate(
    settings: Mining, *, limit: int | None, sample: int = 16, begin: Callable[[], None] = lambda: None
) -> Estimate:
    """Plan the whole run and mine `sample` images of it, in a temporary folder; `settings.out` is not touched.

    Models that are not on this machine are fetched, as the run would, if the hub takes connections. A small sample errs
    upwards: its batches are not full. `begin` is called when the plan is made, before the sample is mined. Raises
    InputError as the run would.
    """
    check_folder(RunFolder(settings.out), settings, limit=limit)
    check_inputs(settings)
    check_calibration(settings, identify(settings).settings)
    checks = settings.checks
    local = [one.record() for one in settings.captioners if isinstance(one, Florence2)]
    for model in (*local, *settings.regions.records(), *([checks.record()] if checks is not None else [])):
        if model.sha256 is None:
            require_hub(model.role, model.name)
    with tempfile.TemporaryDirectory(prefix=owned_prefix(SCRATCH)) as scratch:
        # The plan is made for all images.
        begin_s = time.monotonic()
        plan = make_plan(RunFolder(f"{scratch}/whole"), settings, limit=limit)
        planned_s = time.monotonic() - begin_s
        planned = StepEstimate(
            step="plan",
            on_gpu=False,
            start_up_s=0.0,
            per_image_s=planned_s / plan.images,
            total_s=planned_s,
            size_bytes=_folder_bytes(f"{scratch}/whole"),
        )

        list(notes_of(RunFolder(f"{scratch}/whole"), range(plan.parts), settings))

        # The steps are run on a sample of them.
        begin()
        run = RunFolder(f"{scratch}/sample")
        tried = _without_filters(settings)
        few = make_plan(run, tried, limit=min(sample, plan.images))
        measured = [_measure(_unasked(step)) for step in plan_steps(run, few, tried, identify(tried))]
        requests = tuple(_requests(settings, plan))
        steps = [_scale(step, few=few, plan=plan) for step in measured]
        rejected = Counter(f"{image.step}: {image.reason}" for image in rejected_images(run))
    return Estimate(
        images=plan.images,
        parts=plan.parts,
        sampled=few.images,
        steps=(planned, *steps),
        samples=round(measured[-1].made * plan.images / few.images),
        rejected=dict(rejected.most_common()),
        unfiltered=settings.pairs != tried.pairs,
        requests=requests,
    )


def render_estimate(estimate: Estimate) -> TextTable:
    """Step by step, then the sums, then what they were estimated from."""
    steps = TextTable(box=None, pad_edge=False)
    for name in ("step", "on", "start-up", "an image", "all images", "disk"):
        steps.add_column(name, justify="left" if name in ("step", "on") else "right", no_wrap=True)
    for step in estimate.steps:
        times = [_duration(seconds) for seconds in (step.start_up_s, step.per_image_s, step.total_s)]
        steps.add_row(step.step, "GPU" if step.on_gpu else "CPU", *times, decimal(step.size_bytes))
    steps.add_row()
    if estimate.gpu_hours:
        steps.add_row("in total", "GPU", "", "", _duration(estimate.gpu_hours * 3600))
    size_bytes = estimate.cell_bytes + estimate.shard_bytes
    steps.add_row("in total", "CPU", "", "", _duration(estimate.cpu_hours * 3600), decimal(size_bytes))
    page = TextTable.grid()
    few = f"estimated from {estimate.sampled:,} of them"
    page.add_row(Text(f"{counted(estimate.images, 'image')} in {counted(estimate.parts, 'part')}; {few}"))
    page.add_row()
    page.add_row(steps)
    page.add_row()
    for note in _notes(estimate):
        page.add_row(Text(note))
    return page


@dataclass(frozen=True, slots=True)
class _Measured:
    """A step on the sample; `once` steps count nouns instead of images."""

    step: Step
    start_up_s: float
    work_s: float
    made: int


def _without_filters(settings: Mining) -> Mining:
    """The settings for the sample. Counts and levels of nouns in a few images say nothing about the whole set."""
    off: dict[str, Any] = {"min_count": 1, "max_per_noun": None}
    if isinstance(settings.pairs, ClipPairs):
        off |= dict.fromkeys(("min_lift", "min_evidence", "min_separability", "min_confidence"))
    pairs = settings.pairs.model_copy(update=off)
    return settings.model_copy(update={"pairs": pairs})


def _unasked(step: Step) -> Step:
    """The step with a job that asks no server."""
    job = step.job
    if isinstance(job, CaptioningJob) and job.device is None:
        return replace(step, job=UnaskedJob(job.cells, job.output))
    return step


def _requests(settings: Mining, plan: Plan) -> Iterator[Requests]:
    """The requests of a run of this plan, and how many of their answers lie in its folder."""
    run, known = RunFolder(settings.out), known_identity(RunFolder(settings.out), None)
    for step in plan_steps(run, plan, settings, identify(settings, known)):
        job = step.job
        if isinstance(job, CaptioningJob) and isinstance(job.settings, Endpoint):
            one = job.settings
            answered = sum(plan.part_size(part) for part in step.existing())
            answered += sum(len(step.output.read_answers(part)) for part in step.todo())
            yield Requests(one.place, one.model, one.url, plan.images, min(answered, plan.images), one.per_minute)


def _measure(step: Step) -> _Measured:
    begin_s = time.monotonic()
    make = step.job.open()
    reports, others_s = _make_all(step, make)
    elapsed_s = time.monotonic() - begin_s - others_s
    if sum(report.seconds for report in reports) < _REPEATED_BELOW_S:
        if step.once:
            step.output.run.delete(*step.output.names())  # or its embeddings would be used again
        reports, _ = _make_all(step, make)
    work_s = sum(report.seconds for report in reports)
    made = sum(report.made for report in reports)
    return _Measured(step, max(0.0, elapsed_s - work_s), work_s, made)


def _make_all(step: Step, make: MakeCell) -> tuple[list[PartReport], float]:
    """The reports of all cells of a step, and the seconds of those of other steps that were made with them."""
    reports = [report for part in range(step.parts) for report in each_report(make(part, no_tick))]
    own = [report for report in reports if report.step == step.name]
    return own, sum(report.seconds for report in reports if report.step != step.name)


def _scale(measured: _Measured, *, few: Plan, plan: Plan) -> StepEstimate:
    step, ratio = measured.step, plan.images / few.images
    growth = ratio**_NOUN_GROWTH if step.once else ratio
    work_s = measured.work_s * growth
    device = step.job.device
    written = step.output.path() if step.once else step.output.run.path(step.name)
    return StepEstimate(
        step=step.name,
        on_gpu=device is not None and open_device(device).type == "cuda",
        start_up_s=measured.start_up_s,
        per_image_s=work_s / plan.images,
        total_s=measured.start_up_s + work_s,
        size_bytes=round(_folder_bytes(written) * growth),
    )


def _folder_bytes(path: str) -> int:
    """The size of a file, or of all files in a folder."""
    files = [Path(path)] if os.path.isfile(path) else [file for file in Path(path).rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


def _notes(estimate: Estimate) -> list[str]:
    notes = [
        f"About {counted(estimate.samples, 'pair')}; {decimal(estimate.shard_bytes)} of shards and"
        f" {decimal(estimate.cell_bytes)} of cells between the steps.",
        "Times are those of one process on this machine, from nothing.",
    ]
    if estimate.sampled < estimate.images:
        notes.append(
            "A small sample errs upwards, its batches are not full; nouns are taken to grow with images to the power"
            f" {_NOUN_GROWTH}."
        )
    for one in estimate.requests:
        there = f" ({one.answered:,} answers are there)" if one.answered else ""
        left = one.images - one.answered
        pace = f", {_duration(60 * left / one.per_minute)} at {one.per_minute:g} a minute" if one.per_minute else ""
        notes.append(
            f"{one.place}: {counted(left, 'request')} to {one.model} at {one.url}{there}{pace}, more where the server "
            "fails. None was sent for this estimate, so what its captions add is not in it."
        )
    if rejected := sum(estimate.rejected.values()):
        reason = max(estimate.rejected, key=lambda reason: estimate.rejected[reason])
        notes.append(f"{rejected} of the {estimate.sampled} images were rejected, most by `{reason}`.")
    if estimate.unfiltered:
        notes.append("Filters by counts or levels of nouns were left out, so there will be fewer pairs.")
    return notes


def _duration(seconds: float) -> str:
    for unit, scale in (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= scale:
            return f"{seconds / scale:,.1f} {unit}"
    return "0 s"
