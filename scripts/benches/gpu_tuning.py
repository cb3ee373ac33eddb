"""Tuning at full size on a GPU: ViT-L/14 and ViT-B/16 at 224 pixels with random weights, in bfloat16.

Batches are ready in memory, so this is the speed that reading has to keep up with (`bench tuning` measures reading).

- *share of the peak*: the floating-point operations that a step needs (`flops_of_image`), over its time and over what
  the maker says of dense bfloat16 products on the device. Goal for prompts: 40 %.
- *prompts / naive*: beside mask prompts as they are put in without a second thought: all weights of CLIP as open_clip
  loads them, so with gradients, of which the optimizer takes the prompts alone; prompts written over blank tokens by
  their index; the nouns of the batch through the text tower at each step (as tokens, they are not counted). Goal: 1.5.
  *naive, frozen* is the same with weights that have no gradients.
- *hours*: for the 442,117 pairs and five epochs that OVSeg's script names.

A batch that does not fit is halved until it does.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d, normalize

from scripts.bench_tuning import Mode, new_learner
from scripts.measures import Measure
from tuning.data import Batch
from tuning.objective import contrastive_loss
from tuning.processes import Processes, join_processes
from tuning.prompts import embedding_width_of, new_prompts, patches_of, width_of
from tuning.steps import learn

MODELS = ("ViT-L-14", "ViT-B-16")
PAIRS, EPOCHS = 442_117, 5
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
    """Seconds of a step of so many pictures, and the most memory that it took on the GPU; None where there is none."""

    seconds: float
    pictures: int
    peak_bytes: int | None

    @property
    def images_per_s(self) -> float:
        """Pictures a second."""
        return self.pictures / self.seconds


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
            lambda pictures: time_step(name, start, processes=processes, pictures=pictures, steps=steps), batch_size
        )

    visual = new_clip(name).visual
    prompts = timed("prompts", start_prompts)
    yield from _figures(f"{name}, prompts", prompts, flops_of_image(visual, "prompts"), peak_flops, least_percent=40)
    finetune = timed("finetune", start_finetune)
    yield from _figures(f"{name}, finetune", finetune, flops_of_image(visual, "finetune"), peak_flops)
    naive, frozen = timed("naive", start_naive), timed("naive, frozen", start_frozen)
    ratio = prompts.images_per_s / naive.images_per_s
    yield Measure(f"{name}: prompts / naive", ratio, "×", "≥ 1.5", ratio >= 1.5)
    yield Measure(f"{name}: prompts / naive, frozen", prompts.images_per_s / frozen.images_per_s, "×", "", None)


def time_step(
    name: str, start: Callable[[Any, Processes, int], Step], *, processes: Processes, pictures: int, steps: int
) -> StepTime:
    """The median time of a step that `start` makes from a new CLIP, the processes and the number of pictures."""
    on_gpu = processes.device.type == "cuda"
    gc.collect()
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(processes.device)
    step = start(new_clip(name).to(processes.device), processes, pictures)
    seconds = []
    for _ in range(_WARM_STEPS + steps):
        start_s = time.perf_counter()
        step()
        if on_gpu:
            torch.cuda.synchronize(processes.device)
        seconds.append(time.perf_counter() - start_s)
    peak_bytes = torch.cuda.max_memory_allocated(processes.device) if on_gpu else None
    return StepTime(statistics.median(seconds[_WARM_STEPS:]), pictures, peak_bytes)


def at_a_size_that_fits(measure: Callable[[int], StepTime], pictures: int) -> StepTime:
    """What is measured with so many pictures, or with half of them, a quarter …: as many as the GPU has memory for."""
    while True:
        try:
            return measure(pictures)
        except torch.OutOfMemoryError:
            if pictures == 1:
                raise
        pictures //= 2


def new_clip(name: str) -> Any:
    """An architecture of open_clip with random weights."""
    import open_clip

    torch.manual_seed(0)
    return open_clip.CLIP(**open_clip.get_model_config(name)).eval()


def start_prompts(model: Any, processes: Processes, pictures: int) -> Step:
    """The step of `maskmine tune` with `mode: prompts`."""
    return _start(model, processes, pictures, mode="prompts")


def start_finetune(model: Any, processes: Processes, pictures: int) -> Step:
    """The step of `maskmine tune` with `mode: finetune`."""
    return _start(model, processes, pictures, mode="finetune")


def start_naive(model: Any, processes: Processes, pictures: int) -> Step:
    """A step of the same prompts in the plain way (see the top of this file)."""
    prompts_PND = nn.Parameter(new_prompts(model.visual, depth=DEPTH, std=0.02, seed=0).to(processes.device))
    optimizer = torch.optim.AdamW([prompts_PND], lr=1e-3)
    batch = new_batch(model.visual, processes.device, pictures)
    tokens_BL = torch.randint(1, model.vocab_size, (pictures, model.context_length)).to(processes.device)

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


def start_frozen(model: Any, processes: Processes, pictures: int) -> Step:
    """The plain way, with weights that have no gradients."""
    return start_naive(model.requires_grad_(False), processes, pictures)


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


def flops_of_image(tower: Any, mode: Mode) -> float:
    """Floating-point operations of matrix products that a picture needs in a step, two for each multiply and add.

    Forward, a token of width D meets 4 D² weights of attention and those of its MLP in each layer, and attention itself
    is two products of T × T × D. Backward, activations need as much again (attention, whose factors are both
    activations, twice as much), and weights that learn once more. So counts PaLM (arXiv 2204.02311, appendix B); what
    is computed again to save memory does not count.
    """
    blocks = tower.transformer.resblocks
    width, patches = width_of(tower), patches_of(tower)
    tokens = patches + 1
    layers = 2 * tokens * sum(4 * width**2 + 2 * width * block.mlp.c_fc.out_features for block in blocks)
    attention = 4 * tokens**2 * width * len(blocks)
    cut = 2 * patches * tower.conv1.weight.numel()
    projection = 2 * width * embedding_width_of(tower)
    if mode == "prompts":
        return float(2 * layers + 3 * attention + cut + 2 * projection)
    return float(3 * layers + 3 * attention + 2 * cut + 3 * projection)


def peak_of(device_name: str) -> float | None:
    """Dense bfloat16 operations a second of a GPU by its name; None for one that is not in the list."""
    found = [flops for words, flops in PEAK_FLOPS.items() if _has_words(device_name, words)]
    return found[0] if found else None


def new_batch(tower: Any, device: torch.device, pictures: int) -> Batch:
    """Noise, of which masks show a part from the left side, in memory as a loader would leave it."""
    generator = torch.Generator().manual_seed(0)
    side_px = tower.image_size[0]
    shown_px = torch.randint(1, side_px + 1, (pictures, 1, 1), generator=generator)
    batch = Batch(
        step=0,
        pixels_B3SS=torch.randn(pictures, 3, side_px, side_px, generator=generator),
        masks_BSS=(torch.arange(side_px).expand(pictures, side_px, side_px) < shown_px),
        nouns_G=torch.randint(_NOUNS, (pictures,), generator=generator),
    )
    return batch.pin_memory() if device.type == "cuda" else batch


def _start(model: Any, processes: Processes, pictures: int, *, mode: Mode) -> Step:
    learner = new_learner(model, mode, processes=processes, precision="bfloat16", nouns=_NOUNS)
    batch = new_batch(model.visual, processes.device, pictures)
    return lambda: learn(learner, batch, rate_share=1e-3)


def _figures(
    name: str, timed: StepTime, flops: float, peak_flops: float | None, *, least_percent: float | None = None
) -> Iterator[Measure]:
    yield Measure(f"{name}, batches of {timed.pictures}", timed.images_per_s, "images/s", "", None)
    if timed.peak_bytes is not None:
        yield Measure(f"{name}: peak memory", timed.peak_bytes / 1e9, "GB", "", None)
    flops_per_s = timed.images_per_s * flops
    yield Measure(f"{name}: operations that it needs", flops_per_s / 1e12, "TFLOP/s", "", None)
    if peak_flops is not None:
        percent = 100 * flops_per_s / peak_flops
        goal = f"≥ {least_percent:g}" if least_percent else ""
        yield Measure(f"{name}: of the peak", percent, "%", goal, percent >= least_percent if least_percent else None)
    hours = PAIRS * EPOCHS / timed.images_per_s / 3600
    yield Measure(f"{name}: {PAIRS:,} pairs, {EPOCHS} epochs", hours, "h", "", None)


def _overwritten(tokens_BND: Tensor, prompt_ND: Tensor, blank_BN: Tensor) -> Tensor:
    tokens_BND = tokens_BND.clone()
    tokens_BND[blank_BN] = prompt_ND.to(tokens_BND.dtype).expand_as(tokens_BND)[blank_BN]
    return tokens_BND


def _has_words(name: str, words: str) -> bool:
    """Whether all words are among those of a name, which hyphens part, too: `NVIDIA A100-SXM4-80GB`."""
    return set(words.split()) <= set(name.replace("-", " ").split())
