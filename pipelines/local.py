"""The local engine: a loop in this process. No service, no copy of anything; the default for one machine."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from pipelines.engine import Watch
from pipelines.grid import Stage
from pipelines.run_folder import RunFolder


def run_local(run: RunFolder, stages: Sequence[Stage], watch: Watch) -> None:
    """Make every missing cell, stage after stage and part after part."""
    for stage in stages:
        todo = stage.todo(run)
        if not todo:
            continue
        watch.stage_begins(stage, todo)
        make = stage.job.open()
        for part in todo:
            watch.part_ends(make(part, partial(watch.tick, stage.name)))
        watch.stage_ends(stage)
