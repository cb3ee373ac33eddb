"""The page of a run: its figures are those known by hand, it needs nothing else, and a browser can search in it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from maskmine.mining.storage import tally
from maskmine.mining.text.caption_quality import caption_quality
from maskmine.pipelines.cli.main import run_app
from maskmine.pipelines.dataset.finished_run import FinishedRun
from maskmine.pipelines.dataset.render import said
from maskmine.pipelines.planning.plan import read_plan
from maskmine.pipelines.reports import blocks
from maskmine.pipelines.reports.counting import count_all
from maskmine.pipelines.reports.report import Report, make_report, render_report
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.schemas.errors import IncompleteError, InputError
from maskmine.schemas.rows import CaptionsRow, ImageRow, SampleRow
from maskmine.schemas.tables import to_table
from tests.support import toy
from tests.support.models import save_tiny_clip
from tests.support.runs import run_toy, samples
from tests.support.web.browser import (
    PHONE_PX,
    Page,
    ask_on_a_phone,
    faults_of_page,
    needs_chromium,
    shades_on_a_screen,
    started_browser,
)

pytestmark = pytest.mark.usefixtures("one_tagger")

WICKED = '<b onload="x()">square</b> & a disc.'


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.write_toy_world(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def run(world: Path) -> RunFolder:
    """A finished run with CLIP."""
    regions: dict[str, Any] = {
        "proposals": {"kind": "ground_truth", "annotations": str(world / "instances.json")},
        "keep": {"min_area_px": 1},
        "clip": {"model": str(save_tiny_clip(world / "clip"))},
        "device": "cpu",
    }
    config = toy.write_config(world, regions=regions, pairs={"rule": "best_region_per_noun"})
    return run_toy(config, "vocabulary.templates=raw", "pairs.min_count=1")[0]


@pytest.fixture(scope="module")
def report(run: RunFolder, world: Path) -> Report:
    return make_report(run, truth=str(world / "instances.json"))


@pytest.fixture(scope="module")
def page(report: Report) -> str:
    return render_report(report)


def test_the_page_needs_nothing_but_itself(page: str) -> None:
    read = Page(page)
    assert not {"link", "iframe", "object", "embed", "base"} & set(read.tags)
    assert len(read.fetched) >= 10
    assert all(one.startswith(("data:image/", "#")) for one in read.fetched)
    assert not read.links
    assert not re.search(r"@import|url\((?!#)", page)
    assert "default-src 'none'" in page


def test_the_funnel_loses_images_where_they_were_rejected(report: Report, run: RunFolder) -> None:
    grid = report.grid
    # 15 and 18 say no noun, 16 has no region; CLIP finds a region for every noun, also for a zebra
    assert (grid.images, grid.with_nouns, grid.with_regions, grid.with_pairs) == (8, 6, 5, 5)
    assert grid.mentions == 11
    assert grid.regions == 9
    assert grid.pairs == len(samples(run)) == 9
    assert {(reason.step, reason.reason): reason.images for reason in report.reasons} == {
        ("nouns", "no_nouns"): 1,
        ("nouns", "no_caption"): 1,
        ("proposals", "no_masks"): 1,
    }
    sizes = report.grid.sizes
    assert sum(sizes.counts) == 9
    assert all(0.06 < low < 0.11 for low, count in zip(sizes.edges, sizes.counts, strict=False) if count)


def test_masks_lie_where_the_shapes_are(report: Report, run: RunFolder) -> None:
    """The bar is at the bottom, from left to right; nothing is at the upper right corner."""
    heat = report.grid.heat_YX
    boxes = [row.box_xyxy for row in samples(run)]
    y_px, x_px = (19 + 0.5) / 24 * toy.HEIGHT_PX, (11 + 0.5) / 24 * toy.WIDTH_PX
    assert heat[19][11] == sum(x0 <= x_px < x1 and y0 <= y_px < y1 for x0, y0, x1, y1 in boxes) > 0
    assert heat[0][23] == 0


def test_nouns_are_counted_by_their_pairs(report: Report, run: RunFolder) -> None:
    nouns = [row.noun for row in samples(run)]
    assert dict(report.nouns.known) == {noun: nouns.count(noun) for noun in nouns}
    assert report.nouns.ranks[0] == (1, max(map(nouns.count, nouns)))
    assert report.nouns.ranks[-1] == (len(set(nouns)), 1)
    assert report.nouns.single == sum(nouns.count(noun) == 1 for noun in set(nouns))


def test_scores_of_images_with_one_region_are_in_no_margin(report: Report, run: RunFolder) -> None:
    assert report.scores
    assert sum(report.scores.similarity.counts) == 9
    several = [row for row in samples(run) if row.image_id in ("11", "13")]
    assert report.scores.margin
    assert sum(report.scores.margin.counts) == len(several) == 4
    assert report.scores.alone == 5
    best = [float(card.similarity) for card in report.best]
    assert best == sorted(best, reverse=True)
    assert [card.noun for card in report.worst] == [card.noun for card in reversed(report.best)] or len(best) > 12


def test_the_page_tells_the_truth_where_there_is_one(report: Report, page: str, run: RunFolder) -> None:
    assert report.evaluation
    assert f"{report.evaluation.precision.value:.1%}" in Page(page).words
    of_all = report.evaluation.precision_of_all
    assert f"Of all {of_all.of} pairs {of_all.value:.1%} are right" in Page(page).words
    assert "Held against the truth" in page
    assert "Held against the truth" not in render_report(replace(report, evaluation=None))


def test_what_captions_say_is_text(report: Report) -> None:
    card, reason = replace(report.search[0], after=WICKED), report.reasons[0]
    example = replace(reason.examples[0], caption=WICKED, detail=WICKED)
    wicked = replace(
        report,
        name=WICKED,
        search=[card],
        reasons=[replace(reason, examples=(example,))],
        nouns=replace(report.nouns, known=(("</script><u>", 1),), rarest=((WICKED, 1),)),
        hygiene=replace(report.hygiene, commonest=((WICKED, 2),)),
    )
    page = render_report(wicked)
    assert "<b onload" not in page
    assert "</script><u>" not in page
    assert Page(page).words.count(WICKED) == 7


def test_the_same_run_gives_the_same_bytes(run: RunFolder, world: Path, page: str) -> None:
    assert render_report(make_report(run, truth=str(world / "instances.json"))) == page


def test_the_page_does_not_depend_on_how_the_parts_are_cut_into_blocks(
    run: RunFolder, world: Path, page: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "_PARTS", 1)
    monkeypatch.setattr(tally, "_LEAST_ROWS", 0)
    finished = FinishedRun.open(run)
    assert len(list(blocks.read_blocks(finished, {SampleRow: ("key",)}))) == finished.plan.parts == 3
    assert render_report(make_report(run, truth=str(world / "instances.json"))) == page


def test_a_page_needs_each_cell_once(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[int, str]] = []
    columns = FinishedRun.columns

    def noting(self: FinishedRun, part: int, row_type: type, names: Sequence[str]) -> Any:
        read.append((part, row_type.__name__))
        return columns(self, part, row_type, names)

    monkeypatch.setattr(FinishedRun, "columns", noting)
    count_all(FinishedRun.open(run), samples=3, truth=None, synonyms="auto")
    types = ("CaptionsRow", "ImageRow", "NounsRow", "PairsRow", "RegionsRow", "SampleRow")
    assert sorted(read) == [(part, name) for part in range(3) for name in types]


def test_a_page_is_no_larger_than_asked(run: RunFolder, report: Report) -> None:
    few = make_report(run, samples=2)
    assert len(few.search) == 2
    assert len({card.noun for card in few.search}) == 2, "one of each noun comes first"
    small = make_report(run, most_mb=0.41)
    assert len(render_report(small).encode()) < 410_000
    assert len(small.search) < len(report.search) == 9


def test_a_run_without_clip_has_a_page_without_scores(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = toy.write_config(world, out=tmp_path / "run")
    run, _, _ = run_toy(config)
    report = make_report(run)
    assert report.scores is None
    assert not report.best
    assert "neither best nor worst" in render_report(report)
    what_is_not_finished_or_empty_is_told_in_one_line(run, config, tmp_path, capsys)


def what_is_not_finished_or_empty_is_told_in_one_line(
    run: RunFolder, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run/pairs/00001.parquet").rename(tmp_path / "away")
    with pytest.raises(IncompleteError, match=r"not finished \(cells of pairs are missing\); run `maskmine mine`"):
        make_report(run)
    (tmp_path / "away").rename(tmp_path / "run/pairs/00001.parquet")
    assert run_app(["report", run.root, "--to", str(tmp_path / "run/report.html")]) == 2
    assert "is in the run's own folder" in capsys.readouterr().err
    run_toy(config, "pairs.min_count=99")
    with pytest.raises(InputError, match="there is no pair to report on; see `maskmine errors"):
        make_report(run)
    (tmp_path / "run/manifest.json").unlink()
    assert run_app(["report", run.root, "--to", str(tmp_path / "page.html")]) == 4
    assert "not finished (no manifest.json)" in capsys.readouterr().err


def test_captions_are_told_apart_by_what_is_wrong_with_them() -> None:
    said = {
        "a": ("A dog on a lawn.", "", "  "),
        "b": ("img_001.jpg", "b"),
        "c": ("See https://x.org for a dog", "stock photo of a dog", "<b>A</b> &amp; a dog", "Une bête dort là"),
        "d": ("a dog on a lawn.", "dog " * 51),
    }
    captions = [CaptionsRow(name, texts) for name, texts in said.items()]
    images = [ImageRow("a", None), ImageRow("b", "/x/b.jpg"), ImageRow("c", "/x/c"), ImageRow("d", "/x/d.png")]
    parts = (slice(0, 1), slice(1, 4))
    found = caption_quality((to_table(captions[part], CaptionsRow), to_table(images[part], ImageRow)) for part in parts)
    assert found.captions == 11
    assert found.faults == {
        "empty": 2,
        "fewer than 3 words": 2,
        "more than 50 words": 1,
        "only a file name": 2,
        "with a web address": 1,
        "with HTML": 1,
        "with words of picture agencies": 1,
        "with characters beyond ASCII": 1,
    }
    assert found.repeated == 2
    assert found.commonest == (("a dog on a lawn.", 2),)


def test_the_command_writes_a_page_of_every_finished_run(
    run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "new" / "report.html"
    assert run_app(["report", run.root, "--to", str(to), "--samples", "3"]) == 0
    assert f"{to}: 9 pairs, 3 of them to look up" in capsys.readouterr().out
    plan = read_plan(run)
    assert plan is not None
    assert to.read_text().startswith("<!DOCTYPE html>")


@needs_chromium
def test_a_browser_searches_and_nothing_runs_out_of_a_phones_screen(page: str, tmp_path: Path) -> None:
    found = ask_on_a_phone(
        page,
        tmp_path,
        does="const field = it.getElementById('noun'); field.value = 'Zebr'; field.dispatchEvent(new Event('input'))",
        tells="told: it.getElementById('found').textContent,"
        "shown: [...it.querySelectorAll('#search figure')].filter((one) => !one.hidden).map((one) => one.dataset.noun),"
        "broken: [...it.images].filter((one) => one.complete && !one.naturalWidth).length",
    )
    assert found["width"] <= PHONE_PX
    assert found["shown"] == ["zebra"]
    assert found["told"] == "Pairs in the set: zebra 1. Shown here: 1."
    assert found["broken"] == 0
    assert shades_on_a_screen(page, tmp_path, size=(1280, 900)) > 10


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with started_browser() as chromium:
        yield chromium


def test_the_page_can_be_read_and_reached_on_every_screen(browser: Any, page: str, tmp_path: Path) -> None:
    assert faults_of_page(browser, page, tmp_path) == []


def test_a_noun_of_a_list_is_looked_up_by_a_click(browser: Any, page: str, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    shown = browser.new_page()
    shown.goto(f"file://{tmp_path / 'page.html'}")
    shown.click(".words button[data-noun=zebra]")
    assert shown.input_value("#noun") == "zebra"
    assert [card.get_attribute("data-noun") for card in shown.query_selector_all("#search figure:visible")] == ["zebra"]
    shown.close()


def test_a_noun_that_the_page_has_no_pair_of_does_not_look_as_if_it_could_be_clicked(report: Report) -> None:
    assert 'data-noun="zebra">zebra <i>' in render_report(report)
    assert 'data-noun="zebra">zebra <i>' not in render_report(replace(report, search=[]))


def test_the_page_says_how_the_set_was_made(report: Report, page: str, run: RunFolder) -> None:
    words = " ".join(Page(page).words.split())
    accounts = [run.read_json("shards", f"{part:05d}.json") for part in range(3)]
    finished = max(account["finished"] for account in accounts if account)
    assert f"maskmine {report.manifest.libraries['maskmine']}, with" in words
    assert f"{finished[:10]} {finished[11:19]} UTC" in words
    assert "maskmine mine run/mining.yaml" in words
    assert "maskmine report run --truth instances.json" in words
    assert "rule: best_region_per_noun" in words
    assert f"model: clip ({report.manifest.settings['regions']['clip']['model']['sha256'][:12]})" in words
    assert str(Path(run.root).parent) not in page, "nothing of the machine"


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("no CLIP made them (`rule: labels`)", "no CLIP made them (<code>rule: labels</code>)"),
        ("a ` alone, <b>", "a ` alone, &lt;b&gt;"),
        (r"not a picture: begins with '\x00\xfe' and more", "not a picture and more"),
        (r"broken PNG: broken PNG file (chunk b'\\x01\\xfe')", "broken PNG: broken PNG file"),
        ("not a picture: begins with '<html>'", "not a picture: begins with &#39;&lt;html&gt;&#39;"),
    ],
)
def test_lines_of_the_program_are_shown_without_backticks_and_bytes(line: str, shown: str) -> None:
    assert said(line) == shown


def test_a_page_without_curves_says_why_without_backticks(report: Report) -> None:
    assert report.evaluation
    none = replace(report.evaluation, curves_of_all=(), no_curves="no curves: they are of `rule: labels`")
    assert "no curves: they are of <code>rule: labels</code>." in render_report(replace(report, evaluation=none))
