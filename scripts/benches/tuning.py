"""What feeding costs a training step, what a second process gains, and how much memory tuning takes.

Pairs are mined from the demo world by its true masks, CLIP is the one that is shipped; on a GPU the step is that of
ViT-B/16 with random weights. Prompts are tuned with the paper's settings in batches of 64, with the two reading workers
that are there where nothing is said; on a GPU in batches of 256, with a worker for each core but one.

- *from shards / from memory*: the speed of steps that are fed by `load_batches` beside that of the same steps on the
  same batches, which lie in memory. The two take turns; a step counts once the workers are ahead. The step runs on one
  thread, or on a GPU, so that cores are left to read with. Goal where there are any: 0.9.
- *samples/s a core*: reading, decoding and cutting out alone, on one thread, from files that the system has in memory.
- *two processes / one*: images a second of `maskmine tune`, by itself and under torchrun, one thread a process, for the
  same batches. Goal: 1.7, where there are two cores.
- *peak memory*: of the largest process of these runs, resident.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import psutil
import torch
from torch.nn.functional import normalize

from maskmine.mining.models.clip import Clip
from maskmine.mining.models.mask_prompts import PromptedTower, new_prompts
from maskmine.mining.models.patch_towers import patch_tower
from maskmine.schemas.errors import InputError
from maskmine.scripts.accuracy.models import mine_truth
from maskmine.scripts.benches.fixtures import save_random_clip
from maskmine.scripts.demo_world.draw import draw_world
from maskmine.scripts.measures import Measure, at_least
from maskmine.tuning.clip.data import Batch, Pairs, arrange, open_sets
from maskmine.tuning.clip.settings import Data, Tuning
from maskmine.tuning.clip.step import ClipLearner, new_optimizer
from maskmine.tuning.clip.transforms import View
from maskmine.tuning.training.batches import load_batches
from maskmine.tuning.training.optim import Trainable, open_precision
from maskmine.tuning.training.processes import Processes, join_processes
from maskmine.tuning.training.settings import Precision

Mode = Literal["prompts", "finetune"]

SEED, SCENES = 31, 160
_CLIP = Path(__file__).parents[1] / "models" / "clip"
_NOUNS = 1000
_WARM_STEPS = 3
_POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class Load:
    """Which steps are timed: `batch_size` pairs each, `steps` of them in a turn, the same number of turns each way."""

    clip: Clip
    device: str
    batch_size: int
    workers: int
    steps: int = 12
    rounds: int = 3


def bench_tuning(*, scenes: int = SCENES, process_steps: int = 24) -> Iterator[Measure]:
    """All figures, as they are found; about three minutes on two cores. Raises InputError when tuning fails."""
    with tempfile.TemporaryDirectory(prefix="maskmine-tuning-") as scratch:
        folder = Path(scratch)
        print("  mining", flush=True)
        shards = mine_shards(folder, scenes=scenes)
        yield from measure_feeding(shards, _usual_load(folder))
        yield from measure_processes(shards, folder, clip=_CLIP, steps=process_steps)


def mine_shards(folder: Path, *, scenes: int) -> Path:
    """Draw a demo world in a folder and mine it by its truth; the folder of the run."""
    draw_world(folder / "world", scenes=scenes, seed=SEED)
    return Path(mine_truth(folder / "world", out=folder / "mined").root)


def measure_feeding(shards: Path, load: Load) -> Iterator[Measure]:
    """Steps fed from shards beside steps on ready tensors, and reading alone."""
    with join_processes(load.device) as processes:
        clip = load.clip.open_whole()
        learner = new_learner(clip.model.to(processes.device), "prompts", processes=processes)
        data = Data.model_validate({"sources": [{"folder": str(shards)}], "workers": load.workers})
        view = View(clip.size_px, clip.mean, clip.std, data.crop, data.jitter)
        pairs = arrange(open_sets(data), data=data, view=view, batch_size=load.batch_size, seed=0)
        on_gpu = processes.device.type == "cuda"
        read_s = seconds_to_read(pairs, batches=max(1, 320 // load.batch_size))
        yield Measure("reading alone, one core", load.batch_size / read_s, "samples/s a core")
        print("  steps from shards and from memory", flush=True)
        with _threads(torch.get_num_threads() if on_gpu else 1):
            step_s, ratio = time_feeding(pairs, learner, load)
        yield Measure("from memory", load.batch_size / step_s, "images/s")
        yield Measure("reading alone / step", read_s / step_s, "")
        name = "from shards / from memory"
        yield at_least(name, ratio, "×", 0.9) if on_gpu or usable_cores() > 1 else Measure(name, ratio, "×")
        if on_gpu:
            peak_bytes = torch.cuda.max_memory_allocated(processes.device)
            yield Measure(f"peak memory on the GPU, batches of {load.batch_size}", peak_bytes / 1e6, "MB")


def time_feeding(pairs: Pairs, learner: ClipLearner, load: Load) -> tuple[float, float]:
    """Take the same steps from memory and from shards, in turns.

    Returns the median seconds of a step from memory, and the speed from shards in units of that from memory.
    """
    pin_memory = learner.trainable.device.type == "cuda"
    taken = _WARM_STEPS + load.steps
    ahead = 2 * load.workers + 1  # workers go on reading to the last step that counts, as they do in a long run
    ready = list(load_batches(pairs, start=0, stop=taken, workers=load.workers, pin_memory=pin_memory))
    ready_s, ratios = [], []
    for _ in range(load.rounds):
        ready_s.append(_seconds_a_step(iter(ready), learner, load))
        fed = load_batches(pairs, start=0, stop=taken + ahead, workers=load.workers, pin_memory=pin_memory)
        ratios.append(ready_s[-1] / _seconds_a_step(fed, learner, load))
    return statistics.median(ready_s), statistics.median(ratios)


def seconds_to_read(pairs: Pairs, *, batches: int) -> float:
    """How long one core reads a batch: processor time, on one thread; files are in memory after the first pass."""
    with _threads(1):
        for timed in (False, True):
            start_s = time.process_time()
            for step in range(batches if timed else 1):
                if isinstance(told := pairs[step], str):
                    raise InputError(told)
    return (time.process_time() - start_s) / batches


def new_learner(
    model: Any, mode: Mode, *, processes: Processes, precision: Precision = "auto", nouns: int = _NOUNS
) -> ClipLearner:
    """What `maskmine tune` trains with where nothing is set, for a CLIP on its device; the nouns are random vectors."""
    tree = {"clip": {"model": ""}, "data": {"sources": [{"folder": ""}]}, "out": ""}
    settings = Tuning.model_validate(tree)
    visual = model.requires_grad_(False).visual
    tower, others = None, {}
    if mode == "prompts":
        prompts_PND = new_prompts(visual, depth=settings.prompts.depth, std=settings.prompts.init_std, seed=0)
        tower = PromptedTower(visual, prompts_PND.to(processes.device))
    else:
        others = {f"visual.{name}": value for name, value in visual.requires_grad_(True).named_parameters()}
    nouns_VD = torch.randn(nouns, patch_tower(visual).embedding_width, generator=torch.Generator().manual_seed(0))
    trainable = Trainable(
        tensors={"prompts": tower.prompts_PND} if tower else others,
        optimizer=new_optimizer(
            prompts=tower.prompts_PND if tower else None,
            others=others,
            prompt_phase=settings.prompts,
            other_phase=settings.finetune,
            adam=settings.adam,
        ),
        device=processes.device,
        dtype=open_precision(precision, processes.device),
    )
    return ClipLearner(
        embed=tower or (lambda pixels_M3SS, _: visual(pixels_M3SS)),
        logit_scale=model.logit_scale,
        nouns_VD=normalize(nouns_VD, dim=-1).to(processes.device),
        positives=settings.objective.positives,
        trainable=trainable,
        processes=processes,
    )


def measure_processes(shards: Path, folder: Path, *, clip: Path, steps: int, rounds: int = 2) -> Iterator[Measure]:
    """`maskmine tune` by itself and as two processes of torchrun, in turns."""
    rates: dict[int, list[float]] = {1: [], 2: []}
    peaks = []
    for turn in range(rounds):
        for processes in rates:
            print(f"  maskmine tune, {processes} process(es)", flush=True)
            out = folder / f"tuned-{processes}-{turn}"
            config = write_config(out.with_suffix(".json"), shards=shards, clip=clip, out=out, steps=steps)
            peaks.append(run_tuning(config, processes=processes))
            rates[processes].append(images_per_s(out / "log.jsonl"))
    for processes, found in rates.items():
        yield Measure(f"maskmine tune, {processes} process(es)", statistics.median(found), "images/s")
    ratio = statistics.median(two / one for one, two in zip(rates[1], rates[2], strict=True))
    name = "two processes / one"
    yield at_least(name, ratio, "×", 1.7) if usable_cores() > 1 else Measure(f"{name}, on a single core", ratio, "×")
    yield Measure("peak memory of a tuning process", max(peaks) / 1e6, "MB")


def write_config(path: Path, *, shards: Path, clip: Path, out: Path, steps: int, batch_size: int = 64) -> Path:
    """Settings of a run on the CPU whose log has six rows; a process reads its own samples."""
    tree = {
        "clip": {"model": str(clip.absolute())},
        "data": {"sources": [{"folder": str(shards)}], "workers": 0},
        "prompts": {"batch_size": batch_size, "steps": steps, "warmup_steps": min(2, steps)},
        "device": "cpu",
        "log_every": max(1, steps // 6),
        "out": str(out),
    }
    path.write_text(json.dumps(tree))
    return path


def tuning_command(config: Path, *, processes: int) -> list[str]:
    """`maskmine tune`, by itself or under torchrun; both as modules, because a PATH may know neither."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return [
        sys.executable,
        *(torchrun if processes > 1 else []),
        "-m",
        "maskmine.pipelines.cli.main",
        "tune",
        str(config),
    ]


def run_tuning(config: Path, *, processes: int) -> int:
    """Run the program as a user would, one thread a process; the most resident bytes that one of its processes had.

    Raises InputError when it fails.
    """
    with tempfile.TemporaryFile() as told:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        started = psutil.Popen(
            tuning_command(config, processes=processes),
            env=environment,
            cwd=Path(__file__).resolve().parents[2],
            stdout=told,
            stderr=subprocess.STDOUT,
        )
        peak_bytes = _watch_memory(started)
        if started.returncode:
            told.seek(0)
            last = (told.read().decode(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
            raise InputError(
                f"bench: `maskmine tune`, {processes} process(es), ended with {started.returncode}: {last}"
            )
    return peak_bytes


def images_per_s(log: Path) -> float:
    """The mean speed of a run after the first row of its log, which saw the beginning of everything."""
    rows = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
    return float(statistics.harmonic_mean([row["images_per_s"] for row in rows[1:]]))  # rows have as many images


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _usual_load(folder: Path) -> Load:
    if not torch.cuda.is_available():
        return Load(Clip(model=str(_CLIP)), "cpu", batch_size=64, workers=2)
    weights = save_random_clip(folder / "clip.safetensors", model="ViT-B-16")
    clip = Clip(model="ViT-B-16", pretrained=str(weights))
    return Load(clip, "cuda", batch_size=256, workers=max(2, usable_cores() - 1))


def _seconds_a_step(batches: Iterator[Batch], learner: ClipLearner, load: Load) -> float:
    for batch in islice(batches, _WARM_STEPS):
        learner.step(batch, rate_share=0.0)
    start_s = time.perf_counter()
    for batch in islice(batches, load.steps):
        learner.step(batch, rate_share=0.0)  # it waits for the device, because it returns the loss
    if learner.trainable.device.type == "cuda":
        torch.cuda.synchronize(learner.trainable.device)
    return (time.perf_counter() - start_s) / load.steps


def _watch_memory(started: psutil.Popen) -> int:
    """Wait for a process; the most resident bytes of it or one of its children, sampled ten times a second."""
    peak_bytes = 0
    while started.poll() is None:
        with suppress(psutil.NoSuchProcess):
            own = [started, *started.children(recursive=True)]
            peak_bytes = max(peak_bytes, *(process.memory_info().rss for process in own))
        time.sleep(_POLL_S)
    return peak_bytes


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
