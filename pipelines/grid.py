"""The grid of a run: its stages in order, the fingerprint of each, and which cells are still to be made.

A fingerprint covers a stage's settings and the fingerprints of what it reads. So a new threshold changes `shards`
alone, new captions everything but `regions`, and a stale cell is made again, never mixed with new ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from mining.labels import load_synonyms
from mining.nouns import load_skip_words
from mining.pairs import ClipPairs, Filters, LabelPairs
from mining.regions import Regions
from pipelines.cells import Job, NounsJob, PairsJob, RegionsJob, SelectionJob, ShardsJob, VocabularyJob
from pipelines.earlier import Earlier
from pipelines.inputs import portable
from pipelines.plan import Plan
from pipelines.run_folder import FINGERPRINT_FILE, RunFolder
from pipelines.settings import Mining
from schemas.sample import FORMAT_VERSION
from schemas.settings import fingerprint

# Raised when the code of a step changes what it writes; cells of the old code are then stale.
STEP_VERSIONS = {"nouns": 1, "vocabulary": 1, "regions": 1, "pairs": 1, "selection": 1, "shards": FORMAT_VERSION}
_AT_ONCE = 16
SHARD_SUFFIXES = ("tar", "parquet", "json")


@dataclass(frozen=True)
class Stage:
    """A step of this run. `once` stages make one file for the whole run, the others a cell for each part."""

    name: str
    fingerprint: str
    job: Job
    cells: int
    once: bool = False
    after: tuple[str, ...] = ()
    suffixes: tuple[str, ...] = ("parquet",)

    def todo(self, run: RunFolder) -> list[int]:
        """The cells that do not exist yet, in order."""
        if self.once:
            return [] if run.read_fingerprint(f"{self.name}.parquet") == self.fingerprint else [0]
        return sorted(set(range(self.cells)) - run.done(self.name, suffixes=self.suffixes))

    def has_work(self, run: RunFolder) -> bool:
        """Whether a run will make cells of this stage: some are missing, or may be stale."""
        return bool(self.todo(run)) or not (self.once or self.is_current(run))

    def is_current(self, run: RunFolder) -> bool:
        """Whether the cells in the stage's folder are all of this fingerprint, as the folder says."""
        return bool(run.read_json(self.name, FINGERPRINT_FILE) == {"fingerprint": self.fingerprint})


def plan_stages(run: RunFolder, plan: Plan, settings: Mining, *, earlier: Earlier | None = None) -> list[Stage]:
    """The stages of a run, each after those that it reads. Regions and text embeddings of `earlier` are taken over."""
    regions, pairs, shards = settings.regions, settings.pairs, settings.shards
    with_text = isinstance(pairs, ClipPairs) and regions.clip is not None
    clip = portable(regions.clip) if with_text and regions.clip is not None else None
    filters = {name: getattr(pairs, name) for name in sorted(type(pairs).model_fields) if name in _FILTERS}
    rule = {name: value for name, value in portable(pairs).items() if name not in _FILTERS}
    # Lists that a name stands for count by what is in them, so that an edited list makes its cells stale.
    skipped = sorted(load_skip_words(settings.nouns.skip_words))
    synonyms = load_synonyms(pairs.synonyms) if isinstance(pairs, LabelPairs) else {}
    synonyms_sorted = {label: sorted(nouns) for label, nouns in synonyms.items()}

    nouns_fp = _fingerprint("nouns", plan.captions_sha256, plan.images_sha256, portable(settings.nouns), skipped)
    regions_fp = regions_fingerprint(plan, regions)
    text_fp = fingerprint([clip, regions.cpu_threads, portable(settings.vocabulary)])
    vocabulary_fp = _fingerprint("vocabulary", nouns_fp, text_fp)
    pairs_fp = _fingerprint("pairs", nouns_fp, regions_fp, vocabulary_fp, rule, synonyms_sorted)
    selection_fp = _fingerprint("selection", pairs_fp, filters)
    told = (plan.captions_sha256, plan.sources_sha256)
    shards_fp = _fingerprint("shards", *told, pairs_fp, filters, portable(shards))

    stages = [
        Stage("nouns", nouns_fp, NounsJob(run, settings.nouns, nouns_fp), plan.parts),
        Stage(
            "vocabulary",
            vocabulary_fp,
            VocabularyJob(
                run,
                settings.vocabulary,
                regions,
                with_text,
                plan.parts,
                vocabulary_fp,
                text_fingerprint=text_fp,
                earlier=earlier,
            ),
            cells=1,
            once=True,
            after=("nouns",),
        ),
        Stage("regions", regions_fp, RegionsJob(run, regions, regions_fp, earlier), plan.parts),
        Stage(
            "pairs",
            pairs_fp,
            PairsJob(run, pairs, pairs_fp, nouns_fp, regions_fp, vocabulary_fp),
            plan.parts,
            after=("nouns", "vocabulary", "regions"),
        ),
    ]
    if pairs.max_per_noun is not None:
        job = SelectionJob(run, pairs, plan.parts, selection_fp)
        stages.append(Stage("selection", selection_fp, job, cells=1, once=True, after=("pairs",)))
    shards_job = ShardsJob(run, shards, pairs, regions, shards_fp, nouns_fp, regions_fp, pairs_fp)
    after = ("pairs", "selection") if pairs.max_per_noun is not None else ("pairs",)
    stages.append(Stage("shards", shards_fp, shards_job, plan.parts, after=after, suffixes=SHARD_SUFFIXES))
    return stages


def regions_fingerprint(plan: Plan, regions: Regions) -> str:
    """The fingerprint of the cells of `regions` in a run of this plan."""
    return _fingerprint("regions", plan.images_sha256, plan.parts, portable(regions))


def drop_stale(run: RunFolder, stages: Sequence[Stage]) -> dict[str, int]:
    """Delete the cells that were made from other settings or inputs; returns how many for each stage.

    The fingerprint of a step's cells stands once in its folder, so that a listing is enough to know what is done;
    each cell carries it too, and is looked into only when the folder's differs.
    """
    dropped = {}
    if "selection" not in {stage.name for stage in stages}:
        run.delete("selection.parquet")
    for stage in stages:
        if stage.once or stage.is_current(run):
            continue
        stale = _delete_stale(run, stage)
        if stale:
            dropped[stage.name] = len({name.partition(".")[0] for name in stale if not name.startswith((".", "_"))})
        run.write_json(stage.name, FINGERPRINT_FILE, value={"fingerprint": stage.fingerprint})
    return dropped


def _delete_stale(run: RunFolder, stage: Stage) -> list[str]:
    """Look into all cells of a stage, some at a time: each is a request or two where the folder is far away."""
    names = [name for name in run.names(stage.name) if name != FINGERPRINT_FILE]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        current = list(pool.map(lambda name: _is_current(run, stage, name), names))
        stale = [name for name, is_current in zip(names, current, strict=True) if not is_current]
        list(pool.map(lambda name: run.delete(stage.name, name), stale))
    return stale


_FILTERS = {*Filters.model_fields, "min_similarity", "min_margin"}


def _fingerprint(step: str, *read: Any) -> str:
    return fingerprint([step, STEP_VERSIONS[step], *read])


def _is_current(run: RunFolder, stage: Stage, name: str) -> bool:
    if name.endswith(".parquet"):
        return run.read_fingerprint(stage.name, name) == stage.fingerprint
    part = name.partition(".")[0]  # a tar is current when the account beside it is: that one is written after it
    account = run.read_json(stage.name, f"{part}.json")
    return isinstance(account, dict) and account.get("fingerprint") == stage.fingerprint
