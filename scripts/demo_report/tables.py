"""Tables of the terminal in other forms: as rows of text for a page, and as Markdown."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text


@dataclass(frozen=True, slots=True)
class PlainTable:
    """Headers and rows of a table as text; `numbers` says which columns are right-aligned."""

    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers: tuple[bool, ...]


def plain_table(table: Table) -> PlainTable:
    """A table of plain texts, line breaks in its headers as spaces."""
    columns = table.columns
    return PlainTable(
        tuple(str(column.header).replace("\n", " ") for column in columns),
        tuple(zip(*(map(str, column.cells) for column in columns), strict=True)),
        tuple(column.justify == "right" for column in columns),
    )


def markdown_of(block: RenderableType) -> str:
    """A table, a text or a group of them as Markdown; other things are left out."""
    if isinstance(block, Group):
        return "\n".join(part for part in map(markdown_of, block.renderables) if part)
    if isinstance(block, Table):
        return _markdown_table(plain_table(block))
    return f"{block}\n" if isinstance(block, Text | str) and str(block) else ""


def _markdown_table(table: PlainTable) -> str:
    rules = ["---:" if number else "---" for number in table.numbers]
    lines = [_line(table.headers), f"|{'|'.join(rules)}|", *map(_line, table.rows)]
    return "\n".join(lines) + "\n"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.strip().replace('|', chr(92) + '|') for cell in cells)} |"
