"""Regeneration: a new run with other captions, nouns or rules reuses the regions of an earlier run, and no model sees
an image that the earlier run has."""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from maskmine.mining.storage.prefetch import map_in_order
from maskmine.mining.storage.stores import describe
from maskmine.pipelines.dataset.finished_run import FinishedRun
from maskmine.pipelines.dataset.publish import DERIVED_FILE
from maskmine.pipelines.planning.plan import Plan
from maskmine.pipelines.run_folder.cells import Cells
from maskmine.pipelines.run_folder.folder import FINGERPRINT_FILE, IDENTITY_FILE, RunFolder, read_folder
from maskmine.pipelines.run_folder.region_cells import (
    EMBEDDINGS,
    OLDER,
    PROPOSALS,
    checks_cells,
    embeddings_cells,
    older_cells,
    proposals_cells,
    stored_cells,
)
from maskmine.pipelines.run_folder.reused_regions import ReusedRun
from maskmine.pipelines.settings.fingerprints import deciding
from maskmine.pipelines.steps.grid import Step
from maskmine.pipelines.steps.identity import Identity, checks_fingerprint, deciding_regions, region_fingerprints
from maskmine.schemas.errors import IncompleteError, InputError
from maskmine.schemas.manifest import DerivedFrom

_AT_ONCE = 16  # files linked or copied at a time; between object stores each is a request or two


def open_reused_run(root: str, identity: Identity, *, out: str) -> ReusedRun:
    """The earlier run at `root`, whose proposals a run of this identity into `out` can use again, and its embeddings
    where CLIP and crop agree.

    Raises InputError when the proposals were made by other settings, IncompleteError when the run is not finished.
    """
    run = read_folder(root)
    if run.root == out:
        raise InputError(f"--regions {root}: is the `out` of this run; give another `out`")
    finished = FinishedRun.open(run)
    manifest, plan = finished.manifest, finished.plan
    digest = hashlib.sha256(run.read_bytes("manifest.json")).hexdigest()
    parts = len(finished.parts)
    reused = _reused(run, plan, manifest.setting("regions"), identity, parts=parts, manifest_sha256=digest)
    if isinstance(reused, str):
        raise InputError(
            f"--regions {root}: its regions were made by other settings ({reused}); "
            "make them alike, or mine without --regions"
        )
    stored = [cells for cells in (reused.proposals, reused.embeddings) if cells is not None]
    if not reused.proposals.is_current() or any(cells.missing(parts) for cells in stored):
        raise IncompleteError(f"--regions {root}: its regions are not complete; run `maskmine mine` there first")
    return reused


def open_older_regions(run: RunFolder, plan: Plan, identity: Identity, known: Mapping[str, Any]) -> ReusedRun | None:
    """The regions that an earlier version left in the folder of this run, as a run to be reused; None where there are
    none, or where they were made by other settings."""
    stored = run.read_json(OLDER, FINGERPRINT_FILE)
    if stored is None:
        return None
    for settings in (identity.settings, known):
        reused = _reused(run, plan, settings["regions"], identity) if "regions" in settings else ""
        if isinstance(reused, ReusedRun) and reused.proposals.step == OLDER and reused.proposals.is_current():
            return reused
    return None


def _reused(
    run: RunFolder,
    plan: Plan,
    there: Mapping[str, Any],
    identity: Identity,
    *,
    parts: int | None = None,
    manifest_sha256: str = "",
) -> ReusedRun | str:
    """The regions of a run of this plan whose values of `regions` are `there`; what differs where proposals do. It has
    more `parts` than its plan where something was appended."""
    parts = plan.parts if parts is None else parts
    here = identity.settings["regions"]
    made, wanted = deciding_regions(there), deciding_regions(here)
    # What an earlier version did not have and is off counts as the same.
    difference = {step: _difference(_set(made[step]), _set(wanted[step]), name="regions") for step in made}
    if difference[PROPOSALS]:
        return difference[PROPOSALS]
    prints = region_fingerprints(plan, there, fetching=identity.fetching)
    older = stored_cells(run)[0].step == OLDER or not manifest_sha256
    proposals = older_cells(run, prints[OLDER]) if older else proposals_cells(run, prints[PROPOSALS])
    embeddings: Cells[Any] | None = None
    why = difference[EMBEDDINGS]
    if here["clip"] is not None and older:
        embeddings = None if why else proposals
    elif here["clip"] is not None:
        embeddings = embeddings_cells(run, region_fingerprints(plan, here, fetching=identity.fetching)[EMBEDDINGS])
        if why and not embeddings.missing(parts):
            why = ""  # they are those of a CLIP that the run had before
        embeddings = None if why else embeddings
    checks = None
    if "checks" in identity.settings and not older:
        checks = checks_cells(run, checks_fingerprint(prints[PROPOSALS], identity.settings["checks"]))
    appended, given = parts - plan.parts, len(plan.given)
    return ReusedRun(run, proposals, embeddings, parts, given, manifest_sha256, why, checks, appended)


def _set(values: Any) -> Any:
    """Values without those that are null."""
    if isinstance(values, Mapping):
        return {name: _set(value) for name, value in values.items() if value is not None}
    return values


def _difference(there: Any, here: Any, *, name: str) -> str:
    """The first difference between two trees of plain values; empty where there is none."""
    found = next(differences(there, here, name=name), None)
    return "" if found is None else f"{found[0]}: {found[1]} there, {found[2]} here"


def known_identity(run: RunFolder, regions_from: str | None) -> Mapping[str, Any]:
    """The settings of a run as they were identified when it went on last, else those of the run to be reused; empty
    for a first run. They say what names stood for that are not on this machine, and what `auto` was. Raises InputError
    when the object store of the folder cannot be used."""
    describe(run.root)  # faults name the path as it was given
    stored = run.read_json(IDENTITY_FILE)
    if stored is None and regions_from is not None:
        manifest = read_folder(regions_from).read_json("manifest.json")
        stored = manifest.get("settings") if isinstance(manifest, dict) else None
    return stored if isinstance(stored, dict) else {}


def write_identity(run: RunFolder, identity: Identity) -> None:
    """Note in the folder what the settings stand for."""
    run.write_json(IDENTITY_FILE, value=identity.settings)


def reuse_regions(steps: Sequence[Step], reused: ReusedRun) -> None:
    """Link or copy the cells of a run of the same images and the same cut; note which run this one is derived from.

    Where images or cut differ, the steps themselves take row by row what there is (`steps/regions_jobs.py`), as they do
    of an earlier version of this run. Cells are not read the first time. Later, when one was found to be damaged and
    deleted, what is taken is checked before: IncompleteError then names the earlier run's cell, as else the same damage
    would come back each time.
    """
    if not reused.manifest_sha256 or not any(step.todo() for step in steps):
        return
    run = steps[0].output.run
    note = DerivedFrom(folder=posixpath.basename(reused.run.root.rstrip("/")), manifest_sha256=reused.manifest_sha256)
    is_repeated = run.read_json(DERIVED_FILE) == note.model_dump()
    run.write_json(DERIVED_FILE, value=note.model_dump())
    for step, cells in zip(steps, (reused.proposals, reused.embeddings), strict=False):
        if cells is not None and step.fingerprint == cells.fingerprint:
            link = partial(_link, cells, step.output, check=is_repeated)
            for _ in map_in_order(link, step.todo(), threads=_AT_ONCE):
                pass


def _link(earlier: Cells[Any], output: Cells[Any], part: int, *, check: bool) -> None:
    """Have a cell of the earlier run."""
    if check:
        earlier.check(part)
    output.run.link_or_copy(earlier.run, *output.names(part))


def what_is_reused(steps: Sequence[Step], reused: ReusedRun) -> Iterator[str]:
    """A line where proposals of an earlier run are used again and its embeddings are not, or those of an earlier
    version of this run are taken over."""
    if not any(step.todo() for step in steps):
        return
    if not reused.manifest_sha256:
        yield f"{reused.run.root}: its regions are of an earlier version, and are taken over as they are"
    if reused.difference:
        whence = "this" if not reused.manifest_sha256 else reused.run.root
        yield f"proposals of {whence} are used again, and embedded anew ({reused.difference})"
    elif reused.manifest_sha256:
        yield f"{reused.run.root}: its regions are used again for the images that it has"


def differences(there: Any, here: Any, *, name: str) -> Iterator[tuple[str, str, str]]:
    """`(name, value there, value here)` of all settings that differ between two trees of plain values."""
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        for key in sorted(there.keys() | here.keys()):
            yield from differences(there.get(key, _ABSENT), here.get(key, _ABSENT), name=f"{name}.{key}")
    elif there != here:
        yield name, _shown(there), _shown(here)


def what_is_made_again(run: RunFolder, steps: Sequence[Step], identity: Identity) -> Iterator[str]:
    """A line where steps of a set that was made whole are about to be made again: which, and what changed."""
    stored, before = run.read_json("manifest.json"), run.read_json(IDENTITY_FILE)
    stale = [step.name for step in steps if not step.output.is_current() and _had_other_cells(step)]
    if stored is None or not stale:
        return
    changes = list(differences(deciding(before), deciding(identity.settings), name="")) if before else []
    shown = [_change(*change) for change in changes[:_MOST_CHANGES]]
    if len(changes) > _MOST_CHANGES:
        shown.append(f"{len(changes) - _MOST_CHANGES} more")
    why = ", ".join(shown) or "captions or images are others, or another version of maskmine made it"
    yield f"{run.root}: {', '.join(stale)} of the set that is there are made again ({why})"


def _had_other_cells(step: Step) -> bool:
    """Whether cells of a step that is not current are there, but for those that are only to be gone back to."""
    if step.output.by_fingerprint:
        return bool(step.todo()) and step.output.run.exists(step.name, FINGERPRINT_FILE)
    return bool(step.output.done())


def _change(name: str, there: str, here: str) -> str:
    name = name.lstrip(".")
    if name.endswith(".sha256"):  # the content of what a setting names
        return f"{name.removesuffix('.sha256')} has other content"
    return f"{name} was {there}, is {here}"


_MOST_CHANGES = 3
_ABSENT = object()


def _shown(value: Any) -> str:
    if value is _ABSENT:
        return "absent"
    if isinstance(value, Mapping) and value.keys() == {"sha256"}:  # what a path names
        return f"a file ({value['sha256'][:12]}…)"
    text = "null" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
