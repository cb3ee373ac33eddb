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
PHONE_PX = 390
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
