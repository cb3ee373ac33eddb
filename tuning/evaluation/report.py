"""The report of an evaluation of CLIPs: tables, and a folder with figures, regions won and regions lost."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw
from rich.console import Group, RenderableType
from rich.text import Text

from maskmine.mining.storage.files import put_whole
from maskmine.mining.text.labels import label_names, plain_words
from maskmine.schemas.errors import InputError
from maskmine.tuning.console import TextTable
from maskmine.tuning.evaluation.region_accuracy import MASKED, UNMASKED, Example, RegionResults, TopK
from maskmine.tuning.fonts import dejavu
from maskmine.tuning.tables import number_table, percent, rounded

FIGURES_FILE, WON_FILE, LOST_FILE = "evaluation.json", "won.png", "lost.png"
FREQUENCIES = (("never said", 0), ("in 1 image", 1), ("in 2–9 images", 2), ("in 10–99", 10), ("in ≥ 100", 100))
"""Groups of classes by the number of images whose captions name them, with the least number of each."""

_TILE_PX, _GAP_PX, _TEXT_PX, _COLUMNS = 168, 16, 64, 6  # three lines of text below each region
_PAGE, _INK, _FAINT, _RIGHT, _WRONG = (250, 249, 246), (40, 42, 48), (125, 128, 136), (0, 114, 178), (213, 94, 0)


def results_json(results: RegionResults, *, image_counts: Mapping[str, int] | None = None) -> dict[str, Any]:
    """Plain values for evaluation.json; `image_counts` has the number of images whose captions have a noun."""
    groups = group_by_frequency(results.classes, image_counts) if image_counts is not None else {}
    return {
        "classes": len(results.classes),
        "left_out": dict(sorted(results.left_out.items())),
        "masked_regions": {
            name: {
                **_figures(top_k),
                "by_frequency": {group: rounded(top_k.accuracy(classes=numbers)) for group, numbers in groups.items()},
                "per_class": {
                    class_: {"regions": count, "top1": correct}
                    for class_, count, correct in zip(results.classes, top_k.counts, top_k.top1, strict=True)
                    if count
                },
            }
            for name, top_k in results.masked.items()
        },
        "whole_pictures": {
            name: _figures(top_k) | {"identical": name in results.identical} for name, top_k in results.whole.items()
        },
    }


def group_by_frequency(classes: Sequence[str], image_counts: Mapping[str, int]) -> dict[str, list[int]]:
    """The numbers of the classes in each group of `FREQUENCIES`, by the most frequent of their names."""
    images: dict[str, int] = {}
    for noun, count in image_counts.items():
        images[plain_words(noun)] = max(count, images.get(plain_words(noun), 0))
    groups: dict[str, list[int]] = {name: [] for name, _ in FREQUENCIES}
    for number, class_ in enumerate(classes):
        count = max((images.get(name, 0) for name in label_names(class_)), default=0)
        groups[next(name for name, least in reversed(FREQUENCIES) if count >= least)].append(number)
    return {name: numbers for name, numbers in groups.items() if numbers}


def render_results(results: RegionResults, *, image_counts: Mapping[str, int] | None = None) -> RenderableType:
    """Tables, and a line for each kind of image that was left out."""
    blocks: list[RenderableType] = [_masked_table(results), *_notes(results)]
    if image_counts is not None:
        blocks += [Text(), _frequency_table(results, group_by_frequency(results.classes, image_counts))]
    if results.whole:
        blocks += [Text(), _whole_table(results)]
    for reason, count in sorted(results.left_out.items()):
        if count:
            blocks.append(Text(f"not counted: {count:,} pictures ({reason})"))
    return Group(*blocks)


def write_results(results: RegionResults, to: Path, *, image_counts: Mapping[str, int] | None = None) -> list[str]:
    """Write the figures and the regions won and lost; returns the names of the files. Raises InputError on failure."""
    try:
        to.mkdir(parents=True, exist_ok=True)
        text = json.dumps(results_json(results, image_counts=image_counts), indent=2, ensure_ascii=False)
        put_whole(to / FIGURES_FILE, f"{text}\n".encode())
        files = [FIGURES_FILE]
        for name, examples in ((WON_FILE, results.won), (LOST_FILE, results.lost)):
            (to / name).unlink(missing_ok=True)
            if examples:
                sheet = io.BytesIO()
                draw_examples(examples).save(sheet, "PNG")
                put_whole(to / name, sheet.getvalue())
                files.append(name)
    except OSError as error:
        raise InputError(f"--to {to}: cannot be written ({error.strerror}); give another folder") from error
    return files


def draw_examples(examples: Sequence[Example]) -> Image.Image:
    """Regions as CLIP sees them, each with its class and the first guesses before and after tuning."""
    columns = min(_COLUMNS, len(examples))
    rows = -(-len(examples) // columns)
    high_px, wide_px = _TILE_PX + _TEXT_PX + _GAP_PX, _TILE_PX + _GAP_PX
    sheet = Image.new("RGB", (columns * wide_px + _GAP_PX, rows * high_px + _GAP_PX), _PAGE)
    draw = ImageDraw.Draw(sheet)
    for number, example in enumerate(examples):
        x, y = _GAP_PX + number % columns * wide_px, _GAP_PX + number // columns * high_px
        tile = Image.fromarray(example.rgb_SS3).resize((_TILE_PX, _TILE_PX), Image.Resampling.BICUBIC)
        sheet.paste(tile, (x, y))
        for line, (text, colour, size_px) in enumerate(_lines(example)):
            draw.text((x, y + _TILE_PX + 5 + 19 * line), _fitted(text, size_px), font=dejavu(size_px), fill=colour)
    return sheet


def _lines(example: Example) -> Iterator[tuple[str, tuple[int, int, int], int]]:
    yield example.class_, _INK, 14
    for when, guess in (("before", example.plain), ("after", example.tuned)):
        yield f"{when}: {guess}", _RIGHT if guess == example.class_ else _WRONG, 12


def _masked_table(results: RegionResults) -> TextTable:
    table = number_table("masked regions", "top-1", "top-5", "by class", "regions", "gain")
    before = results.masked[MASKED].accuracy()
    for name, top_k in results.masked.items():
        after = top_k.accuracy()
        tuned = name not in (UNMASKED, MASKED) and before is not None and after is not None
        gain = f"{100 * (after - before):+.1f}" if tuned and after is not None and before is not None else ""
        shares = (after, top_k.accuracy(top=5), top_k.macro())
        table.add_row(name, *map(percent, shares), f"{top_k.regions:,}", gain)
    return table


def _notes(results: RegionResults) -> Iterator[Text]:
    """What the figures of the table leave out."""
    top_k = results.masked[MASKED]
    if top_k.classes < len(results.classes):
        without = len(results.classes) - top_k.classes
        yield Text(f"by class: the mean of {top_k.classes:,} classes; {without:,} have no region here")
    if len(results.classes) <= 5:
        yield Text(f"top-5: no figure, as five of {len(results.classes)} classes are always right")
    if top_k.regions == 1:
        yield Text("one region only: its figures are 0 % or 100 % by chance")


def _frequency_table(results: RegionResults, groups: Mapping[str, Sequence[int]]) -> TextTable:
    table = number_table("classes by captions", *groups)
    table.add_row("  classes", *(f"{len(numbers):,}" for numbers in groups.values()), style="dim")
    for name, top_k in results.masked.items():
        table.add_row(name, *(percent(top_k.accuracy(classes=numbers)) for numbers in groups.values()))
    return table


def _whole_table(results: RegionResults) -> TextTable:
    table = number_table("natural pictures", "top-1", "top-5", "pictures", "change")
    plain, *_ = results.whole.values()
    for name, top_k in results.whole.items():
        change = ""
        if top_k is not plain:
            before, after = plain.accuracy() or 0.0, top_k.accuracy() or 0.0
            change = "none, to the bit" if name in results.identical else f"{100 * (after - before):+.1f}"
        shares = (top_k.accuracy(), top_k.accuracy(top=5))
        table.add_row(name, *map(percent, shares), f"{top_k.regions:,}", change)
    return table


def _figures(top_k: TopK) -> dict[str, Any]:
    return {
        "regions": top_k.regions,
        "top1": rounded(top_k.accuracy()),
        "top5": rounded(top_k.accuracy(top=5)),
        "macro_top1": rounded(top_k.macro()),
        "macro_classes": top_k.classes,
    }


def _fitted(text: str, size_px: int) -> str:
    while dejavu(size_px).getlength(text) > _TILE_PX:
        text = text[:-2].rstrip("…") + "…"
    return text
