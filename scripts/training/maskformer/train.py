"""Train the demo world's tiny MaskFormer on the masks of some of its nouns; the others show how it generalises.

    bash scripts/train_maskformer runs/maskformer --seed 0 --hours 2.5

Scenes are drawn once (some minutes). Then the hours are turned into a number of steps by timing a few, and everything
that the weights follow from is written to `OUT/plan.json`: with it, the same kind of machine gives the same weights.
The same command goes on from the last checkpoint. At the end `OUT/maskformer` holds the model as transformers reads
it, in half precision, and `OUT/training.json` says how well it does.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Executor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import typer
from torch import Tensor, nn

from maskmine.mining.proposers.maskformer import MaskFormer
from maskmine.scripts.accuracy.proposals import measure_proposals
from maskmine.scripts.demo_world.nouns import OPENMOJI_LICENCE, demo_nouns
from maskmine.scripts.demo_world.scene import Scene
from maskmine.scripts.demo_world.splits import TRAINING_SEEDS, seen_nouns
from maskmine.scripts.training import arguments
from maskmine.scripts.training.learner import DemoLearner, new_learner
from maskmine.scripts.training.maskformer.batches import Batch, draw_samples, make_batch
from maskmine.scripts.training.maskformer.loss import HINTS, losses_of
from maskmine.scripts.training.maskformer.model import new_model, query_points, save_maskformer, tiny_maskformer
from maskmine.scripts.training.plan import Options, Plan
from maskmine.scripts.training.run import CONSOLE, Plot, Recipe, drawn_scenes, expected_errors, run_training
from maskmine.scripts.training.scenes import DrawnScenes, World
from maskmine.tuning.training.log import Losses

RECIPE = Recipe(
    batch_size=16,
    warmup_share=0.03,
    small_share=0.65,  # which takes about half of the time
    validations=10,
    curve_scenes=60,
    weights="maskformer/model.safetensors",
    plots=(
        Plot(
            "loss",
            {
                "speak": "which query speaks",
                "cell": "masks, by cell",
                "dice": "masks, dice",
                "object": "object or not",
            },
        ),
        Plot(
            "recall with 30 proposals",
            {
                "seen": "seen nouns, IoU 0.5",
                "unseen": "unseen nouns, IoU 0.5",
                "all_at_75": "all nouns, IoU 0.75",
            },
            top=1,
        ),
    ),
)

_WEIGHT_DECAY = 0.05
_MAX_GRADIENT_NORM = 5.0
_MEMORY = 0.97  # of the running means in the log

# Layers that are no hidden ones: the first and the last, and an attention that starts at the reference points.
_OUTER = ("encoder.embedder", "class_predictor", "0.encoder_attn", "hints.")


@dataclass(frozen=True)
class MaskFormerTraining:
    """The training of the tiny MaskFormer on drawn scenes."""

    scenes: DrawnScenes
    config: dict[str, Any]
    recipe: Recipe = RECIPE

    def new_learner(self, plan: Plan) -> DemoLearner[Batch]:
        """A MaskFormer with random weights, and the layer of hints that is dropped at the end."""
        torch.manual_seed(plan.seed)
        model = new_model(self.config).to(plan.device, memory_format=torch.channels_last).train()
        hints = nn.Conv2d(self.config["mask_feature_size"], HINTS, 1).to(plan.device)

        def forward(batch: Batch) -> tuple[Tensor, Losses]:
            losses = losses_of(model, hints, batch, config=self.config)
            return losses.total, {"loss": losses.total.item(), **{n: v.item() for n, v in losses.parts.items()}}

        return new_learner(
            nn.ModuleDict({"model": model, "hints": hints}),
            forward,
            is_hidden=lambda name: not any(part in name for part in _OUTER),
            without_decay="queries_embedder",
            weight_decay=_WEIGHT_DECAY,
            max_gradient_norm=_MAX_GRADIENT_NORM,
            memory=_MEMORY,
        )

    def make_batch(self, plan: Plan, step: int, workers: Executor) -> Batch:
        """The batch of a step."""
        size_hw, samples = draw_samples(self.scenes, seed=plan.seed, number=step, count=plan.batch_size)
        return make_batch(
            samples,
            size_hw=size_hw,
            short_side_px=short_side_px(self.config, small=self.recipe.is_small(step, steps=plan.steps)),
            points_Q2=query_points(self.config).numpy(),
            workers=workers,
        )

    def save(self, out: Path, learner: DemoLearner[Batch]) -> None:
        """Write the folder `maskformer`."""
        save_maskformer(out / "maskformer", learner.module["model"], config=self.config)

    def parameters(self, learner: DemoLearner[Batch]) -> int:
        """Of the MaskFormer."""
        return sum(value.numel() for value in learner.module["model"].parameters())

    def measure(self, out: Path, scenes: Iterable[Scene], *, device: str) -> dict[str, Any]:
        """Recall of its proposals."""
        folder = str(out / "maskformer")
        proposals = MaskFormer(kind="maskformer", checkpoint=folder, precision="float32", licence=OPENMOJI_LICENCE)
        recall = measure_proposals(proposals.open(device=device), scenes)
        return {"nouns": {"seen": len(seen_nouns()), "all": len(demo_nouns())}, "recall": asdict(recall)}

    def summary(self, results: dict[str, Any]) -> dict[str, float]:
        """Recall at an IoU of 0.5 of seen and unseen nouns, and at 0.75 of all."""
        recall = results["recall"]
        return {
            "seen": recall["seen"]["at_50"],
            "unseen": recall["unseen"]["at_50"],
            "all_at_75": recall["all"]["at_75"],
        }


def open_maskformer_training(cache: Path, *, seed: int, scenes: int, workers: int) -> MaskFormerTraining:
    """Draw what is missing of the scenes in `cache`, by `workers` processes.

    Only nouns are drawn whose masks may be learned, so that no object in an image is background to the model. Raises
    InputError when the font is missing.
    """
    world = World(cache, TRAINING_SEEDS[seed], seen_only=True)
    return MaskFormerTraining(drawn_scenes(world, scenes=scenes, workers=workers), tiny_maskformer())


def short_side_px(config: dict[str, Any], *, small: bool) -> int:
    """The short side of the images of a step in pixels."""
    return int(config["small_short_side_px" if small else "short_side_px"])


def main(
    out: arguments.Out,
    seed: arguments.Seed = 0,
    hours: arguments.Hours = 2.5,
    steps: arguments.Steps = None,
    scenes: arguments.SceneCount = 60_000,
    threads: arguments.Threads = 2,
    device: arguments.Device = "cpu",
    cache: arguments.Cache = None,
    workers: arguments.Workers = 2,
) -> None:
    """Train the tiny MaskFormer of the demo world; the same command again goes on after an interruption."""
    options = Options(seed=seed, hours=hours, steps=steps, scenes=scenes, threads=threads, device=device)
    with expected_errors():
        results = run_training(
            out,
            options,
            lambda: open_maskformer_training(cache or out / "scenes", seed=seed, scenes=scenes, workers=workers),
        )
    for kind in ("all", "seen", "unseen"):
        found = results["recall"][kind]
        CONSOLE.print(f"{kind:<7} recall {found['at_50']:.1%} at IoU 0.5, {found['at_75']:.1%} at 0.75")


if __name__ == "__main__":
    typer.run(main)
