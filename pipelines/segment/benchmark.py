"""`maskmine benchmark`: segment the images of a set and count pixels, part by part, on any engine; finished parts stay.

A cell holds a row for each image of its part: how many pixels of which class were predicted as which. So the sum over
cells is the same to the last digit, whichever engine made them.
"""

from __future__ import annotations

import posixpath
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from maskmine.mining.images.child_decoder import Decoding
from maskmine.mining.images.decode import MAX_SIDE_PX, DecodedImage
from maskmine.mining.models.devices import open_device
from maskmine.pipelines.engines.engine import Engine, RunObserver, device_kind
from maskmine.pipelines.planning.plan import Plan
from maskmine.pipelines.run_folder.cells import Cells
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.pipelines.run_folder.sweep import sweep
from maskmine.pipelines.segment.benchmark_sets import BenchmarkSet
from maskmine.pipelines.segment.images import decode_batches
from maskmine.pipelines.settings.fingerprints import portable
from maskmine.pipelines.steps.grid import Step, drop_stale, missing_cells
from maskmine.pipelines.steps.jobs import MakeCell, PartReport, Tick, with_gpu_use
from maskmine.schemas.errors import IncompleteError, InputError
from maskmine.schemas.rows import Rejection
from maskmine.schemas.settings import fingerprint
from maskmine.tuning.benchmarks.sets import AnnotatedImage, SemanticSet
from maskmine.tuning.segmentation.confusion import Confusion, Labels
from maskmine.tuning.segmentation.evaluation import ClassMapping, EvaluatedRow, add_up, as_labels, count_map
from maskmine.tuning.segmentation.oracle import CaseMaps, SegmentCases, open_cases
from maskmine.tuning.segmentation.segmenter import Rgb, Segmenter, check_classes

IMAGES_PER_PART = 100  # minutes of work on a GPU, so little is lost with a part
AS_SET = "as set"
"""The one case of a benchmark without oracle analysis: the maps as the settings make them."""

_STEPS = {False: "maps", True: "bottleneck"}  # folders of the run, by `Benchmark.oracle`
_VERSION = 1  # raised when the code changes what a cell holds
_MAX_MAP_PIXELS = MAX_SIDE_PX**2
_OTHER_FORMAT = "neither PNG nor TIFF"
_LABEL_MODES = {"1", "L", "P", "I", "I;16", "I;16B"}  # one channel: label numbers, or the index of a palette

CountImages = Callable[[Sequence[AnnotatedImage], Tick], list[EvaluatedRow]]


@dataclass(frozen=True, slots=True)
class BenchmarkResult:
    """The sums of each case over `images` without the `rejected` ones; `stale` cells were made again."""

    images: int
    sums: dict[str, Confusion]
    rejected: tuple[tuple[str, Rejection], ...]
    stale: int


@dataclass(frozen=True)
class Benchmark:
    """A set, the segmenter, and the folder of the cells.

    With `oracle` every case of `maskmine.tuning.segmentation.oracle` is counted, not only the maps as set.
    """

    benchmark_set: BenchmarkSet
    settings: Segmenter
    run: RunFolder
    oracle: bool = False
    images_per_part: int = IMAGES_PER_PART

    @property
    def dataset(self) -> SemanticSet:
        """The images and classes of the set."""
        return self.benchmark_set.dataset

    def plan(self) -> Plan:
        """The number of images and parts."""
        images = len(self.dataset.images)
        return Plan(images, -(-images // self.images_per_part), self._images_hash(), "", source={}, inputs={})

    def step(self) -> Step:
        """The one step of a benchmark."""
        plan, name, dataset = self.plan(), _STEPS[self.oracle], self.dataset
        made_of = [name, _VERSION, dataset.classes, dataset.ignore, plan.images_sha256, plan.parts]
        output = Cells(self.run, name, EvaluatedRow, fingerprint([*made_of, portable(self.settings)]))
        return Step(output, CountJob(self, output, plan), plan.parts, label="maps")

    def _images_hash(self) -> str:
        """A hash of the images' ids and file names, without folders, so that a set may be moved."""
        names = [[one.image_id, _base(one.image), _base(one.labels)] for one in self.dataset.images]
        return fingerprint(names)


@dataclass(frozen=True)
class CountJob:
    """Images and label maps → counted pixels."""

    inputs = ()
    benchmark: Benchmark
    output: Cells[EvaluatedRow]
    plan: Plan

    @property
    def device(self) -> str:
        return self.benchmark.settings.device

    def open(self) -> MakeCell:
        count = open_counting(self.benchmark.dataset, self.benchmark.settings, oracle=self.benchmark.oracle)

        def make(part: int, tick: Tick) -> PartReport:
            start = time.monotonic()
            first, end = (number * self.plan.images // self.plan.parts for number in (part, part + 1))
            rows = count(self.benchmark.dataset.images[first:end], tick)
            self.output.write(part, rows)
            return PartReport(
                step=self.output.step,
                part=part,
                images=len(rows),
                rejected=sum(row.rejection is not None for row in rows),
                made=sum(len(row.maps) for row in rows),
                seconds=time.monotonic() - start,
            )

        return with_gpu_use(make, device=self.device)


def run_benchmark(benchmark: Benchmark, *, engine: Engine, observer: RunObserver) -> BenchmarkResult:
    """Count all images, or those of the missing cells; on a complete run only the sums are computed.

    Raises InputError for faults of the settings or of the set, IncompleteError when cells are missing at the end.
    """
    # A GPU has another precision by default, so maps of one kind of device are not counted with those of another.
    settings = benchmark.settings
    settled = settings.settled(device_kind(settings.device, engine=engine))
    benchmark = replace(benchmark, settings=settled)
    dataset, run, step = benchmark.dataset, benchmark.run, benchmark.step()
    if not dataset.images:
        raise InputError(f"{dataset.name}: has no pictures; check its folders")
    check_classes(ClassMapping.of(dataset.classes).segmenter_classes)
    observer.on_plan(benchmark.plan())

    # Make the cells that are missing or stale.
    sweep(run)
    stale = drop_stale(run, [step])
    if step.todo():
        benchmark.settings.records()
        if engine.models_run_here:
            open_device(benchmark.settings.device)
        engine.run(run, [step], observer)
    if missing := missing_cells([step]):
        raise IncompleteError(f"{run.root}: cells are still missing ({missing}); run the same command again")
    sweep(run)

    # Add up the cells.
    rows = [row for part in range(step.parts) for row in step.output.read(part)]
    sums = add_up(rows, classes=len(dataset.classes))
    rejected = tuple((row.image_id, row.rejection) for row in rows if row.rejection is not None)
    return BenchmarkResult(len(rows), sums, rejected, stale.get(step.name, 0))


def open_counting(dataset: SemanticSet, settings: Segmenter, *, oracle: bool) -> CountImages:
    """Load the models; returns the function from images of the set to their rows, in order.

    An image is rejected when it or its label map cannot be read, or when their sizes differ. Raises InputError for
    label maps that are not of this set.
    """
    opener = open_cases if oracle else _open_as_set
    segment_cases = opener(settings, classes=dataset.classes)

    def count_batch(
        images: Sequence[AnnotatedImage], decoded: Sequence[DecodedImage | Rejection]
    ) -> Iterator[EvaluatedRow]:
        pairs = [_with_labels(image, picture, dataset=dataset) for image, picture in zip(images, decoded, strict=True)]
        good = [(image.image_id, *pair) for image, pair in zip(images, pairs, strict=True) if isinstance(pair, tuple)]
        ids, rgb, annotations = zip(*good, strict=True) if good else ((), (), ())
        maps = iter(segment_cases(rgb, annotations, image_ids=ids) if good else ())
        for image, pair in zip(images, pairs, strict=True):
            answer = pair if isinstance(pair, Rejection) else next(maps)
            if isinstance(answer, Rejection):
                yield EvaluatedRow(image.image_id, (), answer)
                continue
            assert isinstance(pair, tuple)  # or there would be no maps
            counted = (
                count_map(labels_HW, gt_HW=pair[1], classes=len(dataset.classes), case=case)
                for case, labels_HW in answer.items()
            )
            yield EvaluatedRow(image.image_id, tuple(counted), None)

    def count(images: Sequence[AnnotatedImage], tick: Tick) -> list[EvaluatedRow]:
        rows: dict[int, EvaluatedRow] = {}
        for batch, decoded in decode_batches([image.image for image in images], settings=settings):
            rows.update(zip(batch, count_batch([images[i] for i in batch], decoded), strict=True))
            tick(len(batch))
        return [rows[i] for i in range(len(images))]

    return count


def read_label_map(path: str) -> np.ndarray[tuple[int, int], np.dtype[np.int32]] | Rejection:
    """The numbers of a label map, [H, W]: PNG or TIFF with one channel of 8 or 16 bits, or with a palette.

    Raises InputError for a colour image, which is no label map.
    """
    stored = Decoding().read_stored(path, max_pixels=_MAX_MAP_PIXELS)
    if isinstance(stored, Rejection):
        if stored.reason == "missing_file":
            return stored
        other = stored.detail.startswith("not a picture")
        return Rejection(stored.reason, f"label map: {_OTHER_FORMAT if other else stored.detail}")
    if stored.format not in ("PNG", "TIFF"):
        return Rejection("decode_error", f"label map: {_OTHER_FORMAT}")
    if stored.mode not in _LABEL_MODES:
        raise InputError(f"{path}: is in colour ({stored.mode}), not a map of labels; prepare the set first")
    return stored.pixels.astype(np.int32)


def _open_as_set(settings: Segmenter, *, classes: Sequence[str]) -> SegmentCases:
    segment, mapping = settings.open(), ClassMapping.of(classes)

    def segment_as_set(
        images: Sequence[Rgb], annotations: Sequence[Labels], *, image_ids: Sequence[str]
    ) -> list[CaseMaps | Rejection]:
        maps = segment(images, classes=mapping.segmenter_classes, image_ids=image_ids)
        return [one if isinstance(one, Rejection) else {AS_SET: mapping.to_set_labels(one.labels_HW)} for one in maps]

    return segment_as_set


def _with_labels(
    image: AnnotatedImage, decoded: DecodedImage | Rejection, *, dataset: SemanticSet
) -> tuple[Rgb, Labels] | Rejection:
    """The pixels of an image and its annotation."""
    if isinstance(decoded, Rejection):
        return decoded
    stored_HW = read_label_map(image.labels)
    if isinstance(stored_HW, Rejection):
        return stored_HW
    if stored_HW.shape != decoded.rgb_HW3.shape[:2]:
        sizes = [" × ".join(map(str, shape[:2])) for shape in (decoded.rgb_HW3.shape, stored_HW.shape)]
        return Rejection("image_changed", f"the picture is {sizes[0]} pixels, its label map {sizes[1]}")
    labels_HW = as_labels(stored_HW, classes=len(dataset.classes), ignore=dataset.ignore, path=image.labels)
    return decoded.rgb_HW3, labels_HW


def _base(path: str) -> str:
    return posixpath.basename(path.replace("\\", "/"))
