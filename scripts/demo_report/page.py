"""A finished run of the demo world as one page that needs nothing else: what was mined, how much of it is right, and
what CLIP learnt from it.

    python -m scripts.demo_story runs/demo/mined --tuned configs/evaluate-demo.yaml --to runs/demo/index.html

`bash scripts/demo` ends with it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from rich.console import Console
from rich.table import Table

from mining.captions import CocoCaptions
from mining.labels import load_synonyms
from mining.models.maskformer import MaskFormer
from mining.pairs import ClipPairs, first_mentions
from mining.truth import open_naming, read_truth
from pipelines.charts import curve_svg
from pipelines.evaluate_pairs import Evaluation, evaluate_pairs
from pipelines.exits import exit_of
from pipelines.run_folder import RunFolder, read_folder
from pipelines.settings import Mining, load_settings, parse_mining
from pipelines.status import require_plan
from pipelines.verify import read_manifest
from schemas.errors import IncompleteError, InputError
from schemas.manifest import Manifest, ModelEntry
from schemas.rows import NounsRow, RegionsRow
from scripts.bottleneck import demo_bottleneck
from scripts.clip_accuracy import ClipAccuracy, measure_clip
from scripts.compare_rules import Compared, compare_rules, render
from scripts.demo_nouns import demo_nouns
from scripts.proposal_recall import ProposalRecall
from scripts.story_charts import loss_svg
from scripts.story_models import DemoModels, open_towers
from scripts.story_pictures import ShownPair, ShownScene, judge_scenes, show_pairs, show_scene
from scripts.story_recall import mined_recall
from scripts.story_tables import plain_table
from scripts.story_tuning import TuningStory, tell_tuning
from scripts.story_world import read_scenes, truth_of
from tuning.bottleneck import Bar, verdict
from tuning.evaluation import Examination
from tuning.evaluation_report import render_evaluation

CONSOLE = Console(width=max(80, Console().width))
SCENES, PAIRS = 12, 12
FIGURE_SCENES = 200
"""CLIP's figures and the bottleneck are measured on so many scenes, which is plenty, of a run that may have more."""

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
class Stage:
    """A stage of the funnel: how many, of what, and a few words."""

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
class Story:
    """All that the page says. `true_masks` tells that the world's own masks were the proposals.

    `clip` and `bars` are of the first `figure_scenes` scenes; `tuned` is what was tuned on the pairs, if it was.
    """

    true_masks: bool
    funnel: Sequence[Stage]
    evaluation: Evaluation
    compared: Sequence[Compared]
    bars: Sequence[Bar]
    clip: ClipAccuracy
    figure_scenes: int
    tuned: TuningStory | None
    models: Sequence[ModelLine]
    scenes: Sequence[ShownScene]
    right: Sequence[ShownPair]
    wrong: Sequence[ShownPair]


def main(
    source: Annotated[str, typer.Argument(metavar="RUN", help="A finished run of the demo world, with CLIP.")],
    to: Annotated[Path, typer.Option(help="The page.")] = Path("runs/demo/index.html"),
    tuned: Annotated[
        str | None, typer.Option(metavar="CONFIG", help="As for `maskmine evaluate`: prompts tuned on the run's pairs.")
    ] = None,
) -> None:
    """Write the page, and end with its figures and its path."""
    story = tell_story(read_folder(source), examination=load_settings(Examination, tuned) if tuned else None)
    page = render_page(story)
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_text(page, encoding="utf-8")
    except OSError as error:
        raise InputError(f"--to {to}: cannot be written ({error.strerror}); give another path") from error
    CONSOLE.print(_summary(story))
    if story.tuned:
        CONSOLE.print()
        CONSOLE.print(render_evaluation(story.tuned.findings))
    CONSOLE.print(f"\n{to.absolute()}: open it in a browser", highlight=False, soft_wrap=True)


def tell_story(run: RunFolder, *, examination: Examination | None = None) -> Story:
    """Measure a finished run of the demo world against the truth beside its captions, and what was tuned on its pairs.

    Raises InputError when it was made without CLIP, its world is gone, or the examination is of other pairs,
    IncompleteError when it is not finished.
    """
    manifest, settings = read_manifest(run), _settings(run)
    clip = settings.regions.clip
    if clip is None or not isinstance(settings.pairs, ClipPairs):
        raise InputError(f"{run.root}: was made without CLIP; mine it with configs/demo-models.yaml")
    if not isinstance(settings.captions, CocoCaptions):
        raise InputError(f"{run.root}: its captions are not those of a demo world; mine configs/demo-models.yaml")
    world = Path(settings.captions.annotations).parent
    evaluation = evaluate_pairs(run, truth=truth_of(world))
    truth = read_truth(truth_of(world))
    scenes = list(judge_scenes(run, truth=truth, naming=open_naming(truth.categories, load_synonyms("coco"))))
    proposals = settings.regions.proposals
    proposed = isinstance(proposals, MaskFormer)
    models = DemoModels(Path(clip.model), Path(proposals.checkpoint) if isinstance(proposals, MaskFormer) else None)
    tuned = tell_tuning(examination, run=run) if examination else None
    image, text = open_towers(clip, device=settings.regions.device)
    accuracy = measure_clip(image, text, (scene for _, scene in islice(read_scenes(world), FIGURE_SCENES)))
    recall = mined_recall(run, world=world) if proposed else None
    with_pairs = [scene for scene in scenes if scene.judged.pairs]
    return Story(
        true_masks=not proposed,
        funnel=_funnel(run, manifest, evaluation),
        evaluation=evaluation,
        compared=compare_rules(run, truth=truth_of(world)),
        bars=demo_bottleneck(world, islice(read_scenes(world), FIGURE_SCENES), models=models),
        clip=accuracy,
        figure_scenes=min(FIGURE_SCENES, len(truth.sizes)),
        tuned=tuned,
        models=[_model_line(model, accuracy, recall) for model in manifest.models],
        scenes=[show_scene(scene) for scene in with_pairs[:SCENES]],
        right=show_pairs(scenes, right=True, most=PAIRS),
        wrong=show_pairs(scenes, right=False, most=PAIRS),
    )


def render_page(story: Story) -> str:
    """The page as HTML; whatever it shows is in it."""
    environment = Environment(
        loader=PackageLoader("scripts", "data"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=True,
    )
    environment.filters |= {"percent": _percent, "number": lambda count: f"{count:,}"}
    curves = story.evaluation.curves
    return environment.get_template(_TEMPLATE).render(
        story=story,
        evaluation=story.evaluation,
        half=max(curves, key=lambda curve: curve.half.precision.value or 0.0) if curves else None,
        curve=Markup(curve_svg(curves)) if curves else None,
        tuned=story.tuned,
        losses=Markup(loss_svg(story.tuned.losses)) if story.tuned and story.tuned.losses else None,
        rules=plain_table(render(story.compared)),
        verdict=verdict(story.bars),
        nouns=len(demo_nouns()),
        commands=_COMMANDS,
    )


def _summary(story: Story) -> Table:
    """The end of the story on the terminal."""
    evaluation, images = story.evaluation, story.funnel[0]
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_column(style="dim")
    table.add_row("pairs", f"{story.funnel[-2].count:,}", f"from {images.count:,} {images.name}")
    low, high = evaluation.precision.interval
    table.add_row("  right", _percent(evaluation.precision.value), f"95% interval {low:.1%} – {high:.1%}")
    for curve in evaluation.curves:
        kept = f"the half with {curve.setting} {curve.half.threshold:.4f}"
        table.add_row(f"  right by {curve.score}", _percent(curve.half.precision.value), kept)
    table.add_row("nouns that have a right pair", _percent(evaluation.tally.recall.value), "of those with an object")
    table.add_row("CLIP, crops with surroundings", _percent(story.clip.surroundings.top1), "top-1 of all nouns")
    table.add_row("CLIP, masked crops", _percent(story.clip.masked.top1), "top-1 of all nouns")
    return table


def _funnel(run: RunFolder, manifest: Manifest, evaluation: Evaluation) -> list[Stage]:
    """From images to right pairs, as the cells of the run and its report count them."""
    nouns = regions = 0
    for row in _rows(run, "nouns", NounsRow):
        nouns += len(first_mentions(row.nouns))
    for row in _rows(run, "regions", RegionsRow):
        regions += len(row.regions)
    totals, precision = manifest.totals, evaluation.precision
    return [
        Stage(totals.images, "scenes", "drawn, each with a caption"),
        Stage(nouns, "nouns", "in the captions, found by spaCy"),
        Stage(regions, "regions", "masks, embedded by CLIP"),
        Stage(totals.samples, "pairs", f"{totals.nouns:,} different nouns, in verified shards"),
        Stage(precision.count, "right", f"of {precision.of:,} whose nouns the truth knows"),
    ]


def _rows(run: RunFolder, step: str, row_type: type) -> Iterator[Any]:
    for part in range(require_plan(run).parts):
        yield from run.read_rows(step, f"{part:05d}.parquet", row_type=row_type)


def _settings(run: RunFolder) -> Mining:
    with run.open("mining.yaml") as file:
        return parse_mining(yaml.safe_load(file), place=run.path("mining.yaml"))


def _model_line(model: ModelEntry, clip: ClipAccuracy, recall: ProposalRecall | None) -> ModelLine:
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


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"


if __name__ == "__main__":
    try:
        typer.run(main)
    except (InputError, IncompleteError) as error:
        typer.echo(f"demo_story: {error}", err=True)
        sys.exit(exit_of(error))
