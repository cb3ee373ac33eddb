"""A finished run of the demo world as one self-contained page: what was mined, how much of it is correct, and what
tuning CLIP on it gains.

    python -m maskmine.scripts.demo_report.page runs/demo/mined --tuned configs/evaluate-demo.yaml --to index.html

`bash scripts/demo` ends with it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer
from markupsafe import Markup

from maskmine.mining.pairs import ClipPairs
from maskmine.mining.proposers.maskformer import MaskFormer
from maskmine.mining.sources.coco import CocoCaptions
from maskmine.mining.text.labels import load_synonyms, open_naming
from maskmine.mining.text.units import first_mentions
from maskmine.pipelines.dataset.finished_run import FinishedRun
from maskmine.pipelines.dataset.render import render
from maskmine.pipelines.evaluate.pairs import Evaluation, evaluate_pairs
from maskmine.pipelines.reports.charts import curve_svg, series_of
from maskmine.pipelines.run_folder.claim import claim_folder, write_page
from maskmine.pipelines.run_folder.folder import RunFolder, read_folder
from maskmine.pipelines.settings.mining import load_settings
from maskmine.schemas.errors import InputError
from maskmine.schemas.manifest import ModelRecord
from maskmine.schemas.rows import NounsRow, RegionsRow
from maskmine.scripts.accuracy.clip import ClipAccuracy, measure_clip
from maskmine.scripts.accuracy.mined_proposals import mined_recall
from maskmine.scripts.accuracy.models import DemoModels, open_towers
from maskmine.scripts.accuracy.oracle import demo_bottleneck
from maskmine.scripts.accuracy.proposals import ProposalRecall
from maskmine.scripts.command import run_command
from maskmine.scripts.compare.rules import Compared, compare_rules
from maskmine.scripts.compare.rules import render as render_rules
from maskmine.scripts.demo_report.charts import loss_svg
from maskmine.scripts.demo_report.images import ShownPair, ShownScene, match_scenes, show_pairs, show_scene
from maskmine.scripts.demo_report.tables import plain_table
from maskmine.scripts.demo_report.tuning import TuningReport, report_tuning
from maskmine.scripts.demo_world.nouns import demo_nouns
from maskmine.scripts.demo_world.on_disk import read_scenes, truth_of
from maskmine.tuning.console import TextTable, plain_console
from maskmine.tuning.evaluation.region_accuracy import RegionEvaluation
from maskmine.tuning.evaluation.report import render_results
from maskmine.tuning.segmentation.oracle import CaseScores, verdict
from maskmine.tuning.tables import percent

CONSOLE = plain_console(width=max(80, plain_console().width))
SCENES, PAIRS = 12, 12
FIGURE_SCENES = 200
"""On how many scenes CLIP and the oracle analysis are measured; more take longer and change no digit that is shown."""

_TEMPLATE = "demo_page.html.j2"
_COMMANDS = (
    ("bash scripts/demo", "this page, from drawing to figures"),
    ("maskmine mine configs/demo-models.yaml", "the mining alone; with another rule or threshold no model runs again"),
    (
        "maskmine evaluate-pairs runs/demo/mined --truth runs/demo/world/instances.json",
        "the pairs against the truth, with the thresholds to set",
    ),
    ("maskmine tune configs/tune-demo.yaml", "mask prompts from these pairs; with other settings give another `out`"),
    (
        "maskmine evaluate configs/evaluate-demo.yaml",
        "plain and tuned CLIP on regions of scenes that are new to both",
    ),
    ("bash scripts/compare_tuning", "prompts, fine-tuning and both, on mined and on true pairs, three seeds each"),
    ("bash scripts/evaluate_demo --seed 11 --scenes 1000", "all figures on 1,000 scenes, beside their goals"),
    ("bash scripts/train_clip runs/clip --hours 2.5", "the tiny CLIP, trained again from drawn scenes"),
)


@dataclass(frozen=True, slots=True)
class FunnelStep:
    """A step from images to correct pairs: how many, of what, and a few words."""

    count: int
    name: str
    detail: str


@dataclass(frozen=True, slots=True)
class ModelLine:
    """A model of the run, and what it reaches on these scenes."""

    role: str
    name: str
    figures: str
    licence: str
    sha256: str


@dataclass(frozen=True, slots=True)
class DemoReport:
    """All results that the page shows. `true_masks`: the masks of the world itself were the proposals.

    `clip` and `bars` are of the first `figure_scenes` scenes; `tuned` is of prompts tuned on the pairs, if any.
    """

    true_masks: bool
    funnel: Sequence[FunnelStep]
    evaluation: Evaluation
    compared: Sequence[Compared]
    bars: Sequence[CaseScores]
    clip: ClipAccuracy
    figure_scenes: int
    tuned: TuningReport | None
    models: Sequence[ModelLine]
    scenes: Sequence[ShownScene]
    correct: Sequence[ShownPair]
    wrong: Sequence[ShownPair]


_SUMMARY_SCORES = ("similarity", "evidence")  # of the terminal; the page has them all


def main(
    source: Annotated[str, typer.Argument(metavar="RUN", help="A finished run of the demo world, with CLIP.")],
    to: Annotated[Path, typer.Option(help="The page.")] = Path("runs/demo/index.html"),
    tuned: Annotated[
        str | None, typer.Option(metavar="CONFIG", help="As for `maskmine evaluate`: prompts tuned on the run's pairs.")
    ] = None,
) -> None:
    """Write the page; print its main figures and its path."""
    claim_folder(to.parent)
    report = measure_run(read_folder(source), examination=load_settings(RegionEvaluation, tuned) if tuned else None)
    write_page(to, render_page(report))
    CONSOLE.print(_summary(report))
    if report.tuned:
        CONSOLE.print()
        CONSOLE.print(render_results(report.tuned.findings))
    CONSOLE.print(f"\n{to.absolute()}: open it in a browser", highlight=False, soft_wrap=True)


def measure_run(run: RunFolder, *, examination: RegionEvaluation | None = None) -> DemoReport:
    """Evaluate a finished run of the demo world against its ground truth, and the prompts tuned on its pairs.

    Raises InputError when it was made without CLIP, its world is gone, or the examination is of other pairs,
    IncompleteError when it is not finished.
    """
    finished = FinishedRun.open(run)
    manifest, settings = finished.manifest, finished.settings
    clip = settings.regions.clip
    if clip is None or not isinstance(settings.pairs, ClipPairs):
        raise InputError(f"{run.root}: was made without CLIP; mine it with configs/demo-models.yaml")
    if not isinstance(settings.captions, CocoCaptions):
        raise InputError(f"{run.root}: its captions are not those of a demo world; mine configs/demo-models.yaml")
    world = Path(settings.captions.annotations).parent
    evaluation = evaluate_pairs(run, truth=truth_of(world))
    annotations = evaluation.annotations
    naming = open_naming(annotations.categories, load_synonyms("auto"))
    scenes = list(match_scenes(finished, annotations=annotations, naming=naming))
    proposals = settings.regions.proposals
    proposed = isinstance(proposals, MaskFormer)
    models = DemoModels(Path(clip.model), Path(proposals.checkpoint) if isinstance(proposals, MaskFormer) else None)
    tuned = report_tuning(examination, run=run) if examination else None
    image, text = open_towers(clip, device=settings.regions.device)
    accuracy = measure_clip(image, text, (scene for _, scene in islice(read_scenes(world), FIGURE_SCENES)))
    recall = mined_recall(run, world=world) if proposed else None
    with_pairs = [scene for scene in scenes if scene.matches.pairs]
    return DemoReport(
        true_masks=not proposed,
        funnel=_funnel(finished, evaluation),
        evaluation=evaluation,
        compared=compare_rules(run, truth=truth_of(world)),
        bars=demo_bottleneck(world, islice(read_scenes(world), FIGURE_SCENES), models=models),
        clip=accuracy,
        figure_scenes=min(FIGURE_SCENES, len(annotations.sizes)),
        tuned=tuned,
        models=[_model_line(model, accuracy, recall) for model in manifest.models],
        scenes=[show_scene(scene) for scene in with_pairs[:SCENES]],
        correct=show_pairs(scenes, correct=True, max_pairs=PAIRS),
        wrong=show_pairs(scenes, correct=False, max_pairs=PAIRS),
    )


def render_page(report: DemoReport) -> str:
    """The page as HTML without references to other files."""
    curves = report.evaluation.curves_of_all
    strangers = report.evaluation.unlabelled_nouns(1)
    return render(
        "maskmine.scripts",
        _TEMPLATE,
        report=report,
        evaluation=report.evaluation,
        half=max(curves, key=lambda curve: curve.half.precision.value or 0.0) if curves else None,
        curve=Markup(curve_svg(curves)) if curves else None,
        series_of=series_of,
        stranger=strangers[0][0] if strangers else None,
        tuned=report.tuned,
        losses=Markup(loss_svg(report.tuned.losses)) if report.tuned and report.tuned.losses else None,
        rules=plain_table(render_rules(report.compared)),
        verdict=verdict(report.bars),
        nouns=len(demo_nouns()),
        commands=_COMMANDS,
    )


def _summary(report: DemoReport) -> TextTable:
    """The main figures for the terminal."""
    evaluation, images = report.evaluation, report.funnel[0]
    table = TextTable(box=None, pad_edge=False, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_column(style="dim")
    table.add_row("pairs", f"{report.funnel[-2].count:,}", f"from {images.count:,} {images.name}")
    made, (low, high) = evaluation.precision_of_rule, evaluation.precision_of_all.interval
    table.add_row("  every pair of the rule", percent(made.value), f"right of the {made.of:,} before filters")
    table.add_row("  right", percent(evaluation.precision_of_all.value), f"of all; 95% interval {low:.1%} – {high:.1%}")
    known = f"of the {evaluation.precision.of:,} whose nouns the truth knows"
    table.add_row("  right of known nouns", percent(evaluation.precision.value), known)
    for curve in (one for one in evaluation.curves_of_all if one.score in _SUMMARY_SCORES):
        kept = f"half of all: {curve.setting} {curve.half.threshold:.4f}"
        table.add_row(f"  right by {curve.score}", percent(curve.half.precision.value), kept)
    table.add_row("nouns that have a right pair", percent(evaluation.metrics.recall.value), "of those with an object")
    table.add_row("CLIP, crops with surroundings", percent(report.clip.surroundings.top1), "top-1 of all nouns")
    table.add_row("CLIP, masked crops", percent(report.clip.masked.top1), "top-1 of all nouns")
    return table


def _funnel(finished: FinishedRun, evaluation: Evaluation) -> list[FunnelStep]:
    """From images to correct pairs, counted from the cells of the run."""
    nouns = sum(len(first_mentions(row.nouns)) for row in finished.all_rows(NounsRow))
    regions = sum(len(row.regions) for row in finished.all_rows(RegionsRow))
    totals, precision = finished.manifest.totals, evaluation.precision_of_all
    return [
        FunnelStep(totals.images, "scenes", "drawn, each with a caption"),
        FunnelStep(nouns, "nouns", "in the captions, found by spaCy"),
        FunnelStep(regions, "regions", "masks, embedded by CLIP"),
        FunnelStep(totals.samples, "pairs", f"{totals.nouns:,} different nouns, in verified shards"),
        FunnelStep(precision.count, "right", f"{percent(precision.value)} of all pairs"),
    ]


def _model_line(model: ModelRecord, clip: ClipAccuracy, recall: ProposalRecall | None) -> ModelLine:
    figures = {
        "clip": f"top-1 of {len(demo_nouns())} nouns: {clip.surroundings.top1:.0%} on crops with surroundings, "
        f"{clip.tight.top1:.0%} on tight and {clip.masked.top1:.0%} on masked crops of crowded scenes",
        "proposals": "the true masks",
    }
    if recall is not None:
        figures["proposals"] = (
            f"{recall.seen.at_50:.0%} of the objects of nouns seen in training found (IoU ≥ 0.5), "
            f"{recall.unseen.at_50:.0%} of other nouns'; {recall.proposals_a_scene:.1f} masks a scene"
        )
    name = os.path.relpath(model.name) if os.path.isabs(model.name) else model.name
    return ModelLine(model.role, name, figures.get(model.role, ""), model.licence, (model.sha256 or "")[:12])


if __name__ == "__main__":
    run_command(main, name="demo_report")
