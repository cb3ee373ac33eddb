"""The table of matching rules, on the toy world with embeddings under which each rule's answer is known by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maskmine.mining.models.embeddings import pack
from maskmine.pipelines.evaluate.pairs import evaluate_pairs
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.schemas.errors import InputError
from maskmine.schemas.rows import RegionsRow, VocabularyRow
from maskmine.scripts.compare.rules import Compared, compare_rules, main, mine_scenes, render
from maskmine.scripts.demo_world.splits import HELD_OUT_SEEDS
from tests.support import toy
from tests.support.models import save_tiny_clip
from tests.support.progress import texts_of
from tests.support.runs import run_toy

# A disc's words are nearer to a square's region than to its own: by cosine alone the noun takes the wrong one.
REGIONS = {"square": [1.0, 0.0, 0.0], "disc": [0.5, 0.866, 0.0], "bar": [0.0, 0.0, 1.0]}
WORDS = {"square": [1.0, 0.0, 0.0], "disc": [0.9, 0.436, 0.0], "discs": [0.9, 0.436, 0.0], "bar": [0.0, 0.0, 1.0]}
OTHER_WORDS = [0.0, 1.0, 0.0]
PAPER, SOFTMAX, MUTUAL, ONE_TO_ONE = range(4)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy world, where the second caption of image 12 speaks of a square that is not there."""
    folder = toy.write_toy_world(tmp_path_factory.mktemp("rules"))
    tree = json.loads((folder / "captions.json").read_text())
    (second,) = [one for one in tree["annotations"] if one["id"] == 121]
    second["caption"] = "It is no square."
    (folder / "captions.json").write_text(json.dumps(tree))
    return folder


@pytest.fixture(scope="module")
def run(world: Path) -> RunFolder:
    """A finished run with both captions of each image, and embeddings as if CLIP had made them."""
    run, _, _ = run_toy(toy.write_config(world), "captions.per_image=all")
    for part in range(3):
        rows = [
            replace(row, regions=tuple(replace(one, embedding=vector(REGIONS[str(one.label)])) for one in row.regions))
            for row in run.read_rows("proposals", f"{part:05d}.parquet", row_type=RegionsRow)
        ]
        rewrite(run, "proposals", f"{part:05d}.parquet", rows=rows, row_type=RegionsRow)
    words = [
        replace(row, embedding=vector(WORDS.get(row.noun, OTHER_WORDS)))
        for row in run.read_rows("vocabulary.parquet", row_type=VocabularyRow)
    ]
    rewrite(run, "vocabulary.parquet", rows=words, row_type=VocabularyRow)
    return run


def vector(values: list[float]) -> bytes:
    return pack(np.array(values))


def rewrite(run: RunFolder, *names: str, rows: list[Any], row_type: type) -> None:
    fingerprint = run.read_fingerprint(*names)
    assert fingerprint is not None
    run.write_rows(*names, rows=rows, row_type=row_type, fingerprint=fingerprint)


def shares(one: Compared) -> tuple[tuple[int, int], tuple[int, int]]:
    precision, recall = one.metrics.precision, one.metrics.recall
    return (precision.count, precision.of), (recall.count, recall.of)


@pytest.fixture(scope="module")
def compared(run: RunFolder, world: Path) -> list[Compared]:
    return compare_rules(run, truth=str(world / "instances.json"))


def test_with_one_caption_each_rule_makes_the_pairs_known_by_hand(compared: list[Compared]) -> None:
    found = {(one.rule.rule, one.rule.score): shares(one) for one in compared if one.per_image == 1}
    assert found == {
        ("best_region_per_noun", "cosine"): ((6, 7), (6, 7)),  # the disc of image 11 takes the square
        ("best_region_per_noun", "softmax"): ((7, 7), (7, 7)),
        ("mutual_best", "cosine"): ((5, 5), (5, 7)),  # without that one, and without one of `discs` and `disc`
        ("one_to_one", "cosine"): ((6, 6), (6, 7)),  # one region cannot serve `discs` and `disc`
    }


def test_with_all_captions_the_noun_without_an_object_costs_precision_but_no_recall(compared: list[Compared]) -> None:
    rows = [one for one in compared if one.per_image == "all"]
    assert shares(rows[PAPER]) == ((6, 8), (6, 7))
    assert shares(rows[MUTUAL]) == ((5, 5), (5, 7))


def test_coverage_is_measured_in_the_pairs_of_the_papers_rule(compared: list[Compared]) -> None:
    paper, mutual = compared[PAPER], compared[MUTUAL]
    assert (paper.possible, mutual.possible) == (7, 7)
    half = paper.at("similarity", 0.5)
    assert half is not None
    assert (half.threshold, half.kept, half.correct) == (1.0, 4, 4)  # ⌈3.5⌉
    at_three_quarters = paper.at("similarity", 0.75)
    assert at_three_quarters is not None
    assert (at_three_quarters.kept, at_three_quarters.correct) == (7, 6)  # 6 are asked for, and three have one score
    assert mutual.at("similarity", 0.75) is None  # it has only 5


def test_the_table_has_a_row_for_each_rule_and_number_of_captions(compared: list[Compared]) -> None:
    table = render(compared)
    assert texts_of(table, 0) == [
        *("best_region_per_noun", "best_region_per_noun, softmax", "mutual_best", "one_to_one") * 2
    ]
    assert texts_of(table, 1) == ["1"] * 4 + ["all"] * 4
    assert texts_of(table, 6)[MUTUAL] == "–"


def test_the_command_finds_the_truth_beside_the_captions_and_prints_thresholds(
    run: RunFolder, compared: list[Compared], capsys: pytest.CaptureFixture[str]
) -> None:
    main(run.root, as_json=True)
    printed = json.loads(capsys.readouterr().out)
    assert [one["precision"] for one in printed] == [one.metrics.precision.value for one in compared]
    assert {"score": "similarity", "coverage": 0.5, "threshold": 1.0}.items() <= printed[PAPER]["thresholds"][1].items()


def test_a_run_without_embeddings_is_refused(world: Path, tmp_path: Path) -> None:
    run, _, _ = run_toy(toy.write_config(world), f"out={tmp_path / 'run'}")
    with pytest.raises(InputError, match="holds no embeddings"):
        compare_rules(run, truth=str(world / "instances.json"))


def config(folder: Path, **changes: Any) -> str:
    proposals = {"kind": "ground_truth", "annotations": str(folder / "instances.json")}
    regions = {"proposals": proposals, "clip": {"model": str(save_tiny_clip(folder / "clip"))}, "device": "cpu"}
    return str(toy.write_config(folder, regions=regions, pairs={"rule": "best_region_per_noun"}, **changes))


def test_mined_scenes_are_judged_as_evaluate_pairs_judges_the_same_run(tmp_path: Path) -> None:
    run = mine_scenes(config(tmp_path), tmp_path, scenes=4, seed=3)
    truth = str(tmp_path / "world" / "instances.json")
    expected = evaluate_pairs(run, truth=truth).metrics
    rows = [one for one in compare_rules(run, truth=truth) if one.per_image == "all"]
    assert rows[PAPER].metrics.outcomes == expected.outcomes
    assert rows[PAPER].metrics.recall == expected.recall
    assert rows[PAPER].metrics.scores == expected.scores
    assert expected.labelled >= 8


def test_a_world_that_training_may_have_seen_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="may have been seen in training"):
        mine_scenes(str(tmp_path / "mining.yaml"), tmp_path, scenes=1, seed=HELD_OUT_SEEDS[-1] + 1)


def test_a_configuration_without_clip_is_refused_before_anything_is_drawn(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give a configuration with CLIP"):
        mine_scenes(str(toy.write_config(tmp_path)), tmp_path, scenes=1, seed=3)
    assert not (tmp_path / "world").exists()
