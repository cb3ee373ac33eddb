"""Train the demo world's tiny CLIP on whole scenes and natural crops with their captions, never on masked ones.

    bash scripts/train_clip runs/clip --seed 0 --hours 2.5

Scenes are drawn once (some minutes). Then the hours are turned into a number of steps by timing a few, and all that
the weights follow from is written to `OUT/plan.json`: with it, the same kind of machine gives the same weights. A
checkpoint is written every two minutes; the same command goes on from the last one. At the end `OUT/clip` holds the
model as open_clip reads it, in half precision, and `OUT/training.json` says what it reaches.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from mining.models.clip import Clip
from mining.templates import load_templates
from mining.weights import weights_sha256
from schemas.errors import InputError
from scripts.clip_accuracy import measure_clip
from scripts.demo_nouns import demo_nouns
from scripts.demo_scene import Scene, draw_scene
from scripts.demo_seeds import HELD_OUT_SEEDS, TRAINING_SEEDS, VALIDATION_SEEDS
from scripts.train_clip_batches import cut_samples, draw_samples
from scripts.train_clip_log import Row, append_row, draw_curves, read_rows, rewrite_rows
from scripts.train_clip_model import make_tokenizer, save_clip, tiny_clip, tokens_of, towers_of, words_of
from scripts.train_clip_plan import check_plan, make_plan, read_plan
from scripts.train_clip_steps import (
    Plan,
    State,
    learn,
    learning_rate_share,
    new_state,
    read_checkpoint,
    side_px,
    write_checkpoint,
)
from scripts.train_scenes import CachedScenes, draw_cache, open_cache

_CURVE_SCENES = 200
_FINAL_SCENES = range(10_000, 11_000)  # of the validation world
_VALIDATIONS = 30  # in a whole training
_ROWS = 600  # of the log
_CHECKPOINT_S = 120.0

CONSOLE = Console()


def train_clip(out: Path, plan: Plan, *, cache: Path, workers: int) -> dict[str, Any]:
    """Train after a plan, from the last checkpoint if there is one, and return what `training.json` says.

    `cache` is where drawn scenes are kept, `workers` how many processes draw them. Raises InputError when the font
    is missing.
    """
    torch.set_num_threads(plan.threads)
    out.mkdir(parents=True, exist_ok=True)
    world = TRAINING_SEEDS[plan.seed]
    _draw(cache, world, plan.scenes, workers)
    scenes = open_cache(cache, seed=world, scenes=plan.scenes)
    if len(scenes.nouns()) < plan.batch_size:
        raise InputError(f"scenes {len(scenes)}: too few to show {plan.batch_size} nouns, as a batch does; draw more")
    tokenizer = clip_tokenizer(scenes)
    config = tiny_clip(len(tokenizer))
    state = new_state(config, plan)
    read_checkpoint(out / "checkpoint.pt", state)
    _take_steps(out, plan, state, scenes=scenes, tokenizer=tokenizer, config=config)
    save_clip(out / "clip", state.model, tokenizer=tokenizer, config=config)
    outcome = _outcome(out / "clip", plan, state)
    _write_json(out / "training.json", outcome)
    return outcome


def clip_tokenizer(scenes: CachedScenes) -> PreTrainedTokenizerFast:
    """A tokenizer for the words of the training captions, of all nouns and of the usual templates."""
    nouns = (name for noun in demo_nouns() for name in (noun.noun, noun.plural))
    templates = (*load_templates("vild"), *load_templates("imagenet"))
    return make_tokenizer(words_of(scenes.captions()) | words_of(nouns) | words_of(templates))


def _draw(cache: Path, world: int, scenes: int, workers: int) -> None:
    with _progress("scenes") as progress:
        task = progress.add_task("drawing", total=scenes, said="")
        draw_cache(cache, seed=world, scenes=scenes, workers=workers, tick=lambda more: progress.advance(task, more))


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
    rows = read_rows(out / "log.jsonl", upto_step=state.step)
    rewrite_rows(out / "log.jsonl", rows)
    held = [draw_scene(VALIDATION_SEEDS[plan.seed], index=index) for index in range(_CURVE_SCENES)]
    kept_s, clock = time.monotonic(), _Clock(state.step)
    with _progress("pictures") as progress:
        task = progress.add_task("training", total=plan.steps * plan.batch_size, said="")
        progress.update(task, completed=state.step * plan.batch_size)
        for pixels_BSS3, tokens_BT in _batches(plan, state.step, scenes, tokenizer, config):
            learn(state, pixels_BSS3, tokens_BT, plan=plan, config=config)
            progress.advance(task, plan.batch_size)
            if not _is_due(state.step, plan.steps, times=_ROWS):
                continue
            rows.append(_row(state, plan, images_per_s=plan.batch_size * clock.steps_per_s(state.step)))
            if _is_due(state.step, plan.steps, times=_VALIDATIONS):
                rows[-1] |= _validated(state, held, tokenizer, config)
                draw_curves(out / "curve.png", rows)
            append_row(out / "log.jsonl", rows[-1])
            progress.update(task, said=_said(rows))
            if not CONSOLE.is_terminal and "surroundings" in rows[-1]:
                CONSOLE.print(f"step {state.step:,} of {plan.steps:,}: {_said(rows)}", highlight=False)
            if time.monotonic() - kept_s > _CHECKPOINT_S:
                write_checkpoint(out / "checkpoint.pt", state)
                kept_s = time.monotonic()
    write_checkpoint(out / "checkpoint.pt", state)


def _batches(
    plan: Plan, first: int, scenes: CachedScenes, tokenizer: PreTrainedTokenizerFast, config: dict[str, Any]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Pixels, uint8 [B, S, S, 3], and tokens [B, T] of every step from `first` on; the next one is made meanwhile."""
    length = config["model_cfg"]["text_cfg"]["context_length"]

    with ThreadPoolExecutor(1) as ahead, ThreadPoolExecutor(plan.threads) as workers:

        def make(step: int) -> tuple[Tensor, Tensor]:
            samples = draw_samples(scenes, seed=plan.seed, number=step, count=plan.batch_size)
            size_px = side_px(step, steps=plan.steps, config=config)
            pixels_BSS3 = torch.from_numpy(cut_samples(samples, size_px=size_px, workers=workers))
            return pixels_BSS3, tokens_of([s.caption for s in samples], tokenizer=tokenizer, length=length)

        made = ahead.submit(make, first)
        for step in range(first, plan.steps):
            batch, made = made.result(), ahead.submit(make, step + 1)
            yield batch


@dataclass
class _Clock:
    """Speed since it was last asked."""

    step: int
    since_s: float = field(default_factory=time.monotonic)

    def steps_per_s(self, step: int) -> float:
        now_s = time.monotonic()
        speed = (step - self.step) / (now_s - self.since_s)
        self.step, self.since_s = step, now_s
        return speed


def _is_due(step: int, steps: int, *, times: int) -> bool:
    """Whether one of `times` evenly spread occasions has come with this step; the last comes with the last step."""
    return step * times // steps > (step - 1) * times // steps


def _row(state: State, plan: Plan, *, images_per_s: float) -> Row:
    return {
        "step": state.step,
        "images": state.step * plan.batch_size,
        "loss": round(state.loss, 4),
        "in_batch_top1": round(state.in_batch_top1, 4),
        "scale": round(state.model.logit_scale.exp().item(), 2),
        "learning_rate_share": round(learning_rate_share(state.step - 1, steps=plan.steps), 6),
        "images_per_s": round(images_per_s, 1),
    }


def _validated(
    state: State, held: list[Scene], tokenizer: PreTrainedTokenizerFast, config: dict[str, Any]
) -> dict[str, float]:
    """Zero-shot top-1 on scenes that training does not see."""
    state.model.eval()
    found = measure_clip(*towers_of(state.model, tokenizer=tokenizer, config=config), held)
    state.model.train()
    return {"surroundings": found.surroundings.top1, "tight": found.tight.top1, "masked": found.masked.top1}


def _said(rows: list[Row]) -> str:
    zero_shot = next((f", zero-shot {row['surroundings']:.0%}" for row in reversed(rows) if "surroundings" in row), "")
    return f"{rows[-1]['images_per_s']:,.0f}/s, loss {rows[-1]['loss']:.2f}{zero_shot}"


def _outcome(folder: Path, plan: Plan, state: State) -> dict[str, Any]:
    """What the saved model reaches on scenes that training does not see, and which seeds it has seen."""
    clip = Clip(model=str(folder), precision="float32", batch_size=128, licence="CC-BY-SA-4.0")
    scenes = (draw_scene(VALIDATION_SEEDS[plan.seed], index=index) for index in _FINAL_SCENES)
    accuracy = measure_clip(clip.open_image(device=plan.device), clip.open_text(device=plan.device), scenes)
    weights = folder / "open_clip_model.safetensors"
    return {
        "plan": asdict(plan),
        "parameters": {
            "image": sum(value.numel() for value in state.model.visual.parameters()),
            "all": sum(value.numel() for value in state.model.parameters()),
        },
        "weights": {"bytes": weights.stat().st_size, "sha256": weights_sha256(weights)},
        "seeds": {
            name: [seeds[0], seeds[-1]]
            for name, seeds in (
                ("training", TRAINING_SEEDS),
                ("validation", VALIDATION_SEEDS),
                ("held_out", HELD_OUT_SEEDS),
            )
        },
        "nouns": len(demo_nouns()),
        "accuracy": asdict(accuracy),
    }


def _write_json(path: Path, content: Any) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, path)


def _progress(unit: str) -> Progress:
    """A bar with the time left; `said` is what it shows beside."""
    return Progress(
        TextColumn("{task.description:<9}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TextColumn("{task.fields[said]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=CONSOLE,
    )


def main(
    out: Annotated[Path, typer.Argument(help="folder of the training; one that was begun goes on")],
    seed: Annotated[int, typer.Option(help="world to learn from, first weights, order")] = 0,
    hours: Annotated[float, typer.Option(help="how long to train, after drawing")] = 2.5,
    steps: Annotated[int | None, typer.Option(help="how many steps, rather than hours")] = None,
    precision: Annotated[str, typer.Option(help="auto (the faster here), float32 or bf16")] = "auto",
    scenes: Annotated[int, typer.Option(help="how many scenes to draw and learn from")] = 150_000,
    threads: Annotated[int, typer.Option(help="threads of the model; their number decides last bits")] = 2,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto")] = "cpu",
    cache: Annotated[Path | None, typer.Option(help="where drawn scenes are kept; OUT/scenes if not given")] = None,
    workers: Annotated[int, typer.Option(help="processes that draw; nothing depends on it")] = 2,
) -> None:
    """Train the tiny CLIP of the demo world; the same command again goes on after an interruption."""
    try:
        plan = read_plan(out / "plan.json")
        if plan is None:
            plan = make_plan(
                seed=seed,
                hours=hours,
                steps=steps,
                scenes=scenes,
                precision=precision,
                threads=threads,
                device=device,
            )
            out.mkdir(parents=True, exist_ok=True)
            _write_json(out / "plan.json", asdict(plan))
        asked = {"seed": seed, "steps": steps, "precision": precision, "scenes": scenes, "threads": threads}
        check_plan(plan, {name: value for name, value in asked.items() if value not in (None, "auto")}, out)
        CONSOLE.print(f"{plan.steps:,} steps of {plan.batch_size} pictures, {plan.precision}, {plan.threads} threads")
        outcome = train_clip(out, plan, cache=cache or out / "scenes", workers=workers)
    except InputError as error:
        CONSOLE.print(f"error: {error}", highlight=False)
        raise typer.Exit(2) from error
    for kind, found in outcome["accuracy"].items():
        CONSOLE.print(f"{kind:<13} top-1 {found['top1']:.1%}  top-5 {found['top5']:.1%}  of {found['crops']:,} crops")


if __name__ == "__main__":
    typer.run(main)
