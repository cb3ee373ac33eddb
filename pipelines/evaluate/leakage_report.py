"""What a person sees of a leakage report: two tables, and in a folder all of it as JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pipelines.leakage import BenchmarkLeakage, Leakage
from schemas.errors import InputError
from tuning.benchmark_nouns import KINDS

FILES = ("leakage.json", "leakage-nouns.csv", "leakage-pictures.csv")
_NAMED = 5


def write_leakage(leakage: Leakage, to: Path) -> tuple[str, ...]:
    """Write the files of FILES into a folder; returns their names. Raises InputError when it cannot be written."""
    nouns = (
        (one.name, named.name, "seen" if named.seen else "unseen", noun, kind, pairs)
        for one in leakage.benchmarks
        for named in one.named
        for noun, kind, pairs in named.nouns
    )
    pictures = (
        (one.name, found.picture, found.image_id, found.way, found.distance, found.pairs)
        for one in leakage.benchmarks
        for found in (one.pictures.shared if one.pictures else ())
    )
    contents = (
        json.dumps(leakage.as_json(), indent=2, ensure_ascii=False) + "\n",
        _csv(("benchmark", "class", "by COCO-Stuff", "noun", "kind", "pairs"), nouns),
        _csv(("benchmark", "picture", "image id", "way", "distance in bits", "pairs"), pictures),
    )
    try:
        to.mkdir(parents=True, exist_ok=True)
        for name, content in zip(FILES, contents, strict=True):
            (to / name).write_text(content, encoding="utf-8")
    except OSError as error:
        raise InputError(f"--to {to}: cannot be written ({error.strerror}); give another folder") from error
    return FILES


def render_leakage(leakage: Leakage) -> RenderableType:
    """A line for each benchmark, and in words what was and what was not compared."""
    blocks: list[RenderableType] = [_nouns(leakage)]
    compared = [one for one in leakage.benchmarks if one.pictures]
    if compared:
        blocks += [Text(), _pictures(compared)]
    return Group(*blocks, Text(), *(Text(note) for note in _notes(leakage)))


def _nouns(leakage: Leakage) -> Table:
    table = _table("mined nouns", "classes", "named", *KINDS, "unseen", "pairs")
    for one in leakage.benchmarks:
        kinds = [sum(any(way == kind for _, way, _ in named.nouns) for named in one.named) for kind in KINDS]
        unseen = sum(not named.seen for named in one.named)
        shares = f"{one.pairs / leakage.pairs:.0%}" if leakage.pairs else "–"
        counts = [len(one.classes), len(one.named), *kinds, unseen]
        table.add_row(one.name, *(f"{count:,}" for count in counts), f"{one.pairs:,} ({shares})")
    return table


def _pictures(benchmarks: Sequence[BenchmarkLeakage]) -> Table:
    table = _table("mined pictures", "pictures", "same file", "look alike", "same name alone", "unreadable")
    for one in benchmarks:
        assert one.pictures
        found = one.pictures
        counts = (found.pictures, found.count("file"), found.count("look"), found.count("name"), found.unreadable)
        table.add_row(one.name, *(f"{count:,}" for count in counts))
    return table


def _notes(leakage: Leakage) -> Iterator[str]:
    for one in leakage.benchmarks:
        unseen = sorted((named for named in one.named if not named.seen), key=lambda named: (-named.pairs, named.name))
        if unseen:
            said = ", ".join(f"{named.name.partition(',')[0]} ({named.pairs:,})" for named in unseen[:_NAMED])
            yield f"{one.name}, unseen by COCO-Stuff but mined: {said}{' …' if len(unseen) > _NAMED else ''}"
    if any(one.pictures for one in leakage.benchmarks):
        yield (
            f"alike are pictures whose perceptual hashes differ in at most {leakage.most_bits} of 64 bits; "
            f"{leakage.looks:,} pictures of the run could be read"
        )
    for why in sorted({one.why for one in leakage.benchmarks if one.why}):
        names = ", ".join(one.name for one in leakage.benchmarks if one.why == why)
        yield f"{names}: pictures not compared: {why}"
    yield from leakage.unknown


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for number, name in enumerate(columns):
        table.add_column(name, justify="right" if number else "left", no_wrap=True)
    return table


def _csv(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    content = io.StringIO()
    writer = csv.writer(content, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return content.getvalue()
