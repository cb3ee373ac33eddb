"""`maskmine serve`: its settings, its command, and how its page looks in a browser."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from maskmine.mining.images.child_decoder import Decoding
from maskmine.pipelines.cli.main import run_app
from maskmine.pipelines.serve.app import make_app
from maskmine.pipelines.serve.service import Service, Serving, stem_of
from maskmine.pipelines.settings.mining import load_settings
from maskmine.schemas.errors import InputError
from maskmine.tuning.segmentation import overlay as segmentation_overlay
from tests.support.paths import ROOT
from tests.support.web.browser import (
    CONFIG,
    EXAMPLES,
    MOST_PIXELS,
    PHONE_PX,
    STREET,
    calling,
    faults_of_looks,
    grave_faults,
    served,
    started_browser,
)

pytest.importorskip("starlette", reason="pip install '.[serve]'")
pytest.importorskip("uvicorn", reason="pip install '.[serve]'")


@pytest.fixture(scope="module", autouse=True)
def small_maps() -> Iterator[None]:
    """Drawing at full size takes most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segmentation_overlay, "SHOWN_LONG_PX", (128, 256))
        yield


def test_segmenters_share_what_they_have_in_common(service: Service) -> None:
    one, other = service.offers["MaskFormer"].towers, service.offers["Knows cats"].towers
    assert one["plain"].models.region_classifier is other["plain"].models.region_classifier
    assert one["plain"].models.propose is one["tuned"].models.propose
    assert one["plain"].models.region_classifier is not one["tuned"].models.region_classifier


def test_prompts_that_are_not_there_yet_are_not_offered_where_the_settings_say_so(
    serving: Serving, tmp_path: Path
) -> None:
    absent = serving.segmenters["MaskFormer"].model_copy(
        update={"tuned": serving.segmenters["MaskFormer"].tuned.model_copy(update={"prompts": str(tmp_path / "no")})}  # type: ignore[union-attr]
    )
    alone = serving.model_copy(update={"segmenters": {"MaskFormer": absent}})
    opened = alone.open()
    assert list(opened.offers["MaskFormer"].towers) == ["plain"]
    assert 'name="tower"' not in make_page(opened)
    with pytest.raises(InputError, match="there is no such file"):
        alone.model_copy(update={"tuned_if_there": False}).open()


def make_page(service: Service) -> str:
    with calling(service) as client:
        return str(client.get("/").text)


@pytest.mark.parametrize("name", ["serve.yaml", "serve-demo.yaml"])
def test_the_configurations_are_read(name: str) -> None:
    settings = load_settings(Serving, str(ROOT / "configs" / name))
    assert settings.segmenters


def test_the_demo_needs_no_file_that_is_not_shipped() -> None:
    settings = load_settings(Serving, str(CONFIG))
    assert settings.tuned_if_there
    for segmenter in settings.segmenters.values():
        assert (ROOT / segmenter.clip.model).is_dir()
        assert (ROOT / segmenter.proposals.checkpoint).is_dir()  # type: ignore[union-attr]
    for example in settings.examples:
        assert (ROOT / example.picture).is_file()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["segmenters={}"], "segmenters: dictionary should have at least 1 item"),
        (["max_classes=0"], "max_classes: input should be greater"),
        (["segmenters.MaskFormer.proposals={kind: ground_truth, annotations: x.json}"], "their own pictures only"),
    ],
)
def test_settings_that_cannot_be_served_are_refused_in_one_line(overrides: list[str], words: str) -> None:
    with pytest.raises(InputError, match=re.escape(words)):
        load_settings(Serving, str(CONFIG), overrides=overrides)


def test_a_rule_that_the_proposals_cannot_follow_and_an_example_that_is_none_are_refused(
    serving: Serving, tmp_path: Path
) -> None:
    (tmp_path / "note.jpg").write_text("no picture")
    example = serving.examples[0].model_copy(update={"picture": str(tmp_path / "note.jpg")})
    only = {"MaskFormer": serving.segmenters["MaskFormer"].model_copy(update={"rule": "ensemble", "tuned": None})}
    with pytest.raises(InputError, match="needs proposals with a classifier"):
        serving.model_copy(update={"segmenters": only}).open()
    with pytest.raises(InputError, match=r"examples: .*note.jpg: decode_error"):
        example.read(Decoding(), max_pixels=MOST_PIXELS)


@pytest.mark.parametrize(
    ("name", "stem"),
    [("a b.jpg", "a-b"), ("地球仪.png", "picture"), ("...", "picture"), ("x" * 200 + ".jpg", "x" * 80)],
)
def test_files_are_named_after_the_picture_in_letters_that_are_safe_anywhere(name: str, stem: str) -> None:
    assert stem_of(name) == stem


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--port", "70000"], "ports go from 1 to 65535"),
        (["--host", "256.1.1.1"], "this machine has no such address"),
        (["nowhere.yaml"], "nowhere.yaml: no such file"),
    ],
)
def test_a_place_that_cannot_be_served_is_told_in_one_line(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert run_app(["serve", *arguments]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert words in line


def test_a_port_in_use_is_told_before_a_model_is_loaded(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert run_app(["serve", "--port", str(port), "--set", "segmenters.MaskFormer.clip.model=nowhere"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert f"the port is in use; stop what uses it, or give another one, such as --port {port + 1}" in line


def test_a_server_that_is_interrupted_ends_with_130_and_a_line() -> None:
    program = """
import sys
from maskmine.pipelines.serve.app import make_app
from maskmine.pipelines.serve.service import Service, Serving
Serving.open = lambda self: Service(self, {}, ())
sys.argv = ["maskmine", "serve", "--port", "0"]
from maskmine.pipelines.cli.main import main
main()
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stderr=subprocess.PIPE, text=True, bufsize=1
    ) as process:
        assert process.stderr is not None
        address = ""
        while not (match := re.match(r"http://127\.0\.0\.1:(\d+)", address)):
            address = process.stderr.readline()
            assert address, "it ended before it served"
        with socket.create_connection(("127.0.0.1", int(match[1])), timeout=20) as connection:
            connection.sendall(b"GET /static/serve.css HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert connection.recv(100).startswith(b"HTTP/1.1 200 OK")
            process.send_signal(signal.SIGINT)  # while somebody is still connected
            said = process.stderr.read().strip().splitlines()
        assert process.wait(timeout=20) == 130
    assert said == ["maskmine: stopped"]


@pytest.fixture(scope="module")
def address(service: Service) -> Iterator[str]:
    """The page on a real server."""
    with served(make_app(service, hosts=("127.0.0.1",))) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with started_browser() as chromium:
        yield chromium


def test_on_a_phone_a_picture_is_uploaded_and_its_map_is_seen(browser: Any, address: str) -> None:
    page = browser.new_page(viewport={"width": PHONE_PX, "height": 800})
    asked: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(address)
    page.set_input_files("#picture", str(EXAMPLES / "beach.jpg"))
    assert page.input_value("#classes") == "", "the names belonged to the example"
    page.fill("#classes", "lobster, football, cricket bat")
    page.keyboard.press("Tab")
    page.click("button")
    page.wait_for_selector("#map")
    page.wait_for_load_state("networkidle")
    widths = page.evaluate("[...document.images].filter(one => !one.hidden).map(one => one.naturalWidth)")
    assert len(widths) == 4
    assert all(widths)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE_PX
    assert page.evaluate("document.activeElement.id") == "result"
    assert page.evaluate("document.getElementById('map').getBoundingClientRect().top") < 800, "it was scrolled to"
    swatch, seen = page.evaluate(_COLOURS)
    assert swatch in seen
    assert page.is_enabled("button")
    assert not grave_faults(page)
    assert not complaints
    assert all(url.startswith((address, "blob:")) for url in asked)
    page.close()


def test_without_javascript_the_form_is_taken_too(browser: Any, address: str) -> None:
    page = browser.new_page(java_script_enabled=False)
    page.goto(address)
    page.click("button")
    assert "of 4 classes found" in page.inner_text("#result")
    page.context.close()


def test_in_a_browser_a_fault_marks_its_field_and_the_entries_stay(browser: Any, address: str) -> None:
    page = browser.new_page()
    page.goto(address)
    assert page.is_disabled("option[value=ensemble]")
    assert page.is_disabled("#clip_weight")
    page.select_option("#segmenter", "Knows cats")
    page.select_option("#rule", "ensemble")
    assert page.is_enabled("#clip_weight")
    page.click("button")
    page.wait_for_selector("[role=alert]")
    assert "does not know" in page.inner_text("[role=alert]")
    assert page.get_attribute("#rule", "aria-invalid") == "true"
    page.wait_for_timeout(300)  # what was faint is fading in
    assert faults_of_looks(page) == []
    assert page.input_value("#classes") == STREET
    page.set_input_files("#picture", {"name": "x.png", "mimeType": "image/png", "buffer": b"x" * 600_000})
    page.click("button")
    page.wait_for_selector("text=at most 0.5 MB")
    assert page.get_attribute("#picture", "aria-invalid") == "true"
    page.close()


def test_map_and_form_can_be_read_and_reached_on_every_screen(browser: Any, address: str) -> None:
    page = browser.new_page()
    page.goto(address)
    page.select_option("#segmenter", "Knows cats")
    page.fill("#classes", f"{STREET}, hippopotamus, others")
    page.click("button")
    page.wait_for_selector("#map")
    page.wait_for_selector("#result:not(.busy)")
    page.wait_for_timeout(300)  # what was faint is fading in
    assert faults_of_looks(page) == []
    letters = page.evaluate("[...document.querySelectorAll('.names text')].map(one => getComputedStyle(one).fontSize)")
    assert letters
    assert set(letters) == {"13px"}, "whatever the size of the map"
    outside = """() => [...document.querySelectorAll(".names text")].filter(one => {
      const name = one.getBoundingClientRect(), map = document.getElementById("map").getBoundingClientRect();
      return name.left < map.left || name.right > map.right;
    }).length"""
    assert page.evaluate(outside) == 0
    assert "Confidence is relative to the names given" in page.inner_text("#result")
    page.check("input[name=paint][value=sum]")
    assert not grave_faults(page), "what does not apply is faint, and what explains it is not"
    page.close()


def test_the_bytes_of_a_file_that_is_no_picture_are_not_shown(service: Service) -> None:
    with calling(service) as client:
        for content in (b"\x00\x01\xfe" * 40, b"\x89PNG\r\n\x1a\n" + b"\x00\x01\xfe" * 40):
            page = client.post("/", data={"classes": "car"}, files={"picture": ("x.png", content)})
            assert page.status_code == 415
            assert "This cannot be read as a picture" in page.text
            assert "\\x" not in page.text


_COLOURS = """() => {
  const image = document.getElementById("map"), canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0);
  const values = context.getImageData(0, 0, canvas.width, canvas.height).data, seen = new Set();
  for (let i = 0; i < values.length; i += 4)
    seen.add("#" + [0, 1, 2].map(k => values[i + k].toString(16).padStart(2, "0")).join(""));
  return [document.querySelector("tbody rect").getAttribute("fill"), [...seen]];
}"""
