"""A page as a reader of its source sees it, and as a person with a phone sees it, in headless Chromium."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from tests.support.paths import ROOT

if TYPE_CHECKING:
    from starlette.testclient import TestClient

    from maskmine.pipelines.serve.service import Service

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DESK_PX, PHONE_PX = 1280, 390
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")

# What the tests of `maskmine serve` serve, and what they ask of it.
CONFIG = ROOT / "configs" / "serve-demo.yaml"
EXAMPLES = ROOT / "demo" / "examples"
STREET = "school bus, car, tram, railway carriage"
MOST_PIXELS = 300_000


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
        self.words += " " if tag == "br" else ""
        for name, value in attrs:
            if name in ("src", "srcset", "poster", "data", "background", "xlink:href"):
                self.fetched.append(value or "")
            elif name == "href":
                self.links.append(value or "")

    def handle_data(self, data: str) -> None:
        self.words += data


def ask_on_a_phone(page: str, folder: Path, *, does: str = "", tells: str) -> dict[str, Any]:
    """What a page in a frame as wide as a phone says of itself, and `width`, which it takes in pixels.

    `does` are statements, `tells` the fields of an object, both in JavaScript over the page's document `it`.
    """
    (folder / "index.html").write_text(page, encoding="utf-8")
    (folder / "phone.html").write_text(
        f'<iframe src="index.html" style="width: {PHONE_PX}px; height: 800px; border: 0"></iframe><p id="found"></p>'
        "<script>onload = () => { const it = document.querySelector('iframe').contentDocument;"
        f"{does}; found.textContent = JSON.stringify({{width: it.documentElement.scrollWidth, {tells}}}) }}</script>"
    )
    dumped = _chromium(folder, "--dump-dom", f"file://{folder / 'phone.html'}")
    match = re.search(r'id="found">(\{.*?\})<', dumped)
    assert match
    found: dict[str, Any] = json.loads(match[1])
    return found


def shades_on_a_screen(page: str, folder: Path, *, size: tuple[int, int]) -> int:
    """How many shades of grey a page shows on a screen of `(width_px, height_px)`; a blank one shows few."""
    (folder / "index.html").write_text(page, encoding="utf-8")
    shot = folder / "page.png"
    _chromium(folder, f"--window-size={size[0]},{size[1]}", f"--screenshot={shot}", f"file://{folder / 'index.html'}")
    with Image.open(shot) as picture:
        assert picture.size == size
        return len(picture.convert("L").getcolors() or [])


def _chromium(folder: Path, *options: str) -> str:
    always: Sequence[str] = ("--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files")
    command = [str(CHROMIUM), *always, f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=5000", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


def grave_faults(page: Any) -> list[str]:
    """What axe-core calls serious or critical about a page that Playwright shows."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="pip install axe-playwright-python")
    found = axe.Axe().run(page).response["violations"]
    return [f"{one['id']}: {one['help']}" for one in found if one["impact"] in ("serious", "critical")]


def faults_of_looks(page: Any) -> list[str]:
    """What is wrong with the page that Playwright shows: at a desk and on a phone, in light and in dark."""
    found = []
    for width_px in (DESK_PX, PHONE_PX):
        page.set_viewport_size({"width": width_px, "height": 900})
        told = page.evaluate(_LOOKS)
        found += [f"{width_px} px: {fault}" for fault in told]
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            found += [f"{width_px} px, {scheme}: {fault}" for fault in grave_faults(page)]
    return found


def faults_of_page(browser: Any, page: str, folder: Path) -> list[str]:
    """`faults_of_looks` of a page that needs no server."""
    (folder / "page.html").write_text(page, encoding="utf-8")
    shown = browser.new_page()
    shown.goto(f"file://{folder / 'page.html'}")
    found = faults_of_looks(shown)
    shown.close()
    return found


# A page as wide as the screen, words that are whole in tables, the chosen words of a select that are seen to their end,
# charts of one size, and so letters of one size in them, and regions that scroll within reach of the keyboard.
_LOOKS = r"""() => {
  const faults = [], say = (what, one) => faults.push(`${what}: ${one.textContent.trim().slice(0, 60)}`);
  if (document.documentElement.scrollWidth > innerWidth) faults.push("wider than the screen");
  for (const cell of document.querySelectorAll("th, td:not(.text)")) {
    const texts = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT);
    while (texts.nextNode()) {
      for (const word of texts.currentNode.data.matchAll(/[^\s\-–]+/g)) {
        const range = document.createRange();
        range.setStart(texts.currentNode, word.index);
        range.setEnd(texts.currentNode, word.index + word[0].length);
        if (new Set([...range.getClientRects()].map(rect => Math.round(rect.top))).size > 1) say("a broken word", cell);
      }
    }
  }
  const pen = document.createElement("canvas").getContext("2d");
  for (const select of document.querySelectorAll("select")) {
    const style = getComputedStyle(select);
    pen.font = style.font;
    const room = select.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight) - 20;
    for (const option of select.options) if (pen.measureText(option.label).width > room) say("a cut select", option);
  }
  const charts = [...document.querySelectorAll(".chart:not(.heat) svg")];
  const widths = new Set(charts.map(one => Math.round(one.getBoundingClientRect().width)));
  if (widths.size > 1) faults.push(`charts of ${[...widths].join(", ")} px`);
  for (const one of document.querySelectorAll("body *")) {
    const scrolls = ["auto", "scroll"].includes(getComputedStyle(one).overflowX);
    if (!scrolls || one.matches("textarea, input, select, pre")) continue;
    if (one.tabIndex < 0 || !one.ariaLabel) say("scrolls, and no label or no keyboard", one);
  }
  return faults;
}"""


@contextmanager
def calling(service: Service, **options: Any) -> Iterator[TestClient]:
    from starlette.testclient import TestClient

    from maskmine.pipelines.serve.app import make_app

    app = make_app(service, hosts=("127.0.0.1",))
    headers = {"origin": "http://127.0.0.1"}  # as every browser says with a form
    with TestClient(app, base_url="http://127.0.0.1", headers=headers, **options) as client:
        yield client


@contextmanager
def served(app: Any, *, gate: Any = None) -> Iterator[str]:
    """The address of a web application that a thread of this process serves as the commands do."""
    import uvicorn

    from maskmine.pipelines.web.server import configure

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(configure(app, gate=gate))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        server.should_exit = True
        thread.join()


@contextmanager
def started_browser() -> Iterator[Any]:
    """Chromium, driven by playwright; the test is skipped where either is missing."""
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()
