"""Train the head of the demo world's open-vocabulary MaskFormer, by the program and the form of data of real ones.

    bash scripts/train_open_maskformer runs/open-maskformer --seed 0

Scenes of the taught nouns are drawn once as pictures and maps of classes, in the form of COCO-Stuff. The training
begins with the shipped MaskFormer and is that of `maskmine train-proposals`, with checkpoints; the same command goes on
after an interruption. At the end `OUT/maskformer` holds the model, and `OUT/training.json` says who names objects right
on scenes that no training saw: the model itself, CLIP, or both.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from mining.weights import weights_sha256
from schemas.errors import IncompleteError, InputError, OtherPlanError
from scripts.demo_scene import Scene, draw_scene
from scripts.demo_seeds import TRAINING_SEEDS, VALIDATION_SEEDS
from scripts.open_accuracy import OpenAccuracy, demo_segmenter, measure_open, ways
from scripts.train_open_maskformer_scenes import write_mapped
from scripts.training import CONSOLE, progress_bar, write_json
from scripts.training_plan import Cache, Out, SceneCount, Seed, Threads, Workers
from tuning.proposal_settings import ProposalTraining
from tuning.proposal_training import train_proposals

SHIPPED = Path(__file__).parent / "models"
BATCH_SIZE = 8
_FIRST_MEASURED = 10_000  # of the validation world


def demo_training(out: Path, *, scenes: Path, seed: int, steps: int) -> ProposalTraining:
    """The settings of the demo world's training."""
    maps = {name: str(scenes / file) for name, file in (("images", "images"), ("maps", "maps"), ("names", "names.txt"))}
    tree = {
        "clip": {"model": str(SHIPPED / "clip"), "licence": "CC-BY-SA-4.0"},
        "maps": {**maps, "workers": 0},
        "start": {"checkpoint": str(SHIPPED / "maskformer")},
        "head": {"hidden": 512, "sees": "queries_and_pixels"},
        "trains": "head",
        "view": {"crop_px": 128, "scale": [1.0, 1.2], "long_side_px": 240, "jitter": False},
        "optimizer": {
            "learning_rate": 2e-3,
            "weight_decay": 0.05,
            "backbone_multiplier": 1.0,
            "steps": steps,
            "batch_size": BATCH_SIZE,
            "warmup_steps": 20,
            "max_gradient_norm": 1.0,
        },
        "device": "cpu",
        "half": True,
        "seed": seed,
        "checkpoint_every": 100,
        "out": str(out),
    }
    return ProposalTraining.model_validate(tree)


def measure(model: Path, *, seed: int, scenes: int) -> dict[str, OpenAccuracy]:
    """Who names objects right on scenes of a world that no training saw."""

    def drawn() -> Iterator[Scene]:
        for index in range(_FIRST_MEASURED, _FIRST_MEASURED + scenes):
            yield draw_scene(VALIDATION_SEEDS[seed], index=index)
            tick(1)

    with progress_bar("measuring", unit="scenes", total=scenes) as tick:
        return measure_open(demo_segmenter(model, clip=SHIPPED / "clip"), drawn())


def as_table(found: dict[str, OpenAccuracy]) -> Table:
    """Top-1 accuracy by way and kind of nouns, among all of them and among those of the kind."""
    table = Table(box=None, pad_edge=False)
    table.add_column("right with one guess")
    for kind, accuracy in found.items():
        table.add_column(f"{kind} nouns ({accuracy.matched:,} of {accuracy.objects:,})", justify="right")
        table.add_column(f"among {kind} nouns", justify="right")
    for way in ways():
        shares = [share for accuracy in found.values() for share in (accuracy.top1[way], accuracy.top1_of_kind[way])]
        table.add_row(way, *(f"{share:.1%}" for share in shares))
    return table


def main(
    out: Out,
    seed: Seed = 0,
    steps: Annotated[int, typer.Option(min=1, help="Batches of eight pictures.")] = 4000,
    scenes: SceneCount = 5_000,
    measured: Annotated[int, typer.Option(min=1, help="Scenes on which the model is measured.")] = 300,
    threads: Threads = 1,
    cache: Cache = None,
    workers: Workers = 2,
) -> None:
    """Train the demo world's open-vocabulary MaskFormer; the same command again goes on after an interruption."""
    import torch

    torch.set_num_threads(threads)
    drawn = cache or out / "scenes"
    try:
        with progress_bar("drawing", unit="scenes", total=scenes) as tick:
            write_mapped(drawn, seed=TRAINING_SEEDS[seed], scenes=scenes, workers=workers, tick=tick)
        settings = demo_training(out, scenes=drawn, seed=seed, steps=steps)
        model = train_proposals(settings, console=CONSOLE)
        found = measure(model, seed=seed, scenes=measured)
    except (InputError, IncompleteError, OtherPlanError) as error:
        CONSOLE.print(f"error: {error}", highlight=False)
        raise typer.Exit(2) from error
    outcome: dict[str, Any] = {
        "settings": settings.decisive(),
        "scenes": scenes,
        "threads": threads,
        "torch": torch.__version__,
        "weights_sha256": weights_sha256(model),
        "measured": measured,
        "accuracy": {kind: asdict(accuracy) for kind, accuracy in found.items()},
    }
    write_json(out / "training.json", outcome)
    CONSOLE.print(as_table(found))


if __name__ == "__main__":
    typer.run(main)
