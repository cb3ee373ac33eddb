"""Labels of axes that say what their ticks are: a label never rounds its tick to another number."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axis import Axis

_DIGITS = 10  # of a tick: what binary fractions add is behind them


def percent_ticks(axis: Axis) -> None:
    """Shares (0 to 1) as percentages, with as many decimals as each tick has."""
    axis.set_major_formatter(lambda share, _: f"{_plain(100 * share)}%")


def log_ticks(axis: Axis, *, shares: bool = False) -> None:
    """A logarithmic axis in plain numbers: 4 and 10,000, not 4 × 10⁰ and 10⁴; `shares` (0 to 1) as percentages.

    Ticks between powers of ten have a label where the axis has less than a few powers, as matplotlib chooses.
    """
    from matplotlib.ticker import LogFormatterSciNotation

    class PlainLog(LogFormatterSciNotation):
        def __call__(self, value: float, pos: int | None = None) -> str:
            if not super().__call__(value, pos):
                return ""
            return f"{_plain(100 * value)}%" if shares else _plain(value)

    axis.set_major_formatter(PlainLog(labelOnlyBase=True))
    axis.set_minor_formatter(PlainLog())


def _plain(value: float) -> str:
    number = f"{value:,.{_DIGITS}f}".rstrip("0").rstrip(".")
    return "0" if number == "-0" else number
