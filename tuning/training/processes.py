"""Data parallel training: torchrun or Ray start the processes, torch.distributed connects them.

Shapes: B rows of this process, G those of all processes in the order of their ranks, D width of the embedding.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from maskmine.mining.models.devices import open_device
from maskmine.schemas.errors import InputError


@dataclass(frozen=True, slots=True)
class Processes:
    """The rank of this process among `count`, and its device."""

    rank: int
    count: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files and prints."""
        return self.rank == 0

    def gather(self, features_BD: Tensor) -> list[Tensor]:
        """The rows of each process, by rank, without gradients. All must give the same number of rows."""
        own_BD = features_BD.detach().contiguous()
        if self.count == 1:
            return [own_BD]
        gathered = [torch.empty_like(own_BD) for _ in range(self.count)]
        dist.all_gather(gathered, own_BD)
        return gathered

    def sum(self, values: Tensor) -> Tensor:
        """The sum of a tensor over all processes, without gradients."""
        total = values.detach().clone()
        if self.count > 1:
            dist.all_reduce(total)
        return total

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replace the gradients by their sums over all processes."""
        for parameter in parameters if self.count > 1 else ():
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad)

    def wait(self) -> None:
        """Wait for all processes."""
        if self.count > 1:
            dist.barrier()


@contextmanager
def join_processes(device: str) -> Iterator[Processes]:
    """The processes that torchrun or Ray started (`RANK`, `WORLD_SIZE`, …), or this one alone.

    Raises InputError when a GPU was asked for and this process has none.
    """
    count, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    target = open_device(_own_device(device, local_rank=int(os.environ.get("LOCAL_RANK", "0"))))
    if count == 1:
        yield Processes(0, 1, target)
        return
    if target.type == "cuda":
        torch.cuda.set_device(target)
    here_already = dist.is_initialized()  # Ray joins before it calls us
    if not here_already:
        if "MASTER_ADDR" not in os.environ:
            raise InputError(f"WORLD_SIZE is {count}, but MASTER_ADDR is not set; start the processes with torchrun")
        dist.init_process_group("nccl" if target.type == "cuda" else "gloo")
    try:
        yield Processes(rank, count, target)
    finally:
        if not here_already:
            dist.destroy_process_group()


def _own_device(device: str, *, local_rank: int) -> str:
    """`cuda` means the GPU of the process's number on its machine; a numbered one is for a single process."""
    kind = open_device(device).type if device in ("auto", "cuda") else device
    return f"cuda:{local_rank}" if kind == "cuda" else kind
