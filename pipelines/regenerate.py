"""Regeneration: a new run with other captions, nouns or rules reuses the regions of an earlier run, and no model sees
an image that the earlier run has."""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from maskmine.mining.storage.stores import describe
from maskmine.pipelines.dataset.finished_run import FinishedRun
from maskmine.pipelines.dataset.publish import DERIVED_FILE
from maskmine.pipelines.run_folder.folder import IDENTITY_FILE, RunFolder, read_folder
from maskmine.pipelines.run_folder.reused_regions import ReusedRun
from maskmine.pipelines.settings.fingerprints import deciding
from maskmine.pipelines.steps.grid import Step
from maskmine.pipelines.steps.identity import Identity, step_fingerprints
from maskmine.schemas.errors import IncompleteError, InputError
from maskmine.schemas.manifest import DerivedFrom

_AT_ONCE = 16  # files linked or copied at a time; between object stores each is a request or two


def open_reused_run(root: str, identity: Identity, *, out: str) -> ReusedRun:
    """The earlier run at `root`, whose regions a run of this identity into `out` can use again.

    Raises InputError when they were made by other settings, IncompleteError when the run is not finished.
    """
    run = read_folder(root)
    if run.root == out:
        raise InputError(f"--regions {root}: is the `out` of this run; give another `out`")
    finished = FinishedRun.open(run)
    manifest, plan = finished.manifest, finished.plan
    regions = (deciding(values["regions"]) for values in (manifest.settings, identity.settings))
    difference = next(differences(*regions, name="regions"), None)
    if difference:
        name, there, here = difference
        raise InputError(
            f"--regions {root}: its regions were made by other settings ({name}: {there} there, {here} here); "
            "make them alike, or mine without --regions"
        )
    digest = hashlib.sha256(run.read_bytes("manifest.json")).hexdigest()
    reused = ReusedRun(run, step_fingerprints(plan, identity)["regions"], plan.parts, len(plan.given), digest)
    if not reused.regions.is_current() or reused.regions.missing(plan.parts):
        raise IncompleteError(f"--regions {root}: its regions are not complete; run `maskmine mine` there first")
    return reused


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


def reuse_regions(step: Step, reused: ReusedRun) -> None:
    """Link or copy the cells of a run of the same images and the same cut; note which run this one is derived from.

    Where images or cut differ, the step itself takes row by row what there is (`RegionsJob`).
    """
    run, missing = step.output.run, step.todo()
    if not missing:
        return
    note = DerivedFrom(folder=posixpath.basename(reused.run.root.rstrip("/")), manifest_sha256=reused.manifest_sha256)
    run.write_json(DERIVED_FILE, value=note.model_dump())
    if step.fingerprint == reused.fingerprint:
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(lambda part: run.link_or_copy(reused.run, *step.output.names(part)), missing))


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
    stale = [step.name for step in steps if not step.output.is_current() and step.output.done()]
    if stored is None or not stale:
        return
    changes = list(differences(deciding(before), deciding(identity.settings), name="")) if before else []
    shown = [_change(*change) for change in changes[:_MOST_CHANGES]]
    if len(changes) > _MOST_CHANGES:
        shown.append(f"{len(changes) - _MOST_CHANGES} more")
    why = ", ".join(shown) or "captions or images are others, or another version of maskmine made it"
    yield f"{run.root}: {', '.join(stale)} of the set that is there are made again ({why})"


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
