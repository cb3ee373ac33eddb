"""A bench in a process of its own, so that one that raises, crashes or hangs costs itself alone."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from maskmine.mining.storage.files import put_whole
from maskmine.scripts.benches.gates.gates import Ran
from maskmine.scripts.measures import Measure

LONGEST_S = 1800.0


def run_alone(command: Sequence[str], *, longest_s: float = LONGEST_S) -> Ran:
    """Run a command that writes its measures to what follows `--json`, as `python -m …benches.run NAME` does.

    What it measured before it failed counts. When it ends, or after `longest_s`, all that it started is killed, and
    its temporary files go.
    """
    start_s, before = time.monotonic(), os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="maskmine-gates-", ignore_cleanup_errors=True) as scratch:
        said, result = Path(scratch, "said.txt"), Path(scratch, "measures.json")
        with said.open("wb") as file:
            started = subprocess.Popen(
                [*command, "--json", str(result)],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=os.environ | {"TMPDIR": scratch},
                start_new_session=True,
            )
        problem = ""
        try:
            if code := started.wait(longest_s):
                problem = f"{_last_line(said)} ({_ending(code)})"
        except subprocess.TimeoutExpired:
            problem = f"not finished after {longest_s:g} s; its last line: {_last_line(said)}"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(started.pid, signal.SIGKILL)
            started.wait()
        measures = read_measures(result) if result.exists() else []
    return Ran(tuple(measures), time.monotonic() - start_s, (before, os.getloadavg()[0]), problem)


def write_measures(path: Path, measures: Iterable[tuple[str, Measure]]) -> None:
    """Measures with the names of their benches, as a JSON list, whole or not at all."""
    rows = [{"bench": bench, **as_json(asdict(measure))} for bench, measure in measures]
    put_whole(path, json.dumps(rows, indent=2, ensure_ascii=False).encode() + b"\n")


def read_measures(path: Path) -> list[Measure]:
    """What `write_measures` wrote, without the benches' names."""
    rows = json.loads(path.read_bytes())
    for row in rows:
        del row["bench"]
        row["value"] = math.nan if row["value"] is None else row["value"]
    return [Measure(**row) for row in rows]


def as_json(row: dict[str, Any]) -> dict[str, Any]:
    """A row whose numbers JSON has: it knows no NaN and no infinity."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}


def _last_line(said: Path) -> str:
    lines = said.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else "it said nothing"


def _ending(code: int) -> str:
    return f"exit code {code}" if code > 0 else f"killed by signal {-code}"
