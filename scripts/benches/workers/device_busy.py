"""How busy the regions keep a device, with a stand-in for it: a proposer and a CLIP that wait as long as a GPU takes.

All else is real: files, decoding processes, kept masks, the places where they change, run lengths, rows and cells.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from PIL import Image

from maskmine.mining.models import embeddings
from maskmine.mining.models.clip import ImageTower
from maskmine.mining.proposers.ground_truth import GroundTruth
from maskmine.mining.proposers.proposals import Keep, LoadedImage, Proposals
from maskmine.mining.regions import Regions
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.pipelines.run_folder.region_cells import embeddings_cells, proposals_cells
from maskmine.pipelines.steps.regions_jobs import IMAGES_AT_ONCE, write_both
from maskmine.schemas.rows import ImageRow
from maskmine.scripts.benches.fixtures import drawn_photos
from maskmine.scripts.benches.workers.local_workers import two_cores
from maskmine.scripts.measures import Measure, at_least, at_most, peak_bytes, restart_peak_bytes

_BATCH, _CROPS = 8, 256  # images and crops that a GPU takes at once
_PROPOSE_S, _EMBED_S = 0.150, 0.120  # of a GPU for a batch of images, and of crops
_SLOW = 8  # images a second, beside which two cores can cut the crops as well
_MASKS, _DIM, _SIZE_PX = 30, 768, 224  # kept masks of an image; CLIP ViT-L/14
_DECODERS = 4
_IMAGES, _SLOW_IMAGES = 1000, 400
_GOAL = 95.0
_RUN_LENGTH_BYTES = 1000  # of a mask of _discs, with its place in a row


@dataclass
class _Standin:
    """A device with two streams, and when each of them was busy."""

    propose_s: float
    embed_s: float
    proposing: list[tuple[float, float]] = field(default_factory=list)
    embedding: list[tuple[float, float]] = field(default_factory=list)

    def propose(self, images: Sequence[LoadedImage], *, min_score: float) -> Iterator[Proposals]:
        """Discs of many sizes for each image, after the time that a batch takes."""
        self._wait(self.propose_s * len(images) / _BATCH, self.proposing)
        return (
            Proposals(_discs(*image.rgb_3HW.shape[1:]), torch.linspace(0.9, 0.5, _MASKS), (None,) * _MASKS)
            for image in images
        )

    def embed(self, pixels_N3SS: torch.Tensor) -> torch.Tensor:
        """Unit vectors, after the time that so many crops take."""
        self._wait(self.embed_s * len(pixels_N3SS) / _CROPS, self.embedding)
        return torch.full((len(pixels_N3SS), _DIM), _DIM**-0.5)

    def _wait(self, seconds: float, stream: list[tuple[float, float]]) -> None:
        start = time.perf_counter()
        time.sleep(seconds)
        stream.append((start, time.perf_counter()))

    def first_s(self) -> float:
        """When it first had work."""
        return min(start for start, _ in self.proposing + self.embedding)

    def last_s(self) -> float:
        """When its last work was done."""
        return max(end for _, end in self.proposing + self.embedding)

    def busy_s(self) -> float:
        """Seconds in which either stream was at work."""
        spans = sorted(self.proposing + self.embedding)
        ends = np.maximum.accumulate([end for _, end in spans])
        gaps = [max(0.0, start - end) for end, (start, _) in zip(ends, spans[1:], strict=False)]
        return float(ends[-1] - spans[0][0] - sum(gaps))


class _Part(NamedTuple):
    """When a part was begun and ended, and the most memory that it took in between."""

    begun_s: float
    ended_s: float
    memory_bytes: int


def bench_device_busy(photos: Sequence[Path]) -> Iterator[Measure]:
    """A part of 1,000 images with the times of a GPU, where crops are cut on it as well, against one stage after the
    other; and a stand-in of 8 images a second, beside which two cores cut the crops, with
    what its part's beginning and end cost. Four processes decode."""
    two_cores()
    with tempfile.TemporaryDirectory() as scratch:
        paths = [str(path) for path in photos] or [str(path) for path in drawn_photos(Path(scratch))]
        rates = {}
        for overlap, images in ((True, _IMAGES), (False, _IMAGES // 4)):
            device = _Standin(_PROPOSE_S, _EMBED_S)
            with mock.patch.object(embeddings, "cut_regions", _cut_nothing):
                begun, ended, _ = _find_and_write(paths, device, images=images, overlap=overlap, folder=scratch)
            seconds = ended - begun
            rates[overlap] = images / seconds
            if overlap:
                yield at_least("device busy, crops cut on it", 100 * device.busy_s() / seconds, "%", _GOAL)
        yield Measure("images a second", rates[True], "images/s")
        yield Measure("one stage after the other", rates[False], "images/s")
        yield Measure("stages that overlap", rates[True] / rates[False], "× as fast")
        yield Measure("the slower stream alone", _BATCH / _PROPOSE_S, "images/s")
        device = _Standin(_BATCH / _SLOW, _BATCH / _SLOW * _EMBED_S / _PROPOSE_S)
        begun, ended, memory_bytes = _find_and_write(paths, device, images=_SLOW_IMAGES, overlap=True, folder=scratch)
        busy = 100 * device.busy_s() / (ended - begun)
        yield at_least(f"device of {_SLOW} images/s busy", busy, "%", _GOAL)
        yield Measure("before its first batch", device.first_s() - begun, "s")
        yield Measure(f"after its last batch, of {_SLOW_IMAGES} images", ended - device.last_s(), "s")
        yield at_most("peak memory of that part", memory_bytes / 2**20, "MiB", _bound_bytes(paths[0]) / 2**20)


def _bound_bytes(path: str) -> float:
    """What a part may take beside the models, see `Regions.batch_size`: pixels of four batches, masks of two, CLIP's
    crops twice and as much while they are cut, and the rows of a window twice, as tables and in what is written."""
    with Image.open(path) as photo:
        pixels = photo.width * photo.height
    images, masks = 4 * _BATCH * 3 * pixels, 2 * _BATCH * _MASKS * pixels
    crops = 3 * _CROPS * 3 * 4 * _SIZE_PX**2
    rows = min(_SLOW_IMAGES, IMAGES_AT_ONCE) * _MASKS * (4 * _DIM + _RUN_LENGTH_BYTES)
    return images + masks + crops + 2 * rows


def _find_and_write(paths: Sequence[str], device: _Standin, *, images: int, overlap: bool, folder: str) -> _Part:
    """From the first header of a part's images to its cells on the disk."""
    regions = Regions(
        proposals=GroundTruth(kind="ground_truth", annotations="none.json"),  # not opened
        keep=Keep(max_iou=1.0, top=_MASKS, min_score=0.0, min_area_px=1),
        clip=None,
        device="cpu",
        batch_size=_BATCH,
        decode_threads=_DECODERS,
    )
    tower = ImageTower(
        size_px=_SIZE_PX,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        dim=_DIM,
        batch_size=_CROPS,
        device=torch.device("cpu"),
        embed=device.embed,
    )
    find = regions.open_with(device.propose, tower, device=torch.device("cpu"), overlap=overlap)
    rows = [ImageRow(f"image{number}", paths[number % len(paths)]) for number in range(images)]
    find(rows[: 2 * _BATCH])  # processes that decode start
    device.proposing.clear()
    device.embedding.clear()
    run = RunFolder(folder)
    cells = proposals_cells(run, "0" * 64), embeddings_cells(run, "0" * 64)
    before_bytes = restart_peak_bytes()
    begun = time.perf_counter()
    write_both(find.tables(rows), *cells, 0, start_s=time.monotonic(), embedded_s=())
    return _Part(begun, time.perf_counter(), peak_bytes() - before_bytes)


@cache
def _discs(height_px: int, width_px: int) -> torch.Tensor:
    """Masks of many sizes, bool [N, H, W], as outlines of objects are: short beside their areas."""
    random = np.random.default_rng(0)
    centres, radii = random.uniform(0.1, 0.9, (_MASKS, 2)), random.uniform(0.03, 0.3, _MASKS)
    y_H1, x_1W = np.ogrid[: 1 : height_px * 1j, : 1 : width_px * 1j]
    discs = [(y_H1 - y) ** 2 + (x_1W - x) ** 2 < radius**2 for (y, x), radius in zip(centres, radii, strict=True)]
    return torch.from_numpy(np.stack(discs))


def _cut_nothing(images: Sequence[torch.Tensor], masks: Sequence[torch.Tensor], **_: Any) -> torch.Tensor:
    return torch.empty(sum(map(len, masks)), 0)
