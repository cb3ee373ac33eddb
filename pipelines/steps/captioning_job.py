"""The job of a captioner: the captions that a model writes for the images of a part."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial

from maskmine.mining.captioners.answers import CaptionImages, Journal
from maskmine.mining.captioners.endpoint import Endpoint
from maskmine.mining.captioners.kinds import AnyCaptioner
from maskmine.mining.images.decode import DecodedImage
from maskmine.mining.regions import Regions
from maskmine.mining.storage.urls import require_aiohttp
from maskmine.pipelines.run_folder.cells import Cells
from maskmine.pipelines.steps.cells_of_run import RunCells
from maskmine.pipelines.steps.jobs import Counts, MakeCell, PartReport, Tick, with_gpu_use
from maskmine.schemas.rows import CaptioningRow, ImageRow, Rejection


@dataclass(frozen=True)
class CaptioningJob:
    """images → captions by a model.

    What a server answered is in files of its own until the cell is whole, so that a run that goes on asks for the rest
    alone.
    """

    inputs = ()
    cells: RunCells
    output: Cells[CaptioningRow]
    settings: AnyCaptioner
    regions: Regions

    @property
    def device(self) -> str | None:
        return None if isinstance(self.settings, Endpoint) else self.regions.device

    @property
    def one_worker(self) -> bool:
        """Whether one worker makes all parts: what a server can take is counted by whoever asks it."""
        return isinstance(self.settings, Endpoint)

    def require_key(self) -> None:
        """Raises InputError where a server's key, or the library that asks it, is not here."""
        if isinstance(self.settings, Endpoint):
            require_aiohttp()
            self.settings.require_key()

    def open(self) -> MakeCell:
        caption = self._open_captioner()

        def make(part: int, tick: Tick) -> PartReport:
            start_s, counts = time.monotonic(), Counts()
            known = {row.image_id: row for row in self.output.read_answers(part)}
            journal = Journal(known, partial(self.output.write_answers, part))
            rows = caption(self.cells.images.read(part), journal=journal, tick=tick)
            self.output.write(part, counts.of(rows, lambda row: len(row.captions)))
            self.output.drop_answers(part)
            return counts.report(self.output.step, part, start_s=start_s)

        return make if self.device is None else with_gpu_use(make, device=self.device)

    def _open_captioner(self) -> CaptionImages:
        regions = self.regions
        if isinstance(self.settings, Endpoint):
            self.require_key()
            return self.settings.open(self._decode, threads=regions.decode_threads)
        return self.settings.open(
            self._decode, threads=regions.decode_threads, device=regions.device, cpu_threads=regions.cpu_threads
        )

    def _decode(self, image: ImageRow) -> DecodedImage | Rejection:
        return self.regions.decoding.read(image.path, max_pixels=self.regions.max_image_pixels)


@dataclass(frozen=True)
class UnaskedJob:
    """What stands in for `CaptioningJob` in estimates: it asks nobody, and no image gets a caption."""

    device = None
    inputs = ()
    cells: RunCells
    output: Cells[CaptioningRow]

    def open(self) -> MakeCell:
        def make(part: int, tick: Tick) -> PartReport:
            counts = Counts()
            rows = [CaptioningRow(image.image_id, None, ()) for image in self.cells.images.read(part)]
            self.output.write(part, counts.of(rows, lambda row: 0))
            tick(len(rows))
            return counts.report(self.output.step, part, start_s=time.monotonic())

        return make
