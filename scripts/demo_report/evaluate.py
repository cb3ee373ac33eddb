"""All figures of the demo world on scenes that no training saw, each beside its goal.

    bash scripts/evaluate_demo --seed 11 --scenes 1000

Scenes are drawn once and mined once with each kind of masks, all five captions an image; what is there is found again,
so that a second call only measures. `TO/seed-11-scenes-1000/` gets evaluation.json, evaluation.md and the charts; the
same models and scenes give the same files.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from maskmine.mining.storage.content_hash import weights_sha256
from maskmine.pipelines.evaluate.pairs import Evaluation, evaluate_pairs
from maskmine.pipelines.evaluate.pairs_report import CURVES_FILE, draw_curves
from maskmine.scripts.accuracy.clip import measure_clip
from maskmine.scripts.accuracy.mined_proposals import mined_recall
from maskmine.scripts.accuracy.models import DemoModels, Masks, find_models, mine_world, open_towers
from maskmine.scripts.accuracy.oracle import CHART_FILE, demo_bottleneck, write_chart
from maskmine.scripts.command import run_command
from maskmine.scripts.compare.coco import mine_photographs
from maskmine.scripts.compare.rules import compare_rules
from maskmine.scripts.demo_report.figures import MASKS, Figures, sections
from maskmine.scripts.demo_report.tables import markdown_of
from maskmine.scripts.demo_world.on_disk import find_world, read_scenes, truth_of
from maskmine.scripts.demo_world.splits import check_held_out, seen_nouns
from maskmine.tuning.console import plain_console

FIGURES_FILE, TABLES_FILE = "evaluation.json", "evaluation.md"
CONSOLE = plain_console(width=max(120, plain_console().width))


def main(
    seed: Annotated[int, typer.Option(help="A world that no training saw.")] = 11,
    scenes: Annotated[int, typer.Option(min=1, help="How many scenes of it.")] = 1000,
    clip: Annotated[Path | None, typer.Option(help="Folder of a CLIP, in place of the shipped one.")] = None,
    maskformer: Annotated[Path | None, typer.Option(help="Folder of a MaskFormer, likewise.")] = None,
    to: Annotated[Path, typer.Option(help="Folder for worlds, runs and figures.")] = Path("runs/evaluation"),
    coco_mini: Annotated[Path | None, typer.Option(help="COCO: annotations/ and a folder of photographs.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that draw.")] = 2,
) -> None:
    """Print the figures of the demo world's models and of mining with them, and write them as JSON and Markdown."""
    check_held_out(seed)
    models = find_models(clip=clip, maskformer=maskformer)
    folder = to / f"seed-{seed}-scenes-{scenes}"
    coco = None if coco_mini is None else mine_coco(coco_mini, out=to / "coco")
    figures = evaluate_demo(folder, seed=seed, scenes=scenes, models=models, coco=coco, workers=workers, say=_say)
    write_figures(figures, folder)
    CONSOLE.print()
    for title, block in sections(figures):
        CONSOLE.print(Text(title, style="bold"), block, "", sep="\n")
    CONSOLE.print(
        f"{folder}: {FIGURES_FILE}, {TABLES_FILE}, {CURVES_FILE}, {CHART_FILE}", highlight=False, soft_wrap=True
    )


def evaluate_demo(
    folder: Path,
    *,
    seed: int,
    scenes: int,
    models: DemoModels,
    coco: Evaluation | None = None,
    workers: int = 1,
    say: Callable[[str], None] = lambda _: None,
) -> Figures:
    """Draw and mine what the folder lacks, and measure; `say` receives a line for each step.

    Raises InputError when the folder holds another world, or a model cannot be opened.
    """
    say(f"{scenes:,} scenes of seed {seed} …")
    world = find_world(folder / "world", scenes=scenes, seed=seed, workers=workers)
    kinds: list[Masks] = ["ground_truth"] if models.maskformer is None else ["maskformer", "ground_truth"]
    runs = {}
    for masks in kinds:
        say(f"mining with {MASKS[masks]} …")
        runs[masks] = mine_world(
            world, out=folder / masks, models=models, masks=masks, per_image="all", console=CONSOLE
        )
    say("matching rules …")
    compared = {masks: compare_rules(run, truth=truth_of(world)) for masks, run in runs.items()}
    pairs = evaluate_pairs(runs[models.masks], truth=truth_of(world), seen=_seen_nouns(folder, models))
    say("CLIP …")
    image, text = open_towers(models.clip_settings())
    accuracy = measure_clip(image, text, (scene for _, scene in read_scenes(world)))
    say("bottleneck …")
    bars = demo_bottleneck(world, read_scenes(world), models=models)
    return Figures(
        seed=seed,
        scenes=scenes,
        models=_hashes(models),
        masks=models.masks,
        clip=accuracy,
        recall=mined_recall(runs["maskformer"], world=world) if "maskformer" in runs else None,
        compared=compared,
        pairs=pairs,
        bars=bars,
        coco=coco,
    )


def write_figures(figures: Figures, folder: Path) -> None:
    """Write evaluation.json, evaluation.md and the charts."""
    text = json.dumps(figures.as_json(), indent=2, ensure_ascii=False)
    (folder / FIGURES_FILE).write_text(text + "\n", encoding="utf-8")
    title = f"# {figures.scenes:,} held-out scenes of seed {figures.seed}\n"
    parts = [f"## {title}\n\n{markdown_of(block)}" for title, block in sections(figures)]
    (folder / TABLES_FILE).write_text("\n".join([title, *parts]), encoding="utf-8")
    write_chart(figures.bars, folder / CHART_FILE)
    if figures.pairs.curves_of_all:
        (folder / CURVES_FILE).write_bytes(draw_curves(figures.pairs))


def mine_coco(folder: Path, *, out: Path, limit: int | None = None) -> Evaluation:
    """COCO photographs mined with their own masks by label, and the pairs held against the same masks.

    With a `limit`, only the first ones. Raises InputError when the folder is not laid out as COCO is.
    """
    run, truth = mine_photographs(folder, out=out, by_label=True, limit=limit)
    return evaluate_pairs(run.folder, truth=truth)


def _seen_nouns(folder: Path, models: DemoModels) -> str | None:
    """A file of the nouns whose masks the MaskFormer learnt; None where there is none."""
    if models.maskformer is None:
        return None
    path = folder / "seen-nouns.txt"
    path.write_text("".join(f"{name}\n" for name in sorted(noun.noun for noun in seen_nouns())), encoding="utf-8")
    return str(path)


def _hashes(models: DemoModels) -> dict[str, Any]:
    folders = {"clip": models.clip, "maskformer": models.maskformer}
    return {role: None if folder is None else weights_sha256(folder) for role, folder in folders.items()}


def _say(line: str) -> None:
    CONSOLE.print(line, style="dim", highlight=False)


if __name__ == "__main__":
    run_command(main, name="evaluate_demo")
