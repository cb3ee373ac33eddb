"""The stages that a batch of images passes on its way to regions, one after the other or each in a thread of its own.

Shapes: N regions of an image, R of those that CLIP sees at once, D width of its embeddings; H, W height and width of
an image in pixels.

  batch, decoded ─▶ loaded ─▶ proposals, kept ─▶ where masks change, crops ─▶ CLIP embeddings ─▶ rows ─▶ tables
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import pyarrow as pa

from maskmine.mining.images.crops import Crop
from maskmine.mining.images.decode import DecodedImage
from maskmine.mining.models.clip import ImageTower
from maskmine.mining.models.embeddings import (
    Crops,
    chunk_regions,
    cut_crops,
    embed_crops,
    embed_regions,
    pack,
)
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
Vectors = np.ndarray[Any, np.dtype[np.float16]]
Decoded = tuple[list[int], list[DecodedImage | Rejection]]
"""The numbers of a batch's images in their part, and the images; see `decode_batches`."""


class RegionTables(NamedTuple):
    """An image's row of each of the two cells, as a table; None for `embeddings` where CLIP is left out."""

    proposals: pa.Table
    embeddings: pa.Table | None


class FindBatches(Protocol):
    """The rows of decoded batches of a part's images, batch by batch and in order, with the images' numbers.

    However it ends, no thread of a stage and nothing of a batch is left.
    """

    def __call__(
        self, images: Sequence[ImageRow], batches: Iterable[Decoded]
    ) -> Generator[tuple[list[int], list[RegionsRow]], None, None]: ...


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
    """A function from batches to rows. `embedded` is told the seconds that the embeddings of each batch took.

    With `overlap` a batch is proposed for while regions of the one before it are cut and embedded and the rows of the
    one before that are made, so that a GPU does not wait for the host: what it is given next is loaded and cut by the
    time that it is done. The masks of two batches at most are in memory then, and twice what CLIP sees at once. On a
    CPU, which has no time to spare, one comes after the other. The rows are the same.
    """
    load_on, propose_on, cut_on, embed_on = (_stream(device) if overlap else nullcontext for _ in range(4))
    stage = partial(map_in_order, threads=1 if overlap else 0, ahead=1)
    propose_batch = partial(_propose_batch, propose=propose, keep=keep, on=propose_on)
    embed = partial(_embed, tower=tower, on=embed_on)
    tell = embedded if tower is not None else None

    def find(
        images: Sequence[ImageRow], batches: Iterable[Decoded]
    ) -> Generator[tuple[list[int], list[RegionsRow]], None, None]:
        def load_batch(decoded: Decoded) -> _Seen[LoadedImage]:
            return _load_batch(images, *decoded, device=device, on=load_on)

        # Loaded and cut in the thread that asks for rows, so that those of the models find their next work done.
        # A fault of a late stage leaves the earlier ones where they are: each is closed, the last one first.
        with ExitStack() as opened:
            kept = opened.enter_context(closing(stage(propose_batch, map(load_batch, batches))))
            cut = opened.enter_context(
                closing(_cut_batches(kept, tower=tower, crop=crop, on=cut_on, leave_masks=overlap))
            )
            seen = opened.enter_context(closing(stage(embed, cut)))
            yield from stage(_rows_of, _gather(seen, tell=tell))

    return find


@dataclass(frozen=True, slots=True)
class _Kept:
    """The proposals of an image that were kept, and how many were proposed."""

    image: LoadedImage
    proposals: Proposals
    proposed: int


@dataclass(frozen=True, slots=True)
class _Packed:
    """What of an image's regions is left when their pixels are done with: `masks` makes their run lengths."""

    masks: Callable[[], list[Mask]]
    scores: list[float]
    labels: tuple[str | None, ...]
    left_out: tuple[str, ...]
    proposed: int


@dataclass(frozen=True, slots=True)
class _Seen(Generic[Result]):
    """A batch after a stage: images of one size with their numbers in the part; of each what was found, and of those
    that were decoded their SHA-256 and size."""

    numbers: list[int]
    images: list[ImageRow]
    known: list[tuple[str, int, int] | None]
    results: list[Result | Rejection]


@dataclass(frozen=True, slots=True)
class _Cut:
    """What CLIP sees at once, None for a batch that it sees nothing of; the last of a batch has all else that is known
    of it."""

    crops: Crops | None
    batch: _Seen[_Packed] | None
    seconds: float


@dataclass(frozen=True, slots=True)
class _Embedded:
    """What CLIP makes of a `_Cut`, and the seconds that both took."""

    vectors_RD: Vectors | None
    batch: _Seen[_Packed] | None
    seconds: float


def _load_batch(
    rows: Sequence[ImageRow],
    numbers: list[int],
    pictures: Sequence[DecodedImage | Rejection],
    *,
    device: torch.device,
    on: Callable[[], AbstractContextManager[Any]],
) -> _Seen[LoadedImage]:
    """The images of these numbers with their pixels where the models are."""
    images = [rows[i] for i in numbers]
    with on():
        loaded = [
            picture if isinstance(picture, Rejection) else load(image, picture, device=device)
            for image, picture in zip(images, pictures, strict=True)
        ]
    known = [None if isinstance(p, Rejection) else (p.sha256, *p.rgb_HW3.shape[:2]) for p in pictures]
    return _Seen(numbers, images, known, loaded)


def _propose_batch(
    batch: _Seen[LoadedImage], *, propose: Proposer, keep: Keep, on: Callable[[], AbstractContextManager[Any]]
) -> _Seen[_Kept]:
    """The kept proposals of a batch, in order."""
    results: dict[int, _Kept | Rejection] = {i: r for i, r in enumerate(batch.results) if isinstance(r, Rejection)}
    with on():
        # A header may promise another size than the pixels have, so the sizes are sorted out once more.
        for members in _of_one_size(batch.results):
            answers = propose([image for _, image in members], min_score=keep.min_score)
            for (i, image), answer in zip(members, answers, strict=True):
                if isinstance(answer, Rejection):
                    results[i] = answer
                else:
                    results[i] = _Kept(image, keep_proposals(answer, keep=keep), proposed=len(answer))
    return _Seen(batch.numbers, batch.images, batch.known, [results[i] for i in range(len(batch.images))])


def _cut_batches(
    batches: Iterable[_Seen[_Kept]],
    *,
    tower: ImageTower | None,
    crop: Crop,
    on: Callable[[], AbstractContextManager[Any]],
    leave_masks: bool,
) -> Generator[_Cut, None, None]:
    """What CLIP sees of each batch, cut when it is asked for. With `leave_masks` no pixels or masks of a batch are held
    when its last regions are cut: where they change is in host memory."""
    for seen in batches:
        kept = [result for result in seen.results if isinstance(result, _Kept)]
        images, masks = [one.image.rgb_3HW for one in kept], [one.proposals.masks_NHW for one in kept]
        with on():
            packed = _pack_batch(seen, leave_masks=leave_masks)
        del seen, kept
        if tower is None:
            images, masks = [], []
        chunks = list(chunk_regions(map(len, masks), size=tower.batch_size if tower is not None else 1))
        if not chunks:
            yield _Cut(None, packed, 0.0)
        for number, chunk in enumerate(chunks, start=1):
            assert tower is not None
            start_s = time.monotonic()
            with on():
                crops = cut_crops(images, masks, chunk, tower=tower, crop=crop)
            last = number == len(chunks)
            if last:
                images, masks = [], []
            yield _Cut(crops, packed if last else None, time.monotonic() - start_s)


def _pack_batch(seen: _Seen[_Kept], *, leave_masks: bool) -> _Seen[_Packed]:
    packed: list[_Packed | Rejection] = []
    for result in seen.results:
        if isinstance(result, Rejection):
            packed.append(result)
            continue
        found, every = result.proposals, range(len(result.proposals))
        masks = find_changes(found.masks_NHW, every) if leave_masks else partial(run_lengths, found.masks_NHW, every)
        packed.append(_Packed(masks, found.scores_N.tolist(), found.labels, found.left_out, result.proposed))
    return _Seen(seen.numbers, seen.images, seen.known, packed)


def _embed(cut: _Cut, *, tower: ImageTower | None, on: Callable[[], AbstractContextManager[Any]]) -> _Embedded:
    if tower is None or cut.crops is None:
        return _Embedded(None, cut.batch, cut.seconds)
    start_s = time.monotonic()
    with on():
        vectors_RD = embed_crops(cut.crops, tower=tower)
    return _Embedded(vectors_RD, cut.batch, cut.seconds + time.monotonic() - start_s)


def _gather(
    embedded: Iterable[_Embedded], *, tell: Callable[[float], None] | None
) -> Iterator[tuple[_Seen[_Packed], list[Vectors]]]:
    """Batches with the vectors of their regions, in order; none where CLIP is left out."""
    vectors, seconds = list[Vectors](), 0.0
    for one in embedded:
        seconds += one.seconds
        if one.vectors_RD is not None:
            vectors.append(one.vectors_RD)
        if one.batch is not None:
            if tell is not None:
                tell(seconds)
            yield one.batch, vectors
            vectors, seconds = [], 0.0


def _rows_of(found: tuple[_Seen[_Packed], list[Vectors]]) -> tuple[list[int], list[RegionsRow]]:
    """The rows of a batch, with the images' numbers."""
    seen, vectors = found
    embeddings: Iterator[bytes | None] = (pack(vector_D) for part_RD in vectors for vector_D in part_RD)
    if not vectors:
        embeddings = repeat(None)
    of_images = zip(seen.images, seen.known, seen.results, strict=True)
    return seen.numbers, [_as_row(image.image_id, known, result, embeddings) for image, known, result in of_images]


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


def _of_one_size(images: Sequence[LoadedImage | Rejection]) -> list[list[tuple[int, LoadedImage]]]:
    """The images with their numbers, those of one size together."""
    groups: dict[tuple[int, ...], list[tuple[int, LoadedImage]]] = {}
    for i, image in enumerate(images):
        if not isinstance(image, Rejection):
            groups.setdefault(tuple(image.rgb_3HW.shape), []).append((i, image))
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


def _as_row(
    image_id: str,
    known: tuple[str, int, int] | None,
    result: _Packed | Rejection,
    embeddings: Iterator[bytes | None],
) -> RegionsRow:
    """The row of an image, whose regions take theirs from `embeddings`."""
    if isinstance(result, _Packed) and not result.labels:
        result = Rejection("no_masks", f"0 of {result.proposed} proposals kept")
    if known is None or isinstance(result, Rejection):
        assert isinstance(result, Rejection)
        sha256, height_px, width_px = known or (None, 0, 0)
        return RegionsRow.rejected(image_id, result, sha256=sha256, height_px=height_px, width_px=width_px)
    sha256, height_px, width_px = known
    own = [next(embeddings) for _ in result.labels]
    columns = zip(result.masks(), result.scores, result.labels, own, strict=True)
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
