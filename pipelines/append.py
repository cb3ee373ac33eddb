"""Growing a set: new images become new parts behind those that are there, which stay byte for byte.

    versions 000 (the base), 001, … ─▶ what is new of the sources ─▶ version 002: plan ─▶ its own grid ─▶ published anew

A version goes through the same steps as the base, by the run's own settings (`RUN/mining.yaml`), and takes over what
the base knows of nouns: text embeddings, and levels, so that the scores of all pairs can be compared. What the base has
is read where it has to be (ids of images, accounts of shards, footers), and never made again. Until the end the set is
the one that it was; what is stopped goes on with the same command, or with `maskmine mine`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any

from maskmine.pipelines.dataset.calibrations import check_calibration
from maskmine.pipelines.dataset.finished_run import FinishedRun
from maskmine.pipelines.dataset.limits import Exceeded, find_exceeded
from maskmine.pipelines.dataset.publish import mark_success
from maskmine.pipelines.dataset.set_versions import is_listed, source_names
from maskmine.pipelines.engines.engine import Engine, RunObserver, device_kind
from maskmine.pipelines.mine import check_workers, fetch_models, make_and_publish, make_cells, may_run_models, notes_of
from maskmine.pipelines.planning.plan import UNPLANNED, plan_inputs, require_plan, roots_of
from maskmine.pipelines.planning.versions import (
    BASE,
    Version,
    cut_version,
    drop_version,
    read_appended,
    restore_version,
    settings_for,
    whole_plan,
)
from maskmine.pipelines.regenerate import differences, known_identity
from maskmine.pipelines.run_folder.folder import SUCCESS_FILE, RunFolder
from maskmine.pipelines.run_folder.sweep import sweep
from maskmine.pipelines.settings.fingerprints import deciding
from maskmine.pipelines.settings.mining import Mining
from maskmine.pipelines.steps.grid import Step, missing_cells, plan_grids, plan_steps
from maskmine.pipelines.steps.identity import Identity, identify, settle
from maskmine.schemas.errors import IncompleteError, InputError
from maskmine.schemas.manifest import Manifest
from maskmine.schemas.wording import counted

_MINE_FIRST = "run `maskmine mine` with its configuration first"


@dataclass(frozen=True, slots=True)
class AppendResult:
    """How it ended. `version` is what these sources are in the set; `manifest` is None when they were there already."""

    version: Version
    manifest: Manifest | None
    exceeded: tuple[Exceeded, ...] = ()


def append(
    run: RunFolder, captions: Any, *, engine: Engine, observer: RunObserver, fetch: bool | None = None
) -> AppendResult:
    """Append the images of caption sources, given as plain values of `captions`, to a finished run, or go on with it.

    Images whose ids the set has are left out and counted. `fetch` says whether images are read from URLs, where it is
    not as the run's settings have it. Raises InputError when there is nothing new, or a source is faulty;
    IncompleteError when the run or another append to it is not finished, or its own settings do not give it any more.
    """
    finished = FinishedRun.open(run)
    asked = _asked(finished, captions, fetch=fetch)
    for source in asked.sources:
        source.check()
    known = known_identity(run, None)
    settings = settle(asked, known, here=partial(device_kind, engine=engine))
    identity = _identify(settings, known)
    versions = (Version(BASE, require_plan(run)), *read_appended(run))
    inputs = json.loads(json.dumps(plan_inputs(settings)))
    version = next((one for one in versions[1:] if one.plan.inputs == inputs), None)
    is_there = version is not None and roots_of(settings) == version.plan.roots  # and was not moved since
    if version is not None and is_there and is_listed(finished.manifest, version) and run.exists(SUCCESS_FILE):
        return AppendResult(version, None)

    # Whatever may be wrong, before anything is written.
    _refuse_unfinished(run, finished, versions, version)
    earlier = [one for one in versions if version is None or one.first < version.first]
    _refuse_changed(run, finished.manifest, identity, plan_grids(run, earlier, settings, identity))
    check_calibration(settings, identity.settings)
    settings.nouns.record(), settings.regions.records()
    check_workers(plan_steps(run, UNPLANNED, settings, identity), engine=engine)
    if version is None:
        version = _cut(run, settings, versions, captions=_plain(asked), observer=observer)
        versions = (*versions, version)
    else:
        there = restore_version(run, settings, version, versions, captions=_plain(asked))
        versions, version = tuple(there if one == version else one for one in versions), there

    observer.on_plan(whole_plan(versions))
    observer.on_line(_what_is_appended(version))
    grids = plan_grids(run, versions, settings, identity)
    if may_run_models(grids):
        fetch_models(asked, settings, engine=engine)
    sweep(run)
    make = partial(make_cells, run, engine=engine, observer=observer)
    manifest = make_and_publish(run, versions, settings, identity, grids, make, Counter(), known=known)
    exceeded = tuple(find_exceeded(manifest.totals, settings))
    if not exceeded:
        mark_success(run)
    return AppendResult(version, manifest, exceeded)


def _asked(finished: FinishedRun, captions: Any, *, fetch: bool | None) -> Mining:
    """The run's own settings, of these caption sources. Raises InputError."""
    settings = settings_for(finished.settings, captions)
    if fetch is None:
        return settings
    regions = settings.regions
    allowed = regions.decoding.fetch.model_copy(update={"allow": fetch})
    decoding = regions.decoding.model_copy(update={"fetch": allowed})
    return settings.model_copy(update={"regions": regions.model_copy(update={"decoding": decoding})})


def _plain(settings: Mining) -> Any:
    """The caption sources of settings as plain values."""
    stored = [source.model_dump(mode="json") for source in settings.sources]
    return json.loads(json.dumps(stored if len(stored) > 1 else stored[0]))


def _identify(settings: Mining, known: Mapping[str, Any]) -> Identity:
    """The identity of the run, whose captions are those of its base: what is appended does not change what it is."""
    identity = identify(settings, known)
    return replace(identity, settings={**identity.settings, "captions": known.get("captions")})


def _cut(
    run: RunFolder, settings: Mining, versions: Sequence[Version], *, captions: Any, observer: RunObserver
) -> Version:
    """Cut a new version. Raises InputError, and takes it back, when annotated masks are of other images."""
    version = cut_version(run, settings, versions, captions=captions)
    try:
        for line in notes_of(run, version.parts, settings):
            observer.on_line(line)
    except InputError:
        drop_version(run, version)
        raise
    return version


def _refuse_unfinished(
    run: RunFolder, finished: FinishedRun, versions: Sequence[Version], version: Version | None
) -> None:
    """Raises IncompleteError when the run, or another append to it, is not finished."""
    for other in versions[1:]:
        if other != version and not is_listed(finished.manifest, other):
            names = ", ".join(source_names(other.captions))
            raise IncompleteError(
                f"{run.root}: what was appended before (version {other.name}, of {names}) is not finished; run that "
                "again, or `maskmine mine`, first"
            )
    if version is None:
        FinishedRun.open_published(run)


def _refuse_changed(run: RunFolder, manifest: Manifest, identity: Identity, grids: Sequence[Sequence[Step]]) -> None:
    """Raises IncompleteError when what is there is not what the run's own settings give: it would be made again."""
    stored = json.loads(json.dumps(identity.settings))
    changes = differences(deciding(manifest.settings), deciding(stored), name="")
    change = next((name.lstrip(".").removesuffix(".sha256") for name, *_ in changes), None)
    if change is not None:
        raise IncompleteError(f"{run.root}: `{change}` is not what the set was made by any more; {_MINE_FIRST}")
    if missing := missing_cells([*chain.from_iterable(grids)]):
        raise IncompleteError(f"{run.root}: cells are missing ({missing}); {_MINE_FIRST}")
    if not all(step.once or step.output.is_current() for step in grids[0]):
        raise IncompleteError(f"{run.root}: made by another version of maskmine; {_MINE_FIRST}")


def _what_is_appended(version: Version) -> str:
    plan = version.plan
    left_out = f"; {counted(version.known, 'image')} of its source are there already" if version.known else ""
    return f"version {version.name}: {counted(plan.images, 'new image')} in {counted(plan.parts, 'part')}{left_out}"
