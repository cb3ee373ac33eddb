"""The grid of a run: its steps in order, which cells of each are still to be made, and which are stale."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from maskmine.mining.pairs import ClipPairs
from maskmine.pipelines.planning.plan import Plan
from maskmine.pipelines.planning.versions import BASE, Version
from maskmine.pipelines.run_folder.cells import Cells
from maskmine.pipelines.run_folder.folder import FINGERPRINT_FILE, RunFolder
from maskmine.pipelines.run_folder.region_cells import CHECKS, EMBEDDINGS
from maskmine.pipelines.run_folder.reused_regions import ReusedRun
from maskmine.pipelines.settings.mining import Mining
from maskmine.pipelines.steps.appended_levels import AppendedLevelsJob
from maskmine.pipelines.steps.captioning_job import CaptioningJob
from maskmine.pipelines.steps.cells_of_run import NEGATIVES, RunCells, cells_of_version, run_cells
from maskmine.pipelines.steps.checks_job import ChecksJob
from maskmine.pipelines.steps.identity import READS, Identity, format_version, step_fingerprints
from maskmine.pipelines.steps.jobs import (
    Job,
    LevelsJob,
    NounsJob,
    PairsJob,
    VocabularyJob,
)
from maskmine.pipelines.steps.negatives_job import NegativesJob
from maskmine.pipelines.steps.regions_jobs import EmbeddingsJob, ProposalsJob
from maskmine.pipelines.steps.shards_job import SelectionJob, ShardsJob
from maskmine.pipelines.steps.ties import TiesReader, identities

_AT_ONCE = 16  # requests to an object store at a time; a disk does not mind


@dataclass(frozen=True)
class Step:
    """A step of a run: the cells that it writes, the job that makes one, and the steps that have to come before.

    It has so many `parts` from the `first` on: 0, but for what was appended to a set. `label` is the word for what its
    reports count as made. A step that runs `once` and has `first_parts` reads these parts alone of the steps whose
    parts it reads itself.
    """

    output: Cells[Any]
    job: Job
    parts: int
    label: str
    reads: tuple[str, ...] = ()
    first_parts: int | None = None
    first: int = 0

    @property
    def name(self) -> str:
        """Such as `proposals`."""
        return self.output.step

    @property
    def fingerprint(self) -> str:
        """What its cells carry."""
        return self.output.fingerprint

    @property
    def once(self) -> bool:
        """Whether it makes one file for the whole run, not a cell for each part."""
        return self.output.once

    @property
    def uses_models(self) -> bool:
        """Whether it runs models, for which a GPU is worth having."""
        return self.job.device is not None

    @property
    def one_worker(self) -> bool:
        """Whether all its cells are to be made by one worker, which counts what it asks of a server."""
        return getattr(self.job, "one_worker", False)

    def todo(self) -> list[int]:
        """The parts whose cells do not exist yet, in order."""
        if self.once:
            return [] if self.output.is_current() else [0]
        return self.output.missing(self.parts, first=self.first)

    @property
    def numbers(self) -> range:
        """The numbers of its parts."""
        return range(self.first, self.first + self.parts)

    def existing(self) -> set[int]:
        """The parts whose cells are there, and were made from these settings and inputs."""
        return set(self.numbers) - set(self.todo())

    def has_work(self) -> bool:
        """Whether a run will make cells of this step: some are missing, or may be stale."""
        return bool(self.todo()) or not (self.once or self.output.by_fingerprint or self.output.is_current())


def plan_steps(
    run: RunFolder, plan: Plan, settings: Mining, identity: Identity, *, reused: ReusedRun | None = None
) -> list[Step]:
    """The steps of a run, each after those that it reads. Regions and text embeddings of `reused` are used again."""
    return plan_grids(run, (Version(BASE, plan),), settings, identity, reused=reused)[0]


def plan_grids(
    run: RunFolder,
    versions: Sequence[Version],
    settings: Mining,
    identity: Identity,
    *,
    reused: ReusedRun | None = None,
) -> list[list[Step]]:
    """The steps of each version of a set, the base first: `plan_steps` for a set to which nothing was appended.

    A version waits for those before it. Nothing of theirs waits for it, so they stay as they are.
    """
    base = versions[0].plan
    format_ = format_version(settings, corrected=bool(identity.decisions.corrections))
    cells = run_cells(run, step_fingerprints(base, identity), version=format_)
    of_version = [cells_of_version(cells, version.folder) for version in versions]
    plan_steps_of = partial(_steps, base=base, settings=settings, identity=identity, reused=reused)
    return [plan_steps_of(version, of_version[n], before=of_version[:n]) for n, version in enumerate(versions)]


def _steps(
    version: Version,
    cells: RunCells,
    *,
    base: Plan,
    settings: Mining,
    identity: Identity,
    reused: ReusedRun | None,
    before: Sequence[RunCells],
) -> list[Step]:
    """The steps of a version; `before` are the cells of those before it, of which the base has none."""
    regions, pairs, parts, first = settings.regions, settings.pairs, version.plan.parts, version.first
    known = tuple(one.vocabulary for one in before)
    levels = isinstance(pairs, ClipPairs)
    first_parts = min(base.parts, settings.levels.first_parts(base.images / base.parts)) if levels else 0
    text_clip = regions.clip if isinstance(pairs, ClipPairs) else None
    vocabulary = VocabularyJob(
        cells, settings.vocabulary, regions, text_clip, parts, identity.text, reused, first=first, earlier=known
    )
    grid = partial(Step, first=first)
    propose = ProposalsJob(cells, regions, parts, reused, first=first)
    written = [
        grid(output, CaptioningJob(cells, output, captioner, regions), parts, "captions")
        for output, captioner in zip(cells.captioning, settings.captioners, strict=True)
    ]
    reads_captions = (*READS["nouns"], *(step.name for step in written))
    steps = [
        *written,
        grid(cells.nouns, NounsJob(cells, settings.nouns), parts, "nouns", reads_captions),
        Step(cells.vocabulary, vocabulary, 1, "nouns", READS["vocabulary"]),
        grid(cells.proposals, propose, parts, "regions", READS["proposals"]),
    ]
    if cells.embeddings is not None:
        embed = EmbeddingsJob(cells, regions, cells.embeddings, reused)
        steps.append(grid(cells.embeddings, embed, parts, "embeddings", READS["embeddings"]))
    if levels and before:
        new = AppendedLevelsJob(cells, before[0], first_parts)
        steps.append(Step(cells.levels, new, 1, "nouns", ("vocabulary",)))
    elif levels:
        steps.append(Step(cells.levels, LevelsJob(cells, first_parts), 1, "nouns", READS["levels"], first_parts))
    reads = tuple(name for name in READS["pairs"] if name in {step.name for step in steps})
    match = PairsJob(cells, pairs, 0, before[0]) if before else PairsJob(cells, pairs, first_parts)
    steps.append(grid(cells.pairs, match, parts, "pairs", reads))
    if settings.checks is not None and cells.checks is not None:
        check = ChecksJob(cells, cells.checks, settings.checks, regions, reused)
        steps.append(grid(cells.checks, check, parts, "checks", (*READS["checks"], "pairs")))
    if settings.negatives is not None and cells.negatives is not None:
        search = NegativesJob(cells, cells.negatives, settings.negatives, before[0] if before else None)
        steps.append(grid(cells.negatives, search, parts, "negatives", READS[NEGATIVES]))
    format_ = format_version(settings, corrected=bool(identity.decisions.corrections))
    write = ShardsJob(cells, settings.shards, pairs, regions, format_, identity.decisions, known, reused)
    last = tuple(name for name in READS["shards"] if name in {step.name for step in steps})
    shards = grid(cells.shards, write, parts, "samples", last)
    if pairs.max_per_noun is None:
        return [*steps, shards]
    cap = SelectionJob(cells, pairs, parts, identity.decisions, first)
    selection = Step(cells.selection, cap, 1, "nouns", last)
    return [*steps, selection, replace(shards, reads=(*shards.reads, selection.name))]


def missing_cells(steps: Sequence[Step]) -> dict[str, int]:
    """How many cells each step still lacks; steps that are complete are left out. Those of several versions add up."""
    todo: Counter[str] = Counter()
    for step in steps:
        todo[step.name] += len(step.todo())
    return {name: count for name, count in todo.items() if count}


def what_is_there(steps: Sequence[Step]) -> Iterator[str]:
    """A line of what an earlier run left of a set that is not whole: steps, and parts of others; none for a new run."""
    there = {step.name: (len(step.existing()), step.parts) for step in steps if step.output.is_current()}
    whole = [name for name, (done, parts) in there.items() if done == parts]
    begun = [f"{name} {done:,} of {parts:,} parts" for name, (done, parts) in there.items() if 0 < done < parts]
    if (whole or begun) and len(whole) < len(steps):
        yield f"{len(whole)} of {len(steps)} steps are there{''.join(f', {one}' for one in begun)}"


def drop_stale(run: RunFolder, steps: Sequence[Step], *, folders: Sequence[str] = ("",)) -> dict[str, int]:
    """Delete the cells that were made from other settings or inputs; returns how many for each step.

    `folders` are those of the versions of the set, in which steps that run once have files.

    The fingerprint of a step's cells stands once in its folder, so that a listing is enough to know what is done;
    each cell carries it too, and is looked into only when the folder's differs.
    """
    dropped = {}
    names = {step.name for step in steps}
    for name in {"levels", "selection"} - names:
        for folder in folders:
            run.delete(*(part for part in (folder, f"{name}.parquet") if part))
    for name in {EMBEDDINGS, CHECKS} - names:
        if run.read_json(name, FINGERPRINT_FILE) is not None:
            run.delete(name, FINGERPRINT_FILE)
    if NEGATIVES not in names:
        for file in run.names(NEGATIVES):
            run.delete(NEGATIVES, file)
    for cells in [step.output for step in steps if not step.once]:
        if cells.is_current():
            continue
        stale = _delete_stale(cells)
        if parts := {stem for name in stale if (stem := name.partition(".")[0]).isdigit()}:  # not sizes.json
            dropped[cells.step] = len(parts)
        cells.mark_current()
    return dropped


def drop_untied(steps: Sequence[Step]) -> dict[str, int]:
    """Delete the cells that were made from other cells than those that are there; returns how many for each step.

    Footers alone are read, each once. Nothing is known of a cell while one that it was made from is missing.
    """
    ties = TiesReader()
    dropped: dict[str, int] = {}
    for step in steps:
        parts = sorted(step.existing()) if step.job.inputs else []
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            tied = list(pool.map(lambda part, step=step: _is_tied(step, part, ties), parts))
        untied = [part for part, is_tied in zip(parts, tied, strict=True) if not is_tied]
        for part in untied:
            ties.delete(step.output, part)
        if untied:
            dropped[step.name] = len(untied)
    return dropped


def steps_before_doubt(steps: Sequence[Step]) -> int:
    """How many of the first steps can be made before `drop_untied` has to be asked again.

    A cell that is made anew may differ from the one that existing cells were made from.
    """
    for number, step in enumerate(steps[:-1]):
        todo = step.todo()
        if todo and any(_reads(later, step, todo) for later in _readers(step, steps)):
            return number + 1
    return len(steps)


def _readers(step: Step, steps: Sequence[Step]) -> list[Step]:
    """The later steps that read a step, directly or through others."""
    found = {step.name}
    readers = []
    for later in steps:
        if found.intersection(later.reads):
            found.add(later.name)
            readers.append(later)
    return readers


def _reads(later: Step, step: Step, todo: Sequence[int]) -> bool:
    """Whether any cell of a later step exists that may have been made from the cells `todo` of a step."""
    existing = later.existing()
    if later.once and later.first_parts is not None and not step.once:
        return bool(existing) and min(todo) < later.first_parts
    return bool(existing) if step.once or later.once else not existing.isdisjoint(todo)


def _is_tied(step: Step, part: int, ties: TiesReader) -> bool:
    wanted = identities(step.job.inputs, part, read=ties.identity)
    return wanted is None or ties.read(step.output, part).made_from == wanted


def _delete_stale(cells: Cells[Any]) -> list[str]:
    """Look into all cells of a step, some at a time: each is a request or two where the folder is far away."""
    run, step = cells.run, cells.folder
    names = [name for name in run.names(step) if name != FINGERPRINT_FILE]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        current = list(pool.map(lambda name: _is_current(cells, name), names))
        stale = [name for name, is_current in zip(names, current, strict=True) if not is_current]
        list(pool.map(lambda name: run.delete(step, name), stale))
    return stale


def _is_current(cells: Cells[Any], name: str) -> bool:
    if name.endswith(".parquet"):
        return cells.run.read_fingerprint(cells.folder, name) == cells.fingerprint
    part = name.partition(".")[0]  # a tar is current when the account beside it is: that one is written after it
    account = cells.run.read_json(cells.folder, f"{part}.json")
    return isinstance(account, dict) and account.get("fingerprint") == cells.fingerprint
