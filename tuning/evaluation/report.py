"""What a person sees of an evaluation of CLIPs: a table, and in a folder its figures, regions won, and regions lost."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
from PIL import Image, ImageDraw, ImageFont
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mining.labels import label_names, plain_words
from schemas.errors import InputError
from tuning.evaluation import MASKED, UNMASKED, Example, Findings, Hits

FIGURES_FILE, WON_FILE, LOST_FILE = "evaluation.json", "won.png", "lost.png"
FREQUENCIES = (("never said", 0), ("in 1 image", 1), ("in 2–9 images", 2), ("in 10–99", 10), ("in ≥ 100", 100))
"""Groups of classes with the least number of images whose captions say them."""

_TILE_PX, _GAP_PX, _WORDS_PX, _COLUMNS = 168, 16, 64, 6
_PAGE, _INK, _FAINT, _RIGHT, _WRONG = (250, 249, 246), (40, 42, 48), (125, 128, 136), (0, 114, 178), (213, 94, 0)


def as_json(findings: Findings, *, said: Mapping[str, int] | None = None) -> dict[str, Any]:
    """Plain values for evaluation.json; `said` tells in how many images captions say a noun."""
    groups = group_by_frequency(findings.classes, said) if said is not None else {}
    return {
        "classes": len(findings.classes),
        "left_out": dict(sorted(findings.left_out.items())),
        "masked_regions": {
            name: {
                **_figures(hits),
                "by_frequency": {group: _rounded(hits.accuracy(classes=found)) for group, found in groups.items()},
                "per_class": {
                    class_: {"regions": of, "top1": right}
                    for class_, of, right in zip(findings.classes, hits.of, hits.top1, strict=True)
                    if of
                },
            }
            for name, hits in findings.masked.items()
        },
        "whole_pictures": {
            name: _figures(hits) | {"identical": name in findings.identical} for name, hits in findings.whole.items()
        },
    }


def group_by_frequency(classes: Sequence[str], said: Mapping[str, int]) -> dict[str, list[int]]:
    """The numbers of the classes in each group of `FREQUENCIES`; a class counts as said by any of its names."""
    images: dict[str, int] = {}
    for noun, count in said.items():
        images[plain_words(noun)] = max(count, images.get(plain_words(noun), 0))
    groups: dict[str, list[int]] = {name: [] for name, _ in FREQUENCIES}
    for number, class_ in enumerate(classes):
        count = max((images.get(name, 0) for name in label_names(class_)), default=0)
        groups[next(name for name, least in reversed(FREQUENCIES) if count >= least)].append(number)
    return {name: found for name, found in groups.items() if found}


def render_evaluation(findings: Findings, *, said: Mapping[str, int] | None = None) -> RenderableType:
    """The figures as tables, and in words what was left out of them."""
    blocks: list[RenderableType] = [_masked_table(findings)]
    if said is not None:
        blocks += [Text(), _frequency_table(findings, group_by_frequency(findings.classes, said))]
    if findings.whole:
        blocks += [Text(), _whole_table(findings)]
    for why, count in sorted(findings.left_out.items()):
        if count:
            blocks.append(Text(f"not counted: {count:,} pictures ({why})"))
    return Group(*blocks)


def write_evaluation(findings: Findings, to: Path, *, said: Mapping[str, int] | None = None) -> list[str]:
    """Write the figures and the pictures; returns the names of the files. Raises InputError when that cannot be."""
    try:
        to.mkdir(parents=True, exist_ok=True)
        text = json.dumps(as_json(findings, said=said), indent=2, ensure_ascii=False)
        (to / FIGURES_FILE).write_text(text + "\n", encoding="utf-8")
        files = [FIGURES_FILE]
        for name, examples in ((WON_FILE, findings.won), (LOST_FILE, findings.lost)):
            (to / name).unlink(missing_ok=True)
            if examples:
                draw_examples(examples).save(to / name)
                files.append(name)
    except OSError as error:
        raise InputError(f"--to {to}: cannot be written ({error.strerror}); give another folder") from error
    return files


def draw_examples(examples: Sequence[Example]) -> Image.Image:
    """Regions as CLIP sees them, each with its class, and with what it was taken for before and after tuning."""
    columns = min(_COLUMNS, len(examples))
    rows = -(-len(examples) // columns)
    high_px, wide_px = _TILE_PX + _WORDS_PX + _GAP_PX, _TILE_PX + _GAP_PX
    sheet = Image.new("RGB", (columns * wide_px + _GAP_PX, rows * high_px + _GAP_PX), _PAGE)
    draw = ImageDraw.Draw(sheet)
    for number, example in enumerate(examples):
        x, y = _GAP_PX + number % columns * wide_px, _GAP_PX + number // columns * high_px
        tile = Image.fromarray(example.rgb_SS3).resize((_TILE_PX, _TILE_PX), Image.Resampling.BICUBIC)
        sheet.paste(tile, (x, y))
        for line, (words, colour, size_px) in enumerate(_words(example)):
            draw.text((x, y + _TILE_PX + 5 + 19 * line), _fitted(words, size_px), font=_font(size_px), fill=colour)
    return sheet


def _words(example: Example) -> Iterator[tuple[str, tuple[int, int, int], int]]:
    yield example.class_, _INK, 14
    for when, guess in (("before", example.plain), ("after", example.tuned)):
        yield f"{when}: {guess}", _RIGHT if guess == example.class_ else _WRONG, 12


def _masked_table(findings: Findings) -> Table:
    table = _table("masked regions", "top-1", "top-5", "by class", "regions", "gain")
    before = findings.masked[MASKED].accuracy()
    for name, hits in findings.masked.items():
        after = hits.accuracy()
        tuned = name not in (UNMASKED, MASKED) and before is not None and after is not None
        gain = f"{100 * (after - before):+.1f}" if tuned and after is not None and before is not None else ""
        shares = (after, hits.accuracy(top=5), hits.macro())
        table.add_row(name, *map(_percent, shares), f"{hits.regions:,}", gain)
    return table


def _frequency_table(findings: Findings, groups: Mapping[str, Sequence[int]]) -> Table:
    table = _table("classes by captions", *groups)
    table.add_row("  classes", *(f"{len(numbers):,}" for numbers in groups.values()), style="dim")
    for name, hits in findings.masked.items():
        table.add_row(name, *(_percent(hits.accuracy(classes=numbers)) for numbers in groups.values()))
    return table


def _whole_table(findings: Findings) -> Table:
    table = _table("natural pictures", "top-1", "top-5", "pictures", "change")
    plain, *_ = findings.whole.values()
    for name, hits in findings.whole.items():
        change = ""
        if hits is not plain:
            before, after = plain.accuracy() or 0.0, hits.accuracy() or 0.0
            change = "none, to the bit" if name in findings.identical else f"{100 * (after - before):+.1f}"
        shares = (hits.accuracy(), hits.accuracy(top=5))
        table.add_row(name, *map(_percent, shares), f"{hits.regions:,}", change)
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for number, name in enumerate(columns):
        table.add_column(name, justify="right" if number else "left", no_wrap=bool(number))
    return table


def _figures(hits: Hits) -> dict[str, Any]:
    return {
        "regions": hits.regions,
        "top1": _rounded(hits.accuracy()),
        "top5": _rounded(hits.accuracy(top=5)),
        "macro_top1": _rounded(hits.macro()),
    }


def _rounded(share: float | None) -> float | None:
    return None if share is None else round(share, 6)


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"


def _fitted(text: str, size_px: int) -> str:
    while _font(size_px).getlength(text) > _TILE_PX:
        text = text[:-2].rstrip("…") + "…"
    return text


@cache
def _font(size_px: int) -> ImageFont.FreeTypeFont:
    folder = Path(matplotlib.get_data_path(), "fonts", "ttf")
    return ImageFont.truetype(folder / "DejaVuSans.ttf", size_px)
