"""Train the head of the demo world's open-vocabulary MaskFormer, by the program and the form of data of real ones.

    bash scripts/train_open_maskformer runs/open-maskformer --seed 0

Scenes of the taught nouns are drawn once as images and maps of classes, in the form of COCO-Stuff. The training
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

from maskmine.mining.storage.content_hash import weights_sha256
from maskmine.scripts.accuracy.open_vocabulary import OpenAccuracy, demo_segmenter, measure_open, ways
from maskmine.scripts.demo_world.nouns import OPENMOJI_LICENCE
from maskmine.scripts.demo_world.scene import Scene, draw_scene
from maskmine.scripts.demo_world.splits import TRAINING_SEEDS, VALIDATION_SEEDS
from maskmine.scripts.training import arguments
from maskmine.scripts.training.open_vocabulary.scenes import write_mapped
from maskmine.scripts.training.plan import write_json
from maskmine.scripts.training.run import CONSOLE, counting, expected_errors
from maskmine.tuning.console import TextTable
from maskmine.tuning.open_vocabulary.settings import ProposalTraining
from maskmine.tuning.open_vocabulary.train import train_proposals

SHIPPED = Path(__file__).parents[2] / "models"
BATCH_SIZE = 8
_FIRST_MEASURED = 10_000  # of the validation world


def demo_training(out: Path, *, scenes: Path, seed: int, steps: int) -> ProposalTraining:
    """The settings of the demo world's training."""
    maps = {name: str(scenes / file) for name, file in (("images", "images"), ("maps", "maps"), ("names", "names.txt"))}
    tree = {
        "clip": {"model": str(SHIPPED / "clip"), "licence": OPENMOJI_LICENCE},
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
            tick(1, "")

    with counting("measuring", unit="scene", total=scenes) as tick:
        return measure_open(demo_segmenter(model, clip=SHIPPED / "clip"), drawn())


def as_table(found: dict[str, OpenAccuracy]) -> TextTable:
    """Top-1 accuracy by way and kind of nouns, among all of them and among those of the kind."""
    table = TextTable(box=None, pad_edge=False)
    table.add_column("right with one guess")
    for kind, accuracy in found.items():
        table.add_column(f"{kind} nouns ({accuracy.matched:,} of {accuracy.objects:,})", justify="right")
        table.add_column(f"among {kind} nouns", justify="right")
    for way in ways():
        shares = [share for accuracy in found.values() for share in (accuracy.top1[way], accuracy.top1_of_kind[way])]
        table.add_row(way, *(f"{share:.1%}" for share in shares))
    return table


def main(
    out: arguments.Out,
    seed: arguments.Seed = 0,
    steps: Annotated[int, typer.Option(min=1, help="Batches of eight images.")] = 4000,
    scenes: arguments.SceneCount = 5_000,
    measured: Annotated[int, typer.Option(min=1, help="Scenes on which the model is measured.")] = 300,
    threads: arguments.Threads = 1,
    cache: arguments.Cache = None,
    workers: arguments.Workers = 2,
) -> None:
    """Train the demo world's open-vocabulary MaskFormer; the same command again goes on after an interruption."""
    import torch

    torch.set_num_threads(threads)
    drawn = cache or out / "scenes"
    with expected_errors():
        with counting("drawing", unit="scene", total=scenes) as tick:
            write_mapped(
                drawn, seed=TRAINING_SEEDS[seed], scenes=scenes, workers=workers, tick=lambda more: tick(more, "")
            )
        settings = demo_training(out, scenes=drawn, seed=seed, steps=steps)
        model = train_proposals(settings, console=CONSOLE)
        found = measure(model, seed=seed, scenes=measured)
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
