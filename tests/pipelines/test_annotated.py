"""Annotated masks whose ids are not those of the captions: found by the names of files, or refused before any work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from maskmine.pipelines.evaluate.pairs import evaluate_pairs
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.schemas.errors import InputError
from tests.support import toy
from tests.support.runs import run_toy, samples


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.write_toy_world(tmp_path_factory.mktemp("annotated"))


def with_other_ids(world: Path, to: Path, **files: str) -> Path:
    """The annotations of the toy world with other ids; `files` are other file names by id."""
    tree = json.loads((world / "instances.json").read_text())
    for image in tree["images"]:
        image["file_name"] = files.get(f"_{image['id']}", image["file_name"])
        image["id"] += 1000
    for annotation in tree["annotations"]:
        annotation["image_id"] += 1000
    to.write_text(json.dumps(tree))
    return to


def mine(world: Path, out: Path, annotations: Path) -> tuple[RunFolder, tuple[str, ...]]:
    run, outcome, _ = run_toy(toy.write_config(world), f"out={out}", f"regions.proposals.annotations={annotations}")
    return run, outcome.notes


def test_other_ids_are_found_by_file_names_and_give_the_same_pairs(world: Path, tmp_path: Path) -> None:
    other = with_other_ids(world, tmp_path / "instances.json")
    run, notes = mine(world, tmp_path / "run", other)
    assert {(row.image_id, row.noun, row.label) for row in samples(run)} == toy.PAIRS
    assert notes == (f"proposals.annotations: {other}: 8 of 8 images found by file names, as the ids there are others",)
    evaluation = evaluate_pairs(run, truth=str(other))
    assert (evaluation.images, evaluation.metrics.precision.value) == ({"covered": 8}, 1.0)


def test_of_two_annotated_images_of_one_name_neither_is_taken(world: Path, tmp_path: Path) -> None:
    run, _ = mine(world, tmp_path / "run", with_other_ids(world, tmp_path / "i.json", _12="000000000011.jpg"))
    assert {row.image_id for row in samples(run)} == {"13", "14"}


def test_annotations_of_other_images_are_refused_in_one_line_before_any_work(world: Path, tmp_path: Path) -> None:
    files = {f"_{image.id}": f"x{image.id}.png" for image in toy.IMAGES}
    with pytest.raises(InputError, match=r"names none of the 8 images, neither by id \(such as 1\d; there 1011\) nor"):
        mine(world, tmp_path / "run", with_other_ids(world, tmp_path / "i.json", **files))
    assert not (tmp_path / "run" / "nouns").exists()


def test_two_images_with_one_annotated_name_are_refused(world: Path, tmp_path: Path) -> None:
    captions = json.loads((world / "captions.json").read_text())
    for image in captions["images"][:2]:
        image |= {"id": f"{image['id']}x", "file_name": f"{image['id']}/1.png"}
    (tmp_path / "captions.json").write_text(json.dumps(captions))
    other = with_other_ids(world, tmp_path / "i.json", _11="1.png")
    with pytest.raises(InputError, match=r"images 1[12]x and 1[12]x are both its image 1011, by the names of their"):
        run_toy(
            toy.write_config(world),
            f"out={tmp_path / 'run'}",
            f"captions.annotations={tmp_path}/captions.json",
            f"regions.proposals.annotations={other}",
        )
