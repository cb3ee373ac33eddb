"""What is mixed: finished sets with their weights, and what has to hold for them to be mixed at all."""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

from maskmine.mining.storage.stores import describe, scheme_of
from maskmine.pipelines.dataset.finished_run import FinishedRun
from maskmine.pipelines.run_folder.folder import read_folder
from maskmine.schemas.errors import InputError
from maskmine.schemas.manifest import MixedSource, ModelRecord, SourceEntry
from maskmine.schemas.settings import canonical_json

_DIGITS = 8  # of a SHA-256, which tell sets of one name apart
_UNKNOWN = "unknown"
_RATIO = re.compile(r"[1-9]\d{0,17}/[1-9]\d{0,17}")


@dataclass(frozen=True)
class MixSource:
    """A set that is mixed: `name` is its own among all, `share` its weight, and all shares are 1 together."""

    name: str
    share: Fraction
    run: FinishedRun

    @cached_property
    def content(self) -> str:
        """SHA-256 of what it holds."""
        return content_of(self.run)

    @property
    def mixed_from(self) -> tuple[MixedSource, ...]:
        """What it was mixed from itself."""
        return self.run.manifest.mixed_from

    @property
    def licensed(self) -> tuple[SourceEntry, ...]:
        """Its captions and images; of a run made before they were recorded under an unknown licence."""
        if self.run.manifest.sources:
            return self.run.manifest.sources
        return (
            SourceEntry(role="captions", name=self.name, licence=_UNKNOWN),
            SourceEntry(role="images", name=self.name, licence=_UNKNOWN),
        )


def content_of(run: FinishedRun) -> str:
    """SHA-256 of a set's fingerprint and its shards' checksums.

    A fingerprint does not cover the bytes of image files, so sets of one fingerprint may have other crops.
    """
    digest, between = hashlib.sha256(f"[{canonical_json(run.manifest.fingerprint)},[".encode()), ""
    for shard in run.manifest.shards:  # the text that `fingerprint` has of both, piece by piece
        digest.update(f"{between}{canonical_json(shard.sha256)}".encode())
        between = ","
    digest.update(b"]]")
    return digest.hexdigest()


def parse_weights(given: Sequence[str]) -> list[tuple[str, Fraction]]:
    """Folders and their weights from `FOLDER:WEIGHT`. Raises InputError for what is no such weight."""
    parsed = []
    for text in given:
        folder, _, weight = text.rpartition(":")
        if not folder:
            raise InputError(f"{text}: has no weight; give it as {text}:0.5")
        parsed.append((folder, parse_weight(weight, of=text)))
    return parsed


def parse_weight(weight: str | float, *, of: str) -> Fraction:
    """A weight as the number that its digits say, such as `0.7` or `2/3`. Raises InputError where it is not above 0."""
    if _RATIO.fullmatch(str(weight)):
        return Fraction(str(weight))
    try:
        value = float(weight)
    except ValueError as error:
        raise InputError(f"{of}: {weight!r} is no weight; give a number above 0, as in {_example(of)}") from error
    if not (math.isfinite(value) and value > 0):
        remedy = "leave the set out" if value == 0 else f"give a number above 0, as in {_example(of)}"
        raise InputError(f"{of}: the weight is {value:g}; {remedy}")
    return Fraction(str(weight).strip())


def open_sources(given: Sequence[tuple[str, Fraction]]) -> list[MixSource]:
    """The sets, those with the largest shares first, whatever the order in which they are given.

    Raises InputError when one is given twice or crops differ in their format, IncompleteError for one that is not
    finished.
    """
    if not given:
        raise InputError("nothing to mix; give sets with their weights, as in runs/a:0.7 runs/b:0.3")
    opened = [(folder, weight, FinishedRun.open_published(read_folder(folder))) for folder, weight in given]
    _refuse_twice([(folder, run) for folder, _, run in opened])
    _refuse_formats([run for _, _, run in opened])
    total = sum(weight for _, weight, _ in opened)
    ordered = sorted(opened, key=lambda one: (-one[1], content_of(one[2])))
    names = Counter(run.name for _, _, run in ordered)
    return [MixSource(_own_name(run, names), weight / total, run) for _, weight, run in ordered]


def notes_on(given: Sequence[tuple[str, Fraction]], sources: Sequence[MixSource]) -> Iterator[str]:
    """What should be known of the sets before they are mixed, a line each."""
    total = sum(weight for _, weight in given)
    if total != 1:
        shares = ", ".join(f"{source.name} {float(source.share):.1%}" for source in sources)
        yield f"the weights are {float(total):g} together, and taken as shares of it: {shares}"
    ratios = {source.name: _crop(source.run)[1] for source in sources}
    if len(set(ratios.values())) > 1:
        listed = ", ".join(f"{name} {'unknown' if ratio is None else f'{ratio:g}'}" for name, ratio in ratios.items())
        yield f"the crops are grown differently (shards.expand_ratio: {listed}); readers may count on the least"
    versions = {source.run.manifest.format_version for source in sources}
    if len(versions) > 1:
        yield (
            f"the sets are of format versions {', '.join(map(str, sorted(versions)))}; the mix is of {max(versions)}, "
            "with null for scores that a set does not have"
        )
    clips = {model.name: model.sha256 for source in sources for model in source.run.manifest.models if _is_clip(model)}
    if len(clips) > 1:
        yield f"the scores are of different models ({', '.join(sorted(clips))}); compare them within a set alone"


def common_format(sources: Sequence[MixSource]) -> tuple[str, float | None]:
    """The format of the crops, and the least of what their boxes are grown by; None where a set does not say it."""
    crops = [_crop(source.run) for source in sources]
    ratios = [ratio for _, ratio in crops if ratio is not None]
    return crops[0][0], min(ratios) if len(ratios) == len(crops) else None


def lies_within(path: str, sources: Sequence[MixSource]) -> str | None:
    """The folder of a source that a path is or lies in; None where there is none."""
    place = _resolved(path)
    roots = (source.run.folder.root for source in sources)
    return next((root for root in roots if f"{place}/".startswith(f"{_resolved(root)}/")), None)


def is_folder(root: str) -> bool:
    """Whether a folder, and not a file, is or may be made at a place."""
    about = describe(root)
    return about is None or about["type"] == "directory"


def _refuse_twice(runs: Sequence[tuple[str, FinishedRun]]) -> None:
    first: dict[str, str] = {}
    for folder, run in runs:
        content = content_of(run)
        if content in first:
            raise InputError(
                f"{first[content]} and {folder}: the same set (fingerprint {run.manifest.fingerprint[:_DIGITS]}); give "
                "it once, with the weights added"
            )
        first[content] = folder


def _refuse_formats(runs: Sequence[FinishedRun]) -> None:
    formats = {run.folder.root: _crop(run)[0] for run in runs}
    if len(set(formats.values())) > 1:
        listed = ", ".join(f"{root} {image_format}" for root, image_format in formats.items())
        raise InputError(
            f"the crops are of different formats ({listed}), which no loader takes for one set; mine again with one "
            "`shards.image_format`, which cuts anew and runs no model"
        )


def _crop(run: FinishedRun) -> tuple[str, float | None]:
    shards: Mapping[str, object] = run.manifest.settings.get("shards", {})
    ratio = shards.get("expand_ratio")
    return str(shards.get("image_format", "jpg")), ratio if isinstance(ratio, float) else None


def _resolved(path: str) -> str:
    return (os.path.realpath(path) if scheme_of(path) == "file" else path).rstrip("/")


def _own_name(run: FinishedRun, names: Mapping[str, int]) -> str:
    return run.name if names[run.name] == 1 else f"{run.name}-{content_of(run)[:_DIGITS]}"


def _is_clip(model: ModelRecord) -> bool:
    return model.role == "clip"


def _example(text: str) -> str:
    folder, _, _ = text.rpartition(":")
    return f"{folder or text}:0.5"
