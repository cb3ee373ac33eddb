"""Floors of measures: what passes, what does not, and that a bench which fails costs itself alone."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from pydantic import ValidationError
from rich.console import Console

from maskmine.schemas.errors import InputError
from maskmine.scripts.benches import run
from maskmine.scripts.benches.gates.alone import read_measures, run_alone, write_measures
from maskmine.scripts.benches.gates.gates import BY_NAME, Gate, Held, Ran, choose_gates, hold, read_gates
from maskmine.scripts.benches.gates.report import print_held, write_held
from maskmine.scripts.measures import Measure
from maskmine.tuning.console import plain_console

SPEED = Gate(measure="speed", at_least=2.0)


def ran(*measures: Measure, problem: str = "") -> Ran:
    return Ran(measures, 1.0, (0.0, 0.0), problem)


@pytest.mark.parametrize(
    ("gate", "value", "passes"),
    [
        (SPEED, 1.71, True),
        (SPEED, 1.69, False),
        (Gate(measure="memory", at_most=1.0), 1.14, True),
        (Gate(measure="memory", at_most=1.0), 1.16, False),
        (Gate(measure="lost", at_most=0.0), 0.0, True),
        (Gate(measure="same bytes", equals=1), 1.0, True),
        (Gate(measure="same bytes", equals=1), 0.0, False),
        (SPEED, float("nan"), False),
        (Gate(measure="memory", at_most=2.0), float("nan"), False),
    ],
)
def test_a_ratio_may_miss_its_floor_by_a_little_and_a_count_by_nothing(gate: Gate, value: float, passes: bool) -> None:
    held = hold("bench", ran(Measure(gate.measure, value, "×")), [gate])
    assert held.passes is passes


def test_a_missed_gate_says_measure_value_limit_and_floor() -> None:
    held = hold(
        "shards", ran(Measure("speed", 1.25, "×"), Measure("lost", 3, "")), [SPEED, Gate(measure="lost", equals=0)]
    )
    assert held.failures() == ["shards: speed: is 1.25, limit ≥ 1.7, floor 2", "shards: lost: is 3, limit = 0, floor 0"]


def test_a_measure_that_a_bench_does_not_print_any_more_fails() -> None:
    held = hold("bench", ran(Measure("other", 9, "×")), [SPEED])
    assert held.failures() == ["bench: speed: not measured (limit ≥ 1.7, floor 2)"]
    assert not held.passes


def test_a_measure_of_which_there_are_two_needs_its_unit() -> None:
    both = ran(Measure("speed", 9, "s"), Measure("speed", 2, "×"))
    (line,) = hold("bench", both, [SPEED]).failures()
    assert "measured 2 times, in `s`, `×`; give its unit" in line
    assert hold("bench", both, [Gate(measure="speed", unit="×", at_least=2)]).checked[0].value == 2


def test_a_measure_that_is_printed_below_another_has_its_name_without_the_spaces() -> None:
    assert hold("bench", ran(Measure("  speed", 2.0, "×")), [SPEED]).passes


def test_a_bench_that_failed_after_its_measures_fails() -> None:
    held = hold("bench", ran(Measure("speed", 9, "×"), problem="it broke (exit code 1)"), [SPEED])
    assert not held.passes
    assert held.failures() == ["bench: the bench failed: it broke (exit code 1)"]


@pytest.mark.parametrize("limits", [{}, {"at_least": 1.0, "at_most": 2.0}])
def test_a_gate_has_one_limit(limits: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match="needs one of at_least, at_most and equals"):
        Gate.model_validate({"measure": "speed", **limits})


def test_a_floor_far_below_its_value_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    gates = [SPEED, Gate(measure="memory", at_most=10.0), Gate(measure="near", at_least=2.0)]
    gates.append(Gate(measure="bound", at_most=0.001))
    measures = ran(*(Measure(*of) for of in (("speed", 2.4, "×"), ("memory", 8.0, "MB"), ("near", 2.3, "×"))))
    measures = replace(measures, measures=(*measures.measures, Measure("bound", 4e-6, "")))
    print_held([hold("bench", measures, gates)], console=plain_console(width=200))
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("floors that may be raised"))
    assert line.endswith("bench: speed (2.4, floor 2); bench: memory (8, floor 10)")


def test_the_kept_floors_are_of_benches_that_exist_and_are_run_by_all_of_their_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr(run, "run_alone", lambda command: asked.append(command) or ran())
    with pytest.raises(typer.Exit):  # as nothing was measured
        run.main(["gates"], planning_images=1)
    names = [command[3] for command in asked]
    gates = read_gates(known=[*names, *BY_NAME])
    assert [name for name in gates if name not in BY_NAME] == names
    assert all(gates.values())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("shard: [{measure: speed, at_least: 1}]", "no bench is called shard"),
        ("shards: [{measure: speed}]", r"shards\.0: .*`speed` needs one of at_least, at_most and equals"),
        ("shards: [{measure: speed, at_leest: 1}]", r"shards\.0\.at_leest: "),
        ("shards: [", "floors.yaml: while parsing"),
        ("shards: [{measure: speed, at_least: .nan}]", r"shards\.0\.at_least: .*finite"),
        (
            "shards: [{measure: speed, at_least: 3}]\nshards: [{measure: bytes, equals: 1}]",
            "floors.yaml, line 2: `shards` is set in line 1 too; remove one",
        ),
        ("shards:\n  - {measure: speed, at_least: 3, at_least: 1}", "line 2: `at_least` is set in line 2 too"),
        ("shards: []", "no gates for shards"),
    ],
)
def test_a_fault_in_the_floors_is_one_line(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "floors.yaml").write_text(text)
    with pytest.raises(InputError, match=says) as raised:
        read_gates(tmp_path / "floors.yaml", known=["shards"])
    assert "\n" not in str(raised.value)


def test_only_benches_with_floors_can_be_held() -> None:
    gates = {"shards": [SPEED], "regions": [SPEED]}
    assert choose_gates(gates, []) == gates
    assert list(choose_gates(gates, ["regions"])) == ["regions"]
    slow = {**gates, **{name: [SPEED] for name in BY_NAME}}
    assert choose_gates(slow, []) == gates
    assert list(choose_gates(slow, ["memory", "shards"])) == ["memory", "shards"]
    with pytest.raises(InputError, match=r"no floors for shrads in .*; it has shards, regions"):
        choose_gates(gates, ["shrads"])


def stand_in(folder: Path, program: str) -> list[str]:
    """A command that writes the measure `speed` to its last argument, and then does something."""
    measure = """import os, sys, time
from pathlib import Path
from maskmine.scripts.benches.gates.alone import write_measures
from maskmine.scripts.measures import Measure
write_measures(Path(sys.argv[-1]), [("bench", Measure("speed", 2.0, "×"))])
"""
    (folder / "bench.py").write_text(measure + program)
    return [sys.executable, str(folder / "bench.py")]


@pytest.mark.parametrize(
    ("program", "problem"),
    [
        ("", ""),
        ("raise ValueError('one\\nmore than one')", "more than one (exit code 1)"),
        ("sys.exit('bench: no photographs')", "bench: no photographs (exit code 1)"),
        ("os.kill(os.getpid(), 9)", "it said nothing (killed by signal 9)"),
    ],
)
def test_what_a_bench_measured_before_it_ended_counts(program: str, problem: str, tmp_path: Path) -> None:
    found = run_alone(stand_in(tmp_path, program))
    assert (found.measures, found.problem) == ((Measure("speed", 2.0, "×"),), problem)


def test_a_bench_that_hangs_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    child = (
        f"import time\nwhile True:\n open({str(tmp_path / 'alive')!r}, 'w').write(str(time.time()))\n time.sleep(.01)"
    )
    program = f"import subprocess\nsubprocess.Popen([sys.executable, '-c', {child!r}])\n"
    wait = f"while not os.path.exists({str(tmp_path / 'alive')!r}): time.sleep(.01)\nprint('waiting', flush=True)\n"
    found = run_alone(stand_in(tmp_path, program + wait + "time.sleep(600)"), longest_s=8)
    assert found.problem == "not finished after 8 s; its last line: waiting"
    time.sleep(0.1)
    last = (tmp_path / "alive").read_text()
    time.sleep(0.3)
    assert (tmp_path / "alive").read_text() == last


def test_one_that_fails_does_not_lose_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {"regions": ran(problem="it broke (exit code 1)"), "shards": ran(Measure("speed", 2.0, "×"))}
    floors = {name: [SPEED] for name in found}
    monkeypatch.setattr(run, "read_gates", lambda known: floors)
    monkeypatch.setattr(run, "run_alone", lambda command: found[command[3]])
    monkeypatch.setattr(run, "CONSOLE", Console(width=200, highlight=False))
    with pytest.raises(typer.Exit) as raised:
        run.main(["gates"], json=tmp_path / "gates.json", planning_images=1)
    assert raised.value.exit_code == 1
    printed = capsys.readouterr().out
    assert re.search(r"shards +speed +2 +× +2 +≥ 1.7 +yes", printed)
    assert "FAILED regions: the bench failed: it broke (exit code 1)\n" in printed
    told = json.loads((tmp_path / "gates.json").read_text())
    assert not told["passes"]
    assert [(one["bench"], one["passes"]) for one in told["benches"]] == [("regions", False), ("shards", True)]
    run.main(["gates", "shards"], json=tmp_path / "gates.json", planning_images=1)
    assert json.loads((tmp_path / "gates.json").read_text())["passes"]


def test_the_result_of_gates_is_json_that_others_read(tmp_path: Path) -> None:
    def held(value: float) -> Held:
        return hold("bench", ran(Measure("speed", value, "×")), [SPEED])

    write_held(tmp_path / "gates.json", [held(2.0), held(math.nan)])
    told = json.loads((tmp_path / "gates.json").read_text(), parse_constant=pytest.fail)
    (first,), (second,) = (one["gates"] for one in told["benches"])
    assert first == {"measure": "speed", "unit": "×", "value": 2.0, "floor": 2.0, "limit": "≥ 1.7", "passes": True}
    assert (second["value"], second["passes"]) == (None, False)


def test_measures_survive_their_file(tmp_path: Path) -> None:
    measures = [Measure("speed", 2.0, "×", "≥ 1", True), Measure("share", math.nan, "%")]
    write_measures(tmp_path / "measures.json", [("bench", one) for one in measures])
    first, second = read_measures(tmp_path / "measures.json")
    assert first == measures[0]
    assert math.isnan(second.value)


def test_a_file_in_a_folder_that_is_not_there_is_refused_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--json .*: there is no folder"):
        run.main(["shards"], json=tmp_path / "none" / "measures.json")
    with pytest.raises(InputError, match=r"--json .*: no file can be written there"):
        run.main(["shards"], json=tmp_path)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores of a process are Linux'")
@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["side-by-side"], "may use 1 core, and workers are measured on 2; run it where it has more"),
        (["no-such"], "bench: unknown no-such"),
    ],
)
def test_a_bench_that_cannot_be_run_is_one_line_and_exit_code_2(arguments: list[str], line: str) -> None:
    core = min(os.sched_getaffinity(0))
    command = ["taskset", "-c", str(core), sys.executable, "-m", "maskmine.scripts.benches.run", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 2
    assert [said for said in ended.stderr.splitlines() if line in said] == ended.stderr.splitlines()
