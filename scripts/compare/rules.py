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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.table import Table

from mining.judging import judge_image
from mining.labels import load_synonyms
from mining.models.ground_truth import GroundTruth
from mining.pairs import ClipPairs
from mining.precision import CurvePoint, ScoreName, Share, Tally, at_least
from mining.truth import Truth, open_naming, read_truth
from pipelines.exits import exit_of
from pipelines.local import run_local
from pipelines.mine import mine
from pipelines.run_folder import RunFolder, read_folder
from pipelines.settings import load_mining
from pipelines.status import require_plan
from pipelines.verify import read_manifest
from schemas.errors import IncompleteError, InputError
from schemas.rows import NounsRow, RegionsRow, Rejection, VocabularyRow
from scripts.bench_mining import Seconds
from scripts.demo_seeds import check_held_out
from scripts.demo_world import draw_world

PAPER = ClipPairs()
RULES = (PAPER, ClipPairs(score="softmax"), ClipPairs(rule="mutual_best"), ClipPairs(rule="one_to_one"))
COVERAGES = (0.75, 0.5)
SCORES: tuple[ScoreName, ...] = ("similarity", "margin")
CONSOLE = Console(width=max(120, Console().width))


@dataclass(frozen=True, slots=True)
class Compared:
    """A rule with so many captions an image (`per_image` as in the settings), and what it came to.

    `possible` is the number of known pairs that the paper's rule makes of the same captions, which is that of all nouns
    in images with regions: coverage is measured in these, so that a rule that makes fewer pairs gains nothing by it.
    """

    per_image: int | str
    rule: ClipPairs
    possible: int
    tally: Tally = field(repr=False)

    def at(self, score: ScoreName, coverage: float) -> CurvePoint | None:
        """What is left at the highest threshold on a score that keeps this coverage; None where the rule has less."""
        return at_least(self.tally.scores[score].curve(), kept=math.ceil(coverage * self.possible))

    def as_json(self) -> dict[str, Any]:
        """Plain values; a threshold is one for the rule's own pairs."""
        precision, recall = self.tally.share("right"), self.tally.recall
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
    synonyms: Annotated[str, typer.Option(help="coco, a YAML file, or none, as for evaluate-pairs.")] = "coco",
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
        "max_rejected=1.0",
    ]
    settings = load_mining(config, overrides=overrides)
    if not isinstance(settings.pairs, ClipPairs):
        raise InputError(f"{config}: pairs.rule: `labels` makes no embeddings; give a configuration with CLIP")
    if isinstance(settings.regions.proposals, GroundTruth):
        overrides.append(f"regions.proposals.annotations={world}/instances.json")
    draw_world(world, scenes=scenes, seed=seed, workers=workers)
    settings = load_mining(config, overrides=overrides)
    mine(settings, engine=run_local, watch=Seconds())
    return RunFolder(settings.out)


def compare_rules(run: RunFolder, *, truth: str, synonyms: str = "coco") -> list[Compared]:
    """Every rule on the nouns and regions of a finished run; one caption first, then as many as the run has.

    Raises IncompleteError when the run is not finished, InputError when it has no embeddings or the truth no object
    that its nouns name.
    """
    per_image = read_manifest(run).settings["captions"]["per_image"]
    choices: list[int | str] = [1] if per_image == 1 else [1, per_image]
    known = read_truth(truth)
    naming = open_naming(known.categories, load_synonyms(None if synonyms == "none" else synonyms))
    vocabulary = run.read_rows("vocabulary.parquet", row_type=VocabularyRow)
    text = {row.noun: row.embedding for row in vocabulary if row.embedding is not None}
    if not text:
        raise InputError(f"{run.root}: holds no embeddings, as no CLIP took part; give a run with `regions.clip`")
    rules = [(rule, rule.open()) for rule in RULES]
    tallies = {(choice, rule): Tally() for choice in choices for rule in RULES}

    for nouns, regions in _parts(run, known):
        objects = [known.objects(row.image_id) for row in regions]
        for choice in choices:
            said = [_first_captions(row, most=choice) for row in nouns] if choice == 1 else nouns
            for rule, match in rules:
                for row, seen, paired, there in zip(said, regions, match(said, regions, text), objects, strict=True):
                    judged = judge_image(row, seen, paired.pairs, objects=there, naming=naming)
                    tallies[choice, rule].add(judged)

    if not any(tally.mentions for tally in tallies.values()):
        raise InputError(f"{truth}: has no object that a noun of {run.root} names; give the truth of these images")
    return [Compared(choice, rule, tallies[choice, PAPER].known, tally) for (choice, rule), tally in tallies.items()]


def render(compared: Sequence[Compared]) -> Table:
    """The table: a row for each rule and number of captions."""
    table = Table(box=None, pad_edge=False)
    for name in ("rule", "captions"):
        table.add_column(name)
    for name in ("pairs", "precision", "95% interval", "recall"):
        table.add_column(name, justify="right")
    for coverage in COVERAGES:
        for score in SCORES:
            table.add_column(f"{coverage:.0%} by\n{score}", justify="right")
    for one in compared:
        precision, recall = one.tally.share("right"), one.tally.recall
        low, high = precision.interval
        name = one.rule.rule if one.rule.score == "cosine" else f"{one.rule.rule}, {one.rule.score}"
        cells = [f"{precision.of:,}", _percent(precision), f"{low:.1%} – {high:.1%}", _percent(recall)]
        for coverage in COVERAGES:
            for score in SCORES:
                point = one.at(score, coverage)
                cells.append("–" if point is None else _percent(point.precision))
        table.add_row(name, str(one.per_image), *cells)
    return table


def _parts(run: RunFolder, known: Truth) -> Iterator[tuple[list[NounsRow], list[RegionsRow]]]:
    """The nouns and regions of each part, of the images that the truth covers."""
    for part in range(require_plan(run).parts):
        name = f"{part:05d}.parquet"
        rows = zip(
            run.read_rows("nouns", name, row_type=NounsRow),
            run.read_rows("regions", name, row_type=RegionsRow),
            strict=True,
        )
        covered = [(nouns, regions) for nouns, regions in rows if known.fit(regions) == "covered"]
        yield [nouns for nouns, _ in covered], [regions for _, regions in covered]


def _first_captions(row: NounsRow, *, most: int) -> NounsRow:
    """The nouns that an image would have if it had so many captions at most."""
    nouns = tuple(noun for noun in row.nouns if noun.caption < most)
    return replace(row, nouns=nouns, rejection=None if nouns else Rejection("no_nouns"))


def _truth_beside(run: RunFolder) -> str:
    with run.open("mining.yaml") as file:
        captions = yaml.safe_load(file)["captions"]["annotations"]
    return str(Path(captions).with_name("instances.json"))


def _percent(share: Share) -> str:
    return "–" if share.value is None else f"{share.value:.1%}"


if __name__ == "__main__":
    try:
        typer.run(main)
    except (InputError, IncompleteError) as error:
        typer.echo(f"compare_rules: {error}", err=True)
        sys.exit(exit_of(error))
