"""Processes that are killed, or kill themselves, while they write or train."""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from maskmine.mining.nouns import Nouns
from maskmine.mining.storage import files
from maskmine.pipelines.engines.local import LocalEngine
from maskmine.pipelines.mine import mine
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.pipelines.settings.mining import load_mining
from tests.support.runs import Recorder
from tests.support.toy_shards import contents

# Where `RunFolder.write` may be hit: the temporary file is there, half of it on the disk, all of it, synced, renamed.
POINTS = ("opened", "half", "whole", "synced", "renamed")


def program(call: str, *arguments: str) -> list[str]:
    """The command of a process that calls a function of this file."""
    return [sys.executable, "-c", f"import sys; from {__name__} import {call}; {call}(*sys.argv[1:])", *arguments]


def die_at(point: str, *, write: int) -> None:
    """From here on, this process is killed by itself at a point of write number `write` (1 is the next one)."""
    synced, replaced = os.fsync, os.replace
    count = {"open": 0, "fsync": 0, "replace": 0}

    def is_due(function: str) -> bool:
        count[function] += 1
        return count[function] == write

    def opened(*arguments: Any) -> Any:
        file = open(*arguments)  # noqa: SIM115, it is the caller's
        if is_due("open") and point == "opened":
            os.kill(os.getpid(), signal.SIGKILL)
        return file

    def fsync(handle: int) -> None:
        if is_due("fsync") and point in ("half", "whole"):
            if point == "half":
                os.ftruncate(handle, os.fstat(handle).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        synced(handle)

    def replace(*paths: Any) -> None:
        due = is_due("replace")
        if due and point == "synced":
            os.kill(os.getpid(), signal.SIGKILL)
        replaced(*paths)
        if due and point == "renamed":
            os.kill(os.getpid(), signal.SIGKILL)

    files.open = opened  # type: ignore[attr-defined]
    os.fsync, os.replace = fsync, replace


def write_and_die(root: str, point: str) -> int:
    """Replace a cell in a fork of this process, which is killed meanwhile; returns how it ended, as Popen does."""
    pid = os.fork()
    if not pid:  # nothing but a plain exit may leave this branch
        try:
            die_at(point, write=1)
            with RunFolder(root).write("nouns", "00000.parquet") as file:
                file.write(b"new" * 1000)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def mine_and_die(config: str) -> None:
    """The program of runs that are killed after a few writes, each at another point, until one comes to its end.

    They are killed ever later, for the plan and what is published at the end are written as a whole. Each is a fork of
    this process, so that spaCy is loaded once. Prints how many were killed.
    """
    Nouns.open = functools.cache(Nouns.open)  # type: ignore[method-assign]
    settings = load_mining(config)
    settings.nouns.open()
    killed = 0
    while True:
        if not os.fork():
            planned = RunFolder(settings.out).exists("plan.json")
            die_at(POINTS[killed % len(POINTS)], write=4 + killed // 2 if planned else 4 * (killed + 1))
            mine(settings, engine=LocalEngine(), observer=Recorder())
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.wait()[1])
        assert code in (0, -signal.SIGKILL), code
        if not code:
            break
        killed += 1
    sys.stdout.write(f"{killed}\n")


def append_and_die(out: str, captions: str) -> None:
    """As `mine_and_die`, of an append to the run in a folder."""
    from tests.support.growing import append_file

    Nouns.open = functools.cache(Nouns.open)  # type: ignore[method-assign]
    load_mining(str(Path(out, "mining.yaml"))).nouns.open()
    killed = 0
    while True:
        if not os.fork():
            die_at(POINTS[killed % len(POINTS)], write=2 + killed)
            append_file(Path(out), Path(captions))
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.wait()[1])
        assert code in (0, -signal.SIGKILL), code
        if not code:
            break
        killed += 1
    sys.stdout.write(f"{killed}\n")


def killed_at_each_write(
    write: Callable[[Path], object], scratch: Path, *, prepare: Callable[[Path], object] = lambda folder: None
) -> Iterator[tuple[str, dict[str, bytes]]]:
    """`write` fills a folder: for each file that it opens for writing, renames or removes there, a fork of this process
    dies at that moment, and `write` is called again. Yields the moment, and what is in the folder then. What is there
    at the beginning comes from `prepare`."""
    for number in count(1):
        folder = scratch / f"killed-{number}"
        prepare(folder)
        read_end, write_end = os.pipe()
        pid = os.fork()
        if not pid:  # nothing but a plain exit may leave this branch
            try:
                _die_at_event(number, str(folder), tell=write_end)
                write(folder)
                os._exit(0)
            finally:
                os._exit(1)
        os.close(write_end)
        with os.fdopen(read_end) as told:
            moment = told.read()
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert code in (0, -signal.SIGKILL), f"{moment}: ended with {code}"
        if not code:
            return
        write(folder)
        yield moment, contents(folder)


def killed_by(work: Callable[[], object], give: Callable[[Callable[[], None]], object]) -> bool:
    """Work in a fork of this process, which others may kill: `give` gets the function that does it, before the work
    begins. Returns whether it was killed before its end."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if not pid:  # nothing but a plain exit may leave this branch
        try:
            os.read(read_end, 1)  # they know whom to kill
            work()
        finally:
            os._exit(0)
    ended = threading.Event()

    def kill() -> None:
        if not ended.is_set():
            ended.set()
            os.kill(pid, signal.SIGKILL)

    give(kill)
    os.write(write_end, b"1")
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    ended.set()
    for end in (read_end, write_end):
        os.close(end)
    return code == -signal.SIGKILL


def _die_at_event(number: int, folder: str, *, tell: int) -> None:
    """From here on, this process kills itself at event `number` below a folder: a file is open and empty, or is about
    to be renamed or removed."""
    left, lock = [number], threading.RLock()

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in ("open", "os.rename", "os.remove") or not str(arguments[0]).startswith(f"{folder}/"):
            return
        if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR):
            return
        with lock:
            left[0] -= 1
            if left[0] == 0:
                os.write(tell, f"{event} {os.path.basename(arguments[0])}".encode())
                if event == "open":
                    os.close(os.open(arguments[0], arguments[2], 0o644))
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


SCENES_A_FILE, CHECKPOINT_EVERY = 20, 5


def killed_at(step: int, train: Callable[[], Any]) -> None:
    """Train in a process of its own, which is killed when it begins a step, counted from 1."""
    process = multiprocessing.get_context("spawn").Process(target=_train, args=(step, train))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


class Stopped(BaseException):
    """Ends a training in the middle, past everything that handles errors."""


@contextmanager
def stopped_at(step: int) -> Iterator[None]:
    """A training in this block ends with an exception when it begins a step, counted from 1.

    As `killed_at`, without a process that imports everything again for seconds.
    """

    def stop() -> None:
        raise Stopped

    with pytest.MonkeyPatch.context() as patch:
        _end_at(step, stop, patch)
        try:
            yield
        except Stopped:
            return
    raise AssertionError(f"there was no step {step}")


def _train(step: int, train: Callable[[], Any]) -> None:
    from maskmine.scripts.training import run, scenes

    scenes.SCENES_A_FILE, run._CHECKPOINT_EVERY = SCENES_A_FILE, CHECKPOINT_EVERY
    _end_at(step, lambda: os.kill(os.getpid(), signal.SIGKILL), pytest.MonkeyPatch())
    train()


def _end_at(step: int, end: Callable[[], None], patch: pytest.MonkeyPatch) -> None:
    from maskmine.scripts.training.learner import DemoLearner

    real, taken = DemoLearner.step, []

    def step_or_end(*arguments: Any, **named: Any) -> dict[str, float]:
        taken.append(1)
        if len(taken) == step:
            end()
        return real(*arguments, **named)

    patch.setattr(DemoLearner, "step", step_or_end)
