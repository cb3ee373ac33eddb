"""One trial of `scripts/chaos`: start a run, kill one of its processes, run again, and look at what is there."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console

from maskmine.mining.storage.ownership import owner_state
from maskmine.pipelines.dataset.sums import RUN_SUMS_FILE
from maskmine.pipelines.dataset.verify import verify_run
from maskmine.pipelines.run_folder.folder import SUCCESS_FILE, RunFolder
from maskmine.pipelines.steps.cells_of_run import SHARD_SUFFIXES
from maskmine.schemas.errors import IncompleteError, InputError

DRIVER, WORKER, DECODER, RAYLET = VICTIMS = ("driver", "worker", "decoder", "raylet")
MOST_RERUNS = 3
ORPHANS_END_WITHIN_S = 20.0
# Ray's own, which make no cells: without a driver they try for a minute to tell its dead head node, and then end.
_AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent", "/dashboard/agent.py", "/runtime_env/agent/main.py")
_AGENTS_END_WITHIN_S = 90.0
_INCOMPLETE = 4
_STEPS = {"nouns": ("parquet",), "proposals": ("parquet",), "pairs": ("parquet",), "shards": SHARD_SUFFIXES}
_TIMES = ("seconds", "finished")  # the keys of a shard's account that say how long it took
_SUMS_OF_ONE_RUN = re.compile(rb"^[0-9a-f]+  (shards/\d+\.json|mining\.yaml|SHA256SUMS\.run)\n", re.MULTILINE)
_POLL_S = 0.1
# A worker of Ray may be killed between a cell and its report; the cell is then given to another one.
_MOST_REWRITTEN = {WORKER: 1, RAYLET: 2}

Cells = dict[str, tuple[tuple[int, int], ...]]


@dataclass(frozen=True)
class Course:
    """An undisturbed run, in seconds from its start: its length, when its first cell was there, and from when to when
    each kind of process was."""

    seconds: float
    first_cell_s: float
    spans: Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class Trial:
    """What is to be killed, `delay_s` after there is something of its kind (and a cell, with `after_first_cell`).

    `expected` are the hashes of an undisturbed run. `command` mines into `out`, which is in `folder`; what it says goes
    into files there, one a run.
    """

    command: Sequence[str]
    folder: Path
    expected: Mapping[str, str]
    victim: str
    delay_s: float
    after_first_cell: bool
    limit_s: float
    choice: int = 0

    @property
    def out(self) -> Path:
        """The run folder."""
        return self.folder / "run"

    def log(self, number: int) -> Path:
        """What the first run (0) or a re-run says."""
        return self.folder / f"log-{number}.txt"


@dataclass
class Ending:
    """How a trial went. `rewritten` counts cells that were there before the kill and were written again.

    `half_written` counts temporary files that the kill left, `orphans_s` is how long other processes outlived a driver.
    `agents` are those of Ray, which may live on for a while. A driver may have `ended_well` although it lost a worker.
    Without `faults` all is as in an undisturbed run.
    """

    killed_at_s: float = 0.0
    cells_before: int = 0
    rewritten: int = 0
    half_written: int = 0
    reruns: int = 0
    orphans_s: float = 0.0
    seconds: float = 0.0
    too_late: bool = False
    ended_well: bool = False
    agents: list[Any] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def undisturbed(command: Sequence[str], *, out: Path, log: Path, limit_s: float) -> Course:
    """Run a command to its end and watch its processes. Raises InputError with its last line when it fails."""
    start = time.monotonic()
    driver = _start(command, log)
    first_cell_s = math.inf
    spans: dict[str, tuple[float, float]] = {}
    try:
        while driver.poll() is None and time.monotonic() - start < limit_s:
            now_s = time.monotonic() - start
            if math.isinf(first_cell_s) and cells(out):
                first_cell_s = now_s
            for kind in {kind_of(process) for process in _descendants(driver.pid)} - {None}:
                spans[str(kind)] = (spans.get(str(kind), (now_s, now_s))[0], now_s)
            time.sleep(_POLL_S)
        seconds = time.monotonic() - start
        code = driver.poll()
    finally:
        _kill_all([driver, *_descendants(driver.pid)])
    if code != 0:
        lines = log.read_text(errors="replace").strip().splitlines() or ["no output"]
        ended = "did not end" if code is None else f"ended with {code}"
        raise InputError(f"chaos: an undisturbed run {ended} ({lines[-1][:300]})")
    return Course(seconds, min(first_cell_s, seconds), {DRIVER: (0.0, seconds), **spans})


def run_trial(trial: Trial) -> Ending:
    """Start, kill, run again until it says complete, compare. Every process that it started has ended afterwards."""
    start = time.monotonic()
    ending = Ending()
    before = _disturb(trial, ending)
    if not ending.too_late:
        if not ending.ended_well:
            _run_again(trial, ending)
        after = cells(trial.out)
        ending.rewritten = sum(after.get(cell) != identity for cell, identity in before.items())
        if ending.rewritten > _MOST_REWRITTEN.get(trial.victim, 0):
            ending.faults.append(f"{ending.rewritten} cells that were there were made again")
        _look(trial, ending)
    ending.seconds = time.monotonic() - start
    return ending


def await_agents(endings: Sequence[Ending]) -> None:
    """Wait for the agents of all trials, which Ray ends by itself; those that stay are a fault, and are killed."""
    until = time.monotonic() + _AGENTS_END_WITHIN_S
    for ending in endings:
        while any(map(_lives, ending.agents)) and time.monotonic() < until:
            time.sleep(_POLL_S)
        if left := [process for process in ending.agents if _lives(process)]:
            ending.faults.append(f"{len(left)} agents of Ray lived on for more than {_AGENTS_END_WITHIN_S:.0f} s")
            _kill_all(left)


def kind_of(process: Any) -> str | None:
    """Which kind of victim a process below a driver is; None for one that is left alone."""
    try:
        words = process.cmdline()
    except psutil.Error:
        return None
    if "maskmine.mining.images.decoder_process" in words:
        return DECODER
    if "maskmine.pipelines.engines.beam_worker" in words or (words and words[0].startswith("ray::Worker")):
        return WORKER
    return RAYLET if words and os.path.basename(words[0]) == "raylet" else None


def cells(out: Path) -> Cells:
    """The cells of a grid that are there, each with the inode and the time of its files; a rewritten one differs."""
    found: Cells = {}
    for step, suffixes in _STEPS.items():
        for first in sorted((out / step).glob(f"[0-9]*.{suffixes[0]}")):
            files = [first.with_suffix(f".{suffix}") for suffix in suffixes]
            if all(file.exists() for file in files):
                found[f"{step}/{first.stem}"] = tuple((s.st_ino, s.st_mtime_ns) for s in (f.stat() for f in files))
    vocabulary = out / "vocabulary.parquet"
    if vocabulary.exists():
        found["vocabulary"] = ((vocabulary.stat().st_ino, vocabulary.stat().st_mtime_ns),)
    return found


def keep_where_failed(scratch: Path, *, failed: bool, console: Console) -> None:
    """Remove the folder of all trials, or say where what failed is."""
    if failed:
        console.print(f"what failed is in {scratch}")
    else:
        shutil.rmtree(scratch, ignore_errors=True)


def hashes(out: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, leaving out the times in a shard's account and the path in mining.yaml.

    Of files of sums, the lines of such files are left out; that those are right is for `verify_run`.
    """
    found = {}
    for path in sorted(path for path in out.rglob("*") if not path.is_dir()):
        content = path.read_bytes()
        if path.parent.name == "shards" and path.stem.isdigit() and path.suffix == ".json":
            account = {key: value for key, value in json.loads(content).items() if key not in _TIMES}
            content = json.dumps(account, sort_keys=True).encode()
        elif path.name == "mining.yaml":
            content = content.replace(str(out).encode(), b"OUT")
        elif path.name in (RUN_SUMS_FILE, SUCCESS_FILE):
            content = _SUMS_OF_ONE_RUN.sub(b"", content)
        found[path.relative_to(out).as_posix()] = hashlib.sha256(content).hexdigest()
    return found


def differences(found: Mapping[str, str], expected: Mapping[str, str]) -> list[str]:
    """One line a file that is missing, differs, or should not be there."""
    lines = [f"{name} is missing" for name in sorted(expected.keys() - found.keys())]
    lines += [f"{name} should not be there" for name in sorted(found.keys() - expected.keys())]
    return lines + [
        f"{name} has other bytes" for name in sorted(expected.keys() & found.keys()) if found[name] != expected[name]
    ]


def _disturb(trial: Trial, ending: Ending) -> Cells:
    """Start the command and kill; returns the cells that were there just before."""
    start = time.monotonic()
    driver = _start(trial.command, trial.log(0))
    known: dict[int, Any] = {}
    try:
        _wait_for_victim(trial, driver, known)
        while trial.after_first_cell and not cells(trial.out) and driver.poll() is None:
            time.sleep(_POLL_S)
        _sleep(trial.delay_s, driver)
        victim = _wait_for_victim(trial, driver, known)
        if victim is None:
            ending.too_late = True
            return {}
        before = cells(trial.out)
        _remember(driver.pid, known)
        victim.kill()
        ending.killed_at_s = time.monotonic() - start
        ending.cells_before = len(before)
        if trial.victim == DRIVER:
            driver.wait()
        else:
            ending.ended_well = _await_end(trial, driver, known, ending) == 0
        ending.orphans_s = _await_orphans(list(known.values()), ending)
        ending.half_written = _half_written(trial.out)
        return before
    finally:
        _kill_all([driver, *_descendants(driver.pid), *_without_agents(known.values())])


def _wait_for_victim(trial: Trial, driver: subprocess.Popen[bytes], known: dict[int, Any]) -> Any:
    """The process to kill, as soon as there is one of its kind; None when the driver ends before."""
    while driver.poll() is None:
        if trial.victim == DRIVER:
            return driver
        found = sorted((p for p in _remember(driver.pid, known) if kind_of(p) == trial.victim), key=lambda p: p.pid)
        if found:
            return found[trial.choice % len(found)]
        time.sleep(_POLL_S)
    return None


def _sleep(seconds: float, driver: subprocess.Popen[bytes]) -> None:
    """Sleep, but not beyond the end of the driver."""
    try:
        driver.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        return


def _await_end(trial: Trial, driver: subprocess.Popen[bytes], known: dict[int, Any], ending: Ending) -> int | None:
    """The exit code of a driver that has to end by itself: with success, or with one line that says to run again."""
    until = time.monotonic() + trial.limit_s
    while driver.poll() is None and time.monotonic() < until:
        _remember(driver.pid, known)
        time.sleep(_POLL_S)
    code = driver.poll()
    if code is None:
        ending.faults.append(f"hangs: after {trial.limit_s:.0f} s the driver was still there")
        _kill_all([driver, *_remember(driver.pid, known), *known.values()])
    else:
        ending.faults += _faults_of(code, trial.log(ending.reruns))
    return code


def _run_again(trial: Trial, ending: Ending) -> None:
    """The same command until it says complete; more than once only where it says `run again`."""
    code: int | None = _INCOMPLETE
    while code == _INCOMPLETE and ending.reruns < MOST_RERUNS:
        ending.reruns += 1
        driver = _start(trial.command, trial.log(ending.reruns))
        known: dict[int, Any] = {}
        try:
            code = _await_end(trial, driver, known, ending)
            _await_orphans(list(known.values()), ending)
        finally:
            _kill_all([driver, *_descendants(driver.pid), *_without_agents(known.values())])
    if code == _INCOMPLETE:
        ending.faults.append(f"not complete after {ending.reruns} re-runs")


def _faults_of(code: int, log: Path) -> list[str]:
    """What is wrong with how a run ended and what it printed."""
    lines = log.read_text(errors="replace").splitlines()
    last = (lines or ["no output"])[-1][:300]
    if any("Traceback" in line for line in lines):
        return [f"ended with {code} and a traceback: {last}"]
    if code not in (0, _INCOMPLETE):
        return [f"ended with {code}: {last}"]
    if code == _INCOMPLETE and sum(line.startswith("maskmine: ") for line in lines) != 1:
        return [f"ended with {code}, but not with one line that says why: {last}"]
    return []


def _look(trial: Trial, ending: Ending) -> None:
    """Compare with the undisturbed run, file by file, and verify."""
    lines = differences(hashes(trial.out), trial.expected)
    ending.faults += lines[:5] + ([f"and {len(lines) - 5} more files"] if len(lines) > 5 else [])
    try:
        ending.faults += [f"verify: {problem}" for problem in verify_run(RunFolder(str(trial.out)))][:5]
    except (IncompleteError, InputError) as error:
        ending.faults.append(f"verify: {error}")


def _half_written(out: Path) -> int:
    return sum(owner_state(path.name) is not None for step in _STEPS for path in (out / step).glob(".writing-*"))


def _start(command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """Start a driver in a session of its own, so that a Ctrl-C here does not reach it."""
    with log.open("wb") as file:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )


def _descendants(pid: int) -> list[Any]:
    try:
        return list(psutil.Process(pid).children(recursive=True))
    except psutil.Error:
        return []


def _remember(pid: int, known: dict[int, Any]) -> list[Any]:
    """The processes below a driver; each is also put into `known`, for a dead driver has none."""
    found = _descendants(pid)
    known.update((process.pid, process) for process in found)
    return found


def _await_orphans(processes: Sequence[Any], ending: Ending) -> float:
    """How long the processes that a driver had lived on; those that stay are a fault, and are killed."""
    start = time.monotonic()
    left = workers = _without_agents(processes)
    while left and time.monotonic() - start < ORPHANS_END_WITHIN_S:
        time.sleep(_POLL_S)
        left = [process for process in left if _lives(process)]
    if left:
        names = ", ".join(sorted({kind_of(process) or _name(process) for process in left}))
        ending.faults.append(f"{len(left)} orphans lived on for {ORPHANS_END_WITHIN_S:.0f} s: {names}")
        _kill_all(left)
    ending.agents += [process for process in processes if process not in workers and _lives(process)]
    return time.monotonic() - start


def _without_agents(processes: Iterable[Any]) -> list[Any]:
    return [
        process for process in processes if _lives(process) and not any(agent in _name(process) for agent in _AGENTS)
    ]


def _kill_all(processes: Sequence[Any]) -> None:
    for process in processes:
        try:
            process.kill()
            process.wait(timeout=5)
        except (psutil.Error, subprocess.TimeoutExpired):
            continue  # it has ended, or will when the kernel lets go of it


def _lives(process: Any) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _name(process: Any) -> str:
    """The start of its command line, which Ray's processes write themselves."""
    try:
        return " ".join(process.cmdline() or [process.name()])[:300]
    except psutil.Error:
        return "one that has just ended"
