"""What tuning wins where it has to prove itself: mIoU of segmentation on scenes that no training saw.

    bash scripts/compare_segmentation                                   # tunes first, where nothing is tuned yet
    bash scripts/compare_segmentation --tuned runs/tuning/seed-0 --tuned runs/tuning/seed-1
    bash scripts/compare_segmentation --maskformer DIR                  # yours, such as one that tells no classes

Plain CLIP, prompts of the clean set and of the paper's, fine-tuned, and both, as far as they were tuned. Each has the
MaskFormer's masks, these in the ensemble with the MaskFormer's own classes, and true masks. Seen nouns are those that
the MaskFormer's training drew. What is measured is found again.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from maskmine.pipelines.engines.local import LocalEngine
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.pipelines.segment.benchmark import Benchmark, run_benchmark
from maskmine.pipelines.segment.benchmark_report import scores_of, write_report
from maskmine.pipelines.segment.benchmark_sets import BenchmarkSet
from maskmine.pipelines.watch.progress import RunProgress
from maskmine.schemas.errors import InputError
from maskmine.scripts.accuracy.models import DemoModels, find_models
from maskmine.scripts.accuracy.segmentation import demo_segmenter, demo_set, is_open
from maskmine.scripts.command import run_command
from maskmine.scripts.compare.tuning import TABLES, Way, Worlds, tune_way
from maskmine.scripts.demo_world.on_disk import find_world
from maskmine.scripts.demo_world.splits import check_held_out
from maskmine.tuning.benchmarks.sets import SemanticSet
from maskmine.tuning.console import TextTable, plain_console
from maskmine.tuning.segmentation.evaluation import SetScores
from maskmine.tuning.segmentation.segmenter import Segmenter
from maskmine.tuning.tables import number_table, percent

FIGURES_FILE = "segmentation.json"
GOAL_POINTS = 5.0
PLAIN, PROMPTS = "plain CLIP", "prompts"
MASKFORMER, ENSEMBLE, TRUE_MASKS = "MaskFormer", "MaskFormer, ensemble", "true masks"
OPEN = Path(__file__).parents[1] / "models" / "open_maskformer"
CONSOLE = plain_console(width=max(140, plain_console().width))
_TUNED_SCENES = 3000
_PROMPTS_WAY, _PAPER_WAY, _FINETUNED_WAY = TABLES["ways"][0], TABLES["sets"][0], TABLES["ways"][3]


@dataclass(frozen=True, slots=True)
class TunedRow:
    """A row of the table: which tuning's files take the place of plain CLIP, None for plain CLIP itself."""

    name: str
    way: Way | None = None
    files: tuple[str, ...] = ()

    def tuned(self, folder: Path) -> dict[str, Any] | None:
        """The setting `tuned` with the files of a folder as `compare_tuning` leaves it."""
        if self.way is None:
            return None
        out = (folder / self.way.key()).absolute()
        known = {"clip": {"model": str(out / "clip")}, "prompts": str(out / "prompts.safetensors")}
        return {file: known[file] for file in self.files}


ROWS = (
    TunedRow(PLAIN),
    TunedRow(PROMPTS, _PROMPTS_WAY, ("prompts",)),
    TunedRow("prompts, the paper's set", _PAPER_WAY, ("prompts",)),
    TunedRow("fine-tuned", _FINETUNED_WAY, ("clip",)),
    TunedRow("fine-tuned, then prompts", _FINETUNED_WAY, ("clip", "prompts")),
)

Found = Mapping[str, Mapping[str, Sequence[SetScores]]]
"""Scores by the column and the name of the row, one for each tuning."""


def main(
    tuned: Annotated[
        list[Path] | None, typer.Option(help="Folder of tunings as `compare_tuning` writes it; several: their mean.")
    ] = None,
    seed: Annotated[int, typer.Option(help="A world that no training saw.")] = 22,
    scenes: Annotated[int, typer.Option(min=1, help="How many scenes of it.")] = 300,
    clip: Annotated[Path | None, typer.Option(help="Folder of a CLIP, in place of the shipped one.")] = None,
    maskformer: Annotated[Path, typer.Option(help="Folder of a MaskFormer; an open one has an ensemble.")] = OPEN,
    clip_weight: Annotated[float, typer.Option(min=0.01, max=0.99, help="λ of the ensemble.")] = 0.5,
    to: Annotated[Path, typer.Option(help="Folder for the world and the counts.")] = Path("runs/segmentation"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, not the table.")] = False,
) -> None:
    """Print mIoU of plain and tuned CLIP with ordinary and true masks, seen and unseen nouns apart."""
    check_held_out(seed)
    models = find_models(clip=clip, maskformer=maskformer)
    folders = [folder.absolute() for folder in tuned] if tuned else [make_tunings(models, Path("runs/tuning"))]
    for folder in folders:
        _refuse_without_prompts(folder)
    folder = to / f"seed-{seed}-scenes-{scenes}"
    world = find_world(folder / "world", scenes=scenes, seed=seed, workers=2)
    found = compare(
        demo_set(world, to=folder / "set"), world, models=models, tuned=folders, clip_weight=clip_weight, to=folder
    )
    figures = as_figures(found)
    (folder / FIGURES_FILE).write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    if as_json:
        sys.stdout.write(json.dumps(figures, indent=2) + "\n")
        return
    CONSOLE.print(render(found, scenes=scenes))
    CONSOLE.print(f"\n{verdict(found)}\n{folder / FIGURES_FILE}", highlight=False, soft_wrap=True)


def make_tunings(models: DemoModels, to: Path) -> Path:
    """The folder of the tunings of seed 0, which are made if they are not there: an hour or two of one CPU core."""
    folder = to / "seed-0"
    worlds = Worlds(to, models, scenes=_TUNED_SCENES, judged=1)
    clip = models.clip_settings().model_dump(mode="json")
    for way in (_PROMPTS_WAY, _PAPER_WAY, _FINETUNED_WAY):
        if not _is_there(folder, way):
            tune_way(worlds, way, out=folder / way.key(), seed=0, changes={}, clip=clip)
    return folder.absolute()


def compare(
    of: SemanticSet, world: Path, *, models: DemoModels, tuned: Sequence[Path], clip_weight: float, to: Path
) -> Found:
    """Segment the set in every way that these models allow and all of these folders have; counts below `to` are used
    again where they fit."""
    rows = [row for row in ROWS if row.way is None or all(_is_there(folder, row.way) for folder in tuned)]
    found: dict[str, dict[str, list[SetScores]]] = {}
    for column, changes in _columns(models, clip_weight=clip_weight):
        for row in rows:
            for number, folder in enumerate(tuned if row.way else tuned[:1]):
                CONSOLE.print(f"{column}: {row.name} …", style="dim")
                settings = demo_segmenter(
                    models, true_masks=world if column == TRUE_MASKS else None, tuned=row.tuned(folder), **changes
                )
                counted = to / "counts" / _slug(column) / _slug(row.name) / str(number)
                found.setdefault(column, {}).setdefault(row.name, []).append(_measure(of, settings, counted))
    return found


def as_figures(found: Found) -> dict[str, Any]:
    """Figures of every cell, the mean over the tunings, from 0 to 1."""
    return {
        column: {row: dict(zip(_GROUPS, _means(scores), strict=True)) for row, scores in rows.items()}
        for column, rows in found.items()
    }


def render(found: Found, *, scenes: int) -> TextTable:
    """mIoU in percent: all nouns, seen, unseen."""
    table = number_table(
        f"mIoU, {scenes:,} scenes", *(f"{name.replace(', ', chr(10))}\n{group}" for name in found for group in _GROUPS)
    )
    for row in ROWS:
        if all(row.name in rows for rows in found.values()):
            cells = [percent(mean) for rows in found.values() for mean in _means(rows[row.name])]
            table.add_row(row.name, *cells)
    return table


def verdict(found: Found) -> str:
    """Whether prompts win what they are to win, and what the table lacks."""
    plain, prompts = (_means(found[MASKFORMER][name])[0] or 0.0 for name in (PLAIN, PROMPTS))
    gain = 100 * (prompts - plain)
    told = f"Prompts win {gain:+.1f} points over plain CLIP with the MaskFormer's masks"
    reached = "reached" if gain >= GOAL_POINTS else "NOT reached"
    without = (
        "" if ENSEMBLE in found else " This MaskFormer tells no classes, so there is no ensemble; give an open one."
    )
    return f"{told}; the goal of {GOAL_POINTS:g} is {reached}.{without}"


_GROUPS = ("all", "seen", "unseen")


def _columns(models: DemoModels, *, clip_weight: float) -> Iterator[tuple[str, dict[str, Any]]]:
    """The masks and rules, each with its settings."""
    if models.maskformer is not None:
        yield MASKFORMER, {}
        if is_open(models.maskformer):
            yield ENSEMBLE, {"rule": "ensemble", "clip_weight": clip_weight}
    yield TRUE_MASKS, {}


def _measure(of: SemanticSet, settings: Segmenter, to: Path) -> SetScores:
    benchmark = Benchmark(BenchmarkSet(of), settings, RunFolder(str(to.absolute())))
    outcome = run_benchmark(benchmark, engine=LocalEngine(), observer=RunProgress())
    write_report(benchmark, outcome)
    scores = scores_of(benchmark, outcome)
    if scores is None or outcome.rejected:
        raise InputError(f"{to}: {len(outcome.rejected)} scenes could not be read; delete the world and run this again")
    return scores


def _means(scores: Sequence[SetScores]) -> list[float | None]:
    columns = zip(*((one.scores.mean_iou, one.seen_iou, one.unseen_iou) for one in scores), strict=True)
    return [None if None in values else statistics.mean(value or 0.0 for value in values) for values in columns]


def _is_there(folder: Path, way: Way) -> bool:
    files = [file for row in ROWS if row.way is way for file in row.files]
    names = {"clip": "clip", "prompts": "prompts.safetensors"}
    return all((folder / way.key() / names[file]).exists() for file in files)


def _refuse_without_prompts(folder: Path) -> None:
    if not _is_there(folder, _PROMPTS_WAY):
        raise InputError(
            f"--tuned {folder}: has no finished tuning {_PROMPTS_WAY.key()}; give a folder that "
            "`bash scripts/compare_tuning ways sets` wrote, such as runs/tuning/seed-0"
        )


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower())


if __name__ == "__main__":
    run_command(main, name="compare_segmentation")
