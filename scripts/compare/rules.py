"""The matching rules against the truth, in one table.

    bash scripts/compare_rules runs/demo                            # a finished run, and the truth beside its captions
    bash scripts/compare_rules configs/demo.yaml --scenes 1000      # draws scenes and mines them first

Rules are cheap: each is applied to the nouns, regions and text embeddings that the run's cells hold, so that no model
runs again. From a run with several captions an image its first captions alone are compared as well.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from maskmine.mining.evaluation.annotations import Annotations, read_annotations
from maskmine.mining.evaluation.pair_matching import match_image
from maskmine.mining.evaluation.pair_metrics import SCORES, CurvePoint, PairMetrics, ScoreName, at_least
from maskmine.mining.levels import Levels
from maskmine.mining.pairs import ClipPairs, TextSide
from maskmine.mining.proposers.ground_truth import GroundTruth
from maskmine.mining.scores.features import Scorer
from maskmine.mining.scores.scale import LevelScale
from maskmine.mining.text.labels import load_synonyms, open_naming
from maskmine.pipelines.dataset.finished_run import FinishedRun
from maskmine.pipelines.engines.local import LocalEngine
from maskmine.pipelines.evaluate.pairs_report import interval
from maskmine.pipelines.mine import mine
from maskmine.pipelines.planning.versions import VERSIONS
from maskmine.pipelines.run_folder.folder import RunFolder, read_folder
from maskmine.pipelines.settings.mining import load_mining
from maskmine.pipelines.steps.cells_of_run import cells_of_version, run_cells
from maskmine.schemas.errors import InputError
from maskmine.schemas.rows import ImageRow, NounsRow, RegionsRow, Rejection
from maskmine.scripts.command import run_command
from maskmine.scripts.demo_world.draw import draw_world
from maskmine.scripts.demo_world.splits import check_held_out
from maskmine.scripts.measures import Seconds
from maskmine.tuning.console import TextTable, plain_console
from maskmine.tuning.tables import percent

PAPER = ClipPairs()
RULES = (PAPER, ClipPairs(score="softmax"), ClipPairs(rule="mutual_best"), ClipPairs(rule="one_to_one"))
COVERAGES = (0.75, 0.5)
CONSOLE = plain_console(width=max(120, plain_console().width))


@dataclass(frozen=True, slots=True)
class Compared:
    """A rule with a number of captions an image (`per_image` as in the settings), and its results.

    `possible` is the number of known pairs that the paper's rule makes of the same captions, which is that of all nouns
    in images with regions: coverage is measured in these, so that a rule that makes fewer pairs gains nothing by it.
    """

    per_image: int | str
    rule: ClipPairs
    possible: int
    metrics: PairMetrics = field(repr=False)

    def at(self, score: ScoreName, coverage: float) -> CurvePoint | None:
        """What is left at the highest threshold on a score that keeps this coverage; None where the rule has less."""
        return at_least(self.metrics.scores[score].curve(), kept=math.ceil(coverage * self.possible))

    def as_json(self) -> dict[str, Any]:
        """Plain values; a threshold is one for the rule's own pairs."""
        precision, recall = self.metrics.precision, self.metrics.recall
        points = {(score, coverage): self.at(score, coverage) for score in SCORES for coverage in COVERAGES}
        return {
            "per_image": self.per_image,
            "rule": self.rule.rule,
            "score": self.rule.score,
            "pairs": precision.of,
            "precision": precision.value,
            "interval_95": precision.interval,
            "recall": recall.value,
            "thresholds": [
                {
                    "score": score,
                    "coverage": coverage,
                    "threshold": point.threshold,
                    "pairs": point.kept,
                    "precision": point.precision.value,
                    "interval_95": point.precision.interval,
                }
                for (score, coverage), point in points.items()
                if point is not None
            ],
        }


def main(
    source: Annotated[str, typer.Argument(help="A finished run, or a configuration to mine new scenes with.")],
    scenes: Annotated[int, typer.Option(min=1, help="How many scenes, with a configuration.")] = 1000,
    seed: Annotated[int, typer.Option(help="Their world: one that no training saw.")] = 11,
    workers: Annotated[int, typer.Option(min=1, help="Processes that draw.")] = 1,
    truth: Annotated[str | None, typer.Option(help="Instances JSON; the one beside the captions without it.")] = None,
    synonyms: Annotated[str, typer.Option(help="auto, coco, a YAML file, or none, as for evaluate-pairs.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with thresholds, not the table.")] = False,
) -> None:
    """Print precision and recall of every rule, at full and at equal coverage."""
    with tempfile.TemporaryDirectory(prefix="maskmine-") as scratch:
        if Path(source).is_file():
            run = mine_scenes(source, Path(scratch), scenes=scenes, seed=seed, workers=workers)
        else:
            run = read_folder(source)
        compared = compare_rules(run, truth=truth or _truth_beside(run), synonyms=synonyms)
    if as_json:
        sys.stdout.write(json.dumps([one.as_json() for one in compared], indent=2) + "\n")
        return
    CONSOLE.print(render(compared))
    CONSOLE.print(
        "\nPairs of nouns that the truth knows. Coverage is measured in the pairs of the paper's rule with the same"
        " captions;\n– where a rule has fewer.",
        style="dim",
    )


def mine_scenes(config: str, folder: Path, *, scenes: int, seed: int, workers: int = 1) -> RunFolder:
    """Draw a demo world in a folder and mine all captions of its scenes there, with the models of a configuration.

    Masks of a `ground_truth` are taken from the new world. Raises InputError for a seed that training may have seen,
    and for a configuration without CLIP.
    """
    check_held_out(seed)
    world = folder / "world"
    overrides = [
        f"captions.annotations={world}/captions.json",
        f"captions.images={world}/images",
        "captions.per_image=all",
        f"out={folder}/run",
    ]
    settings = load_mining(config, overrides=overrides)
    if not isinstance(settings.pairs, ClipPairs):
        raise InputError(f"{config}: pairs.rule: `labels` makes no embeddings; give a configuration with CLIP")
    if isinstance(settings.regions.proposals, GroundTruth):
        overrides.append(f"regions.proposals.annotations={world}/instances.json")
    draw_world(world, scenes=scenes, seed=seed, workers=workers)
    settings = load_mining(config, overrides=overrides)
    mine(settings, engine=LocalEngine(), observer=Seconds())
    return RunFolder(settings.out)


def compare_rules(run: RunFolder, *, truth: str, synonyms: str = "auto") -> list[Compared]:
    """Every rule on the nouns and regions of a finished run; one caption first, then as many as the run has.

    Raises IncompleteError when the run is not finished, InputError when it has no embeddings or the truth no object
    that its nouns name.
    """
    finished = FinishedRun.open(run)
    per_image = finished.manifest.settings["captions"]["per_image"]
    choices: list[int | str] = [1] if per_image == 1 else [1, per_image]
    known = read_annotations(truth)
    naming = open_naming(known.categories, load_synonyms(None if synonyms == "none" else synonyms))
    text_of = open_text_side(finished)
    rules = [(rule, rule.open()) for rule in RULES]
    metrics = {(choice, rule): PairMetrics() for choice in choices for rule in RULES}

    for part in finished.parts:
        covered = _covered(finished, part, known)
        nouns, regions = [nouns for _, nouns, _ in covered], [regions for _, _, regions in covered]
        text = text_of(part)
        objects = [known.objects(key) for key, _, _ in covered]
        for choice in choices:
            said = [_first_captions(row, most=choice) for row in nouns] if choice == 1 else nouns
            for rule, match in rules:
                for row, seen, paired, there in zip(said, regions, match(said, regions, text), objects, strict=True):
                    judged = match_image(row, seen, paired.pairs, objects=there, naming=naming)
                    metrics[choice, rule].add(judged)

    if not any(found.mentions for found in metrics.values()):
        raise InputError(f"{truth}: has no object that a noun of {run.root} names; give the truth of these images")
    return [Compared(choice, rule, metrics[choice, PAPER].labelled, found) for (choice, rule), found in metrics.items()]


def render(compared: Sequence[Compared]) -> TextTable:
    """The table: a row for each rule and number of captions."""
    table = TextTable(box=None, pad_edge=False)
    for name in ("rule", "captions"):
        table.add_column(name)
    for name in ("pairs", "precision", "95% interval", "recall"):
        table.add_column(name, justify="right")
    for coverage in COVERAGES:
        for score in SCORES:
            table.add_column(f"{coverage:.0%} by\n{score}", justify="right")
    for one in compared:
        precision, recall = one.metrics.precision, one.metrics.recall
        name = one.rule.rule if one.rule.score == "cosine" else f"{one.rule.rule}, {one.rule.score}"
        cells = [f"{precision.of:,}", percent(precision.value), interval(precision), percent(recall.value)]
        for coverage in COVERAGES:
            for score in SCORES:
                point = one.at(score, coverage)
                cells.append("–" if point is None else percent(point.precision.value))
        table.add_row(name, str(one.per_image), *cells)
    return table


def open_text_side(finished: FinishedRun) -> Callable[[int], TextSide]:
    """A function from a part to what is known of its nouns; runs without levels score no pairs.

    Raises InputError when the run has no embeddings.
    """
    base = run_cells(finished.folder)
    cells = [base, *(cells_of_version(base, f"{VERSIONS}/{one.name}") for one in finished.manifest.versions[1:])]
    vocabulary = [row for one in cells for row in one.vocabulary.read()]
    text = TextSide({row.noun: row.embedding for row in vocabulary if row.embedding is not None})
    if not text.embeddings:
        place = finished.folder.root
        raise InputError(f"{place}: holds no embeddings, as no CLIP took part; give a run with `regions.clip`")
    if finished.levels_paths:
        scale = LevelScale.read(base.levels.read_metadata())
        scorer = Scorer.open(scale, zip(base.levels.read_rows(), base.vocabulary.read_rows(), strict=True))
        levels = [row for one in cells for row in one.levels.read()]
        text = replace(text, scorer=scorer.with_nouns(levels, vocabulary))
    first_parts = Levels.model_validate(finished.manifest.settings.get("levels", {})).first_parts(
        finished.plan.images / finished.plan.parts
    )
    return lambda part: replace(text, measured=part < first_parts)


def _covered(finished: FinishedRun, part: int, known: Annotations) -> list[tuple[str, NounsRow, RegionsRow]]:
    """The images of a part that the truth covers: their ids there, nouns and regions."""
    keys = map(known.key_of, finished.rows(part, ImageRow))
    rows = zip(keys, finished.rows(part, NounsRow), finished.rows(part, RegionsRow), strict=True)
    return [row for row in rows if known.coverage(row[0], row[2]) == "covered"]


def _first_captions(row: NounsRow, *, most: int) -> NounsRow:
    """The nouns that an image would have with a limited number of captions."""
    nouns = tuple(noun for noun in row.nouns if noun.caption < most)
    return replace(row, nouns=nouns, rejection=None if nouns else Rejection("no_nouns"))


def _truth_beside(run: RunFolder) -> str:
    with run.open("mining.yaml") as file:
        captions = yaml.safe_load(file)["captions"]["annotations"]
    return str(Path(captions).with_name("instances.json"))


if __name__ == "__main__":
    run_command(main, name="compare_rules")
