"""`maskmine segment`: pictures by file, folder or pattern to label maps, overlays and figures; one line for a fault."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from PIL import Image

from maskmine.pipelines.cli.main import run_app
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.pipelines.segment.images import find_images, read_classes
from maskmine.pipelines.segment.segment import OutputNames, label_png, output_names
from maskmine.schemas.errors import InputError
from maskmine.tuning.segmentation.confusion import IGNORE
from maskmine.tuning.segmentation.overlay import (
    LEGEND_PX,
    MAX_ROWS,
    SHOWN_LONG_PX,
    add_legend,
    class_colour,
    draw_layers,
    draw_map,
)
from maskmine.tuning.segmentation.segmenter import Segmentation, class_numbers
from tests.support.models import CLIP, CONFIG, MASKFORMER, SCENES, mean_iou

NOUNS = sorted({noun.noun for scene in SCENES for noun in scene.nouns})
SHIPPED = ["--config", str(CONFIG)]
SHIPPED += ["--set", f"clip.model={CLIP}", "--set", f"proposals.checkpoint={MASKFORMER}"]
SHIPPED += ["--set", "cpu_threads=1", "--set", "templates=raw"]


def segment(*arguments: object, classes: str = ", ".join(NOUNS)) -> int:
    named = ["--classes", classes] if classes else []
    return run_app(["segment", *map(str, arguments), *named, *SHIPPED])


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for number, scene in enumerate(SCENES):
        Image.fromarray(scene.picture_HW3).save(folder / f"scene {number}.png")
    (folder / "notes.txt").write_text("no picture, and not named like one")
    return folder


@pytest.fixture(scope="module")
def out(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("out")
    assert segment(pictures, "--to", folder) == 0
    return folder


# --- what is written --------------------------------------------------------------------------------------------------


def test_scenes_are_mapped_mostly_right(out: Path) -> None:
    figures = []
    for number, scene in enumerate(SCENES):
        stored = Image.open(out / f"scene {number}.labels.png")
        assert (stored.mode, stored.size) == ("L", scene.picture_HW3.shape[1::-1])
        labels_HW = np.asarray(stored).astype(np.int32)
        labels_HW[labels_HW == 255] = IGNORE
        figures.append(mean_iou(Segmentation(tuple(NOUNS), labels_HW, (), (), 0), scene))
    assert np.mean(figures) > 0.7


def test_the_figures_say_what_the_map_holds_and_what_it_was_made_with(out: Path) -> None:
    found = json.loads((out / "scene 0.json").read_text("utf-8"))
    labels_HW = np.asarray(Image.open(out / found["label_map"]))
    assert [one["name"] for one in found["classes"]] == NOUNS
    for one in [*found["classes"], found["no_class"]]:
        assert one["pixels"] == (labels_HW == one["label"]).sum()
        assert one["share"] == pytest.approx(one["pixels"] / labels_HW.size, abs=1e-6)
    assert found["image"] == "scene 0.png"
    assert all(0 <= one["score"] <= 1 for one in found["classes"])
    assert [len(model["sha256"]) for model in found["models"]] == [64, 64]
    assert found["settings"]["rule"] == "clip"
    assert str(out) not in json.dumps(found)
    assert str(CLIP) not in json.dumps(found)


def test_the_overlay_has_the_picture_and_a_legend_with_the_colours_and_room_for_the_names(out: Path) -> None:
    found = json.loads((out / "scene 0.json").read_text("utf-8"))
    overlay = Image.open(out / found["overlay"])
    assert overlay.width > SHOWN_LONG_PX[0] + LEGEND_PX
    legend = {
        colour for _, colour in overlay.crop((overlay.width - LEGEND_PX - 20, 0, *overlay.size)).getcolors(1 << 24)
    }
    present = [one["label"] for one in found["classes"] if one["pixels"]]
    absent = [one["label"] for one in found["classes"] if not one["pixels"]]
    assert len(present) > 1
    assert {class_colour(number) for number in present} <= legend
    assert not {class_colour(number) for number in absent} & legend
    assert (40, 42, 48) in legend  # ink


def test_the_same_picture_alone_gives_the_same_bytes_and_a_line_that_says_what_it_shows(
    out: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert segment(pictures / "scene 2.png", "--to", tmp_path / "again") == 0
    again = contents(tmp_path / "again")
    assert sorted(again) == ["scene 2.json", "scene 2.labels.png", "scene 2.overlay.png"]
    assert all(contents(out)[name] == content for name, content in again.items())
    said = " ".join(capsys.readouterr().out.split())
    assert "pumpkin" in said
    assert said.endswith(f"% → {tmp_path}/again/scene 2.overlay.png")


def test_granularity_is_an_option_and_chooses_masks_by_class(pictures: Path, tmp_path: Path) -> None:
    picture = pictures / "scene 0.png"
    assert segment(picture, "--granularity", "0.25", "--to", tmp_path, classes="goat, church") == 0
    made_with = json.loads((tmp_path / "scene 0.json").read_text("utf-8"))["settings"]
    assert (made_with["paint"], made_with["granularity"]) == ("best_per_class", 0.25)


def test_more_than_255_classes_take_16_bits() -> None:
    labels_HW = np.array([[0, IGNORE, 254]], np.int32)
    small = Image.open(io.BytesIO(label_png(labels_HW, numbers=range(255))))
    large = Image.open(io.BytesIO(label_png(labels_HW, numbers=range(256))))
    assert np.asarray(small).tolist() == [[0, 255, 254]]
    assert np.asarray(large).tolist() == [[0, 65535, 254]]
    assert np.asarray(large).dtype == np.uint16


@pytest.mark.parametrize(
    ("classes", "numbers"),
    [
        (["dog", "tree"], (0, 1)),
        (["dog", "others", "tree"], (0, 2)),
        ([" Others", "dog"], (1,)),
        (["dog", "others"], (0,)),
    ],
)
def test_a_class_has_the_number_of_its_place_in_the_list(classes: list[str], numbers: tuple[int, ...]) -> None:
    assert class_numbers(classes) == numbers
    labels_HW = np.array([[*range(len(numbers)), IGNORE]], np.int32)
    stored = np.asarray(Image.open(io.BytesIO(label_png(labels_HW, numbers=class_numbers(classes)))))
    assert stored.tolist() == [[*numbers, 255]]


@pytest.mark.parametrize("size", [(1, 1), (9, 400), (3000, 700)])
def test_an_overlay_is_drawn_of_any_size_and_of_many_classes(size: tuple[int, int]) -> None:
    names = tuple(f"a class with quite a long name, number {number}" for number in range(300))
    labels_HW = (np.arange(size[0] * size[1], dtype=np.int32) % 300).reshape(size)
    found = Segmentation(names, labels_HW, (0.5,) * 300, (), 0)
    overlay = add_legend(draw_map(np.zeros((*size, 3), np.uint8), found), found)
    most_px = SHOWN_LONG_PX[1] + 100
    assert overlay.width <= most_px + LEGEND_PX
    assert overlay.height <= max(most_px, 32 * (MAX_ROWS + 8))


def test_a_name_on_a_map_is_within_it_also_where_the_image_is_narrow() -> None:
    name = "railway carriage"
    found = Segmentation((name,), np.zeros((400, 40), np.int32), (0.5,), (), 1)
    tinted, (placed,) = draw_layers(np.zeros((400, 40, 3), np.uint8), found)
    assert placed.text != name, "shortened"
    assert placed.width_px / 2 < placed.x * tinted.width < tinted.width - placed.width_px / 2


def test_every_class_of_a_small_set_has_a_colour_of_its_own() -> None:
    assert len({class_colour(number) for number in range(150)}) == 150


# --- which pictures, which classes ------------------------------------------------------------------------------------


def test_pictures_are_found_by_file_folder_and_pattern_each_once_and_never_our_own_files(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    for name in ("b.jpg", "a.PNG", "c.labels.png", "c.overlay.png", "notes.txt", "inner/d.webp"):
        (tmp_path / name).write_bytes(b"")
    in_folder = [str(tmp_path / "a.PNG"), str(tmp_path / "b.jpg")]
    assert find_images([str(tmp_path)]) == in_folder
    assert find_images([str(tmp_path / "*"), str(tmp_path / "b.jpg")]) == in_folder
    assert find_images([str(tmp_path / "**" / "*.webp")]) == [str(tmp_path / "inner" / "d.webp")]
    assert find_images([str(tmp_path / "notes.txt")]) == [str(tmp_path / "notes.txt")]  # named by hand


def test_pictures_lie_on_object_stores_too() -> None:
    store = fsspec.filesystem("memory")
    store.pipe("/segment-bucket/a.png", b"a")
    store.pipe("/segment-bucket/b.jpg", b"b")
    assert find_images(["memory://segment-bucket"]) == [
        "memory:///segment-bucket/a.png",
        "memory:///segment-bucket/b.jpg",
    ]
    assert find_images(["memory://segment-bucket/*.png"]) == ["memory:///segment-bucket/a.png"]


def test_names_are_free_of_each_other() -> None:
    assert output_names(["x/a.png", "y/a.jpg", "y/A.jpg", "y/b.tar.png"]) == ["a", "a-2", "A-3", "b.tar"]


def stored_as(folder: Path, *images: tuple[str, bytes]) -> list[str]:
    """The stems that images get in a folder, one run after the other; their figures are written there."""
    found = []
    for path, content in images:
        sha256 = hashlib.sha256(content).hexdigest()
        found.append(OutputNames(RunFolder(str(folder)), [path]).of(path, sha256=sha256))
        figures = {"image": Path(path).name, "image_sha256": sha256}
        (folder / f"{found[-1]}.json").write_text(json.dumps(figures))
    return found


@pytest.mark.parametrize(
    ("images", "names"),
    [
        ([("cam1/f.jpg", b"1"), ("cam2/f.jpg", b"2"), ("cam3/f.jpg", b"3")], ["f", "f-2", "f-3"]),
        ([("cam1/f.jpg", b"1"), ("cam2/f.jpg", b"2"), ("cam1/f.jpg", b"1"), ("cam2/f.jpg", b"2")], ["f", "f-2"] * 2),
        ([("f.jpg", b"1"), ("f.png", b"2"), ("F.jpg", b"3")], ["f", "f-2", "F-3"]),
        ([("f.jpg", b"1"), ("f.png", b"1")], ["f", "f-2"]),  # the same picture, but another file
        ([("f.jpg", b"1"), ("f.jpg", b"drawn anew")], ["f", "f-2"]),
        ([("e\u0301.jpg", b"1"), ("\u00e9.jpg", b"2")], ["e\u0301", "\u00e9-2"]),
        ([("caf\udce9.jpg", b"1"), ("caf\udce8.jpg", b"2")], ["caf%E9", "caf%E8"]),
    ],
)
def test_results_of_an_earlier_run_are_never_replaced_by_those_of_a_namesake(
    tmp_path: Path, images: list[tuple[str, bytes]], names: list[str]
) -> None:
    assert stored_as(tmp_path, *[(path, content) for path, content in images]) == names


@pytest.mark.parametrize("file", ["f.json", "f.labels.png", "f.overlay.png", "F.JSON"])
def test_files_of_others_are_not_replaced_either(tmp_path: Path, file: str) -> None:
    (tmp_path / file).write_bytes(b"[]")
    assert stored_as(tmp_path, ("f.jpg", b"1")) == ["f-2"]
    assert (tmp_path / file).read_bytes() == b"[]"


def test_two_runs_into_one_folder_keep_both_results(pictures: Path, tmp_path: Path) -> None:
    for number in (0, 1):
        (tmp_path / f"cam{number} [raw]").mkdir()
        picture = (pictures / f"scene {number}.png").read_bytes()
        (tmp_path / f"cam{number} [raw]" / "f.png").write_bytes(picture)
        (tmp_path / f"cam{number} [raw]" / "._f.png").write_bytes(b"\0\5\x16\7")
        assert segment(tmp_path / f"cam{number} [raw]", "--to", tmp_path / "out", classes="goat, church") == 0
    files = {f"{name}{suffix}" for name in ("f", "f-2") for suffix in (".json", ".labels.png", ".overlay.png")}
    assert set(contents(tmp_path / "out")) == files
    assert json.loads((tmp_path / "out" / "f-2.json").read_text("utf-8"))["label_map"] == "f-2.labels.png"


def test_classes_come_from_the_command_line_and_from_a_file_where_they_may_have_commas(tmp_path: Path) -> None:
    file = tmp_path / "names.txt"
    file.write_text("\ufeffroad, route\n\n 地球仪 \n", "utf-8")
    assert read_classes(" Saturn V ,blossom,", str(file)) == ("Saturn V", "blossom", "road, route", "地球仪")
    with pytest.raises(InputError, match=r"--classes-from .*cannot be read"):
        read_classes("", str(tmp_path / "absent.txt"))


# --- what is wrong ----------------------------------------------------------------------------------------------------


def test_a_bad_picture_is_a_line_and_stops_no_other(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.png").write_bytes((pictures / "scene 0.png").read_bytes()[:200])
    (tmp_path / "note.jpg").write_text("no picture")
    Image.new("RGB", (400, 300)).save(tmp_path / "large.png")
    named = [pictures / "scene 1.png", *(tmp_path / name for name in ("broken.png", "note.jpg", "large.png", "no.png"))]
    options = ["--to", tmp_path / "out", "--set", "max_image_pixels=100000", "--json"]
    assert segment(*named, *options, classes="goat, church") == 3
    printed, said = capsys.readouterr()
    assert json.loads(printed) == json.loads((tmp_path / "out" / "scene 1.json").read_text("utf-8"))
    lines = said.strip().splitlines()
    words = {"broken": "decode_error", "note": "decode_error", "large": "image_too_large", "no.png": "missing_file"}
    for name, word in words.items():
        assert len([line for line in lines if f"/{name}" in line and word in line]) == 1
    assert lines[-1] == "4 of 5 images could not be segmented"
    assert len(lines) == 5
    assert sorted(contents(tmp_path / "out")) == ["scene 1.json", "scene 1.labels.png", "scene 1.overlay.png"]


@pytest.mark.parametrize(
    ("arguments", "classes", "words"),
    [
        ([], "", "classes: none is named"),
        ([], "dog, dog", "`dog` is there twice"),
        (["--set", "rule=best"], "dog", "rule: input should be"),
        (["--granularity", "1.2"], "dog", "Invalid value for '--granularity': Input should be less than or equal to 1"),
        (["--granularity", "0.5", "--set", "paint=sum"], "dog", "`paint: sum` takes them all"),
        (["--set", "rule=ensemble"], "dog", "the proposals come without a classifier"),
        (["--set", "tuned.prompts=nowhere.safetensors"], "dog", "nowhere.safetensors: there is no such file"),
        (["--set", "proposals.checkpoint=/nowhere/at/all"], "dog", "there is no folder `/nowhere/at/all`"),
    ],
)
def test_bad_input_is_answered_with_one_line_and_2(
    arguments: list[str], classes: str, words: str, pictures: Path, tmp_path: Path, capsys: Any
) -> None:
    shown = ["segment", str(pictures / "scene 0.png"), "--to", str(tmp_path / "out"), "--classes", classes]
    assert run_app([*shown, *SHIPPED, *arguments]) == 2
    line = one_line(capsys)
    assert line.startswith("maskmine: ")
    assert words in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--classes", "goat, church"], "IMAGE…: no picture is named"),
        ([], "IMAGE…: no picture is named"),
        (["{scene}", "goat, church"], "if that is a class, give all names in one option: --classes 'goat, church'"),
        (["goat", "{scene}"], "if that is a class, give all names in one option: --classes 'goat'"),
        (["--classes", "goat,", "church", "{scene}"], "give all names in one option: --classes 'goat, church'"),
        (["{scene}"], "classes: none is named"),
    ],
)
def test_a_forgotten_option_is_told_in_one_line_before_a_model_is_loaded(
    arguments: list[str], words: str, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [argument.format(scene=pictures / "scene 0.png") for argument in arguments]
    assert run_app(["segment", *given, "--config", str(CONFIG), "--set", "clip.model=nowhere"]) == 2
    assert words in one_line(capsys)


@pytest.mark.parametrize("classes_first", [True, False])
def test_pictures_and_classes_come_in_any_order(
    classes_first: bool, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def note(settings: Any, paths: Any, **named: Any) -> Any:
        asked.append((paths, named["classes"]))
        return iter(())

    monkeypatch.setattr("maskmine.pipelines.segment.segment.segment_images", note)
    images, classes = [str(pictures / f"scene {number}.png") for number in (0, 1)], ["--classes", "goat,church"]
    assert run_app(["segment", *([*classes, *images] if classes_first else [*images, *classes]), *SHIPPED]) == 0
    assert asked == [(images, ("goat", "church"))]


def test_that_thousands_of_classes_take_a_while_is_said(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("maskmine.pipelines.segment.segment.segment_images", lambda *given, **named: iter(()))
    said = {}
    for count in (1_000, 10_000):
        (tmp_path / "names.txt").write_text("\n".join(f"thing {number}" for number in range(count)))
        assert segment(pictures, "--classes-from", tmp_path / "names.txt", classes="") == 0
        said[count] = capsys.readouterr().err
    line = "10,000 classes: CLIP reads them all before the first image, which takes a while\n"
    assert said == {1_000: "", 10_000: line}


def test_no_pictures_and_a_folder_that_cannot_be_written_are_told_before_a_model_is_loaded(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nowhere = ["--set", "proposals.checkpoint=/nowhere/at/all"]
    assert segment(tmp_path, *nowhere) == 2
    assert "no pictures found" in one_line(capsys)
    assert segment(tmp_path / "absent.png", *nowhere) == 2
    assert "absent.png: no such file or folder" in one_line(capsys)
    (tmp_path / "file").write_text("")
    assert segment(pictures, "--to", tmp_path / "file", *nowhere) == 2
    assert "file: cannot be written (File exists); give another folder" in one_line(capsys)
