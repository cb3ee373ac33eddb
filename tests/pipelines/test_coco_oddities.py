"""COCO files as other tools write them give the pairs of a plain file, and what is left out is counted and named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from maskmine.mining.images.read import read_bytes
from maskmine.pipelines.cli.main import run_app
from maskmine.pipelines.dataset.finished_run import FinishedRun
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.schemas.rows import Rejection
from tests.support import toy
from tests.support.runs import run_toy

Tree = dict[str, Any]


def change(path: Path, *changes: Callable[[Tree], object]) -> None:
    tree = json.loads(path.read_text())
    for one in changes:
        one(tree)
    path.write_text(json.dumps(tree))


def other_types(tree: Tree) -> None:
    """Ids, sizes and flags in turn as numbers, floats and texts; a NaN and a number beyond 64 bits."""
    turns = (int, float, str)
    for number, image in enumerate(tree["images"]):
        image["id"] = turns[number % 3](image["id"])
        if "categories" in tree:
            image["height"] = turns[(number + 1) % 3](image["height"])
    for number, annotation in enumerate(tree["annotations"]):
        annotation["image_id"] = turns[(number + 1) % 3](annotation["image_id"])
        if "categories" in tree:
            annotation |= {"category_id": turns[number % 3](annotation["category_id"]), "area": float("nan")}
            annotation |= {"iscrowd": (False, "0", None)[number % 3], "id": 2**63 + number}


def broken_entries(tree: Tree) -> None:
    tree["images"][1:1] = [None, {"file_name": "nameless.png"}]
    tree["annotations"][1:1] = [None, {"caption": "A square.", "category_id": 1}]
    if "categories" in tree:
        tree["annotations"].append(tree["annotations"][0] | {"segmentation": [[1, 1, 2, 2]]})


def test_a_world_of_other_types_and_broken_entries_gives_the_same_pairs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world = toy.write_toy_world(tmp_path)
    for name in ("captions.json", "instances.json"):
        change(world / name, other_types, broken_entries)
    run, outcome, _ = run_toy(toy.write_config(world, shards={"images_per_part": 99}))
    finished = FinishedRun.open(run)
    pairs = {
        (image.regions.image_id, pair.noun)
        for part in finished.parts
        for image in finished.images(part)
        for pair in image.pairs
    }
    assert pairs == {(image_id, noun) for image_id, noun, _ in toy.PAIRS}

    # Nothing is lost: entries of the captions file are images of their own, those of the truth are counted.
    totals = finished.manifest.totals
    assert totals.images == len(toy.IMAGES) + 4
    assert totals.rejected["proposals: broken_record"] == 4
    assert totals.masks_left_out == 1
    assert [note.rpartition("not used, ")[2] for note in outcome.notes] == [
        "1 entries of `images` that are no objects (entry 1)",
        "1 entries of `images` without a usable `id` (entry 2)",
        "1 entries of `annotations` that are no objects (entry 1)",
        "1 annotations without a usable `image_id` (entry 2)",
    ]
    assert run_app(["errors", run.root]) == 0
    said = capsys.readouterr().out
    assert "1 annotated mask cannot be read, unlike others of the same images:\n  11: entry " in said


@pytest.mark.parametrize("name", ["sub\\11.png", ".\\sub\\11.png", "sub/11.png"])
def test_a_path_of_windows_is_that_of_the_file(name: str, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "11.png").write_bytes(b"here")
    assert read_bytes(f"{tmp_path}/{name}") == b"here"


def test_a_name_with_a_backslash_comes_first_and_an_absent_one_is_said_whole(tmp_path: Path) -> None:
    (tmp_path / "a\\b.png").write_bytes(b"named so")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.png").write_bytes(b"in a folder")
    assert read_bytes(f"{tmp_path}/a\\b.png") == b"named so"
    assert read_bytes(f"{tmp_path}/C:\\b.png") == Rejection("missing_file", "C:\\b.png: no such file")


def test_a_truth_of_another_form_is_refused_before_anything_is_deleted(tmp_path: Path) -> None:
    world = toy.write_toy_world(tmp_path)
    config = toy.write_config(world, shards={"images_per_part": 99})
    run, _, _ = run_toy(config)
    before = sorted(path.name for path in Path(run.root).rglob("*"))
    change(world / "instances.json", lambda tree: tree.update(annotations=[{"id": 1}]))
    assert run_app(["mine", str(config)]) == 2
    assert sorted(path.name for path in Path(RunFolder(run.root).root).rglob("*")) == before
