"""The web side of `maskmine serve`: four kinds of address, limits before anything is read, and one picture at a time.

GET  /                       the form
POST /                       the form with a map, or with what was wrong (status 4xx)
GET  /results/{key}/{file}   a file of a recent map; all are in memory, the oldest go first
GET  /examples/…  /static/…  what the page shows
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from importlib.resources import files
from typing import TypeVar

from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipelines.serve_form import Checked, Entered, Fault, check_entered, first_entered, read_entered, with_defaults
from pipelines.serve_page import render, show
from pipelines.serving import Answer, Served, key_of
from schemas.errors import InputError
from schemas.rows import Rejection

MOST_RESULTS = 64
MOST_RESULT_BYTES = 256_000_000

_FORM_BYTES = 2_000_000  # everything but the picture
_TEXT_BYTES = 1_000_000
_STATIC = {"serve.css": "text/css", "serve.js": "text/javascript", "serve.svg": "image/svg+xml"}
_KINDS = {".png": "image/png", ".jpg": "image/jpeg", ".json": "application/json"}
_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; img-src 'self' blob:; style-src 'self'; script-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
_STATUS = {"image_too_large": 413, "decode_error": 415}

Result = TypeVar("Result")


def make_app(
    served: Served, *, hosts: tuple[str, ...] | None, stopping: Callable[[], bool] = lambda: False
) -> Starlette:
    """The application. `hosts` are the names by which it may be called; None allows any.

    A page elsewhere can point a name of its own at this machine, and would then read what is served here. As soon as
    the server is `stopping`, nobody waits for an answer any more.
    """
    site = _Site(served, stopping)
    allowed = [Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)] if hosts else []
    return Starlette(
        routes=[
            Route("/", site.form),
            Route("/", site.segment, methods=["POST"]),
            Route("/results/{key}/{file}", site.result),
            Route("/examples/{number:int}.jpg", site.example),
            Route("/static/{file}", _static),
        ],
        middleware=[Middleware(_Headers), *allowed],
        exception_handlers={500: site.broken},
    )


@dataclass(eq=False)
class _Site:
    """What lives as long as the server: the models, the queue before them, and recent answers."""

    served: Served
    stopping: Callable[[], bool]
    turns: _Turns = field(init=False)
    recent: _Recent = field(default_factory=lambda: _Recent())

    def __post_init__(self) -> None:
        self.turns = _Turns(self.served.settings.max_waiting, self.stopping)

    async def form(self, request: Request) -> Response:
        return HTMLResponse(render(self.served, first_entered(self.served)))

    async def segment(self, request: Request) -> Response:
        """The form with a map, or with one line for each fault."""
        entered = Entered()
        try:
            _check_origin(request)
            form, picture = await _read_form(request, most_mb=self.served.settings.max_upload_mb)
            entered = with_defaults(read_entered(form), self.served)
            checked = check_entered(entered, self.served)
            chosen = self._picture(picture, entered)
            faults = [*checked.faults, *([chosen] if isinstance(chosen, Fault) else [])]
            if isinstance(chosen, Fault) or checked.choice is None:
                return self._refused(entered, *faults, status=422)
            name, data = chosen
            answer, waited_s = await self._answer(data, name, checked, request=request)
        except _RefusedError as error:
            return self._refused(entered or first_entered(self.served), error.fault, status=error.status)
        shown = show(answer, name=name, waited_s=waited_s)
        page = render(self.served, entered, notes=checked.notes, shown=shown, choice=checked.choice)
        return HTMLResponse(page)

    async def result(self, request: Request) -> Response:
        answer = self.recent.get(request.path_params["key"])
        content = answer and answer.files.get(request.path_params["file"])
        if content is None:
            raise HTTPException(404, "no such file; results are kept for a while only")
        return Response(content, media_type=_kind(request.path_params["file"]))

    async def example(self, request: Request) -> Response:
        number = request.path_params["number"]
        if number >= len(self.served.examples):
            raise HTTPException(404, "no such example")
        return Response(self.served.examples[number].shown, media_type="image/jpeg")

    async def broken(self, request: Request, error: Exception) -> Response:
        """For a fault that nobody expected; it is logged where the server runs."""
        return self._refused(
            first_entered(self.served),
            Fault("", "Something went wrong in the server: its terminal says what"),
            status=500,
        )

    def _picture(self, upload: UploadedPicture | None, entered: Entered) -> UploadedPicture | Fault:
        """The name and the bytes of the picture that was meant."""
        if upload is not None:
            return upload
        if not entered.example:
            return Fault("picture", "No picture is chosen: upload one, or pick an example")
        examples = {str(number): example for number, example in enumerate(self.served.examples)}
        if entered.example not in examples:
            return Fault("picture", "There is no such example: pick another one")
        return examples[entered.example].name, examples[entered.example].data

    async def _answer(self, data: bytes, name: str, checked: Checked, *, request: Request) -> tuple[Answer, float]:
        """The answer and how long it had to wait for its turn."""
        assert checked.choice is not None
        known = self.recent.get(key_of(data, name=name, choice=checked.choice))
        if known is not None:
            return known, 0.0
        start = time.monotonic()
        work = partial(self.served.answer, data, name=name, choice=checked.choice)
        try:
            began, answer = await self.turns.take(work, request=request)
        except InputError as error:
            raise _RefusedError(422, Fault("rule", _sentence(str(error)))) from error
        if isinstance(answer, Rejection):
            raise _RefusedError(_STATUS.get(answer.reason, 422), Fault("picture", _why(answer)))
        self.recent.put(answer)
        return answer, began - start

    def _refused(self, entered: Entered, *faults: Fault, status: int) -> Response:
        return HTMLResponse(render(self.served, with_defaults(entered, self.served), faults=faults), status)


UploadedPicture = tuple[str, bytes]


class _RefusedError(Exception):
    """A request that is answered with a line and a status."""

    def __init__(self, status: int, fault: Fault) -> None:
        super().__init__(fault.line)
        self.status = status
        self.fault = fault


class _Turns:
    """One piece of work at a time, in the order of arrival; no more than so many wait."""

    def __init__(self, most_waiting: int, stopping: Callable[[], bool]) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="segment")
        self._most = most_waiting + 1
        self._stopping = stopping
        self._here = 0

    async def take(self, work: Callable[[], Result], *, request: Request) -> tuple[float, Result]:
        """When the work began (monotonic seconds), and what it gave. Who has gone away loses the turn."""
        if self._here >= self._most:
            line = f"{self._here - 1} others are waiting already: try again in a minute"
            raise _RefusedError(503, Fault("", line))
        self._here += 1
        job = self._pool.submit(lambda: (time.monotonic(), work()))
        future = asyncio.wrap_future(job)
        try:
            while not (await asyncio.wait([future], timeout=0.5))[0]:
                if self._stopping():
                    raise _RefusedError(503, Fault("", "The server was stopped"))
                if await request.is_disconnected():
                    raise _RefusedError(499, Fault("", "Nobody waits for this any more"))
            return future.result()
        finally:
            job.cancel()  # what has begun goes on, and nobody hears of it
            self._here -= 1


class _Recent:
    """The last answers by their keys, as many as fit."""

    def __init__(self) -> None:
        self._answers: OrderedDict[str, Answer] = OrderedDict()

    def get(self, key: str) -> Answer | None:
        if key in self._answers:
            self._answers.move_to_end(key)
        return self._answers.get(key)

    def put(self, answer: Answer) -> None:
        """Keep it, and forget the oldest ones where there are too many."""
        self._answers[answer.key] = answer
        while len(self._answers) > MOST_RESULTS or (len(self._answers) > 1 and self._bytes() > MOST_RESULT_BYTES):
            self._answers.popitem(last=False)

    def _bytes(self) -> int:
        return sum(len(content) for answer in self._answers.values() for content in answer.files.values())


class _Headers:
    """Puts the headers of safety on every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                extra = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", []), *extra]}
            await send(message)

        await self._app(scope, receive, send_with_headers)


async def _static(request: Request) -> Response:
    name = request.path_params["file"]
    if name not in _STATIC:
        raise HTTPException(404, "no such file")
    return Response(files("pipelines").joinpath("data", name).read_bytes(), media_type=_STATIC[name])


def _check_origin(request: Request) -> None:
    """A page of another site may not use this one through the browser of its visitor."""
    origin, host = request.headers.get("origin"), request.headers.get("host", "")
    if origin is not None and origin.partition("://")[2] != host:
        raise _RefusedError(403, Fault("", "This came from a page of another site: open this page itself"))


async def _read_form(request: Request, *, most_mb: float) -> tuple[Mapping[str, object], UploadedPicture | None]:
    """The fields, and the picture where one was uploaded. What says that it is too long is not read at all."""
    most = int(most_mb * 1e6)
    too_large = _RefusedError(413, Fault("picture", f"The picture is too large: at most {most_mb:g} MB are taken"))
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > most + _FORM_BYTES:
        raise too_large
    bounded = Request(request.scope, _bounded(request.receive, most + _FORM_BYTES, error=too_large))
    try:
        async with bounded.form(max_files=1, max_fields=20, max_part_size=_TEXT_BYTES) as form:
            upload = form.get("picture")
            if not isinstance(upload, UploadFile) or not upload.filename:
                return form, None
            data = await upload.read()
            name = upload.filename
    except HTTPException as error:
        raise _RefusedError(400, Fault("", f"The form cannot be read: {error.detail}")) from error
    if len(data) > most:
        raise too_large
    return form, (_file_name(name), data)


def _bounded(receive: Receive, most_bytes: int, *, error: _RefusedError) -> Receive:
    left = most_bytes

    async def receive_and_count() -> Message:
        nonlocal left
        message = await receive()
        left -= len(message.get("body", b""))
        if left < 0:
            raise error
        return message

    return receive_and_count


def _file_name(name: str) -> str:
    """The last part of a path, as some browsers send it, in characters that can be printed."""
    last = name.replace("\\", "/").rpartition("/")[2]
    return "".join(letter for letter in last if letter.isprintable())[:120] or "picture"


def _why(rejection: Rejection) -> str:
    if rejection.reason == "image_too_large":
        return f"The picture is too large ({rejection.detail}): make it smaller"
    if rejection.reason == "decode_error":
        return f"This cannot be read as a picture ({rejection.detail}): JPEG, PNG, WebP, GIF, BMP and TIFF are taken"
    return f"The picture came to nothing: {rejection.reason} ({rejection.detail})"


def _sentence(line: str) -> str:
    return line[:1].upper() + line[1:]


def _kind(file: str) -> str:
    return _KINDS[file[file.rindex(".") :]]
