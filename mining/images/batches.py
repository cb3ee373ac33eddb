"""The images of a part in batches of one size, as models take them, each decoded while the one before it is used."""

from __future__ import annotations

from collections.abc import Collection, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import groupby

from maskmine.mining.images.child_decoder import Decoding
from maskmine.mining.images.decode import DecodedImage
from maskmine.mining.storage.prefetch import map_in_order
from maskmine.schemas.rows import Rejection

# The kept masks of a batch are in memory together: 100 of each image are 800 MB at this limit.
_MAX_BATCH_PX = 8_000_000
_HARMFUL = ("worker_crash", "record_timeout")  # an image whose header took a decoder with it is not tried again
_LEFT_OUT = Rejection("no_masks")


def decode_batches(
    paths: Sequence[str | None],
    *,
    decoding: Decoding,
    max_pixels: int,
    threads: int,
    batch_size: int,
    leave_out: Collection[int] = (),
) -> Generator[tuple[list[int], list[DecodedImage | Rejection]], None, None]:
    """Batches of the numbers of `paths`, see `plan_batches`, with their decoded images.

    The images of the numbers `leave_out` have their place in a batch, and are not decoded: a rejection stands for each.
    One batch is decoded ahead, so two are in memory at most, if the consumer drops the one that it has used.
    """
    size = partial(decoding.size, max_pixels=max_pixels)
    read = partial(decoding.read, max_pixels=max_pixels)
    with ThreadPoolExecutor(threads) as pool:
        sizes = list(pool.map(size, paths))
        batches = plan_batches(sizes, batch_size=batch_size)

        def decode_one(number: int) -> DecodedImage | Rejection:
            found = sizes[number]
            if number in leave_out:
                return _LEFT_OUT
            if isinstance(found, Rejection) and found.reason in _HARMFUL:
                return found
            return read(paths[number])

        def decode(batch: list[int]) -> tuple[list[int], list[DecodedImage | Rejection]]:
            return batch, list(pool.map(decode_one, batch))

        yield from map_in_order(decode, batches, threads=1, ahead=1)


def plan_batches(sizes: Sequence[tuple[int, int] | Rejection], *, batch_size: int) -> list[list[int]]:
    """The numbers of a part's images in batches of one size, which follow from the part alone.

    Images are sorted by size, then by number, so an interrupted run and another machine have the same batches: the
    last bits of a model's output depend on the batch. Those without a size, which will be rejected, come first.
    """
    known = [(0, 0) if isinstance(size_px, Rejection) else size_px for size_px in sizes]
    batches = []
    for (height_px, width_px), group in groupby(sorted(range(len(known)), key=known.__getitem__), known.__getitem__):
        members = list(group)
        at_once = max(1, min(batch_size, _MAX_BATCH_PX // max(1, height_px * width_px)))
        batches += [members[start : start + at_once] for start in range(0, len(members), at_once)]
    return batches
