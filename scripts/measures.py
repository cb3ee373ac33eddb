"""One measured figure and the goal that it is held to; every benchmark returns a list of them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Measure:
    """`reached` is None for a figure without a goal (`goal` is then empty)."""

    name: str
    value: float
    unit: str
    goal: str
    reached: bool | None
