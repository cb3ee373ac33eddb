"""Train the demo world's tiny CLIP on whole scenes and natural crops with their captions, never on masked ones.

    bash scripts/train_clip runs/clip --seed 0 --hours 2.5

Scenes are drawn once (some minutes). Then the hours are turned into a number of steps by timing a few, and everything
that the weights follow from is written to `OUT/plan.json`: with it, the same kind of machine gives the same weights.
The same command goes on from the last checkpoint. At the end `OUT/clip` holds the model as open_clip reads it, in
half precision, and `OUT/training.json` says how well it does.

Shapes: B images of a batch, T tokens of a text, S side in pixels.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from concurrent.futures import Executor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import open_clip
import torch
import typer
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from maskmine.mining.models.clip import Clip
from maskmine.mining.models.prompt_templates import load_templates
from maskmine.schemas.errors import InputError
from maskmine.scripts.accuracy.clip import measure_clip
from maskmine.scripts.demo_world.nouns import OPENMOJI_LICENCE, demo_nouns
from maskmine.scripts.demo_world.scene import Scene
from maskmine.scripts.demo_world.splits import TRAINING_SEEDS
from maskmine.scripts.training import arguments
from maskmine.scripts.training.clip.batches import cut_samples, draw_samples, shows_crops
from maskmine.scripts.training.clip.model import (
    embed_pixels,
    embed_tokens,
    make_tokenizer,
    normalised,
    save_clip,
    tiny_clip,
    tokens_of,
    words_of,
)
from maskmine.scripts.training.learner import DemoLearner, new_learner
from maskmine.scripts.training.plan import Options, Plan
from maskmine.scripts.training.run import CONSOLE, Plot, Recipe, drawn_scenes, expected_errors, run_training
from maskmine.scripts.training.scenes import DrawnScenes, World
from maskmine.tuning.clip.loss import contrastive_loss
from maskmine.tuning.clip.step import MAX_LOG_SCALE
from maskmine.tuning.training.log import Losses

RECIPE = Recipe(
    batch_size=256,
    warmup_share=0.05,
    small_share=0.75,
    validations=30,
    curve_scenes=200,
    weights="clip/open_clip_model.safetensors",
    plots=(
        Plot("contrastive loss of crops", {"loss": "loss"}),
        Plot(
            "share right",
            {
                "in_batch_top1": "right caption in the batch",
                "surroundings": "zero-shot: single objects with surroundings",
                "tight": "zero-shot: tight crops of crowded scenes",
                "masked": "zero-shot: masked crops of crowded scenes",
            },
            top=1,
        ),
    ),
)

_SMALL_SIDE = 2 / 3  # of the input's side: small images take less than half the time
_WEIGHT_DECAY = 0.1
_MAX_GRADIENT_NORM = 1.0
_MEMORY = 0.95  # of the running means in the log


@dataclass(frozen=True, slots=True)
class Batch:
    """Images, uint8 [B, S, S, 3], and the tokens of their texts, [B, T]; crops of objects, or whole scenes."""

    pixels_BSS3: Tensor
    tokens_BT: Tensor
    shows_crops: bool


@dataclass(frozen=True)
class ClipTraining:
    """The training of the tiny CLIP on drawn scenes."""

    scenes: DrawnScenes
    tokenizer: PreTrainedTokenizerFast
    config: dict[str, Any]
    recipe: Recipe = RECIPE

    def new_learner(self, plan: Plan) -> DemoLearner[Batch]:
        """A CLIP with random weights. Raises InputError when the scenes have too few nouns for a batch."""
        if len(self.scenes.nouns()) < plan.batch_size:
            raise InputError(
                f"scenes {len(self.scenes)}: too few to show {plan.batch_size} nouns, as a batch does; draw more"
            )
        torch.manual_seed(plan.seed)
        model: Any = open_clip.CLIP(**copy.deepcopy(self.config["model_cfg"])).to(plan.device).train()
        return new_learner(
            model,
            lambda batch: _loss_of(model, batch, half=plan.precision == "bf16", config=self.config),
            is_hidden=lambda name: "resblocks" in name,
            without_decay="embedding",
            weight_decay=_WEIGHT_DECAY,
            max_gradient_norm=_MAX_GRADIENT_NORM,
            memory=_MEMORY,
        )

    def make_batch(self, plan: Plan, step: int, workers: Executor) -> Batch:
        """The batch of a step."""
        samples = draw_samples(self.scenes, seed=plan.seed, number=step, count=plan.batch_size)
        size_px = side_px(self.config, small=self.recipe.is_small(step, steps=plan.steps))
        length = self.config["model_cfg"]["text_cfg"]["context_length"]
        return Batch(
            pixels_BSS3=torch.from_numpy(cut_samples(samples, size_px=size_px, workers=workers)),
            tokens_BT=tokens_of([s.caption for s in samples], tokenizer=self.tokenizer, length=length),
            shows_crops=shows_crops(step),
        )

    def save(self, out: Path, learner: DemoLearner[Batch]) -> None:
        """Write the folder `clip`."""
        save_clip(out / "clip", learner.module, tokenizer=self.tokenizer, config=self.config)

    def parameters(self, learner: DemoLearner[Batch]) -> dict[str, int]:
        """Of the image tower, and of the whole model."""
        parts = {"image": learner.module.visual, "all": learner.module}
        return {name: sum(value.numel() for value in part.parameters()) for name, part in parts.items()}

    def measure(self, out: Path, scenes: Iterable[Scene], *, device: str) -> dict[str, Any]:
        """Zero-shot accuracy among all nouns."""
        clip = Clip(model=str(out / "clip"), precision="float32", batch_size=128, licence=OPENMOJI_LICENCE)
        accuracy = measure_clip(clip.open_image(device=device), clip.open_text(device=device), scenes)
        return {"nouns": len(demo_nouns()), "accuracy": asdict(accuracy)}

    def summary(self, results: dict[str, Any]) -> dict[str, float]:
        """Top-1 on the three kinds of crops."""
        return {kind: accuracy["top1"] for kind, accuracy in results["accuracy"].items()}


def open_clip_training(cache: Path, *, seed: int, scenes: int, workers: int) -> ClipTraining:
    """Draw what is missing of the scenes in `cache`, by `workers` processes, and make the tokenizer.

    Raises InputError when the font is missing.
    """
    drawn = drawn_scenes(World(cache, TRAINING_SEEDS[seed]), scenes=scenes, workers=workers)
    tokenizer = clip_tokenizer(drawn)
    return ClipTraining(drawn, tokenizer, tiny_clip(len(tokenizer)))


def clip_tokenizer(scenes: DrawnScenes) -> PreTrainedTokenizerFast:
    """A tokenizer for the words of the training captions, of all nouns and of the usual templates."""
    nouns = (name for noun in demo_nouns() for name in (noun.noun, noun.plural))
    templates = (*load_templates("vild"), *load_templates("imagenet"))
    return make_tokenizer(words_of(scenes.captions()) | words_of(nouns) | words_of(templates))


def side_px(config: dict[str, Any], *, small: bool) -> int:
    """The side of the images of a step in pixels: whole patches."""
    full_px, patch_px = (config["model_cfg"]["vision_cfg"][key] for key in ("image_size", "patch_size"))
    return int(patch_px * max(1, round(_SMALL_SIDE * full_px / patch_px)) if small else full_px)


def _loss_of(model: Any, batch: Batch, *, half: bool, config: dict[str, Any]) -> tuple[Tensor, Losses]:
    """CLIP's loss, and for a batch of crops the figures of the log."""
    device = model.logit_scale.device
    with torch.no_grad():
        model.logit_scale.clamp_(0.0, MAX_LOG_SCALE)
    with torch.autocast(device.type, torch.bfloat16, enabled=half):
        image_BD = embed_pixels(model, normalised(batch.pixels_BSS3.to(device), config))
        text_BD = embed_tokens(model, batch.tokens_BT.to(device))
    image_BD, text_BD = image_BD.float(), text_BD.float()
    own_B = torch.arange(len(image_BD), device=device)
    # A text that occurs twice does no harm: its two columns are the same, so each image shares evenly between them.
    loss = contrastive_loss(image_BD, text_BD, nouns_B=own_B, scale=model.logit_scale.exp(), positives="paper")
    if not batch.shows_crops:
        return loss, {}
    right_share = ((image_BD @ text_BD.T).argmax(1) == own_B).float().mean()
    return loss, {
        "loss": loss.item(),
        "in_batch_top1": right_share.item(),
        "scale": math.exp(model.logit_scale.item()),
    }


def main(
    out: arguments.Out,
    seed: arguments.Seed = 0,
    hours: arguments.Hours = 2.5,
    steps: arguments.Steps = None,
    precision: Annotated[str, typer.Option(help="auto (the faster here), float32 or bf16")] = "auto",
    scenes: arguments.SceneCount = 150_000,
    threads: arguments.Threads = 2,
    device: arguments.Device = "cpu",
    cache: arguments.Cache = None,
    workers: arguments.Workers = 2,
) -> None:
    """Train the tiny CLIP of the demo world; the same command again goes on after an interruption."""
    options = Options(
        seed=seed, hours=hours, steps=steps, scenes=scenes, threads=threads, device=device, precision=precision
    )
    with expected_errors():
        results = run_training(
            out,
            options,
            lambda: open_clip_training(cache or out / "scenes", seed=seed, scenes=scenes, workers=workers),
        )
    for kind, found in results["accuracy"].items():
        CONSOLE.print(f"{kind:<13} top-1 {found['top1']:.1%}  top-5 {found['top5']:.1%}  of {found['crops']:,} crops")


if __name__ == "__main__":
    typer.run(main)
