"""Which score tells right pairs from wrong ones: for each rule and score, what is right among the pairs that it keeps.

    bash scripts/compare_rules --seed 41 --seed 42 --seed 43            # the table, and the goals
    bash scripts/compare_rules --seed 41 --seed 42 --seed 43 --audits 200

Every seed is a demo world that no training saw, mined with one caption an image; what is there is found again. A mask
of something else, of nothing, or for a noun that names no object counts as wrong. What "stays" is counted in the right
pairs of the paper's rule, so that a rule that makes fewer gains nothing by it.

Shapes: N pairs of a rule in the world of a seed.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from maskmine.mining.evaluation.annotations import read_annotations
from maskmine.mining.evaluation.pair_matching import ImageMatches, match_image
from maskmine.mining.pairs import ClipPairs
from maskmine.mining.scores.calibration import Calibration, calibrated_features
from maskmine.mining.text.labels import load_synonyms, open_naming
from maskmine.pipelines.audit.audit import audit_run
from maskmine.pipelines.audit.fit import cross_fitted
from maskmine.pipelines.dataset.finished_run import FinishedRun
from maskmine.schemas.errors import InputError
from maskmine.schemas.mask import Mask
from maskmine.schemas.rows import ImageRow, NounsRow, Pair, PairsRow, RegionsRow
from maskmine.scripts.accuracy.models import CLEAN, find_models, mine_world
from maskmine.scripts.command import run_command
from maskmine.scripts.compare.audits import simulate_audits
from maskmine.scripts.compare.coco import REMARK, mine_photographs
from maskmine.scripts.compare.rules import RULES, open_text_side
from maskmine.scripts.demo_world.on_disk import find_world, truth_of
from maskmine.scripts.demo_world.splits import check_held_out
from maskmine.scripts.measures import Measure, at_least, at_most
from maskmine.tuning.console import TextTable, plain_console

Array = np.ndarray[Any, np.dtype[np.float64]]

STAYING = (0.95, 0.9, 0.8, 0.5)
"""Shares of the right pairs of the paper's rule that stay."""
VERDICTS = 300

CONSOLE = plain_console(width=max(120, plain_console().width))
_GOAL_STAYING = 0.9
_SCORE_WEIGHT = 0.1  # of a proposal's score beside a lift, in cosines
_CONFIDENCE, _OWN_CONFIDENCE = "confidence, verdicts of another seed", "confidence, all pairs judged, 10 folds"


@dataclass(frozen=True)
class JudgedPairs:
    """The pairs that a rule makes of a world, the scores of their proposals, and which of them are right."""

    pairs: Sequence[Pair]
    proposal_N: Array
    right_N: Array


@dataclass(frozen=True)
class JudgedImage:
    """An image with the pairs that a rule makes of it, what each is, and the true masks of what its noun names."""

    image: ImageRow
    regions: RegionsRow
    pairs: PairsRow
    matches: ImageMatches
    named: Sequence[Sequence[Mask]]


@dataclass(frozen=True)
class World:
    """A mined world: its seed, its run, whose configuration has the `rule` of the clean set, and its truth."""

    seed: int
    run: FinishedRun
    truth: str

    @property
    def rule(self) -> ClipPairs:
        """The rule of the clean set, without its filters."""
        pairs = self.run.settings.pairs
        if not isinstance(pairs, ClipPairs):
            raise InputError(f"{self.run.name}: was mined without CLIP")
        return ClipPairs(rule=pairs.rule, score=pairs.score, proposal_weight=pairs.proposal_weight)


@dataclass(frozen=True)
class Line:
    """A rule and a score: for each seed its pairs, and the share of right ones when shares of the right ones stay."""

    rule: str
    score: str
    pairs: Sequence[int]
    precision: Sequence[Mapping[float, float | None]]

    def mean(self, staying: float) -> float | None:
        """Over the seeds; None where a rule makes too few right pairs in one of them."""
        values = [one[staying] for one in self.precision]
        return None if None in values else statistics.mean(value for value in values if value is not None)

    def lowest(self, staying: float) -> float | None:
        """Of the seeds."""
        values = [one[staying] for one in self.precision]
        return None if None in values else min(value for value in values if value is not None)


def main(
    seed: Annotated[list[int] | None, typer.Option(help="A world that no training saw; give several.")] = None,
    scenes: Annotated[int, typer.Option(min=30, help="Scenes of each.")] = 1000,
    verdicts_of: Annotated[int, typer.Option(help="The world whose pairs get the verdicts.")] = 40,
    verdicts: Annotated[int, typer.Option(min=30, help="How many verdicts.")] = VERDICTS,
    audits: Annotated[int, typer.Option(min=0, help="Audits to simulate, of as many verdicts each.")] = 0,
    coco_mini: Annotated[Path | None, typer.Option(help="COCO: annotations/ and a folder of photographs.")] = None,
    to: Annotated[Path, typer.Option(help="Folder for worlds and runs.")] = Path("runs/scores"),
) -> None:
    """Print what every rule and score is worth, which to use, and how far the goals are reached."""
    seeds = seed or [41, 42, 43]
    if verdicts_of in seeds:
        raise InputError(f"--verdicts-of {verdicts_of}: is one of the seeds; verdicts are to come from another world")
    worlds = [find_mined(to, seed=one, scenes=scenes) for one in seeds]
    judged = find_mined(to, seed=verdicts_of, scenes=scenes)
    audit = audit_run(judged.run.folder, truth=judged.truth, size=verdicts, seed=0)
    if audit.fitted is None:
        raise InputError(f"seed {verdicts_of}: no calibration, as {audit.no_calibration}")
    lines = list(compare_scores(worlds, audit.fitted.calibration))
    CONSOLE.print(render(lines, seeds))
    CONSOLE.print(f"\n{advice(lines)}\n")
    measures = [*goals(worlds, lines)]
    if audits:
        CONSOLE.print(f"{audits} audits of {verdicts} verdicts …", style="dim")
        measures += simulate_audits(
            [(world.run.folder, world.truth) for world in worlds],
            confidences=[partial_confidence(world) for world in worlds],
            audits=audits,
            verdicts=verdicts,
        )
    CONSOLE.print(goal_table(measures))
    if coco_mini is not None:
        CONSOLE.print("", render(list(compare_photographs(coco_mini, to / "coco")), ["COCO"]), "", REMARK, sep="\n")


def find_mined(folder: Path, *, seed: int, scenes: int) -> World:
    """The world of a seed and the run that mined it with one caption an image, made where they are missing."""
    check_held_out(seed)
    place = folder / f"seed-{seed}-scenes-{scenes}"
    world = find_world(place / "world", scenes=scenes, seed=seed)
    models = find_models(clip=None, maskformer=None)
    CONSOLE.print(f"seed {seed}: mining …", style="dim")
    run = mine_world(
        world, out=place / "run", models=models, masks=models.masks, per_image=1, console=CONSOLE, pairs=CLEAN
    )
    return World(seed, FinishedRun.open(run), truth_of(world))


def judge_pairs(world: World, rule: ClipPairs) -> JudgedPairs:
    """The pairs that a rule makes of a world's nouns and regions, with their evidence, held against the truth."""
    pairs: list[Pair] = []
    scores: list[float] = []
    right: list[bool] = []
    for one in judge_images(world, rule):
        pairs += one.pairs.pairs
        scores += [one.regions.regions[pair.region].score for pair in one.pairs.pairs]
        right += [match.outcome == "correct" for match in one.matches.pairs]
    return JudgedPairs(pairs, np.array(scores), np.array(right, np.float64))


def judge_images(world: World, rule: ClipPairs) -> Iterator[JudgedImage]:
    """The images of a world with the pairs that a rule makes of their nouns and regions, held against the truth."""
    finished, text_of = world.run, open_text_side(world.run)
    known = read_annotations(world.truth)
    naming = open_naming(known.categories, load_synonyms("auto"))
    match = rule.open()
    for part in finished.parts:
        images, nouns = finished.rows(part, ImageRow), finished.rows(part, NounsRow)
        regions = finished.rows(part, RegionsRow)
        matched = match(nouns, regions, text_of(part))
        for image, said, seen, pairs in zip(images, nouns, regions, matched, strict=True):
            objects = known.objects(known.key_of(image))
            matches = match_image(said, seen, pairs.pairs, objects=objects, naming=naming)
            masks = [
                [one.mask for one in objects if one.category in naming(pair.noun, pair.lemma)] for pair in pairs.pairs
            ]
            yield JudgedImage(image, seen, pairs, matches, masks)


def compare_scores(worlds: Sequence[World], calibration: Calibration) -> Iterator[Line]:
    """Every rule by every score; confidences, which belong to one rule, with the rule of the clean set."""
    clean = worlds[0].rule
    paper = [judge_pairs(world, RULES[0]) for world in worlds]
    wanted = [float(one.right_N.sum()) for one in paper]
    for rule in (*RULES, *([] if clean in RULES else [clean])):
        judged = paper if rule == RULES[0] else [judge_pairs(world, rule) for world in worlds]
        scores: dict[str, Callable[[JudgedPairs], Array]] = {
            "none": lambda one: np.zeros(len(one.pairs)),
            **{name: field_of(name) for name in ("margin", "similarity", "lift")},
            f"lift + {_SCORE_WEIGHT:g} × proposal's score": lambda one: (
                field_of("lift")(one) + _SCORE_WEIGHT * one.proposal_N
            ),
            "evidence": field_of("evidence"),
        }
        if rule == clean:
            scores[_CONFIDENCE] = lambda one: calibration.confidence(
                calibrated_features(one.pairs, one.proposal_N.tolist())
            )
            scores[_OWN_CONFIDENCE] = _cross_fitted
        for name, score in scores.items():
            precision = [
                {share: precision_at(score(one), one.right_N, right=share * most) for share in STAYING}
                for one, most in zip(judged, wanted, strict=True)
            ]
            yield Line(rule_name(rule), name, [len(one.pairs) for one in judged], precision)


def compare_photographs(coco: Path, out: Path) -> Iterator[Line]:
    """Pairs of photographs' true masks: by label, which has no score, and by the demo's CLIP."""
    labels, truth = mine_photographs(coco, out=out / "labels", by_label=True)
    right_N = judge_written(World(0, labels, truth))
    yield Line("true masks, labels", "none", [len(right_N)], [dict.fromkeys(STAYING, float(right_N.mean()))])
    mined, truth = mine_photographs(coco, out=out / "clip", by_label=False)
    judged = judge_pairs(World(0, mined, truth), RULES[0])
    for name in ("none", "similarity", "lift", "evidence"):
        score_N = np.zeros(len(judged.pairs)) if name == "none" else field_of(name)(judged)
        precision = {s: precision_at(score_N, judged.right_N, right=s * judged.right_N.sum()) for s in STAYING}
        yield Line("true masks, the demo's CLIP", name, [len(judged.pairs)], [precision])


def precision_at(score_N: Array, right_N: Array, *, right: float) -> float | None:
    """The share of right pairs above the highest threshold that keeps so many right ones; None where it cannot.

    Pairs without the score reach no threshold.
    """
    order = np.argsort(-np.nan_to_num(score_N, nan=-np.inf), kind="stable")
    kept_N = np.cumsum(right_N[order])
    enough = np.flatnonzero(kept_N >= math.ceil(right))
    if not len(enough) or np.isnan(score_N[order[enough[0]]]):
        return None
    # All pairs of the same score are kept together.
    last = int(np.flatnonzero(score_N[order] >= score_N[order[enough[0]]])[-1])
    return float(kept_N[last] / (last + 1))


def render(lines: Sequence[Line], seeds: Sequence[int | str]) -> TextTable:
    """The table: means over the seeds, and the lowest seed where nine of ten right pairs stay."""
    table = TextTable(
        box=None, pad_edge=False, title=f"right among the kept, mean of seeds {', '.join(map(str, seeds))}"
    )
    for name in ("rule", "score"):
        table.add_column(name)
    table.add_column("pairs", justify="right")
    for share in STAYING:
        table.add_column(f"{share:.0%} of the\nright stay", justify="right")
    table.add_column(f"lowest seed\nat {_GOAL_STAYING:.0%}", justify="right")
    previous = None
    for line in lines:
        shares = [_percent(line.mean(share)) for share in STAYING]
        rule = "" if line.rule == previous else line.rule
        lowest = _percent(line.lowest(_GOAL_STAYING))
        table.add_row(rule, line.score, f"{statistics.mean(line.pairs):,.0f}", *shares, lowest)
        previous = line.rule
    return table


def advice(lines: Sequence[Line]) -> str:
    """Which rule and score to use, without verdicts and with them."""
    best = max((line for line in lines if not line.score.startswith("confidence")), key=_at_goal)
    judged = max((line for line in lines if line.score == _CONFIDENCE), key=_at_goal)
    return (
        f"Use, without verdicts: {best.rule} by {best.score}, {_percent(best.mean(_GOAL_STAYING))} right where 90 % of "
        f"the right pairs stay; with verdicts: {judged.rule} by {judged.score}, {_percent(judged.mean(_GOAL_STAYING))}."
    )


def goals(worlds: Sequence[World], lines: Sequence[Line]) -> Iterator[Measure]:
    """The goals that need no further audits: each is held by the worst of the seeds."""
    clean = rule_name(worlds[0].rule)
    for score, goal in ((_CONFIDENCE, 95), ("evidence", 94)):
        (line,) = (line for line in lines if (line.rule, line.score) == (clean, score))
        for world, precision in zip(worlds, line.precision, strict=True):
            value = 100 * (precision[_GOAL_STAYING] or 0.0)
            yield at_least(f"seed {world.seed}: right by {score}, 90 % of the right stay", value, "%", goal)
    for world in worlds:
        paper, written = judge_pairs(world, RULES[0]), judge_written(world)
        wrong, wrong_paper = len(written) - written.sum(), len(paper.pairs) - paper.right_N.sum()
        yield Measure(f"seed {world.seed}: right of the paper's pairs", 100 * float(paper.right_N.mean()), "%")
        yield Measure(f"seed {world.seed}: right of the clean set", 100 * float(written.mean()), "%")
        kept = 100 * float(written.sum() / paper.right_N.sum())
        yield Measure(f"seed {world.seed}: right pairs of it, of the paper's", kept, "%")
        yield at_most(
            f"seed {world.seed}: wrong pairs of it, of the paper's", 100 * float(wrong / wrong_paper), "%", 20
        )


def judge_written(world: World) -> Array:
    """Which pairs of the shards are right, [N]."""
    known = read_annotations(world.truth)
    naming = open_naming(known.categories, load_synonyms("auto"))
    right = []
    for part in world.run.parts:
        for image in world.run.images(part):
            objects = known.objects(known.key_of(image.image))
            judged = match_image(image.nouns, image.regions, image.pairs, objects=objects, naming=naming)
            right += [one.outcome == "correct" for one in judged.pairs]
    return np.array(right, np.float64)


def partial_confidence(world: World) -> Callable[[Calibration], tuple[Array, Array]]:
    """A function from a calibration to the confidences of a world's pairs, [N], and which of them are right, [N]."""
    judged = judge_pairs(world, world.rule)
    features_NF = calibrated_features(judged.pairs, judged.proposal_N.tolist())
    has_all_N = ~np.isnan(features_NF).any(axis=1)
    return lambda calibration: (calibration.confidence(features_NF[has_all_N]), judged.right_N[has_all_N])


def field_of(name: str) -> Callable[[JudgedPairs], Array]:
    """A function from pairs to one of their scores, [N]; NaN for none."""

    def values(judged: JudgedPairs) -> Array:
        found = (getattr(pair, name) for pair in judged.pairs)
        return np.array([np.nan if value is None else value for value in found], np.float64)

    return values


def _cross_fitted(judged: JudgedPairs) -> Array:
    features_NF = calibrated_features(judged.pairs, judged.proposal_N.tolist())
    has_all_N = ~np.isnan(features_NF).any(axis=1)
    result_N = np.full(len(features_NF), np.nan)
    result_N[has_all_N] = cross_fitted(features_NF[has_all_N], judged.right_N[has_all_N])
    return result_N


def rule_name(rule: ClipPairs) -> str:
    """A rule as tables have it."""
    parts = [rule.rule, *([] if rule.score == "cosine" else [rule.score])]
    return ", ".join([*parts, *([f"proposals weigh {rule.proposal_weight:g}"] if rule.proposal_weight else [])])


def _at_goal(line: Line) -> float:
    return line.mean(_GOAL_STAYING) or 0.0


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"


def goal_table(measures: Sequence[Measure]) -> TextTable:
    """A line for each figure, and whether it reaches its goal."""
    table = TextTable("goal", "value", "", "", "reached", box=None, pad_edge=False)
    for measure in measures:
        reached = "" if measure.reached is None else "yes" if measure.reached else "NO"
        table.add_row(measure.name, f"{measure.value:,.4g}", measure.unit, measure.goal, reached)
    return table


if __name__ == "__main__":
    run_command(main, name="compare_rules")
