"""Regions: what could be named in each image, and what CLIP sees there. No caption is read.

Shapes: N regions of an image; H, W height and width of its image in pixels. A size is `(height_px, width_px)`.

  sizes from headers ─▶ batches of one size ─▶ images, decoded one batch ahead
                                                   └▶ proposals ─▶ keep ─▶ run lengths, CLIP embeddings ─▶ rows

Another CLIP looks at the same regions (`open_embedding`): the same batches, and the masks out of their run lengths.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import numpy as np
from pydantic import Field

from maskmine.mining.images.batches import decode_batches
from maskmine.mining.images.child_decoder import Decoding
from maskmine.mining.images.crops import Crop, PictureCrop
from maskmine.mining.images.decode import DecodedImage
from maskmine.mining.models.clip import ImageTower, RegionClip
from maskmine.mining.models.devices import DeviceKind, fix_threads, kind_of, open_device
from maskmine.mining.models.pretrained import HasWeights
from maskmine.mining.proposers.detectron2 import Detectron2
from maskmine.mining.proposers.eomt import Eomt
from maskmine.mining.proposers.ground_truth import GroundTruth
from maskmine.mining.proposers.maskformer import MaskFormer
from maskmine.mining.proposers.open_vocabulary import OpenMaskFormer
from maskmine.mining.proposers.proposals import Keep, Proposer
from maskmine.mining.proposers.rf_detr import RfDetr
from maskmine.mining.proposers.sam import Sam
from maskmine.mining.region_stages import (
    Decoded,
    FindBatches,
    RegionTables,
    embed_images,
    load,
    open_stages,
    to_tables,
)
from maskmine.mining.storage.prefetch import map_in_order
from maskmine.schemas.errors import InputError
from maskmine.schemas.manifest import ModelRecord
from maskmine.schemas.rows import EmbeddingsRow, ImageRow, ProposalsRow, RegionsRow, Rejection
from maskmine.schemas.settings import ExecutionOnly, LastBits, Settings

if TYPE_CHECKING:
    import torch

OTHER_PICTURE = Rejection("image_changed", "the file is not the one that its masks were made from")


AnyProposals = Annotated[
    MaskFormer | OpenMaskFormer | Eomt | RfDetr | Sam | Detectron2 | GroundTruth, Field(discriminator="kind")
]
"""Whatever can propose masks."""


@dataclass(frozen=True)
class FindRegions:
    """What `Regions.open()` returns: the images of a part to what is found in them, in order.

    `tick` counts finished images.
    """

    find_batches: FindBatches
    batches: Callable[[Sequence[ImageRow]], Generator[Decoded, None, None]]
    overlap: bool
    embeds: bool

    def __call__(self, images: Sequence[ImageRow], *, tick: Callable[[int], None] = lambda _: None) -> list[RegionsRow]:
        """The rows."""
        rows: dict[int, RegionsRow] = {}
        with closing(self.batches(images)) as batches, closing(self.find_batches(images, batches)) as batches_of_rows:
            for numbers, found in batches_of_rows:
                rows.update(zip(numbers, found, strict=True))
                tick(len(numbers))
        return [rows[i] for i in range(len(images))]

    def tables(self, images: Sequence[ImageRow], *, tick: Callable[[int], None] = lambda _: None) -> list[RegionTables]:
        """The rows as tables of one row each. Where stages overlap, those of a batch are made while models see the
        next ones, so that a device does not wait for them at the end of a part."""

        def make(found: tuple[list[int], list[RegionsRow]]) -> tuple[list[int], list[RegionTables]]:
            numbers, rows = found
            return numbers, to_tables(rows, embedded=self.embeds)

        tables: dict[int, RegionTables] = {}
        with (
            closing(self.batches(images)) as batches,
            closing(self.find_batches(images, batches)) as found,
            closing(map_in_order(make, found, threads=1 if self.overlap else 0, ahead=1)) as made,
        ):
            for numbers, of_batch in made:
                tables.update(zip(numbers, of_batch, strict=True))
                tick(len(numbers))
        return [tables[i] for i in range(len(images))]


class EmbedRegions(Protocol):
    """What `Regions.open_embedding()` returns: the images of a part and their proposals to embeddings, in order.

    `tick` counts finished images.
    """

    def __call__(
        self, images: Sequence[ImageRow], proposals: Sequence[ProposalsRow], *, tick: Callable[[int], None] = ...
    ) -> list[EmbeddingsRow]: ...


class Regions(Settings):
    """Which regions are proposed, which are kept, and how CLIP sees them.

    `batch_size`, `device` and `cpu_threads` say how the work is done. Results agree within rounding, which is not to
    the bit; where models run on the device they therefore belong to what regions are made by.
    """

    proposals: AnyProposals
    """What proposes masks; `kind` chooses the model."""
    keep: Keep = Keep()
    """Which proposals become regions."""
    clip: RegionClip | None
    """The CLIP that embeds regions and nouns; null leaves CLIP out, for `pairs.rule: labels`."""
    crop: PictureCrop = PictureCrop()
    """What CLIP sees of a region."""
    batch_size: Annotated[int, LastBits(), Field(ge=1)] = 8
    """Images of one size that the proposer sees at once: more is faster on a GPU and needs more memory. Results agree
    within rounding; on a CPU images go one by one. At most in memory are the pixels of four batches, on a GPU the masks
    of two and twice `clip.batch_size` crops, and the regions of 1,000 images; a batch has 8 million pixels, or one
    image."""
    device: Annotated[str, LastBits()] = "auto"
    """`auto` (the device that the run began on; at first a GPU where there is one), `cpu`, `cuda` or `cuda:N`. Results
    agree within rounding."""
    max_image_pixels: int = Field(default=50_000_000, ge=1)
    """Larger images are rejected before they are decoded."""
    decode_threads: Annotated[int, ExecutionOnly(), Field(ge=1)] = 2
    """Images that are decoded at the same time while the model works, each in a process of its own."""
    decoding: Annotated[Decoding, ExecutionOnly()] = Decoding()
    """Limits of the decoding processes."""
    cpu_threads: Annotated[int, LastBits(hash_default=True), Field(ge=1)] = 2
    """Threads of the models on a CPU. Results agree within rounding."""

    def open(self, *, embed: bool = True, embedded: Callable[[float], None] = lambda seconds: None) -> FindRegions:
        """Load the models; returns the function from images to rows. Raises InputError when they cannot be had.

        CLIP is left out without `embed`. `embedded` is told the seconds that each batch's embeddings took.
        """
        device = open_device(self.device)
        fix_threads(self.device, cpu_threads=self.cpu_threads)
        tower = self.clip.open_image(device=self.device) if self.clip and embed else None
        propose = self.proposals.open(device=self.device)
        return self.open_with(propose, tower, device=device, overlap=device.type == "cuda", embedded=embedded)

    def open_with(
        self,
        propose: Proposer,
        tower: ImageTower | None,
        *,
        device: torch.device,
        overlap: bool,
        embedded: Callable[[float], None] = lambda seconds: None,
    ) -> FindRegions:
        """As `open`, with models that are loaded, and images and masks on `device`; `overlap` as in `open_stages`."""
        find_batches = open_stages(
            propose, tower, keep=self.keep, crop=self.crop, device=device, overlap=overlap, embedded=embedded
        )
        return FindRegions(find_batches, self._batches, overlap, embeds=tower is not None)

    def open_embedding(self) -> EmbedRegions:
        """Load CLIP alone; returns the function from images and their proposals to embeddings: to the last bit those
        that `open` finds together with the proposals.

        Raises InputError when CLIP cannot be had.
        """
        if self.clip is None:
            raise InputError("regions.clip: null, and regions are embedded by CLIP; set it")
        device = open_device(self.device)
        fix_threads(self.device, cpu_threads=self.cpu_threads)
        tower = self.clip.open_image(device=self.device)

        def embed(
            images: Sequence[ImageRow],
            proposals: Sequence[ProposalsRow],
            *,
            tick: Callable[[int], None] = lambda _: None,
        ) -> list[EmbeddingsRow]:
            rows: dict[int, EmbeddingsRow] = {}
            without = {i for i, row in enumerate(proposals) if not row.regions}
            for batch, pictures in self._batches(images, leave_out=without):
                found = _embed_batch(
                    [images[i] for i in batch],
                    [proposals[i] for i in batch],
                    pictures,
                    tower=tower,
                    crop=self.crop,
                    device=device,
                )
                rows.update(zip(batch, found, strict=True))
                del pictures
                tick(len(batch))
            return [rows[i] for i in range(len(images))]

        return embed

    def _batches(
        self, images: Sequence[ImageRow], *, leave_out: Collection[int] = ()
    ) -> Generator[Decoded, None, None]:
        return decode_batches(
            [image.path for image in images],
            decoding=self.decoding,
            max_pixels=self.max_image_pixels,
            threads=self.decode_threads,
            batch_size=self.batch_size,
            leave_out=leave_out,
        )

    @property
    def runs_models(self) -> bool:
        """Whether anything here runs on a device; annotated masks without CLIP do not."""
        return self.clip is not None or self.proposals.kind != "ground_truth"

    def contents(self) -> dict[str, Any]:
        """What of the way in which the work is done decides the last bits: nothing where no model runs."""
        proposes = self.proposals.kind != "ground_truth"
        kind = kind_of(self.device) if self.runs_models else None
        return {
            "device": kind,
            "batch_size": self.batch_size if proposes and kind == "cuda" else None,
            "cpu_threads": self.cpu_threads if kind == "cpu" else None,
        }

    def settled(self, kind: DeviceKind) -> Regions:
        """The same on a kind of device, with whatever `auto` leaves open decided, so that workers cannot differ."""
        device = kind if self.device == "auto" else self.device
        clip = self.clip.settled(kind) if self.clip is not None else None
        return self.model_copy(update={"device": device, "clip": clip, "proposals": self.proposals.settled(kind)})

    def fetch(self) -> None:
        """Fetch models of the hub that are not on this machine. Raises InputError when they cannot be had."""
        self.proposals.fetch()
        if self.clip is not None:
            self.clip.fetch()

    def weights_bytes(self) -> int:
        """The size of the weights of proposer and CLIP; 0 for those that are not on this machine."""
        return sum(model.weights_bytes() for model in (self.proposals, self.clip) if isinstance(model, HasWeights))

    def records(self) -> list[ModelRecord]:
        """The models that make the regions. Raises InputError for settings that name nothing."""
        return [self.proposals.record(), *([self.clip.record()] if self.clip else [])]


def _embed_batch(
    images: Sequence[ImageRow],
    proposals: Sequence[ProposalsRow],
    pictures: Sequence[DecodedImage | Rejection],
    *,
    tower: ImageTower,
    crop: Crop,
    device: torch.device,
) -> list[EmbeddingsRow]:
    """The embeddings of a batch whose regions are known, in order; a picture that is not theirs is rejected."""
    import torch

    checked = [
        OTHER_PICTURE if isinstance(picture, DecodedImage) and picture.sha256 != row.sha256 else picture
        for picture, row in zip(pictures, proposals, strict=True)
    ]
    regions = {}
    for i, picture in enumerate(checked):
        if isinstance(picture, Rejection):
            continue
        masks_NHW = torch.from_numpy(np.stack([region.mask.to_array() for region in proposals[i].regions]))
        regions[i] = (load(images[i], picture, device=device), masks_NHW.bool().to(device))
    embeddings = embed_images(regions, tower=tower, crop=crop)
    return [
        EmbeddingsRow(row.image_id, (), picture)
        if isinstance(picture, Rejection) and row.regions
        else EmbeddingsRow(row.image_id, tuple(embeddings.get(i, ())))
        for i, (row, picture) in enumerate(zip(proposals, checked, strict=True))
    ]
