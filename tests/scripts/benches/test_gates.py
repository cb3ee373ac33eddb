"""Floors of measures: what passes, what does not, and that each names a measure of a bench."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from maskmine.scripts.benches.gates.gates import Gate, check_gates, read_gates
from maskmine.scripts.measures import Measure


@pytest.mark.parametrize(
    ("gate", "value", "passes"),
    [
        (Gate(measure="speed", at_least=2.0), 1.71, True),
        (Gate(measure="speed", at_least=2.0), 1.69, False),
        (Gate(measure="memory", at_most=1.0), 1.14, True),
        (Gate(measure="memory", at_most=1.0), 1.16, False),
        (Gate(measure="same bytes", equals=1), 1.0, True),
        (Gate(measure="same bytes", equals=1), 0.0, False),
        (Gate(measure="speed", at_least=2.0), float("nan"), False),
        (Gate(measure="speed", at_most=2.0), float("nan"), False),
    ],
)
def test_a_ratio_may_miss_its_floor_by_a_little_and_a_count_by_nothing(gate: Gate, value: float, passes: bool) -> None:
    (checked,) = check_gates({"bench": lambda: [Measure(gate.measure, value, "×")]}, {"bench": [gate]})
    assert checked.passes is passes


def test_a_measure_that_a_bench_does_not_print_any_more_fails() -> None:
    (checked,) = check_gates({"bench": list}, {"bench": [Gate(measure="speed", at_least=2.0)]})
    assert not checked.passes
    assert checked.value is None


@pytest.mark.parametrize("limits", [{}, {"at_least": 1.0, "at_most": 2.0}])
def test_a_gate_has_one_limit(limits: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match="needs one of at_least, at_most and equals"):
        Gate.model_validate({"measure": "speed", **limits})


def test_the_kept_floors_can_be_read() -> None:
    assert all(read_gates().values())
