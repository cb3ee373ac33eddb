"""The use of a GPU while a part is made, from NVIDIA's NVML; known only where there is a GPU and `nvidia-ml-py`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

EVERY_S = 0.5  # NVML itself averages over a sixth of a second to a second

Sample = Callable[[], tuple[int, int]]  # the use of a GPU in percent, and the bytes taken on it


@dataclass
class GpuUse:
    """Mean use of the GPU (0–100) and peak memory taken on it by all processes; None where it cannot be read."""

    percent: float | None = None
    peak_bytes: int | None = None


@contextmanager
def watch_gpu(device: str, *, every_s: float = EVERY_S) -> Iterator[GpuUse]:
    """Sample the GPU called `device` (see `open_device`) while the block runs; the result is there when it ends."""
    use = GpuUse()
    sample = _open_sample(device)
    if sample is None:
        yield use
        return
    samples: list[tuple[int, int]] = []
    over = threading.Event()
    thread = threading.Thread(target=_collect, args=(sample, samples, over, every_s), name="maskmine-gpu", daemon=True)
    thread.start()
    try:
        yield use
    finally:
        over.set()
        thread.join()
    if samples:
        use.percent = sum(percent for percent, _ in samples) / len(samples)
        use.peak_bytes = max(taken_bytes for _, taken_bytes in samples)


def _open_sample(device: str) -> Sample | None:
    """A function that reads one GPU through NVML; None where that is not possible."""
    if device == "cpu":
        return None
    try:
        import pynvml  # type: ignore[import-untyped]
    except ImportError:
        return None
    uuid = _gpu_uuid(device)
    if uuid is None:
        return None
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        pynvml.nvmlDeviceGetUtilizationRates(handle)  # some virtual GPUs have none
    except pynvml.NVMLError:
        return None

    def sample() -> tuple[int, int]:
        return pynvml.nvmlDeviceGetUtilizationRates(handle).gpu, pynvml.nvmlDeviceGetMemoryInfo(handle).used

    return sample


def _gpu_uuid(device: str) -> str | None:
    """The NVML id of a GPU of PyTorch; the two number the GPUs of a machine differently."""
    import torch

    from maskmine.mining.models.devices import open_device

    opened = open_device(device)
    if opened.type != "cuda":
        return None
    return f"GPU-{torch.cuda.get_device_properties(opened).uuid}"


def _collect(sample: Sample, samples: list[tuple[int, int]], over: threading.Event, every_s: float) -> None:
    """Sample until `over`. A sample covers the time before it: the first comes after a pause, the last at the end."""
    import pynvml

    try:
        while not over.wait(every_s):
            samples.append(sample())
        samples.append(sample())
    except pynvml.NVMLError:  # the driver is gone; the work itself will fail
        return
