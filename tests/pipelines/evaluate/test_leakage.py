"""The leakage report: which nouns of a run name which classes of a benchmark, and which pictures both have."""

from __future__ import annotations

import csv
import inspect
import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from maskmine.mining.images.perceptual_hash import COPY_BITS
from maskmine.mining.text.labels import load_synonyms
from maskmine.pipelines.cli.main import run_app
from maskmine.pipelines.cli.reports import leakage
from maskmine.pipelines.evaluate.leakage import Leakage, SharedImage, find_leakage
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.schemas.errors import IncompleteError, InputError
from maskmine.tuning.benchmarks.nouns import open_classes
from maskmine.tuning.benchmarks.prepare import class_names
from tests.support import toy
from tests.support.benchmark_layouts import write_miniature
from tests.support.runs import run_toy


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.write_toy_world(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def run(world: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return run_toy(toy.write_config(world), f"out={tmp_path_factory.mktemp('finished') / 'run'}")[0]


def voc(tmp_path: Path) -> tuple[Path, Path]:
    """VOC in little: its root, and the folder of its pictures, which are named 2007_000033 and 2007_000042."""
    write_miniature("voc20", tmp_path)
    return tmp_path, tmp_path / "VOCdevkit/VOC2012/JPEGImages"


def picture_of(world: Path, image_id: int) -> Path:
    return world / "images" / f"{image_id:012d}.png"


@pytest.mark.parametrize(
    ("noun", "lemma", "class_name", "kind"),
    [
        ("aeroplane", "aeroplane", "aeroplane", "exact"),
        ("dining table", "dining table", "diningtable", "exact"),
        ("Dogs", "dog", "dog", "plural"),
        ("shelf", "shelf", "shelves", "plural"),
        ("airplanes", "airplane", "aeroplane", "synonym"),
        ("jet", "jet", "aeroplane", "synonym"),
        ("kittens", "kitten", "cat", "synonym"),
        ("city bus", "city bus", "bus", "compound"),
        ("police dogs", "police dog", "dog", "compound"),
        ("toy dog", "toy dog", "dog", None),
        ("sign", "sign", "stop sign", None),
        ("zebra", "zebra", "horse", None),
    ],
)
def test_a_noun_names_a_class_in_the_first_way_that_holds(
    noun: str, lemma: str, class_name: str, kind: str | None
) -> None:
    find = open_classes((class_name, "spaceship"), load_synonyms("coco"))
    assert find(noun, lemma) == ({class_name: kind} if kind else {})


def test_a_noun_may_name_several_classes_of_one_set() -> None:
    find = open_classes(("bicycle", "motorbike", "road, route"), load_synonyms("coco"))
    assert find("bike", "bike") == {"bicycle": "synonym", "motorbike": "synonym"}
    assert find("route", "route") == {"road, route": "exact"}


def test_without_a_root_nouns_alone_are_compared_and_counted_by_pairs(run: RunFolder) -> None:
    found = find_leakage(run, most_bits=6)
    assert (found.pairs, found.images) == (len(toy.PAIRS), len(toy.IMAGES))
    by_name = {one.name: one for one in found.benchmarks}
    assert list(by_name) == ["ade150", "ade847", "pc59", "voc20"]
    assert found.unknown == ("pc459: its classes come with its download; give --root",)
    (bar,) = by_name["ade150"].named
    assert (bar.name, bar.seen, bar.nouns) == ("bar", False, (("bar", "exact", 2),))
    assert by_name["ade150"].pairs == 2
    assert by_name["voc20"].named == ()
    assert all(one.images is None and one.why == "no --root was given" for one in found.benchmarks)


def test_the_disc_of_pascal_context_is_mined_in_both_numbers(run: RunFolder, tmp_path: Path) -> None:
    write_miniature("pc459", tmp_path)
    labels = tmp_path / "VOCdevkit/VOC2010/labels.txt"
    labels.write_text(labels.read_text().replace("thing117", "disc"))
    (context,) = find_leakage(run, root=str(tmp_path), names=["pc459"], most_bits=6).benchmarks
    (disc,) = context.named
    assert disc.nouns == (("disc", "exact", 2), ("discs", "plural", 1))


def compare(run: RunFolder, root: Path, *, looks: bool = True) -> Leakage:
    return find_leakage(run, root=str(root), looks=looks, most_bits=4)  # the toy world's pictures are much alike


def test_a_picture_that_was_mined_is_found_by_its_bytes(run: RunFolder, world: Path, tmp_path: Path) -> None:
    root, pictures = voc(tmp_path)
    shutil.copy(picture_of(world, 11), pictures / "2007_000042.jpg")
    for looks in (True, False):
        (found,) = (one.images for one in compare(run, root, looks=looks).benchmarks if one.name == "voc20")
        assert found is not None
        assert found.shared == (SharedImage("2007_000042", "11", "file", None, 2),)
        assert (found.images, found.unreadable, found.count("file"), found.count("look")) == (2, 0, 1, 0)


def test_a_smaller_copy_of_another_format_is_found_by_its_look(run: RunFolder, world: Path, tmp_path: Path) -> None:
    root, pictures = voc(tmp_path)
    with Image.open(picture_of(world, 11)) as image:
        image.resize((48, 36)).save(pictures / "2007_000042.jpg", quality=60)
    (found,) = (one.images for one in compare(run, root).benchmarks if one.name == "voc20")
    assert found is not None
    (shared,) = found.shared
    assert (shared.name, shared.image_id, shared.way, shared.pairs) == ("2007_000042", "11", "look", 2)
    assert shared.distance is not None
    assert shared.distance <= 4
    assert not any(one.images.shared for one in compare(run, root, looks=False).benchmarks if one.images)


def test_a_picture_of_the_same_name_alone_is_said_to_be_that(run: RunFolder, world: Path, tmp_path: Path) -> None:
    root, pictures = voc(tmp_path)
    (pictures / "2007_000042.jpg").rename(pictures / "12.jpg")
    (root / "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt").write_text("12\n2007_000033\n")
    (found,) = (one.images for one in compare(run, root).benchmarks if one.name == "voc20")
    assert found is not None
    assert found.shared == (SharedImage("12", "12", "name", None, 1),)
    shutil.copy(picture_of(world, 12), pictures / "12.jpg")  # of the same bytes now, which says more
    (found,) = (one.images for one in compare(run, root).benchmarks if one.name == "voc20")
    assert found is not None
    assert found.shared == (SharedImage("12", "12", "file", None, 1),)


def test_an_unreadable_picture_is_counted_and_stops_nothing(run: RunFolder, tmp_path: Path) -> None:
    root, pictures = voc(tmp_path)
    (pictures / "2007_000042.jpg").write_bytes(b"no picture")
    (found,) = (one.images for one in compare(run, root).benchmarks if one.name == "voc20")
    assert found is not None
    assert (found.images, found.unreadable, found.shared) == (2, 1, ())


def test_what_is_not_below_the_root_is_named_and_what_was_asked_for_has_to_be(run: RunFolder, tmp_path: Path) -> None:
    root, _ = voc(tmp_path)
    ade = next(one for one in compare(run, root).benchmarks if one.name == "ade150")
    assert ade.images is None
    assert "ADEChallengeData2016.zip" in ade.why
    with pytest.raises(InputError, match="ADEChallengeData2016"):
        find_leakage(run, root=str(root), names=["ade150"], most_bits=6)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="has none of ade150, ade847"):
        compare(run, tmp_path / "empty")


def test_a_run_that_is_not_finished_has_no_report(run: RunFolder, tmp_path: Path) -> None:
    shutil.copytree(run.root, tmp_path / "run")
    (tmp_path / "run/manifest.json").unlink()
    with pytest.raises(IncompleteError, match="not finished"):
        find_leakage(RunFolder(str(tmp_path / "run")), most_bits=6)


def test_the_command_prints_tables_or_json_and_writes_lists(
    run: RunFolder, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, pictures = voc(tmp_path / "data")
    shutil.copy(picture_of(world, 11), pictures / "2007_000042.jpg")
    ask = ["leakage", run.root, "--root", str(root), "--to", str(tmp_path / "out"), "--bits", "4"]
    assert run_app(ask) == 0
    said = capsys.readouterr().out
    assert "ade150, unseen by COCO-Stuff but mined: bar (2)" in said
    assert "same file" in said
    first = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert run_app([*ask, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads(first["leakage.json"])
    assert printed["benchmarks"]["voc20"]["pictures"]["shared"] == {"file": 1, "look": 0, "name": 0}
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == first
    rows = list(csv.DictReader(first["leakage-nouns.csv"].decode().splitlines()))
    bar = dict(zip(rows[0], ("ade150", "bar", "unseen", "bar", "exact", "2"), strict=True))
    assert rows[0] == bar
    (row,) = csv.DictReader(first["leakage-pictures.csv"].decode().splitlines())
    assert (row["picture"], row["image id"], row["way"]) == ("2007_000042", "11", "file")


def test_the_command_refuses_what_it_cannot_do(
    run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for wrong in (
        ["--root", str(tmp_path / "nowhere")],
        ["--benchmark", "ade1500"],
        ["--benchmark", "pc459"],
        ["--to", f"{run.root}/leakage"],
        ["--bits", "40"],
    ):
        assert run_app(["leakage", run.root, "--to", str(tmp_path / "out"), *wrong]) == 2
        capsys.readouterr()


def test_every_class_names_itself() -> None:
    for name in ("ade150", "ade847", "pc59", "voc20"):
        classes = class_names(name)
        find = open_classes(classes, load_synonyms("coco"))
        for label in classes:
            first = label.split(",")[0]
            assert find(first, first)[label] == "exact", label


def test_the_command_asks_for_the_distance_that_copies_have() -> None:
    assert inspect.signature(leakage).parameters["bits"].default == COPY_BITS
