"""What limits segmentation in two stages, the masks or the classes: each is replaced by the truth in turn.

    bash scripts/bottleneck --seed 11 --scenes 1000

The analysis that OVSeg begins with, on the demo world; story_maps.py says how a scene becomes a map of classes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from pipelines.exits import exit_of
from schemas.errors import IncompleteError, InputError
from scripts.clip_accuracy import noun_embeddings
from scripts.demo_nouns import demo_nouns
from scripts.demo_seeds import check_held_out
from scripts.story_maps import Bar, Case, find_bottleneck
from scripts.story_models import find_models, mine_world, open_towers
from scripts.story_recall import regions_by_image
from scripts.story_world import find_world, read_scenes

CHART_FILE = "bottleneck.png"
CONSOLE = Console(width=max(110, Console().width))
_INK, _FAINT = "#282a30", "#7d8088"
_COLOURS = {"masked crops": "#0072b2", "unmasked crops": "#56b4e9", "oracle": "#009e73"}  # Okabe and Ito's


def main(
    seed: Annotated[int, typer.Option(help="A world that no training saw.")] = 11,
    scenes: Annotated[int, typer.Option(min=1, help="How many scenes of it.")] = 1000,
    clip: Annotated[Path | None, typer.Option(help="Folder of a CLIP, in place of the shipped one.")] = None,
    maskformer: Annotated[Path | None, typer.Option(help="Folder of a MaskFormer, likewise.")] = None,
    to: Annotated[Path, typer.Option(help="Folder for the world, its mining and the chart.")] = Path("runs/evaluation"),
    workers: Annotated[int, typer.Option(min=1, help="Processes that draw.")] = 2,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, not the table.")] = False,
) -> None:
    """Print mIoU with ordinary and oracle masks and classes, and draw them as a bar chart."""
    check_held_out(seed)
    models = find_models(clip=clip, maskformer=maskformer)
    folder = to / f"seed-{seed}-scenes-{scenes}"
    world = find_world(folder / "world", scenes=scenes, seed=seed, workers=workers)
    ordinary = None
    if models.maskformer:
        run = mine_world(
            world, out=folder / "maskformer", models=models, masks="maskformer", per_image="all", console=CONSOLE
        )
        ordinary = regions_by_image(run)
    image, text = open_towers(models.clip_settings())
    bars = find_bottleneck(read_scenes(world), image=image, nouns_KD=noun_embeddings(text), ordinary=ordinary)
    draw_bars(bars, folder / CHART_FILE)
    if as_json:
        sys.stdout.write(json.dumps([bar.as_json() for bar in bars], indent=2) + "\n")
        return
    CONSOLE.print(render_bars(bars))
    CONSOLE.print(f"\n{verdict(bars)}\n{folder / CHART_FILE}", highlight=False, soft_wrap=True)


def render_bars(bars: Sequence[Bar]) -> Table:
    """The figures as a table."""
    table = Table("masks and classes", box=None, pad_edge=False)
    for name in ("mIoU", "mean accuracy", "pixel accuracy", "objects right"):
        table.add_column(name, justify="right")
    for bar in bars:
        scores = bar.scores
        shares = (scores.mean_iou, scores.mean_accuracy, scores.pixel_accuracy, bar.objects.value)
        table.add_row(bar.case.name, *("–" if share is None else f"{share:.1%}" for share in shares))
    return table


def verdict(bars: Sequence[Bar]) -> str:
    """What the bars say, in a sentence or two."""
    miou = {bar.case: 100 * (bar.scores.mean_iou or 0.0) for bar in bars}
    unmasked, masked = miou[Case("oracle", "unmasked crops")], miou[Case("oracle", "masked crops")]
    both = miou[Case("oracle", "oracle")]
    change = "raises" if masked >= unmasked else "lowers"
    told = f"Blanking what is around a true mask {change} CLIP's mIoU by {abs(masked - unmasked):.1f} points."
    ordinary = Case("ordinary", "masked crops")
    if ordinary not in miou:
        limit = f"CLIP's classes alone cost {both - max(masked, unmasked):.1f} points"
        return f"{told} With true masks, {limit}; there is no MaskFormer to say what its masks cost."
    better_masks, better_classes = masked - miou[ordinary], miou[Case("ordinary", "oracle")] - miou[ordinary]
    limit = "classes" if better_classes > better_masks else "masks"
    return (
        f"{told} From the ordinary two stages, true masks would win {better_masks:.1f} points and true classes"
        f" {better_classes:.1f}: the {limit} are the bottleneck."
    )


def draw_bars(bars: Sequence[Bar], path: Path) -> None:
    """The mIoU of every case as a PNG with horizontal bars."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    path.parent.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(8, 0.9 + 0.55 * len(bars)), dpi=150, layout="constrained")
    axes = figure.subplots()
    shares = [bar.scores.mean_iou or 0.0 for bar in bars]
    drawn = axes.barh(
        [bar.case.name for bar in bars],
        shares,
        height=0.62,
        color=[_COLOURS[bar.case.classifier] for bar in bars],
        alpha=1.0,
    )
    axes.bar_label(drawn, [f"{share:.1%}" for share in shares], padding=5, color=_INK, fontsize=11)
    axes.invert_yaxis()
    axes.set(xlim=(0, 1.12), xticks=np.linspace(0, 1, 6))
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.grid(axis="x", color=_FAINT, alpha=0.2, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(_FAINT)
    axes.tick_params(axis="x", colors=_FAINT, labelsize=9)
    axes.tick_params(axis="y", length=0, labelcolor=_INK, labelsize=11)
    title = f"What limits segmentation: mIoU among {len(demo_nouns())} nouns"
    figure.suptitle(title, x=0.01, ha="left", color=_INK, fontsize=13)
    figure.savefig(path, format="png", metadata={"Software": None})


if __name__ == "__main__":
    try:
        typer.run(main)
    except (InputError, IncompleteError) as error:
        typer.echo(f"bottleneck: {error}", err=True)
        sys.exit(exit_of(error))
