"""The plan: which images a run has, cut once into numbered parts. It is written first and never changes within a run.

Images are ordered by the SHA-256 of their id and cut evenly, so that every part, and so every shard, is already a
random sample of the whole, and the first parts serve as a smaller data set. Where a source brings its own parts (a tar,
a run of row groups, a part of an earlier run) these come first, in the source's order, so that a worker reads one file.

Nothing here grows with the number of images but files in a temporary folder:

    sources ─▶ entries (`listing.py`) ─▶ sorted (`order.py`) ─▶ a row for each image (`images.py`) ─▶ images/, captions/
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from typing import Annotated, Any

import pyarrow as pa
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from maskmine.mining.sources.coco import CocoCaptions
from maskmine.mining.storage.bounded.limits import USUAL
from maskmine.mining.storage.names import is_leftover
from maskmine.mining.storage.ownership import SCRATCH, owned_prefix, owner_state
from maskmine.mining.storage.stores import describe, scheme_of
from maskmine.pipelines.planning.digest import rows_json
from maskmine.pipelines.planning.external_sort import read_spilled
from maskmine.pipelines.planning.images import PLANNED_IMAGES
from maskmine.pipelines.planning.listing import refuse_urls
from maskmine.pipelines.planning.moved import refuse_other_pictures
from maskmine.pipelines.planning.order import order_images
from maskmine.pipelines.run_folder.folder import MIX_FILE, RunFolder, is_cell
from maskmine.pipelines.settings.fingerprints import caption_inputs
from maskmine.pipelines.settings.mining import Mining
from maskmine.schemas.errors import IncompleteError, InputError, OtherPlanError
from maskmine.schemas.rows import CaptionsRow, ImageRow
from maskmine.schemas.sample import cell_name

PLAN_FILE = "plan.json"
PLANNED = "plan"  # the fingerprint of the cells that the plan writes
PLAN_VERSION = 2
"""Version 2 brought `sources` and `additional` to the captions; an older plan is cut again, to the same images."""

PLANNED_CELLS = ("images", "captions")
_MOST = 1 << 32  # images and parts of a plan
RUN_SUMS_FILE = "SHA256SUMS.run"  # vouches for the plan's cells, see `publish.py`
_OF_A_RUN = frozenset({"identity.json", "manifest.json"})  # a folder with one of these is a run's without its plan
_PER_PART = "shards.images_per_part"
_TRIED_FILE = ".writable"  # written and deleted to see whether an object store can be written to
_NEVER_STRANGE = frozenset({_TRIED_FILE, "lost+found"})


@dataclass(frozen=True, slots=True)
class Plan:
    """How many images and parts there are, and the SHA-256 of what was planned (ids and files; captions; sources).

    `source` holds the settings that decide which images there are, `inputs` what the source's files held. `given` are
    the sizes of the first parts, which the source cut or, of a sample, that hold images of such parts in their order;
    the other images are ordered by hash and cut evenly. `urls`: some are fetched; None where there are some that the
    user did not allow. `roots` are the folders that the paths in the cells start from, of each source: where they lie
    now.
    """

    images: Annotated[int, Field(ge=0, lt=_MOST)]
    parts: Annotated[int, Field(ge=1, lt=_MOST)]
    images_sha256: str
    captions_sha256: str
    source: dict[str, Any]
    inputs: Any
    sources_sha256: str = ""
    given: tuple[Annotated[int, Field(ge=0, lt=_MOST)], ...] = ()
    urls: bool | None = False
    version: int = 1
    roots: tuple[tuple[str, ...], ...] = ()

    __pydantic_config__ = ConfigDict(strict=True, extra="forbid")  # where one is read

    def part_size(self, part: int) -> int:
        """The number of images of a part; those that the plan cut differ by one image at most."""
        if part < len(self.given):
            return self.given[part]
        rest, parts = self.images - sum(self.given), self.parts - len(self.given)
        return part_size(part - len(self.given), images=rest, parts=parts)


UNPLANNED = Plan(images=1, parts=1, images_sha256="", captions_sha256="", source={}, inputs=None)
"""Stands for a plan that is still to be made, where it matters which steps a run has, and not of what."""
_STORED = TypeAdapter(Plan)
CutPart = tuple[int, pa.Table, pa.Table]
"""The number of a part, its images and their captions."""


def part_size(part: int, *, images: int, parts: int) -> int:
    """The size of a part when `images` are cut evenly into `parts`."""
    return (part + 1) * images // parts - part * images // parts


def read_plan(run: RunFolder) -> Plan | None:
    """The plan of a run folder; None when it has none yet. Raises InputError for what is no plan."""
    stored = run.read_json(PLAN_FILE)
    if not stored:
        return None
    try:
        return _STORED.validate_json(json.dumps(stored))  # lists become tuples
    except ValidationError as error:
        raise InputError(f"{run.path(PLAN_FILE)}: not a plan; delete it and run `maskmine mine` again") from error


def make_plan(
    run: RunFolder,
    settings: Mining,
    *,
    limit: int | None = None,
    before_first: Callable[[], None] = lambda: None,
    appended: Callable[[], Iterable[pa.Table]] = tuple,
) -> Plan:
    """The plan of this run: the stored one where nothing changed, else cut again from the caption sources.

    `appended` gives tables with the ids of images that were appended to the run later, which are none of this plan's
    even where its sources list them by now. `before_first` is called where the folder has no plan yet, before anything
    is read or written for one. New captions of the same images replace the old ones, and where the images were moved,
    their new paths. Raises OtherPlanError, with what differs, when the folder belongs to other images or another cut;
    InputError when a source is faulty or an object store cannot be used.
    """
    stored = check_folder(run, settings, limit=limit)
    if stored is None:
        before_first()
    elif stored.urls is None and settings.regions.decoding.fetch.allow:
        raise OtherPlanError(
            f"{run.root}: belongs to a plan without its images at URLs, which is made without --fetch allow; choose "
            "another `out`, or delete the folder"
        )
    source = _source(settings, limit)
    inputs = plan_inputs(settings)
    if stored:
        unchanged = stored.inputs == inputs and stored.version == PLAN_VERSION and stored.roots == roots_of(settings)
        if unchanged and not any(run.done(name).missing(range(stored.parts)) for name in PLANNED_CELLS):
            if stored.urls:
                refuse_urls(settings, "the plan")
            return stored
        if stored.roots != roots_of(settings):  # before paths to nowhere replace those that the plan has
            for one in settings.sources:
                one.check()
    _refuse_unwritable_store(run)
    plan = _cut(run, settings, limit=limit, source=source, inputs=inputs, stored=stored, appended=appended)
    run.write_json(PLAN_FILE, value=asdict(plan))
    return plan


def plan_inputs(settings: Mining) -> Any:
    """What the files of the sources hold, to notice that one has changed since a plan was cut."""
    inputs = caption_inputs(settings.sources)
    if settings.limits != USUAL:  # records beyond them are rejected
        inputs = {"sources": inputs, "limits": settings.limits.model_dump()}
    return inputs


def check_folder(run: RunFolder, settings: Mining, *, limit: int | None = None) -> Plan | None:
    """The plan that a folder has. Raises as `make_plan` does for what else lies there, and reads no source."""
    about = describe(run.root)
    stored = read_plan(run)
    if stored is None and about is not None and about["type"] == "directory":
        _refuse_strangers(run)
    if stored is not None:
        _refuse_other_source(run, stored, _source(settings, limit))
    return stored


def _source(settings: Mining, limit: int | None) -> dict[str, Any]:
    """The settings that decide which images there are and how they are cut; the hash of the images covers the rest."""
    source = {_PER_PART: settings.shards.images_per_part, "limit": limit}
    alone = settings.sources[0] if settings.captioners and len(settings.sources) == 1 else settings.captions
    if isinstance(alone, CocoCaptions):  # captioners list no images, and come and go
        return {"captions.kind": alone.kind, **source}
    return source


def roots_of(settings: Mining) -> tuple[tuple[str, ...], ...]:
    """The folders that paths of images start from, for each source."""
    return tuple(tuple(source.roots) for source in settings.sources)


def _refuse_other_source(run: RunFolder, stored: Plan, source: dict[str, Any]) -> None:
    differing = [
        f"{key}: {stored.source.get(key)} there, {value} here"
        for key, value in source.items()
        if value not in ("auto", stored.source.get(key))
    ]
    if differing:
        raise OtherPlanError(
            f"{run.root}: belongs to another plan ({'; '.join(differing)}); choose another `out`, or delete the folder"
        )


def _refuse_strangers(run: RunFolder) -> None:
    """Leave a folder alone that holds something else than a run, or the beginning of one."""
    names = run.names()
    if MIX_FILE in names:
        raise OtherPlanError(f"{run.root}: belongs to a mix of other sets; give an `out` of its own")
    if _OF_A_RUN.intersection(names):
        return
    for name in names:
        ours = name in PLANNED_CELLS and all(map(is_cell, run.names(name)))
        if not (ours or owner_state(name) or is_leftover(name) or name in _NEVER_STRANGE):
            raise InputError(
                f"{run.root}: not empty ({name} lies there), and no run; give an `out` of its own, or delete the folder"
            )


def _refuse_unwritable_store(run: RunFolder) -> None:
    """Try to write to an object store before a large source is read: the right to list does not imply that to write."""
    if scheme_of(run.root) == "file":
        return
    try:
        run.write_json(_TRIED_FILE, value=None)
        run.delete(_TRIED_FILE)
    except IncompleteError as error:
        raise InputError(str(error)) from error


def _cut(
    run: RunFolder,
    settings: Mining,
    *,
    limit: int | None,
    source: dict[str, Any],
    inputs: Any,
    stored: Plan | None,
    appended: Callable[[], Iterable[pa.Table]],
) -> Plan:
    if stored and settings.shards.images_per_part == "auto":  # a plan that had a number keeps it
        shards = settings.shards.model_copy(update={"images_per_part": stored.source[_PER_PART]})
        settings, source = settings.model_copy(update={"shards": shards}), stored.source
    with tempfile.TemporaryDirectory(prefix=owned_prefix(SCRATCH)) as scratch:
        ordered = order_images(settings, scratch, limit=limit, known=appended() if stored else ())
        if stored and ordered.images_sha256 != stored.images_sha256:
            raise OtherPlanError(
                f"{run.root}: belongs to another plan ({settings.sources[0].location} has other images than the file "
                "that the plan was cut from); choose another `out`, or delete the folder; where images were added, "
                "`maskmine append` takes them"
            )
        if stored and stored.roots != roots_of(settings):
            refuse_other_pictures(run, ordered.paths, where=settings.sources[0].root)
        run.delete(RUN_SUMS_FILE)  # so that a finished run whose plan is cut again is published again
        if stored:  # from here on until the new plan is written, the captions in the folder belong to no plan
            run.write_json(PLAN_FILE, value=asdict(replace(stored, inputs=None)))
        rest = ordered.images - sum(ordered.given)
        parts = max(1, len(ordered.given) + -(-rest // settings.shards.images_in_part(ordered.images)))
        plan = Plan(
            images=ordered.images,
            parts=parts,
            images_sha256=ordered.images_sha256,
            captions_sha256="",
            source=source,
            inputs=inputs,
            given=ordered.given,
            urls=ordered.urls,
            version=PLAN_VERSION,
            roots=roots_of(settings),
        )
        digests = hashlib.sha256(), hashlib.sha256()
        for part, images, captions in cut_parts(plan, ordered.paths, *digests):
            write_part(run, part, images, captions)
    return replace(plan, captions_sha256=digests[0].hexdigest(), sources_sha256=digests[1].hexdigest())


def cut_parts(plan: Plan, paths: Sequence[str], captions_sha256: Any, sources_sha256: Any) -> Iterator[CutPart]:
    """Cut ordered images into the parts of a plan: `(part, images, captions)`. The digests take the captions and their
    sources."""
    tables = chain.from_iterable(map(read_spilled, paths))
    ahead = PLANNED_IMAGES.empty_table()
    for part in range(plan.parts):
        size = plan.part_size(part)
        while len(ahead) < size:
            ahead = pa.concat_tables([ahead, next(tables)])
        planned, ahead = ahead.slice(0, size).combine_chunks(), ahead.slice(size)
        images = planned.select(["image_id", "path"])
        captions = planned.select(["image_id", "captions", "sources", "additional"])
        captions_sha256.update(_sha256(rows_json(captions.select(["image_id", "captions"]))))
        sources_sha256.update(_sha256(_sources_json(captions)))
        yield part, images, captions


def write_part(run: RunFolder, part: int, images: pa.Table, captions: pa.Table) -> None:
    """Write the cells of a part."""
    run.write_rows("images", cell_name(part), rows=images, row_type=ImageRow, fingerprint=PLANNED)
    run.write_rows("captions", cell_name(part), rows=captions, row_type=CaptionsRow, fingerprint=PLANNED)


def _sources_json(captions: pa.Table) -> Iterator[pa.Buffer | bytes]:
    sources, additional = (rows_json(captions.select([name])) for name in ("sources", "additional"))
    return chain([b"["], sources, [b","], additional, [b"]"])


def _sha256(pieces: Iterable[pa.Buffer | bytes]) -> bytes:
    """The hex digits of the SHA-256 of all pieces together."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest().encode()


def require_plan(run: RunFolder) -> Plan:
    """The plan of a run folder. Raises InputError when there is none."""
    plan = read_plan(run)
    if plan is None:
        raise InputError(f"{run.root}: not a run folder (no plan.json); give the `out` of a `maskmine mine` run")
    return plan
