"""`maskmine serve` with its models, when very many come at once, or come and say nothing."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("starlette", reason="pip install '.[serve]'")
pytest.importorskip("uvicorn", reason="pip install '.[serve]'")

from maskmine.pipelines.serve.app import make_app
from maskmine.pipelines.web.connections import room_for_connections
from maskmine.pipelines.web.turns import MAX_REQUESTS
from maskmine.tuning.segmentation import overlay
from tests.support.web.browser import served
from tests.support.web.sockets import connect, get, post, status_of

if TYPE_CHECKING:
    from maskmine.pipelines.serve.service import Service


def form(number: int) -> bytes:
    """A form that no other number has, so that the answer is no earlier one."""
    return post(classes="car, tram", example="0", granularity=f"{number / 10_000:.4f}")


@pytest.fixture(scope="module")
def address(service: Service) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(overlay, "SHOWN_LONG_PX", (128, 256))  # drawing at full size takes most of the time
        with served(make_app(service, hosts=("127.0.0.1",))) as address:
            assert status_of(connect(address, form(9_000))) == 200  # which embeds the classes
            yield address


def test_a_map_is_made_in_two_seconds_beside_connections_that_never_say_what_they_want(address: str) -> None:
    with ExitStack() as stack:
        for _ in range(120):
            stack.enter_context(connect(address, b"POST / HTTP/1.1\r\nHost: 127"))
        begin = time.monotonic()
        assert status_of(connect(address, form(9_001))) == 200
        assert time.monotonic() - begin < 2


@pytest.mark.parametrize("path", ["form", "map"])
def test_of_a_thousand_at_once_those_that_fit_are_answered_and_the_others_are_told(
    address: str, service: Service, path: str
) -> None:
    room_for_connections()
    held = MAX_REQUESTS if path == "form" else service.settings.max_waiting + 1
    begin = time.monotonic()
    clients = [connect(address, get() if path == "form" else form(number)) for number in range(1000)]

    def answer(number: int) -> tuple[int, float]:
        clients[number].settimeout(60)
        return status_of(clients[number]), time.monotonic() - begin

    with ThreadPoolExecutor(100) as pool:
        answers = list(pool.map(answer, range(1000)))
    counts = Counter(status for status, _ in answers)
    assert set(counts) <= {200, 503}, counts
    assert counts[200] >= held
    assert max((after_s for status, after_s in answers if status == 503), default=0) < 20
    begin = time.monotonic()
    assert status_of(connect(address, form(9_002 + (path == "map")))) == 200
    assert time.monotonic() - begin < 2
