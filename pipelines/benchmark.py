"""`maskmine benchmark`: the pictures of a set segmented and counted, part by part, by any engine; what is there stays.

A cell holds a row for each picture of its part: how many pixels of which class were taken for which. So adding up the
cells gives the same figures to the last digit, whoever made them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from io import BytesIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from mining.devices import open_device
from mining.images import Picture, read_bytes
from mining.regions import plan_batches, read_ahead
from mining.segmentation_scores import Confusion, Labels
from pipelines.benchmark_sets import FoundSet
from pipelines.cells import MakeCell, PartReport, Tick, with_gpu_use
from pipelines.engine import Engine, Watch
from pipelines.grid import Stage, drop_stale
from pipelines.inputs import portable
from pipelines.mine import missing_cells
from pipelines.plan import Plan
from pipelines.run_folder import RunFolder, sweep
from schemas.errors import IncompleteError, InputError
from schemas.rows import Rejection
from schemas.settings import fingerprint
from tuning.bottleneck import open_cases
from tuning.segmenter import Rgb, Segmenter, check_classes
from tuning.semantic_evaluation import EvaluatedRow, Question, add_up, as_labels, count_map
from tuning.semantic_sets import MappedPicture, SemanticSet

PICTURES_PER_PART = 100
AS_SET = "as set"
"""The one case of a benchmark without its bottleneck: the maps as the settings make them."""

_STEPS = {False: "maps", True: "bottleneck"}
_VERSION = 1  # raised when the code changes what a cell holds
_LABEL_MODES = {"1", "L", "P", "I", "I;16", "I;16B"}

CountPictures = Callable[[Sequence[MappedPicture], Tick], list[EvaluatedRow]]
_FindMaps = Callable[[Sequence[Rgb], Sequence[Labels], Sequence[str]], Sequence[dict[str, Labels] | Rejection]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a benchmark came to: the sums of each case, the pictures that are not in them, and the cells made again."""

    pictures: int
    sums: dict[str, Confusion]
    rejected: tuple[tuple[str, Rejection], ...]
    stale: int


@dataclass(frozen=True)
class Benchmark:
    """A set, what segments it, and the folder of its cells.

    With `bottleneck` every case of `tuning.bottleneck` is counted in place of the ordinary one alone.
    """

    found: FoundSet
    settings: Segmenter
    run: RunFolder
    bottleneck: bool = False
    pictures_per_part: int = PICTURES_PER_PART

    @property
    def of(self) -> SemanticSet:
        """The set."""
        return self.found.pictures

    def plan(self) -> Plan:
        """How many pictures and parts there are."""
        images = len(self.of.pictures)
        parts = -(-images // self.pictures_per_part)
        return Plan(images, parts, self._listed(), "", source={}, inputs={})

    def stage(self) -> Stage:
        """The one step of a benchmark."""
        plan, step = self.plan(), _STEPS[self.bottleneck]
        made_of = [step, _VERSION, self.of.classes, self.of.ignore, self._listed(), plan.parts, portable(self.settings)]
        stamp = fingerprint(made_of)
        return Stage(step, stamp, CountJob(self, step, plan, stamp), plan.parts)

    def _listed(self) -> str:
        """A fingerprint of which pictures there are; paths relative to their folders, so that a set may be moved."""
        return fingerprint([[one.image_id, _base(one.image), _base(one.labels)] for one in self.of.pictures])


@dataclass(frozen=True)
class CountJob:
    """pictures and label maps → counted pixels."""

    benchmark: Benchmark
    step: str
    plan: Plan
    fingerprint: str

    @property
    def device(self) -> str:
        return self.benchmark.settings.device

    def open(self) -> MakeCell:
        count = open_counting(self.benchmark.of, self.benchmark.settings, bottleneck=self.benchmark.bottleneck)

        def make(part: int, tick: Tick) -> PartReport:
            start = time.monotonic()
            first, end = (number * self.plan.images // self.plan.parts for number in (part, part + 1))
            rows = count(self.benchmark.of.pictures[first:end], tick)
            self.benchmark.run.write_rows(
                self.step, f"{part:05d}.parquet", rows=rows, row_type=EvaluatedRow, fingerprint=self.fingerprint
            )
            rejected = sum(row.rejection is not None for row in rows)
            made = sum(len(row.maps) for row in rows)
            return PartReport(self.step, part, len(rows), rejected, made, time.monotonic() - start)

        return with_gpu_use(make, device=self.device)


def run_benchmark(benchmark: Benchmark, *, engine: Engine, watch: Watch, models_run_here: bool = True) -> Outcome:
    """Count all pictures, or those that are left; running it again only adds up.

    `models_run_here` is False when the engine's workers are elsewhere. Raises InputError for faults of the settings or
    of the set, IncompleteError when cells are missing at the end.
    """
    if not benchmark.of.pictures:
        raise InputError(f"{benchmark.of.name}: has no pictures; check its folders")
    check_classes(Question.about(benchmark.of.classes).asked)
    run, stage = benchmark.run, benchmark.stage()
    sweep(run)
    stale = drop_stale(run, [stage])
    if stage.todo(run):
        benchmark.settings.records()
        if models_run_here:
            open_device(benchmark.settings.device)
        engine(run, [stage], watch)
    if missing := missing_cells(run, [stage]):
        raise IncompleteError(f"{run.root}: cells are still missing ({missing}); run the same command again")
    sweep(run)
    rows = list(_rows(run, stage))
    sums = add_up(rows, classes=len(benchmark.of.classes))
    rejected = tuple((row.image_id, row.rejection) for row in rows if row.rejection is not None)
    return Outcome(len(rows), sums, rejected, stale.get(stage.name, 0))


def open_counting(of: SemanticSet, settings: Segmenter, *, bottleneck: bool) -> CountPictures:
    """Load the models; returns the function from pictures of the set to their rows, in order.

    A picture that cannot be read, or whose label map cannot be or is of another size, is rejected. Raises InputError
    for label maps that are not of this set.
    """
    find = _open_bottleneck(of, settings) if bottleneck else _open_maps(of, settings)
    read = partial(settings.decoding.read, max_pixels=settings.max_image_pixels)
    size = partial(settings.decoding.size, max_pixels=settings.max_image_pixels)

    def count_batch(members: Sequence[MappedPicture], answers: Sequence[Picture | Rejection]) -> list[EvaluatedRow]:
        """The rows of a batch, in order."""
        checked = [_with_truth(one, answer, of=of) for one, answer in zip(members, answers, strict=True)]
        good = {i: (*found, members[i].image_id) for i, found in enumerate(checked) if not isinstance(found, Rejection)}
        maps = find(*zip(*good.values(), strict=True)) if good else []
        found = dict(zip(good, maps, strict=True))
        return [
            _as_row(members[i], one if isinstance(one, Rejection) else found[i], one, classes=len(of.classes))
            for i, one in enumerate(checked)
        ]

    def count(pictures: Sequence[MappedPicture], tick: Tick) -> list[EvaluatedRow]:
        rows: dict[int, EvaluatedRow] = {}
        paths = [one.image for one in pictures]
        with ThreadPoolExecutor(settings.decode_threads) as pool:
            batches = plan_batches(list(pool.map(size, paths)), batch_size=settings.batch_size)
            for batch, answers in read_ahead(paths, batches, read=read, pool=pool):
                rows.update(zip(batch, count_batch([pictures[i] for i in batch], answers), strict=True))
                tick(len(batch))
        return [rows[i] for i in range(len(pictures))]

    return count


def read_label_map(path: str) -> np.ndarray[tuple[int, int], np.dtype[np.int32]] | Rejection:
    """The numbers in a label map, [H, W]: PNG or TIFF with one channel of 8 or 16 bits, or with a palette.

    Raises InputError for a picture in colour, which is no label map.
    """
    data = read_bytes(path)
    if isinstance(data, Rejection):
        return data
    try:
        with Image.open(BytesIO(data), formats=("PNG", "TIFF")) as image:
            if image.mode not in _LABEL_MODES:
                raise InputError(f"{path}: is in colour ({image.mode}), not a map of labels; prepare the set first")
            return np.array(image).astype(np.int32)
    except UnidentifiedImageError:
        return Rejection("decode_error", "label map: neither PNG nor TIFF")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        return Rejection("decode_error", f"label map: {type(error).__name__}")


def _open_maps(of: SemanticSet, settings: Segmenter) -> _FindMaps:
    segment, question = settings.open(), Question.about(of.classes)

    def find(
        pictures: Sequence[Rgb], truths: Sequence[Labels], image_ids: Sequence[str]
    ) -> list[dict[str, Labels] | Rejection]:
        answers = segment(pictures, classes=question.asked, image_ids=image_ids)
        return [
            one if isinstance(one, Rejection) else {AS_SET: question.as_set_labels(one.labels_HW)} for one in answers
        ]

    return find


def _open_bottleneck(of: SemanticSet, settings: Segmenter) -> _FindMaps:
    cases = open_cases(settings, classes=of.classes)

    def find(
        pictures: Sequence[Rgb], truths: Sequence[Labels], image_ids: Sequence[str]
    ) -> list[dict[str, Labels] | Rejection]:
        answers = cases(pictures, truths, image_ids=image_ids)
        return [
            one if isinstance(one, Rejection) else {case.name: labels_HW for case, labels_HW in one.items()}
            for one in answers
        ]

    return find


def _with_truth(one: MappedPicture, answer: Picture | Rejection, *, of: SemanticSet) -> tuple[Rgb, Labels] | Rejection:
    """The pixels of a picture and its true labels."""
    if isinstance(answer, Rejection):
        return answer
    stored = read_label_map(one.labels)
    if isinstance(stored, Rejection):
        return stored
    if stored.shape != answer.rgb_HW3.shape[:2]:
        sizes = [" × ".join(map(str, shape[:2])) for shape in (answer.rgb_HW3.shape, stored.shape)]
        return Rejection("image_changed", f"the picture is {sizes[0]} pixels, its label map {sizes[1]}")
    return answer.rgb_HW3, as_labels(stored, classes=len(of.classes), ignore=of.ignore, place=one.labels)


def _as_row(
    one: MappedPicture,
    maps: dict[str, Labels] | Rejection,
    checked: tuple[Rgb, Labels] | Rejection,
    *,
    classes: int,
) -> EvaluatedRow:
    if isinstance(maps, Rejection) or isinstance(checked, Rejection):
        return EvaluatedRow(one.image_id, (), maps if isinstance(maps, Rejection) else None)
    counted = (
        count_map(labels_HW, truth_HW=checked[1], classes=classes, case=case) for case, labels_HW in maps.items()
    )
    return EvaluatedRow(one.image_id, tuple(counted), None)


def _rows(run: RunFolder, stage: Stage) -> Iterator[EvaluatedRow]:
    for part in range(stage.cells):
        yield from run.read_rows(
            stage.name, f"{part:05d}.parquet", row_type=EvaluatedRow, fingerprint=stage.fingerprint
        )


def _base(path: str) -> str:
    return path.replace("\\", "/").rpartition("/")[2]
