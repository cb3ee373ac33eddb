"""Sets with label maps, segmented and counted: figures known by hand, whoever counts; faults are one line each."""

from __future__ import annotations

import csv
import io
import json
import pickle
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from maskmine.pipelines.cli.main import run_app
from maskmine.pipelines.engines.beam import BeamEngine
from maskmine.pipelines.engines.engine import Engine, RunObserver
from maskmine.pipelines.engines.local import LocalEngine
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.pipelines.segment.benchmark import AS_SET, Benchmark, BenchmarkResult, run_benchmark
from maskmine.pipelines.segment.benchmark_report import render_report, write_report
from maskmine.pipelines.segment.benchmark_sets import BenchmarkSet, first_images, set_of_folders
from maskmine.pipelines.steps.grid import Step
from maskmine.pipelines.watch.progress import RunProgress
from maskmine.schemas.errors import InputError
from maskmine.schemas.rows import Rejection
from maskmine.scripts.accuracy.instance_maps import find_instance_set
from maskmine.tuning.benchmarks.prepare import prepare
from maskmine.tuning.benchmarks.published_results import PUBLISHED
from maskmine.tuning.segmentation.confusion import IGNORE
from maskmine.tuning.segmentation.evaluation import ClassMapping
from maskmine.tuning.segmentation.oracle import CASES
from maskmine.tuning.segmentation.segmenter import Rgb, Segment, Segmentation, Segmenter
from tests.support import toy
from tests.support.benchmark_layouts import write_miniature
from tests.support.models import save_tiny_clip

LOCAL = LocalEngine()

CLASSES = ("cat", "dog", "hat")
IGNORE_LABEL = 255
# Each picture says by its red what the segmenter will take its pixels for; sizes differ, so that batches do.
PREDICTED = {
    "1": [[0, 0, 0, 1], [1, 1, 2, 9]],  # 9 is no class
    "2": [[1, 1], [1, 1]],
    "3": [[0, 1, 2]],
    "10": [[2, 2, 2, 2], [2, 2, 2, 2]],
}
TRUE = {
    "1": [[0, 0, 0, 0], [1, 1, 255, 0]],
    "2": [[1, 1], [1, 255]],
    "3": [[0, 1, 1]],
    "10": [[255] * 4, [255] * 4],
}
MIOU = (
    4 / 6 + 6 / 8 + 0 / 1
) / 3  # cat: 4 of 6; dog: 6 of 7 true and 7 predicted, 1 of them a cat; hat: predicted once


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A set in evaluation form."""
    for name, numbers in PREDICTED.items():
        red_HW = np.array(numbers, np.uint8)
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "maps").mkdir(exist_ok=True)
        Image.fromarray(np.stack([red_HW] * 3, axis=2)).save(tmp_path / "images" / f"{int(name):03d}.png")
        Image.fromarray(np.array(TRUE[name], np.uint8)).save(tmp_path / "maps" / f"{int(name):03d}.png")
    (tmp_path / "names.txt").write_text("cat\ndog\nhat\n")
    return tmp_path


def open_by_red(self: Segmenter) -> Segment:
    """A segmenter that says what the pixels say; of λ it makes nothing."""

    def segment(
        pictures: Sequence[Rgb], *, classes: Sequence[str], image_ids: Sequence[str] | None = None
    ) -> list[Segmentation | Rejection]:
        maps = [rgb_HW3[:, :, 0].astype(np.int32) for rgb_HW3 in pictures]
        return [
            Segmentation(tuple(classes), np.where(map_HW < len(classes), map_HW, IGNORE), (), (), 0) for map_HW in maps
        ]

    return segment


@pytest.fixture(autouse=True)
def by_red(request: pytest.FixtureRequest) -> Iterator[None]:
    """No model is loaded, unless a test is marked to want one."""
    with pytest.MonkeyPatch.context() as patch:
        if "real_models" not in request.fixturenames:
            patch.setattr(Segmenter, "open", open_by_red)
            patch.setattr(Segmenter, "records", lambda self: [])
        yield


@pytest.fixture
def real_models() -> None:
    """Named by a test that wants the segmenter as it is."""


def of_folder(folder: Path) -> BenchmarkSet:
    return BenchmarkSet(
        set_of_folders(
            "mine",
            images=str(folder / "images"),
            maps=str(folder / "maps"),
            names=str(folder / "names.txt"),
            ignore=IGNORE_LABEL,
        )
    )


def run(folder: Path, *, to: Path, engine: Engine = LOCAL, per_part: int = 2, **changes: Any) -> BenchmarkResult:
    benchmark = Benchmark(of_folder(folder), Segmenter(device="cpu", **changes), RunFolder(str(to)), False, per_part)
    return run_benchmark(benchmark, engine=engine, observer=RunProgress())


def rendered(benchmark: Benchmark, outcome: BenchmarkResult) -> str:
    file = io.StringIO()
    Console(file=file, width=200).print(render_report(benchmark, outcome, by_class=False))
    return file.getvalue()


def command(folder: Path, *words: str) -> int:
    places = ("--images", "images"), ("--maps", "maps"), ("--names", "names.txt"), ("--to", "out")
    return run_app(["benchmark", "mine", *(word for one, path in places for word in (one, str(folder / path))), *words])


# --- figures ----------------------------------------------------------------------------------------------------------


def test_the_figures_are_those_known_by_hand(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "seen.txt").write_text("cat\n")
    assert command(folder, "--seen", str(folder / "seen.txt"), "--by-class") == 0
    found = json.loads((folder / "out" / "benchmark.json").read_text())
    figures = found["figures"]
    assert figures["mIoU"] == pytest.approx(MIOU, abs=1e-6)
    assert figures["fwIoU"] == pytest.approx((6 * 4 / 6 + 7 * 6 / 8) / 13, abs=1e-6)
    assert figures["mACC"] == pytest.approx((4 / 6 + 6 / 7) / 2, abs=1e-6)
    assert figures["pACC"] == pytest.approx(10 / 13, abs=1e-6)
    seen, unseen = 4 / 6, (6 / 8 + 0) / 2
    assert (figures["seen mIoU"], figures["unseen mIoU"]) == (pytest.approx(seen, abs=1e-6), pytest.approx(unseen))
    assert figures["harmonic"] == pytest.approx(2 * seen * unseen / (seen + unseen), abs=1e-6)
    assert (found["pictures"], found["not_counted"]) == (4, [])
    with (folder / "out" / "classes.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["class"], row["seen"], row["true_pixels"], row["predicted_pixels"]) for row in rows] == [
        ("cat", "true", "6", "4"),
        ("dog", "false", "7", "7"),
        ("hat", "false", "0", "1"),
    ]
    assert rows[2]["accuracy"] == ""
    said = capsys.readouterr().out
    assert f"{MIOU:.1%}" in said
    assert "66.7%" in said  # the line of the cat


def test_neither_parts_nor_workers_change_a_digit(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("apache_beam.runners.portability.fn_api_runner")
    engines: dict[str, tuple[Engine, int]] = {
        "one": (LocalEngine(), 100),
        "two": (LocalEngine(), 2),
        "four": (LocalEngine(), 1),
        "beam": (BeamEngine(), 2),
    }
    sums = {
        name: run(folder, to=tmp_path / name, engine=engine, per_part=size).sums[AS_SET].pixels_KL.tolist()
        for name, (engine, size) in engines.items()
    }
    assert all(one == sums["one"] for one in sums.values())
    cells = [sorted((tmp_path / name / "maps").glob("*.parquet")) for name in ("two", "beam")]
    assert [path.read_bytes() for path in cells[0]] == [path.read_bytes() for path in cells[1]]


def test_the_work_of_a_part_travels_to_other_machines(folder: Path, tmp_path: Path) -> None:
    benchmark = Benchmark(of_folder(folder), Segmenter(device="cpu"), RunFolder(str(tmp_path / "run")), False, 2)
    job = pickle.loads(pickle.dumps(benchmark.step().job))
    (report,) = job.open()(1, lambda records: None)
    assert report.images == 2


class Elsewhere:
    """An engine whose workers say whether they have GPUs, and are of this process nonetheless."""

    models_run_here = False

    def __init__(self, *, gpus: bool) -> None:
        self.gpus = gpus

    def workers_have_gpus(self) -> bool:
        return self.gpus

    def run(self, run: RunFolder, steps: Sequence[Step], observer: RunObserver) -> None:
        LOCAL.run(run, steps, observer)


def test_maps_of_another_kind_of_device_are_made_again(folder: Path) -> None:
    found = of_folder(folder)
    asked = Benchmark(found, Segmenter(device="auto"), RunFolder(str(folder / "run")), False, 2)
    stale = [
        run_benchmark(asked, engine=Elsewhere(gpus=gpus), observer=RunProgress()).stale
        for gpus in (False, False, True, True)
    ]
    assert stale == [0, 0, 2, 0], "a GPU computes in another precision by default"


def test_pixels_without_a_true_class_count_nowhere_and_those_without_a_predicted_one_are_missed(folder: Path) -> None:
    counted = run(folder, to=folder / "run").sums[AS_SET].pixels_KL
    assert counted.sum() == 13
    assert counted[0].tolist() == [4, 1, 0, 1]


def test_classes_of_one_name_are_asked_for_once_and_the_background_has_no_label() -> None:
    mapping = ClassMapping.of(("Bus", "others", "tree", "bus"))
    assert mapping.segmenter_classes == ("Bus", "tree", "others")
    assert mapping.to_set_labels(np.array([[0, 1, IGNORE]])).tolist() == [[0, 2, IGNORE]]


def test_published_figures_stand_beside_those_of_a_whole_official_set_only(folder: Path) -> None:
    outcome = run(folder, to=folder / "run")
    mine = replace(of_folder(folder).dataset, name="ade150", seen=frozenset({"cat"}))
    said, figures = {}, {}
    for official in (False, True):
        found = BenchmarkSet(mine, official=official)
        benchmark = Benchmark(found, Segmenter(device="cpu"), RunFolder(str(folder / "run")))
        said[official] = rendered(benchmark, outcome)
        write_report(benchmark, outcome)
        figures[official] = json.loads((folder / "run" / "benchmark.json").read_text())["published_percent"]
    assert "arXiv" not in said[False]
    assert figures[False] == []
    assert said[True].rstrip().endswith("published: arXiv 2210.04150 (OVSeg); github.com/facebookresearch/ov-seg")
    lines = said[True].splitlines()
    rows = [line.split() for line in lines if line.startswith("this run")]
    seen, unseen = 100 * 4 / 6, 100 * (6 / 8 + 0) / 2
    shown = [("unseen", f"{unseen:.1f}"), ("all", f"{100 * MIOU:.1f}"), ("seen", f"{seen:.1f}")]
    assert [(row[2], row[3], row[4]) for row in rows] == [(*one, "measured") for one in shown]
    (place,) = (number for number, line in enumerate(lines) if line.split()[:3] == ["this", "run", "all"])
    assert lines[place - 1].startswith("supervised: MaskFormer, R101c")  # 46.0, and ours is 47.2
    (unseen_of_others,) = (one for one in figures[True] if one["classes"] == "unseen")
    assert (unseen_of_others["miou"], unseen_of_others["source"]) == (21.9, "arXiv 2210.04150 (OVSeg), appendix A.8")
    assert all(row.source and row.location and row.miou for row in PUBLISHED)


def test_the_first_pictures_of_an_official_set_are_none(folder: Path) -> None:
    whole = BenchmarkSet(of_folder(folder).dataset, official=True)
    part = first_images(whole, 2)
    assert (part.official, part.note) == (False, "only the first 2 of 4 pictures")
    assert part.dataset.images == whole.dataset.images[:2]
    assert first_images(whole, 4) is whole


def test_a_bottleneck_stands_beside_published_oracles(folder: Path) -> None:
    outcome = run(folder, to=folder / "run")
    sums = {case.name: outcome.sums[AS_SET] for case in CASES}
    found = BenchmarkSet(replace(of_folder(folder).dataset, name="ade150"), official=True)
    benchmark = Benchmark(found, Segmenter(device="cpu"), RunFolder(str(folder / "run")), oracle=True)
    lines = rendered(benchmark, replace(outcome, sums=sums)).splitlines()
    ours = [line for line in lines if line.rstrip().endswith("measured")]
    assert len(ours) == len(CASES)
    assert all(f"{100 * MIOU:.1f}" in line for line in ours)
    assert any("MaskFormer's masks, true classes" in line and " 66.5 " in line for line in lines)


def test_the_main_table_of_the_paper_is_there_whole() -> None:
    rows = [row for row in PUBLISHED if row.location == "table 1"]
    counted = Counter(name for row in rows for name in row.miou)
    assert counted == {"ade847": 8, "pc459": 7, "ade150": 11, "pc59": 11, "voc20": 12}
    free = [row for row in rows if row.trained_on != "the set itself"]
    best = {name: max(row.miou.get(name, 0.0) for row in free) for name in counted}
    (ovseg,) = (row for row in rows if row.method == "OVSeg, Swin-B, CLIP ViT-L/14")
    assert (len(rows), best) == (16, ovseg.miou)


# --- what is there stays ----------------------------------------------------------------------------------------------


def test_what_is_counted_is_not_counted_again_and_a_lost_part_is(folder: Path, monkeypatch: Any) -> None:
    to = folder / "run"
    first = run(folder, to=to)
    stamps = {path.name: path.stat().st_mtime_ns for path in (to / "maps").glob("*.parquet")}
    (to / "maps" / "00001.parquet").unlink()
    again = run(folder, to=to)
    assert again.sums[AS_SET].pixels_KL.tolist() == first.sums[AS_SET].pixels_KL.tolist()
    assert (to / "maps" / "00000.parquet").stat().st_mtime_ns == stamps["00000.parquet"]
    monkeypatch.setattr(Segmenter, "open", lambda self: pytest.fail("nothing is left to do"))
    assert run(folder, to=to).stale == 0


def test_other_settings_or_pictures_make_all_parts_again_and_other_devices_none(folder: Path) -> None:
    to = folder / "run"
    run(folder, to=to)
    assert run(folder, to=to, batch_size=1).stale == 0
    assert run(folder, to=to, rule="ensemble", clip_weight=0.6).stale == 2
    (folder / "images" / "010.png").unlink()
    (folder / "maps" / "010.png").unlink()
    assert run(folder, to=to, rule="ensemble", clip_weight=0.6).stale == 2


def test_another_list_of_classes_or_another_label_for_none_makes_all_parts_again(folder: Path) -> None:
    to = folder / "run"
    run(folder, to=to)
    (folder / "names.txt").write_text("cat\ndog\nbird\n")
    assert run(folder, to=to).stale == 2
    other = BenchmarkSet(replace(of_folder(folder).dataset, ignore=254))
    with pytest.raises(InputError, match="has the label 255, the 3 classes are 0 to 2 and 254 is not counted"):
        run_benchmark(
            Benchmark(other, Segmenter(device="cpu"), RunFolder(str(to)), False, 2),
            engine=LocalEngine(),
            observer=RunProgress(),
        )


# --- faults -----------------------------------------------------------------------------------------------------------


def test_pictures_that_cannot_be_counted_are_named_and_the_exit_code_says_so(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "images" / "002.png").write_bytes(b"no picture")
    (folder / "maps" / "003.png").write_bytes(b"no map")
    Image.fromarray(np.zeros((4, 2), np.uint8)).save(folder / "maps" / "010.png")
    assert command(folder) == 3
    said = capsys.readouterr().err
    for line in (
        "2: decode_error",
        "3: decode_error (label map: neither PNG nor TIFF)",
        "10: image_changed (the picture is 2 × 4 pixels, its label map 4 × 2)",
        "3 of 4 pictures are not in these figures",
    ):
        assert line in said
    found = json.loads((folder / "out" / "benchmark.json").read_text())
    assert [one["image_id"] for one in found["not_counted"]] == ["2", "3", "10"]


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    *_, line = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("maskmine: ")
    return line


def test_labels_beyond_the_classes_are_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "names.txt").write_text("cat\n")
    assert command(folder) == 2
    assert ".png: has the label 1, the 1 classes are 0 to 0 and 255 is not counted" in one_line(capsys)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["mine"], "mine: unknown; known are ade150, ade847"),
        (["ade150"], "ade150: where is it? Give --root DIR"),
        (["ade150", "--root", "nowhere"], "nowhere"),
        (["mine", "--images", "images"], "--maps: missing"),
        (["mine", "--set", "clip_weight=1.5"], "--set clip_weight: input should be less than 1, not 1.5"),
        (["mine", "--set", "rule=best"], "--set rule: "),
        (["mine", "--engine", "none"], "--engine none: unknown"),
    ],
)
def test_a_wrong_command_is_one_line(words: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(["benchmark", *words]) == 2
    assert line in one_line(capsys)


def test_a_folder_that_is_no_set_is_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "names.txt").write_text("cat\n\nhat\n")
    assert command(folder) == 2
    assert "line 2 is empty" in one_line(capsys)
    (folder / "names.txt").write_text("\n")
    assert command(folder) == 2
    assert "has no names" in one_line(capsys)
    (folder / "names.txt").write_text("cat\ndog\nhat\n")
    (folder / "maps" / "003.png").unlink()
    assert command(folder) == 2
    assert "1 without a map" in one_line(capsys)
    Image.new("RGB", (3, 1)).save(folder / "maps" / "003.png")
    assert command(folder) == 2
    assert "003.png: is in colour (RGB), not a map of labels" in one_line(capsys)
    assert command(folder, "--seen", str(folder / "seen.txt")) == 2
    assert "--seen" in one_line(capsys)


# --- with models ------------------------------------------------------------------------------------------------------


def test_true_masks_and_a_tiny_clip_go_the_whole_way(real_models: None, tmp_path: Path) -> None:
    world = toy.write_toy_world(tmp_path)
    found = find_instance_set(
        tmp_path / "set", instances=str(world / "instances.json"), images=world / "images", name="toy"
    )
    assert found.classes == ("bar", "disc", "square")
    clip = {"model": str(save_tiny_clip(tmp_path / "clip"))}
    settings = Segmenter.model_validate(
        {
            "proposals": {"kind": "ground_truth", "annotations": str(world / "instances.json")},
            "clip": clip,
            "templates": "raw",
            "device": "cpu",
            "cpu_threads": 1,
        }
    )
    counted = {}
    for bottleneck in (False, True):
        benchmark = Benchmark(BenchmarkSet(found), settings, RunFolder(str(tmp_path / "run")), bottleneck)
        counted[bottleneck] = run_benchmark(benchmark, engine=LocalEngine(), observer=RunProgress())
    # pictures without an object have no masks, and are rejected; the others' objects are all somebody's
    assert {reason.reason for _, reason in counted[False].rejected} == {"no_masks"}
    assert counted[False].sums[AS_SET].pixels_KL[:, IGNORE].sum() == 0
    assert list(counted[True].sums) == ["true masks, CLIP on unmasked crops", "true masks, CLIP on masked crops"]


def test_an_official_set_is_measured_as_it_was_prepared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_miniature("voc20", tmp_path)
    prepare("voc20", str(tmp_path), partial=True)
    assert run_app(["benchmark", "voc20", "--root", str(tmp_path), "--to", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "voc20: " in said
    assert "not what published figures are of" in said
    assert "arXiv" not in said
