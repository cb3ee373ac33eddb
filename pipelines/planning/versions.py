"""The versions of a set that grows: what was mined first, and what was appended later, each with a plan of its own.

    plan.json, images/00000 … 00009           the base, which stays as it is
    versions/001/plan.json, images/00010 …    what was appended first: its parts follow those before it
    versions/001/vocabulary.parquet, levels.parquet, selection.parquet      what its parts have in common
    versions/002/plan.json, images/00011 …

The cells of all parts lie in the same folders and have the same fingerprints, those of the base: they tell settings
apart, and what a version was made of never changes. Its captions are read once, when it is cut, and are its cells then;
a version is there when its plan is, which is written after them.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import chain
from typing import Any

import pyarrow as pa
from pydantic import TypeAdapter, ValidationError

from maskmine.mining.captions import SomeSources
from maskmine.mining.storage.ownership import SCRATCH, owned_prefix
from maskmine.pipelines.planning.moved import refuse_ids_of_others, refuse_other_pictures
from maskmine.pipelines.planning.order import OrderedImages, order_images
from maskmine.pipelines.planning.plan import (
    PLAN_FILE,
    PLAN_VERSION,
    PLANNED_CELLS,
    RUN_SUMS_FILE,
    Plan,
    cut_parts,
    plan_inputs,
    roots_of,
    write_part,
)
from maskmine.pipelines.run_folder.folder import RunFolder, part_of_cell
from maskmine.pipelines.settings.mining import Mining
from maskmine.schemas.errors import IncompleteError, InputError
from maskmine.schemas.sample import cell_name

VERSIONS = "versions"
BASE = "000"
"""The name of what a set was mined of first; what is appended is called 001, 002, …"""
_AT_ONCE = 16
_STORED = TypeAdapter(dict[str, Any])
_PLAN = TypeAdapter(Plan)
_SOURCES: TypeAdapter[Any] = TypeAdapter(SomeSources)


@dataclass(frozen=True, slots=True)
class Version:
    """A version of a set: its plan, the number of its `first` part, and the settings of the sources that it was cut
    from, as plain values; none for the base. `known` images of these were in the set before."""

    name: str
    plan: Plan
    first: int = 0
    captions: Any = None
    known: int = 0

    @property
    def parts(self) -> range:
        """The numbers of its parts."""
        return range(self.first, self.first + self.plan.parts)

    @property
    def folder(self) -> str:
        """Where what its parts have in common lies; empty for the base."""
        return "" if self.name == BASE else f"{VERSIONS}/{self.name}"


def read_appended(run: RunFolder) -> tuple[Version, ...]:
    """What was appended to a run, in order; nothing for most. Raises InputError for a plan that is none."""
    return tuple(_read_version(run, name) for name in run.names(VERSIONS) if run.exists(VERSIONS, name, PLAN_FILE))


def versions_of(run: RunFolder, plan: Plan) -> tuple[Version, ...]:
    """All versions of a run whose base has this plan."""
    return (Version(BASE, plan), *read_appended(run))


def whole_plan(versions: Sequence[Version]) -> Plan:
    """One plan for all parts of a set, for whoever counts them; the base's where nothing was appended."""
    base = versions[0].plan
    if len(versions) == 1:
        return base
    sizes = tuple(one.plan.part_size(part) for one in versions for part in range(one.plan.parts))
    return replace(base, images=sum(sizes), parts=len(sizes), given=sizes)


def ids_in(run: RunFolder, parts: Sequence[int]) -> Iterator[pa.Table]:
    """The ids of the images of some parts, of which the other columns are not read."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for start in range(0, len(parts), _AT_ONCE):
            ahead = parts[start : start + _AT_ONCE]
            yield from pool.map(lambda part: run.read_columns("images", cell_name(part), columns=["image_id"]), ahead)


def cut_version(run: RunFolder, settings: Mining, before: Sequence[Version], *, captions: Any) -> Version:
    """Cut what is new in the sources of the settings into parts behind those of the versions `before`, and write them.

    What an earlier call that was stopped left of such parts is deleted first. Raises InputError when a source is
    faulty, or when the set has all of its images.
    """
    base, first = before[0].plan, before[-1].parts.stop
    inputs, settings = plan_inputs(settings), _cut_as(settings, base)
    with tempfile.TemporaryDirectory(prefix=owned_prefix(SCRATCH)) as scratch:
        ordered = order_images(settings, scratch, limit=None, known=ids_in(run, range(first)))
        where = settings.sources[0].location
        by_hash = [*range(len(base.given), first), *range(len(base.given))]
        refuse_ids_of_others(run, ordered.known_paths, parts=by_hash, where=where)
        if not ordered.images:
            raise InputError(
                f"{where}: all {ordered.known:,} images of it are in {run.root} already; there is nothing to append"
            )
        drop_beyond(run, first)
        plan = _plan(settings, ordered, inputs=inputs)
        digests = [hashlib.sha256(), hashlib.sha256()]
        for part, images, captions_of_part in cut_parts(plan, ordered.paths, *digests):
            write_part(run, first + part, images, captions_of_part)
    plan = replace(plan, captions_sha256=digests[0].hexdigest(), sources_sha256=digests[1].hexdigest())
    name = f"{int(before[-1].name) + 1:03d}"
    version = Version(name, plan, first, captions, ordered.known)
    _write_version(run, version)
    return version


def settings_for(settings: Mining, captions: Any) -> Mining:
    """The settings with other caption sources, given as plain values, and the captioners that they have. Raises
    ValidationError."""
    sources = _SOURCES.validate_json(json.dumps(captions))
    if settings.captioners:
        sources = (*(sources if isinstance(sources, tuple) else (sources,)), *settings.captioners)
    return settings.model_copy(update={"captions": sources})


def restore_version(
    run: RunFolder, settings: Mining, version: Version, versions: Sequence[Version], *, captions: Any = None
) -> Version:
    """Write the plan's cells of a version again where some are lost, or where `captions`, its sources as they are given
    now, have the same images elsewhere; returns the version as it is then.

    Raises IncompleteError when the source is not what it was cut from any more, OtherPlanError when other pictures lie
    at the new place; then nothing is written.
    """
    settings = settings_for(settings, captions or version.captions)
    moved = captions is not None and roots_of(settings) != version.plan.roots
    if not moved and not any(run.done(name).missing(version.parts) for name in PLANNED_CELLS):
        return version
    others = all_parts([one for one in versions if one.name != version.name])
    lost = IncompleteError(
        f"{run.root}: cells of version {version.name} are lost, and {settings.sources[0].location} is not what they "
        "were made from; put them back from a copy"
    )
    with tempfile.TemporaryDirectory(prefix=owned_prefix(SCRATCH)) as scratch:
        ordered = order_images(_cut_as(settings, versions[0].plan), scratch, limit=None, known=ids_in(run, others))
        if ordered.images_sha256 != version.plan.images_sha256:
            raise lost
        digests = [hashlib.sha256(), hashlib.sha256()]
        for _ in cut_parts(version.plan, ordered.paths, *digests):
            pass
        if digests[0].hexdigest() != version.plan.captions_sha256:
            raise lost
        if moved:
            refuse_other_pictures(run, ordered.paths, where=settings.sources[0].root, parts=version.parts)
        run.delete(RUN_SUMS_FILE)  # so that what is written now is summed
        for part, images, captions_of_part in cut_parts(version.plan, ordered.paths, *digests):
            write_part(run, version.first + part, images, captions_of_part)
    if not moved:
        return version
    there = replace(version, plan=replace(version.plan, roots=roots_of(settings)), captions=captions)
    _write_version(run, there)
    return there


def _write_version(run: RunFolder, version: Version) -> None:
    """Write the plan of a version, after its cells."""
    plan = asdict(version.plan)
    stored = {"captions": version.captions, "first": version.first, "known": version.known, "plan": plan}
    run.write_json(VERSIONS, version.name, PLAN_FILE, value=stored)


def drop_version(run: RunFolder, version: Version) -> None:
    """Take back a version of which nothing but its plan was made."""
    run.delete(VERSIONS, version.name, PLAN_FILE)
    drop_beyond(run, version.first)


def drop_beyond(run: RunFolder, parts: int) -> None:
    """Delete the cells of the plan of parts that belong to no version: of one whose cut was stopped."""
    for name in PLANNED_CELLS:
        beyond = [cell for cell in run.each_name(name) if (part_of_cell(cell) or 0) >= parts]
        for cell in sorted(beyond):
            run.delete(name, cell)


def _cut_as(settings: Mining, base: Plan) -> Mining:
    """The settings with parts as large as the base's."""
    shards = settings.shards.model_copy(update={"images_per_part": settings.shards.images_in_part(base.images)})
    return settings.model_copy(update={"shards": shards})


def _plan(settings: Mining, ordered: OrderedImages, *, inputs: Any) -> Plan:
    rest = ordered.images - sum(ordered.given)
    return Plan(
        images=ordered.images,
        parts=max(1, len(ordered.given) + -(-rest // settings.shards.images_in_part(ordered.images))),
        images_sha256=ordered.images_sha256,
        captions_sha256="",
        source={},
        inputs=inputs,
        given=ordered.given,
        urls=ordered.urls,
        version=PLAN_VERSION,
        roots=roots_of(settings),
    )


def _read_version(run: RunFolder, name: str) -> Version:
    path = (VERSIONS, name, PLAN_FILE)
    try:
        stored = _STORED.validate_python(run.read_json(*path))
        plan = _PLAN.validate_json(json.dumps(stored["plan"]))
        return Version(name, plan, int(stored["first"]), stored["captions"], int(stored["known"]))
    except (ValidationError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{run.path(*path)}: not a plan of what was appended; put it back from a copy, or mine the set anew"
        ) from error


def all_parts(versions: Sequence[Version]) -> list[int]:
    """The numbers of the parts of some versions."""
    return list(chain.from_iterable(version.parts for version in versions))
