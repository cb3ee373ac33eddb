"""Pictures from URLs: refused unless the user allows them, and then within limits, whatever the host does."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from maskmine.mining.images import read as images_module
from maskmine.mining.storage import urls
from maskmine.mining.storage.addresses import Intranet, is_public
from maskmine.mining.storage.stores import scheme_of
from maskmine.mining.storage.urls import Fetch, fetch_url, forbids
from maskmine.pipelines.cli.main import run_app
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.pipelines.steps.status import rejected_images
from maskmine.schemas.rows import Rejection
from tests.support import toy
from tests.support.hostile.corrupt_inputs import SQUARE
from tests.support.runs import samples

pytest.importorskip("aiohttp", reason="needs aiohttp: pip install '.[fetch]'")

HERE = "127.0.0.1"
LIMITS = Fetch(allow=True, timeout_s=5.0, most_megabytes=0.1)


class Host(BaseHTTPRequestHandler):
    """A host whose paths say how it behaves."""

    calls: list[str]

    def do_GET(self) -> None:
        name = self.path.strip("/").partition("?")[0]
        type(self).calls.append(name)
        getattr(self, f"give_{name}", self.give_picture)()

    def give_picture(self, *headers: tuple[str, str], status: int = 200, body: bytes = SQUARE) -> None:
        self.send_response(status)
        for key, value in headers:
            self.send_header(key, value)
        if not any(key == "Content-Length" for key, _ in headers):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def give_html(self) -> None:
        self.give_picture(("Content-Type", "text/html; charset=utf-8"), body=b"<html>")

    def give_missing(self) -> None:
        self.give_picture(status=404, body=b"")

    def give_noai(self) -> None:
        self.give_picture(("X-Robots-Tag", "nofollow, NoAI"))

    def give_noai_for_others(self) -> None:
        self.give_picture(("X-Robots-Tag", "otherbot: noai"))

    def give_packed(self) -> None:
        self.give_picture(("Content-Encoding", "gzip"), body=b"\x1f\x8b")

    def give_huge(self) -> None:
        self.give_picture(("Content-Length", str(10**10)), body=b"x")

    def give_endless(self) -> None:
        self.send_response(200)
        self.end_headers()
        for _ in range(1000):
            self.wfile.write(b"x" * 1000)

    def give_cut(self) -> None:
        self.give_picture(("Content-Length", "999"), body=b"x" * 9)

    def give_drops(self) -> None:
        self.send_response(200)
        self.end_headers()
        for _ in range(100):
            self.wfile.write(b"x")
            self.wfile.flush()
            time.sleep(0.05)

    def give_slow_header(self) -> None:
        for letter in b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 100:
            self.wfile.write(bytes([letter]))
            self.wfile.flush()
            time.sleep(0.05)

    def give_nothing(self) -> None:
        time.sleep(2)

    def give_busy_once(self) -> None:
        first = type(self).calls.count("busy_once") == 1
        self.give_picture(("Retry-After", "0"), status=503 if first else 200)

    def give_busy(self) -> None:
        self.give_picture(("Retry-After", "0"), status=429)

    def give_busy_for_long(self) -> None:
        self.give_picture(("Retry-After", "100"), status=429)

    def give_moved(self) -> None:
        self.give_picture(("Location", "/picture"), status=302, body=b"")

    def give_round(self) -> None:
        self.give_picture(("Location", "/round"), status=301, body=b"")

    def give_to_private(self) -> None:
        self.give_picture(("Location", "http://10.1.2.3/a"), status=302, body=b"")

    def give_to_metadata(self) -> None:
        self.give_picture(("Location", "//169.254.169.254/latest/meta-data"), status=307, body=b"")

    def give_to_file(self) -> None:
        self.give_picture(("Location", "file:///etc/passwd"), status=302, body=b"")

    def give_many_headers(self) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\n")
        for number in range(20_000):
            self.wfile.write(b"X-%d: %s\r\n" % (number, b"x" * 1000))

    def give_no_http(self) -> None:
        self.wfile.write(b"SSH-2.0-OpenSSH\r\n" * 10)

    def log_message(self, *args: object) -> None:
        """Nothing is printed."""


@pytest.fixture
def host() -> Iterator[str]:
    """The address of a server on this machine, `HOST:PORT`."""
    handler = type("OneHost", (Host,), {"calls": []})
    server = ThreadingHTTPServer((HERE, 0), handler)
    server.daemon_threads = True
    server.block_on_close = False
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients that go are what is tested
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"{HERE}:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


fetch_here = partial(fetch_url, is_allowed=lambda address: address == HERE)
"""`fetch_url` that may connect to this machine, and to nothing else."""


@pytest.mark.parametrize("path", ["picture", "moved", "noai_for_others", "busy_once"])
def test_a_picture_is_read_also_after_a_redirect_and_from_a_host_that_was_busy(host: str, path: str) -> None:
    assert fetch_here(f"http://{host}/{path}", fetch=LIMITS) == SQUARE


@pytest.mark.parametrize(
    ("path", "reason", "detail"),
    [
        ("html", "fetch_failed", "not a picture: text/html"),
        ("missing", "fetch_failed", "the host answers 404"),
        ("noai", "fetch_refused", "X-Robots-Tag forbids it"),
        ("packed", "fetch_failed", "packed"),
        ("huge", "fetch_failed", "more than 100,000 bytes"),
        ("endless", "fetch_failed", "more than 100,000 bytes"),
        ("cut", "fetch_failed", "the answer breaks off"),
        ("busy", "fetch_failed", "too busy, asked 2 times"),
        ("round", "fetch_failed", "more than 5 redirects"),
        ("to_private", "fetch_refused", "not public"),
        ("to_metadata", "fetch_refused", "not public"),
        ("to_file", "fetch_refused", "something else than a plain http"),
        ("no_http", "fetch_failed", "speaks no HTTP"),
    ],
)
def test_each_fault_of_a_host_is_a_rejection_with_a_fixed_reason(
    host: str, path: str, reason: str, detail: str
) -> None:
    found = fetch_here(f"http://{host}/{path}", fetch=LIMITS)
    assert isinstance(found, Rejection)
    assert (found.reason, detail in found.detail) == (reason, True), found
    assert host not in found.detail
    assert fetch_here(f"http://{host}/{path}", fetch=LIMITS) == found


@pytest.mark.parametrize("path", ["drops", "slow_header", "nothing", "busy_for_long"])
def test_a_host_that_drips_or_is_silent_takes_no_longer_than_the_limit(host: str, path: str) -> None:
    begin = time.monotonic()
    found = fetch_here(f"http://{host}/{path}", fetch=LIMITS.model_copy(update={"timeout_s": 0.3}))
    assert found == Rejection("fetch_failed", "took more than 0.3 s")
    assert time.monotonic() - begin < 1.9


@pytest.mark.parametrize(
    "url",
    [
        "http://{}/picture",
        "http://localhost:{port}/picture",
        "http://2130706433:{port}/picture",
        "http://0x7f.1:{port}/picture",
        "http://[::ffff:127.0.0.1]:{port}/picture",
        "http://0.0.0.0:{port}/picture",
    ],
)
def test_no_spelling_of_this_machine_is_connected_to(host: str, url: str) -> None:
    found = fetch_url(url.replace("{}", host).replace("{port}", host.partition(":")[2]), fetch=LIMITS)
    assert isinstance(found, Rejection)
    assert found.reason in ("fetch_refused", "fetch_failed")  # a number alone is no name of a host to aiohttp


def test_a_name_is_judged_by_the_address_that_is_connected_to(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """DNS that says something else each time it is asked gains nothing."""
    answers = iter(["93.184.215.14", HERE, HERE])
    asked: list[str] = []

    def changing(name: str, port: int, *args: object, **kwargs: object) -> list[object]:
        asked.append(name)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(answers), port))]

    monkeypatch.setattr(socket, "getaddrinfo", changing)
    connected: list[str] = []

    def note(address: str) -> bool:
        connected.append(address)
        return False

    found = fetch_url(f"http://rebind.example:{host.partition(':')[2]}/picture", fetch=LIMITS, is_allowed=note)
    assert found == Rejection("fetch_refused", "leads to an address that is not public")
    assert connected == ["93.184.215.14"]  # asked once, and what was checked is what would have been connected to
    assert asked == ["rebind.example"]


@pytest.mark.parametrize(
    "url", ["ftp://host/a", "file:///etc/passwd", "http://", "http://user:word@host/", "http://[/"]
)
def test_what_is_no_plain_url_is_not_opened(url: str) -> None:
    assert isinstance(fetch_url(url, fetch=LIMITS), Rejection)


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.215.14", True),
        ("2606:2800:21f:cb07:6820:80da:af6b:8b2c", True),
        *[(a, False) for a in ("127.0.0.1", "10.0.0.1", "172.16.5.5", "192.168.0.1", "169.254.169.254", "100.64.0.1")],
        *[(a, False) for a in ("0.0.0.0", "224.0.0.1", "255.255.255.255", "::1", "fe80::1%eth0", "fc00::1", "::")],
        *[(a, False) for a in ("::ffff:10.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "ff02::1", "no address")],
        ("::ffff:93.184.215.14", True),
    ],
)
def test_private_addresses_are_known_in_every_dress(address: str, public: bool) -> None:
    assert is_public(address) is public


@pytest.mark.parametrize(
    "address",
    [
        *("192.0.0.192", "192.0.0.9", "192.88.99.1", "192.31.196.1", "192.175.48.1", "192.52.193.1", "198.18.0.1"),
        *("240.0.0.1", "203.0.113.9", "168.63.129.16"),
        *("::10.0.0.1", "::7f00:1", "::ffff:0:7f00:1", "64:ff9b:1::5db8:d70e", "64:ff9b:1:ffff::1", "64:ff9b::a00:1"),
        *("fec0::1", "feff::1", "100::1", "100:0:0:1::1", "3fff::1", "5f00::1", "4000::1", "8000::1", "2001:db8::1"),
        *("2001::1", "2001:1::1", "2001:2::1", "2001:20::1", "2002:5db8:d70e::1", "2620:4f:8000::1"),
        *("2606:2800:21f:cb07::5efe:a00:1", "2606:2800:21f:cb07:200:5efe:7f00:1", "fd00:ec2::254"),
    ],
)
def test_what_the_registries_reserve_is_not_public(address: str) -> None:
    assert not is_public(address)


def test_public_addresses_may_carry_public_ones() -> None:
    for address in ("64:ff9b::5db8:d70e", "2606:2800:21f:cb07::5efe:5db8:d70e", "192.0.1.1", "2a00:1450:4001::1"):
        assert is_public(address)


def test_an_intranet_is_read_by_name_or_network_where_the_user_allows_it(host: str) -> None:
    port = host.partition(":")[2]
    for entries in (["localhost"], ["127.0.0.0/8", "::1"], [".localhost", "127.0.0.1"]):
        fetch = LIMITS.model_copy(update={"intranet": tuple(entries)})
        url = f"http://localhost:{port}/picture" if "localhost" in entries else f"http://{host}/picture"
        assert fetch_url(url, fetch=fetch) == SQUARE
    others = LIMITS.model_copy(update={"intranet": ("images.corp", "10.0.0.0/8")})
    assert fetch_url(f"http://{host}/picture", fetch=others) == Rejection(
        "fetch_refused", "leads to an address that is not public"
    )
    to_elsewhere = LIMITS.model_copy(update={"intranet": (HERE,)})
    assert fetch_url(f"http://{host}/to_private", fetch=to_elsewhere) == Rejection(
        "fetch_refused", "leads to an address that is not public"
    )


def test_an_intranet_has_names_addresses_and_networks() -> None:
    intranet = Intranet.parse(["Images.corp", ".lab.corp", "10.1.0.0/16", "fd00::1"])
    assert intranet.has_name("images.CORP.")
    assert intranet.has_name("a.b.lab.corp")
    assert not intranet.has_name("lab.corp")
    assert not intranet.has_name("evil-images.corp")
    assert intranet.has_address("10.1.2.3")
    assert intranet.has_address("::ffff:10.1.2.3")
    assert not intranet.has_address("10.2.0.1")
    for wrong in ("", "http://images.corp", "10.1.0.0/33", "a b", "1.2.3", "*"):
        with pytest.raises(ValueError, match="is neither the name of a host"):
            Fetch(intranet=(wrong,))


def test_a_name_server_that_answers_late_does_not_break_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    answered = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [answered.wait(3)][1:])
    begin = time.monotonic()
    found = fetch_url("http://late.example/a.jpg", fetch=LIMITS.model_copy(update={"timeout_s": 0.3}))
    assert found == Rejection("fetch_failed", "took more than 0.3 s")
    assert time.monotonic() - begin < 1.5
    answered.set()


def test_a_name_without_an_address_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> list[object]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert fetch_url("http://nowhere.example/a.jpg", fetch=LIMITS) == Rejection("fetch_failed", "no such host")
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [])
    assert isinstance(fetch_url("http://nowhere.example/a.jpg", fetch=LIMITS), Rejection)


@pytest.mark.parametrize(("said", "pause_s"), [("nan", 0.0), ("-inf", 0.0), ("1e999", 3600.0), ("soon", 1.0)])
def test_a_pause_is_a_number_of_seconds_whatever_the_host_says(said: str, pause_s: float) -> None:
    assert urls._pause_s(said) == pause_s


def test_a_header_without_an_end_is_not_read_without_an_end(host: str) -> None:
    found = fetch_here(f"http://{host}/many_headers", fetch=LIMITS)
    assert isinstance(found, Rejection)
    assert found.reason == "fetch_failed"


@pytest.mark.parametrize(
    ("tag", "refuses"),
    [
        ("otherbot: noindex, nofollow, maskmine: noai", True),
        ("maskmine: noai, otherbot: nofollow", True),
        ("noai, otherbot: nofollow", True),
        ("otherbot: noai, googlebot: noindex, noimageai", False),
        ("maskmine: nofollow, otherbot: noai", False),
        ("otherbot: noai, *: noimageai", True),
        ("unavailable_after: 25 Jun 2010 15:00:00 PST, noai", True),
        ("otherbot: unavailable_after: 25 Jun 2010 15:00:00 PST, noai", False),
        ("max-image-preview:large, noimageindex", True),
        ("none", True),
        ("otherbot: none", False),
        ("MaskMine/1.0: NoAI", True),
        ("noai; noindex", True),
        ("all, index", False),
    ],
)
def test_a_robots_tag_may_speak_to_several(tag: str, refuses: bool) -> None:
    assert forbids([tag], Fetch().robots) is refuses


def test_robots_tags_are_for_everybody_or_for_one() -> None:
    words = Fetch().robots
    assert forbids(["noai"], words)
    assert forbids(["nofollow", "maskmine: noimageai, nofollow"], words)
    assert not forbids(["otherbot: noai", "nofollow", ""], words)


def test_urls_are_refused_in_one_line_until_the_user_allows_them(
    host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []

    def fetch_and_count(url: str, *, fetch: Fetch) -> bytes | Rejection:
        asked.append(url.rpartition("/")[2])
        return fetch_here(url, fetch=fetch)

    monkeypatch.setattr(images_module, "fetch_url", fetch_and_count)
    world = toy.write_toy_world(tmp_path)
    rows = [{"id": i.id, "url": f"http://{host}/{i.id}", "caption": "A square."} for i in toy.IMAGES if i.id != 18]
    rows += [{"id": 18, "url": f"http://{host}/noai", "caption": "A square."}]
    (tmp_path / "list.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    source = {"kind": "jsonl", "files": str(tmp_path / "list.jsonl"), "id_col": "id", "url_col": "url"}
    config = str(toy.write_config(world, captions=source))
    assert run_app(["mine", config]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert "--fetch allow" in said[0]
    assert not (tmp_path / "run").exists()
    assert run_app(["mine", config, "--fetch", "allow"]) == 0
    run = RunFolder(str(tmp_path / "run"))
    assert {row.image_id for row in samples(run)} == {"11", "13"}  # those that truly have a square
    reasons = {image.image_id: image.reason for image in rejected_images(run)}
    assert reasons["18"] == "fetch_refused"
    assert "allow: true" in (tmp_path / "run" / "mining.yaml").read_text()
    assert sorted(asked) == ["11", "11", "12", "13", "13", "14", "15", "16", "17", "noai"]  # again where pairs are cut
    assert run_app(["mine", config]) == 2  # not even the rest of a run
    capsys.readouterr()
    asked.clear()
    assert run_app(["show", run.root, "--to", str(tmp_path / "sheet.png")]) == 0
    assert "2 photographs, 2 pairs; the crops of 2 photographs that cannot be read are drawn" in capsys.readouterr().out
    assert asked == []


def test_a_path_that_is_a_url_is_not_fetched_by_any_other_door() -> None:
    found = images_module.read_bytes("http://127.0.0.1:1/a.jpg")
    assert isinstance(found, Rejection)
    assert re.search("nothing is fetched", found.detail)
    assert scheme_of("http://127.0.0.1:1/a.jpg") == "http"
