"""What a run will cost: a few of its images are mined in a temporary folder, and the rest is reckoned from them."""

from __future__ import annotations

import os
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from mining.devices import open_device
from pipelines.grid import Stage, plan_stages
from pipelines.mine import check_inputs
from pipelines.plan import Plan, make_plan
from pipelines.run_folder import RunFolder
from pipelines.settings import Mining
from pipelines.status import rejected_images

# A step that takes less is made twice and the second time counts, since the first has the warming up in it.
_REPEATED_BELOW_S = 5.0
# Heaps' law: n times the images say n^0.6 times the nouns. Half of COCO's val2017 has 52 nouns in 16 captions, 1,539 in
# 2,500, and the exponent falls from 0.8 to 0.5 on the way.
_NOUN_GROWTH = 0.6


@dataclass(frozen=True, slots=True)
class StepEstimate:
    """A step's part of the whole: seconds to begin, seconds an image, and bytes that it leaves on the disk."""

    step: str
    on_gpu: bool
    start_up_s: float
    per_image_s: float
    total_s: float
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Estimate:
    """Time and disk of a whole run from nothing by the local engine on this machine, from `sampled` of its `images`.

    `samples` are the pairs expected, `rejected` what became of the sampled images that came to nothing, by reason.
    `unfiltered` says that `pairs.min_count` or `pairs.max_per_noun` are set: they look at the whole set, so they were
    left out, and there will be fewer pairs. Only `images`, `parts` and the size of the plan are exact.
    """

    images: int
    parts: int
    sampled: int
    steps: tuple[StepEstimate, ...]
    samples: int
    rejected: dict[str, int]
    unfiltered: bool

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
        return sum(step.size_bytes for step in self.steps if step.step == "shards")

    @property
    def cell_bytes(self) -> int:
        """Bytes of the plan and of the cells between the steps."""
        return sum(step.size_bytes for step in self.steps if step.step != "shards")


def estimate(settings: Mining, *, limit: int | None, sample: int = 16) -> Estimate:
    """Plan the whole run and mine `sample` images of it, in a temporary folder; `settings.out` is not touched.

    Models that are not on this machine are fetched, as the run would. A small sample errs upwards: its batches are not
    full. Raises InputError as the run would.
    """
    with tempfile.TemporaryDirectory(prefix="maskmine-estimate-") as scratch:
        begin = time.monotonic()
        plan = make_plan(RunFolder(f"{scratch}/whole"), settings, limit=limit)
        planned = StepEstimate(
            "plan", False, 0.0, *_per_image(time.monotonic() - begin, plan), _folder_bytes(f"{scratch}/whole")
        )
        run = RunFolder(f"{scratch}/sample")
        tried = _without_filters(settings)
        few = make_plan(run, tried, limit=min(sample, plan.images))
        stages = plan_stages(run, few, tried)
        check_inputs(tried)
        measured = [_measure(stage, run) for stage in stages]
        on_gpu = _gpu_steps(tried)
        steps = [_scale(one, run, few=few, plan=plan, on_gpu=one.step in on_gpu) for one in measured]
        rejected = Counter(f"{image.step}: {image.reason}" for image in rejected_images(run))
    return Estimate(
        images=plan.images,
        parts=plan.parts,
        sampled=few.images,
        steps=(planned, *steps),
        samples=round(measured[-1].made * plan.images / few.images),
        rejected=dict(rejected.most_common()),
        unfiltered=settings.pairs != tried.pairs,
    )


def render_estimate(estimate: Estimate) -> Table:
    """Step by step, then the sums, then what they were reckoned from."""
    steps = Table(box=None, pad_edge=False)
    for name in ("step", "on", "start-up", "an image", "all images", "disk"):
        steps.add_column(name, justify="left" if name in ("step", "on") else "right", no_wrap=True)
    for step in estimate.steps:
        times = [_duration(seconds) for seconds in (step.start_up_s, step.per_image_s, step.total_s)]
        steps.add_row(step.step, _on(step), *times, decimal(step.size_bytes))
    steps.add_row()
    if estimate.gpu_hours:
        steps.add_row("in total", "GPU", "", "", _duration(estimate.gpu_hours * 3600))
    size_bytes = estimate.cell_bytes + estimate.shard_bytes
    steps.add_row("in total", "CPU", "", "", _duration(estimate.cpu_hours * 3600), decimal(size_bytes))
    page = Table.grid()
    few = f"estimated from {estimate.sampled:,} of them"
    page.add_row(Text(f"{estimate.images:,} images in {estimate.parts:,} parts; {few}"))
    page.add_row()
    page.add_row(steps)
    page.add_row()
    for note in _notes(estimate):
        page.add_row(Text(note))
    return page


@dataclass(frozen=True, slots=True)
class _Measured:
    """A step on the sample; `once` steps count nouns instead of images."""

    step: str
    once: bool
    start_up_s: float
    work_s: float
    made: int


def _without_filters(settings: Mining) -> Mining:
    """The settings for the sample. How often a noun is said in a few images tells nothing about the whole set."""
    pairs = settings.pairs.model_copy(update={"min_count": 1, "max_per_noun": None})
    return settings.model_copy(update={"pairs": pairs})


def _measure(stage: Stage, run: RunFolder) -> _Measured:
    begin = time.monotonic()
    make = stage.job.open()
    reports = [make(part, _no_tick) for part in range(stage.cells)]
    elapsed_s = time.monotonic() - begin
    if sum(report.seconds for report in reports) < _REPEATED_BELOW_S:
        if stage.once:
            run.delete(f"{stage.name}.parquet")  # or its embeddings would be used again
        reports = [make(part, _no_tick) for part in range(stage.cells)]
    work_s = sum(report.seconds for report in reports)
    made = sum(report.made for report in reports)
    return _Measured(stage.name, stage.once, max(0.0, elapsed_s - work_s), work_s, made)


def _no_tick(records: int) -> None:
    pass


def _scale(measured: _Measured, run: RunFolder, *, few: Plan, plan: Plan, on_gpu: bool) -> StepEstimate:
    ratio = plan.images / few.images
    growth = ratio**_NOUN_GROWTH if measured.once else ratio
    per_image_s, work_s = _per_image(measured.work_s * growth, plan)
    written = run.path(f"{measured.step}.parquet" if measured.once else measured.step)
    return StepEstimate(
        measured.step,
        on_gpu,
        measured.start_up_s,
        per_image_s,
        measured.start_up_s + work_s,
        round(_folder_bytes(written) * growth),
    )


def _per_image(work_s: float, plan: Plan) -> tuple[float, float]:
    """Seconds an image, and in total."""
    return work_s / plan.images, work_s


def _gpu_steps(settings: Mining) -> set[str]:
    regions = settings.regions
    if open_device(regions.device).type != "cuda":
        return set()
    return {"regions"} | ({"vocabulary"} if regions.clip else set())


def _folder_bytes(path: str) -> int:
    """The size of a file, or of all files in a folder."""
    files = [Path(path)] if os.path.isfile(path) else [file for file in Path(path).rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


def _on(step: StepEstimate) -> str:
    return "GPU" if step.on_gpu else "CPU"


def _notes(estimate: Estimate) -> list[str]:
    notes = [
        f"About {estimate.samples:,} pairs; {decimal(estimate.shard_bytes)} of shards and"
        f" {decimal(estimate.cell_bytes)} of cells between the steps.",
        "Times are those of one process on this machine, from nothing.",
    ]
    if estimate.sampled < estimate.images:
        notes.append(
            "A small sample errs upwards, its batches are not full; nouns are taken to grow with images to the power"
            f" {_NOUN_GROWTH}."
        )
    if rejected := sum(estimate.rejected.values()):
        most = max(estimate.rejected, key=lambda reason: estimate.rejected[reason])
        notes.append(f"{rejected} of the {estimate.sampled} images were rejected, most by `{most}`.")
    if estimate.unfiltered:
        notes.append("`min_count` and `max_per_noun` were left out, so there will be fewer pairs.")
    return notes


def _duration(seconds: float) -> str:
    for unit, scale in (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= scale:
            return f"{seconds / scale:,.1f} {unit}"
    return "0 s"
