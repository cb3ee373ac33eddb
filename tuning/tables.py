"""Numbers as people and programs read them: tables for a terminal, percentages, rounded shares."""

from __future__ import annotations

from maskmine.tuning.console import TextTable

_DIGITS = 6  # of a share in JSON: more than its sample supports, few enough to compare by eye


def number_table(*columns: str) -> TextTable:
    """A table without lines, its first column aligned left and the others, which hold numbers, right."""
    table = TextTable(box=None, pad_edge=False)
    for number, name in enumerate(columns):
        table.add_column(name, justify="right" if number else "left", no_wrap=bool(number))
    return table


def percent(share: float | None, digits: int = 1) -> str:
    """A share (0 to 1) as a percentage; a dash where there is none."""
    return "–" if share is None else f"{share:.{digits}%}"


def rounded(share: float | None) -> float | None:
    """A share as it stands in JSON."""
    return None if share is None else round(share, _DIGITS)
