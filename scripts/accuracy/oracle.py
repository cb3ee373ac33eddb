"""What limits segmentation in two stages on the demo world, the masks or the classes.

    bash scripts/bottleneck --seed 11 --scenes 1000

The analysis that `maskmine benchmark NAME --bottleneck` makes for any set, on scenes that no training saw.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from pipelines.bottleneck_report import draw_bars, render_bars
from pipelines.exits import exit_of
from schemas.errors import IncompleteError, InputError
from scripts.demo_nouns import demo_nouns
from scripts.demo_scene import Scene
from scripts.demo_seeds import check_held_out
from scripts.demo_segmentation import demo_classes, demo_segmenter, mapped_scenes
from scripts.story_models import DemoModels, find_models
from scripts.story_world import find_world, read_scenes
from tuning.bottleneck import Bar, find_bottleneck, verdict

CHART_FILE = "bottleneck.png"
TEMPLATES = "vild"
CONSOLE = Console(width=max(110, Console().width))


def main(
    seed: Annotated[int, typer.Option(help="A world that no training saw.")] = 11,
    scenes: Annotated[int, typer.Option(min=1, help="How many scenes of it.")] = 1000,
    clip: Annotated[Path | None, typer.Option(help="Folder of a CLIP, in place of the shipped one.")] = None,
    maskformer: Annotated[Path | None, typer.Option(help="Folder of a MaskFormer, likewise.")] = None,
    to: Annotated[Path, typer.Option(help="Folder for the world and the chart.")] = Path("runs/evaluation"),
    workers: Annotated[int, typer.Option(min=1, help="Processes that draw.")] = 2,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, not the table.")] = False,
) -> None:
    """Print mIoU with ordinary and oracle masks and classes, and draw them as a bar chart."""
    check_held_out(seed)
    models = find_models(clip=clip, maskformer=maskformer)
    folder = to / f"seed-{seed}-scenes-{scenes}"
    world = find_world(folder / "world", scenes=scenes, seed=seed, workers=workers)
    bars = demo_bottleneck(world, read_scenes(world), models=models)
    write_chart(bars, folder / CHART_FILE)
    if as_json:
        sys.stdout.write(json.dumps([bar.as_json() for bar in bars], indent=2) + "\n")
        return
    CONSOLE.print(render_bars(bars))
    CONSOLE.print(f"\n{verdict(bars)}\n{folder / CHART_FILE}", highlight=False, soft_wrap=True)


def demo_bottleneck(world: Path, scenes: Iterable[tuple[str, Scene]], *, models: DemoModels) -> list[Bar]:
    """Every case on scenes of a world; without a MaskFormer, those with true masks."""
    settings = demo_segmenter(models, true_masks=None if models.maskformer else world, templates=TEMPLATES)
    classes = demo_classes(world)
    return find_bottleneck(mapped_scenes(scenes, classes=classes), settings=settings, classes=classes)


def write_chart(bars: Sequence[Bar], path: Path) -> None:
    """The mIoU of every case as a PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(draw_bars(bars, title=f"What limits segmentation: mIoU among {len(demo_nouns())} nouns"))


if __name__ == "__main__":
    try:
        typer.run(main)
    except (InputError, IncompleteError) as error:
        typer.echo(f"bottleneck: {error}", err=True)
        sys.exit(exit_of(error))
