"""A server of chat completions on loopback, in OpenAI's form: it says what it is told of each picture, and counts."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

DATA_URL = "data:image/jpeg;base64,"
MODEL = "stand-in"


@dataclass(frozen=True, slots=True)
class Asked:
    """A request: its picture, prompt and token, its number (from 1) among those with this token, and its headers."""

    jpeg: bytes
    prompt: str
    token: str
    attempt: int
    headers: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Reply:
    """What a server sends. `pieces` come one after the other, `every_s` apart; `cut` closes the connection before the
    end that the headers promise; without `length` they promise none."""

    status: int = 200
    pieces: tuple[bytes, ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    every_s: float = 0.0
    cut: bool = False
    length: bool = True


def completion(text: str | None, *, ended: str = "stop", **more: Any) -> Reply:
    """A chat completion as vLLM sends it."""
    message = {"role": "assistant", "content": text, "refusal": None, **more}
    choice = {"index": 0, "message": message, "finish_reason": ended}
    answer = {"id": "chatcmpl-1", "object": "chat.completion", "model": MODEL, "choices": [choice]}
    return Reply(pieces=(json.dumps(answer).encode(),), headers={"Content-Type": "application/json"})


@dataclass
class Captioner:
    """A running server. `asked` counts requests by token, `answered` those that were answered with status 200 and read
    by the client as far as this side can tell."""

    url: str = ""
    models: tuple[str, ...] = (MODEL,)
    asked: list[str] = field(default_factory=list)
    answered: list[str] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    times_s: list[float] = field(default_factory=list)
    headers: list[Mapping[str, str]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


@contextmanager
def captioner_on_loopback(says: Callable[[Asked], Reply | str]) -> Iterator[Captioner]:
    """A server for as long as the block runs; `says` gives the text of an answer, or all of the reply."""
    captioner = Captioner()

    class Handler(_Handler):
        pass

    Handler.captioner, Handler.says = captioner, staticmethod(says)
    server = _Server(("127.0.0.1", 0), Handler)
    captioner.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield captioner
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def picture_key(jpeg: bytes) -> str:
    """What a picture is known by."""
    return hashlib.sha256(jpeg).hexdigest()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_: Any) -> None:
        """A client that was killed is no fault of this side."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    captioner: Captioner
    says: Callable[[Asked], Reply | str]

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        models = [{"id": name, "object": "model"} for name in self.captioner.models]
        listed = Reply(pieces=(json.dumps({"object": "list", "data": models}).encode(),))
        self._send(listed if self.path == "/v1/models" else Reply(404, (b"not found",)))

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path != "/v1/chat/completions":
            self._send(Reply(404, (b"not found",)))
            return
        asked = self._asked(json.loads(body))
        captioner = self.captioner
        with captioner.lock:
            captioner.at_once += 1
            captioner.most_at_once = max(captioner.most_at_once, captioner.at_once)
            captioner.times_s.append(time.monotonic())
        try:
            reply = type(self).says(asked)
        finally:
            with captioner.lock:
                captioner.at_once -= 1
        reply = completion(reply) if isinstance(reply, str) else reply
        if self._send(reply) and reply.status == 200 and not reply.cut:
            with captioner.lock:
                captioner.answered.append(asked.token)

    def _asked(self, request: Mapping[str, Any]) -> Asked:
        picture, text = request["messages"][0]["content"]
        jpeg = base64.b64decode(picture["image_url"]["url"].removeprefix(DATA_URL))
        token = self.headers.get("Idempotency-Key", "")
        with self.captioner.lock:
            self.captioner.asked.append(token)
            self.captioner.headers.append(dict(self.headers))
            attempt = self.captioner.asked.count(token)
        return Asked(jpeg, text["text"], token, attempt, dict(self.headers))

    def _send(self, reply: Reply) -> bool:
        """Send it; whether all of it went out."""
        with suppress(OSError):
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            if reply.length:
                size = sum(map(len, reply.pieces))
                self.send_header("Content-Length", str(size + 1000 * reply.cut))
            else:
                self.send_header("Connection", "close")
            self.end_headers()
            for piece in reply.pieces:
                self.wfile.write(piece)
                self.wfile.flush()
                time.sleep(reply.every_s)
            if reply.cut or not reply.length:
                self.close_connection = True
            return True
        self.close_connection = True
        return False
