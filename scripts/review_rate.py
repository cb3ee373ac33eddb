"""How fast pairs can be judged, and what a killed server loses: a browser's requests, without the person."""

from __future__ import annotations

import http.client
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from maskmine.mining.evaluation.verdicts import read_verdicts
from maskmine.pipelines.engines.engine import RunObserver
from maskmine.pipelines.engines.local import LocalEngine
from maskmine.pipelines.mine import mine
from maskmine.pipelines.settings.mining import load_mining
from maskmine.schemas.rows import VERDICTS
from maskmine.scripts.demo_world.on_disk import find_world
from maskmine.scripts.measures import Measure

_CONFIG = Path(__file__).resolve().parents[1] / "configs" / "demo-models.yaml"
_SCENES, _PAIRS, _GOAL = 150, 300, 3.0


def bench_review(run: Path | None = None, *, pairs: int = _PAIRS) -> list[Measure]:
    """Judge pairs of a finished run as a browser would, then kill the server and count what is on the disk.

    Each pair is its page, both pictures and the form; the answer to the form is the next page. Without a run, one of
    the demo world is mined first.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = run or _mine_demo(Path(scratch))
        seconds = []
        before = len(read_verdicts(str(folder / "verdicts")).rows) if (folder / "verdicts").exists() else 0
        start = time.monotonic()
        with _serving(folder, pairs=pairs) as (server, connection):
            opened_s = time.monotonic() - start
            page = _ask(connection, "/")
            for number in range(pairs):
                begun = time.monotonic()
                token = re.findall(r'name="pair" value="(\w+)"', page)[0]
                for which in ("photo", "crop"):
                    _ask(connection, f"/pairs/{token}/{which}.jpg")
                _ask(connection, "/verdict", f"pair={token}&verdict={VERDICTS[number % len(VERDICTS)]}")
                seconds.append(time.monotonic() - begun)
                if number == pairs - 1:
                    server.send_signal(signal.SIGKILL)
                else:
                    page = _ask(connection, "/")
                    seconds[-1] = time.monotonic() - begun
        stored = len(read_verdicts(str(folder / "verdicts")).rows) - before
    rate = pairs / sum(seconds)
    return [
        Measure("start of the server, to its first page", opened_s, "s"),
        Measure("verdicts", pairs, "verdicts"),
        Measure("verdicts a second", rate, "1/s", f"≥ {_GOAL:g}", rate >= _GOAL),
        Measure("a verdict, median", 1000 * statistics.median(seconds), "ms"),
        Measure("a verdict, slowest", 1000 * max(seconds), "ms"),
        Measure("lost when the server is killed", pairs - stored, "verdicts", "0", stored == pairs),
    ]


@contextmanager
def _serving(run: Path, *, pairs: int) -> Iterator[tuple[subprocess.Popen[str], http.client.HTTPConnection]]:
    """The command in a process of its own, and a connection to it."""
    command = [sys.executable, "-m", "maskmine.pipelines.cli.main", "review", str(run), "--reviewer", "bench"]
    with subprocess.Popen([*command, "--size", str(pairs), "--port", "0"], stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        lines = []
        for line in server.stderr:
            lines.append(line)
            if match := re.match(r"http://(\S+):(\d+)", line):
                break
        else:
            raise RuntimeError("".join(lines))
        connection = http.client.HTTPConnection(match[1], int(match[2]))
        try:
            yield server, connection
        finally:
            connection.close()
            server.kill()


def _ask(connection: http.client.HTTPConnection, path: str, form: str | None = None) -> str:
    origin = f"http://{connection.host}:{connection.port}"  # as every browser says with a form
    headers = {} if form is None else {"content-type": "application/x-www-form-urlencoded", "origin": origin}
    connection.request("GET" if form is None else "POST", path, form, headers)
    answer = connection.getresponse()
    content = answer.read()
    if answer.status not in (200, 303):
        raise RuntimeError(f"{path}: {answer.status}")
    return content.decode(errors="replace")


def _mine_demo(scratch: Path) -> Path:
    world = find_world(scratch / "world", scenes=_SCENES, seed=7)
    overrides = [f"captions.annotations={world / 'captions.json'}", f"captions.images={world / 'images'}"]
    settings = load_mining(str(_CONFIG), overrides=[*overrides, "max_rejected=1.0", f"out={scratch / 'run'}"])
    mine(settings, engine=LocalEngine(), observer=RunObserver())
    return Path(settings.out)
