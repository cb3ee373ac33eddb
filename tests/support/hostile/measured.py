"""A command of `maskmine` in a process of its own, and what it took: see `measure`."""

from __future__ import annotations

import json
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Measured:
    """How a command ended and what it said; its own growth at most and the largest of its children, in bytes; seconds
    of computing, its children's too.

    A child begins as a copy of its parent, which counts as its own.
    """

    code: int
    said: str
    growth_bytes: int
    child_bytes: int
    seconds: float


def measure(python: Path, *words: object, timeout_s: float) -> Measured:
    """Run a command by a `python` that starts at once (`tests/faults/forking_server.py`). Raises TimeoutExpired.

    `review RUN` draws the pictures of all pairs that its page would show.
    """
    code = f"from {__name__} import main; main()"
    command = [str(python), "-c", code, json.dumps([str(timeout_s), *map(str, words)])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=2 * timeout_s, errors="replace")
    assert done.returncode == 0, done.stderr[-3000:]
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """The measured process: runs the command in the JSON of the last argument and prints what it took."""
    from maskmine.mining.images import child_decoder
    from maskmine.mining.storage.bounded import parquet_child
    from maskmine.pipelines.cli import app, main

    timeout_s, *words = json.loads(sys.argv[-1])
    signal.alarm(int(float(timeout_s)))
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, begin, said = status_bytes("VmRSS"), time.process_time(), StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        app.out.file = app.err.file = said
        code = _review(*words[1:]) if words[0] == "review" else main.run_app(words)
    growth = status_bytes("VmHWM") - before
    seconds = time.process_time() - begin
    child_decoder._end_children()
    parquet_child._end_children()
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    found: dict[str, Any] = {"code": code, "said": said.getvalue(), "growth_bytes": growth}
    found |= {"child_bytes": ended.ru_maxrss * 1024, "seconds": seconds + ended.ru_utime + ended.ru_stime}
    sys.stdout.write(json.dumps(found) + "\n")


def _review(run: str) -> int:
    from maskmine.pipelines.dataset.finished_run import FinishedRun
    from maskmine.pipelines.review.pictures import Drawer
    from maskmine.pipelines.review.queue import choose_items
    from maskmine.pipelines.run_folder.folder import RunFolder

    finished = FinishedRun.open_complete(RunFolder(run))
    drawer = Drawer(finished)
    items: Sequence[Any] = choose_items(finished, order="random", size=300, seed=0)
    sys.stdout.write(f"{sum(bool(drawer.draw(item).missing) for item in items)} of {len(items)} missing\n")
    return 0


def status_bytes(name: str, process: int | str = "self") -> int:
    """A field of what Linux says of a process, such as its memory, `VmRSS`, and the most of it so far, `VmHWM`."""
    match = re.search(rf"{name}:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
    assert match is not None
    return int(match[1]) * 1024
