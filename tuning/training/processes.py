"""Several processes that train as one: torchrun or Ray start them, torch.distributed carries what they tell each other.

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

from mining.devices import open_device
from schemas.errors import InputError


@dataclass(frozen=True, slots=True)
class Processes:
    """This process among `count`: its rank, and the device that is its own."""

    rank: int
    count: int
    device: torch.device

    @property
    def leads(self) -> bool:
        """Whether this is the one that writes files and speaks."""
        return self.rank == 0

    def gather(self, features_BD: Tensor) -> list[Tensor]:
        """The rows of every process, by rank, without gradients. All give the same number of rows."""
        own_BD = features_BD.detach().contiguous()
        if self.count == 1:
            return [own_BD]
        gathered = [torch.empty_like(own_BD) for _ in range(self.count)]
        dist.all_gather(gathered, own_BD)
        return gathered

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Let every process have the sum of all gradients."""
        for parameter in parameters if self.count > 1 else ():
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad)

    def wait(self) -> None:
        """Go on when all processes are here."""
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
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return f"cuda:{local_rank}" if device == "cuda" else device
