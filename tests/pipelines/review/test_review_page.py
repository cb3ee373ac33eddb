"""`maskmine review` as a person sees it, in headless Chromium; its command; and a server that is killed."""

from __future__ import annotations

import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from maskmine.mining.evaluation.verdicts import read_verdicts
from maskmine.pipelines.cli.main import run_app
from maskmine.pipelines.dataset.finished_run import FinishedRun
from maskmine.pipelines.review.pictures import Drawer
from maskmine.pipelines.review.queue import Queue, choose_items
from maskmine.pipelines.review.store import FOLDER, Store
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.schemas.errors import Exit
from tests.support.paths import ROOT
from tests.support.web.browser import PHONE_PX, grave_faults, served, started_browser

pytest.importorskip("starlette", reason="pip install '.[serve]'")
pytest.importorskip("uvicorn", reason="pip install '.[serve]'")


from maskmine.pipelines.review.app import Review, make_app

SCREENS = [(1280, 800), (PHONE_PX, 844)]


@pytest.fixture
def run(mined: Path, tmp_path: Path) -> Path:
    """A finished run of its own: 7 pairs of 4 images."""
    return shutil.copytree(mined, tmp_path / "toy-run")


@pytest.fixture
def address(run: Path) -> Iterator[str]:
    """The page of that run in a thread of this process."""
    folder = RunFolder(str(run))
    finished, store = FinishedRun.open(folder), Store(folder)
    queue = Queue(choose_items(finished, order="random", size=300, seed=0), store)
    app = make_app(Review("toy-run", "random", store, queue, Drawer(finished), None), hosts=("127.0.0.1",))
    with served(app) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with started_browser() as chromium:
        yield chromium


def verdicts(run: Path) -> list[str]:
    """All that is on the disk, by time."""
    return [row.verdict for row in sorted(read_verdicts(str(run / FOLDER)).rows, key=lambda row: row.at)]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SCREENS, ids=["desk", "phone"])
def test_a_review_by_keyboard_alone(browser: Any, address: str, run: Path, size: tuple[int, int], scheme: str) -> None:
    context = browser.new_context(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
    page = context.new_page()
    asked: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))

    # The name, then verdicts by their keys.
    page.goto(address)
    assert not grave_faults(page)
    page.keyboard.type("ann")
    press(page, "Enter")
    assert not grave_faults(page)
    for key in ("1", "w", "3", "c"):
        press(page, key)
    assert verdicts(run) == ["right", "wrong_noun", "bad_mask", "cannot_say"]
    press(page, "u")
    assert verdicts(run) == ["right", "wrong_noun", "bad_mask"]

    # By Tab: the first stop is the first button, and it is seen to be.
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.value") == "right"
    assert page.evaluate("parseFloat(getComputedStyle(document.activeElement).outlineWidth)") >= 2
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    press(page, "Enter")
    assert verdicts(run)[-1] == "right"

    # How it looks: everything is on the screen, and as wide as it.
    page.wait_for_load_state("networkidle")
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
    assert all(page.evaluate("[...document.images].map(one => one.complete && one.naturalWidth)"))
    for button in page.query_selector_all("#verdict button"):
        box = button.bounding_box()
        assert box["height"] >= 44
        assert 0 <= box["y"] <= box["y"] + box["height"] <= size[1], "no scrolling to the buttons"
    (ahead,) = re.findall(r'data-ahead="(\w+)"', page.content())
    assert f"{address}pairs/{ahead}/photo.jpg" in asked, "the next pictures were fetched in advance"

    for _ in range(3):
        press(page, "1")
    assert "All 7 pairs are judged" in page.inner_text("h2")
    assert not grave_faults(page)
    press(page, "z")
    assert len(verdicts(run)) == 6
    assert not complaints
    assert all(url.startswith(address) for url in asked)
    context.close()


def press(page: Any, key: str) -> None:
    with page.expect_navigation():
        page.keyboard.press(key)


def test_without_javascript_and_by_touch_two_people_judge_different_pairs(
    browser: Any, address: str, run: Path
) -> None:
    pages = []
    for name in ("ann", "Jürgen"):
        context = browser.new_context(java_script_enabled=False, viewport={"width": PHONE_PX, "height": 844})
        page = context.new_page()
        page.goto(address)
        page.fill("#reviewer", name)
        page.click("text=Start")
        pages.append(page)
    ann, other = (page.input_value("input[name=pair]") for page in pages)
    assert ann != other
    pages[0].click("button.bad_mask")
    pages[1].click("button.right")
    assert verdicts(run) == ["bad_mask", "right"]
    assert {row.reviewer for row in read_verdicts(str(run / FOLDER)).rows} == {"ann", "Jürgen"}
    pages[1].click("text=Undo")
    assert pages[1].input_value("input[name=pair]") == other
    assert verdicts(run) == ["bad_mask"]
    for page in pages:
        page.context.close()


@contextmanager
def serving(run: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command in a process of its own, and its address."""
    command = [sys.executable, "-m", "maskmine.pipelines.cli.main", "review", str(run), "--port", "0"]
    with subprocess.Popen([*command, "--reviewer", "ann"], stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if line.startswith("http://"):
                break
        assert lines[-1].startswith("http://"), lines
        try:
            yield process, lines[-1].split()[0]
        finally:
            process.kill()


def ask(address: str, data: str | None = None) -> str:
    origin = "/".join(address.split("/")[:3])  # as every browser says with a form
    asked = urllib.request.Request(address, None if data is None else data.encode(), {"Origin": origin})
    with urllib.request.urlopen(asked) as answer:
        return str(answer.read().decode())


def test_a_server_that_is_killed_loses_no_verdict(run: Path) -> None:
    with serving(run) as (process, address):
        page = ask(address)
        for number in range(4):
            (token,) = re.findall(r'name="pair" value="(\w+)"', page)
            page = ask(f"{address}/verdict", f"pair={token}&verdict=right")
            if number == 3:
                process.send_signal(signal.SIGKILL)
    assert verdicts(run) == ["right"] * 4
    with serving(run) as (process, address):
        page = ask(address)
        assert "4 of 7" in re.sub("<.*?>", "", page)
        page = ask(f"{address}/undo", "")
        assert "3 of 7" in re.sub("<.*?>", "", page)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == Exit.INTERRUPTED
    assert verdicts(run) == ["right"] * 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--reviewer", "../ann"], "reviewer `../ann`: a name has letters, digits"),
        (["--port", "70000"], "ports go from 1 to 65535"),
        (["--next", "uncertain"], "nothing says how sure its pairs are; use --next random"),
        (["--next", "best"], "'best' is not one of"),
        (["--size", "0"], "greater than or equal to 1"),
    ],
)
def test_bad_options_are_told_in_one_line(
    run: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    assert run_app(["review", str(run), "--port", "0", *options]) == Exit.BAD_INPUT
    assert words in capsys.readouterr().err.strip().splitlines()[-1]


def test_a_port_in_use_is_told(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert run_app(["review", str(run), "--port", str(port)]) == Exit.BAD_INPUT
    assert "the port is in use" in capsys.readouterr().err


def test_runs_that_cannot_be_reviewed_are_told(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def told(folder: Path) -> str:
        code = run_app(["review", str(folder), "--port", "0"])
        return f"{code} {capsys.readouterr().err.strip().splitlines()[-1]}"

    assert re.match(r"2 .*not a run folder", told(tmp_path))
    (run / FOLDER).mkdir()
    (run / FOLDER / "bob-1.parquet").write_bytes(b"PAR1")
    assert re.match(r"2 .*verdicts/bob-1.parquet: not a whole Parquet file", told(run))
    next((run / "pairs").glob("0*.parquet")).unlink()
    assert re.match(r"4 .*not finished \(cells of pairs are missing\)", told(run))
    (run / "manifest.json").unlink()
    assert re.match(r"4 .*not finished \(no manifest.json\)", told(run))


def test_a_file_of_another_run_is_told_and_does_not_count(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Store(RunFolder(str(run))).add(("elsewhere", "cat", "a" * 16), "right", reviewer="bob", seconds=None)
    (name,) = [file.name for file in (run / FOLDER).iterdir()]
    assert run_app(["review", str(run), "--port", "70000"]) == Exit.BAD_INPUT  # so that nothing is served
    told = " ".join(capsys.readouterr().err.split())
    assert f"{FOLDER}/{name}: 1 verdict of images that this run does not have" in told
