"""Where models run: the device that was asked for, or one clear line why not."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal

from maskmine.schemas.errors import InputError
from maskmine.schemas.wording import counted

if TYPE_CHECKING:
    import torch

Precision = Literal["auto", "float32", "bfloat16", "float16"]
"""What the settings call the numbers that a model calculates with."""
DeviceKind = Literal["cpu", "cuda"]
CLIP_ON_GPU: Literal["float16"] = "float16"
PROPOSALS_ON_GPU: Literal["bfloat16"] = "bfloat16"
"""What `auto` stands for on a GPU."""


_NAMES = re.compile(r"auto|cpu(:\d+)?|cuda(:\d+)?")


def check_device_name(name: str) -> None:
    """Raises InputError for a name that is that of no device which is known here, wherever models are to run."""
    if not _NAMES.fullmatch(name):  # PyTorch has more of them, on which nothing here was tried
        raise InputError(f"device: `{name}` is unknown; use auto, cpu, cuda or cuda:N")


def open_device(name: str) -> torch.device:
    """The device called `name`: `auto` (a GPU if there is one, else the CPU), `cpu`, `cuda` or `cuda:1`.

    Raises InputError when a GPU was asked for and is absent: silently slow is worse than stopped.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    check_device_name(name)
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        there = counted(torch.cuda.device_count(), "GPU") if torch.cuda.device_count() else "no GPU"
        raise InputError(f"device: `{name}` was asked for, and this machine has {there}; use auto or cpu")
    return device


def kind_of(name: str) -> DeviceKind:
    """Whether a device is a GPU, by its name, which need not be here; `auto` by whether there is one."""
    if name != "auto":
        return "cuda" if name.startswith("cuda") else "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def settled_precision(precision: Precision, kind: DeviceKind, *, on_gpu: Literal["bfloat16", "float16"]) -> Precision:
    """The precision with which a model runs on a kind of device."""
    if precision != "auto":
        return precision
    return on_gpu if kind == "cuda" else "float32"


def resolve_precision(precision: Precision, device: torch.device, *, on_gpu: Literal["bfloat16", "float16"]) -> str:
    """The name of torch's type: `auto` is `on_gpu` on a GPU, and float32 on a CPU, which has nothing to gain."""
    return settled_precision(precision, "cuda" if device.type == "cuda" else "cpu", on_gpu=on_gpu)


def fix_threads(device: str, *, cpu_threads: int) -> None:
    """Let a model on the CPU use `cpu_threads` threads: their number decides how sums are split, and so the last bits.

    Engines start workers with different numbers, and the bytes of a run must not depend on that.
    """
    import torch

    if open_device(device).type == "cpu":
        torch.set_num_threads(cpu_threads)
