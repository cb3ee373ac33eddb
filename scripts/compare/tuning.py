"""What tuning wins on masked regions of the demo world: ways to tune side by side, several seeds each.

    bash scripts/compare_tuning                          # plain, prompts on mined and on true pairs, fine-tuned, both
    bash scripts/compare_tuning sets depth captions positives negatives

Pairs are mined from a world that no training of CLIP saw, and regions to judge by come from another. What is there is
found again: scenes, pairs, and every tuning that is finished.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.pipelines.settings.mining import load_settings
from maskmine.schemas.errors import InputError
from maskmine.scripts.accuracy.models import CLEAN, PAPER, DemoModels, find_models, mine_truth, mine_world
from maskmine.scripts.command import run_command
from maskmine.scripts.demo_world.on_disk import find_world, truth_of
from maskmine.scripts.demo_world.splits import check_held_out
from maskmine.tuning.clip.settings import Tuning
from maskmine.tuning.clip.train import tune
from maskmine.tuning.console import TextTable, plain_console
from maskmine.tuning.evaluation.region_accuracy import (
    MASKED,
    UNMASKED,
    RegionEvaluation,
    RegionResults,
    evaluate_regions,
)
from maskmine.tuning.tables import number_table, percent

PAIRS_SEED, JUDGED_SEED = 21, 22
CONSOLE = plain_console(width=max(110, plain_console().width))
_CONFIGS = Path(__file__).resolve().parents[2] / "configs"
_MINED, _PAPER, _ALL_CAPTIONS, _TRUE = "mined", "paper", "mined-5-captions", "true"
_WITH_NEGATIVES = "mined-negatives"


@dataclass(frozen=True, slots=True)
class Way:
    """A way to tune: pairs to learn from, what differs from `configs/tune-demo.yaml`, and what it is judged by."""

    name: str
    pairs: str = _MINED
    changes: tuple[tuple[str, Any], ...] = ()
    mode: str = "prompts"
    judged: tuple[str, ...] = ("prompts",)

    def key(self) -> str:
        """A folder's name; ways that train alike share it, whatever they are judged by."""
        values = "-".join(f"{place.rpartition('.')[2]}={value}" for place, value in self.changes)
        return "-".join(filter(None, (self.mode, self.pairs, values)))


_HELD = {"own": "those of the own image", "batch": "those of the whole batch"}  # hard negatives of a region
TABLES: dict[str, tuple[Way, ...]] = {
    "ways": (
        Way("prompts, mined pairs"),
        Way("prompts, true pairs", pairs=_TRUE),
        Way("fine-tuned, mined pairs", mode="finetune_then_prompts", judged=("clip",)),
        Way("fine-tuned, then prompts", mode="finetune_then_prompts", judged=("clip", "prompts")),
        Way("joint, mined pairs", mode="joint", judged=("clip", "prompts")),
    ),
    "sets": (
        Way("prompts, every pair of the paper's rule", pairs=_PAPER),
        Way("prompts, the clean set"),
        Way("prompts, true pairs", pairs=_TRUE),
    ),
    "depth": (
        Way("prompts at depth 1", changes=(("prompts.depth", 1),)),
        Way("prompts at depth 3"),  # the default, and so the training of the other tables
        Way("prompts at depth 6", changes=(("prompts.depth", 6),)),
    ),
    "captions": (Way("prompts, 1 caption an image"), Way("prompts, 5 captions an image", pairs=_ALL_CAPTIONS)),
    "positives": (
        Way("prompts, equal nouns are positives"),
        Way("prompts, the paper's loss", changes=(("objective.positives", "paper"),)),
    ),
    "negatives": (
        Way("prompts, no hard negatives"),
        *(
            Way(f"prompts, {whose}", pairs=_WITH_NEGATIVES, changes=(("objective.negatives", held),))
            for held, whose in _HELD.items()
        ),
        Way("fine-tuned, no hard negatives", mode="finetune", judged=("clip",)),
        *(
            Way(
                f"fine-tuned, {whose}",
                pairs=_WITH_NEGATIVES,
                changes=(("objective.negatives", held),),
                mode="finetune",
                judged=("clip",),
            )
            for held, whose in _HELD.items()
        ),
    ),
}


def main(
    tables: Annotated[
        list[str] | None, typer.Argument(help="ways, sets, depth, captions, positives, negatives; `ways` without.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds, for mean and spread.")] = 3,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of a tuning.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=2, help="Pairs of a step.")] = None,
    scenes: Annotated[int, typer.Option(min=1, help="Scenes whose pairs are learnt from.")] = 3000,
    judged: Annotated[int, typer.Option(min=1, help="Scenes whose regions are judged by.")] = 500,
    clip: Annotated[Path | None, typer.Option(help="Folder of a CLIP, in place of the shipped one.")] = None,
    maskformer: Annotated[Path | None, typer.Option(help="Folder of a MaskFormer, likewise.")] = None,
    to: Annotated[Path, typer.Option(help="Folder for worlds, runs and figures.")] = Path("runs/tuning"),
) -> None:
    """Tune in several ways and print what each makes of masked regions."""
    check_held_out(PAIRS_SEED)
    if unknown := set(tables or ()) - TABLES.keys():
        raise InputError(f"unknown {', '.join(sorted(unknown))}; known: {', '.join(TABLES)}")
    models = find_models(clip=clip, maskformer=maskformer)
    ways = [way for name in tables or ["ways"] for way in TABLES[name]]
    worlds = Worlds(to, models, scenes=scenes, judged=judged)
    changes = {
        f"{part}.{name}": value
        for part in ("prompts", "finetune")
        for name, value in (("steps", steps), ("batch_size", batch_size))
        if value is not None
    }
    found = [judge(worlds, ways, seed=seed, changes=changes) for seed in range(seeds)]
    for name in tables or ["ways"]:
        CONSOLE.print()
        CONSOLE.print(table_of(TABLES[name], found))
    figures = {way.name: [as_share(one, way.name) for one in found] for way in ways}
    (to / "tuning.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Worlds:
    """Scenes to learn from and to judge by, and pairs mined from the first."""

    folder: Path
    models: DemoModels
    scenes: int
    judged: int

    def pairs(self, kind: str) -> RunFolder:
        """The run that mined pairs of a kind."""
        world = find_world(self.folder / f"seed-{PAIRS_SEED}-scenes-{self.scenes}", scenes=self.scenes, seed=PAIRS_SEED)
        out = self.folder / f"{kind}-{self.models.masks}-{self.scenes}"
        if kind == _TRUE:
            return mine_truth(world, out=out)
        per_image = "all" if kind == _ALL_CAPTIONS else 1
        return mine_world(
            world,
            out=out,
            models=self.models,
            masks=self.models.masks,
            per_image=per_image,
            console=CONSOLE,
            pairs=PAPER if kind == _PAPER else CLEAN,
            negatives={} if kind == _WITH_NEGATIVES else None,
        )

    def regions(self) -> dict[str, str]:
        """Settings of the regions to judge by."""
        world = find_world(
            self.folder / f"seed-{JUDGED_SEED}-scenes-{self.judged}", scenes=self.judged, seed=JUDGED_SEED
        )
        return {"kind": "instances", "annotations": truth_of(world), "images": str(world / "images")}


def judge(worlds: Worlds, ways: Sequence[Way], *, seed: int, changes: dict[str, Any]) -> RegionResults:
    """Tune in each way with a seed, and evaluate plain CLIP and all of them on the same regions."""
    clip = worlds.models.clip_settings().model_dump(mode="json")
    tuned: dict[str, dict[str, Any]] = {}
    for way in ways:
        out = worlds.folder / f"seed-{seed}" / way.key()
        tune_way(worlds, way, out=out, seed=seed, changes=changes, clip=clip)
        files = {"clip": {"model": str(out / "clip")}, "prompts": str(out / "prompts.safetensors")}
        tuned[way.name] = {name: files[name] for name in way.judged}
    CONSOLE.print(f"seed {seed}: judging …", style="dim")
    tree = {"clip": clip, "tuned": tuned, "regions": worlds.regions(), "device": "auto"}
    return evaluate_regions(RegionEvaluation.model_validate(tree))


def table_of(ways: Sequence[Way], found: Sequence[RegionResults]) -> TextTable:
    """Means over seeds; `±` is the standard deviation of the seeds."""
    table = number_table(f"masked regions, {len(found)} seeds", "top-1", "±", "top-5", "gain", "whole pictures")
    before = _mean(found, MASKED)
    for name in (UNMASKED, MASKED, *(way.name for way in ways)):
        tops = [as_share(one, name) for one in found]
        top5 = [share for one in found if (share := one.masked[name].accuracy(top=5)) is not None]
        gain = f"{100 * (statistics.mean(tops) - before):+.1f}" if name not in (UNMASKED, MASKED) else ""
        whole = _whole(found, name)
        spread = f"{100 * statistics.stdev(tops):.1f}" if len(tops) > 1 and gain else ""
        table.add_row(
            name, f"{statistics.mean(tops):.1%}", spread, percent(statistics.mean(top5) if top5 else None), gain, whole
        )
    return table


def as_share(found: RegionResults, name: str) -> float:
    """Top-1 on masked regions."""
    return found.masked[name].accuracy() or 0.0


def _mean(found: Sequence[RegionResults], name: str) -> float:
    return statistics.mean(as_share(one, name) for one in found)


def _whole(found: Sequence[RegionResults], name: str) -> str:
    """The change on natural pictures, in points."""
    if name in (UNMASKED, MASKED):
        return ""
    if all(name in one.identical for one in found):
        return "none, to the bit"
    changes = [(one.whole[name].accuracy() or 0.0) - (one.whole["plain CLIP"].accuracy() or 0.0) for one in found]
    return f"{100 * statistics.mean(changes):+.1f}"


def tune_way(worlds: Worlds, way: Way, *, out: Path, seed: int, changes: dict[str, Any], clip: dict[str, Any]) -> None:
    """Tune in a way, or go on with what is left of it."""
    source = {"folder": worlds.pairs(way.pairs).root}
    tree = {"sources": [source], "workers": 0}
    overrides = {"clip": clip, "data": tree, "mode": way.mode, "seed": seed, "out": str(out.absolute()), **changes}
    settings = _load_tuning(overrides | dict(way.changes))
    CONSOLE.print(f"seed {seed}: {way.name} …", style="dim")
    tune(settings, console=CONSOLE)


def _load_tuning(overrides: dict[str, Any]) -> Tuning:
    texts = [f"{place}={json.dumps(value)}" for place, value in overrides.items()]
    return load_settings(Tuning, str(_CONFIGS / "tune-demo.yaml"), overrides=texts)


if __name__ == "__main__":
    run_command(main, name="compare_tuning")
