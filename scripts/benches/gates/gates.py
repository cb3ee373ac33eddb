"""Measures against the floors of `scripts/data/bench_floors.yaml`, for a nightly job or a person before a release."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import yaml
from pydantic import TypeAdapter, ValidationError, model_validator

from maskmine.mining.storage.bounded.small_files import parse_yaml
from maskmine.schemas.errors import InputError
from maskmine.schemas.settings import Settings
from maskmine.scripts.measures import Measure

FLOORS = Path(__file__).parents[2] / "data" / "bench_floors.yaml"
SLACK = 0.15
"""By how much of itself a ratio may miss its floor: machines differ, and so do two runs on one."""
BY_NAME = ("sources", "levels", "memory", "at-scale", "vocabulary-at-scale")
"""Benches that are held only when they are named: each takes up to as long as all others together."""


class Gate(Settings):
    """What one measure of a bench is held to: exactly one of `at_least`, `at_most` and `equals`."""

    measure: str
    """Name of the measure, as the bench prints it, without spaces around it."""
    unit: str | None = None
    """Its unit, where the bench prints several measures of this name."""
    at_least: float | None = None
    """A ratio that was measured, below which it may fall by SLACK."""
    at_most: float | None = None
    """A ratio that was measured, above which it may rise by SLACK."""
    equals: float | None = None
    """A count, which is right or wrong."""

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if sum(value is not None for value in (self.at_least, self.at_most, self.equals)) != 1:
            raise ValueError(f"`{self.measure}` needs one of at_least, at_most and equals")
        return self

    @property
    def floor(self) -> float:
        """The value that is kept in the repository."""
        return next(value for value in (self.at_least, self.at_most, self.equals) if value is not None)

    @property
    def limit(self) -> str:
        """What the measure is held to, in words."""
        if self.equals is not None:
            return f"= {self.floor:g}"
        return f"≥ {self.floor * (1 - SLACK):.4g}" if self.at_least is not None else f"≤ {self.floor * (1 + SLACK):.4g}"

    def passes(self, value: float) -> bool:
        """Whether a value is within the limit; one that is no number never is."""
        if self.equals is not None:
            return value == self.floor
        if self.at_least is not None:
            return value >= self.floor * (1 - SLACK)
        return value <= self.floor * (1 + SLACK)

    def is_low(self, value: float) -> bool:
        """Whether a value is so much better than the floor that it would still pass where the value is the floor.

        An `at_most` that is ten times the value was never measured: it is a bound, which is kept.
        """
        if self.equals is not None:
            return False
        if self.at_least is not None:
            return value * (1 - SLACK) > self.floor
        return self.floor / 10 < value * (1 + SLACK) < self.floor


@dataclass(frozen=True, slots=True)
class Ran:
    """A bench that was run: what it measured, in how many seconds, beside how many busy processes (the mean of the
    last minute when it began and when it ended), and why it failed, if it did."""

    measures: tuple[Measure, ...]
    seconds: float
    load: tuple[float, float]
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Checked:
    """A gate and the value that its measure had; None, with the `problem`, where there is not one such measure."""

    gate: Gate
    value: float | None
    problem: str = ""

    @property
    def passes(self) -> bool:
        """Whether the measure is there and within its limit."""
        return self.value is not None and self.gate.passes(self.value)


@dataclass(frozen=True, slots=True)
class Held:
    """A bench held to its gates."""

    bench: str
    ran: Ran
    checked: tuple[Checked, ...]

    @property
    def passes(self) -> bool:
        """Whether the bench ended well and all of its gates pass."""
        return not self.ran.problem and all(one.passes for one in self.checked)

    def failures(self) -> list[str]:
        """A line for the bench if it failed, then one for each gate that does not pass."""
        lines = [f"{self.bench}: the bench failed: {self.ran.problem}"] if self.ran.problem else []
        for one in self.checked:
            name = f"{self.bench}: {one.gate.measure}"
            if one.value is None:
                lines.append(f"{name}: {one.problem} (limit {one.gate.limit}, floor {one.gate.floor:g})")
            elif not one.passes:
                lines.append(f"{name}: is {one.value:.4g}, limit {one.gate.limit}, floor {one.gate.floor:g}")
        return lines


def hold(bench: str, ran: Ran, gates: Sequence[Gate]) -> Held:
    """The measures of a bench against its gates."""
    return Held(bench, ran, tuple(_check(gate, ran.measures) for gate in gates))


def _check(gate: Gate, measures: Sequence[Measure]) -> Checked:
    found = [one for one in measures if one.name.strip() == gate.measure and gate.unit in (None, one.unit)]
    if len(found) == 1:
        return Checked(gate, found[0].value)
    units = ", ".join(f"`{one.unit}`" for one in found)
    return Checked(gate, None, f"measured {len(found)} times, in {units}; give its unit" if found else "not measured")


def read_gates(path: Path = FLOORS, *, known: Collection[str]) -> dict[str, list[Gate]]:
    """The gates by the bench whose measures they hold. Raises InputError for a file with faults, unknown benches, and
    benches without gates."""
    try:
        _, tree = parse_yaml(path.read_text(encoding="utf-8"), place=f"bench: {path}")
        gates = TypeAdapter(dict[str, list[Gate]]).validate_python(tree)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"bench: {path}: {' '.join(str(error).split())}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise InputError(f"bench: {path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    if unknown := gates.keys() - set(known):
        raise InputError(f"bench: {path}: no bench is called {', '.join(sorted(unknown))}")
    if without := [name for name, of_bench in gates.items() if not of_bench]:
        raise InputError(f"bench: {path}: no gates for {', '.join(without)}; give one, or leave the bench out")
    return gates


def choose_gates(gates: Mapping[str, list[Gate]], only: Sequence[str]) -> dict[str, list[Gate]]:
    """Those of some benches, or all but BY_NAME. Raises InputError for a bench without floors."""
    if without := [name for name in only if name not in gates]:
        raise InputError(f"bench: no floors for {', '.join(without)} in {FLOORS}; it has {', '.join(gates)}")
    return {name: gates[name] for name in only or [name for name in gates if name not in BY_NAME]}
