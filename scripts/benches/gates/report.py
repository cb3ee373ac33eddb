"""What became of the gates: a table, a line for each that fails, and a JSON for a nightly job."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from maskmine.mining.storage.files import put_whole
from maskmine.scripts.benches.gates.alone import as_json
from maskmine.scripts.benches.gates.gates import Checked, Held
from maskmine.tuning.console import TextTable

_COLUMNS = ("bench", "measure", "value", "unit", "floor", "limit", "passes")


def print_held(held: Sequence[Held], *, console: Console) -> None:
    """All gates as a table, the floors that are far below their values, and what fails."""
    table = TextTable(*_COLUMNS, box=None, pad_edge=False)
    low = []
    for of_bench in held:
        for one in of_bench.checked:
            gate, value = one.gate, "–" if one.value is None else f"{one.value:,.4g}"
            passes = "yes" if one.passes else "NO"
            unit = _unit(of_bench, one)
            table.add_row(of_bench.bench, gate.measure, value, unit, f"{gate.floor:g}", gate.limit, passes)
            if one.value is not None and gate.is_low(one.value):
                low.append(f"{of_bench.bench}: {gate.measure} ({value}, floor {gate.floor:g})")
    console.print(table)
    seconds = sum(one.ran.seconds for one in held)
    console.print(f"{len(held)} benches, {seconds / 60:.1f} minutes on {os.cpu_count()} cores")
    if low:
        console.print(f"floors that may be raised, if this holds again: {'; '.join(low)}")
    for line in (line for one in held for line in one.failures()):
        console.print(f"FAILED {line}", soft_wrap=True)


def write_held(path: Path, held: Sequence[Held]) -> None:
    """All that was measured and what it was held to, with the commit and the machine; whole or not at all."""
    content = {
        "passes": all(one.passes for one in held),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "cores": os.cpu_count(),
        "benches": [_as_json(one) for one in held],
    }
    put_whole(path, json.dumps(content, indent=2, ensure_ascii=False).encode() + b"\n")


def _as_json(held: Held) -> dict[str, Any]:
    return {
        "bench": held.bench,
        "passes": held.passes,
        "problem": held.ran.problem or None,
        "seconds": round(held.ran.seconds, 1),
        "load_before": held.ran.load[0],
        "load_after": held.ran.load[1],
        "gates": [
            as_json(
                {
                    "measure": one.gate.measure,
                    "unit": _unit(held, one),
                    "value": one.value,
                    "floor": one.gate.floor,
                    "limit": one.gate.limit,
                    "passes": one.passes,
                }
            )
            for one in held.checked
        ],
        "failures": held.failures(),
        "measures": [as_json(asdict(measure)) for measure in held.ran.measures],
    }


def _unit(held: Held, checked: Checked) -> str:
    names = (one.unit for one in held.ran.measures if one.name.strip() == checked.gate.measure)
    return checked.gate.unit or next(names, "")


def _commit() -> str | None:
    """The commit of this checkout; None where there is none, or no git."""
    try:
        command = ["git", "-C", str(Path(__file__).resolve().parent), "rev-parse", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
