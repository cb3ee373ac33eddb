"""Floors of measures: what passes, what does not, and that each names a measure of a bench."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from maskmine.schemas.errors import InputError
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


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("regions:\n  - {measure: speed, at_leas: 2}\n", r"regions\.0.*at_leas"),
        ("regions:\n  - {measure: speed}\n", r"regions\.0: `speed` needs one of at_least, at_most and equals"),
        ("regions: [", "cannot be read"),
        ("- regions\n", "dictionary"),
    ],
)
def test_a_typo_in_the_floors_is_one_line(tmp_path: Path, text: str, line: str) -> None:
    floors = tmp_path / "floors.yaml"
    floors.write_text(text)
    with pytest.raises(InputError, match=f"^{floors}: .*{line}") as caught:
        read_gates(floors)
    assert "\n" not in str(caught.value)


def test_floors_of_a_bench_that_is_none_are_refused_before_any_runs() -> None:
    ran: list[str] = []
    gates = {"speed": [Gate(measure="a", at_least=1)], "spede": [Gate(measure="a", at_least=1)]}
    with pytest.raises(InputError, match=r"^bench: floors of spede, which is no bench; known: speed$"):
        list(check_gates({"speed": lambda: ran.append("speed") or []}, gates))
    assert ran == []


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores of a process are Linux'")
@pytest.mark.parametrize(
    ("arguments", "line"),
    [(["side-by-side"], "may use 1 core, and workers are measured on 2"), (["no-such"], "bench: unknown no-such")],
)
def test_a_bench_that_cannot_be_run_is_one_line_and_exit_code_2(arguments: list[str], line: str) -> None:
    core = min(os.sched_getaffinity(0))
    command = ["taskset", "-c", str(core), sys.executable, "-m", "maskmine.scripts.benches.run", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 2
    assert [said for said in ended.stderr.splitlines() if line in said] == ended.stderr.splitlines()
