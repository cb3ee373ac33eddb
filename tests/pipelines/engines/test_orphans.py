"""Workers end when their driver is gone: also one that never gives Python's lock back, or whose folder fails."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from maskmine.pipelines.engines import orphans
from tests.support.paths import ROOT

# A driver that starts a worker and says its number; the worker holds Python's lock for as long as it lives.
DRIVER = """
import os, subprocess, sys, time
worker = subprocess.Popen([sys.executable, "-c", sys.argv[1], str(os.getpid())], stdout=subprocess.PIPE)
worker.stdout.readline()
print(worker.pid, flush=True)
time.sleep(60)
"""
WORKER = """
import ctypes, sys
from maskmine.pipelines.engines.orphans import end_with_driver
end_with_driver(int(sys.argv[1]))
print("ready", flush=True)
ctypes.PyDLL(None).sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel of Linux sees to it")
def test_a_worker_that_holds_the_lock_of_python_ends_with_its_driver() -> None:
    words = [sys.executable, "-c", DRIVER, WORKER]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        worker = psutil.Process(int(driver.stdout.readline()))
        driver.kill()
    with_it = _ends_within(worker, 10)
    if not with_it:
        os.kill(worker.pid, signal.SIGKILL)
    assert with_it


def test_a_folder_that_fails_ends_no_worker_and_no_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[object] = [True, OSError("the store does not answer"), True, False]

    def needed() -> bool:
        answer = answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return bool(answer)

    def end(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(orphans, "_WATCH_S", 0.0)
    monkeypatch.setattr(os, "_exit", end)
    with pytest.raises(SystemExit):
        orphans._watch(os.getppid(), needed)
    assert answers == []


def _ends_within(process: psutil.Process, seconds: float) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.05)
    return False
