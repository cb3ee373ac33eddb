"""The figures of the demo world: what they amount to, beside the goals, as tables and as plain values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from maskmine.mining.evaluation.pair_metrics import SCORES, CurvePoint, ScoreName
from maskmine.pipelines.evaluate.pairs import Evaluation
from maskmine.pipelines.evaluate.pairs_report import interval, render_evaluation
from maskmine.pipelines.segment.oracle_report import render_cases
from maskmine.schemas.errors import InputError
from maskmine.scripts.accuracy.clip import CROWD, Accuracy, ClipAccuracy
from maskmine.scripts.accuracy.mined_proposals import MOST_PROPOSALS
from maskmine.scripts.accuracy.models import Masks
from maskmine.scripts.accuracy.proposals import ProposalRecall
from maskmine.scripts.compare.rules import PAPER, Compared, render
from maskmine.scripts.demo_world.nouns import demo_nouns
from maskmine.scripts.measures import Measure
from maskmine.tuning.console import TextTable
from maskmine.tuning.segmentation.oracle import CaseScores, verdict
from maskmine.tuning.tables import number_table, percent

MASKS = {"maskformer": "MaskFormer's masks", "ground_truth": "true masks"}
DRAWN_ONLY = "The CLIP of the demo world knows drawn objects only: photographs are matched by their labels, without it."
_HALF = 0.5
_TOP1, _PRECISION, _AT_HALF = 0.70, 0.85, 0.95
_RECALL = {"seen": 0.85, "unseen": 0.75}


@dataclass(frozen=True, slots=True)
class Figures:
    """Everything that is measured on a world.

    `compared` has the rules for each kind of masks that was mined with, `pairs` the verdict on those that were mined
    with `masks` from all captions.
    """

    seed: int
    scenes: int
    models: Mapping[str, Any]
    masks: Masks
    clip: ClipAccuracy
    recall: ProposalRecall | None
    compared: Mapping[Masks, Sequence[Compared]]
    pairs: Evaluation
    bars: Sequence[CaseScores]
    coco: Evaluation | None

    def measures(self) -> list[Measure]:
        """The figures that have a goal."""
        top1 = self.clip.surroundings.top1
        paper = papers_rule(self.compared[self.masks])
        precision = paper.metrics.precision
        score, half = best_half(paper)
        mined = f"paper's rule, {MASKS[self.masks]}, 1 caption"
        found = [] if self.recall is None else [("seen", self.recall.seen), ("unseen", self.recall.unseen)]
        return [
            _measure(f"CLIP: top-1 of {len(demo_nouns())} nouns, crops with surroundings", top1, _TOP1),
            *(
                _measure(f"MaskFormer: recall at IoU 0.5, {kind} nouns", recall.at_50, _RECALL[kind])
                for kind, recall in found
            ),
            _measure(f"mining: precision of known nouns, {mined}", precision.value or 0.0, _PRECISION),
            _measure(
                f"mining: precision of known nouns, half by {score}, {mined}",
                half.precision.value or 0.0,
                _AT_HALF,
            ),
        ]

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "seed": self.seed,
            "scenes": self.scenes,
            "models": self.models,
            "masks": self.masks,
            "measures": [asdict(measure) for measure in self.measures()],
            "clip": asdict(self.clip),
            "proposals": None if self.recall is None else asdict(self.recall),
            "mining": {masks: [one.as_json() for one in compared] for masks, compared in self.compared.items()},
            "pairs": self.pairs.as_json(),
            "bottleneck": [bar.as_json() for bar in self.bars],
            "coco": None if self.coco is None else self.coco.as_json(),
        }


def sections(figures: Figures) -> Iterator[tuple[str, RenderableType]]:
    """Titles and tables, in the order of the pipeline."""
    yield "Goals", _goals(figures)
    yield f"CLIP, zero-shot among {len(demo_nouns())} nouns", _clip(figures.clip)
    if figures.recall is None:
        yield (
            "MaskFormer",
            Text("There are no weights of a MaskFormer here; the true masks stand in for its proposals."),
        )
    else:
        yield f"MaskFormer, recall of objects with at most {MOST_PROPOSALS} proposals", _recall(figures.recall)
    yield "Mining by the paper's rule", _mining(figures.compared)
    for masks, compared in figures.compared.items():
        note = "Coverage is measured in the pairs of the paper's rule with the same captions; – where a rule has fewer."
        yield f"Matching rules, {MASKS[masks]}", Group(render(compared), Text(note))
    yield f"Pairs of all captions, {MASKS[figures.masks]}", render_evaluation(figures.pairs)
    yield "Bottleneck", Group(render_cases(figures.bars), Text(verdict(figures.bars)))
    if figures.coco is not None:
        yield "COCO photographs, their own masks by label", Group(render_evaluation(figures.coco), Text(DRAWN_ONLY))


def papers_rule(compared: Sequence[Compared]) -> Compared:
    """The paper's rule with one caption an image."""
    return next(one for one in compared if one.rule == PAPER and one.per_image == 1)


def best_half(compared: Compared) -> tuple[ScoreName, CurvePoint]:
    """The threshold that keeps half of the known pairs with the higher precision, and the score that it is on."""
    halves = {score: compared.at(score, _HALF) for score in SCORES}
    found = {score: point for score, point in halves.items() if point is not None}
    if not found:
        raise InputError("no pair of a noun that the truth knows, so there is nothing to measure; draw more scenes")
    return max(found.items(), key=lambda item: item[1].precision.value or 0.0)


def _goals(figures: Figures) -> TextTable:
    table = number_table("figure", "measured", "goal", "reached")
    for measure in figures.measures():
        table.add_row(measure.name, f"{measure.value} %", measure.goal, "yes" if measure.reached else "NO")
    return table


def _clip(clip: ClipAccuracy) -> TextTable:
    table = number_table("crops", "top-1", "top-5", "crops")
    kinds: dict[str, Accuracy] = {
        "with surroundings, one object": clip.surroundings,
        f"tight, scenes with {CROWD} or more objects": clip.tight,
        "the same, blanked outside the mask": clip.masked,
    }
    for name, found in kinds.items():
        table.add_row(name, f"{found.top1:.1%}", f"{found.top5:.1%}", f"{found.crops:,}")
    return table


def _recall(recall: ProposalRecall) -> TextTable:
    table = number_table("objects", "IoU ≥ 0.5", "IoU ≥ 0.75", "count")
    kinds = {"all": recall.all, "of seen nouns": recall.seen, "of unseen nouns": recall.unseen, **recall.sizes}
    for name, found in kinds.items():
        table.add_row(name, f"{found.at_50:.1%}", f"{found.at_75:.1%}", f"{found.objects:,}")
    return table


def _mining(compared: Mapping[Masks, Sequence[Compared]]) -> TextTable:
    table = TextTable("masks", "captions", box=None, pad_edge=False)
    names = ("all pairs", "precision", "of known nouns", "precision", "95% interval", "recall")
    for name in (*names, "at half coverage", "95% interval", "threshold"):
        table.add_column(name, justify="right")
    for masks, rows in compared.items():
        for one in rows:
            if one.rule != PAPER:
                continue
            of_all, precision = one.metrics.precision_of_all, one.metrics.precision
            score, half = best_half(one)
            table.add_row(
                MASKS[masks],
                str(one.per_image),
                f"{of_all.of:,}",
                percent(of_all.value),
                f"{precision.of:,}",
                percent(precision.value),
                interval(precision),
                percent(one.metrics.recall.value),
                percent(half.precision.value),
                interval(half.precision),
                f"{score} ≥ {half.threshold:.4f}",
            )
    return table


def _measure(name: str, share: float, goal: float) -> Measure:
    return Measure(name, round(100 * share, 1), "%", f"≥ {goal:.0%}", share >= goal)
