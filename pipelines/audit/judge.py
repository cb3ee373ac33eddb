"""Which pairs are right: by the verdicts of reviewers, or by annotated objects; and the sample as a CSV to judge."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from pathlib import Path

from maskmine.mining.evaluation.annotations import Annotations, read_annotations
from maskmine.mining.evaluation.pair_matching import match_image
from maskmine.mining.evaluation.verdicts import PairId, pair_of, read_verdicts
from maskmine.mining.storage.files import put_whole
from maskmine.mining.storage.stores import describe
from maskmine.mining.text.labels import Naming, load_synonyms, open_naming
from maskmine.pipelines.audit.population import FoundPair, find_pairs
from maskmine.pipelines.audit.sample import PairSample, PairToJudge, draw_sample
from maskmine.pipelines.dataset.finished_run import FinishedRun
from maskmine.pipelines.run_folder.claim import writing
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.schemas.errors import InputError
from maskmine.schemas.rows import ImageRow, NounsRow, PairsRow, RegionsRow
from maskmine.schemas.sample import cell_name
from maskmine.schemas.wording import counted

VERDICTS_FOLDER = "verdicts"  # in the folder of a run, where a review has them
_RIGHT = {"right": True, "correct": True, "cannot_say": None, "crowd": None, "not_annotated": None}


@dataclass(frozen=True)
class Judgements:
    """What is said of pairs of a run, each by one word: a verdict, or the outcome of a match with annotations.

    `notes` say what was left out, each in a line.
    """

    words: Mapping[PairId, str]
    found: Mapping[PairId, FoundPair]
    judged_by: str
    reviewers: tuple[str, ...]
    notes: tuple[str, ...]

    def right(self, pair: PairId) -> bool | None:
        """Whether a pair is right; None where nobody could say or was asked."""
        word = self.words.get(pair)
        return None if word is None else _RIGHT.get(word, False)


def name_of(pair: PairToJudge) -> PairId:
    """How verdicts name a pair of the sample."""
    return pair.image_id, pair.noun, pair.mask


def by_verdicts(finished: FinishedRun, path: str | None, *, sample: PairSample) -> Judgements:
    """The verdicts at `path`, or in the run's own folder; the last one of each pair counts.

    Raises InputError when there is none, or none of them is of a pair of this run.
    """
    own = finished.folder.path(VERDICTS_FOLDER)
    if path is None and describe(own) is None:
        raise InputError(
            f"{finished.folder.root}: no verdicts; judge pairs with `maskmine review`, or give --verdicts or --truth"
        )
    place = path or own
    verdicts = read_verdicts(place, pair_of_key={pair.key: name_of(pair) for pair in sample.pairs})
    if not verdicts.rows and not verdicts.unknown_keys:
        raise InputError(f"{place}: holds no verdict; judge pairs with `maskmine review`, or fill in the CSV")
    found = _find(finished, set(verdicts.latest))
    if not found:
        raise InputError(
            f"{place}: none of its verdicts is of a pair of {finished.folder.root}; give those of this run"
        )
    words = {pair: verdicts.latest[pair].verdict for pair in sorted(found)}
    reviewers = tuple(sorted({verdicts.latest[pair].reviewer for pair in found} - {""}))
    notes = []
    if gone := len(verdicts.latest) - len(found) + len(verdicts.unknown_keys):
        notes.append(f"left out: {counted(gone, 'verdict')} on pairs that this run does not have")
    said: dict[PairId, set[str]] = {}
    for row in verdicts.rows:
        said.setdefault(pair_of(row), set()).add(row.verdict)
    if contradicting := sum(len(said[pair]) > 1 for pair in found):
        of_several = len(set(verdicts.disagreements) & set(found))
        people = f", on {of_several:,} of them between reviewers" if of_several else ""
        notes.append(f"verdicts contradict each other on {counted(contradicting, 'pair')}{people}; the last one counts")
    return Judgements(words, found, "verdicts", reviewers, tuple(notes))


def by_truth(finished: FinishedRun, path: str, *, synonyms: str, sample: PairSample) -> Judgements:
    """The pairs of the sample matched with annotated objects. A noun that names no category is wrong.

    Raises InputError when the file cannot be read, or none of the sample's images is annotated.
    """
    annotations = read_annotations(path)
    naming = open_naming(annotations.categories, load_synonyms(None if synonyms == "none" else synonyms))
    words: dict[PairId, str] = {}
    for part, chosen in groupby(sorted(sample.pairs, key=attrgetter("part", "index")), key=attrgetter("part")):
        words |= _match_part(finished, part, list(chosen), annotations, naming)
    counts = Counter(words.values())
    if counts["not_annotated"] == len(words):
        raise InputError(f"{path}: has none of the sample's images in their size; give the annotations of this run")
    notes = []
    if counts["not_annotated"]:
        notes.append(
            f"left out: {counted(counts['not_annotated'], 'pair')} of images that {annotations.name} does not have"
        )
    notes += [f"not used of {annotations.name}: {line}" for line in annotations.left_out]
    return Judgements(words, _find(finished, set(words)), annotations.name, (), tuple(notes))


def draw_csv(run: RunFolder, to: Path, *, size: int, seed: int) -> int:
    """Write the sample as a table for people, in its order, with an empty column for the verdicts; returns its pairs.

    Raises IncompleteError when the run is not finished, InputError when the file is there, which may hold verdicts, or
    cannot be written.
    """
    if to.suffix != ".csv":
        raise InputError(f"--draw {to}: the sample is a CSV; give a name that ends in .csv")
    if to.exists():
        raise InputError(f"--draw {to}: is there already, perhaps with verdicts; give another name, or delete it")
    finished = FinishedRun.open_complete(run)
    sample = draw_sample(finished, size=size, seed=seed)
    with writing(to, option="--draw", remedy="give another path"):
        _write_csv(finished, sample, to)
    return len(sample.pairs)


def _write_csv(finished: FinishedRun, sample: PairSample, to: Path) -> None:
    where: dict[str, tuple[str, str]] = {}
    for part, chosen in groupby(sorted(sample.pairs, key=attrgetter("part")), key=attrgetter("part")):
        paths = finished.columns(part, ImageRow, ["path"])["path"]
        boxes = finished.columns(part, RegionsRow, ["regions.list.element.box_xyxy"])["regions"]
        for pair in chosen:
            box = boxes[pair.index][pair.region].as_py()["box_xyxy"]
            where[pair.key] = (paths[pair.index].as_py() or "", " ".join(map(str, box)))
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow(["key", "image_id", "noun", "mask", "caption", "image", "box_xyxy", "shard", "verdict"])
    for pair in sample.pairs:
        shard = f"shards/{cell_name(pair.part, 'tar')}" if pair.written else ""
        writer.writerow([pair.key, *name_of(pair), pair.caption, *where[pair.key], shard, ""])
    put_whole(to, file.getvalue().encode())  # half a file would count as one with verdicts


def _find(finished: FinishedRun, pairs: set[PairId]) -> dict[PairId, FoundPair]:
    wanted: dict[str, set[PairId]] = {}
    for pair in pairs:
        wanted.setdefault(pair[0], set()).add(pair)
    return find_pairs(finished, {image_id: frozenset(names) for image_id, names in wanted.items()})


def _match_part(
    finished: FinishedRun, part: int, chosen: list[PairToJudge], annotations: Annotations, naming: Naming
) -> dict[PairId, str]:
    nouns_rows, regions_rows = finished.rows(part, NounsRow), finished.rows(part, RegionsRow)
    pairs_rows, images = finished.rows(part, PairsRow), finished.rows(part, ImageRow)
    words: dict[PairId, str] = {}
    for index, of_image in groupby(chosen, key=attrgetter("index")):
        judged, regions = list(of_image), regions_rows[index]
        key = annotations.key_of(images[index])
        if annotations.coverage(key, regions) != "covered":
            words |= dict.fromkeys(map(name_of, judged), "not_annotated")
            continue
        asked = [pairs_rows[index].pairs[pair.number] for pair in judged]
        objects = annotations.objects(key)
        matches = match_image(nouns_rows[index], regions, asked, objects=objects, naming=naming).pairs
        words |= {name_of(pair): match.outcome for pair, match in zip(judged, matches, strict=True)}
    return words
