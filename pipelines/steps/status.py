"""How far a run is: the grid of steps × parts, from one listing a folder; and what was rejected, with its reasons."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from pipelines.grid import SHARD_SUFFIXES
from pipelines.plan import Plan, read_plan
from pipelines.publish import SUCCESS_FILE
from pipelines.run_folder import RunFolder
from schemas.errors import InputError
from schemas.rows import RejectedImage

_STEPS = ("nouns", "vocabulary", "regions", "pairs", "shards")


@dataclass(frozen=True, slots=True)
class StepStatus:
    """A row of the grid: how many of the step's cells exist, and which are missing."""

    step: str
    done: int
    cells: int
    missing: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class RunStatus:
    """`complete` says whether the set was published whole."""

    images: int
    parts: int
    complete: bool
    steps: tuple[StepStatus, ...]

    def as_json(self) -> dict[str, Any]:
        """Plain values for `status --json`."""
        return asdict(self)


def run_status(run: RunFolder) -> RunStatus:
    """The grid of a run folder, current or not: cells made from older settings count until `mine` replaces them."""
    plan = require_plan(run)
    with ThreadPoolExecutor(len(_STEPS)) as pool:  # a store gives 1,000 names at a time, so the folders do not wait
        steps = tuple(pool.map(lambda step: _step_status(run, step, plan.parts), _STEPS))
    return RunStatus(plan.images, plan.parts, run.exists(SUCCESS_FILE), steps)


def rejected_images(run: RunFolder) -> Iterator[RejectedImage]:
    """The rejected images of all finished shards, part by part."""
    parts = sorted(run.done("shards", suffixes=("json",)))
    for part, account in zip(parts, run.read_jsons("shards", parts), strict=True):
        for entry in (account or {}).get("rejections", ()):
            yield RejectedImage(entry["image_id"], part, entry["step"], entry["reason"], entry["detail"])


def require_plan(run: RunFolder) -> Plan:
    """The plan of a run folder. Raises InputError when there is none."""
    plan = read_plan(run)
    if plan is None:
        raise InputError(f"{run.root}: not a run folder (no plan.json); give the `out` of a `maskmine mine` run")
    return plan


def ranges(parts: tuple[int, ...], *, most: int = 6) -> str:
    """Part numbers as `0-4, 7, 9-11`; after `most` runs the rest is counted."""
    runs: list[list[int]] = []
    for part in parts:
        if runs and part == runs[-1][1] + 1:
            runs[-1][1] = part
        else:
            runs.append([part, part])
    shown = [f"{first}" if first == last else f"{first}-{last}" for first, last in runs[:most]]
    rest = sum(last - first + 1 for first, last in runs[most:])
    return ", ".join(shown) + (f" and {rest} more" if rest else "")


def _step_status(run: RunFolder, step: str, parts: int) -> StepStatus:
    if step == "vocabulary":
        done = int(run.exists("vocabulary.parquet"))
        return StepStatus(step, done, 1, () if done else (0,))
    present = run.done(step, suffixes=SHARD_SUFFIXES if step == "shards" else ("parquet",))
    missing = tuple(sorted(set(range(parts)) - present))
    return StepStatus(step, parts - len(missing), parts, missing)
