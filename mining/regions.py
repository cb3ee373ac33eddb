"""Regions: what could be named in each picture, and what CLIP sees there. No caption is read.

Shapes: N regions of an image; H, W height and width of its picture in pixels. A size is `(height_px, width_px)`.

  sizes from headers ─▶ batches of one size ─▶ pictures, decoded one batch ahead
                                                   └▶ proposals ─▶ keep ─▶ run lengths, CLIP embeddings ─▶ rows
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Annotated, Protocol

from pydantic import Field

from mining.crops import Crop
from mining.decoder import Decoding
from mining.devices import fix_threads, open_device
from mining.embeddings import embed_regions, pack
from mining.images import Picture
from mining.models.clip import Clip, ImageTower
from mining.models.detectron2 import Detectron2
from mining.models.ground_truth import GroundTruth
from mining.models.maskformer import MaskFormer
from mining.models.open_maskformer import OpenMaskFormer
from mining.models.sam import Sam
from mining.proposals import Keep, LoadedImage, Proposals, Proposer, keep_proposals
from schemas.mask import Mask
from schemas.models import ModelRecord
from schemas.rows import ImageRow, Region, RegionsRow, Rejection
from schemas.settings import Settings

if TYPE_CHECKING:
    import torch

# The kept masks of a batch are in memory together: 100 of each picture are 800 MB at this limit.
_MAX_BATCH_PX = 8_000_000
_MAX_ENCODED_PX = 32_000_000


AnyProposals = Annotated[MaskFormer | OpenMaskFormer | Sam | Detectron2 | GroundTruth, Field(discriminator="kind")]
"""Whatever can propose masks."""


class FindRegions(Protocol):
    """What `Regions.open()` returns: the images of a part to their rows, in order; `tick` counts finished images."""

    def __call__(self, images: Sequence[ImageRow], *, tick: Callable[[int], None] = ...) -> list[RegionsRow]: ...


class Regions(Settings):
    """Which regions are proposed, which are kept, and how CLIP looks at them; `clip: null` leaves CLIP out.

    `batch_size`: pictures of one size that the proposer sees at once. `device`: `auto`, `cpu`, `cuda` or `cuda:N`.
    `max_image_pixels`: larger pictures are rejected before they are decoded. `decode_threads`: so many pictures are
    decoded at once while the model works, each in a process of its own; `decoding`: the limits of these processes.
    `cpu_threads`: threads of the models on a CPU; the last bits depend on it.
    """

    proposals: AnyProposals
    keep: Keep = Keep()
    clip: Clip | None
    crop: Crop = Crop()
    batch_size: int = Field(default=8, ge=1)
    device: str = "auto"
    max_image_pixels: int = Field(default=50_000_000, ge=1)
    decode_threads: int = Field(default=2, ge=1)
    decoding: Decoding = Decoding()
    cpu_threads: int = Field(default=2, ge=1)

    def open(self) -> FindRegions:
        """Load the models; returns the function from images to rows. Raises InputError when they cannot be had."""
        device = open_device(self.device)
        fix_threads(self.device, cpu_threads=self.cpu_threads)
        tower = self.clip.open_image(device=self.device) if self.clip else None
        find_batch = partial(
            _find_batch,
            propose=self.proposals.open(device=self.device),
            keep=self.keep,
            tower=tower,
            crop=self.crop,
            device=device,
        )

        def find(images: Sequence[ImageRow], *, tick: Callable[[int], None] = lambda _: None) -> list[RegionsRow]:
            rows: dict[int, RegionsRow] = {}
            paths = [image.path for image in images]
            read = partial(self.decoding.read, max_pixels=self.max_image_pixels)
            with ThreadPoolExecutor(self.decode_threads) as pool:
                sizes = list(pool.map(partial(self.decoding.size, max_pixels=self.max_image_pixels), paths))
                batches = plan_batches(sizes, batch_size=self.batch_size)
                for batch, pictures in read_ahead(paths, batches, read=read, pool=pool):
                    rows.update(zip(batch, find_batch([images[i].image_id for i in batch], pictures), strict=True))
                    del pictures  # or they would stay while the batch after the next is decoded
                    tick(len(batch))
            return [rows[i] for i in range(len(images))]

        return find

    def records(self) -> list[ModelRecord]:
        """The models that make the regions. Raises InputError for settings that name nothing."""
        return [self.proposals.record(), *([self.clip.record()] if self.clip else [])]


def plan_batches(sizes: Sequence[tuple[int, int] | Rejection], *, batch_size: int) -> list[list[int]]:
    """The numbers of a part's images in batches of one size, which follow from the part alone.

    Images go by size, then by their place in the part, so that a run cut short or on another machine has the same
    batches: models round differently in another company. Those without a size, which will be rejected, come first.
    """
    known = [(0, 0) if isinstance(size_px, Rejection) else size_px for size_px in sizes]
    batches = []
    for (height_px, width_px), group in groupby(sorted(range(len(known)), key=known.__getitem__), known.__getitem__):
        members = list(group)
        at_once = max(1, min(batch_size, _MAX_BATCH_PX // max(1, height_px * width_px)))
        batches += [members[start : start + at_once] for start in range(0, len(members), at_once)]
    return batches


def read_ahead(
    paths: Sequence[str | None],
    batches: Sequence[list[int]],
    *,
    read: Callable[[str | None], Picture | Rejection],
    pool: ThreadPoolExecutor,
) -> Iterator[tuple[list[int], list[Picture | Rejection]]]:
    """Batches with their pictures; the next one is decoded while this one is used, so two are in memory at most."""
    reading = [[pool.submit(read, paths[i]) for i in batch] for batch in batches[:1]]
    for number, batch in enumerate(batches):
        reading += [[pool.submit(read, paths[i]) for i in after] for after in batches[number + 1 : number + 2]]
        yield batch, [future.result() for future in reading.pop(0)]


@dataclass(frozen=True, slots=True)
class _Found:
    """The proposals that were kept of a picture, and how many there were."""

    image: LoadedImage
    kept: Proposals
    proposed: int


def _find_batch(
    image_ids: Sequence[str],
    pictures: Sequence[Picture | Rejection],
    *,
    propose: Proposer,
    keep: Keep,
    tower: ImageTower | None,
    crop: Crop,
    device: torch.device,
) -> list[RegionsRow]:
    """The rows of a batch, in order."""
    found: dict[int, _Found | Rejection] = {}
    # A header may promise another size than the pixels have, so the sizes are sorted out once more.
    for members in _of_one_size(pictures):
        loaded = [_load(image_ids[i], picture, device=device) for i, picture in members]
        for (i, _), image, answer in zip(members, loaded, propose(loaded, min_score=keep.min_score), strict=True):
            if isinstance(answer, Rejection):
                found[i] = answer
            else:
                found[i] = _Found(image, keep_proposals(answer, keep=keep), proposed=len(answer))
    embeddings = _embed({i: one for i, one in found.items() if isinstance(one, _Found)}, tower=tower, crop=crop)
    return [
        RegionsRow(image_id, None, 0, 0, (), picture)
        if isinstance(picture, Rejection)
        else _as_row(image_id, picture, found[i], embeddings.get(i))
        for i, (image_id, picture) in enumerate(zip(image_ids, pictures, strict=True))
    ]


def _of_one_size(pictures: Sequence[Picture | Rejection]) -> list[list[tuple[int, Picture]]]:
    """The pictures with their numbers, those of one size together."""
    groups: dict[tuple[int, ...], list[tuple[int, Picture]]] = {}
    for i, picture in enumerate(pictures):
        if not isinstance(picture, Rejection):
            groups.setdefault(picture.rgb_HW3.shape, []).append((i, picture))
    return list(groups.values())


def _load(image_id: str, picture: Picture, *, device: torch.device) -> LoadedImage:
    import torch

    rgb_3HW = torch.from_numpy(picture.rgb_HW3).to(device).permute(2, 0, 1).contiguous()
    return LoadedImage(image_id, rgb_3HW, picture.orientation)


def _embed(found: dict[int, _Found], *, tower: ImageTower | None, crop: Crop) -> dict[int, list[bytes]]:
    """The embeddings of every picture's regions, by its number; regions of all pictures share CLIP's batches."""
    if tower is None:
        return {}
    arrays = embed_regions(
        [one.image.rgb_3HW for one in found.values()],
        [one.kept.masks_NHW for one in found.values()],
        tower=tower,
        crop=crop,
    )
    return {i: [pack(vector_D) for vector_D in array_ND] for i, array_ND in zip(found, arrays, strict=True)}


def _as_row(
    image_id: str, picture: Picture, found: _Found | Rejection, embeddings: Sequence[bytes] | None
) -> RegionsRow:
    height_px, width_px = picture.rgb_HW3.shape[:2]
    if isinstance(found, _Found) and not len(found.kept):
        found = Rejection("no_masks", f"0 of {found.proposed} proposals kept")
    if isinstance(found, Rejection):
        return RegionsRow(image_id, picture.sha256, height_px, width_px, (), found)
    kept = found.kept
    packed: Sequence[bytes | None] = embeddings or [None] * len(kept)
    columns = zip(_encode(kept.masks_NHW), kept.scores_N.tolist(), kept.labels, packed, strict=True)
    regions = tuple(
        Region(mask, mask.box_xyxy, mask.area_px, score, label, embedding) for mask, score, label, embedding in columns
    )
    return RegionsRow(image_id, picture.sha256, height_px, width_px, regions, None)


def _encode(masks_NHW: torch.Tensor) -> list[Mask]:
    """Masks as run lengths. These run down the columns, an order that a GPU makes for nothing before the copy."""
    import torch

    step = max(1, _MAX_ENCODED_PX // masks_NHW[0].numel())
    masks = []
    for start in range(0, len(masks_NHW), step):
        columns_NWH = masks_NHW[start : start + step].view(torch.uint8).transpose(1, 2).contiguous()
        masks += Mask.from_arrays(columns_NWH.cpu().numpy().transpose(0, 2, 1))
    return masks
