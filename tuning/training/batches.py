"""Batches by their number, read ahead by worker processes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar, cast

from torch.utils.data import DataLoader, Dataset

from maskmine.schemas.errors import IncompleteError, InputError

BatchT = TypeVar("BatchT")


def load_batches(
    dataset: Dataset[BatchT | str], *, start: int, stop: int, workers: int, pin_memory: bool = False
) -> Iterator[BatchT]:
    """Batches `start` … `stop` − 1 in order.

    An item of the dataset is a batch, or one line about what is wrong with a sample, which is raised as InputError: an
    exception in a worker would arrive as a page of text.
    """
    loader: DataLoader[BatchT | str] = DataLoader(
        dataset,
        batch_size=None,
        sampler=range(start, stop),
        num_workers=usable_workers(workers, batches=stop - start),
        pin_memory=pin_memory,
    )
    for batch in loader:
        if isinstance(batch, str):
            raise InputError(batch)
        yield cast(BatchT, batch)


@contextmanager
def readers_may_die() -> Iterator[None]:
    """The death of a worker while batches are used in the block is an IncompleteError.

    PyTorch raises it wherever this process is then, from the handler of a signal, so the block has all of the work.
    """
    try:
        yield
    except RuntimeError as error:
        line = " ".join(str(error).split())
        if not line.startswith("DataLoader worker"):
            raise
        raise IncompleteError(
            f"a process that reads samples died ({line.partition('. ')[0].rstrip('.')}); was there memory enough, also "
            "in /dev/shm? Set fewer `workers` if not, and run the same command again, which goes on from its checkpoint"
        ) from error


def usable_workers(workers: int, *, batches: int) -> int:
    """How many of the requested processes have a core and a batch to read."""
    return min(workers, batches, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)
