"""A perceptual hash of 64 bits: copies of an image agree in nearly all of them, other images do not.

The hash is `imagehash.phash`: the signs of the 64 lowest frequencies of the grey image. Of 80 COCO photographs, JPEGs
of quality 30 and images of half the size differ from their originals in at most 2 bits, brighter left in 6, those
with 2 % cut from each side in 12 (7 of 8 in at most 6), and the two most alike of the photographs themselves in 16.
Images of one colour all have one hash.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Callable

Hashes = np.ndarray[Any, np.dtype[np.uint64]]
Indices = np.ndarray[Any, np.dtype[np.int64]]
Pairs = np.ndarray[Any, np.dtype[np.int64]]

HASH_BITS = 64  # of `imagehash.phash`
COPY_BITS = 6
"""Images whose hashes differ in no more bits than these are taken for copies of each other."""

_PAIRS_AT_ONCE = 1 << 19  # bounds the indices in memory to tens of megabytes
_LOOKUP_COST = 20.0  # of sorting and looking up a hash, in comparisons of two
_MOST_TOGETHER = 4  # pieces that are looked up together


def image_hash(rgb_HW3: np.ndarray[Any, np.dtype[np.uint8]]) -> int:
    """The hash of an upright image, uint8 of shape [H, W, 3], as a whole number of 64 bits."""
    bits_88 = _phash()(Image.fromarray(rgb_HW3)).hash
    return int.from_bytes(np.packbits(bits_88).tobytes(), "big")


def close_pairs(
    hashes: Sequence[int], others: Sequence[int], *, most_bits: int = COPY_BITS
) -> list[tuple[int, int, int]]:
    """Every pair of a hash and another one that differ in at most `most_bits`: both indices, and the distance, sorted.

    Memory grows with the pairs; see `near_pairs`. Raises ValueError where `most_bits` are not 0 to 63.
    """
    pairs = [np.empty((0, 3), np.int64), *near_pairs(hashes, others, most_bits=most_bits)]
    return [(one, other, distance) for one, other, distance in np.unique(np.concatenate(pairs), axis=0).tolist()]


def near_pairs(hashes: Sequence[int], others: Sequence[int], *, most_bits: int = COPY_BITS) -> Iterator[Pairs]:
    """The pairs of `close_pairs`, some hundred thousand at a time: `(index, other index, distance)`, int64 [P, 3].

    A pair may come more than once. Hashes are looked up by pieces: of hashes cut into P pieces, two that differ in B
    bits agree in P - B of them at least, and every choice of so many pieces is looked up (Manku, Jain and Das Sarma,
    "Detecting near-duplicates for web crawling", WWW 2007). With more pieces there are more choices, each of which
    fewer other hashes meet; so their number follows from how many hashes there are, and time grows little faster.
    """
    if not 0 <= most_bits < HASH_BITS:
        raise ValueError(f"most_bits: {most_bits} is not from 0 to {HASH_BITS - 1}")
    hashes_N, others_M = np.array(hashes, np.uint64), np.array(others, np.uint64)
    for mask in _masks(len(hashes_N), len(others_M), most_bits):
        for left, right in _equal(hashes_N & mask, others_M & mask):
            distances = _bits(hashes_N[left] ^ others_M[right])
            near = distances <= most_bits
            yield np.stack([left[near], right[near], distances[near]], axis=1)


def _masks(hashes: int, others: int, most_bits: int) -> list[np.uint64]:
    """The bits of every choice of pieces that are looked up together, for the number of pieces that costs least."""

    def cost(pieces: int) -> float:
        bits = HASH_BITS * (pieces - most_bits) / pieces
        return math.comb(pieces, most_bits) * (_LOOKUP_COST * (hashes + others) + hashes * others / 2**bits)

    pieces = min(range(most_bits + 1, min(HASH_BITS, most_bits + _MOST_TOGETHER) + 1), key=cost)
    edges = [HASH_BITS * piece // pieces for piece in range(pieces + 1)]
    of_pieces = [(1 << high) - (1 << low) for low, high in itertools.pairwise(edges)]
    return [np.uint64(sum(chosen)) for chosen in itertools.combinations(of_pieces, pieces - most_bits)]


def _equal(pieces_N: Hashes, pieces_M: Hashes) -> Iterator[tuple[Indices, Indices]]:
    """The indices of all pairs of equal pieces, some hundred thousand pairs at a time."""
    order_M = np.argsort(pieces_M, kind="stable")
    sorted_M = pieces_M[order_M]
    first_N = np.searchsorted(sorted_M, pieces_N, "left")
    count_N = np.searchsorted(sorted_M, pieces_N, "right") - first_N
    with_any = np.flatnonzero(count_N)
    ends = np.cumsum(count_N[with_any])
    start = 0
    while start < len(with_any):
        before = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + _PAIRS_AT_ONCE, "right")))
        indices = with_any[start:stop]
        counts = count_N[indices]
        left = np.repeat(indices, counts)
        within = np.arange(len(left)) - np.repeat(np.cumsum(counts) - counts, counts)
        yield left, order_M[np.repeat(first_N[indices], counts) + within]
        start = stop


def _bits(values_P: Hashes) -> Indices:
    """How many bits are 1 in each number."""
    bits_P: Indices = np.unpackbits(values_P.view(np.uint8).reshape(-1, HASH_BITS // 8), axis=1).sum(
        axis=1, dtype=np.int64
    )
    return bits_P


@functools.cache
def _phash() -> Callable[..., Any]:
    import imagehash

    phash: Callable[..., Any] = imagehash.phash
    return phash
