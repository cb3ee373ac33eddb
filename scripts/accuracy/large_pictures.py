"""How well CLIP tells regions of large pictures apart, by how they are cut.

    .venv/bin/python -m maskmine.scripts.accuracy.large_pictures --scenes 100 --megapixels 12

Scenes of the demo world are enlarged with their true masks, and get the grain that a camera adds at its own resolution;
the demo CLIP says which noun each masked region is. What 640 px are to CLIP at 224, 274 px are to the 96 of this one.

Shapes: R regions, K nouns; H, W height and width of a picture in pixels.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer
from PIL import Image

from maskmine.mining.images.crops import PictureCrop
from maskmine.mining.models.clip import Clip
from maskmine.scripts.accuracy.clip import CROWD, noun_embeddings, ranks_of_crops
from maskmine.scripts.command import run_command
from maskmine.scripts.demo_world.scene import Scene, draw_scene
from maskmine.scripts.demo_world.splits import check_held_out
from maskmine.tuning.console import plain_console
from maskmine.tuning.tables import number_table, percent

if TYPE_CHECKING:
    from torch import Tensor

    from maskmine.mining.models.clip import ImageTower

CONSOLE = plain_console()
DETECTOR_SHARE = 640 / 224
"""The short side of OVSeg's pictures as a multiple of CLIP's input."""


def ways(size_px: int) -> dict[str, PictureCrop]:
    """How regions may be cut from a picture, for a CLIP of this input."""
    seen_px = round(DETECTOR_SHARE * size_px)
    return {
        "from the picture, never antialiased": PictureCrop(antialias_above=None),
        "from the picture, antialiased above 3": PictureCrop(antialias_above=3.0),
        "from the picture, always antialiased": PictureCrop(antialias_above=1.0),
        "OVSeg's: from the detector's picture": PictureCrop(short_side_px=seen_px, enlarge=True, antialias_above=None),
    }


def enlarged(scene: Scene, *, megapixels: float, grain: float, seed: int) -> Scene:
    """The scene in this size, with grain of this standard deviation (of 255) in every pixel."""
    height_px, width_px = scene.picture_HW3.shape[:2]
    scale = (1e6 * megapixels / (height_px * width_px)) ** 0.5
    size = (round(width_px * scale), round(height_px * scale))
    picture_HW3 = np.asarray(Image.fromarray(scene.picture_HW3).resize(size, Image.Resampling.BICUBIC))
    noise_HW3 = np.random.default_rng(seed).standard_normal(picture_HW3.shape, np.float32) * np.float32(grain)
    masks = [np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST)) for mask in scene.masks_NHW]
    return replace(
        scene,
        picture_HW3=np.clip(picture_HW3 + noise_HW3, 0, 255).astype(np.uint8),
        masks_NHW=np.stack(masks),
    )


def count_right(
    image: ImageTower, nouns_KD: Tensor, scenes: Iterable[Scene], *, megapixels: float, grain: float
) -> dict[str, tuple[int, int]]:
    """For each way how many regions have their noun first, and of how many; only crowded scenes count."""
    counts: dict[str, tuple[int, int]] = {}
    for number, scene in enumerate(scene for scene in scenes if len(scene.nouns) >= CROWD):
        large = enlarged(scene, megapixels=megapixels, grain=grain, seed=number) if megapixels else scene
        for name, crop in ways(image.size_px).items():
            ranks_R = ranks_of_crops(image, nouns_KD, [large], crop)
            right, regions = counts.get(name, (0, 0))
            counts[name] = right + int((ranks_R == 0).sum()), regions + len(ranks_R)
    return counts


def main(
    seed: Annotated[int, typer.Option(help="A world that no training saw.")] = 11,
    scenes: Annotated[
        int, typer.Option(min=1, help="How many scenes of it; those with four objects or more count.")
    ] = 100,
    megapixels: Annotated[float, typer.Option(min=0, help="Size of a picture; 0 leaves it as it is drawn.")] = 12.0,
    grain: Annotated[float, typer.Option(min=0, help="Standard deviation of the grain, of 255.")] = 12.0,
    clip: Annotated[Path, typer.Option(help="Folder of a CLIP of the demo world.")] = Path("scripts/models/clip"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, not the table.")] = False,
) -> None:
    """Print the share of regions whose noun is first, for each way to cut them."""
    check_held_out(seed)
    settings = Clip(model=str(clip))
    nouns_KD = noun_embeddings(settings.open_text(device="cpu"))
    drawn = (draw_scene(seed, index=index) for index in range(scenes))
    counts = count_right(settings.open_image(device="cpu"), nouns_KD, drawn, megapixels=megapixels, grain=grain)
    rows = [{"cut": name, "regions": of, "top1": right / max(1, of)} for name, (right, of) in counts.items()]
    if as_json:
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
        return
    table = number_table(f"{megapixels:g} megapixels, grain {grain:g}", "top-1", "regions")
    for name, (right, of) in counts.items():
        table.add_row(name, percent(right / max(1, of)), f"{of:,}")
    CONSOLE.print(table)


if __name__ == "__main__":
    run_command(main, name="large_pictures")
