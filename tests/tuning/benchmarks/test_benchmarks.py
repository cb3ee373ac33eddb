"""The benchmarks' data sets: each prepared in little from the layout of its download, and all that can be amiss."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import maskmine.tuning.benchmarks.prepare as benchmarks
from maskmine.pipelines.cli.main import run_app
from maskmine.schemas.errors import IncompleteError, InputError
from maskmine.tuning.benchmarks.ade_index import read_ade_index
from maskmine.tuning.benchmarks.classes import context_classes
from maskmine.tuning.benchmarks.layouts import LAYOUTS
from maskmine.tuning.benchmarks.prepare import NAMES, VOID, class_names, open_benchmark, prepare
from tests.support.benchmark_layouts import read_map, save_map, save_picture, write_ade_index, write_miniature


def files_below(root: Path) -> dict[str, tuple[bytes, int]]:
    """The bytes of every file, and when it was written."""
    return {
        str(path.relative_to(root)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in root.rglob("*")
        if path.is_file()
    }


def fault(call: Callable[[], object]) -> str:
    with pytest.raises(InputError) as caught:
        call()
    return str(caught.value)


@pytest.mark.parametrize("name", NAMES)
def test_each_set_comes_to_the_right_maps_pixel_by_pixel(name: str, tmp_path: Path) -> None:
    expected = write_miniature(name, tmp_path)
    found = prepare(name, str(tmp_path), partial=True).dataset
    assert sorted(one.image_id for one in found.images) == sorted(expected)
    for one in found.images:
        labels_HW = read_map(one.labels)
        assert labels_HW.dtype == expected[one.image_id].dtype
        assert np.array_equal(labels_HW, expected[one.image_id]), one.image_id
        with Image.open(one.image) as image:
            assert image.size == labels_HW.shape[::-1]
    assert found.ignore == np.iinfo(labels_HW.dtype).max
    assert len(found.classes) == int(name.rpartition("-")[2].lstrip("adepcvo"))


@pytest.mark.parametrize("name", NAMES)
def test_a_second_preparation_gives_the_same_and_writes_nothing(name: str, tmp_path: Path) -> None:
    write_miniature(name, tmp_path)
    first = prepare(name, str(tmp_path), partial=True)
    before = files_below(tmp_path)
    second = prepare(name, str(tmp_path), partial=True)
    assert files_below(tmp_path) == before
    assert (first.dataset, first.left_out) == (second.dataset, second.left_out)
    assert second.written == 0
    assert first.written == 2
    assert open_benchmark(name, str(tmp_path)) == second


@pytest.mark.parametrize("name", ["ade847", "pc459"])
def test_what_was_stopped_half_way_goes_on_with_what_is_missing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = write_miniature(name, tmp_path)

    def stop(done: int, of: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(name, str(tmp_path), partial=True, tick=stop)
    maps = tmp_path / LAYOUTS[name].maps
    (half,) = maps.iterdir()
    written = half.stat().st_mtime_ns
    assert "is not prepared" in fault(lambda: open_benchmark(name, str(tmp_path)))
    (maps / f"{half.name}.partial").write_bytes(b"what a killed process left")
    found = prepare(name, str(tmp_path), partial=True)
    assert half.stat().st_mtime_ns == written
    assert (found.written, len(found.dataset.images)) == (1, len(expected))


def test_several_processes_write_the_same_bytes_as_one(tmp_path: Path) -> None:
    for folder, processes in (("one", 1), ("two", 2)):
        write_miniature("voc20", tmp_path / folder)
        prepare("voc20", str(tmp_path / folder), partial=True, processes=processes)
    one, two = ({name: content for name, (content, _) in files_below(tmp_path / f).items()} for f in ("one", "two"))
    assert one == two


def test_a_download_that_nobody_may_write_to_is_prepared_through_links(tmp_path: Path) -> None:
    data, root = tmp_path / "data/ADEChallengeData2016", tmp_path / "links/ADEChallengeData2016"
    expected = write_miniature("ade150", tmp_path / "data")
    root.mkdir(parents=True)
    for name in ("images", "annotations"):
        (root / name).symlink_to(data / name)
    before = files_below(data)
    assert len(prepare("ade150", str(root.parent), partial=True).dataset.images) == len(expected)
    assert files_below(data) == before


def test_a_set_in_preparation_is_not_prepared_twice_at_once(tmp_path: Path) -> None:
    write_miniature("voc20", tmp_path)
    said = []

    def again(done: int, of: int) -> None:
        with pytest.raises(IncompleteError, match="another process prepares it"):
            prepare("voc20", str(tmp_path), partial=True)
        said.append(done)

    prepare("voc20", str(tmp_path), partial=True, tick=again)
    assert said == [1, 2]


def test_less_than_the_official_set_needs_to_be_asked_for(tmp_path: Path) -> None:
    write_miniature("ade150", tmp_path)
    line = fault(lambda: prepare("ade150", str(tmp_path)))
    assert "1,998 of 2,000 maps are missing" in line
    assert "ADE_val_00000003.png" in line
    assert "http://data.csail.mit.edu/" in line
    assert "--partial" in line
    assert not (tmp_path / "ADEChallengeData2016/annotations_detectron2").exists()
    found = prepare("ade150", str(tmp_path), partial=True)
    assert not found.complete
    assert found.line() == "ade150: 2 of 2,000 pictures, not what published figures are of"


def test_a_list_of_another_length_than_the_official_one_is_named(tmp_path: Path) -> None:
    write_miniature("voc20", tmp_path)
    assert "has 2 pictures, the official set 1,449" in fault(lambda: prepare("voc20", str(tmp_path)))
    write_miniature("pc59", tmp_path)
    assert "5,104 or 5,105" in fault(lambda: prepare("pc59", str(tmp_path)))


def test_a_whole_set_is_complete_and_is_opened_by_its_record_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_miniature("voc20", tmp_path)
    layout = LAYOUTS["voc20"]
    whole = type(layout)(**{name: getattr(layout, name) for name in layout.__dataclass_fields__} | {"official": {2}})
    monkeypatch.setattr(benchmarks, "LAYOUTS", {"voc20": whole})
    found = prepare("voc20", str(tmp_path))
    assert found.complete
    assert found.line() == "voc20: all 2 pictures"
    shutil.rmtree(tmp_path / "VOCdevkit/VOC2012/SegmentationClassAug")  # needed no more
    assert prepare("voc20", str(tmp_path)).dataset == found.dataset


FIRST_MISSING = {
    "ade150": ("ADEChallengeData2016/images/validation", "ADEchallenge/ADEChallengeData2016.zip"),
    "ade847": ("ADE20K_2021_17_01/index_ade20k.pkl", "datasets/ADE20K/request_data"),
    "pc59": ("VOCdevkit/VOC2010/trainval", "pascal-context/trainval.tar.gz"),
    "pc459": ("VOCdevkit/VOC2010/trainval", "pascal-context/trainval.tar.gz"),
    "voc20": ("VOCdevkit/VOC2012/JPEGImages", "VOCtrainval_11-May-2012.tar"),
    "coco-stuff-171": ("coco/train2017", "zips/train2017.zip"),
}


@pytest.mark.parametrize("name", NAMES)
def test_of_an_empty_root_the_first_thing_missing_is_named_and_where_to_get_it(name: str, tmp_path: Path) -> None:
    for call in (lambda: prepare(name, str(tmp_path)), lambda: open_benchmark(name, str(tmp_path))):
        line = fault(call)
        assert all(part in line for part in FIRST_MISSING[name])
        assert "\n" not in line


@pytest.mark.parametrize("name", NAMES)
def test_every_file_or_folder_that_a_set_needs_is_missed_by_its_name(name: str, tmp_path: Path) -> None:
    write_miniature(name, tmp_path)
    for need in LAYOUTS[name].needs:
        away = tmp_path / "away"
        (tmp_path / need.path).rename(away)
        line = fault(lambda: prepare(name, str(tmp_path), partial=True))
        assert f"{need.path}" in line
        assert need.url in line
        away.rename(tmp_path / need.path)
    prepare(name, str(tmp_path), partial=True)


@pytest.mark.parametrize("name", NAMES)
def test_a_root_above_or_below_the_right_one_is_recognised(name: str, tmp_path: Path) -> None:
    root = tmp_path / "data"
    write_miniature(name, root)
    assert f"one folder deeper; give --root {root}" in fault(lambda: prepare(name, str(tmp_path)))
    parts = Path(LAYOUTS[name].needs[0].path).parts
    for depth in range(1, len(parts)):
        inner = root / Path(*parts[:depth])
        if inner.is_dir():
            line = fault(lambda inner=inner: prepare(name, str(inner)))  # type: ignore[misc]
            assert line.endswith(f"is within the data set; give --root {root}")


def test_a_data_set_without_the_folder_around_it_is_recognised(tmp_path: Path) -> None:
    write_miniature("voc20", tmp_path / "x")
    line = fault(lambda: prepare("voc20", str((tmp_path / "x/VOCdevkit").rename(tmp_path / "voc"))))
    assert "belongs into a folder `VOCdevkit`" in line


def test_a_root_that_is_not_there_or_not_on_a_disk_and_a_set_that_nobody_knows_are_named(tmp_path: Path) -> None:
    assert "there is no such folder" in fault(lambda: prepare("ade150", str(tmp_path / "nowhere")))
    assert "from a disk" in fault(lambda: prepare("ade150", "s3://bucket/data"))
    assert "there are ade150, ade847" in fault(lambda: prepare("ade1500", str(tmp_path)))


def test_bad_files_cost_their_own_pictures_and_the_result_says_so(tmp_path: Path) -> None:
    write_miniature("ade150", tmp_path)
    images, maps = (tmp_path / "ADEChallengeData2016" / kind / "validation" for kind in ("images", "annotations"))
    save_picture(images / "ADE_val_00000003.jpg")
    save_map(maps / "ADE_val_00000004.png", np.zeros((2, 4)))
    for number, numbers in (
        (5, np.zeros((4, 2))),
        (6, np.full((2, 4), 151)),
        (7, np.ones((2, 4))),
        (8, np.ones((2, 4))),
    ):
        save_picture(images / f"ADE_val_{number:08d}.jpg")
        save_map(maps / f"ADE_val_{number:08d}.png", numbers)
    (maps / "ADE_val_00000007.png").write_bytes((maps / "ADE_val_00000007.png").read_bytes()[:40])
    Image.new("RGB", (4, 2)).save(maps / "ADE_val_00000008.png")
    found = prepare("ade150", str(tmp_path), partial=True)
    reasons = {one.image_id[-1]: one.reason for one in found.left_out}
    assert reasons.pop("7").startswith("its map cannot be read")
    assert reasons == {
        "3": "no map",
        "4": "no picture",
        "5": "its picture has 4 × 2 pixels, its map 2 × 4",
        "6": "its map has the number 151, which is no class",
        "8": "its map is in colour (RGB), so it is none of numbers",
    }
    assert [one.image_id[-1] for one in found.dataset.images] == ["1", "2"]
    assert "2 of 2,000 pictures" in found.line()
    assert "1 left out: no map" in found.line()
    assert open_benchmark("ade150", str(tmp_path)).left_out == found.left_out


def test_files_of_matlab_that_are_broken_or_of_another_kind_are_named(tmp_path: Path) -> None:
    from scipy.io import savemat

    write_miniature("pc59", tmp_path)
    maps = tmp_path / "VOCdevkit/VOC2010/trainval"
    (maps / "2008_000002.mat").write_bytes(b"MATLAB 5.0 MAT-file" + bytes(500))
    savemat(maps / "2008_000003.mat", {"Something": np.zeros((2, 4))})
    assert "can be used" in fault(lambda: prepare("pc59", str(tmp_path), partial=True))
    savemat(maps / "2008_000003.mat", {"LabelMap": np.full((2, 4), 460, np.uint16)})
    line = fault(lambda: prepare("pc59", str(tmp_path), partial=True))
    assert line.startswith("pc59: none of its 2 pictures")


def test_pictures_of_coco_stuff_without_any_class_are_left_out_but_have_a_map(tmp_path: Path) -> None:
    write_miniature("coco-stuff-171", tmp_path)
    found = prepare("coco-stuff-171", str(tmp_path), partial=True)
    assert [(one.image_id, one.reason) for one in found.left_out] == [("000000000025", VOID)]
    assert (tmp_path / "coco/stuffthingmaps_detectron2/train2017/000000000025.png").exists()


def test_maps_of_another_tool_stay_as_they_are_and_a_broken_one_is_made_anew(tmp_path: Path) -> None:
    write_miniature("voc20", tmp_path)
    maps = tmp_path / "VOCdevkit/VOC2012/annotations_detectron2/val"
    save_map(maps / "2007_000033.png", [[255, 0, 19, 255], [255, 255, 14, 255]])  # the same, in other bytes
    (maps / "2007_000042.png").write_bytes(b"cut off")
    bytes_before = (maps / "2007_000033.png").read_bytes()
    assert prepare("voc20", str(tmp_path), partial=True).written == 1
    assert (maps / "2007_000033.png").read_bytes() == bytes_before
    save_map(maps / "2007_000042.png", np.zeros((2, 4)))
    assert "another tool made them" in fault(lambda: prepare("voc20", str(tmp_path), partial=True))
    assert not read_map(maps / "2007_000042.png").any()


def test_a_prepared_set_whose_files_have_gone_is_not_opened(tmp_path: Path) -> None:
    write_miniature("voc20", tmp_path)
    prepare("voc20", str(tmp_path), partial=True)
    (tmp_path / "VOCdevkit/VOC2012/JPEGImages/2007_000042.jpg").unlink()
    line = fault(lambda: open_benchmark("voc20", str(tmp_path)))
    assert "2007_000042.jpg is missing" in line
    assert "maskmine benchmark voc20" in line


@pytest.mark.parametrize("damage", ["", "[]", '{"form": 1}', None])
def test_a_damaged_record_or_one_of_other_classes_counts_as_none(damage: str | None, tmp_path: Path) -> None:
    write_miniature("voc20", tmp_path)
    prepare("voc20", str(tmp_path), partial=True)
    record = tmp_path / "VOCdevkit/VOC2012/annotations_detectron2/val.maskmine.json"
    stored = json.loads(record.read_text())
    stored["classes"][0] = "spaceship"
    record.write_text(json.dumps(stored) if damage is None else damage)
    assert "is not prepared" in fault(lambda: open_benchmark("voc20", str(tmp_path)))
    assert prepare("voc20", str(tmp_path), partial=True).written == 0
    open_benchmark("voc20", str(tmp_path))


def test_either_list_of_pascal_contexts_pictures_will_do(tmp_path: Path) -> None:
    write_miniature("pc59", tmp_path)
    folder = tmp_path / "VOCdevkit/VOC2010"
    (folder / "pascalcontext_val.txt").unlink()
    images = [
        {"file_name": f"2008_00000{n}.jpg", "phase": phase} for n, phase in ((2, "val"), (1, "train"), (3, "val"))
    ]
    (folder / "trainval_merged.json").write_text(json.dumps({"images": images, "annos_segmentation": []}))
    found = prepare("pc59", str(tmp_path), partial=True).dataset
    assert [one.image_id for one in found.images] == ["2008_000002", "2008_000003"]


def test_voc_without_the_grown_maps_is_prepared_from_its_own_ones(tmp_path: Path) -> None:
    expected = write_miniature("voc20", tmp_path)
    folder = tmp_path / "VOCdevkit/VOC2012"
    (folder / "SegmentationClassAug").rename(folder / "SegmentationClass")
    found = prepare("voc20", str(tmp_path), partial=True).dataset
    assert all(np.array_equal(read_map(one.labels), expected[one.image_id]) for one in found.images)


class Hostile:
    """What makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


def test_a_hostile_index_is_refused_before_anything_of_it_is_run(tmp_path: Path) -> None:
    write_miniature("ade847", tmp_path)
    path, made = tmp_path / "ADE20K_2021_17_01/index_ade20k.pkl", tmp_path / "made"
    path.write_bytes(pickle.dumps({"filename": [], "folder": [], "objectnames": Hostile(made)}))
    line = fault(lambda: prepare("ade847", str(tmp_path), partial=True))
    assert f"asks for {os.mkdir.__module__}.mkdir" in line
    assert not made.exists()
    pickle.loads(path.read_bytes())  # and it is hostile
    assert made.exists()


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\x80\x04cut off", id="cut off"),
        pytest.param(pickle.dumps([1, 2]), id="a list"),
        pytest.param(pickle.dumps({"filename": ["a.jpg"], "folder": [], "objectnames": []}), id="of two lengths"),
        pytest.param(pickle.dumps({"filename": [1], "folder": ["a"], "objectnames": []}), id="numbers for names"),
        pytest.param(
            pickle.dumps({"filename": ["a.jpg"], "folder": ["../../etc"], "objectnames": []}), id="out of the folder"
        ),
        pytest.param(b"cnumpy\nndarray\n((I9999999999999999\ntR.", id="an array beyond all memory"),
        pytest.param(
            b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I9999999999999999\ntVb\ntR.",
            id="such an array again",
        ),
        pytest.param(b"c_codecs\nencode\n(Va\nVzip\ntR.", id="another encoding"),
    ],
)
def test_an_index_of_another_form_is_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "index_ade20k.pkl"
    path.write_bytes(content)
    assert str(path) in fault(lambda: read_ade_index(path))


def test_an_index_of_another_release_is_named(tmp_path: Path) -> None:
    write_miniature("ade847", tmp_path)
    path = tmp_path / "ADE20K_2021_17_01/index_ade20k.pkl"
    write_ade_index(path, "ADE20K_2021_17_01/images/ADE/validation/urban/street")
    index = pickle.loads(path.read_bytes())
    index["objectnames"] = index["objectnames"][1:]
    path.write_bytes(pickle.dumps(index))
    assert "another release" in fault(lambda: prepare("ade847", str(tmp_path), partial=True))


def test_the_classes_of_pc459_come_with_its_download_and_an_own_list_is_said_to_be_one(tmp_path: Path) -> None:
    assert "give --root" in fault(lambda: class_names("pc459"))
    write_miniature("pc459", tmp_path)
    assert class_names("pc459", str(tmp_path))[1] == "aeroplane"
    found = prepare("pc459", str(tmp_path), partial=True)
    assert found.own_classes
    assert "labels.txt" in found.line()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda lines: lines[:-1], "458 like them"),
        (lambda lines: [lines[0], "2: aircraft", *lines[2:]], "2 is `aircraft`, not `aeroplane`"),
        (lambda lines: [*lines[:2], "3: aeroplane", *lines[3:]], "459 like them"),
    ],
)
def test_another_labels_txt_of_pascal_context_is_named(
    change: Callable[[list[str]], list[str]], said: str, tmp_path: Path
) -> None:
    write_miniature("pc459", tmp_path)
    path = tmp_path / "VOCdevkit/VOC2010/labels.txt"
    path.write_text("\n".join(change(path.read_text().splitlines())))
    assert said in fault(lambda: context_classes(path))


def test_the_command_prepares_says_what_it_left_out_and_opens_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_miniature("voc20", tmp_path)
    ask = ["benchmark", "voc20", "--root", str(tmp_path), "--prepare-only"]
    assert run_app(ask) == 2
    assert "has 2 pictures, the official set 1,449" in capsys.readouterr().err
    assert run_app([*ask, "--partial"]) == 0
    assert "voc20: 2 of 1,449 pictures, not what published figures are of; 2 maps written" in capsys.readouterr().out
    (tmp_path / "VOCdevkit/VOC2012/JPEGImages/2007_000042.jpg").unlink()
    assert run_app([*ask, "--partial"]) == 3
    assert "2007_000042: no picture" in capsys.readouterr().err
    assert run_app(["benchmark", "voc20", "--prepare-only"]) == 2
    assert run_app(["benchmark", "voc20", "--root", str(tmp_path), "--partial"]) == 2
