"""Hard negatives against the truth: how many are truly absent, and how near they are to what is said.

    bash scripts/compare_rules negatives --seed 41 --seed 42 --seed 43

The worlds are those of `scripts/compare/scores.py`, mined with one caption an image. A noun is absent when no object
that it names was drawn: by its category, by what a drawing also is (`data/demo_kin.yaml`: an eagle is a bird), and for
nouns of places by the places that the image's captions, all five of them, speak of. Nouns of which none of this is
known are counted apart. What each rule is worth is seen by leaving it out.
"""

from __future__ import annotations

import functools
import json
import re
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import typer
import yaml

from maskmine.mining.evaluation.annotations import Annotations, read_annotations
from maskmine.mining.models.embeddings import unpack
from maskmine.mining.negatives import Candidates, ImageToSearch, Negatives
from maskmine.mining.scores.noun_tables import NounTables
from maskmine.mining.scores.scale import LevelScale
from maskmine.mining.scores.statistics import unit
from maskmine.mining.text.labels import Naming, load_synonyms, open_naming
from maskmine.mining.text.relations import Relations
from maskmine.pipelines.steps.cells_of_run import run_cells
from maskmine.schemas.rows import CaptionsRow, ImageRow, NegativesRow, NounsRow, RegionsRow
from maskmine.scripts.command import run_command
from maskmine.scripts.compare.rules import open_text_side
from maskmine.scripts.compare.scores import CONSOLE, World, find_mined, goal_table
from maskmine.scripts.demo_world.environments import ALOFT_PLACES, all_settings
from maskmine.scripts.measures import Measure, at_least
from maskmine.tuning.console import TextTable
from maskmine.tuning.tables import number_table

GOAL = 98
_ABOVE_ALL = 9.0  # added to a level, so that every similarity is below it
_WORD = re.compile(r"\w+")

FindAll = Callable[[Iterable[ImageToSearch], pa.Array], Iterator[NegativesRow]]


@dataclass(frozen=True)
class MinedImages:
    """A world's images by part, what is known of its nouns, and its truth."""

    world: World
    tables: NounTables
    parts: Sequence[Sequence[tuple[ImageRow, ImageToSearch]]]
    truth: Truth


@dataclass(frozen=True)
class Truth:
    """What is drawn in each image, and what its captions, all of them, say of the place."""

    known: Annotations
    naming: Naming
    captions: Mapping[str, Sequence[str]]

    def is_absent(self, noun: str, lemma: str, image: ImageRow) -> bool | None:
        """Whether an image does not show a noun; None where that is not known."""
        key = self.known.key_of(image)
        if categories := self.naming(noun, lemma):
            shown = set(categories).union(*(demo_kin().get(category, ()) for category in categories))
            return shown.isdisjoint(one.category for one in self.known.objects(key))
        places = possible_places(self.captions[key])
        if lemma not in frozenset().union(*place_words().values()) or not places:
            return None
        return not any(lemma in place_words()[name] for name in places)


@dataclass(frozen=True)
class Found:
    """What a way finds in a world: negatives an image, those absent of those judged, not judged, mean similarity to the
    nearest noun that is said, and seconds for 1,000 images."""

    per_image: float
    absent: float
    judged: int
    unjudged: int
    nearness: float
    seconds: float


def main(
    seed: Annotated[list[int] | None, typer.Option(help="A world that no training saw; give several.")] = None,
    scenes: Annotated[int, typer.Option(min=30, help="Scenes of each.")] = 1000,
    wordnet: Annotated[str | None, typer.Option(help="A WordNet database: its relations as well.")] = None,
    to: Annotated[Path, typer.Option(help="Folder for worlds and runs, that of the other scores.")] = Path(
        "runs/scores"
    ),
) -> None:
    """Print how many negatives are truly absent, how near they are, and what they cost beside the pairs."""
    seeds = seed or [41, 42, 43]
    mined = [open_images(find_mined(to, seed=one, scenes=scenes)) for one in seeds]
    found = {name: [judge(one, open_way(one)) for one in mined] for name, open_way in ways(wordnet=wordnet).items()}
    CONSOLE.print(render(found, seeds))
    CONSOLE.print("", goal_table(list(goals(mined, seeds, found))))


def ways(*, wordnet: str | None = None) -> dict[str, Callable[[MinedImages], FindAll]]:
    """Ways to choose negatives, by name: random ones, and the rules one after the other. The last are the defaults."""
    level = Negatives(margin=0.0, max_agreement=1.0)
    found: dict[str, Callable[[MinedImages], FindAll]] = {
        "random nouns that are not said": lambda mined: _random(mined.tables),
        "the nearest that are not said": lambda mined: level.open(_without_levels(mined.tables)),
        "and below their level": lambda mined: level.open(mined.tables),
        "and by a margin": lambda mined: Negatives(max_agreement=1.0).open(mined.tables),
    }
    if wordnet is not None:
        found["and unlike what is said, by WordNet"] = lambda mined: Negatives(wordnet=wordnet).open(mined.tables)
    return found | {"and unlike what is said: the defaults": lambda mined: Negatives().open(mined.tables)}


def open_images(world: World) -> MinedImages:
    """The images of a mined world."""
    run, cells = world.run, run_cells(world.run.folder)
    scale = LevelScale.read(cells.levels.read_metadata())
    tables = NounTables.open(scale, cells.levels.read_groups(), cells.vocabulary.read_groups())
    parts = []
    for part in run.parts:
        rows = (run.rows(part, kind) for kind in (NounsRow, CaptionsRow, RegionsRow))
        searched = [ImageToSearch(*row) for row in zip(*rows, strict=True)]
        parts.append(list(zip(run.rows(part, ImageRow), searched, strict=True)))
    known = read_annotations(world.truth)
    captions: dict[str, list[str]] = {}
    with Path(world.truth).with_name("captions.json").open(encoding="utf-8") as file:
        for one in json.load(file)["annotations"]:
            captions.setdefault(str(one["image_id"]), []).append(one["caption"].lower())
    return MinedImages(
        world, tables, parts, Truth(known, open_naming(known.categories, load_synonyms("auto")), captions)
    )


def judge(mined: MinedImages, find: FindAll) -> Found:
    """What a way finds, held against the truth."""
    rows = mined.tables.vocabulary.select(["noun", "lemma", "embedding"]).to_pylist()
    lemmas = {row["noun"]: row["lemma"] for row in rows}
    vectors = dict(zip(lemmas, unit(unpack([row["embedding"] for row in rows]).astype(np.float64)), strict=True))
    verdicts: list[bool | None] = []
    nearness: list[float] = []
    seconds, images = 0.0, 0
    for part in mined.parts:
        said = pa.array([noun.text for _, one in part for noun in one.nouns.nouns], pa.string())
        start = time.perf_counter()
        found = list(find([one for _, one in part], said))
        seconds += time.perf_counter() - start
        images += len(part)
        for (image, one), row in zip(part, found, strict=True):
            texts = [vectors[noun.text] for noun in one.nouns.nouns]
            for noun in row.negatives:
                verdicts.append(mined.truth.is_absent(noun, lemmas[noun], image))
                nearness.append(max(float(vectors[noun] @ text) for text in texts))
    judged = [verdict for verdict in verdicts if verdict is not None]
    return Found(
        per_image=len(verdicts) / images,
        absent=statistics.mean(judged),
        judged=len(judged),
        unjudged=len(verdicts) - len(judged),
        nearness=statistics.mean(nearness),
        seconds=1000 * seconds / images,
    )


def render(found: Mapping[str, Sequence[Found]], seeds: Sequence[int]) -> TextTable:
    """A row for each way, means over the seeds."""
    title = f"nouns that an image does not show, mean of seeds {', '.join(map(str, seeds))}"
    table = number_table(title, "an image", "truly absent", "lowest", "similarity", "not judged")
    for name, of_seeds in found.items():
        mean = {field: statistics.mean(getattr(one, field) for one in of_seeds) for field in Found.__annotations__}
        lowest = min(one.absent for one in of_seeds)
        unjudged = mean["unjudged"] / (mean["unjudged"] + mean["judged"])
        absent = f"{mean['absent']:.2%}"
        cells = (f"{mean['per_image']:.2f}", absent, f"{lowest:.2%}", f"{mean['nearness']:.3f}", f"{unjudged:.1%}")
        table.add_row(name, *cells)
    return table


def goals(
    mined: Sequence[MinedImages], seeds: Sequence[int], found: Mapping[str, Sequence[Found]]
) -> Iterator[Measure]:
    """The goal of each seed, by the defaults, and what they cost beside the pairs."""
    defaults = found[list(found)[-1]]
    for seed, one in zip(seeds, defaults, strict=True):
        yield at_least(f"seed {seed}: negatives truly absent", 100 * one.absent, "%", GOAL)
    yield Measure("1,000 images: negatives", statistics.mean(one.seconds for one in defaults), "s")
    yield Measure("1,000 images: pairs", statistics.mean(map(_seconds_of_pairs, mined)), "s")


@functools.cache
def demo_kin() -> Mapping[str, Sequence[str]]:
    """For a noun of the demo world the drawings that show it, too."""
    text = resources.files("maskmine.scripts").joinpath("data/demo_kin.yaml").read_text(encoding="utf-8")
    found: Mapping[str, Sequence[str]] = yaml.safe_load(text)
    return found


@functools.cache
def place_words() -> Mapping[str, frozenset[str]]:
    """The words of each setting of the demo world by its name."""
    return {
        one.name: frozenset(word for place in one.places for word in _WORD.findall(place)) for one in all_settings()
    }


def possible_places(captions: Iterable[str]) -> set[str]:
    """The settings of the phrases that an image's captions have; none where they do not say where it is."""
    texts = list(captions)
    phrases = {one.name: [place for place in one.places if place not in ALOFT_PLACES] for one in all_settings()}
    return {name for name, places in phrases.items() if any(place in text for place in places for text in texts)}


def _without_levels(tables: NounTables) -> NounTables:
    """The same with levels that no similarity reaches."""
    place = tables.levels.column_names.index("level")
    raised = pc.add(tables.levels["level"], _ABOVE_ALL)
    return replace(tables, levels=tables.levels.set_column(place, tables.levels.schema.field(place), raised))


def _random(tables: NounTables) -> FindAll:
    """As many random candidates for each image, by its id, that nothing in its captions is related to."""
    settings, relations = Negatives(), Relations()
    candidates = Candidates.of(tables, settings)

    def find(images: Iterable[ImageToSearch], _: Any) -> Iterator[NegativesRow]:
        for image in images:
            said = [(noun.text, noun.lemma) for noun in image.nouns.nouns]
            chosen: list[str] = []
            rng = np.random.default_rng(list(image.nouns.image_id.encode()))
            for number in rng.permutation(len(candidates.nouns)) if said else ():
                noun, lemma = candidates.name(int(number))
                if not any(relations.related(noun, lemma, *other) for other in said):
                    chosen.append(noun)
                if len(chosen) == settings.per_image:
                    break
            yield NegativesRow(image.nouns.image_id, tuple(chosen))

    return find


def _seconds_of_pairs(mined: MinedImages) -> float:
    """What matching takes for 1,000 images."""
    text_of, match = open_text_side(mined.world.run), mined.world.rule.open()
    seconds, images = 0.0, 0
    for number, part in enumerate(mined.parts):
        text = text_of(number)
        start = time.perf_counter()
        match([one.nouns for _, one in part], [one.regions for _, one in part], text)
        seconds += time.perf_counter() - start
        images += len(part)
    return 1000 * seconds / images


if __name__ == "__main__":
    run_command(main, name="compare_rules")
