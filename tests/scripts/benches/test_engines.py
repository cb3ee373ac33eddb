"""The bench of the engines: how large its load is, and what it counts in the log of a run. No time is measured."""

from __future__ import annotations

import dataclasses
import json
import threading
from pathlib import Path

import pytest

from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.pipelines.steps.jobs import MakeCell, PartReport, Tick
from maskmine.schemas.errors import InputError
from maskmine.scripts.benches.engine_runs import (
    Event,
    Load,
    LoggedJob,
    TwoProcesses,
    cells_sha256,
    images_for,
    read_events,
    repeat_scenes,
)
from maskmine.scripts.measures import Seconds
from tests.support.runs import fake_step


def test_the_load_is_a_tenth_longer_than_was_asked_for() -> None:
    assert images_for(minutes=3, per_image_s=0.1, workers=2) == pytest.approx(3960, abs=1)
    assert images_for(minutes=3, per_image_s=0.1, workers=1) == pytest.approx(1980, abs=1)


def test_the_smallest_load_still_has_parts_for_everyone() -> None:
    assert images_for(minutes=0.001, per_image_s=1, workers=2) == 32


WORLD = {
    "images": [{"id": 7, "file_name": "a.jpg"}, {"id": 9, "file_name": "b.jpg"}],
    "annotations": [
        {"id": 1, "image_id": 9, "caption": "b, first"},
        {"id": 2, "image_id": 7, "caption": "a"},
        {"id": 3, "image_id": 9, "caption": "b, second"},
    ],
    "categories": [{"id": 1, "name": "thing"}],
}


def test_a_world_is_repeated_under_new_ids_with_all_that_is_said_of_each_image() -> None:
    longer = repeat_scenes(WORLD, images=3)
    assert [(image["id"], image["file_name"]) for image in longer["images"]] == [
        (1, "a.jpg"),
        (2, "b.jpg"),
        (3, "a.jpg"),
    ]
    assert [(one["id"], one["image_id"], one["caption"]) for one in longer["annotations"]] == [
        (1, 1, "a"),
        (2, 2, "b, first"),
        (3, 2, "b, second"),
        (4, 3, "a"),
    ]
    assert longer["categories"] == WORLD["categories"]


def event(what: str, part: int, at_s: float, *, step: str = "proposals", pid: int = 1, rss: int = 0) -> Event:
    return Event(what, step, part, pid, at_s, rss)  # type: ignore[arg-type]


def test_a_rate_counts_only_while_all_processes_are_at_work() -> None:
    from maskmine.scripts.benches.engines import cells_per_s  # loads torch, which the processes of a test here need not

    early = [event("begin", 0, 0), event("end", 0, 4), event("begin", 1, 4), event("end", 1, 8)]
    late = [event("begin", 2, 2, pid=2), event("end", 2, 4, pid=2), event("begin", 3, 4, pid=2)]
    events = [*early, *late, event("end", 3, 6, pid=2)]
    assert cells_per_s(early) == pytest.approx(2 / 8)
    assert cells_per_s(events) == pytest.approx((0.5 + 0.5 + 1 + 1) / 4), "from second 2 to second 6"


def test_memory_is_compared_within_a_step_and_for_one_process() -> None:
    from maskmine.scripts.benches.engines import (
        Growth,
        growths,
    )  # loads torch, which the processes of a test here need not

    flat = [
        event("end", part, part, step=step, rss=rss)
        for step, rss in (("nouns", 100), ("shards", 300))
        for part in range(20)
    ]
    growing = [event("end", part, part, pid=2, rss=10 * part) for part in range(20)]
    assert list(growths([*flat, *growing])) == [
        Growth("nouns", 100, 100),
        Growth("shards", 300, 300),
        Growth("proposals", 50, 185),
    ]


def test_cells_have_one_hash_of_names_and_bytes_and_accounts_do_not_count(tmp_path: Path) -> None:
    (tmp_path / "00000.tar").write_bytes(b"a")
    (tmp_path / "00000.json").write_text("1")
    before = cells_sha256(tmp_path)
    (tmp_path / "00000.json").write_text("2")
    (tmp_path / "sizes.json").write_text("{}")
    assert cells_sha256(tmp_path) == before
    (tmp_path / "00000.tar").rename(tmp_path / "00001.tar")
    assert cells_sha256(tmp_path) != before
    with pytest.raises(InputError, match="has no cells"):
        cells_sha256(tmp_path / "none")


def test_each_run_of_a_load_has_its_own_folder_and_log(tmp_path: Path) -> None:
    load = Load(tmp_path, {"pairs": {"rule": "labels"}})
    assert json.loads(load.config("ray").read_text()) == {"pairs": {"rule": "labels"}, "out": str(tmp_path / "ray")}
    assert load.log("ray") != load.log("ray")


@dataclasses.dataclass(frozen=True)
class EmptyJob:
    """Writes empty cells; a cell of `pairs` wants to have that of `nouns` there."""

    device = None
    run: RunFolder
    step: str

    def open(self) -> MakeCell:
        def make(part: int, tick: Tick) -> PartReport:
            if self.step == "pairs":
                assert self.run.exists("nouns", f"{part:05d}.parquet")
            with self.run.write(*(["once.parquet"] if self.step == "once" else [self.step, f"{part:05d}.parquet"])):
                pass
            return PartReport(step=self.step, part=part, images=1, rejected=0, made=0, seconds=0.0)

        return make


def test_two_processes_make_every_cell_once_and_the_log_tells_who_made_which(tmp_path: Path) -> None:
    run, log = RunFolder(str(tmp_path)), tmp_path / "log"
    steps = [
        fake_step(run, name, LoggedJob(EmptyJob(run, name), name, str(log)), parts=5, once=name == "once")
        for name in ("nouns", "once", "pairs")
    ]
    before = set(threading.enumerate())
    TwoProcesses().run(run, steps, Seconds())
    events = read_events(log)
    made = sorted((event.step, event.part) for event in events if event.what == "end")
    assert made == [*[("nouns", part) for part in range(5)], ("once", 0), *[("pairs", part) for part in range(5)]]
    makers = {(event.part % 2, event.pid) for event in events if event.step == "nouns"}
    assert len({pid for _, pid in makers}) == 2
    assert set(threading.enumerate()) <= before
