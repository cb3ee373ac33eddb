"""How sure the pairs of a run are: nouns by separability, and every pair of the rule beside those that were written."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maskmine.mining.scores.scale import LevelScale
from maskmine.pipelines.dataset.finished_run import FinishedRun
from maskmine.pipelines.evaluate.pairs import evaluate_pairs
from maskmine.pipelines.reports.report import make_report, render_report
from maskmine.pipelines.reports.sureness import SeenNoun, count_sureness
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.schemas.errors import IncompleteError
from maskmine.schemas.rows import LevelRow, PairsRow
from tests.support import toy
from tests.support.models import save_tiny_clip
from tests.support.runs import config, run_toy, samples
from tests.support.web.browser import Page

pytestmark = pytest.mark.usefixtures("one_tagger")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.write_toy_world(tmp_path_factory.mktemp("sureness"))


@pytest.fixture(scope="module")
def run(world: Path) -> RunFolder:
    """A finished run with CLIP."""
    regions: dict[str, Any] = {
        "proposals": {"kind": "ground_truth", "annotations": str(world / "instances.json")},
        "keep": {"min_area_px": 1},
        "clip": {"model": str(save_tiny_clip(world / "clip"))},
        "device": "cpu",
    }
    return run_toy(config(world, regions, world / "run"), "vocabulary.templates=raw")[0]


@pytest.fixture(scope="module")
def clean(world: Path, run: RunFolder) -> RunFolder:
    """The same with the pairs of the highest evidence alone."""
    shutil.copytree(run.root, world / "clean")
    least = sorted(row.evidence for row in samples(run) if row.evidence is not None)[-4]
    where = (f"out={world / 'clean'}", "vocabulary.templates=raw")
    return run_toy(world / "mining.yaml", f"pairs.min_evidence={least}", *where)[0]


def test_the_set_stands_beside_every_pair_that_the_rule_made(run: RunFolder, clean: RunFolder, world: Path) -> None:
    truth = str(world / "instances.json")
    whole, few = (count_sureness(FinishedRun.open_complete(one), truth=truth) for one in (run, clean))
    assert whole.every == whole.written == few.every
    assert (few.every.pairs, few.written.pairs) == (9, 4)
    made = sorted(
        pair.evidence
        for row in FinishedRun.open(run).all_rows(PairsRow)
        for pair in row.pairs
        if pair.evidence is not None
    )
    assert (few.every.evidence_median, few.written.evidence_median) == (made[4], made[6])
    for one, told in ((run, few.every), (clean, few.written)):
        evaluation = evaluate_pairs(one, truth=truth)
        correct, pairs = evaluation.metrics.outcomes["correct"], evaluation.metrics.outcomes.total()
        assert told.right
        assert told.known_right
        assert (told.right.count, told.right.of) == (correct, pairs)
        assert (told.known_right.count, told.known_right.of) == (correct, evaluation.metrics.labelled)
    assert few.every.right != few.every.known_right, "zebra and giraffe name nothing that the truth knows"


def test_the_histograms_of_both_sets_have_the_same_bins(run: RunFolder, clean: RunFolder) -> None:
    whole, few = (count_sureness(FinishedRun.open_complete(one)) for one in (run, clean))
    assert whole.evidence
    assert few.evidence
    assert whole.evidence_every is None
    assert few.evidence_every == whole.evidence
    assert few.evidence.edges == whole.evidence.edges
    assert (sum(few.evidence.counts), sum(whole.evidence.counts)) == (4, 9)
    assert few.every.right is None


def test_nouns_are_sorted_by_separability_and_those_without_a_level_are_told(run: RunFolder, tmp_path: Path) -> None:
    folder = RunFolder(str(shutil.copytree(run.root, tmp_path / "run")))
    measured = FinishedRun.open(run).levels()
    assert measured is not None
    known = {"square": (0.9, 5), "disc": (0.5, 4), "bar": (0.7, 3), "zebra": (0.99, 2), "discs": (0.6, 4)}
    rows = [hand_made(row.noun, *known.get(row.noun, (None, 8))) for row in measured]
    scale = LevelScale(8, 0.1, 0.5, np.zeros(2))
    folder.write_rows("levels.parquet", rows=rows, row_type=LevelRow, fingerprint="", metadata=scale.metadata())
    found = count_sureness(FinishedRun.open_complete(folder)).visibility
    assert found is not None
    assert (found.images, found.nouns, found.often, found.without_level) == (8, 7, 4, 2)
    assert found.most == (SeenNoun("square", 0.2, 0.9, 3, 2), SeenNoun("bar", 0.2, 0.7, 2, 2))
    assert found.least == (SeenNoun("disc", 0.2, 0.5, 2, 2), SeenNoun("discs", 0.2, 0.6, 1, 1))
    assert found.unlevelled == ("dark", "giraffe")
    words = " ".join(Page(render_report(make_report(folder))).words.split())
    assert "2 nouns have no level, as every image of the sample says them: dark, giraffe." in words
    assert "Of 7 nouns 4 are said, in any form, in at least 3 images" in words


def hand_made(noun: str, separability: float | None, said: int) -> LevelRow:
    level = None if separability is None else 0.2
    return LevelRow(
        noun=noun,
        level=level,
        spread=level,
        separability=separability,
        said=said,
        unsaid=8 - said,
        prototype=None,
        weight=0.0,
    )


def test_damaged_levels_are_named_in_a_line(run: RunFolder, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run.root, tmp_path / "copy"))
    (copy / "levels.parquet").write_bytes(b"PAR1")
    with pytest.raises(IncompleteError, match=r"levels\.parquet: not a whole Parquet file; delete it"):
        make_report(RunFolder(str(copy)))


@pytest.mark.parametrize("images_per_part", [3, 4])
@pytest.mark.parametrize("step", ["nouns", "pairs"])
def test_cells_that_changed_places_are_never_counted_as_those_of_other_images(
    world: Path, tmp_path: Path, step: str, images_per_part: int
) -> None:
    """Of four images each, they have as many rows as they should."""
    out = tmp_path / "run"
    run_toy(toy.write_config(world, out=out, shards={"images_per_part": images_per_part}))
    first, last = sorted((out / step).glob("*.parquet"))[:: 1 if images_per_part == 4 else 2]
    first.rename(out / "kept"), last.rename(first), (out / "kept").rename(last)
    for read in (make_report, partial(evaluate_pairs, truth=str(world / "instances.json"))):
        with pytest.raises(IncompleteError, match=rf"{step}.00000\.parquet: has other images than part 0; delete it"):
            read(RunFolder(str(out)))


def test_indexes_that_changed_places_are_refused(world: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run_toy(toy.write_config(world, out=out))
    first, last, _ = sorted((out / "shards").glob("*.parquet"))
    first.rename(out / "kept"), last.rename(first), (out / "kept").rename(last)
    with pytest.raises(IncompleteError, match=r"00000\.parquet: is not the index of 00000\.tar; delete it and"):
        make_report(RunFolder(str(out)))


def test_a_damaged_page_of_a_cell_is_one_line_that_can_be_followed(world: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run_toy(toy.write_config(world, out=out))
    cell = out / "captions/00001.parquet"
    cell.write_bytes(b"")
    with pytest.raises(IncompleteError, match=r"captions.00001\.parquet: not a whole Parquet file; delete it and run"):
        make_report(RunFolder(str(out)))
    cell.unlink()
    run_toy(world / "mining.yaml")
    make_report(RunFolder(str(out)))


@pytest.mark.parametrize("images_per_part", [1, 8])
def test_the_manifest_of_another_cut_is_refused_in_a_line(world: Path, tmp_path: Path, images_per_part: int) -> None:
    """As where files of two runs were copied into one folder."""
    out, other = tmp_path / "run", tmp_path / "other"
    run_toy(toy.write_config(world, out=out))
    run_toy(toy.write_config(world, out=other, shards={"images_per_part": images_per_part}))
    shutil.copy(other / "manifest.json", out)
    with pytest.raises(IncompleteError, match=r"manifest\.json has \d shards, and the plan 3 parts; delete manifest"):
        evaluate_pairs(RunFolder(str(out)), truth=str(world / "instances.json"))
