"""The stages that a batch of images passes on its way to regions, one after the other or each in a thread of its own.

Shapes: N regions of an image; H, W height and width of its image in pixels.

  batch, decoded ─▶ proposals, kept ─▶ CLIP embeddings, and where masks change ─▶ run lengths, rows ─▶ tables
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar

import pyarrow as pa

from maskmine.mining.images.crops import Crop
from maskmine.mining.images.decode import DecodedImage
from maskmine.mining.models.clip import ImageTower
from maskmine.mining.models.embeddings import embed_regions, pack
from maskmine.mining.proposers.proposals import (
    Keep,
    LoadedImage,
    Proposals,
    Proposer,
    find_changes,
    keep_proposals,
    run_lengths,
)
from maskmine.mining.storage.locations import file_name_of
from maskmine.mining.storage.prefetch import map_in_order
from maskmine.schemas.mask import Mask
from maskmine.schemas.rows import EmbeddingsRow, ImageRow, ProposalsRow, Region, RegionsRow, Rejection
from maskmine.schemas.tables import to_table

if TYPE_CHECKING:
    import torch

Result = TypeVar("Result")
Decoded = tuple[list[int], list[DecodedImage | Rejection]]
"""The numbers of a batch's images in their part, and the images; see `decode_batches`."""


class RegionTables(NamedTuple):
    """An image's row of each of the two cells, as a table; None for `embeddings` where CLIP is left out."""

    proposals: pa.Table
    embeddings: pa.Table | None


class FindBatches(Protocol):
    """The rows of decoded batches of a part's images, batch by batch and in order, with the images' numbers."""

    def __call__(
        self, images: Sequence[ImageRow], batches: Iterable[Decoded]
    ) -> Iterator[tuple[list[int], list[RegionsRow]]]: ...


def open_stages(
    propose: Proposer,
    tower: ImageTower | None,
    *,
    keep: Keep,
    crop: Crop,
    device: torch.device,
    overlap: bool,
    embedded: Callable[[float], None] = lambda seconds: None,
) -> FindBatches:
    """A function from batches to rows. `embedded` is told the seconds that each batch's embeddings took.

    With `overlap` a batch is proposed for while regions of the one before it are embedded and those of the one before
    that are packed, each in a thread, so that a GPU does not wait for the host; masks of three batches at most are in
    memory then. On a CPU, which has no time to spare, one comes after the other. The rows are the same.
    """
    streams = [_stream(device) for _ in range(2)] if overlap else [nullcontext, nullcontext]
    stage = partial(map_in_order, threads=1 if overlap else 0, ahead=1)
    propose_batch = partial(_propose_batch, propose=propose, keep=keep, device=device, on=streams[0])
    embed_batch = partial(_embed_kept, tower=tower, crop=crop, on=streams[1], embedded=embedded, leave_masks=overlap)

    def find(images: Sequence[ImageRow], batches: Iterable[Decoded]) -> Iterator[tuple[list[int], list[RegionsRow]]]:
        def begin(decoded: Decoded) -> _Batch:
            numbers, pictures = decoded
            return _Batch(numbers, [images[i] for i in numbers], pictures)

        yield from stage(_rows_of, stage(embed_batch, stage(propose_batch, map(begin, batches))))

    return find


@dataclass(frozen=True, slots=True)
class _Kept:
    """The proposals of an image that were kept, and how many were proposed."""

    image: LoadedImage
    proposals: Proposals
    proposed: int


@dataclass(frozen=True, slots=True)
class _Packed:
    """What of an image's regions is left when models have seen them: `masks` makes their run lengths."""

    masks: Callable[[], list[Mask]]
    scores: list[float]
    labels: tuple[str | None, ...]
    left_out: tuple[str, ...]
    proposed: int
    embeddings: list[bytes] | None


@dataclass(frozen=True, slots=True)
class _Batch:
    """Images of one size with their numbers in the part; the pixels of those that are not rejected, until they are
    proposed for."""

    numbers: list[int]
    images: list[ImageRow]
    pictures: list[DecodedImage | Rejection]


@dataclass(frozen=True, slots=True)
class _Seen(Generic[Result]):
    """A batch after a stage: of each image what was found, and of those that were decoded their SHA-256 and size."""

    numbers: list[int]
    images: list[ImageRow]
    known: list[tuple[str, int, int] | None]
    results: list[Result | Rejection]


def _propose_batch(
    batch: _Batch, *, propose: Proposer, keep: Keep, device: torch.device, on: Callable[[], AbstractContextManager[Any]]
) -> _Seen[_Kept]:
    """The kept proposals of a batch, in order."""
    results: dict[int, _Kept | Rejection] = {i: p for i, p in enumerate(batch.pictures) if isinstance(p, Rejection)}
    with on():
        # A header may promise another size than the pixels have, so the sizes are sorted out once more.
        for members in of_one_size(batch.pictures):
            loaded = [load(batch.images[i], picture, device=device) for i, picture in members]
            for (i, _), image, answer in zip(members, loaded, propose(loaded, min_score=keep.min_score), strict=True):
                if isinstance(answer, Rejection):
                    results[i] = answer
                else:
                    results[i] = _Kept(image, keep_proposals(answer, keep=keep), proposed=len(answer))
    known = [None if isinstance(p, Rejection) else (p.sha256, *p.rgb_HW3.shape[:2]) for p in batch.pictures]
    return _Seen(batch.numbers, batch.images, known, [results[i] for i in range(len(batch.images))])


def _embed_kept(
    seen: _Seen[_Kept],
    *,
    tower: ImageTower | None,
    crop: Crop,
    on: Callable[[], AbstractContextManager[Any]],
    embedded: Callable[[float], None],
    leave_masks: bool,
) -> _Seen[_Packed]:
    """The regions of a batch with their embeddings, in order. With `leave_masks` their pixels are done with: where they
    change is in host memory."""
    kept = {i: result for i, result in enumerate(seen.results) if isinstance(result, _Kept)}
    embeddings: dict[int, list[bytes]] = {}
    packed: dict[int, _Packed] = {}
    with on():
        if tower is not None:
            start_s = time.monotonic()
            regions = {i: (one.image, one.proposals.masks_NHW) for i, one in kept.items()}
            embeddings = embed_images(regions, tower=tower, crop=crop)
            embedded(time.monotonic() - start_s)
        for i, one in kept.items():
            found, every = one.proposals, range(len(one.proposals))
            packed[i] = _Packed(
                find_changes(found.masks_NHW, every) if leave_masks else partial(run_lengths, found.masks_NHW, every),
                found.scores_N.tolist(),
                found.labels,
                found.left_out,
                one.proposed,
                embeddings.get(i),
            )
    results = [result if isinstance(result, Rejection) else packed[i] for i, result in enumerate(seen.results)]
    return _Seen(seen.numbers, seen.images, seen.known, results)


def _rows_of(seen: _Seen[_Packed]) -> tuple[list[int], list[RegionsRow]]:
    """The rows of a batch, with the images' numbers."""
    of_images = zip(seen.images, seen.known, seen.results, strict=True)
    return seen.numbers, [_as_row(image.image_id, known, result) for image, known, result in of_images]


def _stream(device: torch.device) -> Callable[[], AbstractContextManager[Any]]:
    """A stream of a GPU's own for what runs within; it is waited for at the end, as the next thread has another one."""
    import torch

    if device.type != "cuda":
        return nullcontext
    stream: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    @contextmanager
    def on_stream() -> Iterator[None]:
        with torch.cuda.stream(stream):
            yield
            stream.synchronize()

    return on_stream


def to_tables(rows: Sequence[RegionsRow], *, embedded: bool) -> list[RegionTables]:
    """The rows as tables of one row each, which share memory."""
    proposals = to_table(rows, ProposalsRow)
    if not embedded:
        return [RegionTables(proposals.slice(i, 1), None) for i in range(len(rows))]
    embeddings = to_table([row.embeddings() for row in rows], EmbeddingsRow)
    return [RegionTables(proposals.slice(i, 1), embeddings.slice(i, 1)) for i in range(len(rows))]


def of_one_size(pictures: Sequence[DecodedImage | Rejection]) -> list[list[tuple[int, DecodedImage]]]:
    """The images with their numbers, those of one size together."""
    groups: dict[tuple[int, ...], list[tuple[int, DecodedImage]]] = {}
    for i, picture in enumerate(pictures):
        if not isinstance(picture, Rejection):
            groups.setdefault(picture.rgb_HW3.shape, []).append((i, picture))
    return list(groups.values())


def load(image: ImageRow, picture: DecodedImage, *, device: torch.device) -> LoadedImage:
    import torch

    rgb_3HW = torch.from_numpy(picture.rgb_HW3).to(device).permute(2, 0, 1).contiguous()
    file = file_name_of(image.path)
    return LoadedImage(image.image_id, rgb_3HW, picture.orientation, picture.turned_by, file)


def embed_images(
    regions: dict[int, tuple[LoadedImage, torch.Tensor]], *, tower: ImageTower, crop: Crop
) -> dict[int, list[bytes]]:
    """The embeddings of every image's regions, by its number; regions of all images share CLIP's batches."""
    images, masks = [image.rgb_3HW for image, _ in regions.values()], [masks_NHW for _, masks_NHW in regions.values()]
    arrays = embed_regions(images, masks, tower=tower, crop=crop)
    return {i: [pack(vector_D) for vector_D in array_ND] for i, array_ND in zip(regions, arrays, strict=True)}


def _as_row(image_id: str, known: tuple[str, int, int] | None, result: _Packed | Rejection) -> RegionsRow:
    if isinstance(result, _Packed) and not result.labels:
        result = Rejection("no_masks", f"0 of {result.proposed} proposals kept")
    if known is None or isinstance(result, Rejection):
        assert isinstance(result, Rejection)
        sha256, height_px, width_px = known or (None, 0, 0)
        return RegionsRow.rejected(image_id, result, sha256=sha256, height_px=height_px, width_px=width_px)
    sha256, height_px, width_px = known
    embeddings: Sequence[bytes | None] = result.embeddings or [None] * len(result.labels)
    columns = zip(result.masks(), result.scores, result.labels, embeddings, strict=True)
    regions = tuple(
        Region(mask=mask, box_xyxy=mask.box_xyxy, area_px=mask.area_px, score=score, label=label, embedding=embedding)
        for mask, score, label, embedding in columns
    )
    return RegionsRow(
        image_id=image_id,
        sha256=sha256,
        height_px=height_px,
        width_px=width_px,
        regions=regions,
        rejection=None,
        left_out=result.left_out,
    )
