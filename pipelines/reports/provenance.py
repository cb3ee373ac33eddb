"""How a set was made, for its page: version, date, settings, and the commands that make the set and the page again."""

from __future__ import annotations

import posixpath
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from maskmine.pipelines.dataset.finished_run import FinishedRun
from maskmine.pipelines.planning.versions import read_appended

_DIGITS = 12  # of a SHA-256: they tell files apart


@dataclass(frozen=True, slots=True)
class Provenance:
    """`finished` is when the last shard was written, in UTC, empty where the run does not say it.

    `settings` are those of the manifest as YAML, files by name and the first digits of their SHA-256. `commands` make
    the set, then the page, from the folder that holds the run's.
    """

    version: str
    finished: str
    settings: str
    libraries: Mapping[str, str]
    commands: tuple[str, ...]


def provenance_of(finished: FinishedRun, *, last: str, options: Sequence[str] = ()) -> Provenance:
    """That of a finished run whose `last` shard was written then; `options` are those of `maskmine report`."""
    manifest = finished.manifest
    libraries = dict(manifest.libraries)
    return Provenance(
        version=libraries.pop("maskmine", "unknown"),
        finished=last,
        settings=yaml.safe_dump(_named(manifest.settings), sort_keys=False, allow_unicode=True, width=100),
        libraries=libraries,
        commands=(
            " && ".join(_mix_again(finished) if finished.is_mix else _make_again(finished)),
            shlex.join(["maskmine", "report", finished.name, *options]),
        ),
    )


def _mix_again(finished: FinishedRun) -> Iterator[str]:
    """The command that mixes the set, with the names of the sets' folders, as the manifest has them."""
    mix = finished.manifest.setting("mix")
    given = {"--samples": mix["samples"], "--seed": mix["seed"] or None, "--shard-size": mix["samples_per_shard"]}
    copies = ["--keep-duplicates"] if mix["copy_bits"] is None else ["--bits", str(mix["copy_bits"])]
    options = [word for option, value in given.items() if value is not None for word in (option, str(value))]
    weights = [f"{one['folder']}:{one['share']}" for one in mix["sets"]]
    yield shlex.join(["maskmine", "mix", *weights, "--out", finished.name, *options, *copies])


def _make_again(finished: FinishedRun) -> Iterator[str]:
    """The commands that make the set: its own, and one for each version that was appended."""
    yield shlex.join(["maskmine", "mine", posixpath.join(finished.name, "mining.yaml")])
    names = {version.name for version in finished.manifest.versions}
    for version in (one for one in read_appended(finished.folder) if one.name in names):
        listed = version.captions if isinstance(version.captions, list) else [version.captions]
        place = str(listed[0].get("annotations") or listed[0].get("files"))
        yield shlex.join(["maskmine", "append", finished.name, "--captions", posixpath.basename(place.rstrip("/"))])


def _named(value: Any) -> Any:
    """Settings with a file or a model as one line: its name, and the first digits of its SHA-256."""
    if isinstance(value, Mapping):
        if {"name", "sha256"} <= set(value) and isinstance(value["sha256"], str):
            rest = [str(part) for key, part in value.items() if key not in ("name", "sha256") and part is not None]
            return ", ".join([f"{value['name']} ({value['sha256'][:_DIGITS]})", *rest])
        return {key: _named(part) for key, part in value.items()}
    return [_named(part) for part in value] if isinstance(value, list | tuple) else value
