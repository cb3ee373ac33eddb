"""Train the demo world's tiny MaskFormer on the masks of some of its nouns; the others show how it generalises.

    bash scripts/train_maskformer runs/maskformer --seed 0 --hours 2.5

Scenes are drawn once (some minutes). Then the hours are turned into a number of steps by timing a few, and all that
the weights follow from is written to `OUT/plan.json`: with it, the same kind of machine gives the same weights. A
checkpoint is written every two minutes; the same command goes on from the last one. At the end `OUT/maskformer` holds
the model as transformers reads it, in half precision, and `OUT/training.json` says what it reaches.
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

from mining.models.maskformer import MaskFormer
from mining.weights import weights_sha256
from schemas.errors import InputError
from scripts.demo_nouns import demo_nouns
from scripts.demo_scene import Scene, draw_scene
from scripts.demo_seeds import HELD_OUT_SEEDS, TRAINING_SEEDS, VALIDATION_SEEDS
from scripts.demo_seen import seen_nouns
from scripts.proposal_recall import ProposalRecall, measure_proposals
from scripts.train_clip_log import Row, append_row, read_rows, rewrite_rows
from scripts.train_maskformer_batches import Batch, draw_samples, make_batch
from scripts.train_maskformer_log import draw_curves
from scripts.train_maskformer_model import query_places, save_maskformer, tiny_maskformer
from scripts.train_maskformer_plan import check_plan, make_plan, read_plan
from scripts.train_maskformer_scenes import MaskedScenes, draw_masked, open_masked
from scripts.train_maskformer_steps import (
    Plan,
    State,
    learn,
    learning_rate_share,
    new_state,
    read_checkpoint,
    short_side_px,
    write_checkpoint,
)

_CURVE_SCENES = 60
_FINAL_SCENES = range(10_000, 11_000)  # of the validation world
_VALIDATIONS = 10  # in a whole training
_ROWS = 600  # of the log
_CHECKPOINT_S = 120.0

CONSOLE = Console()


def train_maskformer(out: Path, plan: Plan, *, cache: Path, workers: int) -> dict[str, Any]:
    """Train after a plan, from the last checkpoint if there is one, and return what `training.json` says.

    `cache` is where drawn scenes are kept, `workers` how many processes draw them. Raises InputError when the font
    is missing.
    """
    torch.set_num_threads(plan.threads)
    out.mkdir(parents=True, exist_ok=True)
    world = TRAINING_SEEDS[plan.seed]
    _draw(cache, world, plan.scenes, workers)
    scenes = open_masked(cache, seed=world, scenes=plan.scenes)
    config = tiny_maskformer()
    state = new_state(config, plan)
    read_checkpoint(out / "checkpoint.pt", state)
    _take_steps(out, plan, state, scenes=scenes, config=config)
    save_maskformer(out / "maskformer", state.model, config=config)
    outcome = _outcome(out / "maskformer", plan, state)
    _write_json(out / "training.json", outcome)
    return outcome


def _draw(cache: Path, world: int, scenes: int, workers: int) -> None:
    with _progress("scenes") as progress:
        task = progress.add_task("drawing", total=scenes, said="")
        draw_masked(cache, seed=world, scenes=scenes, workers=workers, tick=lambda more: progress.advance(task, more))


def _take_steps(out: Path, plan: Plan, state: State, *, scenes: MaskedScenes, config: dict[str, Any]) -> None:
    """All steps from `state.step` on, with the log, the curves and checkpoints."""
    rows = read_rows(out / "log.jsonl", upto_step=state.step)
    rewrite_rows(out / "log.jsonl", rows)
    held = [draw_scene(VALIDATION_SEEDS[plan.seed], index=index) for index in range(_CURVE_SCENES)]
    kept_s, clock = time.monotonic(), _Clock(state.step)
    with _progress("pictures") as progress:
        task = progress.add_task("training", total=plan.steps * plan.batch_size, said="")
        progress.update(task, completed=state.step * plan.batch_size)
        for batch in _batches(plan, state.step, scenes, config):
            learn(state, batch, plan=plan, config=config)
            progress.advance(task, plan.batch_size)
            if not _is_due(state.step, plan.steps, times=_ROWS):
                continue
            rows.append(_row(state, plan, images_per_s=plan.batch_size * clock.steps_per_s(state.step)))
            if _is_due(state.step, plan.steps, times=_VALIDATIONS):
                rows[-1] |= _validated(out / "current", state, held, config)
                draw_curves(out / "curve.png", rows)
            append_row(out / "log.jsonl", rows[-1])
            progress.update(task, said=_said(rows))
            if not CONSOLE.is_terminal and "seen" in rows[-1]:
                CONSOLE.print(f"step {state.step:,} of {plan.steps:,}: {_said(rows)}", highlight=False)
            if time.monotonic() - kept_s > _CHECKPOINT_S:
                write_checkpoint(out / "checkpoint.pt", state)
                kept_s = time.monotonic()
    write_checkpoint(out / "checkpoint.pt", state)


def _batches(plan: Plan, first: int, scenes: MaskedScenes, config: dict[str, Any]) -> Iterator[Batch]:
    """The batch of every step from `first` on; the next one is made meanwhile."""
    places_Q2 = query_places(config).numpy()

    with ThreadPoolExecutor(1) as ahead, ThreadPoolExecutor(plan.threads) as workers:

        def make(step: int) -> Batch:
            size_hw, samples = draw_samples(scenes, seed=plan.seed, number=step, count=plan.batch_size)
            short_px = short_side_px(step, steps=plan.steps, config=config)
            return make_batch(samples, size_hw=size_hw, short_side_px=short_px, places_Q2=places_Q2, workers=workers)

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
        **{name: round(value, 4) for name, value in state.means.items()},
        "learning_rate_share": round(learning_rate_share(state.step - 1, steps=plan.steps), 6),
        "images_per_s": round(images_per_s, 1),
    }


def _validated(folder: Path, state: State, held: list[Scene], config: dict[str, Any]) -> dict[str, float]:
    """Recall on scenes that training does not see, of the model as it would be saved now."""
    save_maskformer(folder, state.model, config=config)
    found = _measured(folder, held, device=str(state.model.device))
    return {"seen": found.seen.at_50, "unseen": found.unseen.at_50, "all_at_75": found.all.at_75}


def _measured(folder: Path, scenes: Iterator[Scene] | list[Scene], *, device: str) -> ProposalRecall:
    proposals = MaskFormer(kind="maskformer", checkpoint=str(folder), precision="float32", licence="CC-BY-SA-4.0")
    return measure_proposals(proposals.open(device=device), scenes)


def _said(rows: list[Row]) -> str:
    recall = next(
        (f", recall {row['seen']:.0%}, unseen {row['unseen']:.0%}" for row in reversed(rows) if "seen" in row), ""
    )
    return f"{rows[-1]['images_per_s']:,.0f}/s, loss {rows[-1]['loss']:.2f}{recall}"


def _outcome(folder: Path, plan: Plan, state: State) -> dict[str, Any]:
    """What the saved model reaches on scenes that training does not see, and which seeds it has seen."""
    scenes = (draw_scene(VALIDATION_SEEDS[plan.seed], index=index) for index in _FINAL_SCENES)
    found = _measured(folder, scenes, device=plan.device)
    weights = folder / "model.safetensors"
    return {
        "plan": asdict(plan),
        "parameters": sum(value.numel() for value in state.model.parameters()),
        "weights": {"bytes": weights.stat().st_size, "sha256": weights_sha256(weights)},
        "seeds": {
            name: [seeds[0], seeds[-1]]
            for name, seeds in (
                ("training", TRAINING_SEEDS),
                ("validation", VALIDATION_SEEDS),
                ("held_out", HELD_OUT_SEEDS),
            )
        },
        "nouns": {"seen": len(seen_nouns()), "all": len(demo_nouns())},
        "recall": asdict(found),
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
    scenes: Annotated[int, typer.Option(help="how many scenes to draw and learn from")] = 60_000,
    threads: Annotated[int, typer.Option(help="threads of the model; their number decides last bits")] = 2,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto")] = "cpu",
    cache: Annotated[Path | None, typer.Option(help="where drawn scenes are kept; OUT/scenes if not given")] = None,
    workers: Annotated[int, typer.Option(help="processes that draw; nothing depends on it")] = 2,
) -> None:
    """Train the tiny MaskFormer of the demo world; the same command again goes on after an interruption."""
    try:
        plan = read_plan(out / "plan.json")
        if plan is None:
            plan = make_plan(seed=seed, hours=hours, steps=steps, scenes=scenes, threads=threads, device=device)
            out.mkdir(parents=True, exist_ok=True)
            _write_json(out / "plan.json", asdict(plan))
        asked = {"seed": seed, "steps": steps, "scenes": scenes, "threads": threads}
        check_plan(plan, {name: value for name, value in asked.items() if value is not None}, out)
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
