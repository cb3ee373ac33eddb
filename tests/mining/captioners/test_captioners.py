"""Captions from a server: what it is asked, what of its answers counts, and what each of its faults costs."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image

from maskmine.mining.captioners.answers import Answered, Journal, Unanswered, caption_lines, read_answer
from maskmine.mining.captioners.chat import MAX_ANSWER_BYTES, _retry_after_s
from maskmine.mining.captioners.endpoint import Endpoint
from maskmine.mining.images.decode import DecodedImage
from maskmine.mining.images.encode import encode_reduced
from maskmine.schemas.errors import IncompleteError, InputError
from maskmine.schemas.rows import CaptioningRow, ImageRow, Rejection
from maskmine.scripts.captioner.server import Asked, Captioner, Reply, captioner_on_loopback, completion

IMAGES = [ImageRow(str(number), f"{number}.png") for number in range(4)]
KEY = "sk-secret-123"


def picture(number: int, *, side_px: int = 8) -> np.ndarray[Any, Any]:
    return np.full((side_px, 2 * side_px, 3), 40 * number, np.uint8)


def decode(image: ImageRow) -> DecodedImage:
    return DecodedImage(picture(int(image.image_id)), f"sha-{image.image_id}", 1)


def endpoint(server: Captioner, **changes: Any) -> Endpoint:
    usual = {"kind": "endpoint", "url": server.url, "model": "m", "attempts": 2, "timeout_s": 5.0, "patience_s": 0.0}
    return Endpoint.model_validate({**usual, **changes})


def number_of(jpeg: bytes) -> int:
    """Which picture a request is of, by its grey."""
    return round(float(np.asarray(Image.open(BytesIO(jpeg))).mean()) / 40)


def ask(
    says: Callable[[Asked], Reply | str], *, journal: Journal | None = None, **changes: Any
) -> tuple[list[CaptioningRow], Captioner]:
    with captioner_on_loopback(says) as server:
        caption = endpoint(server, **changes).open(decode, threads=1)
        return caption(IMAGES, journal=journal or Journal()), server


def only_the_second(reply: Reply | str) -> Callable[[Asked], Reply | str]:
    """A server that answers all pictures but one."""
    return lambda asked: reply if number_of(asked.jpeg) == 1 else f"Picture {number_of(asked.jpeg)}."


@pytest.fixture(autouse=True)
def quick_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maskmine.mining.captioners.chat._backoff_s", lambda attempt: 0.01)


def test_each_picture_is_sent_once_and_its_caption_comes_back_in_order() -> None:
    rows, server = ask(lambda asked: f"Picture {number_of(asked.jpeg)}.", prompt="What is it?")
    assert rows == [CaptioningRow(str(n), f"sha-{n}", (f"Picture {n}.",)) for n in range(4)]
    assert len(server.asked) == len(set(server.asked)) == 4


def test_a_request_has_picture_prompt_model_and_parameters_and_the_key_from_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SOME_KEY", KEY)
    seen: list[Asked] = []

    def says(asked: Asked) -> str:
        seen.append(asked)
        return "A thing."

    extra = {"seed": 7, "max_tokens": None}
    with captioner_on_loopback(says) as server:
        one = endpoint(server, prompt="What is it?", key_env="SOME_KEY", extra=extra, max_side_px=16)
        one.open(lambda image: DecodedImage(picture(2, side_px=40), "sha", 1), threads=1)(IMAGES[:1])
        request = json.loads(one.chat().body(b"jpeg"))
    assert request["model"] == "m"
    assert request["temperature"] == 0.0
    assert request["seed"] == 7
    assert "max_tokens" not in request
    assert seen[0].prompt == "What is it?"
    assert Image.open(BytesIO(seen[0].jpeg)).size == (16, 8)
    assert seen[0].headers["Authorization"] == f"Bearer {KEY}"
    assert KEY not in repr(one)
    assert KEY not in json.dumps(one.model_dump())


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        (completion(None, refusal="I cannot"), "the model refuses"),
        (completion("A", ended="content_filter"), "the model refuses"),
        (completion(""), "an empty text"),
        (completion(None), "an empty text"),
        (completion("…  \n - \n"), "an empty text"),
        (completion("Half", ended="length"), "cut off before it said anything"),
        (completion("x" * 10_001), "a text of more than 10,000 characters"),
        (Reply(pieces=(b'{"choices": []}',)), "an empty list of choices"),
    ],
    ids=str,
)
def test_an_answer_without_a_caption_costs_its_picture_alone_and_is_not_asked_for_again(reply: Reply, why: str) -> None:
    written: list[CaptioningRow] = []
    rows, server = ask(only_the_second(reply), journal=Journal(write=written.extend))
    assert rows[1] == CaptioningRow("1", "sha-1", (), Rejection("caption_failed", why))
    assert [row.captions for row in rows if row.image_id != "1"] == [(f"Picture {n}.",) for n in (0, 2, 3)]
    assert sorted(written, key=lambda row: row.image_id) == rows
    assert len(server.asked) == 4


@pytest.mark.parametrize(
    ("reply", "why", "attempts"),
    [
        (Reply(pieces=(b"<!DOCTYPE html><p>hello",)), "an HTML page instead of an answer", 1),
        (Reply(pieces=(b'{"choices": ',)), "the answer is no JSON", 1),
        (Reply(pieces=(b"[" * 50_000,)), "the answer is no JSON", 1),
        (Reply(pieces=(b'{"error": "no"}',)), "the answer has no `choices`", 1),
        (Reply(pieces=(b'{"choices": [7]}',)), "the answer has no message", 1),
        (Reply(pieces=(b"x" * (MAX_ANSWER_BYTES + 1),)), f"an answer of more than {MAX_ANSWER_BYTES:,} bytes", 1),
        (Reply(pieces=(b"{}",), headers={"Content-Encoding": "gzip"}), "a packed answer", 1),
        (Reply(400, (b'{"error": "bad picture"}',)), "the server refuses the request (400)", 1),
        (Reply(500), "the server answers 500, tried 2 times", 2),
        (Reply(pieces=(b'{"choices"',), cut=True), "the connection broke, tried 2 times", 2),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_request_without_an_answer_costs_its_picture_alone_and_is_not_written_down(
    reply: Reply, why: str, attempts: int
) -> None:
    written: list[CaptioningRow] = []
    rows, server = ask(only_the_second(reply), journal=Journal(write=written.extend))
    assert rows[1].rejection is not None
    assert rows[1].rejection.reason == "caption_failed"
    assert rows[1].rejection.detail.startswith(why)
    assert rows[1].captions == ()
    assert [row.captions for row in rows if row.image_id != "1"] == [(f"Picture {n}.",) for n in (0, 2, 3)]
    assert {row.image_id for row in written} == {"0", "2", "3"}
    assert len(server.asked) == 3 + attempts


@pytest.mark.parametrize("length", [True, False], ids=["announced", "unannounced"])
def test_ten_megabytes_of_text_are_not_read_to_their_end(length: bool) -> None:
    pieces = tuple(b"x" * (1 << 16) for _ in range(160))
    start_s = time.monotonic()
    with captioner_on_loopback(lambda asked: Reply(pieces=pieces, every_s=0.02, length=length)) as server:  # 3 s in all
        (row,) = endpoint(server).open(decode, threads=1)(IMAGES[:1])
        assert time.monotonic() - start_s < 1.5
    assert row.rejection == Rejection("caption_failed", f"an answer of more than {MAX_ANSWER_BYTES:,} bytes")


def test_an_answer_that_drips_ends_with_the_time_for_it() -> None:
    dripping = Reply(pieces=tuple(b" " for _ in range(100)), every_s=0.05)
    start_s = time.monotonic()
    rows, _ = ask(only_the_second(dripping), timeout_s=0.3)
    assert rows[1].rejection == Rejection("caption_failed", "no answer within 0.3 s, tried 2 times")
    assert rows[2].captions == ("Picture 2.",)
    assert time.monotonic() - start_s < 3


def test_a_server_that_fails_at_first_is_asked_again_with_the_same_token() -> None:
    rows, server = ask(lambda asked: Reply(500) if asked.attempt == 1 else "A thing.")
    assert [row.captions for row in rows] == [("A thing.",)] * 4
    assert len(server.asked) == 8
    assert len(set(server.asked)) == 4


def test_a_server_that_asks_for_patience_gets_as_much_as_it_names() -> None:
    busy = Reply(429, headers={"Retry-After": "0.4"})
    rows, server = ask(
        lambda asked: busy if asked.attempt == 1 else "A thing.", patience_s=5.0, attempts=1, requests_at_once=1
    )
    assert [row.captions for row in rows] == [("A thing.",)] * 4
    first, second = server.times_s[:2]
    assert second - first >= 0.4


def test_a_server_that_never_has_time_ends_the_run_in_one_line_within_the_patience() -> None:
    start_s = time.monotonic()
    with pytest.raises(IncompleteError) as caught:
        ask(lambda asked: Reply(429, headers={"Retry-After": "0.2"}), patience_s=0.5)
    assert time.monotonic() - start_s < 3
    assert "has no time" in str(caught.value)
    assert "run the same command again" in str(caught.value)
    assert "\n" not in str(caught.value)
    start_s = time.monotonic()
    with pytest.raises(IncompleteError, match="3,600 s more"):
        ask(lambda asked: Reply(503, headers={"Retry-After": "3600"}), patience_s=60.0)
    assert time.monotonic() - start_s < 3


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (Reply(401, (b"bad key sk-secret-123",)), "does not take the key (401); set SOME_KEY"),
        (Reply(403), "does not take the key (403)"),
        (Reply(404, (b"no such model, key sk-secret-123",)), "has no model `m`"),
        (Reply(302, headers={"Location": "http://example.org/"}), "leads elsewhere (302)"),
    ],
    ids=["401", "403", "404", "302"],
)
def test_what_the_settings_are_at_fault_for_stops_the_run_in_one_line_without_the_key(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, reply: Reply, said: str
) -> None:
    monkeypatch.setenv("SOME_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    with pytest.raises(InputError) as caught:
        ask(lambda asked: reply, key_env="SOME_KEY")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert KEY not in str(caught.value)
    assert KEY not in caplog.text


def test_a_key_that_is_not_set_is_named_before_anything_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOME_KEY", raising=False)
    with captioner_on_loopback(lambda asked: "A thing.") as server:
        with pytest.raises(InputError, match="the environment variable SOME_KEY is not set"):
            endpoint(server, key_env="SOME_KEY").open(decode, threads=1)(IMAGES)
        assert server.asked == []


def test_a_server_that_is_not_there_ends_the_run_and_names_its_address() -> None:
    with captioner_on_loopback(lambda asked: "A thing.") as server:
        gone = endpoint(server)
    with pytest.raises(IncompleteError, match=f"no connection at {gone.url}, tried 2 times; start the server"):
        gone.open(decode, threads=1)(IMAGES)


def test_a_server_that_answers_nothing_of_use_is_out_of_order_and_what_it_answered_before_is_kept() -> None:
    written: list[CaptioningRow] = []
    images = [ImageRow(str(number), None) for number in range(6)]
    page = Reply(pieces=(b"<html>under construction",))
    with captioner_on_loopback(lambda asked: "A thing." if number_of(asked.jpeg) < 2 else page) as server:
        caption = endpoint(server, most_failures=3, requests_at_once=1).open(decode, threads=1)
        with pytest.raises(IncompleteError, match="3 pictures in a row had no answer, the last one: an HTML page"):
            caption(images, journal=Journal(write=written.extend))
        assert len(server.asked) == 5, "and asks no more"
    assert [row.image_id for row in written] == ["0", "1"]


def test_an_answer_is_written_down_before_another_picture_is_asked_for_in_its_place() -> None:
    written: list[str] = []
    at_request: list[set[str]] = []

    def says(asked: Asked) -> str:
        at_request.append(set(written))
        return "A thing."

    def write(rows: Any) -> None:
        time.sleep(0.02)
        written.extend(row.image_id for row in rows)

    ask(says, journal=Journal(write=write), requests_at_once=1)
    assert at_request == [set(), {"0"}, {"0", "1"}, {"0", "1", "2"}]


def test_what_an_earlier_attempt_wrote_down_is_not_asked_for_unless_the_picture_is_another() -> None:
    known = {"0": CaptioningRow("0", "sha-0", ("Known.",)), "1": CaptioningRow("1", "another", ("Of another.",))}
    rows, server = ask(lambda asked: "New.", journal=Journal(known))
    assert [row.captions for row in rows] == [("Known.",), ("New.",), ("New.",), ("New.",)]
    assert len(server.asked) == 3


def test_a_picture_that_cannot_be_decoded_is_not_sent() -> None:
    def decode_all_but_one(image: ImageRow) -> DecodedImage | Rejection:
        return Rejection("decode_error", "broken") if image.image_id == "2" else decode(image)

    with captioner_on_loopback(lambda asked: "A thing.") as server:
        rows = endpoint(server).open(decode_all_but_one, threads=1)(IMAGES)
        assert rows[2] == CaptioningRow("2", None, (), Rejection("decode_error", "broken"))
        assert len(server.asked) == 3


def test_no_more_requests_than_allowed_are_on_their_way_and_begun_in_a_minute() -> None:
    def says(asked: Asked) -> str:
        time.sleep(0.05)
        return "A thing."

    _, server = ask(says, requests_at_once=2)
    assert server.most_at_once == 2
    _, server = ask(says, per_minute=600.0)  # one in 0.1 s
    gaps = np.diff(sorted(server.times_s))
    assert min(gaps) > 0.06
    assert sum(gaps) > 0.28


def test_it_can_be_asked_where_a_loop_runs_already_as_in_a_notebook() -> None:
    async def cell() -> list[CaptioningRow]:
        return ask(lambda asked: "A thing.")[0]

    assert [row.captions for row in asyncio.run(cell())] == [("A thing.",)] * 4


@pytest.mark.parametrize(
    ("text", "captions"),
    [
        ("A dog.", ("A dog.",)),
        ("  A dog.\r\n\n A cat.\n", ("A dog.", "A cat.")),
        ("1. A dog.\n2) A cat.\n- A cow.\n• A hen.", ("A dog.", "A cat.", "A cow.", "A hen.")),
        ('"A dog."\n“A cat.”', ("A dog.", "A cat.")),
        ('"A" and "B"', ('"A" and "B"',)),
        ("3 dogs run.", ("3 dogs run.",)),
        ("2.5 metres of rope", ("2.5 metres of rope",)),
        ("…\n***\n犬がいる", ("犬がいる",)),
        ("A \ud83d dog", ("A \ufffd dog",)),
    ],
)
def test_each_line_that_says_something_is_a_caption(text: str, captions: tuple[str, ...]) -> None:
    assert caption_lines(text) == captions


def test_of_an_answer_the_first_lines_count_and_of_one_that_is_cut_off_all_but_its_last_word() -> None:
    def answer(text: Any, **more: Any) -> bytes:
        return completion(text, **more).pieces[0]

    assert read_answer(answer("A\nB\nC"), per_image=2) == Answered(("A", "B"))
    assert read_answer(answer("A dog and a ca", ended="length"), per_image=1) == Answered(("A dog and a",))
    parts = [{"type": "text", "text": "A dog"}, {"type": "image", "text": "no"}, 7]
    assert read_answer(answer(parts), per_image=1) == Answered(("A dog",))
    assert read_answer(b"{}", per_image=1) == Unanswered("the answer has no `choices`")


def test_the_time_to_wait_may_be_seconds_or_a_date() -> None:
    assert _retry_after_s("7") == 7.0
    assert _retry_after_s("-7") == 0.0
    assert _retry_after_s("Fri, 01 Jan 2010 00:00:00 GMT") == 0.0
    assert (_retry_after_s("Fri, 01 Jan 2100 00:00:00 GMT") or 0.0) > 1e6
    assert [_retry_after_s(value) for value in (None, "soon", "inf", "nan")] == [None] * 4


def test_a_date_to_wait_for_is_by_the_clock_of_the_server() -> None:
    later = "Fri, 01 Jan 2100 00:00:07 GMT"
    assert _retry_after_s(later, now="Fri, 01 Jan 2100 00:00:00 GMT") == 7.0
    assert _retry_after_s(later, now="Fri, 01 Jan 2100 00:01:00 GMT") == 0.0
    assert _retry_after_s("7", now="Fri, 01 Jan 2100 00:01:00 GMT") == 7.0
    assert (_retry_after_s(later, now="some day") or 0.0) > 1e6


def test_a_small_picture_is_sent_as_it_is_and_a_large_one_reduced_the_same_way_each_time() -> None:
    rgb = np.random.default_rng(0).integers(0, 255, (30, 90, 3), np.uint8)
    assert Image.open(BytesIO(encode_reduced(rgb, max_side_px=90, quality=90))).size == (90, 30)
    reduced = encode_reduced(rgb, max_side_px=45, quality=90)
    assert Image.open(BytesIO(reduced)).size == (45, 15)
    assert reduced == encode_reduced(rgb, max_side_px=45, quality=90)
    assert Image.open(BytesIO(encode_reduced(rgb[:1], max_side_px=16, quality=90))).size == (16, 1)
