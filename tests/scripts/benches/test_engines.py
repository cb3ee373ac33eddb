"""The bench of the engines: how large its load is, and what it counts in the log of a run. No time is measured."""

from __future__ import annotations

import dataclasses
import json
import threading
from pathlib import Path

import pytest

from pipelines.cells import MakeCell, PartReport, Tick
from pipelines.grid import Stage
from pipelines.run_folder import RunFolder
from schemas.errors import InputError
from scripts.bench_engines import Growth, Sample, cells_per_s, growth_by_stage, made_twice, seconds_per_cell
from scripts.bench_mining import Seconds
from scripts.engine_load import Load, cells_for, cells_sha256, images_for, repeat_scenes
from scripts.engine_runs import Event, LoggedJob, new_events, read_events, run_two_processes


def test_the_load_is_a_tenth_longer_than_was_asked_for() -> None:
    assert images_for(minutes=3, per_image_s=0.1, workers=2) == pytest.approx(3960, abs=1)
    assert images_for(minutes=3, per_image_s=0.1, workers=1) == pytest.approx(1980, abs=1)


def test_the_smallest_load_still_has_parts_for_everyone() -> None:
    assert images_for(minutes=0.001, per_image_s=1, workers=2) == 32


@pytest.mark.parametrize(
    ("seconds", "cell_s", "cells", "parts"),
    [(60, 2.0, 100, 30), (60, 1.3, 100, 46), (60, 0.1, 100, 100), (60, 0.1, 99, 98), (1, 60.0, 100, 16)],
)
def test_a_stage_is_measured_on_an_even_number_of_parts_that_exist(
    seconds: float, cell_s: float, cells: int, parts: int
) -> None:
    assert cells_for(seconds, cell_s=cell_s, cells=cells) == parts


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


def event(what: str, part: int, at_s: float, *, stage: str = "regions", pid: int = 1) -> Event:
    return Event(what, stage, part, pid, at_s)  # type: ignore[arg-type]


def test_a_cell_that_was_begun_again_is_work_done_twice() -> None:
    killed = [event("begin", 0, 0), event("end", 0, 1), event("begin", 1, 1), event("begin", 2, 1, pid=2)]
    again = [event("begin", 1, 5, pid=3), event("begin", 2, 5, pid=4), event("begin", 1, 6, stage="pairs")]
    assert made_twice(killed) == 0
    assert made_twice([*killed, *again]) == 2


def test_a_rate_counts_only_while_all_processes_are_at_work() -> None:
    early = [event("begin", 0, 0), event("end", 0, 4), event("begin", 1, 4), event("end", 1, 8)]
    late = [event("begin", 2, 2, pid=2), event("end", 2, 4, pid=2), event("begin", 3, 4, pid=2)]
    events = [*early, *late, event("end", 3, 6, pid=2)]
    assert cells_per_s(early) == pytest.approx(2 / 8)
    assert cells_per_s(events) == pytest.approx((0.5 + 0.5 + 1 + 1) / 4), "from second 2 to second 6"


def test_the_time_of_a_cell_is_that_of_the_process_that_finished_it() -> None:
    events = [event("begin", 0, 0, pid=2), event("begin", 0, 10), event("end", 0, 14, pid=2), event("begin", 1, 20)]
    assert seconds_per_cell([*events, event("end", 1, 22)]) == {"regions": 8.0}


def test_memory_is_compared_within_a_stage_and_for_one_process() -> None:
    events = [event("end", part, part, stage=stage) for part, stage in enumerate(["nouns"] * 20 + ["shards"] * 20)]
    flat = [Sample(1, second, 100 if second < 20 else 300) for second in range(40)]
    other = [Sample(2, second, 10_000 * second) for second in range(40)]
    growths = list(growth_by_stage(events, [*flat, *other], pid=1))
    assert growths == [Growth("nouns", 100, 100), Growth("shards", 300, 300)]
    assert next(growth_by_stage(events, other, pid=2)).ratio == pytest.approx(18.5 / 5)


def test_a_stage_that_is_shorter_than_the_time_between_samples_takes_the_nearest() -> None:
    events = [event("end", part, part) for part in range(10)]
    assert list(growth_by_stage(events, [Sample(1, -5, 100), Sample(1, 20, 120)], pid=1)) == [
        Growth("regions", 100, 120)
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
            return PartReport(self.step, part, 1, 0, 0, 0.0)

        return make


def test_two_processes_make_every_cell_once_and_the_log_tells_who_made_which(tmp_path: Path) -> None:
    run, log = RunFolder(str(tmp_path)), tmp_path / "log"
    stages = [
        Stage(name, "", LoggedJob(EmptyJob(run, name), name, str(log)), cells=5, once=name == "once")
        for name in ("nouns", "once", "pairs")
    ]
    before = set(threading.enumerate())
    run_two_processes(run, stages, Seconds())
    events = read_events(log)
    made = sorted((event.stage, event.part) for event in events if event.what == "end")
    assert made == [*[("nouns", part) for part in range(5)], ("once", 0), *[("pairs", part) for part in range(5)]]
    makers = {(event.part % 2, event.pid) for event in events if event.stage == "nouns"}
    assert len({pid for _, pid in makers}) == 2
    assert set(threading.enumerate()) <= before


def test_a_log_is_read_on_where_it_was_left(tmp_path: Path) -> None:
    log = tmp_path / "log"
    job = LoggedJob(EmptyJob(RunFolder(str(tmp_path)), "nouns"), "nouns", str(log))
    job.open()
    with log.open() as file:
        assert [event.what for event in new_events(file)] == ["open"]
        assert list(new_events(file)) == []
        job.open()(0, lambda records: None)
        assert [event.what for event in new_events(file)] == ["open", "begin", "end"]
