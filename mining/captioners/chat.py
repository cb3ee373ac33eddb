"""Requests to a server of chat completions: limits, patience, and what its refusals mean.

The user named the server, so it may lie on a private address; it is asked and nobody else, so no redirect is followed.
The key is read from the environment where the request is made. It stands in no file and no message.
"""

from __future__ import annotations

import asyncio
import base64
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from maskmine.mining.captioners.answers import Answered, Unanswered, read_answer
from maskmine.mining.storage.urls import require_aiohttp
from maskmine.schemas.errors import IncompleteError, InputError
from maskmine.schemas.settings import canonical_json

if TYPE_CHECKING:
    import aiohttp

MAX_ANSWER_BYTES = 1 << 18
"""Of the body of an answer; more is not read."""

_READ_BYTES = 1 << 14
_MAX_PAUSE_S = 60.0  # between attempts, where the server does not say how long
_BUSY, _KEY, _REDIRECTS = (429, 503), (401, 403), range(300, 400)  # HTTP status codes
_AGAIN = (408, 409, 425)  # and all from 500 on: another attempt may do better
_SHOWN_CHARS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Chat:
    """Which server and model is asked what, and with which limits; `place` is how messages call the setting."""

    place: str
    url: str
    model: str
    prompt: str
    parameters: dict[str, Any]
    per_image: int
    key_env: str | None
    timeout_s: float
    attempts: int
    patience_s: float

    def key(self) -> str | None:
        """The key. Raises InputError where its variable is not set, or holds what no header can."""
        if self.key_env is None:
            return None
        key = os.environ.get(self.key_env, "").strip()
        if not key:
            raise InputError(
                f"{self.place}.key_env: the environment variable {self.key_env} is not set; set it to the key, here "
                "and where workers run"
            )
        if not (key.isascii() and key.isprintable()):
            raise InputError(f"{self.place}.key_env: {self.key_env} holds no key; it has characters that no key has")
        return key

    def body(self, jpeg: bytes) -> bytes:
        """The request for a picture. What is null in `parameters` is left out."""
        url = f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": self.prompt}]
        request = {"model": self.model, "messages": [{"role": "user", "content": content}], **self.parameters}
        return canonical_json({name: value for name, value in request.items() if value is not None}).encode()


@dataclass(slots=True)
class Pace:
    """When the next request may begin: so many a minute, and none while the server asks for patience."""

    per_minute: float | None
    _next_s: float = 0.0

    async def turn(self) -> None:
        """Wait for a turn."""
        while True:
            now_s = time.monotonic()
            if self._next_s <= now_s:
                self._next_s = max(self._next_s, now_s) + (60.0 / self.per_minute if self.per_minute else 0.0)
                return
            await asyncio.sleep(min(self._next_s - now_s, 1.0))

    def hold(self, pause_s: float) -> None:
        """Nobody's turn for so long."""
        self._next_s = max(self._next_s, time.monotonic() + pause_s)


@dataclass(frozen=True, slots=True)
class _Busy:
    pause_s: float | None


@dataclass(frozen=True, slots=True)
class _TryAgain:
    fault: str
    no_connection: bool = False


@dataclass(frozen=True, slots=True)
class Asker:
    """Asks a server over open connections; `given_up` says whether another request has shown that it is of no use."""

    chat: Chat
    pace: Pace
    session: aiohttp.ClientSession
    key: str | None
    given_up: Callable[[], bool]

    async def ask(self, jpeg: bytes, *, token: str) -> Answered | Unanswered:
        """The answer for a picture, after as many attempts as it takes; `token` is the same for the same request.

        Raises InputError where the settings are at fault, IncompleteError where the server is not there, or has no time
        within `patience_s`.
        """
        chat, body, attempt = self.chat, self.chat.body(jpeg), 0
        busy_since_s: float | None = None
        while True:
            await self.pace.turn()
            outcome = await self._once(body, token)
            if isinstance(outcome, Answered | Unanswered):
                return outcome
            if isinstance(outcome, _Busy):
                now_s = time.monotonic()
                busy_since_s = now_s if busy_since_s is None else busy_since_s
                pause_s = _backoff_s(attempt) if outcome.pause_s is None else outcome.pause_s
                attempt += outcome.pause_s is None
                if self.given_up() or now_s + pause_s - busy_since_s > chat.patience_s:
                    raise IncompleteError(
                        f"{chat.place}: {chat.url} has no time (429 or 503; waiting {pause_s:,.0f} s more is beyond "
                        f"`patience_s: {chat.patience_s:g}`); what it answered is kept: run the same command again "
                        "later, with fewer `requests_at_once` or `per_minute`"
                    )
                self.pace.hold(pause_s)
                continue
            attempt += 1
            if self.given_up() or attempt >= chat.attempts:
                if outcome.no_connection:
                    raise IncompleteError(
                        f"{chat.place}: {outcome.fault} at {chat.url}, tried {attempt} times; start the server or "
                        "correct `url`, and run the same command again: what was answered is kept"
                    )
                return Unanswered(f"{outcome.fault}, tried {chat.attempts} times")
            await asyncio.sleep(_backoff_s(attempt - 1))

    async def models(self) -> list[str] | None:
        """The ids of the models that the server lists; None where it lists none. Raises as `ask`."""
        outcome = await self._once(None, "")
        if isinstance(outcome, _Busy):
            raise IncompleteError(f"{self.chat.place}: {self.chat.url} has no time now; try again later")
        if isinstance(outcome, _TryAgain):
            raise IncompleteError(f"{self.chat.place}: {outcome.fault} at {self.chat.url}; start it, or correct `url`")
        if isinstance(outcome, Unanswered):
            raise IncompleteError(f"{self.chat.place}: {self.chat.url}: {outcome.fault}; is it a server of models?")
        return list(outcome.captions) or None

    async def _once(self, body: bytes | None, token: str) -> Answered | Unanswered | _Busy | _TryAgain:
        """One exchange: a question with `body`, else a look at the list of models."""
        import aiohttp

        path = "models" if body is None else "chat/completions"
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        headers |= {"Authorization": f"Bearer {self.key}"} if self.key is not None else {}
        headers |= {"Content-Type": "application/json", "Idempotency-Key": token} if body is not None else {}
        try:
            async with (
                asyncio.timeout(self.chat.timeout_s),
                self.session.request(
                    "GET" if body is None else "POST",
                    f"{self.chat.url}/{path}",
                    data=body,
                    headers=headers,
                    allow_redirects=False,
                ) as response,
            ):
                return await self._read(response, listing=body is None)
        except TimeoutError:
            return _TryAgain(f"no answer within {self.chat.timeout_s:g} s")
        except aiohttp.ClientConnectorCertificateError as error:
            raise InputError(
                f"{self.chat.place}.url: the certificate of {self.chat.url} is not valid; use one"
            ) from error
        except aiohttp.ClientConnectorDNSError:
            return _TryAgain("no such host", no_connection=True)
        except aiohttp.ClientConnectorError:
            return _TryAgain("no connection", no_connection=True)
        except (aiohttp.ClientError, OSError, ValueError):
            return _TryAgain("the connection broke")

    async def _read(
        self, response: aiohttp.ClientResponse, *, listing: bool
    ) -> Answered | Unanswered | _Busy | _TryAgain:
        status, chat = response.status, self.chat
        if status in _BUSY:
            return _Busy(_retry_after_s(response.headers.get("Retry-After"), now=response.headers.get("Date")))
        if status in _AGAIN or status >= 500:
            return _TryAgain(f"the server answers {status}")
        if status in _REDIRECTS:
            raise InputError(
                f"{chat.place}.url: {chat.url} leads elsewhere ({status}), which is not followed; give the address "
                "that answers"
            )
        if status in _KEY:
            remedy = f"set {chat.key_env} to one that it takes" if chat.key_env else "name its variable as `key_env`"
            raise InputError(f"{chat.place}.key_env: {chat.url} does not take the key ({status}); {remedy}")
        body = await _body(response)
        if status == 404:
            raise InputError(
                f"{chat.place}: {chat.url} has no model `{chat.model}`, or is not where its API begins, such as "
                f"http://localhost:8000/v1 (404{self._said(body)}); `maskmine doctor CONFIG` lists its models"
            )
        if status != 200:
            return Unanswered(f"the server refuses the request ({status})", self._said(body))
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            return Unanswered("a packed answer, though it was asked for as it is")
        if body is None:
            return Unanswered(f"an answer of more than {MAX_ANSWER_BYTES:,} bytes")
        return _listed(body) if listing else read_answer(body, per_image=chat.per_image)

    def _said(self, body: bytes | None) -> str:
        """What the server says, in one short line without the key."""
        text = " ".join((body or b"").decode("utf-8", "replace").split())
        if self.key:
            text = text.replace(self.key, "…")
        text = "".join(letter if letter.isprintable() else "?" for letter in text)
        return f": {text[:_SHOWN_CHARS]}" if text else ""


@asynccontextmanager
async def asking(chat: Chat, pace: Pace, *, given_up: Callable[[], bool] = lambda: False) -> AsyncIterator[Asker]:
    """Connections to a server while the block runs. Raises InputError without a key, or without the library."""
    require_aiohttp()
    import aiohttp

    key = chat.key()
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,  # what is packed is refused: a few bytes may become many
        timeout=aiohttp.ClientTimeout(total=None),
        headers={"User-Agent": "maskmine"},
    ) as session:
        yield Asker(chat, pace, session, key, given_up)


async def _body(response: aiohttp.ClientResponse) -> bytes | None:
    """The body; None where it has too many bytes."""
    data = bytearray()
    if (response.content_length or 0) > MAX_ANSWER_BYTES:
        return None
    async for piece in response.content.iter_chunked(_READ_BYTES):
        data += piece
        if len(data) > MAX_ANSWER_BYTES:
            return None
    return bytes(data)


def _listed(body: bytes) -> Answered | Unanswered:
    import json

    try:
        models = [str(model["id"]) for model in json.loads(body)["data"]]
    except (ValueError, RecursionError, LookupError, TypeError):
        return Unanswered("its list of models cannot be read")
    return Answered(tuple(models))


def _backoff_s(attempt: int) -> float:
    return float(min(_MAX_PAUSE_S, 2.0**attempt))


def _retry_after_s(value: str | None, *, now: str | None = None) -> float | None:
    """Seconds from a `Retry-After` in seconds or as a date; None without one.

    `now` is the `Date` of the same answer: the clock of the server, which may be hours from this machine's.
    """
    if value is None:
        return None
    try:
        return max(0.0, float(value)) if float(value) < float("inf") else None
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - _time_s(now))
    except (ValueError, TypeError, OverflowError):
        return None


def _time_s(date: str | None) -> float:
    try:
        return parsedate_to_datetime(date or "").timestamp()
    except (ValueError, TypeError, OverflowError):
        return time.time()
