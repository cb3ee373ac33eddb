"""Worker processes of this machine: the program that makes cells, and how the driver calls it.

    driver ── jobs, then (step, part) for each cell ──▶ worker
    worker ── ready, then reports or what was raised ─▶ driver

Only part numbers and reports travel; cells are read and written by the worker that makes them. A worker is a program
of its own, not a fork of a process with threads, and ends when its driver is gone, however that ended.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import IO, Any

from maskmine.pipelines.engines.orphans import end_with_driver
from maskmine.pipelines.engines.scheduler import OpenJobs, WorkerDiedError
from maskmine.pipelines.steps.jobs import Job

_WAIT_S = 10.0  # at a time; the operating system knows no endless one
_ENDS_WITHIN_S = 5.0  # a killed process whose memory the kernel has to free
_LAST_LINE_CHARS = 200


@dataclass(eq=False)
class _Process:
    """A worker as its driver sees it. It has one call at a time, so it stands for its call as well."""

    process: subprocess.Popen[bytes]
    connection: Connection
    errors: IO[bytes]
    gpu: Mapping[str, str] | None

    def why_it_ended(self) -> str:
        """How the process ended, and the last line that it wrote."""
        try:
            code = self.process.wait(timeout=_ENDS_WITHIN_S)
        except subprocess.TimeoutExpired:
            return "it does not answer any more"
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        self.errors.seek(0)
        lines = self.errors.read().decode(errors="replace").strip().splitlines()
        return f"{how}: {lines[-1][:_LAST_LINE_CHARS]}" if lines else how


class Processes:
    """Processes of this machine that make cells by `jobs`.

    `gpus` has for each GPU the variables of a process that sees it alone; no two processes have the same one.
    """

    engine = "local workers"
    wait_for = "their start"

    def __init__(self, jobs: Mapping[str, Job], *, gpus: Sequence[Mapping[str, str]] = ()) -> None:
        self._jobs = jobs
        self._free = list(gpus)

    def start(self, options: Mapping[str, Any]) -> tuple[_Process, _Process]:
        """Start a process; with `gpu` it has a GPU of its own."""
        gpu = self._free.pop(0) if options["gpu"] else None
        here, there = Pipe()
        code = str(Path(__file__).parents[3])  # where `maskmine` is
        paths = os.pathsep.join([code, *filter(None, [os.environ.get("PYTHONPATH")])])
        errors = tempfile.TemporaryFile()  # noqa: SIM115, it is closed with the worker
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__, str(there.fileno()), str(os.getpid())],
            pass_fds=[there.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=errors,
            stderr=errors,
            env={**os.environ, "PYTHONPATH": paths, **(gpu or {})},
        )
        there.close()
        worker = _Process(process, here, errors, gpu)
        with suppress(BrokenPipeError):  # it has ended; the answer that does not come says so
            here.send(self._jobs)
        return worker, worker

    def make(self, worker: _Process, step: str, part: int) -> _Process:
        """Send a process the cell that it is to make."""
        with suppress(BrokenPipeError):
            worker.connection.send((step, part))
        return worker

    def wait(self, calls: Sequence[_Process], *, timeout_s: float) -> _Process | None:
        """A call that has ended, or whose process has."""
        answered = wait([call.connection for call in calls], timeout=min(timeout_s, _WAIT_S))
        return next((call for call in calls if call.connection in answered), None)

    def result(self, call: _Process) -> Any:
        """What a process answered. Raises what its job raised, or WorkerDiedError."""
        try:
            answer = call.connection.recv()
        except (EOFError, OSError) as error:
            raise WorkerDiedError(call.why_it_ended()) from error
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def kill(self, worker: _Process) -> None:
        """Kill the process, and wait until it is gone: it may be writing."""
        worker.process.kill()
        with suppress(subprocess.TimeoutExpired):
            worker.process.wait(timeout=_ENDS_WITHIN_S)
        worker.connection.close()
        worker.errors.close()
        if worker.gpu is not None:
            self._free.append(worker.gpu)


def main() -> None:
    """The worker: makes cells until its driver is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the driver, which ends its workers
    end_with_driver(int(sys.argv[2]))
    connection = Connection(int(sys.argv[1]))
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        jobs = OpenJobs(connection.recv())
        connection.send("ready")
        while True:
            step, part = connection.recv()
            try:
                answer: Any = jobs.make(step, part)
            except Exception as error:  # noqa: BLE001, the driver raises it
                answer = _portable(error)
            connection.send(answer)
    os._exit(0)  # Python would take down torch for a second


def _portable(error: Exception) -> Exception:
    """What was raised, with its frames as a note, as they do not travel."""
    frames = "".join(traceback.format_exception(error))
    try:
        error.add_note(frames)
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001, some errors of libraries cannot be made from what they hold
        return RuntimeError(f"{type(error).__name__}: {error}\n{frames}")
    return error


if __name__ == "__main__":
    main()
