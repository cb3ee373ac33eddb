"""What limits segmentation in two stages on the demo world, the masks or the classes.

    bash scripts/bottleneck --seed 11 --scenes 1000

The analysis that `maskmine benchmark NAME --bottleneck` makes for any set, on scenes that no training saw.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from maskmine.pipelines.segment.oracle_report import draw_cases, render_cases
from maskmine.schemas.rows import Rejection
from maskmine.scripts.accuracy.models import DemoModels, find_models
from maskmine.scripts.accuracy.segmentation import demo_classes, demo_segmenter, mapped_scenes
from maskmine.scripts.command import run_command
from maskmine.scripts.demo_world.nouns import demo_nouns
from maskmine.scripts.demo_world.on_disk import find_world, read_scenes
from maskmine.scripts.demo_world.scene import Scene
from maskmine.scripts.demo_world.splits import check_held_out
from maskmine.tuning.console import plain_console
from maskmine.tuning.segmentation.confusion import Confusion, Labels
from maskmine.tuning.segmentation.oracle import CaseScores, open_cases, scores_by_case, verdict
from maskmine.tuning.segmentation.segmenter import Rgb, Segmenter

CHART_FILE = "bottleneck.png"
_BATCH = 32  # scenes that are segmented together: their maps in all cases are in memory
TEMPLATES = "vild"
CONSOLE = plain_console(width=max(110, plain_console().width))


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
    CONSOLE.print(render_cases(bars))
    CONSOLE.print(f"\n{verdict(bars)}\n{folder / CHART_FILE}", highlight=False, soft_wrap=True)


def demo_bottleneck(world: Path, scenes: Iterable[tuple[str, Scene]], *, models: DemoModels) -> list[CaseScores]:
    """Every case on scenes of a world; without a MaskFormer, those with true masks."""
    settings = demo_segmenter(models, true_masks=None if models.maskformer else world, templates=TEMPLATES)
    classes = demo_classes(world)
    return evaluate_cases(mapped_scenes(scenes, classes=classes), settings=settings, classes=classes)


def evaluate_cases(
    images: Iterable[tuple[str, Rgb, Labels]], *, settings: Segmenter, classes: Sequence[str]
) -> list[CaseScores]:
    """Every case over images with their ids and annotations; rejected ones are left out."""
    segment_cases = open_cases(settings, classes=classes)
    sums: dict[str, Confusion] = {}
    remaining = iter(images)
    while batch := list(islice(remaining, _BATCH)):
        image_ids, rgb, annotations = zip(*batch, strict=True)
        for gt_HW, maps in zip(annotations, segment_cases(rgb, annotations, image_ids=image_ids), strict=True):
            for case, labels_HW in {} if isinstance(maps, Rejection) else maps.items():
                sums.setdefault(case, Confusion.of_classes(len(classes))).add(labels_HW, gt_HW=gt_HW)
    return scores_by_case(sums)


def write_chart(bars: Sequence[CaseScores], path: Path) -> None:
    """The mIoU of every case as a PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(draw_cases(bars, title=f"What limits segmentation: mIoU among {len(demo_nouns())} nouns"))


if __name__ == "__main__":
    run_command(main, name="bottleneck")
