"""The leakage report: two tables for a terminal, and all of it as JSON and CSV in a folder."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from maskmine.mining.storage.files import put_whole
from maskmine.pipelines.evaluate.leakage import WAYS, BenchmarkLeakage, Leakage
from maskmine.pipelines.run_folder.claim import writing
from maskmine.tuning.benchmarks.nouns import KINDS
from maskmine.tuning.console import TextTable
from maskmine.tuning.tables import number_table, percent

FILES = ("leakage.json", "leakage-nouns.csv", "leakage-pictures.csv")
_MAX_NAMED = 5  # unseen classes named in a note on the terminal; the CSV has all of them


def write_leakage(leakage: Leakage, to: Path) -> tuple[str, ...]:
    """Write the files of FILES into a folder; returns their names. Raises InputError when it cannot be written."""
    nouns = (
        (benchmark.name, named.name, "seen" if named.seen else "unseen", noun, kind, pairs)
        for benchmark in leakage.benchmarks
        for named in benchmark.named
        for noun, kind, pairs in named.nouns
    )
    images = (
        (benchmark.name, *astuple(image))
        for benchmark in leakage.benchmarks
        for image in (benchmark.images.shared if benchmark.images else ())
    )
    contents = (
        json.dumps(leakage.as_json(), indent=2, ensure_ascii=False) + "\n",
        _csv(("benchmark", "class", "by COCO-Stuff", "noun", "kind", "pairs"), nouns),
        _csv(("benchmark", "picture", "image id", "way", "distance in bits", "pairs"), images),
    )
    with writing(to):
        to.mkdir(parents=True, exist_ok=True)
        for name, content in zip(FILES, contents, strict=True):
            put_whole(to / name, content.encode())
    return FILES


def render_leakage(leakage: Leakage) -> RenderableType:
    """A line for each benchmark, then notes on what was and what was not compared."""
    blocks: list[RenderableType] = [_noun_table(leakage)]
    if any(benchmark.images for benchmark in leakage.benchmarks):
        blocks += [Text(), _image_table(leakage.benchmarks)]
    return Group(*blocks, Text(), *(Text(note) for note in _notes(leakage)))


def _noun_table(leakage: Leakage) -> TextTable:
    table = number_table("mined nouns", "classes", "named", *KINDS, "unseen", "pairs")
    for benchmark in leakage.benchmarks:
        kinds_of = [{kind for _, kind, _ in named.nouns} for named in benchmark.named]
        by_kind = [sum(kind in kinds for kinds in kinds_of) for kind in KINDS]
        unseen = sum(not named.seen for named in benchmark.named)
        counts = [len(benchmark.classes), len(benchmark.named), *by_kind, unseen]
        share = percent(benchmark.pairs / leakage.pairs if leakage.pairs else None, 0)
        table.add_row(benchmark.name, *(f"{count:,}" for count in counts), f"{benchmark.pairs:,} ({share})")
    return table


def _image_table(benchmarks: Sequence[BenchmarkLeakage]) -> TextTable:
    table = number_table("mined pictures", "pictures", "same file", "look alike", "same name alone", "unreadable")
    for benchmark in benchmarks:
        if images := benchmark.images:
            counts = (images.images, *(images.count(way) for way in WAYS), images.unreadable)
            table.add_row(benchmark.name, *(f"{count:,}" for count in counts))
    return table


def _notes(leakage: Leakage) -> Iterator[str]:
    for benchmark in leakage.benchmarks:
        unseen = sorted((c for c in benchmark.named if not c.seen), key=lambda named: (-named.pairs, named.name))
        if unseen:
            listed = ", ".join(f"{named.name.partition(',')[0]} ({named.pairs:,})" for named in unseen[:_MAX_NAMED])
            more = " …" if len(unseen) > _MAX_NAMED else ""
            yield f"{benchmark.name}, unseen by COCO-Stuff but mined: {listed}{more}"
    if any(benchmark.images for benchmark in leakage.benchmarks):
        yield (
            f"alike are pictures whose perceptual hashes differ in at most {leakage.most_bits} of 64 bits; "
            f"{leakage.hashed:,} pictures of the run could be read"
        )
    for why in sorted({benchmark.why for benchmark in leakage.benchmarks} - {""}):
        names = ", ".join(benchmark.name for benchmark in leakage.benchmarks if benchmark.why == why)
        yield f"{names}: pictures not compared: {why}"
    yield from leakage.unknown


def _csv(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    content = io.StringIO()
    csv.writer(content, lineterminator="\n").writerows([columns, *rows])
    return content.getvalue()
