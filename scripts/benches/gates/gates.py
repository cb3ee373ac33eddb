"""Measures against the floors of `scripts/data/bench_floors.yaml`, for a nightly job or a person before a release."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import yaml
from pydantic import TypeAdapter, ValidationError, model_validator

from maskmine.schemas.errors import InputError
from maskmine.schemas.settings import Settings
from maskmine.scripts.measures import Measure

FLOORS = Path(__file__).parents[2] / "data" / "bench_floors.yaml"
SLACK = 0.15
"""By how much of itself a ratio may miss its floor: machines differ, and so do two runs on one."""


class Gate(Settings):
    """What one measure of a bench is held to: exactly one of the three."""

    measure: str
    """Name of the measure, as the bench prints it."""
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
    def limit(self) -> str:
        """What the measure is held to, in words."""
        if self.equals is not None:
            return f"= {self.equals:g}"
        if self.at_least is not None:
            return f"≥ {self.at_least * (1 - SLACK):.4g}"
        return f"≤ {(self.at_most or 0) * (1 + SLACK):.4g}"

    def passes(self, value: float) -> bool:
        """Whether a value is within the limit; one that is no number never is."""
        if self.equals is not None:
            return value == self.equals
        if self.at_least is not None:
            return value >= self.at_least * (1 - SLACK)
        return value <= (self.at_most or 0) * (1 + SLACK)


@dataclass(frozen=True, slots=True)
class Checked:
    """A gate and the value that its measure had; None when the bench did not print it."""

    bench: str
    gate: Gate
    value: float | None

    @property
    def passes(self) -> bool:
        """Whether the measure is there and within its limit."""
        return self.value is not None and self.gate.passes(self.value)


def read_gates(path: Path = FLOORS) -> dict[str, list[Gate]]:
    """The gates by the bench whose measures they hold. Raises InputError for a file that cannot be read as such."""
    try:
        gates = TypeAdapter(dict[str, list[Gate]]).validate_python(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path}: cannot be read ({' '.join(str(error).split())})") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise InputError(f"{path}: {place}: {first['msg'].removeprefix('Value error, ')}") from error
    return gates


def check_gates(
    benches: Mapping[str, Callable[[], Iterable[Measure]]], gates: Mapping[str, list[Gate]]
) -> Iterator[Checked]:
    """Run each bench that has gates once, and hold its measures to them.

    Raises InputError, before any of them runs, where a floor is of a bench that does not exist.
    """
    if unknown := sorted(gates.keys() - benches.keys()):
        raise InputError(f"bench: floors of {', '.join(unknown)}, which is no bench; known: {', '.join(benches)}")
    for name, of_bench in gates.items():
        values = {measure.name: measure.value for measure in benches[name]()}
        for gate in of_bench:
            yield Checked(name, gate, values.get(gate.measure))
