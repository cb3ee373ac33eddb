"""Regeneration: a new run with other captions, nouns or rules takes the regions of an earlier one, and runs no model
on an image that this one has seen."""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pipelines.earlier import Earlier
from pipelines.grid import Stage, regions_fingerprint
from pipelines.inputs import portable
from pipelines.publish import DERIVED_FILE
from pipelines.run_folder import FINGERPRINT_FILE, RunFolder, read_folder
from pipelines.settings import Mining
from pipelines.status import require_plan
from pipelines.verify import read_manifest
from schemas.errors import IncompleteError, InputError
from schemas.manifest import DerivedFrom

_AT_ONCE = 16


def open_earlier(root: str, settings: Mining) -> Earlier:
    """The earlier run at `root`, whose regions a run of these settings can take.

    Raises InputError when they were made by other settings, IncompleteError when the run is not finished.
    """
    run = read_folder(root)
    if run.root == settings.out:
        raise InputError(f"--regions {root}: is the `out` of this run; give another `out`")
    manifest, plan = read_manifest(run), require_plan(run)
    difference = next(differences(manifest.settings["regions"], portable(settings.regions), place="regions"), None)
    if difference:
        place, there, here = difference
        raise InputError(
            f"--regions {root}: its regions were made by other settings ({place}: {there} there, {here} here); "
            "make them alike, or mine without --regions"
        )
    made = regions_fingerprint(plan, settings.regions)
    current = run.read_json("regions", FINGERPRINT_FILE) == {"fingerprint": made}
    if not current or run.done("regions") != set(range(plan.parts)):
        raise IncompleteError(f"--regions {root}: its regions are not complete; run `maskmine mine` there first")
    digest = hashlib.sha256(run.read_bytes("manifest.json")).hexdigest()
    return Earlier(run, made, plan.parts, len(plan.given), digest)


def take_regions(run: RunFolder, stage: Stage, earlier: Earlier) -> None:
    """Take the cells of a run of the same images and the same cut; note that this run is derived from the other one.

    Where images or cut differ, the step itself takes row by row what there is (`RegionsJob`).
    """
    missing = stage.todo(run)
    if not missing:
        return
    note = DerivedFrom(folder=posixpath.basename(earlier.run.root.rstrip("/")), manifest_sha256=earlier.manifest_sha256)
    run.write_json(DERIVED_FILE, value=note.model_dump())
    if stage.fingerprint == earlier.fingerprint:
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(lambda part: run.take(earlier.run, stage.name, f"{part:05d}.parquet"), missing))


def differences(there: Any, here: Any, *, place: str) -> Iterator[tuple[str, str, str]]:
    """`(place, value there, value here)` of all settings that differ between two trees of plain values."""
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        for key in sorted(there.keys() | here.keys()):
            yield from differences(there.get(key, _ABSENT), here.get(key, _ABSENT), place=f"{place}.{key}")
    elif there != here:
        yield place, _shown(there), _shown(here)


_ABSENT = object()


def _shown(value: Any) -> str:
    if value is _ABSENT:
        return "absent"
    text = "null" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
