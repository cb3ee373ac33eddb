"""`maskmine serve`: what the page answers, what it refuses, and how requests wait their turn."""

from __future__ import annotations

import asyncio
import html
import io
import json
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from maskmine.pipelines.cli.main import run_app
from maskmine.pipelines.serve.page import MAX_LETTERS
from maskmine.pipelines.serve.service import Answer, Choice, Service, Upload
from maskmine.schemas.rows import Rejection
from maskmine.tuning.segmentation import overlay as segmentation_overlay
from tests.support import toy
from tests.support.hostile.corrupt_images import HOSTILE
from tests.support.web.browser import EXAMPLES, MOST_PIXELS, STREET, calling
from tests.support.web.served_page import ask, png

pytest.importorskip("starlette", reason="pip install '.[serve]'")
pytest.importorskip("uvicorn", reason="pip install '.[serve]'")

from starlette.testclient import TestClient

from maskmine.pipelines.serve import app as serve_app
from maskmine.pipelines.serve.app import make_app


@pytest.fixture(scope="module", autouse=True)
def small_maps() -> Iterator[None]:
    """Drawing at full size takes most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segmentation_overlay, "SHOWN_LONG_PX", (128, 256))
        yield


# --- what is answered -------------------------------------------------------------------------------------------------


def test_the_form_comes_with_the_first_example_and_the_defaults_of_the_configuration(client: TestClient) -> None:
    page = client.get("/")
    assert page.status_code == 200
    assert f">{STREET}</textarea>" in page.text
    assert re.search(r'name="example" value="0"[^>]* checked', page.text)
    assert re.search(r'name="paint" value="best_per_class" checked', page.text)
    assert re.search(r'name="tower" value="plain" checked', page.text)
    assert re.search(r'<option value="MaskFormer"[^>]* data-rules="clip" selected', page.text)
    assert 'data-rules="clip proposals ensemble"' in page.text


def test_the_downloads_are_the_files_that_the_command_writes(
    client: TestClient, service: Service, tmp_path: Path
) -> None:
    page = ask(client, paint="best_per_class", granularity="0.5")
    assert page.status == 200
    config = tmp_path / "segment.json"  # JSON is YAML
    settings = service.offers["MaskFormer"].settings.model_dump(mode="json")
    config.write_text(json.dumps({**settings, "granularity": 0.5}))
    command = ["segment", str(EXAMPLES / "street.jpg"), "--classes", STREET, "--config", str(config)]
    assert run_app([*command, "--to", str(tmp_path / "out")]) == 0
    written = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    answered = {file.rpartition("/")[2]: client.get(file).content for file in page.files}
    assert len(written) == 3
    assert {name: answered[name] for name in written} == written
    assert set(answered) - set(written) == {"map.png", "photo.jpg"}


def test_the_legend_has_the_colours_of_the_map_and_what_it_covers(client: TestClient) -> None:
    page = ask(client, classes=f"{STREET}, lobster")
    labels = {row["name"]: row for row in json.loads(client.get(page.files[-1]).content)["classes"]}
    map_HW3 = np.asarray(Image.open(io.BytesIO(client.get(page.files[0].replace("photo.jpg", "map.png")).content)))
    seen = {f"#{r:02x}{g:02x}{b:02x}" for r, g, b in map_HW3.reshape(-1, 3)}
    assert set(page.rows) == set(labels)
    for name, colour in page.rows.items():
        assert (colour in seen) == bool(labels[name]["pixels"]), name
        said = f"{labels[name]['share']:.1%}" if labels[name]["pixels"] else "not found"
        assert re.search(rf"</svg>{name}</th>.*?>{said}</td>", page.text, re.DOTALL)
        assert re.search(rf"</svg>{name}</th>.*?{labels[name]['score']:.2f}</span>", page.text, re.DOTALL)
    assert sum(bool(one["pixels"]) for one in labels.values()) == 4


def test_a_choice_reaches_the_model(client: TestClient) -> None:
    figures = {}
    for tower, rule, weight in (("plain", "clip", "0.7"), ("tuned", "clip", "0.7")):
        page = ask(client, tower=tower, rule=rule, clip_weight=weight, classes="goat, pumpkin")
        figures[tower] = json.loads(client.get(page.files[-1]).content)
    assert figures["plain"]["classes"] != figures["tuned"]["classes"]
    assert [model["role"] for model in figures["tuned"]["models"]] == ["proposals", "clip", "prompts"]
    cats: dict[str, Any] = {"segmenter": "Knows cats", "classes": "cat, sky", "paint": "sum"}
    for rule, weight in (("clip", 0.7), ("ensemble", 0.25), ("ensemble", 0.75), ("proposals", 0.7)):
        page = ask(client, rule=rule, clip_weight=str(weight), **cats)
        found = json.loads(client.get(page.files[-1]).content)
        assert (found["settings"]["rule"], found["settings"]["clip_weight"]) == (rule, weight)
        figures[f"{rule} {weight}"] = [one["probability"] for one in found["regions"]]
    assert len({str(value) for value in figures.values()}) == 6


def test_classes_are_merged_where_they_repeat_and_any_language_is_text(client: TestClient) -> None:
    page = ask(client, classes="car, tram\nCar ,  school  bus，трамвай, 地球仪")
    assert page.status == 200
    assert set(page.rows) == {"car", "tram", "school bus", "трамвай", "地球仪"}
    assert "Named more than once, and taken once: “car”." in page.text
    assert "learnt from English" in page.text
    assert "learnt from English" not in ask(client).text


def test_a_single_class_stands_against_others(client: TestClient) -> None:
    page = ask(client, classes="car")
    assert page.status == 200
    assert set(page.rows) == {"car"}
    assert "no class" in page.text


def test_what_a_person_wrote_is_text_and_never_markup(client: TestClient) -> None:
    wrote = '<script>alert(1)</script>, "><img src=x onerror=alert(1)>'
    picture = EXAMPLES / "beach.jpg"
    for page in (
        ask(client, picture, name="../<i>é\n.jpg", classes=wrote),
        ask(client, classes=wrote, segmenter="<b>", granularity="<b>", tower="<b>"),
    ):
        assert "<script>alert" not in page.text
        assert "<img src=x" not in page.text
        assert "<i>" not in page.text
        assert "<b>" not in page.text
        assert html.escape("<script>alert(1)</script>") in page.text


def test_nothing_of_a_picture_but_its_pixels_comes_back(client: TestClient) -> None:
    info, exif = PngInfo(), Image.Exif()
    info.add_text("Comment", "SECRET")
    exif[0x010E] = "SECRET"  # the description
    page = ask(client, png(64, 48, pnginfo=info, exif=exif), name="own.png")
    assert len(page.files) == 5
    assert not any(b"SECRET" in client.get(file).content for file in page.files)


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "place", "words"),
    [
        ({"classes": " ,\n"}, "classes", "No class is named"),
        ({"classes": "Others"}, "classes", "No class is named beside “Others”: give at least one, such as: dog"),
        ({"classes": ",".join(map(str, range(10_000)))}, "classes", "10,000 classes are too many: at most 50"),
        ({"classes": "x" * (MAX_LETTERS + 1)}, "classes", "has 201 letters: at most 200"),
        ({"clip_weight": "0"}, "clip_weight", "λ lies between 0 and 1, without either"),
        ({"clip_weight": "1"}, "clip_weight", "not at “1”"),
        ({"clip_weight": "nan"}, "clip_weight", "not at “nan”"),
        ({"granularity": "1.01"}, "granularity", "goes from 0 to 1, not to “1.01”"),
        ({"granularity": "much"}, "granularity", "not to “much”"),
        (
            {"segmenter": "SAM"},
            "segmenter",
            "“SAM” is not offered here: choose one of MaskFormer, Open MaskFormer, Knows cats",
        ),
        ({"paint": "all"}, "paint", "choose one of sum, best_per_class"),
        ({"rule": "best"}, "rule", "“best” is not offered here"),
        ({"rule": "ensemble"}, "rule", "come without a classifier of their own"),
        ({"segmenter": "Knows cats", "tower": "tuned"}, "tower", "“tuned” is not offered here: choose one of plain"),
        ({"segmenter": "Knows cats", "rule": "ensemble"}, "rule", "does not know <code>school bus</code>"),
        ({"example": ""}, "picture", "No picture is chosen"),
        ({"example": "7"}, "picture", "no such example"),
    ],
)
def test_a_fault_is_one_line_at_its_field(client: TestClient, fields: dict[str, str], place: str, words: str) -> None:
    page = ask(client, **fields)
    assert page.status == 422
    assert list(page.faults) == [place]
    assert words in page.faults[place]


def test_several_faults_are_said_at_once_and_what_was_entered_stays(client: TestClient) -> None:
    page = ask(client, classes="a,,b", clip_weight="7", granularity="-1", segmenter="x")
    assert list(page.faults) == ["segmenter", "clip_weight", "granularity"]
    assert ">a,,b</textarea>" in page.text
    assert page.text.count('aria-invalid="true"') == 3


@pytest.mark.parametrize(
    ("data", "status", "words"),
    [
        (b"", 415, "cannot be read as a picture (empty file)"),
        (b"no picture, whatever its name says", 415, "not a picture: begins with"),
        (png(64, 48)[:80], 415, "broken PNG"),
        (png(800, 600), 413, f"800 × 600 = 480,000 pixels, more than <code>max_image_pixels: {MOST_PIXELS}</code>"),
        (b"\xff" * 600_000, 413, "at most 0.5 MB are taken"),
        (b"\xff" * 3_000_000, 413, "at most 0.5 MB are taken"),
    ],
    ids=["empty", "text", "broken", "pixels", "bytes", "more bytes"],
)
def test_what_is_no_picture_or_too_large_is_told_with_its_limit(
    client: TestClient, data: bytes, status: int, words: str
) -> None:
    page = ask(client, data)
    assert page.status == status
    assert words in page.faults["picture"]


def test_a_body_that_says_that_it_is_too_long_is_not_read(service: Service) -> None:
    async def receive() -> Any:
        raise AssertionError("the body was read")

    assert asyncio.run(post(service, receive, headers={"content-length": "99999999"})) == 413


def test_a_body_that_does_not_say_how_long_it_is_is_read_to_the_limit(service: Service) -> None:
    head = b'--b\r\nContent-Disposition: form-data; name="picture"; filename="x.png"\r\n\r\n'
    read: list[bytes] = []

    async def receive() -> Any:
        assert len(read) < 100, "it was read without an end"
        read.append(b"x" * 100_000 if read else head)
        return {"type": "http.request", "body": read[-1], "more_body": True}

    assert asyncio.run(post(service, receive, headers={"transfer-encoding": "chunked"})) == 413
    assert len(read) < 30


async def post(service: Service, receive: Any, *, headers: dict[str, str]) -> int:
    """The status of a POST whose body comes from `receive`."""
    origin = {"host": "127.0.0.1", "origin": "http://127.0.0.1"}
    given = {**origin, "content-type": "multipart/form-data; boundary=b", **headers}
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/",
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in given.items()],
    }
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    await make_app(service, hosts=("127.0.0.1",))(scope, receive, send)
    return int(sent[0]["status"])


@pytest.mark.parametrize("charset", ["idna", "unicode_escape", "utf-7", '"utf-8"', "UTF-8"])
def test_a_form_is_read_in_utf_8_alone(client: TestClient, charset: str) -> None:
    body = b'--b\r\nContent-Disposition: form-data; name="classes"\r\n\r\nxn--a, \\ud800, +2AA-\r\n--b--\r\n'
    kind = {"content-type": f"multipart/form-data; boundary=b; charset={charset}"}
    assert client.post("/", content=body, headers=kind).status_code == (422 if "8" in charset else 400)


def test_other_sites_and_other_names_of_this_machine_are_refused(client: TestClient) -> None:
    assert client.get("/", headers={"host": "evil.example"}).status_code == 400
    refused = client.post("/", data={"example": "0", "classes": "car"}, headers={"origin": "http://evil.example"})
    assert refused.status_code == 403
    assert client.post("/", headers={"origin": "http://127.0.0.1"}).status_code == 422
    assert client.post("/", content=b"{}", headers={"content-type": "application/json"}).status_code == 422


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": ""},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:8000"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_a_form_that_its_own_page_does_not_vouch_for_is_refused(client: TestClient, headers: dict[str, str]) -> None:
    given = {"example": "0", "classes": "car"}
    assert client.post("/", data=given, headers=headers).status_code == 403


def test_a_form_that_says_nothing_of_its_origin_is_refused(service: Service) -> None:
    with TestClient(make_app(service, hosts=None)) as client:
        assert client.post("/", data={"example": "0", "classes": "car"}).status_code == 403


@pytest.mark.parametrize("origin", ["null", "http://", ""])
def test_a_form_for_no_host_is_refused_too(service: Service, origin: str) -> None:
    with TestClient(make_app(service, hosts=None)) as client:
        given = {"host": "", "origin": origin}
        assert client.post("/", data={"example": "0", "classes": "car"}, headers=given).status_code == 403


def test_two_pictures_in_one_form_are_refused(client: TestClient) -> None:
    page = ask(client, png(4, 4), example="0")
    assert page.status == 422
    assert "Two pictures are given" in page.faults["picture"]
    files = [("picture", ("a.png", png(4, 4))), ("picture", ("b.png", png(4, 4)))]
    assert client.post("/", data={"classes": "car"}, files=files).status_code == 400
    field = {"classes": "car", "picture": "x"}
    assert client.post("/", data=field, files={"picture": ("a.png", png(4, 4))}).status_code == 400


@pytest.mark.parametrize(
    "path",
    [
        *("results/x/map.png", "static/serve.html.j2", "static/..%2f..%2fsetup.py", "etc/passwd"),
        *("examples/9.jpg", f"examples/{'9' * 4400}.jpg"),
    ],
    ids=lambda path: path[:40],
)
def test_only_what_is_served_can_be_had(client: TestClient, path: str) -> None:
    assert client.get(f"/{path}").status_code == 404


def test_every_answer_forbids_what_the_page_does_not_need_and_nothing_comes_from_elsewhere(client: TestClient) -> None:
    page = ask(client)
    for path in ("", "static/serve.css", "nowhere", page.files[0]):
        headers = client.get(f"/{path}").headers
        assert headers["content-security-policy"].startswith("default-src 'none'; img-src 'self' blob:;")
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
    addresses = re.findall(r'(?:src|href|action)="([^"]*)"', page.text)
    assert len(addresses) > 8
    assert not [address for address in addresses if ":" in address or address.startswith("/")]
    assert "style=" not in page.text
    for file in ("serve.css", "serve.js"):
        assert not re.search(r"https?:|url\(|@import|innerHTML = [^']", client.get(f"/static/{file}").text)


# --- turns, memory, faults of the server ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Watched(Service):
    """Notes how many are in the model at once; each answer waits until `go` is set."""

    inside: list[int] = field(default_factory=list)
    most: list[int] = field(default_factory=list)
    go: threading.Event = field(default_factory=threading.Event)

    def answer(self, upload: Upload, *, name: str, choice: Choice) -> Answer | Rejection:
        self.inside.append(1)
        self.most.append(len(self.inside))
        self.go.wait(20)
        try:
            return Service.answer(self, upload, name=name, choice=choice)
        finally:
            self.inside.pop()


def watched(service: Service, **changes: Any) -> Watched:
    return Watched(service.settings.model_copy(update=changes), service.offers, service.examples)


def test_users_at_once_take_turns_and_each_gets_the_own_answer(service: Service, client: TestClient) -> None:
    asked = {"street": STREET, "beach": "football, lobster, cricket bat", "table": "gift, battery"}
    alone = {name: ask(client, EXAMPLES / f"{name}.jpg", name=f"{name}.jpg", classes=asked[name]) for name in asked}
    together = watched(service)
    together.go.set()
    with calling(together) as other, ThreadPoolExecutor(6) as pool:
        futures = [
            (name, pool.submit(ask, other, EXAMPLES / f"{name}.jpg", name=f"{name}.jpg", classes=asked[name]))
            for name in [*asked, *asked]
        ]
        for name, future in futures:
            page = future.result()
            assert page.files == alone[name].files
            for file in page.files:
                assert other.get(file).content == client.get(file).content
    assert set(together.most) == {1}


def test_a_picture_that_takes_long_to_decode_holds_no_turn(service: Service, tmp_path: Path) -> None:
    toy.poison(tmp_path / "slow.png", ("square",), "sleep")
    patient = Service(service.settings.model_copy(update={"max_decode_s": 4.0}), service.offers, service.examples)
    with calling(patient) as client, ThreadPoolExecutor(2) as pool:
        slow = [pool.submit(ask, client, tmp_path / "slow.png", classes=f"car, {n}") for n in range(2)]
        time.sleep(0.2)
        begin = time.monotonic()
        assert ask(client, classes="car").status == 200
        assert not any(one.done() for one in slow)
        assert time.monotonic() - begin < 3.5
        pages = [one.result() for one in slow]
    assert [page.status for page in pages] == [422, 422]
    assert "takes more to decode than it is worth" in pages[0].faults["picture"]


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_a_hostile_picture_is_answered_at_once(service: Service, name: str) -> None:
    larger = service.settings.model_copy(update={"max_upload_mb": 5.0})
    begin = time.monotonic()
    with calling(Service(larger, service.offers, service.examples)) as client:
        assert ask(client, HOSTILE[name](), name=name, classes="car").status in (200, 413, 415)
    assert time.monotonic() - begin < 5


def test_who_finds_too_many_waiting_is_told_so(service: Service) -> None:
    busy = watched(service, max_waiting=0)
    with calling(busy) as client, ThreadPoolExecutor(1) as pool:
        first = pool.submit(ask, client)
        while not busy.inside:
            time.sleep(0.01)
        page = ask(client, classes="car")
        busy.go.set()
        assert first.result().status == 200
        assert ask(client, classes="car").status == 200
    assert page.status == 503
    assert "try again in a minute" in page.faults[""]


def test_nobody_waits_for_a_server_that_stops(service: Service) -> None:
    busy = watched(service)
    app = make_app(busy, hosts=None, stopping=lambda: True)
    with TestClient(app, headers={"origin": "http://testserver"}) as client:
        page = ask(client)
        busy.go.set()
    assert page.status == 503
    assert page.faults[""] == "The server was stopped"


def test_the_same_question_is_answered_from_memory_which_is_bounded(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve_app, "MAX_RESULTS", 2)
    counting = watched(service)
    counting.go.set()
    with calling(counting) as client:
        pages = [ask(client, classes=name) for name in ("car", "car", "tram", "bus")]
        assert len(counting.most) == 3
        assert pages[0].files == pages[1].files
        assert [client.get(page.files[0]).status_code for page in pages] == [404, 404, 200, 200]


def test_a_fault_that_nobody_expected_is_told_without_its_details(service: Service) -> None:
    broken = Broken(service.settings, service.offers, service.examples)
    with calling(broken, raise_server_exceptions=False) as client:
        page = ask(client)
    assert page.status == 500
    assert "SECRET" not in page.text
    assert "Something went wrong" in page.faults[""]


@dataclass(frozen=True, slots=True, eq=False)
class Broken(Service):
    """Has a fault."""

    def answer(self, upload: Upload, *, name: str, choice: Choice) -> Answer | Rejection:
        raise RuntimeError("SECRET")
