"""Train the demo world's tiny CLIP on whole scenes and natural crops with their captions, never on masked ones.

    bash scripts/train_clip runs/clip --seed 0 --hours 2.5

Scenes are drawn once (some minutes). Then the hours are turned into a number of steps by timing a few, and all that
the weights follow from is written to `OUT/plan.json`: with it, the same kind of machine gives the same weights. A
checkpoint is written every two minutes; the same command goes on from the last one. At the end `OUT/clip` holds the
model as open_clip reads it, in half precision, and `OUT/training.json` says what it reaches.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from mining.models.clip import Clip
from mining.templates import load_templates
from schemas.errors import InputError
from scripts.clip_accuracy import measure_clip
from scripts.demo_nouns import demo_nouns
from scripts.demo_scene import Scene, draw_scene
from scripts.demo_seeds import TRAINING_SEEDS, VALIDATION_SEEDS
from scripts.train_clip_batches import cut_samples, draw_samples
from scripts.train_clip_model import make_tokenizer, save_clip, tiny_clip, tokens_of, towers_of, words_of
from scripts.train_clip_plan import make_plan
from scripts.train_clip_scenes import CachedScenes, captioned_files, open_cache
from scripts.train_clip_steps import WARMUP_SHARE, Plan, State, keep_state, learn, new_state, restore_state, side_px
from scripts.training import (
    CONSOLE,
    Course,
    Row,
    made_ahead,
    progress_bar,
    series,
    take_steps,
    two_plots,
    write_outcome,
)
from scripts.training_plan import Cache, Device, Hours, Out, SceneCount, Seed, Steps, Threads, Workers, open_plan
from scripts.training_scenes import draw_scenes

_CURVE_SCENES = 200
_FINAL_SCENES = range(10_000, 11_000)  # of the validation world
_VALIDATIONS = 30  # in a whole training


def train_clip(out: Path, plan: Plan, *, cache: Path, workers: int) -> dict[str, Any]:
    """Train after a plan, from the last checkpoint if there is one, and return what `training.json` says.

    `cache` is where drawn scenes are kept, `workers` how many processes draw them. Raises InputError when the font
    is missing.
    """
    torch.set_num_threads(plan.threads)
    out.mkdir(parents=True, exist_ok=True)
    world = TRAINING_SEEDS[plan.seed]
    with progress_bar("drawing", unit="scenes", total=plan.scenes) as tick:
        draw_scenes(captioned_files(cache, seed=world), scenes=plan.scenes, workers=workers, tick=tick)
    scenes = open_cache(cache, seed=world, scenes=plan.scenes)
    if len(scenes.nouns()) < plan.batch_size:
        raise InputError(f"scenes {len(scenes)}: too few to show {plan.batch_size} nouns, as a batch does; draw more")
    tokenizer = clip_tokenizer(scenes)
    config = tiny_clip(len(tokenizer))
    state = new_state(config, plan)
    restore_state(out / "checkpoint.pt", state)
    _take_steps(out, plan, state, scenes=scenes, tokenizer=tokenizer, config=config)
    save_clip(out / "clip", state.model, tokenizer=tokenizer, config=config)
    return _outcome(out, plan, state)


def clip_tokenizer(scenes: CachedScenes) -> PreTrainedTokenizerFast:
    """A tokenizer for the words of the training captions, of all nouns and of the usual templates."""
    nouns = (name for noun in demo_nouns() for name in (noun.noun, noun.plural))
    templates = (*load_templates("vild"), *load_templates("imagenet"))
    return make_tokenizer(words_of(scenes.captions()) | words_of(nouns) | words_of(templates))


def _take_steps(
    out: Path,
    plan: Plan,
    state: State,
    *,
    scenes: CachedScenes,
    tokenizer: PreTrainedTokenizerFast,
    config: dict[str, Any],
) -> None:
    """All steps from `state.step` on, with the log, the curves and checkpoints."""
    held = [draw_scene(VALIDATION_SEEDS[plan.seed], index=index) for index in range(_CURVE_SCENES)]
    length = config["model_cfg"]["text_cfg"]["context_length"]

    def make(step: int, workers: Executor) -> tuple[Tensor, Tensor]:
        """Pixels, uint8 [B, S, S, 3], and tokens [B, T]."""
        samples = draw_samples(scenes, seed=plan.seed, number=step, count=plan.batch_size)
        size_px = side_px(step, steps=plan.steps, config=config)
        pixels_BSS3 = torch.from_numpy(cut_samples(samples, size_px=size_px, workers=workers))
        return pixels_BSS3, tokens_of([s.caption for s in samples], tokenizer=tokenizer, length=length)

    course: Course[tuple[Tensor, Tensor]] = Course(
        learn=lambda batch: learn(state, *batch, precision=plan.precision, config=config),
        row=lambda: _row(state),
        validate=lambda: _validated(state, held, tokenizer, config),
        validations=_VALIDATIONS,
        warmup_share=WARMUP_SHARE,
        draw_curves=_draw_curves,
        say=_say,
        keep=lambda path: keep_state(path, state),
    )
    batches = made_ahead(make, first=state.step, steps=plan.steps, threads=plan.threads)
    take_steps(state, out=out, batches=batches, course=course, steps=plan.steps, batch_size=plan.batch_size)


def _row(state: State) -> dict[str, float]:
    return {
        "loss": round(state.loss, 4),
        "in_batch_top1": round(state.in_batch_top1, 4),
        "scale": round(state.model.logit_scale.exp().item(), 2),
    }


def _validated(
    state: State, held: list[Scene], tokenizer: PreTrainedTokenizerFast, config: dict[str, Any]
) -> dict[str, float]:
    """Zero-shot top-1 on scenes that training does not see."""
    state.model.eval()
    found = measure_clip(*towers_of(state.model, tokenizer=tokenizer, config=config), held)
    state.model.train()
    return {"surroundings": found.surroundings.top1, "tight": found.tight.top1, "masked": found.masked.top1}


def _say(rows: Sequence[Row]) -> str:
    zero_shot = next((f", zero-shot {row['surroundings']:.0%}" for row in reversed(rows) if "surroundings" in row), "")
    return f"{rows[-1]['images_per_s']:,.0f}/s, loss {rows[-1]['loss']:.2f}{zero_shot}"


def _draw_curves(path: Path, rows: Sequence[Row]) -> None:
    """Loss, accuracy within the batch, and zero-shot accuracy, as PNG."""
    with two_plots(path) as (losses, shares):
        losses.plot(*series(rows, "loss"), color="tab:blue")
        losses.set(ylabel="contrastive loss of crops", ylim=(0, None))
        shares.plot(*series(rows, "in_batch_top1"), color="tab:grey", label="right caption in the batch")
        for name, said in (
            ("surroundings", "single objects with surroundings"),
            ("tight", "tight crops of crowded scenes"),
            ("masked", "masked crops of crowded scenes"),
        ):
            shares.plot(*series(rows, name), marker=".", label=f"zero-shot: {said}")
        shares.set(ylabel="share right", ylim=(0, 1))
        shares.legend(loc="lower right", fontsize="small")


def _outcome(out: Path, plan: Plan, state: State) -> dict[str, Any]:
    """What the saved model reaches on scenes that training does not see, and which seeds it has seen."""
    clip = Clip(model=str(out / "clip"), precision="float32", batch_size=128, licence="CC-BY-SA-4.0")
    scenes = (draw_scene(VALIDATION_SEEDS[plan.seed], index=index) for index in _FINAL_SCENES)
    accuracy = measure_clip(clip.open_image(device=plan.device), clip.open_text(device=plan.device), scenes)
    parameters = {
        "image": sum(value.numel() for value in state.model.visual.parameters()),
        "all": sum(value.numel() for value in state.model.parameters()),
    }
    found = {"nouns": len(demo_nouns()), "accuracy": asdict(accuracy)}
    return write_outcome(out, plan, parameters=parameters, weights="clip/open_clip_model.safetensors", found=found)


def main(
    out: Out,
    seed: Seed = 0,
    hours: Hours = 2.5,
    steps: Steps = None,
    precision: Annotated[str, typer.Option(help="auto (the faster here), float32 or bf16")] = "auto",
    scenes: SceneCount = 150_000,
    threads: Threads = 2,
    device: Device = "cpu",
    cache: Cache = None,
    workers: Workers = 2,
) -> None:
    """Train the tiny CLIP of the demo world; the same command again goes on after an interruption."""
    asked = {"seed": seed, "steps": steps, "precision": precision, "scenes": scenes, "threads": threads}

    def make() -> Plan:
        return make_plan(
            seed=seed, hours=hours, steps=steps, scenes=scenes, precision=precision, threads=threads, device=device
        )

    try:
        plan = open_plan(out, Plan, make=make, asked=asked)
        CONSOLE.print(f"{plan.steps:,} steps of {plan.batch_size} pictures, {plan.precision}, {plan.threads} threads")
        outcome = train_clip(out, plan, cache=cache or out / "scenes", workers=workers)
    except InputError as error:
        CONSOLE.print(f"error: {error}", highlight=False)
        raise typer.Exit(2) from error
    for kind, found in outcome["accuracy"].items():
        CONSOLE.print(f"{kind:<13} top-1 {found['top1']:.1%}  top-5 {found['top5']:.1%}  of {found['crops']:,} crops")


if __name__ == "__main__":
    typer.run(main)
