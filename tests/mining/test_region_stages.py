"""Stages that overlap give the rows of stages that do not, hold few batches, and end with the first fault."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from unittest import mock

import numpy as np
import pytest
import torch

from maskmine.mining import region_stages
from maskmine.mining.images.crops import Crop
from maskmine.mining.images.decode import DecodedImage
from maskmine.mining.models.clip import ImageTower
from maskmine.mining.models.embeddings import Crops
from maskmine.mining.proposers.proposals import Keep, LoadedImage, Proposals
from maskmine.mining.region_stages import FindBatches, open_stages
from maskmine.schemas.errors import InputError
from maskmine.schemas.rows import ImageRow, RegionsRow, Rejection

HEIGHT_PX, WIDTH_PX, DIM = 6, 9, 4
PATIENCE_S = 5.0  # what is not there by then does not come


def decoded(number: int) -> DecodedImage | Rejection:
    """Each fifth image cannot be read."""
    if number % 5 == 4:
        return Rejection("decode_error", str(number))
    pixels_HW3 = np.random.default_rng(number).integers(0, 256, (HEIGHT_PX, WIDTH_PX, 3), dtype=np.uint8)
    return DecodedImage(pixels_HW3, sha256=f"{number:064x}", orientation=1, turned_by="EXIF")


def propose(images: Sequence[LoadedImage], *, min_score: float) -> Iterator[Proposals | Rejection]:
    """As many masks as the id says; none for the third of each five."""
    for image in images:
        number = int(image.image_id)
        masks_NHW = torch.rand(number % 5, HEIGHT_PX, WIDTH_PX, generator=torch.Generator().manual_seed(number)) > 0.5
        yield (
            Rejection("no_masks", "none")
            if number % 5 == 3
            else Proposals(masks_NHW, torch.linspace(1, 0.5, len(masks_NHW)), ("a",) * len(masks_NHW))
        )


def first_values(pixels_N3SS: torch.Tensor) -> torch.Tensor:
    return pixels_N3SS.flatten(1)[:, :DIM]


def stages(
    *,
    overlap: bool,
    propose: Callable[..., Iterator[Proposals | Rejection]] = propose,
    embed: Callable[[torch.Tensor], torch.Tensor] = first_values,
) -> FindBatches:
    tower = ImageTower(8, (0.5,) * 3, (0.5,) * 3, DIM, 5, torch.device("cpu"), embed)
    keep = Keep(min_score=0.0, min_area_px=1, max_area_ratio=1.0, max_iou=1.0)
    return open_stages(propose, tower, keep=keep, crop=Crop(), device=torch.device("cpu"), overlap=overlap)


@pytest.mark.parametrize("stage", ["load", "_pack_batch", "cut_crops", "embed_crops", "_rows_of"])
def test_no_thread_is_left_once_a_late_stage_has_failed(stage: str) -> None:
    """Not even while the fault is handled: threads and batches of stages before it would still hold memory."""
    works, calls = getattr(region_stages, stage), iter(range(10**6))

    def fails_late(*given: object, **named: object) -> object:
        if next(calls) == 2:
            raise MemoryError
        return works(*given, **named)

    threads = threading.active_count()
    with mock.patch.object(region_stages, stage, fails_late):
        try:
            rows_of(stages(overlap=True))
        except MemoryError:
            left = threading.active_count() - threads
        else:
            pytest.fail("the stage did not fail")
    assert left == 0


def rows_of(find: FindBatches, *, images: int = 23) -> list[tuple[list[int], list[RegionsRow]]]:
    batches = [list(range(start, min(images, start + 4))) for start in range(0, images, 4)]
    decoded_batches = ((batch, [decoded(number) for number in batch]) for batch in batches)
    return list(find([ImageRow(str(number), f"{number}.png") for number in range(images)], decoded_batches))


def test_stages_that_overlap_give_the_same_rows_in_the_same_order() -> None:
    found = rows_of(stages(overlap=True))
    assert found == rows_of(stages(overlap=False))
    rows = [row for _, batch in found for row in batch]
    assert [row.image_id for row in rows] == [str(number) for number in range(23)]
    assert {row.rejection.reason for row in rows if row.rejection} == {"decode_error", "no_masks"}
    assert [len(row.regions) for row in rows[:5]] == [0, 1, 2, 0, 0]


def settled(alive: set[int], *, most: int) -> int:
    """How many are alive; a thread that has just given its result may hold what it worked on for a moment more."""
    until_s = time.monotonic() + PATIENCE_S
    while len(alive) > most and time.monotonic() < until_s:
        time.sleep(0.001)
    return len(alive)


def test_masks_of_two_batches_are_in_memory_at_most() -> None:
    alive: list[int] = []
    masks: set[int] = set()

    def counted(images: Sequence[LoadedImage], *, min_score: float) -> Iterator[Proposals | Rejection]:
        for _ in images:
            masks_NHW = torch.ones(1, HEIGHT_PX, WIDTH_PX, dtype=torch.bool)
            masks.add(id(masks_NHW))
            weakref.finalize(masks_NHW, masks.discard, id(masks_NHW))
            alive.append(len(masks))
            yield Proposals(masks_NHW, torch.ones(1), (None,))

    find = stages(overlap=True, propose=counted)
    for _ in find([ImageRow(str(n), "x") for n in range(40)], (([n], [decoded(0)]) for n in range(40))):
        time.sleep(0.005)  # the rows are used more slowly than models find them
    assert max(alive) == 2, alive  # those that are proposed, and those that are cut


def test_crops_are_cut_while_clip_sees_those_before_and_no_further_ahead() -> None:
    """What CLIP sees next is ready when it asks for it, and at most twice what it sees at once is in memory."""
    alive: list[int] = []
    crops: set[int] = set()
    cuts, seen = iter(range(10**6)), iter(range(10**6))
    is_cut = [threading.Event() for _ in range(20)]

    def cut(images: Sequence[torch.Tensor], masks: Sequence[torch.Tensor], chunk: object, **_: object) -> Crops:
        pixels_R3SS, number = torch.zeros(1, 3, 8, 8), next(cuts)
        crops.add(number)
        weakref.finalize(pixels_R3SS, crops.discard, number)
        alive.append(settled(crops, most=2))
        assert alive[-1] <= 2, alive
        is_cut[number].set()
        return Crops(pixels_R3SS, None)

    def embed(pixels_N3SS: torch.Tensor) -> torch.Tensor:
        following = min(next(seen) + 1, 19)
        assert is_cut[following].wait(PATIENCE_S), f"{following} is not cut while CLIP sees those before"
        return pixels_N3SS.flatten(1)[:, :DIM]

    def propose_one(images: Sequence[LoadedImage], *, min_score: float) -> Iterator[Proposals | Rejection]:
        for _ in images:
            yield Proposals(torch.ones(1, HEIGHT_PX, WIDTH_PX, dtype=torch.bool), torch.ones(1), (None,))

    find = stages(overlap=True, propose=propose_one, embed=embed)
    with mock.patch.object(region_stages, "cut_crops", cut):
        list(find([ImageRow(str(n), "x") for n in range(20)], (([n], [decoded(0)]) for n in range(20))))
    assert len(alive) == 20
    assert max(alive) == 2, alive


@pytest.mark.parametrize("overlap", [True, False])
def test_a_fault_of_a_stage_ends_the_part_and_no_thread_is_left(overlap: bool) -> None:
    def fails(images: Sequence[LoadedImage], *, min_score: float) -> Iterator[Proposals | Rejection]:
        if images[0].image_id == "8":
            raise InputError("proposals.precision: not finite")
        return propose(images, min_score=min_score)

    threads = threading.active_count()
    with pytest.raises(InputError, match="not finite"):
        rows_of(stages(overlap=overlap, propose=fails))
    assert threading.active_count() == threads
