"""A line when nothing has moved for a while: a run that waits for a dead disk looks like one that works."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from maskmine.pipelines.steps.status import ranges
from maskmine.pipelines.watch.progress import RunProgress

_LONGEST_WAIT_S = 3600.0  # threads cannot wait indefinitely
# What to look at when a run stalls, by engine.
_LOOK_AT = {
    "local": "see whether this process computes or waits (top, nvidia-smi), and whether disk and network answer",
    "ray": "see `ray status` and `ray list actors`, and on the workers' machines memory, GPUs and the shared folder",
    "beam": "see the runner's own page or log, and on the workers' machines memory, GPUs and the shared folder",
}


class Watchdog:
    """A thread that reads the progress and does nothing else; `say` prints the line.

    The line comes when nothing has moved for `after_s`, and again each `after_s` until something does. Leaving the
    block ends the thread; after that nothing is printed.
    """

    def __init__(self, progress: RunProgress, *, after_s: float, engine: str, say: Callable[[str], None]) -> None:
        self._progress = progress
        self._after_s = after_s
        self._look_at = _LOOK_AT.get(engine, _LOOK_AT["local"])
        self._say = say
        self._said_s = 0.0  # how long nothing had moved when the line was said last
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="maskmine-watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def look(self) -> float:
        """Say the line if it is due; returns after how many seconds to look again."""
        still_s = self._progress.still_s
        if still_s < self._said_s:
            self._said_s = 0.0
        if still_s < self._said_s + self._after_s:
            return self._said_s + self._after_s - still_s
        self._said_s = still_s
        self._say(stall_line(self._progress.in_hand(), still_s=still_s, look_at=self._look_at))
        return self._after_s

    def _watch(self) -> None:
        wait_s = self._after_s
        while not self._over.wait(min(_LONGEST_WAIT_S, wait_s)):
            wait_s = self.look()


def stall_line(in_hand: list[tuple[str, tuple[int, ...]]], *, still_s: float, look_at: str) -> str:
    """Since when nothing moved, which steps are at work and which of their parts are not finished, what to look at."""
    since = datetime.now(UTC) - timedelta(seconds=still_s)
    steps = "; ".join(f"{step}, unfinished parts {ranges(parts)}" if parts else step for step, parts in in_hand)
    where = steps or "no step is at work, only what comes before, between and after them"
    return f"nothing has moved since {since:%Y-%m-%d %H:%M:%S} UTC, for {_minutes(still_s)}: {where}; {look_at}"


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 60 else f"{seconds:.0f} s"
