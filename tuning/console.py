"""The one way to the terminal: text is shown as it is.

Rich reads `[…]` in a string as markup and `:name:` as an emoji, so a file `photo[final].jpg` loses a part of its name
and `[/x]` ends in an error. Most of what is printed comes from outside, so neither is on anywhere; what is to have a
style is a `rich.text.Text`.
"""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.status import Status
from rich.table import Table
from rich.text import Text


def plain_console(**options: Any) -> Console:
    """A console of Rich without markup and emoji codes."""
    return Console(**{**options, "markup": False, "emoji": False})


def plain_status(line: str, *, console: Console) -> Status:
    """A spinner with a line; give `Text` to its `update`."""
    return Status(Text(line), console=console)


def plain_progress(*, console: Console, **options: Any) -> Progress:
    """A bar with a name, a count, what is left, and the task's field `state` where it has one."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[state]}", markup=False),
        TimeRemainingColumn(compact=True),
        console=console,
        **options,
    )


class TextTable(Table):
    """A table whose strings are text, on any console."""

    def __init__(self, *headers: Any, title: Any = None, caption: Any = None, **options: Any) -> None:
        super().__init__(title=_text(title), caption=_text(caption), **options)
        for header in headers:
            self.add_column(header)

    @classmethod
    def grid(cls, *headers: Any, **options: Any) -> TextTable:
        """As `Table.grid`."""
        table = super().grid(*headers, **options)
        assert isinstance(table, TextTable)
        return table

    def add_column(self, header: Any = "", footer: Any = "", **options: Any) -> None:
        """As `Table.add_column`."""
        super().add_column(_text(header), _text(footer), **options)

    def add_row(self, *renderables: Any, **options: Any) -> None:
        """As `Table.add_row`."""
        super().add_row(*map(_text, renderables), **options)


def _text(cell: Any) -> Any:
    return Text(cell) if isinstance(cell, str) else cell


def rate(per_s: float) -> str:
    """A rate with at least two figures: 1,907; 31; 3.2; 0.15."""
    return f"{per_s:,.0f}" if per_s >= 10 or not per_s else f"{per_s:.2g}"
