"""Tuning at full size on a GPU: ViT-L/14 and ViT-B/16 at 224 pixels with random weights, in bfloat16.

Batches are ready in memory, so this is the speed that reading has to keep up with (`bench tuning` measures reading).

- *share of the peak*: the floating-point operations that a step needs, as torch counts them, over its time and over
  what the maker says of dense bfloat16 products on the device. Goal for prompts: 40 %.
- *prompts / naive*: beside mask prompts as they are put in without a second thought: all weights of CLIP as open_clip
  loads them, so with gradients, of which the optimizer takes the prompts alone; prompts written over blank tokens by
  their index; the nouns of the batch through the text tower at each step (as tokens, they are not counted). Goal: 1.5.

A batch that does not fit is halved until it does.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import max_pool2d, normalize
from torch.utils.flop_counter import FlopCounterMode

from maskmine.mining.models.mask_prompts import new_prompts
from maskmine.pipelines.steps.gpu_use import GpuUse, watch_gpu
from maskmine.scripts.benches.tuning import Mode, new_learner
from maskmine.scripts.measures import Measure, at_least
from maskmine.tuning.clip.data import Batch
from maskmine.tuning.clip.loss import contrastive_loss
from maskmine.tuning.training.processes import Processes, join_processes

MODELS = ("ViT-L-14", "ViT-B-16")
DEPTH = 3
PEAK_FLOPS = {  # dense bfloat16 products a second, from NVIDIA's data sheets; the first name that fits counts
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "B200": 2250e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
}
_NOUNS = 1000
_WARM_STEPS = 3

Step = Callable[[], object]


@dataclass(frozen=True, slots=True)
class StepTime:
    """Seconds of a step of N images, and the most memory that it took on the GPU; None where there is none.

    `use` is that of the GPU during all steps that were timed.
    """

    seconds: float
    images: int
    peak_bytes: int | None
    use: GpuUse = field(default_factory=GpuUse)

    @property
    def images_per_s(self) -> float:
        """Images a second."""
        return self.images / self.seconds


def bench_gpu_tuning(
    *,
    models: tuple[str, ...] = MODELS,
    batch_size: int = 256,
    steps: int = 20,
    device: str = "cuda",
    peak_flops: float | None = None,
) -> Iterator[Measure]:
    """All figures, as they are found. `models` are names that open_clip knows. Raises InputError without a GPU."""
    with join_processes(device) as processes:
        if processes.device.type == "cuda":
            gpu = torch.cuda.get_device_name(processes.device)
            peak_flops = peak_flops or peak_of(gpu)
            print(f"  {gpu}{'' if peak_flops else ': its peak is not known here, so no share of it'}", flush=True)
        for name in models:
            yield from measure_model(
                name, processes=processes, batch_size=batch_size, steps=steps, peak_flops=peak_flops
            )


def measure_model(
    name: str, *, processes: Processes, batch_size: int, steps: int, peak_flops: float | None
) -> Iterator[Measure]:
    """Speed, memory and use of the device in both modes, and prompts beside naive ones."""

    def timed(what: str, start: Callable[[Any, Processes, int], Step]) -> StepTime:
        print(f"  {name}, {what}", flush=True)
        return at_a_size_that_fits(
            lambda images: time_step(name, start, processes=processes, images=images, steps=steps), batch_size
        )

    prompts = timed("prompts", start_prompts)
    yield from _figures(f"{name}, prompts", prompts, flops_of_image(name, "prompts"), peak_flops, least_percent=40)
    finetune = timed("finetune", start_finetune)
    yield from _figures(f"{name}, finetune", finetune, flops_of_image(name, "finetune"), peak_flops)
    naive = timed("naive", start_naive)
    ratio = prompts.images_per_s / naive.images_per_s
    yield at_least(f"{name}: prompts / naive", ratio, "×", 1.5)


def time_step(
    name: str, start: Callable[[Any, Processes, int], Step], *, processes: Processes, images: int, steps: int
) -> StepTime:
    """The median time of a step that `start` makes from a new CLIP, the processes and the number of images."""
    on_gpu = processes.device.type == "cuda"
    gc.collect()
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(processes.device)
    step = start(new_clip(name).to(processes.device), processes, images)

    def timed() -> float:
        start_s = time.perf_counter()
        step()
        if on_gpu:
            torch.cuda.synchronize(processes.device)
        return time.perf_counter() - start_s

    for _ in range(_WARM_STEPS):
        timed()
    with watch_gpu(str(processes.device)) as use:
        seconds = [timed() for _ in range(steps)]
    peak_bytes = torch.cuda.max_memory_allocated(processes.device) if on_gpu else None
    return StepTime(statistics.median(seconds), images, peak_bytes, use)


def at_a_size_that_fits(measure: Callable[[int], StepTime], images: int) -> StepTime:
    """What is measured with N images, or with half of them, a quarter …: as many as the GPU has memory for."""
    while True:
        try:
            return measure(images)
        except torch.OutOfMemoryError:
            if images == 1:
                raise
        images //= 2


def new_clip(name: str) -> Any:
    """An architecture of open_clip with random weights."""
    import open_clip

    torch.manual_seed(0)
    return open_clip.CLIP(**open_clip.get_model_config(name)).eval()


def start_prompts(model: Any, processes: Processes, images: int) -> Step:
    """The step of `maskmine tune` with `mode: prompts`."""
    return _start(model, processes, images, mode="prompts")


def start_finetune(model: Any, processes: Processes, images: int) -> Step:
    """The step of `maskmine tune` with `mode: finetune`."""
    return _start(model, processes, images, mode="finetune")


def start_naive(model: Any, processes: Processes, images: int) -> Step:
    """A step of the same prompts in the plain way (see the top of this file)."""
    prompts_PND = nn.Parameter(new_prompts(model.visual, depth=DEPTH, std=0.02, seed=0).to(processes.device))
    optimizer = torch.optim.AdamW([prompts_PND], lr=1e-3)
    batch = new_batch(model.visual, processes.device, images)
    tokens_BL = torch.randint(1, model.vocab_size, (images, model.context_length)).to(processes.device)

    def step() -> float:
        optimizer.zero_grad()
        pixels_B3SS, masks_BSS = (v.to(processes.device) for v in (batch.pixels_B3SS, batch.masks_BSS))
        with torch.autocast(processes.device.type, torch.bfloat16):
            regions_BE = naive_features(model.visual, prompts_PND, pixels_B3SS, masks_BSS)
            nouns_BE = model.encode_text(tokens_BL)
        loss = contrastive_loss(
            normalize(regions_BE.float(), dim=-1),
            normalize(nouns_BE.float(), dim=-1),
            nouns_B=batch.nouns_G.to(processes.device),
            scale=model.logit_scale.exp(),
            positives="equal_nouns",
        )
        loss.backward()  # type: ignore[no-untyped-call]
        model.zero_grad()
        optimizer.step()
        return loss.item()

    return step


def naive_features(tower: Any, prompts_PND: Tensor, pixels_B3SS: Tensor, masks_BSS: Tensor) -> Tensor:
    """What `PromptedTower` gives, [B, E], with prompts written over the tokens of blank patches."""
    blank_BN = max_pool2d(masks_BSS[:, None].float(), tower.patch_size).flatten(1) == 0
    patches_BND = _overwritten(tower.conv1(pixels_B3SS).flatten(2).permute(0, 2, 1), prompts_PND[0], blank_BN)
    class_B1D = tower.class_embedding.to(patches_BND.dtype).expand(len(patches_BND), 1, -1)
    tokens_BMD = torch.cat([class_B1D, patches_BND], dim=1)
    tokens_BMD = tower.ln_pre(tokens_BMD + tower.positional_embedding.to(tokens_BMD.dtype))
    for number, block in enumerate(tower.transformer.resblocks):
        if 0 < number < len(prompts_PND):
            patches_BND = _overwritten(tokens_BMD[:, 1:], prompts_PND[number], blank_BN)
            tokens_BMD = torch.cat([tokens_BMD[:, :1], patches_BND], dim=1)
        tokens_BMD = block(tokens_BMD)
    embedded_BE: Tensor = tower.ln_post(tokens_BMD[:, 0]) @ tower.proj
    return embedded_BE


def flops_of_image(name: str, mode: Mode) -> float:
    """Floating-point operations of matrix products that an image needs in a step, two for each multiply and add.

    Attention is computed without the recomputation by which faster kernels save memory, so that this does not count.
    """
    model, cpu = new_clip(name), Processes(0, 1, torch.device("cpu"))
    learner = new_learner(model, mode, processes=cpu, precision="float32", nouns=_NOUNS)
    batch = new_batch(model.visual, cpu.device, 1)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        learner.embed(batch.pixels_B3SS, batch.masks_BSS).sum().backward()  # type: ignore[no-untyped-call]
    return float(counter.get_total_flops())


def peak_of(device_name: str) -> float | None:
    """Dense bfloat16 operations a second of a GPU by its name; None for one that is not in the list."""
    found = [flops for words, flops in PEAK_FLOPS.items() if _has_words(device_name, words)]
    return found[0] if found else None


def new_batch(tower: Any, device: torch.device, images: int) -> Batch:
    """Noise, of which masks show a part from the left side, in memory as a loader would leave it."""
    generator = torch.Generator().manual_seed(0)
    side_px = tower.image_size[0]
    shown_px = torch.randint(1, side_px + 1, (images, 1, 1), generator=generator)
    batch = Batch(
        step=0,
        pixels_B3SS=torch.randn(images, 3, side_px, side_px, generator=generator),
        masks_BSS=(torch.arange(side_px).expand(images, side_px, side_px) < shown_px),
        nouns_G=torch.randint(_NOUNS, (images,), generator=generator),
    )
    return batch.pin_memory() if device.type == "cuda" else batch


def _start(model: Any, processes: Processes, images: int, *, mode: Mode) -> Step:
    learner = new_learner(model, mode, processes=processes, precision="bfloat16", nouns=_NOUNS)
    batch = new_batch(model.visual, processes.device, images)
    return lambda: learner.step(batch, rate_share=1e-3)


def _figures(
    name: str, timed: StepTime, flops: float, peak_flops: float | None, *, least_percent: float | None = None
) -> Iterator[Measure]:
    yield Measure(f"{name}, batches of {timed.images}", timed.images_per_s, "images/s")
    if timed.peak_bytes is not None:
        yield Measure(f"{name}: peak memory", timed.peak_bytes / 1e9, "GB")
    if timed.use.percent is not None:
        yield Measure(f"{name}: GPU busy", timed.use.percent, "%")
    flops_per_s = timed.images_per_s * flops
    yield Measure(f"{name}: operations that it needs", flops_per_s / 1e12, "TFLOP/s")
    if peak_flops is not None:
        percent = 100 * flops_per_s / peak_flops
        of_peak = f"{name}: of the peak"
        yield at_least(of_peak, percent, "%", least_percent) if least_percent else Measure(of_peak, percent, "%")


def _overwritten(tokens_BND: Tensor, prompt_ND: Tensor, blank_BN: Tensor) -> Tensor:
    tokens_BND = tokens_BND.clone()
    tokens_BND[blank_BN] = prompt_ND.to(tokens_BND.dtype).expand_as(tokens_BND)[blank_BN]
    return tokens_BND


def _has_words(name: str, words: str) -> bool:
    """Whether all words are among those of a name, which hyphens part, too: `NVIDIA A100-SXM4-80GB`."""
    return set(words.split()) <= set(name.replace("-", " ").split())
