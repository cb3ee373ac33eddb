"""Where a part's time goes: every stage is found in a run, none counts twice, and the picture has what was measured."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from PIL import Image

from maskmine.schemas.errors import InputError
from maskmine.scripts.benches.gates.alone import write_measures
from maskmine.scripts.benches.parts import chart, stages
from maskmine.scripts.benches.parts.part_time import DEMO, NOUNS_OF_PART, PAPER, measure_part
from maskmine.scripts.benches.parts.stages import ELSE, ON_DEVICE, STAGES, Stopwatch
from maskmine.scripts.demo_world.draw import draw_world
from maskmine.scripts.measures import Measure


def test_a_stage_within_another_counts_for_itself_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 2.0, 5.0, 6.0, 7.0, 10.0])
    monkeypatch.setattr(stages.time, "thread_time", lambda: next(clock))
    watch = Stopwatch()
    inner = watch.timed("inner", lambda: None)
    watch.timed("outer", lambda: (inner(), inner()))()
    assert watch.seconds == {"outer": 6.0, "inner": 4.0}


def test_stages_of_other_threads_do_not_count_for_what_waits_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 100.0, 103.0, 1.0])
    monkeypatch.setattr(stages.time, "thread_time", lambda: next(clock))
    watch = Stopwatch()

    def wait() -> None:
        thread = threading.Thread(target=watch.timed("read", lambda: None))
        thread.start()
        thread.join()

    watch.timed("outer", wait)()
    assert watch.seconds == {"read": 3.0, "outer": 1.0}


def test_every_stage_of_a_run_is_found_and_scaled_to_a_part(tmp_path: Path) -> None:
    world = tmp_path / "world"
    draw_world(world, scenes=4, seed=7)
    places = [f"captions.annotations={world / 'captions.json'}", f"captions.images={world / 'images'}"]
    measured = {m.name: m.value for m in measure_part(DEMO, [*places, f"out={tmp_path / 'run'}"], images=4)}
    seconds = {stage: measured[f"{DEMO}: {stage}"] for stage in STAGES}
    assert [stage for stage, taken_s in seconds.items() if taken_s <= 0 and stage != ELSE] == []
    assert measured[f"{DEMO}: a part"] == pytest.approx(sum(seconds.values()))
    beside_s = sum(taken_s for stage, taken_s in seconds.items() if stage not in ON_DEVICE)
    assert measured[f"{DEMO}: without what a GPU does"] == pytest.approx(beside_s)
    assert (tmp_path / "run" / "shards" / "00000.tar").exists()
    assert stages.shards.encode_mask.__module__ == "maskmine.mining.images.encode"  # as it was


def measures_of(name: str, seconds: float) -> list[Measure]:
    return [Measure(f"{name}: {stage}", seconds * (1 + number), "s") for number, stage in enumerate(STAGES)]


def test_the_picture_has_a_bar_for_each_of_the_models_and_one_beside_a_gpu(tmp_path: Path) -> None:
    measures = measures_of(DEMO, 1.0) + measures_of(PAPER, 100.0)
    demo, paper, beside = chart.bars_of(measures)
    of_device_s = sum(100.0 * (1 + STAGES.index(stage)) for stage in ON_DEVICE)
    assert (demo.total_s, paper.total_s - beside.total_s) == (120.0, of_device_s)
    write_measures(tmp_path / "part.json", [("part", one) for one in measures])
    chart.main(tmp_path / "part.json", tmp_path / "part.png")
    with Image.open(tmp_path / "part.png") as picture:
        assert picture.width > picture.height
        assert len(picture.convert("RGB").getcolors(1 << 20) or ()) > len(STAGES)
    assert (tmp_path / "part.png").stat().st_size < 150_000


def test_measures_of_something_else_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is it all of `bench part`"):
        chart.bars_of(measures_of(DEMO, 1.0))
    (tmp_path / "part.json").write_text("{}[")
    with pytest.raises(InputError, match="no measures of `bench part --json`"):
        chart.main(tmp_path / "part.json", tmp_path / "part.png")


def test_a_part_has_as_many_new_nouns_as_one_of_coco() -> None:
    assert pytest.approx(30_000 / (118_287 / 1000), rel=0.01) == NOUNS_OF_PART
