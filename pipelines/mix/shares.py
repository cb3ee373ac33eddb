"""How many pairs each set gives: shares of the whole, met to within a pair."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction


def most_samples(shares: Sequence[Fraction], available: Sequence[int]) -> int:
    """The size of the largest mix for which every set has as many pairs as its share of it asks for."""
    return min(int(there / share) for share, there in zip(shares, available, strict=True))


def split_samples(samples: int, shares: Sequence[Fraction]) -> list[int]:
    """Whole numbers that are `samples` together, each its share rounded down or up: the largest remainders first.

    Of equal remainders the first counts, so the shares' order decides.
    """
    exact = [samples * share for share in shares]
    counts = [int(part) for part in exact]
    by_remainder = sorted(range(len(shares)), key=lambda number: (counts[number] - exact[number], number))
    for number in by_remainder[: samples - sum(counts)]:
        counts[number] += 1
    return counts
