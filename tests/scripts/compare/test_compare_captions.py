"""What captions by a model add: which objects count as found, and what the stand-in says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from maskmine.mining.evaluation.annotations import AnnotatedObject, read_annotations
from maskmine.mining.images.encode import encode_reduced
from maskmine.schemas.mask import Mask
from maskmine.scripts.captioner.server import Asked
from maskmine.scripts.captioner.truth import picture_ids, says_what_is_left_out
from maskmine.scripts.compare.captions import WITHOUT, Compared, Found, objects_with_pair, render
from maskmine.scripts.demo_world.draw import draw_world
from maskmine.scripts.demo_world.on_disk import read_scenes, truth_of
from tests.support.progress import texts_of


def box(left: int, right: int) -> Mask:
    mask_HW = np.zeros((4, 12), np.uint8)
    mask_HW[:, left:right] = 1
    return Mask.from_array(mask_HW)


DOGS = frozenset({"dog"})
OBJECTS = [
    AnnotatedObject("dog", box(0, 4), False),
    AnnotatedObject("dog", box(4, 8), False),
    AnnotatedObject("cat", box(8, 12), False),
]


@pytest.mark.parametrize(
    ("right", "found"),
    [
        ([], 0),
        ([(DOGS, box(0, 4))], 1),
        ([(DOGS, box(0, 4)), (DOGS, box(0, 4))], 1),
        ([(DOGS, box(0, 4)), (DOGS, box(4, 8))], 2),
        ([(DOGS, box(0, 8))], 2),  # the mask of both
        ([(frozenset({"cat"}), box(8, 12)), (DOGS, box(0, 4))], 2),
    ],
)
def test_an_object_is_found_by_a_mask_of_its_own_or_of_all_of_its_kind(
    right: list[tuple[frozenset[str], Mask]], found: int
) -> None:
    assert objects_with_pair(OBJECTS, right) == found


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("captions") / "world"
    draw_world(folder, scenes=6, seed=41)
    return folder


def test_the_stand_in_names_what_the_first_caption_leaves_out_and_nothing_else(world: Path) -> None:
    says, truth = says_what_is_left_out(world), read_annotations(truth_of(world))
    first = {"said": 0, "added": 0}
    captions = _first_captions(world)
    for image_id, scene in read_scenes(world):
        sentence = says(Asked(encode_reduced(scene.picture_HW3, max_side_px=1024, quality=90), "", "", 1, {}))
        for name in {one.category for one in truth.objects(image_id)}:
            noun = next(noun for noun in scene.nouns if noun.noun == name)
            is_said = any(f" {word}" in f" {captions[image_id].lower()}" for word in (noun.noun, noun.plural))
            first["said"] += is_said
            first["added"] += name in sentence
            assert is_said or name in sentence
    assert first["said"] > 0
    assert first["added"] > 0
    assert len(picture_ids(world)) == 6


def _first_captions(world: Path) -> dict[str, str]:
    listed = json.loads((world / "captions.json").read_text())["annotations"]
    return {str(one["image_id"]): one["caption"] for one in reversed(listed)}


def test_the_stand_in_that_invents_names_what_is_not_there(world: Path) -> None:
    honest, inventing = says_what_is_left_out(world), says_what_is_left_out(world, invents=1.0)
    for _, scene in read_scenes(world):
        asked = Asked(encode_reduced(scene.picture_HW3, max_side_px=1024, quality=90), "", "", 1, {})
        assert len(inventing(asked)) > len(honest(asked)) - len("There is nothing else.")
        assert inventing(asked) != honest(asked)


def test_the_table_has_means_and_the_least_gain_of_a_seed() -> None:
    compared = []
    for seed, gain in ((41, 10), (42, 30)):
        compared.append(Compared(seed, WITHOUT, Found(100, 80, 100, 40), Found(200, 100, 100, 50)))
        for name in ("names what is left out", "and invents a thing in 50% of its answers"):
            compared.append(Compared(seed, name, Found(100, 90, 100, 40 + gain), Found(200, 100, 100, 50 + gain), 7))
    table = render(compared, [41, 42])
    assert texts_of(table, 3) == ["40.0%", "60.0%", "60.0%"]
    assert texts_of(table, 4) == ["", "+10.0", "+10.0"]
