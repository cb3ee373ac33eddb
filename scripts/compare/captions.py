"""What captions by a model add: objects of demo worlds that get a right pair, without them and with them.

    bash scripts/compare_rules captions --seed 41 --seed 42 --seed 43

The worlds and the runs without are those of `scripts/compare/scores.py`, with one caption an image. The model is a
stand-in on loopback that is asked as any server is: it names from the scene's truth what the caption leaves out. A
second one names something that is not there in half of its answers as well. Regions are those of the run without, so
nothing is proposed again.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from maskmine.mining.captioners.endpoint import Endpoint
from maskmine.mining.evaluation.annotations import AnnotatedObject, read_annotations
from maskmine.mining.evaluation.pair_matching import CORRECT_IOU, match_image
from maskmine.mining.text.labels import Naming, load_synonyms, open_naming
from maskmine.pipelines.dataset.finished_run import FinishedRun
from maskmine.pipelines.dataset.mined_images import MinedImage
from maskmine.pipelines.engines.local import LocalEngine
from maskmine.pipelines.mine import mine
from maskmine.pipelines.reports.diff import Diff, compare_runs
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.pipelines.watch.progress import RunProgress
from maskmine.schemas.mask import Mask, mask_iou
from maskmine.scripts.captioner.server import MODEL, captioner_on_loopback
from maskmine.scripts.captioner.truth import says_what_is_left_out
from maskmine.scripts.command import run_command
from maskmine.scripts.compare.scores import CONSOLE, World, find_mined
from maskmine.tuning.console import TextTable
from maskmine.tuning.tables import percent

_INVENTS = 0.5
CAPTIONERS = {"names what is left out": 0.0, f"and invents a thing in {_INVENTS:.0%} of its answers": _INVENTS}
"""The stand-ins by name, and the share of their answers that name what is not there."""
WITHOUT = "without"


@dataclass(frozen=True, slots=True)
class Found:
    """Of a set: its pairs, how many are right, and of how many objects there are how many have a right one."""

    pairs: int
    right: int
    objects: int
    with_pair: int

    @property
    def precision(self) -> float:
        """The share of right pairs."""
        return self.right / max(1, self.pairs)

    @property
    def recall(self) -> float:
        """The share of objects with a right pair."""
        return self.with_pair / max(1, self.objects)


@dataclass(frozen=True, slots=True)
class Compared:
    """A world and a captioner: the written set and every pair of the rule, and what `maskmine diff` says."""

    seed: int
    captioner: str
    written: Found
    every: Found
    requests: int = 0
    diff: Diff | None = None


def main(
    seed: Annotated[list[int] | None, typer.Option(help="A world that no training saw; give several.")] = None,
    scenes: Annotated[int, typer.Option(min=30, help="Scenes of each.")] = 1000,
    to: Annotated[Path, typer.Option(help="Folder for worlds and runs, that of the other scores.")] = Path(
        "runs/scores"
    ),
) -> None:
    """Print recall of objects and precision, without and with captions by a model."""
    seeds = seed or [41, 42, 43]
    compared = [one for number in seeds for one in compare_captions(find_mined(to, seed=number, scenes=scenes), to)]
    CONSOLE.print(render(compared, seeds), "")
    for one in compared:
        if one.diff is not None:
            named = ", ".join(f"{noun} ({pairs})" for noun, pairs in one.diff.new_nouns[:6])
            CONSOLE.print(
                f"seed {one.seed}, {one.captioner}: {one.requests:,} requests; diff: {one.diff.gained:,} pairs gained, "
                f"{one.diff.lost:,} lost, {one.diff.nouns_new:,} new nouns ({named})",
                style="dim",
            )


def compare_captions(world: World, to: Path) -> Iterator[Compared]:
    """The run without, then with each captioner."""
    yield Compared(world.seed, WITHOUT, *judge(world.run, world.truth))
    for number, (name, invents) in enumerate(CAPTIONERS.items()):
        CONSOLE.print(f"seed {world.seed}: {name} …", style="dim")
        place = Path(world.truth).parent
        out = Path(world.run.folder.root).with_name(f"captions-{number}")
        with captioner_on_loopback(says_what_is_left_out(place, invents=invents)) as server:
            run = mine_with(world, server.url, out=out)
            requests = len(server.asked)
        judged = judge(FinishedRun.open(run), world.truth)
        yield Compared(world.seed, name, *judged, requests, compare_runs(world.run.folder, run))


def mine_with(world: World, url: str, *, out: Path) -> RunFolder:
    """The run of a world with a server's captions beside its own, by the regions of the run without them."""
    settings, asked = world.run.settings, Endpoint(kind="endpoint", url=url, model=MODEL, licence="CC0-1.0")
    changed = settings.model_copy(update={"captions": (*settings.sources, asked), "out": str(out.absolute())})
    mine(changed, engine=LocalEngine(), observer=RunProgress(), regions_from=world.run.folder.root)
    return RunFolder(changed.out)


def judge(finished: FinishedRun, truth: str) -> tuple[Found, Found]:
    """The written set, and every pair of the rule, held against the truth."""
    known = read_annotations(truth)
    naming = open_naming(known.categories, load_synonyms("auto"))
    found = []
    for every in (False, True):
        counts = [0, 0, 0, 0]
        for part in finished.parts:
            for image in finished.images(part, every_pair=every):
                objects = [one for one in known.objects(known.key_of(image.image)) if not one.crowd]
                right = _right_pairs(image, objects, naming)
                with_pair = objects_with_pair(objects, right)
                for number, count in enumerate((len(image.pairs), len(right), len(objects), with_pair)):
                    counts[number] += count
        found.append(Found(*counts))
    return found[0], found[1]


def objects_with_pair(objects: Sequence[AnnotatedObject], right: Sequence[tuple[frozenset[str], Mask]]) -> int:
    """How many objects have a right pair: `right` are the categories that its noun names, and its mask. A mask of all
    objects of a category together is one for each of them."""
    found: set[int] = set()
    for categories, mask in right:
        named = [number for number, one in enumerate(objects) if one.category in categories]
        iou_N = mask_iou([mask], [objects[number].mask for number in named])[0]
        own = {number for number, iou in zip(named, iou_N.tolist(), strict=True) if iou >= CORRECT_IOU}
        found |= own or set(named)  # else it is right as that of all
    return len(found)


def _right_pairs(
    image: MinedImage, objects: Sequence[AnnotatedObject], naming: Naming
) -> list[tuple[frozenset[str], Mask]]:
    matches = match_image(image.nouns, image.regions, image.pairs, objects=objects, naming=naming)
    return [
        (naming(one.pair.noun, one.pair.lemma), image.regions.regions[one.pair.region].mask)
        for one in matches.pairs
        if one.outcome == "correct"
    ]


def render(compared: Sequence[Compared], seeds: Sequence[int]) -> TextTable:
    """The table: means over the seeds, and the least gain of a seed."""
    table = TextTable(box=None, pad_edge=False, title=f"mean of seeds {', '.join(map(str, seeds))}")
    table.add_column("captions by a model")
    for what in ("clean set", "every pair"):
        for name in ("pairs", "right", "objects with\na right pair", "least gain\nof a seed"):
            table.add_column(f"{what}\n{name}" if name == "pairs" else name, justify="right")
    without = {one.seed: one for one in compared if one.captioner == WITHOUT}
    for captioner in (WITHOUT, *CAPTIONERS):
        rows = [one for one in compared if one.captioner == captioner]
        cells = []
        for what in ("written", "every"):
            found: list[Found] = [getattr(one, what) for one in rows]
            gains = [getattr(one, what).recall - getattr(without[one.seed], what).recall for one in rows]
            cells += [
                f"{statistics.mean(one.pairs for one in found):,.0f}",
                percent(statistics.mean(one.precision for one in found)),
                percent(statistics.mean(one.recall for one in found)),
                "" if captioner == WITHOUT else f"{100 * min(gains):+.1f}",
            ]
        table.add_row(captioner, *cells)
    return table


if __name__ == "__main__":
    run_command(main, name="compare_rules captions")
