"""The state of a run: the grid of steps × parts, from one listing of each folder, and the rejected images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

from maskmine.pipelines.planning.plan import require_plan
from maskmine.pipelines.planning.versions import versions_of, whole_plan
from maskmine.pipelines.run_folder.caption_cells import CAPTIONING, read_failures, stored_captioning
from maskmine.pipelines.run_folder.cells import Cells
from maskmine.pipelines.run_folder.folder import IDENTITY_FILE, MIX_FILE, SUCCESS_FILE, RunFolder
from maskmine.pipelines.run_folder.parts import Parts
from maskmine.pipelines.steps.cells_of_run import SHARD_SUFFIXES, run_cells
from maskmine.schemas.rows import NOTHING_FOUND, RejectedImage
from maskmine.schemas.wording import counted
from maskmine.tuning.console import TextTable


@dataclass(frozen=True, slots=True)
class StepStatus:
    """A row of the grid: how many of the step's cells exist, and the parts of those that are missing."""

    step: str
    done: int
    cells: int
    missing: Parts


@dataclass(frozen=True, slots=True)
class RunStatus:
    """`complete` says whether the set was published whole. `appended` are the versions that it has besides its base,
    with the images of each, and `begun` names the one that is not finished."""

    images: int
    parts: int
    complete: bool
    steps: tuple[StepStatus, ...]
    appended: tuple[tuple[str, int], ...] = ()
    begun: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Plain values for `status --json`."""
        steps = [{**asdict(step), "missing": list(step.missing)} for step in self.steps]
        return {**asdict(replace(self, steps=())), "steps": steps}


def run_status(run: RunFolder) -> RunStatus:
    """The grid of a run folder, current or not: cells made from older settings count until `mine` replaces them.

    A mix has shards alone, and images as soon as these are written.
    """
    if run.exists(MIX_FILE):
        return _mix_status(run)
    versions = versions_of(run, require_plan(run))
    plan, cells = whole_plan(versions), run_cells(run)
    pairs = (run.read_json(IDENTITY_FILE) or {}).get("pairs", {})
    levels = [cells.levels] if pairs.get("rule", "labels") != "labels" or cells.levels.exists(0) else []
    selection = [cells.selection] if pairs.get("max_per_noun") is not None else []
    before: list[Cells[Any]] = [*cells.captioning, cells.nouns, cells.vocabulary, *cells.regions, *levels]
    checks = [cells.checks] if cells.checks is not None else []
    negatives = [cells.negatives] if cells.negatives is not None else []
    shown = [*before, cells.pairs, *checks, *selection, *negatives, cells.shards]
    folders = [version.folder for version in versions]
    with ThreadPoolExecutor(len(shown)) as pool:  # a store lists 1,000 names at a time, so folders do not wait in turn
        steps = tuple(pool.map(lambda cells: _step_status(cells, plan.parts, folders), shown))
    appended = tuple((version.name, version.plan.images) for version in versions[1:])
    begun = next((name for name, _ in appended if name not in _listed(run)), None)
    return RunStatus(plan.images, plan.parts, run.exists(SUCCESS_FILE) and not begun, steps, appended, begun)


def _mix_status(run: RunFolder) -> RunStatus:
    """How many shards there are to be is known when the manifest is written."""
    there = run.done("shards", suffixes=SHARD_SUFFIXES)
    listed = (run.read_json("manifest.json") or {}).get("shards", there)
    shards = listed["rows"] if isinstance(listed, dict) else len(listed)  # many stand in a table of so many rows
    done = list(there)
    images = sum((account or {}).get("images", 0) for account in run.read_jsons("shards", done))
    missing = there.missing(range(shards))
    steps = (StepStatus("shards", len(done), shards, missing),) if shards else ()
    return RunStatus(images, shards, run.exists(SUCCESS_FILE) and not missing, steps)


def _listed(run: RunFolder) -> list[str]:
    """The versions that the manifest has."""
    stored = run.read_json("manifest.json")
    versions = stored.get("versions", ()) if isinstance(stored, dict) else ()
    return [version["name"] for version in versions if isinstance(version, dict) and "name" in version]


def rejected_images(run: RunFolder) -> Iterator[RejectedImage]:
    """The rejected images of all finished shards, part by part."""
    parts = sorted(run.done("shards", suffixes=("json",)))
    for part, account in zip(parts, run.read_jsons("shards", parts), strict=True):
        for entry in (account or {}).get("rejections", ()):
            yield RejectedImage(part=part, **entry)


def masks_left_out(run: RunFolder, *, most: int) -> Iterator[str]:
    """How many annotated masks could not be read, of images that have others, and the first `most` of them."""
    count, first = 0, list[str]()
    for account in run.read_jsons("shards", sorted(run.done("shards", suffixes=("json",)))):
        for image_id, detail in (account or {}).get("masks_left_out", ()):
            count += 1
            if len(first) < most:
                first.append(f"  {image_id}: {detail}")
    if count:
        yield f"{counted(count, 'annotated mask')} cannot be read, unlike others of the same images:"
        yield from first


def captions_left_out(run: RunFolder, *, most: int) -> Iterator[str]:
    """How many captions each captioner did not write, and the first `most` of them."""
    for cells in stored_captioning(run):
        count, first = 0, list[str]()
        for part in sorted(cells.done()):
            for image_id, _, why in read_failures([cells], part):
                count += 1
                if len(first) < most:
                    first.append(f"  {image_id}: {why.detail or why.reason}")
        if count:
            yield f"{counted(count, 'image')} without a caption by `{cells.step.removeprefix(CAPTIONING)}`:"
            yield from first


def render_status(status: RunStatus) -> TextTable:
    """A line for each step: a bar, and which parts are missing."""
    table = TextTable(box=None, pad_edge=False)
    for name in ("step", "done", "", "missing parts"):
        table.add_column(name)
    for step in status.steps:
        bar = "█" * (20 * step.done // step.cells)
        table.add_row(step.step, f"{step.done}/{step.cells}", f"{bar:░<20}", ranges(step.missing))
    return table


def render_rejected(images: Iterable[RejectedImage], *, examples: int) -> TextTable:
    """A line for each step and reason, the most frequent first: the limit that it counts towards, and its first
    images."""
    counts: Counter[tuple[str, str]] = Counter()
    shown: dict[tuple[str, str], list[str]] = {}
    for image in images:
        key = (image.step, image.reason)
        counts[key] += 1
        if counts[key] <= examples:
            shown.setdefault(key, []).append(f"{image.image_id}: {image.detail}" if image.detail else image.image_id)
    table = TextTable(box=None, pad_edge=False)
    for name in ("step", "reason", "counts towards", "images", "examples"):
        table.add_column(name, justify="right" if name == "images" else "left", overflow="fold")
    for key, count in counts.most_common():
        limit = "max_empty" if key[1] in NOTHING_FOUND else "max_rejected"
        table.add_row(*key, limit, f"{count:,}", "\n".join(shown.get(key, [])))
    return table


def ranges(parts: Iterable[int], *, max_runs: int = 6) -> str:
    """Part numbers as `0-4, 7, 9-11`; after `max_runs` runs the rest is counted."""
    runs: list[list[int]] = []
    rest = 0
    for part in parts:
        if runs and not rest and part == runs[-1][1] + 1:
            runs[-1][1] = part
        elif len(runs) < max_runs:
            runs.append([part, part])
        else:
            rest += 1
    shown = [f"{first}" if first == last else f"{first}-{last}" for first, last in runs]
    return ", ".join(shown) + (f" and {rest} more" if rest else "")


def _step_status(cells: Cells[Any], parts: int, folders: Sequence[str]) -> StepStatus:
    """Of a step that runs once, the cell of each version; `folders` are theirs."""
    if not cells.once:
        missing = cells.missing(parts)
        return StepStatus(cells.step, parts - len(missing), parts, missing)
    each = [replace(cells, within=folder) for folder in folders]
    missing = Parts(number for number, one in enumerate(each) if not one.exists(0))
    return StepStatus(cells.step, len(each) - len(missing), len(each), missing)
