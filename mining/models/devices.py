"""Where models run: the device that was asked for, or one clear line why not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from schemas.errors import InputError

if TYPE_CHECKING:
    import torch


def open_device(name: str) -> torch.device:
    """The device called `name`: `auto` (a GPU if there is one, else the CPU), `cpu`, `cuda` or `cuda:1`.

    Raises InputError when a GPU was asked for and is absent: silently slow is worse than stopped.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"device: `{name}` is unknown; use auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"device: `{name}` was asked for, and this machine has {torch.cuda.device_count()} GPUs; use auto or cpu"
        )
    return device


def fix_threads(device: str, *, cpu_threads: int) -> None:
    """Let a model on the CPU use exactly so many threads: their number decides how sums are cut, and so the last bits.

    Engines start workers with different numbers, and the bytes of a run must not depend on that.
    """
    import torch

    if open_device(device).type == "cpu":
        torch.set_num_threads(cpu_threads)
