"""Push: a finished run, as a set that the hub's viewer shows, or a finished export as it is, to the Hugging Face hub.

    claim ─▶ files that the branch does not have, streamed ─▶ Croissant, checksums, removal of what is not of the set

Every step may be repeated, so a push that was cut goes on when the same command is run again. Nothing is sent before
licences, token and the repository's content were looked at.
"""

from __future__ import annotations

import glob
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from maskmine.mining.exports.export_shards import Tick
from maskmine.mining.storage.stores import scheme_of
from maskmine.pipelines.dataset.finished_run import FinishedRun
from maskmine.pipelines.export.export import Export, export_run
from maskmine.pipelines.export.folder import PLAN_FILE, SUMS_FILE
from maskmine.pipelines.export.forms import FORMATS
from maskmine.pipelines.push.address import Address
from maskmine.pipelines.push.content import MARKER_FILE, Content, licence_parts, open_export
from maskmine.pipelines.push.hub import HubRepository
from maskmine.pipelines.run_folder.claim import writing_alone
from maskmine.pipelines.run_folder.folder import RunFolder, folder_at, json_file, read_folder
from maskmine.pipelines.settings.licences import LicencePolicy, not_commercial, refuse_other_licences
from maskmine.schemas.errors import InputError, OtherPlanError

DEFAULT_FORM = "hf"
# What the hub makes by itself, or people write before there is a set.
_OF_NOBODY = {".gitattributes", "README.md"}


@dataclass(frozen=True, slots=True)
class Push:
    """What is pushed and where to: `source` is the folder of a run or an export.

    `form` is that of the set that is made of a run, `export_to` the folder it is made in; `replace` lets it take the
    place of another set.
    """

    source: str
    address: Address
    form: str | None = None
    export_to: str | None = None
    policy: LicencePolicy = "any"
    private: bool = False
    replace: bool = False
    message: str | None = None


@dataclass(frozen=True, slots=True)
class Pushed:
    """What was sent, or would be: the files with their sizes in bytes, and those that are removed.

    `commit` is None where nothing was sent. `not_commercial` names the parts that may not be used commercially, as far
    as is known.
    """

    url: str
    commit: str | None
    files: dict[str, int]
    removed: tuple[str, ...]
    not_commercial: tuple[str, ...]


Begin = Callable[[int], Tick]


def push_set(
    push: Push, *, dry_run: bool = False, begin: Begin = lambda _: lambda _: None, say: Callable[[str], None] = print
) -> Pushed:
    """Push a set, or go on with one that was cut; with `dry_run` only make it here and say what would go.

    `begin` is that of `export_run`, `say` prints a line. Raises InputError and IncompleteError, and OtherPlanError for
    a folder of `export_to` that holds another export.
    """
    source, name = _open(push)
    parts = source.licence_parts if isinstance(source, Content) else _parts_of(source)
    refuse_other_licences(parts, policy=push.policy)
    restricted = tuple(not_commercial(parts))
    if restricted:
        say(f"not known to allow commercial use: {'; '.join(restricted)}; the card says so")
    hub = HubRepository(push.address)
    form = source.plan["format"] if isinstance(source, Content) else push.form or DEFAULT_FORM
    marker = {"set": name, "form": form}
    there: dict[str, int] = {}
    if not dry_run:
        hub.require_access()
        there = hub.files()
        _refuse_another(hub, there, marker, push)
    content = source if isinstance(source, Content) else _exported(source, push, form, begin)
    files = {file.name: file.size_bytes for file in content.files}
    closing = content.closing_files()
    files |= {closed: len(written) for closed, written in closing.items()}
    files[MARKER_FILE] = len(json_file(marker))
    if dry_run:
        return Pushed(hub.url, None, dict(sorted(files.items())), (), restricted)
    content.check()
    removed = _of_no_use(hub, there, files, push)
    message = push.message or f"{name}: {sum(s['samples'] for s in content.plan['splits'].values()):,} pairs"
    commit = _send(hub, content, marker, closing, removed, message, push)
    return Pushed(hub.url, commit, dict(sorted(files.items())), removed, restricted)


def _send(
    hub: HubRepository,
    content: Content,
    marker: dict[str, str],
    closing: dict[str, bytes],
    removed: tuple[str, ...],
    message: str,
    push: Push,
) -> str:
    hub.create(private=push.private)
    hub.commit({MARKER_FILE: json_file(marker)}, message=message)
    without = [*map(glob.escape, content.strangers()), SUMS_FILE]
    hub.upload_folder(content.folder.root, without=without, message=message)
    return hub.commit(closing, delete=removed, message=message)


def _open(push: Push) -> tuple[Content | FinishedRun, str]:
    """The export or the run in a folder, and the name of the set."""
    folder = folder_at(push.source)
    if folder.exists(PLAN_FILE):
        content = open_export(folder)
        if push.form not in (None, content.plan["format"]):
            raise InputError(f"--as {push.form}: {push.source} is an export as {content.plan['format']}; leave it out")
        return content, os.path.basename(folder.root.rstrip("/"))
    if push.form is not None and push.form not in FORMATS:
        raise InputError(f"--as {push.form}: unknown; choose one of {', '.join(FORMATS)}")
    finished = FinishedRun.open_published(read_folder(push.source))
    return finished, finished.name


def _parts_of(finished: FinishedRun) -> list[tuple[str, str, str]]:
    manifest = finished.manifest
    return licence_parts([entry.model_dump() for entry in (*manifest.models, *manifest.sources)])


def _exported(finished: FinishedRun, push: Push, form: str, begin: Begin) -> Content:
    """The run as a set on this machine: a shard for each of its parts, so that a part that changes is sent alone."""
    settings = Export(format=form, by_part=True, policy=push.policy)
    out = push.export_to or _beside(finished.folder)
    older = f"{out.rstrip('/')}.old"
    with writing_alone(out):
        try:
            export_run(finished.folder, settings, out=out, begin=begin)
        except OtherPlanError:
            if push.export_to is not None:
                raise
            shutil.rmtree(older, ignore_errors=True)
            os.rename(out, older)  # made by an earlier push, of what the run was then
            export_run(finished.folder, settings, out=out, begin=begin)
        if push.export_to is None:
            shutil.rmtree(older, ignore_errors=True)
    return open_export(folder_at(out))


def _beside(run: RunFolder) -> str:
    if scheme_of(run.root) != "file":
        raise InputError(
            f"{run.root}: is on an object store; say with --export-to where on this machine to make the set"
        )
    return f"{run.root.rstrip('/')}.push"


def _refuse_another(hub: HubRepository, there: dict[str, int], marker: dict[str, Any], push: Push) -> None:
    """Raise InputError where the branch holds something else than this set."""
    if push.replace:
        return
    if MARKER_FILE not in there:
        others = sorted(set(there) - _OF_NOBODY)
        if others:
            raise InputError(
                f"{push.address}: holds files that no push has put there ({others[0]}); give another name, or --replace"
            )
        return
    found = hub.read_json(MARKER_FILE, size_bytes=there[MARKER_FILE])
    if found != marker:
        held = f"the set `{found.get('set')}` as {found.get('form')}" if isinstance(found, dict) else "another set"
        raise InputError(
            f"{push.address}: holds {held}, not `{marker['set']}` as {marker['form']}; give another name, or --replace"
        )


def _of_no_use(hub: HubRepository, there: dict[str, int], files: dict[str, int], push: Push) -> tuple[str, ...]:
    """Files of the branch that an earlier push has put there and this one does not; with `replace` all others."""
    others = set(there) - set(files) - {".gitattributes"}
    if push.replace or not others or SUMS_FILE not in there:
        return tuple(sorted(others)) if push.replace else ()
    sums = hub.read(SUMS_FILE, size_bytes=there[SUMS_FILE]).decode("utf-8", "replace")
    return tuple(sorted(others & {line.partition("  ")[2] for line in sums.splitlines()}))
