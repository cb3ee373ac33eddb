"""The pipeline on one page: captioned images in, verified shards of mask–noun pairs out.

    captions ─▶ nouns ──────┐          (captions of a model: (captioning) ─▶ nouns, from the images)
                  │         │
                  ▼ all     │
              vocabulary ───┤
                            ▼
    images ─▶ proposals ─▶ pairs ─▶ (checks) ─▶ (selection, once, where a noun is capped) ─▶ shards
                  │         ▲                                                                  ▲
                  ▼         │                                                                  │
              embeddings ───┴──────────────────────▶ (negatives) ──────────────────────────────┘

A cell is the file of one step for one part of the images; `vocabulary` and `selection` have one cell for the whole run.
A cell that exists is not made again. `shards` also reads the images, their captions, nouns and proposals. The pictures
of a part are decoded once for proposals and embeddings where both are missing. `checks` is there where a verifier is to
look at the pairs, and `negatives` where samples are to name nouns that their image does not show.

What a step does is in `mining/NAME.py`; `steps/jobs.py` reads its input cells, calls it and writes its output cell;
`steps/grid.py` lists the steps of a run, and an engine (`engines/local.py` is a loop) makes the missing cells.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import Any

from maskmine.mining.captioners.florence2 import Florence2
from maskmine.mining.models.devices import open_device
from maskmine.mining.proposers.ground_truth import GroundTruth, read_masks
from maskmine.mining.sources.coco import CocoCaptions
from maskmine.mining.storage.stores import OBJECT_STORES, fault_line, refusal, scheme_of
from maskmine.pipelines.dataset.accounts import BrokenShardsError
from maskmine.pipelines.dataset.calibrations import check_calibration
from maskmine.pipelines.dataset.limits import Exceeded, find_exceeded
from maskmine.pipelines.dataset.publish import DERIVED_FILE, mark_success, publish, published
from maskmine.pipelines.engines.engine import Engine, HasWorkers, RunObserver, device_kind
from maskmine.pipelines.planning.listing import refuse_urls
from maskmine.pipelines.planning.plan import UNPLANNED, make_plan, read_plan
from maskmine.pipelines.planning.versions import (
    BASE,
    Version,
    all_parts,
    drop_beyond,
    ids_in,
    read_appended,
    restore_version,
    whole_plan,
)
from maskmine.pipelines.regenerate import (
    differences,
    known_identity,
    open_older_regions,
    open_reused_run,
    reuse_regions,
    what_is_made_again,
    what_is_reused,
    write_identity,
)
from maskmine.pipelines.run_folder.folder import SUCCESS_FILE, RunFolder
from maskmine.pipelines.run_folder.region_cells import CHECKS, EMBEDDINGS, PROPOSALS, drop_older
from maskmine.pipelines.run_folder.reused_regions import ReusedRun
from maskmine.pipelines.run_folder.sweep import sweep
from maskmine.pipelines.settings.fingerprints import deciding
from maskmine.pipelines.settings.mining import Mining, dump_yaml
from maskmine.pipelines.steps.annotated import check_annotated
from maskmine.pipelines.steps.captioning_job import CaptioningJob
from maskmine.pipelines.steps.cells_of_run import run_cells
from maskmine.pipelines.steps.grid import (
    Step,
    drop_stale,
    drop_untied,
    missing_cells,
    plan_grids,
    plan_steps,
    steps_before_doubt,
    what_is_there,
)
from maskmine.pipelines.steps.identity import Identity, identify, settle
from maskmine.schemas.errors import IncompleteError, InputError
from maskmine.schemas.manifest import Manifest

_TRIED_IMAGES = 4  # one image alone may be locked, or missing


@dataclass(frozen=True, slots=True)
class MineResult:
    """How a run ended. `manifest` is None when there was nothing to do; `stale` counts the cells made again.

    `notes` say what of the annotations was not used, and why.
    """

    manifest: Manifest | None
    stale: dict[str, int]
    exceeded: tuple[Exceeded, ...]
    notes: tuple[str, ...] = ()


def mine(
    settings: Mining,
    *,
    engine: Engine,
    observer: RunObserver,
    limit: int | None = None,
    regions_from: str | None = None,
) -> MineResult:
    """Run the pipeline, or what is left of it. Running it again restores whatever is missing, byte for byte.

    `regions_from` is the folder of a finished run, whose regions are used again.
    """
    # What is to be done, and what is left of it.
    run, asked = RunFolder(settings.out), settings
    known = known_identity(run, regions_from)
    settings = settle(asked, known, here=partial(device_kind, engine=engine))
    identity = identify(settings, known)
    reused = open_reused_run(regions_from, identity, out=run.root) if regions_from else None

    def check_first() -> None:
        check_inputs(settings)
        check_calibration(settings, identity.settings)
        if reused is None:  # else no model may be needed
            fetch_models(asked, settings, engine=engine)
        check_workers(plan_steps(run, UNPLANNED, settings, identity, reused=reused), engine=engine)

    versions = plan_versions(run, settings, limit=limit, before_first=check_first)
    plan = versions[0].plan
    observer.on_plan(whole_plan(versions))
    grids = plan_grids(run, versions, settings, identity, reused=reused)
    sweep(run)
    if published(run, versions, grids, identity) and not missing_cells([*chain.from_iterable(grids)]):
        return MineResult(None, {}, exceeded=())
    if reused is None and (reused := open_older_regions(run, plan, identity, known)) is not None:
        grids = plan_grids(run, versions, settings, identity, reused=reused)

    # Whatever may be wrong, before anything is deleted.
    check_inputs(settings)
    for steps in grids:
        _require_keys(steps, engine=engine)
    if may_run_models(grids):
        fetch_models(asked, settings, engine=engine)
        settings = settle(settings, known)  # the content of what was fetched is known only now
        identity = identify(settings, known)
        grids = plan_grids(run, versions, settings, identity, reused=reused)
    for steps in grids:
        check_workers([step for step in steps if step.has_work()], engine=engine)
    check_calibration(settings, identity.settings)
    notes = tuple(notes_of(run, range(plan.parts), settings)) if _of_regions(grids[0])[0].has_work() else ()
    for line in (*_what_will_be_done(run, grids, identity, reused), *notes):
        observer.on_line(line)

    takes_over = reused is not None and reused.run == run
    stale = _make_room(run, asked, identity, versions, grids[0], reused=reused)
    made_again: Counter[str] = Counter()
    make = partial(make_cells, run, engine=engine, observer=observer)
    finish = partial(make_and_publish, run, versions, settings, identity, grids, make, made_again, known=known)
    manifest = _twice_if_broken(partial(finish, takes_over=takes_over))
    exceeded = tuple(find_exceeded(manifest.totals, settings))
    if not exceeded:
        mark_success(run)
    return MineResult(manifest, {**made_again, **stale}, exceeded, notes)


def _twice_if_broken(finish: Callable[[], Manifest]) -> Manifest:
    """What was cut off is deleted when that is found, and is made again."""
    try:
        return finish()
    except BrokenShardsError:
        return finish()


def plan_versions(
    run: RunFolder, settings: Mining, *, limit: int | None, before_first: Callable[[], None]
) -> tuple[Version, ...]:
    """The plan of a run as `make_plan` has it, and what was appended to it. Raises as that does."""
    appended = read_appended(run)
    if appended and read_plan(run) is None:
        raise InputError(f"{run.root}: plan.json is missing, and something was appended to it; put it back from a copy")
    plan = make_plan(
        run,
        settings,
        limit=limit,
        before_first=before_first,
        appended=lambda: ids_in(run, all_parts(appended)),
    )
    versions = (Version(BASE, plan), *appended)
    for version in appended:
        if version.plan.urls:
            refuse_urls(settings, f"version {version.name} of the set")
        restore_version(run, settings, version, versions)
    drop_beyond(run, versions[-1].parts.stop)
    return versions


def _what_will_be_done(
    run: RunFolder, grids: Sequence[Sequence[Step]], identity: Identity, reused: ReusedRun | None
) -> Iterator[str]:
    """A line for what is made again or is there, and for what of an earlier run is used."""
    first_broken = next(filter(missing_cells, grids), grids[0])
    yield from list(what_is_made_again(run, grids[0], identity)) or what_is_there(first_broken)
    if reused is not None:
        yield from what_is_reused(_of_regions(grids[0]), reused)


def _make_room(
    run: RunFolder,
    asked: Mining,
    identity: Identity,
    versions: Sequence[Version],
    steps: Sequence[Step],
    *,
    reused: ReusedRun | None,
) -> dict[str, int]:
    """Delete what is stale, note what is made now, and of what run regions are used again: from here on the set is not
    complete. As `drop_stale`."""
    run.delete(SUCCESS_FILE)
    stale = drop_stale(run, steps, folders=[version.folder for version in versions])
    if (reused is None or reused.run != run) and (dropped := drop_older(run)):
        stale[PROPOSALS] = dropped
    with run.write("mining.yaml") as file:
        file.write(dump_yaml(asked).encode())
    write_identity(run, identity)
    if PROPOSALS in stale:
        run.delete(DERIVED_FILE)
    if reused is not None:
        reuse_regions(_of_regions(steps), reused)
    return stale


def _of_regions(steps: Sequence[Step]) -> list[Step]:
    return [step for step in steps if step.name in (PROPOSALS, EMBEDDINGS)]


def make_and_publish(
    run: RunFolder,
    versions: Sequence[Version],
    settings: Mining,
    identity: Identity,
    grids: Sequence[Sequence[Step]],
    make: Callable[[Sequence[Step]], Mapping[str, int]],
    made_again: Counter[str],
    *,
    known: Mapping[str, Any],
    takes_over: bool = False,
) -> Manifest:
    """Only a whole grid is published, and one that was made of one thing; counts in `made_again` what `make` says."""
    for steps in grids:
        made_again.update(make(steps))
        if missing := missing_cells(steps):
            raise IncompleteError(f"{run.root}: cells are still missing ({missing}); run the same command again")
    sweep(run)
    if takes_over:
        drop_older(run)
    for step in grids[0]:
        step.output.drop_earlier()
    _refuse_changed(settings, known, identity, run=run)
    run.delete(SUCCESS_FILE)
    return publish(run, versions, settings, identity, grids)


def fetch_models(asked: Mining, settings: Mining, *, engine: Engine) -> None:
    """Fetch what is not on this machine, after a look whether models can run here at all. Raises InputError."""
    if engine.models_run_here:
        _open_settled_device(asked, settings)
    settings.regions.fetch()
    if settings.checks is not None:
        settings.checks.fetch()
    for captioner in settings.captioners:
        if isinstance(captioner, Florence2):
            captioner.fetch()


def check_workers(steps: Sequence[Step], *, engine: Engine) -> None:
    """Raises InputError where an engine has no room for its workers with the models of these steps."""
    if isinstance(engine, HasWorkers):
        engine.check_workers({step.name: step.job for step in steps})


def _require_keys(steps: Sequence[Step], *, engine: Engine) -> None:
    """Raises InputError where this process is to ask a server whose key it has not; other workers have their own."""
    for step in steps:
        if isinstance(step.job, CaptioningJob) and engine.models_run_here and step.has_work():
            step.job.require_key()


def may_run_models(grids: Sequence[Sequence[Step]]) -> bool:
    """Whether a run may make cells of a step that runs models."""
    return any(step.uses_models and _may_have_work(step, steps) for steps in grids for step in steps)


def _may_have_work(step: Step, steps: Sequence[Step]) -> bool:
    """Whether a run may make cells of a step. Checks are made again where their pairs are, which are not there yet."""
    pairs = step.name == CHECKS and any(one.name in step.reads and one.has_work() for one in steps)
    return pairs or step.has_work()


def _open_settled_device(asked: Mining, settings: Mining) -> None:
    """Raises InputError when the models' device is not here, also one that the run began on."""
    try:
        open_device(settings.regions.device)
    except InputError as error:
        if asked.regions.device != "auto":
            raise InputError(f"regions.{error}") from error
        raise InputError(
            f"regions.device: this run's regions were made on {settings.regions.device}, which this machine does not "
            "have; go on where there is one, or set `regions.device: cpu`, which makes them again"
        ) from error


def _refuse_changed(settings: Mining, known: Mapping[str, Any], identity: Identity, *, run: RunFolder) -> None:
    """Raises IncompleteError when a file or model was replaced while the run went on: its cells may be of both."""
    now = identify(settings, known)
    asked = [name for name in ("checks", "negatives") if getattr(settings, name) is not None]
    named = ("nouns", "vocabulary", "regions", "pairs", *asked)
    changes = [differences(deciding(identity.settings[k]), deciding(now.settings[k]), name=k) for k in named]
    changes.append(differences(identity.captioning, now.captioning, name="captions"))
    changed = next(chain.from_iterable(changes), None)
    if changed is not None:
        name = changed[0].removesuffix(".sha256")
        raise IncompleteError(
            f"{run.root}: what `{name}` names has changed while the run went on; run the same command again, which "
            "makes again what depends on it"
        )


def make_cells(run: RunFolder, steps: Sequence[Step], *, engine: Engine, observer: RunObserver) -> dict[str, int]:
    """Make the missing cells, and those that were made from other cells than there are; counts the latter by step.

    At once where no cell hangs on one that is missing. Else a lost cell comes first, and then all that its new content
    makes stale: an engine knows nothing of this.
    """
    untied: Counter[str] = Counter()
    while True:
        untied.update(drop_untied(steps))
        first = steps[: steps_before_doubt(steps)]
        engine.run(run, first, observer)
        if len(first) == len(steps) or missing_cells(first):
            return dict(untied)


def check_inputs(settings: Mining) -> None:
    """Look for what the steps will need before any work is done or deleted. Raises InputError.

    The image folder too: without it every image would be rejected as a missing file.
    """
    for source in settings.sources:
        source.check()
        if isinstance(source, CocoCaptions) and scheme_of(source.images) in OBJECT_STORES:
            _refuse_locked_images(source)
    settings.nouns.record()
    settings.regions.records()
    for captioner in settings.captioners:
        captioner.record()
    if settings.checks is not None:
        settings.checks.record()


def notes_of(run: RunFolder, parts: Iterable[int], settings: Mining) -> Iterator[str]:
    """What of annotated masks belongs to no image of some parts. Raises InputError before work begins, when they cannot
    be read, or are of other images."""
    proposals = settings.regions.proposals
    if isinstance(proposals, GroundTruth):
        truth, where = read_masks(proposals), f"proposals.annotations: {proposals.annotations}"
        yield from check_annotated(run_cells(run).images, truth, parts=parts, where=where)
        for line in truth.left_out.lines():
            yield f"{where}: not used, {line}"


def _refuse_locked_images(source: CocoCaptions) -> None:
    """Try to read: the right to list a folder does not imply the right to read its files."""
    tried = [path for _, path in islice(source.read_images(), _TRIED_IMAGES)]
    refused = [error for path in tried if (error := refusal(path)) is not None]
    if refused and len(refused) == len(tried):
        raise InputError(fault_line(refused[0], tried[0]))
