"""Verdicts by the truth of a demo world, out to annotation tools and back: is every one and every pixel there?

    bash scripts/compare_rules verdicts --seed 41

Every pair that the rule makes of a world, of which a third is wrong, is exported, judged as the truth has it, given
back in a tool's own form, imported, and the set is written anew with all. A right pair stays; one of the wrong noun
gets that of the object that its mask shows; one of the wrong mask gets the mask of the object that its noun names; what
can be mended in neither way is left out.
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from maskmine.mining.evaluation.annotations import read_annotations
from maskmine.mining.evaluation.pair_matching import CORRECT_IOU, match_image
from maskmine.mining.evaluation.verdicts import read_verdicts
from maskmine.mining.exports.coco import whole_mask
from maskmine.mining.text.labels import load_synonyms, open_naming
from maskmine.pipelines.dataset.finished_run import FinishedRun
from maskmine.pipelines.dataset.verify import verify_run
from maskmine.pipelines.engines.engine import RunObserver
from maskmine.pipelines.engines.local import LocalEngine
from maskmine.pipelines.evaluate.pairs import evaluate_pairs
from maskmine.pipelines.export.export import Export, export_run
from maskmine.pipelines.mine import mine
from maskmine.pipelines.review.import_verdicts import import_verdicts
from maskmine.pipelines.run_folder.folder import VERDICTS_FOLDER, RunFolder
from maskmine.pipelines.settings.mining import Mining
from maskmine.schemas.annotation_tools import PairId
from maskmine.schemas.errors import InputError
from maskmine.schemas.mask import Mask, mask_iou
from maskmine.schemas.rows import SampleRow
from maskmine.scripts.command import run_command
from maskmine.scripts.compare.annotation_tools import FORMS, Array, Form, Given, answer
from maskmine.scripts.compare.scores import CONSOLE, World, find_mined
from maskmine.scripts.measures import Measure, at_most


@dataclass(frozen=True)
class Truth:
    """What the truth says of a pair: the verdict, and the noun or the mask in place of the wrong one."""

    verdict: str
    noun: str | None = None
    mask: Mask | None = None


def main(
    seed: Annotated[int, typer.Option(help="A world that no training saw.")] = 41,
    scenes: Annotated[int, typer.Option(min=30, help="Its scenes.")] = 1000,
    verdicts: Annotated[int, typer.Option(min=1, help="Pairs to judge.")] = 1000,
    to: Annotated[Path, typer.Option(help="Folder for worlds and runs, that of the other scores.")] = Path(
        "runs/scores"
    ),
) -> None:
    """Send verdicts out and back through each form, and print what became of them."""
    world = _every_pair(find_mined(to, seed=seed, scenes=scenes), to / f"verdicts-{seed}-{scenes}-every")
    truth = dict(islice(judged_by_truth(world), verdicts))
    missed = 0
    for form in FORMS:
        for measure in round_trip(form, world, truth, folder=to / f"verdicts-{seed}-{form}"):
            missed += measure.reached is False
            CONSOLE.print(f"{form}: {measure.name}: {measure.value:,.6g} {measure.unit} {measure.goal}")
    if missed:
        raise InputError(f"{missed} figures do not reach their goal")


def judged_by_truth(world: World) -> Iterator[tuple[PairId, Truth]]:
    """The pairs of a world's set in order, and what the truth says of each."""
    known = read_annotations(world.truth)
    naming = open_naming(known.categories, load_synonyms("auto"))
    for part in world.run.parts:
        for image in world.run.images(part):
            objects = known.objects(known.key_of(image.image))
            matches = match_image(image.nouns, image.regions, image.pairs, objects=objects, naming=naming).pairs
            for pair, match in zip(image.pairs, matches, strict=True):
                mask, named = image.regions.regions[pair.region].mask, naming(pair.noun, pair.lemma)
                answer = Truth("right" if match.outcome == "correct" else "cannot say")
                if match.outcome in ("wrong_object", "background", "unlabelled"):
                    of_noun = [one.mask for one in objects if one.category in named]
                    shown = [one for one in objects if mask_iou([mask], [one.mask])[0, 0] >= CORRECT_IOU]
                    answer = Truth("wrong noun", noun=shown[0].category if shown else None)
                    if of_noun:
                        answer = Truth("bad mask", mask=of_noun[0])
                yield (image.image.image_id, pair.noun, mask.digest), answer


def round_trip(form: Form, world: World, truth: Mapping[PairId, Truth], *, folder: Path) -> Iterator[Measure]:
    """Export, judge, import and mine with the verdicts; in a copy of the run."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(world.run.folder.root, folder / "run")
    run = RunFolder(str(folder / "run"))
    masks = _masks_of(FinishedRun.open(run))
    times = [time.perf_counter()]
    export_run(run, Export(format="cvat" if form.startswith("cvat") else form), out=str(folder / "export"))
    times.append(time.perf_counter())
    seen_wrong = 0

    def judge(pair: PairId, seen_HW: Array) -> Given | None:
        nonlocal seen_wrong
        seen_wrong += int((seen_HW != masks[pair].to_array()).sum())
        said = truth.get(pair)
        if said is None:
            return None
        return Given(said.verdict, said.noun, None if said.mask is None else said.mask.to_array() > 0)

    file = answer(form, folder / "export", judge, to=folder / "answers")
    times.append(time.perf_counter())
    imported = import_verdicts(run, str(file))
    times.append(time.perf_counter())
    yield Measure("pairs judged", len(truth), "")
    for verdict, count in sorted(Counter(one.verdict for one in truth.values()).items()):
        yield Measure(f"… {verdict}", count, "")
    yield at_most("pixels that the tool sees otherwise", seen_wrong, "", 0)
    yield at_most("verdicts and corrections that came back otherwise", _otherwise(run, truth), "", 0)
    yield at_most("answers that were not taken", imported.unknown + imported.unreadable + len(imported.refused), "", 0)

    before = evaluate_pairs(run, truth=world.truth).precision_of_all
    settings = FinishedRun.open(run).settings
    shards = settings.shards.model_copy(update={"verdicts": run.path(VERDICTS_FOLDER)})
    _mine(settings, run, shards=shards)
    times.append(time.perf_counter())
    yield at_most("samples that are not as the verdicts have them", _samples_otherwise(run, truth, masks), "", 0)
    yield at_most("problems that `verify` finds", len(list(verify_run(run))), "", 0)
    after = evaluate_pairs(run, truth=world.truth).precision_of_all
    yield Measure("right before", 100 * (before.value or 0), f"% of {before.of:,}")
    yield Measure("right after", 100 * (after.value or 0), f"% of {after.of:,}")
    for name, begin, end in zip(("export", "the tool", "import", "shards"), times, times[1:], strict=False):
        yield Measure(f"seconds of {name}", round(end - begin, 1), "s")


def _every_pair(world: World, folder: Path) -> World:
    """The world with a copy of its run that no filter left a pair out of."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(world.run.folder.root, folder)
    run = RunFolder(str(folder))
    _mine(world.run.settings, run, pairs=world.rule)
    return World(world.seed, FinishedRun.open(run), world.truth)


def _mine(settings: Mining, run: RunFolder, **changes: Any) -> None:
    mine(settings.model_copy(update={**changes, "out": run.root}), engine=LocalEngine(), observer=RunObserver())


def _masks_of(finished: FinishedRun) -> dict[PairId, Mask]:
    found = {}
    for part in finished.parts:
        for image in finished.images(part):
            for pair in image.pairs:
                mask = image.regions.regions[pair.region].mask
                found[image.image.image_id, pair.noun, mask.digest] = mask
    return found


def _otherwise(run: RunFolder, truth: Mapping[PairId, Truth]) -> int:
    latest = read_verdicts(run.path(VERDICTS_FOLDER)).latest
    wrong = len(set(latest) ^ set(truth))
    for pair, row in latest.items():
        said = truth[pair]
        drawn = None if said.mask is None else Mask.from_array(said.mask.to_array())
        came = (row.verdict.replace("_", " "), row.corrected_noun, row.corrected_mask)
        wrong += came != (said.verdict, said.noun, drawn)
    return wrong


def _samples_otherwise(run: RunFolder, truth: Mapping[PairId, Truth], masks: Mapping[PairId, Mask]) -> int:
    """How many samples of the set lack, are too many, or have another noun or mask than the verdicts say."""
    finished = FinishedRun.open(run)
    wanted: Counter[tuple[str, str, str]] = Counter()
    for pair, mask in masks.items():
        said = truth.get(pair, Truth("right"))
        if said.verdict in ("right", "cannot say") or said.noun is not None or said.mask is not None:
            drawn = (said.mask or mask).to_array()
            wanted[pair[0], said.noun or pair[1], Mask.from_array(drawn).digest] += 1
    there: Counter[tuple[str, str, str]] = Counter()
    for part in finished.parts:
        for row in finished.rows(part, SampleRow):
            there[row.image_id, row.noun, whole_mask(finished.sample(row)).digest] += 1
    return (wanted - there).total() + (there - wanted).total()


if __name__ == "__main__":
    run_command(main, name="compare_rules verdicts")
