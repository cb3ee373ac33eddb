"""In what order samples are seen: a function of seed and batch number alone, so that a run goes on where it stopped.

A stream is an endless chain of epochs. An epoch shows each of its samples once; batches are cut from the chain, so an
epoch may end inside a batch, whose rest begins the next: nothing is left out and no batch is short.

Shapes: S samples of a stream.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from maskmine.schemas.errors import InputError

Integers = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, slots=True)
class SampleRef:
    """A sample of a batch: row of a source's index, in this epoch of its stream."""

    source: int
    row: int
    epoch: int


@dataclass
class Stream:
    """Samples that are shown in turn, `per_batch` in each batch; `nouns_S` are the numbers of their nouns."""

    number: int
    sources_S: Integers
    rows_S: Integers
    nouns_S: Integers
    per_batch: int
    seed: int
    max_per_noun: int | None
    _orders: dict[int, Integers] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def size(self) -> int:
        """Samples of an epoch."""
        _, counts = np.unique(self.nouns_S, return_counts=True)
        return int(np.minimum(counts, self.max_per_noun or len(self.nouns_S)).sum())

    def batch(self, step: int) -> list[SampleRef]:
        """What the stream gives to batch `step`, counted from 0."""
        refs = []
        for position in range(step * self.per_batch, (step + 1) * self.per_batch):
            epoch, turn = divmod(position, self.size)
            sample = self._order(epoch)[turn]
            refs.append(SampleRef(int(self.sources_S[sample]), int(self.rows_S[sample]), epoch))
        return refs

    def _order(self, epoch: int) -> Integers:
        """The order of an epoch; that of the epoch before stays in memory, since batches cross the border."""
        if epoch not in self._orders:
            order = epoch_order(
                self.nouns_S, seed=(self.seed, self.number), epoch=epoch, max_per_noun=self.max_per_noun
            )
            self._orders = {n: earlier for n, earlier in self._orders.items() if n == epoch - 1}
            self._orders[epoch] = order
        return self._orders[epoch]


def epoch_order(nouns_S: Integers, *, seed: Sequence[int], epoch: int, max_per_noun: int | None) -> Integers:
    """The samples of an epoch in a random order; of each noun only the first `max_per_noun` in that order."""
    order = np.random.default_rng([*seed, epoch]).permutation(len(nouns_S))
    if max_per_noun is None:
        return order
    by_noun = np.argsort(nouns_S[order], kind="stable")
    sorted_nouns = nouns_S[order][by_noun]
    turn_within_noun = np.arange(len(order)) - np.searchsorted(sorted_nouns, sorted_nouns)
    return order[np.sort(by_noun[turn_within_noun < max_per_noun])]


def shares_of_batch(ratios: Sequence[float], *, batch_size: int) -> list[int]:
    """The number of samples of each source in a batch: nearest to the ratios, with the batch size as their sum.

    Raises InputError when a source would give none.
    """
    exact = [ratio * batch_size for ratio in ratios]
    shares = [math.floor(value + 1e-9) for value in exact]
    by_rest = sorted(range(len(exact)), key=lambda n: (shares[n] - exact[n], n))
    for number in by_rest[: batch_size - sum(shares)]:
        shares[number] += 1
    if 0 in shares:
        raise InputError(
            f"data.sources: a ratio of {ratios[shares.index(0)]} is less than one sample in a batch of {batch_size}; "
            "raise it or the batch size"
        )
    return shares
