"""Train the demo world's tiny MaskFormer on the masks of some of its nouns; the others show how it generalises.

    bash scripts/train_maskformer runs/maskformer --seed 0 --hours 2.5

Scenes are drawn once (some minutes). Then the hours are turned into a number of steps by timing a few, and all that
the weights follow from is written to `OUT/plan.json`: with it, the same kind of machine gives the same weights. A
checkpoint is written every two minutes; the same command goes on from the last one. At the end `OUT/maskformer` holds
the model as transformers reads it, in half precision, and `OUT/training.json` says what it reaches.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import typer

from mining.models.maskformer import MaskFormer
from schemas.errors import InputError
from scripts.demo_nouns import demo_nouns
from scripts.demo_scene import Scene, draw_scene
from scripts.demo_seeds import TRAINING_SEEDS, VALIDATION_SEEDS
from scripts.demo_seen import seen_nouns
from scripts.proposal_recall import ProposalRecall, measure_proposals
from scripts.train_maskformer_batches import Batch, draw_samples, make_batch
from scripts.train_maskformer_model import query_places, save_maskformer, tiny_maskformer
from scripts.train_maskformer_plan import make_plan
from scripts.train_maskformer_scenes import MaskedScenes, masked_files, open_masked
from scripts.train_maskformer_steps import (
    WARMUP_SHARE,
    Plan,
    State,
    keep_state,
    learn,
    new_state,
    restore_state,
    short_side_px,
)
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

_CURVE_SCENES = 60
_FINAL_SCENES = range(10_000, 11_000)  # of the validation world
_VALIDATIONS = 10  # in a whole training

_LOSSES = {"speak": "which query speaks", "cell": "masks, by cell", "dice": "masks, dice", "object": "object or not"}
_RECALLS = {"seen": "seen nouns, IoU 0.5", "unseen": "unseen nouns, IoU 0.5", "all_at_75": "all nouns, IoU 0.75"}


def train_maskformer(out: Path, plan: Plan, *, cache: Path, workers: int) -> dict[str, Any]:
    """Train after a plan, from the last checkpoint if there is one, and return what `training.json` says.

    `cache` is where drawn scenes are kept, `workers` how many processes draw them. Raises InputError when the font
    is missing.
    """
    torch.set_num_threads(plan.threads)
    out.mkdir(parents=True, exist_ok=True)
    world = TRAINING_SEEDS[plan.seed]
    with progress_bar("drawing", unit="scenes", total=plan.scenes) as tick:
        draw_scenes(masked_files(cache, seed=world), scenes=plan.scenes, workers=workers, tick=tick)
    scenes = open_masked(cache, seed=world, scenes=plan.scenes)
    config = tiny_maskformer()
    state = new_state(config, plan)
    restore_state(out / "checkpoint.pt", state)
    _take_steps(out, plan, state, scenes=scenes, config=config)
    save_maskformer(out / "maskformer", state.model, config=config)
    return _outcome(out, plan, state)


def _take_steps(out: Path, plan: Plan, state: State, *, scenes: MaskedScenes, config: dict[str, Any]) -> None:
    """All steps from `state.step` on, with the log, the curves and checkpoints."""
    held = [draw_scene(VALIDATION_SEEDS[plan.seed], index=index) for index in range(_CURVE_SCENES)]
    places_Q2 = query_places(config).numpy()

    def make(step: int, workers: Executor) -> Batch:
        size_hw, samples = draw_samples(scenes, seed=plan.seed, number=step, count=plan.batch_size)
        short_px = short_side_px(step, steps=plan.steps, config=config)
        return make_batch(samples, size_hw=size_hw, short_side_px=short_px, places_Q2=places_Q2, workers=workers)

    course: Course[Batch] = Course(
        learn=lambda batch: learn(state, batch, config=config),
        row=lambda: {name: round(value, 4) for name, value in state.means.items()},
        validate=lambda: _validated(out / "current", state, held, config),
        validations=_VALIDATIONS,
        warmup_share=WARMUP_SHARE,
        draw_curves=_draw_curves,
        say=_say,
        keep=lambda path: keep_state(path, state),
    )
    batches = made_ahead(make, first=state.step, steps=plan.steps, threads=plan.threads)
    take_steps(state, out=out, batches=batches, course=course, steps=plan.steps, batch_size=plan.batch_size)


def _validated(folder: Path, state: State, held: list[Scene], config: dict[str, Any]) -> dict[str, float]:
    """Recall on scenes that training does not see, of the model as it would be saved now."""
    save_maskformer(folder, state.model, config=config)
    found = _measured(folder, held, device=str(state.model.device))
    return {"seen": found.seen.at_50, "unseen": found.unseen.at_50, "all_at_75": found.all.at_75}


def _measured(folder: Path, scenes: Iterable[Scene], *, device: str) -> ProposalRecall:
    proposals = MaskFormer(kind="maskformer", checkpoint=str(folder), precision="float32", licence="CC-BY-SA-4.0")
    return measure_proposals(proposals.open(device=device), scenes)


def _say(rows: Sequence[Row]) -> str:
    recall = next(
        (f", recall {row['seen']:.0%}, unseen {row['unseen']:.0%}" for row in reversed(rows) if "seen" in row), ""
    )
    return f"{rows[-1]['images_per_s']:,.0f}/s, loss {rows[-1]['loss']:.2f}{recall}"


def _draw_curves(path: Path, rows: Sequence[Row]) -> None:
    """The losses, and the recall of proposals, as PNG."""
    with two_plots(path) as (losses, recalls):
        for axes, names, marker in ((losses, _LOSSES, ""), (recalls, _RECALLS, ".")):
            for name, said in names.items():
                axes.plot(*series(rows, name), marker=marker, label=said)
            axes.legend(fontsize="small")
        losses.set(ylabel="loss", ylim=(0, None))
        recalls.set(ylabel="recall with 30 proposals", ylim=(0, 1))


def _outcome(out: Path, plan: Plan, state: State) -> dict[str, Any]:
    """What the saved model reaches on scenes that training does not see, and which seeds it has seen."""
    scenes = (draw_scene(VALIDATION_SEEDS[plan.seed], index=index) for index in _FINAL_SCENES)
    recall = _measured(out / "maskformer", scenes, device=plan.device)
    parameters = sum(value.numel() for value in state.model.parameters())
    found = {"nouns": {"seen": len(seen_nouns()), "all": len(demo_nouns())}, "recall": asdict(recall)}
    return write_outcome(out, plan, parameters=parameters, weights="maskformer/model.safetensors", found=found)


def main(
    out: Out,
    seed: Seed = 0,
    hours: Hours = 2.5,
    steps: Steps = None,
    scenes: SceneCount = 60_000,
    threads: Threads = 2,
    device: Device = "cpu",
    cache: Cache = None,
    workers: Workers = 2,
) -> None:
    """Train the tiny MaskFormer of the demo world; the same command again goes on after an interruption."""
    asked = {"seed": seed, "steps": steps, "scenes": scenes, "threads": threads}

    def make() -> Plan:
        return make_plan(seed=seed, hours=hours, steps=steps, scenes=scenes, threads=threads, device=device)

    try:
        plan = open_plan(out, Plan, make=make, asked=asked)
        CONSOLE.print(f"{plan.steps:,} steps of {plan.batch_size} pictures, {plan.threads} threads")
        outcome = train_maskformer(out, plan, cache=cache or out / "scenes", workers=workers)
    except InputError as error:
        CONSOLE.print(f"error: {error}", highlight=False)
        raise typer.Exit(2) from error
    for kind in ("all", "seen", "unseen"):
        found = outcome["recall"][kind]
        CONSOLE.print(f"{kind:<7} recall {found['at_50']:.1%} at IoU 0.5, {found['at_75']:.1%} at 0.75")


if __name__ == "__main__":
    typer.run(main)
