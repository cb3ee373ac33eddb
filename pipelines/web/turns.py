"""Requests at once: as many as fit are answered, the others get 503; a body that comes too slowly is given up."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_REQUESTS = 100
"""Requests without a body that are answered at once, several times what a queue of users needs."""
MAX_BODIES = 64
"""Requests whose bodies are on their way at once."""

_BODY_S, _BYTES_PER_S = 10.0, 20_000  # a body may take this long, and longer for what has come at this rate
_SPARED_S = 5.0  # a body that takes longer is given up where there is no room for another one
_BUSY = PlainTextResponse("Too many requests at once: try again in a moment\n", 503, headers={"retry-after": "1"})


class TooSlowError(Exception):
    """The body of a request does not come in time."""


async def too_slow(request: Any, error: Exception) -> PlainTextResponse:
    """The answer to that."""
    return PlainTextResponse("The form came too slowly\n", 408, headers={"connection": "close"})


@dataclass(eq=False, slots=True)
class _Body:
    """A body on its way."""

    begun_s: float
    deadline_s: float
    limit: asyncio.Timeout | None = None
    whole: bool = False

    def give_up(self, now_s: float) -> None:
        """Wait for it no longer."""
        self.deadline_s = now_s
        if self.limit is not None:
            with suppress(RuntimeError):  # it has just ended
                self.limit.reschedule(now_s)


class Turns:
    """Middleware that counts the requests of an application; used by its event loop alone."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._answering = 0
        self._bodies: dict[_Body, None] = {}  # the oldest first

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif _has_body(scope):
            await self._with_body(scope, receive, send)
        elif self._answering >= MAX_REQUESTS:
            await _BUSY(scope, receive, send)
        else:
            self._answering += 1
            try:
                await self._app(scope, receive, send)
            finally:
                self._answering -= 1

    async def _with_body(self, scope: Scope, receive: Receive, send: Send) -> None:
        now_s = asyncio.get_running_loop().time()
        if len(self._bodies) >= MAX_BODIES:
            oldest = next(iter(self._bodies))
            if now_s - oldest.begun_s < _SPARED_S:
                await _BUSY(scope, receive, send)
                return
            oldest.give_up(now_s)
            del self._bodies[oldest]
        body = _Body(now_s, now_s + _BODY_S)
        self._bodies[body] = None
        try:
            await self._app(scope, self._in_time(receive, body), send)
        finally:
            self._bodies.pop(body, None)

    def _in_time(self, receive: Receive, body: _Body) -> Receive:
        async def receive_in_time() -> Message:
            if body.whole:
                return await receive()
            try:
                async with asyncio.timeout_at(body.deadline_s) as body.limit:
                    message = await receive()
            except TimeoutError as error:
                raise TooSlowError from error
            body.deadline_s += len(message.get("body", b"")) / _BYTES_PER_S
            if not message.get("more_body", False):
                body.whole = True
                self._bodies.pop(body, None)
            return message

        return receive_in_time


def _has_body(scope: Scope) -> bool:
    headers = dict(scope["headers"])
    return headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in headers
