"""Nouns that an image does not show, as further columns of a batch's logits.

A mining run with `negatives` names for each image nouns that are near to what it says and that it does not show. In the
loss a region is held against them, too, beside the nouns of the other regions of its batch.

Shapes: N rows of an index, V nouns of the vocabulary, G pairs of the global batch, K further nouns of a batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from maskmine.tuning.training.order import Integers

Held = Literal["own", "batch"]
"""Which negatives a region is held against: those of its own image, or those of all images of the batch."""


@dataclass(frozen=True, slots=True)
class Lists:
    """Lists of whole numbers, one after the other: list n is `values[starts_N[n] : starts_N[n + 1]]`."""

    values: Integers
    starts_N: Integers

    def of(self, number: int) -> Integers:
        """A list by its number."""
        return self.values[self.starts_N[number] : self.starts_N[number + 1]]


@dataclass(frozen=True, slots=True)
class Unshown:
    """What is known of the images of a set: `negatives_N`, a list of nouns for each row of the index, and `said_N`, the
    nouns of all pairs of the row's image, also of those that are not trained on."""

    negatives_N: pa.ListArray
    said_N: pa.ListArray

    @classmethod
    def of(cls, index: pa.Table) -> Unshown:
        """From an index with `image_id`, `noun` and `negatives`."""
        table = index.select(["image_id", "noun", "negatives"]).combine_chunks()
        images_N = table["image_id"].combine_chunks().dictionary_encode().indices.to_numpy()
        order_N = np.argsort(images_N, kind="stable")
        counts = np.bincount(images_N)
        ends = pa.array(np.concatenate([[0], np.cumsum(counts)]), pa.int32())
        said = pa.ListArray.from_arrays(ends, table["noun"].combine_chunks().take(pa.array(order_N)))
        return cls(table["negatives"].combine_chunks(), said.take(pa.array(images_N)))

    def filter(self, passes: pa.ChunkedArray) -> Unshown:
        """Of the rows of which that is true."""
        mask = passes.combine_chunks()
        return Unshown(self.negatives_N.filter(mask), self.said_N.filter(mask))

    def nouns(self) -> set[str]:
        """All negatives."""
        return set(self.negatives_N.flatten().unique().to_pylist())

    def numbered(self, number_of: Mapping[str, int]) -> tuple[Lists, Lists]:
        """Both as numbers of the vocabulary; −1 for a noun that is not in it."""
        return _numbered(self.negatives_N, number_of), _numbered(self.said_N, number_of)


@dataclass(frozen=True, slots=True)
class Columns:
    """Further nouns of a batch, the same in all processes; `hidden_GK` says which pairs are not held against which."""

    nouns_K: Tensor
    hidden_GK: Tensor

    def to(self, device: torch.device) -> Columns:
        """The same on a device."""
        return Columns(self.nouns_K.to(device, non_blocking=True), self.hidden_GK.to(device, non_blocking=True))

    def pin_memory(self) -> Columns:
        """The same in memory that a GPU copies from without waiting."""
        return Columns(self.nouns_K.pin_memory(), self.hidden_GK.pin_memory())


def columns_of(
    nouns_G: Sequence[int], negatives_G: Sequence[Integers], said_G: Sequence[Integers], *, held: Held
) -> Columns:
    """The columns of a batch: each negative once, and none that is a noun of the batch and so has a column already.

    A pair is held against the negatives of its `own` image; or against those of the whole `batch` that its image does
    not say.
    """
    nouns_K = np.setdiff1d(np.concatenate([np.empty(0, np.int64), *negatives_G]), nouns_G)
    if held == "own":
        hidden_GK = [~np.isin(nouns_K, of_pair) for of_pair in negatives_G]
    else:
        hidden_GK = [np.isin(nouns_K, of_pair) for of_pair in said_G]
    return Columns(torch.from_numpy(nouns_K), torch.from_numpy(np.stack(hidden_GK)))


def _numbered(lists_N: pa.ListArray, number_of: Mapping[str, int]) -> Lists:
    encoded = lists_N.flatten().dictionary_encode()
    numbers = np.array([number_of.get(noun, -1) for noun in encoded.dictionary.to_pylist()], np.int64)
    codes = encoded.indices.to_numpy()
    counts = lists_N.value_lengths().to_numpy()
    starts_N = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
    return Lists(numbers[codes] if len(codes) else np.empty(0, np.int64), starts_N)
