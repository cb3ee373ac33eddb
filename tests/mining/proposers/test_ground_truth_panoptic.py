"""Segments of panoptic PNGs as proposals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from maskmine.mining.proposers.ground_truth import GroundTruth
from maskmine.mining.proposers.proposals import Proposals
from maskmine.schemas.rows import Rejection
from tests.support.annotations import SQUARE_HW, masks, proposed, write


def write_panoptic(folder: Path, ids_HW: np.ndarray, *segments: Any) -> tuple[str, str]:
    (folder / "png").mkdir(exist_ok=True)
    rgb_HW3 = np.stack([ids_HW % 256, ids_HW // 256 % 256, ids_HW // 65536], axis=-1).astype(np.uint8)
    Image.fromarray(rgb_HW3).save(folder / "png" / "7.png")
    return write(folder, {"image_id": 7, "file_name": "7.png", "segments_info": list(segments)}), str(folder / "png")


def test_segments_of_a_panoptic_picture_are_proposals(tmp_path: Path) -> None:
    ids_HW = np.where(SQUARE_HW, 300_000, 70)
    path, png = write_panoptic(
        tmp_path,
        ids_HW,
        {"id": 70, "category_id": 2, "iscrowd": 0},
        {"id": 300_000, "category_id": 1, "iscrowd": 0},
        {"id": 5, "category_id": 1, "iscrowd": 0},  # not in the picture
        {"id": "x"},
    )
    answer = proposed(path, segments=png)
    assert [m.tolist() for m in masks(answer)] == [(~SQUARE_HW).tolist(), SQUARE_HW.tolist()]
    assert isinstance(answer, Proposals)
    assert answer.labels == ("sky", "cat")


@pytest.mark.parametrize("turn", [str, float])
def test_panoptic_ids_may_be_texts_or_floats(turn: Any, tmp_path: Path) -> None:
    ids_HW = np.where(SQUARE_HW, 300_000, 70)
    path, png = write_panoptic(tmp_path, ids_HW, {"id": turn(300_000), "category_id": turn(1), "iscrowd": turn(0)})
    answer = proposed(path, segments=png)
    assert [m.tolist() for m in masks(answer)] == [SQUARE_HW.tolist()]
    assert isinstance(answer, Proposals)
    assert answer.labels == ("cat",)


def test_panoptic_crowds_count_only_when_asked_for(tmp_path: Path) -> None:
    path, png = write_panoptic(tmp_path, np.full((4, 6), 70), {"id": 70, "category_id": 2, "iscrowd": 1})
    answer = proposed(path, segments=png)
    assert isinstance(answer, Rejection)
    assert "`proposals.crowds: true` takes" in answer.detail
    assert len(masks(proposed(path, segments=png, crowds=True))) == 1


def test_a_missing_or_misshapen_panoptic_picture_is_a_rejection(tmp_path: Path) -> None:
    segment = {"id": 70, "category_id": 2}
    path, png = write_panoptic(tmp_path, np.full((4, 5), 70), segment)
    assert proposed(path, segments=png) == Rejection(
        "no_masks", "panoptic segments: another size than the annotations say"
    )
    (tmp_path / "png" / "7.png").unlink()
    assert proposed(path, segments=png) == Rejection(
        "no_masks", "panoptic segments: missing_file (7.png: no such file)"
    )
    path = write(tmp_path, {"image_id": 7, "segments_info": [segment]})
    assert proposed(path, segments=png) == Rejection(
        "no_masks", "entry 0 of `annotations` has no `file_name` of its PNG"
    )
    path = write(tmp_path, {"image_id": 7, "file_name": "7.png", "segments_info": None})
    assert proposed(path, segments=png) == Rejection("no_masks", "the annotations have no mask of this image")


def test_leftovers_in_the_folder_of_segments_are_nothing_new(tmp_path: Path) -> None:
    """Who opens the folder in the Finder does not want the regions again."""
    path, png = write_panoptic(tmp_path, np.full((4, 6), 70), {"id": 70, "category_id": 2})
    truth = GroundTruth(kind="ground_truth", annotations=path, segments=png)
    before = truth.contents()
    (Path(png) / ".DS_Store").write_bytes(b"x")
    assert truth.contents() == before
    (Path(png) / "8.png").write_bytes(b"x")
    assert truth.contents() != before
