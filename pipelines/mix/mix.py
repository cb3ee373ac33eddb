"""Mixing as a set: the pairs of several finished sets in one, by weights, without the images that two of them have.

    FOLDER:WEIGHT … ─▶ what is known of the images ─▶ choice of pairs ─▶ shards ─▶ manifest, card, checksums, _SUCCESS

The same sets, weights and options give the same bytes. A shard that is there is not made again, so what was killed can
go on.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from typing import Any

from maskmine.mining.storage.stores import scheme_of
from maskmine.pipelines.dataset.limits import read_manifest
from maskmine.pipelines.dataset.sums import SUMS_FILE, lookup, read_sums
from maskmine.pipelines.mix.choice import Choice, Mixing, choose, wanted_pairs
from maskmine.pipelines.mix.images import WORK_FOLDER, Tick, check_indexes, read_facts
from maskmine.pipelines.mix.publish import publish_mix
from maskmine.pipelines.mix.shards import ORIGINS, SHARDS, ShardWriter
from maskmine.pipelines.mix.sources import (
    MixSource,
    common_format,
    is_folder,
    lies_within,
    notes_on,
    open_sources,
)
from maskmine.pipelines.run_folder.folder import MIX_FILE, SUCCESS_FILE, RunFolder, folder_at, part_of_cell
from maskmine.pipelines.run_folder.sweep import sweep
from maskmine.pipelines.settings.licences import LicencePolicy, refuse_other_licences
from maskmine.schemas.errors import InputError, OtherPlanError
from maskmine.schemas.manifest import Manifest
from maskmine.schemas.settings import fingerprint

MIX_VERSION = 1
"""Raised when the code changes what a mix holds; folders of older code then belong to another mix."""

Begin = Callable[[str, int], Tick]


@dataclass(frozen=True, slots=True)
class Mixed:
    """A mix: its manifest, whether it was there already, and what should be known of it, a line each."""

    manifest: Manifest
    was_complete: bool
    notes: tuple[str, ...]


def mix_sets(
    given: Sequence[tuple[str, Fraction]],
    mixing: Mixing,
    *,
    out: str,
    policy: LicencePolicy = "any",
    threads: int = 2,
    begin: Begin = lambda what, count: lambda more: None,
) -> Mixed:
    """Mix finished sets, given with their weights, into a folder, or go on with what was interrupted.

    `begin` gets the name of a stage and how much it has to do, and returns what is called as that is done. Raises
    InputError for sets or weights that cannot be mixed, IncompleteError for a set that is not finished or is damaged,
    OtherPlanError when the folder holds another mix.
    """
    sources = open_sources(given)
    _check_licences(sources, policy)
    # Of what has too few pairs, copies included, nothing is begun.
    wanted_pairs(sources, [source.run.manifest.totals.samples for source in sources], mixing)
    notes = list(notes_on(given, sources))
    settings = _settings(sources, mixing)
    folder = _claim(out, sources, settings)
    if (there := _complete(folder)) is not None:
        _clean(folder, there)
        return Mixed(there, True, (*notes, *_notes_after(there, mixing)))
    # What is known of the images, then the choice.
    for source in sources:
        check_indexes(source.run)
    tick = begin("images", sum(source.run.manifest.totals.with_pairs for source in sources))
    looks = mixing.copy_bits is not None
    cells = read_facts(folder, sources, looks=looks, threads=threads, tick=tick)
    with _with_what_stays(out), choose(sources, cells, mixing) as choice:
        identity = fingerprint([settings, choice.digest])
        version = max(source.run.manifest.format_version for source in sources)
        writer = ShardWriter(folder, sources, identity, version, common_format(sources)[0], threads)
        _write_shards(writer, choice, begin)
    # The files that describe the whole.
    manifest = publish_mix(
        folder,
        sources,
        choice.counts,
        writer.accounts(choice.parts),
        parts=choice.parts,
        identity=identity,
        version=version,
        settings=settings,
    )
    _clean(folder, manifest)
    return Mixed(manifest, False, (*notes, *_notes_after(manifest, mixing)))


@contextmanager
def _with_what_stays(out: str) -> Iterator[None]:
    """A refusal after the images were read says that this was not in vain."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{error} (what is known of the images stays in {out} for that)") from error


def _settings(sources: Sequence[MixSource], mixing: Mixing) -> dict[str, Any]:
    """What decides the mix, as mix.json and the manifest have it."""
    return {
        "version": MIX_VERSION,
        "sets": [{"folder": source.name, "content": source.content, "share": str(source.share)} for source in sources],
        "samples": mixing.samples,
        "seed": mixing.seed,
        "copy_bits": mixing.copy_bits,
        "samples_per_shard": mixing.samples_per_shard,
    }


def _check_licences(sources: Sequence[MixSource], policy: LicencePolicy) -> None:
    parts = [(f"model ({m.role})", m.name, m.licence) for source in sources for m in source.run.manifest.models]
    parts += [(entry.role, f"{entry.name} of {s.name}", entry.licence) for s in sources for entry in s.licensed]
    refuse_other_licences(dict.fromkeys(parts), policy=policy)


def _claim(out: str, sources: Sequence[MixSource], settings: dict[str, Any]) -> RunFolder:
    """The folder of this mix, new or begun. Raises InputError when something else lies there, OtherPlanError when it is
    another mix."""
    folder = folder_at(out)
    if (within := lies_within(folder.root, sources)) is not None:
        raise InputError(f"--out {out}: is in the folder of a set that is mixed ({within}); give another one")
    if not is_folder(folder.root):
        raise InputError(f"--out {out}: a file; give a folder that is empty or not there yet")
    stored = folder.read_json(MIX_FILE)
    if stored is None and (names := [name for name in folder.names() if name != MIX_FILE]):
        raise InputError(f"--out {out}: not empty ({names[0]} lies there), and no mix; give another one")
    if stored not in (None, settings) and folder.names(SHARDS):  # before, nothing was made of it
        raise OtherPlanError(f"{out}: belongs to another mix ({_differences(stored, settings)}); give another --out")
    if scheme_of(folder.root) == "file":
        sweep(folder)  # unfinished files of killed processes
    if stored != settings:
        folder.write_json(MIX_FILE, value=settings)
    return folder


def _differences(stored: Any, settings: dict[str, Any]) -> str:
    """What differs, `there` and `here`."""
    there = stored if isinstance(stored, dict) else {}
    changed = [name for name in settings if there.get(name) != settings[name]]
    listed = [
        "other sets or weights" if name == "sets" else f"{name}: {there.get(name)} there, {settings[name]} here"
        for name in changed
    ]
    return "; ".join(listed[:3]) or "another version of maskmine made it"


def _complete(folder: RunFolder) -> Manifest | None:
    """The manifest of a mix of which every file is there; else its mark is removed, so that it goes on."""
    if not folder.exists(SUCCESS_FILE):
        return None
    stored = folder.read_json("manifest.json")
    listed = (one for one in read_sums(folder, SUMS_FILE)) if folder.exists(SUMS_FILE) else iter(())
    first = next(listed, None)
    is_there = lookup(folder)
    lines = chain([first], listed)
    if stored is None or first is None or not all(isinstance(one, tuple) and is_there(one[0]) for one in lines):
        folder.delete(SUCCESS_FILE)
        return None
    return read_manifest(stored, folder)


def _write_shards(writer: ShardWriter, choice: Choice, begin: Begin) -> None:
    """Write the shards that are missing."""
    missing = writer.missing(choice.parts)
    tick, absent = begin("pairs", sum(counts.samples for counts in choice.counts)), set(missing)
    tick(sum(account["samples"] for account in writer.accounts(choice.parts) if account["part"] not in absent))
    if missing:
        writer.write(choice.taken(missing), tick=tick)
    wanted = sum(counts.samples for counts in choice.counts)
    written = sum(account["samples"] for account in writer.accounts(choice.parts))
    if written != wanted:
        raise AssertionError(f"{wanted} pairs chosen, {written} written: the mix has lost pairs")


def _clean(folder: RunFolder, manifest: Manifest) -> None:
    """Delete what was needed on the way, and shards of another choice of pairs that was not finished."""
    parts = len(manifest.shards)
    for step in (SHARDS, ORIGINS):
        for name in folder.names(step):
            if (part := part_of_cell(name)) is not None and part >= parts:
                folder.delete(step, name)
    for name in folder.names(WORK_FOLDER):
        folder.delete(WORK_FOLDER, name)
    if scheme_of(folder.root) == "file" and os.path.isdir(folder.path(WORK_FOLDER)):
        os.rmdir(folder.path(WORK_FOLDER))


def _notes_after(manifest: Manifest, mixing: Mixing) -> list[str]:
    """What was left out, and what could not be compared."""
    notes = []
    for source in manifest.mixed_from:
        if source.images_copied:
            notes.append(
                f"{source.folder}: {source.images_copied:,} images ({source.samples_copied:,} pairs) are left out, as "
                "a set with a larger share has them too"
            )
        if source.not_compared and mixing.copy_bits is not None:
            notes.append(
                f"{source.folder}: {source.not_compared:,} images are not compared by how they look (their files are "
                "not there or have changed, or have no contrast)"
            )
    return notes
