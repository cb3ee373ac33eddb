"""The server of the pages under connections and requests that are many, slow, or never end."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import Any

import pytest

pytest.importorskip("starlette", reason="pip install -e .[serve]")
pytest.importorskip("uvicorn", reason="pip install -e .[serve]")

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from maskmine.pipelines.web import turns
from maskmine.pipelines.web.connections import Gate
from maskmine.pipelines.web.site import make_site
from tests.support.web.browser import served
from tests.support.web.sockets import connect, get, status_of

HELD = threading.Event()


async def _hello(request: Request) -> Response:
    return PlainTextResponse("hello")


async def _slow(request: Request) -> Response:
    while not HELD.is_set():
        await asyncio.sleep(0.01)
    return PlainTextResponse("at last")


async def _large(request: Request) -> Response:
    return PlainTextResponse("x" * 30_000_000)


async def _form(request: Request) -> Response:
    body = await request.body()
    return PlainTextResponse(str(len(body)))


def site() -> Any:
    routes = [Route("/", _hello), Route("/slow", _slow), Route("/large", _large), Route("/", _form, methods=["POST"])]
    package = "maskmine.pipelines.serve"
    return make_site(routes, hosts=("127.0.0.1",), package=package, static=(), exception_handlers={})


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    HELD.clear()
    with ExitStack() as stack:
        yield stack


def body(*, length: int) -> bytes:
    return b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n" % length


def test_connections_that_never_say_what_they_want_keep_nobody_out_and_are_closed(stack: ExitStack) -> None:
    address = stack.enter_context(served(site(), gate=Gate(head_s=0.5)))
    halves = [stack.enter_context(connect(address, b"GET / HTTP/1.1\r\nHost: 127")) for _ in range(120)]
    begin = time.monotonic()
    assert status_of(connect(address, get())) == 200
    assert time.monotonic() - begin < 2
    with suppress(ConnectionError):  # a letter now and then gains no time
        for _ in range(8):
            time.sleep(0.1)
            halves[0].sendall(b"x")
    assert {status_of(half) for half in halves} == {0}
    assert time.monotonic() - begin < 4


def test_where_there_is_no_room_who_waits_longest_goes(stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maskmine.pipelines.web.connections._SPARED_S", 0.1)
    address = stack.enter_context(served(site(), gate=Gate(most=5)))
    halves = [stack.enter_context(connect(address, b"GET")) for _ in range(5)]
    time.sleep(0.3)
    assert status_of(connect(address, get())) == 200
    assert status_of(halves[0]) == 0
    halves[4].sendall(get()[3:])
    assert status_of(halves[4]) == 200


def test_of_many_requests_at_once_those_that_fit_are_answered_and_the_others_are_told(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "MAX_REQUESTS", 20)
    address = stack.enter_context(served(site()))
    stack.callback(HELD.set)
    clients = [connect(address, get("/slow")) for _ in range(200)]
    with ThreadPoolExecutor(20) as pool:
        refused = list(pool.map(status_of, clients[20:]))
        HELD.set()
        statuses = [*pool.map(status_of, clients[:20]), *refused]
    assert Counter(statuses) == {200: 20, 503: 180}
    assert status_of(connect(address, get())) == 200


def test_a_body_that_comes_too_slowly_is_given_up_and_others_come_in(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "_BODY_S", 0.3)
    address = stack.enter_context(served(site()))
    slow = connect(address, body(length=1000) + b"x")
    assert status_of(connect(address, get())) == 200
    begin = time.monotonic()
    assert status_of(slow) == 408
    assert time.monotonic() - begin < 2


def test_where_many_bodies_are_on_their_way_the_oldest_is_given_up(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "MAX_BODIES", 2)
    monkeypatch.setattr(turns, "_SPARED_S", 0.3)
    address = stack.enter_context(served(site()))
    slow = [connect(address, body(length=9) + b"x") for _ in range(2)]
    time.sleep(0.1)
    assert status_of(connect(address, body(length=1)[:-2] + b"Connection: close\r\n\r\nx")) == 503
    time.sleep(0.3)
    assert status_of(connect(address, body(length=1)[:-2] + b"Connection: close\r\n\r\nx")) == 200
    assert status_of(slow[0]) == 408
    slow[1].close()


def test_who_never_takes_the_answer_is_left(stack: ExitStack) -> None:
    address = stack.enter_context(served(site(), gate=Gate(head_s=0.05)))
    for wait_s in (1.2, 6.0):  # a busy machine looks at its clock later
        client = stack.enter_context(connect(address, get("/large")))
        time.sleep(wait_s)
        taken = 0
        with suppress(ConnectionError):
            while piece := client.recv(1 << 20):
                taken += len(piece)
        if taken < 30_000_000:
            return
    pytest.fail("the answer was kept until it was taken")
