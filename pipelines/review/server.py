"""`maskmine review`: a local web page on which people judge the pairs of a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.compute as pc

from maskmine.pipelines.dataset.finished_run import FinishedRun
from maskmine.pipelines.review.pictures import Drawer
from maskmine.pipelines.review.queue import Order, Queue, choose_items
from maskmine.pipelines.review.store import FOLDER, Store, StoredFile, check_reviewer, read_stored, strangers
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.pipelines.run_folder.sweep import sweep
from maskmine.pipelines.web.server import run_server
from maskmine.schemas.rows import ImageRow
from maskmine.schemas.wording import counted


def review(
    run: RunFolder,
    *,
    reviewer: str | None,
    order: Order,
    size: int,
    seed: int,
    host: str,
    port: int,
    say: Callable[[str], None],
) -> NoReturn:
    """Choose the pairs and serve the page until an interrupt; raises as `run_server`, `choose_items`, `read_stored`."""
    name = check_reviewer(reviewer) if reviewer is not None else None
    finished = FinishedRun.open_complete(run)
    sweep(RunFolder(run.path(FOLDER)))
    stored = read_stored(run)
    for line in _about_strangers(finished, stored):
        say(line)

    def open_app(hosts: tuple[str, ...] | None, stopping: Callable[[], bool]) -> Any:
        from maskmine.pipelines.review.app import Review, make_app

        say("reading the pairs …")
        items = choose_items(finished, order=order, size=size, seed=seed)
        store = Store(run, stored)
        queue = Queue(items, store)
        progress = queue.progress()
        say(f"{counted(progress.of, 'pair')}, {progress.judged:,} of them judged; verdicts go to {run.path(FOLDER)}")
        opened = Review(finished.name, order, store, queue, Drawer(finished), name)
        return make_app(opened, hosts=hosts)

    run_server(open_app, host=host, port=port, say=say, command="review")


def _about_strangers(finished: FinishedRun, stored: list[StoredFile]) -> list[str]:
    """A line for each file with verdicts of images that the run does not have."""
    judged = sorted({row.image_id for file in stored for row in file.rows})
    if not judged:
        return []
    wanted, known = pa.array(judged, pa.string()), set[str]()
    for part in finished.parts:
        column = finished.columns(part, ImageRow, ["image_id"])["image_id"]
        known.update(column.filter(pc.is_in(column, value_set=wanted)).to_pylist())
    return [
        f"{finished.folder.path(FOLDER, name)}: {counted(count, 'verdict')} of images that this run does not have, and "
        "which do not count here; is it another run's file?"
        for name, count in strangers(stored, images=known).items()
    ]
