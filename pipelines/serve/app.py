"""The web application of `maskmine serve`: routes, limits on requests, and a queue in front of the models.

GET  /                       the form
POST /                       the form with a map, or with its faults (status 4xx)
GET  /results/{key}/{file}   a file of a recent map; all are in memory, the oldest are dropped first
GET  /examples/…  /static/…  images, style and script of the page
"""

from __future__ import annotations

import asyncio
import mimetypes
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from maskmine.pipelines.serve.page import Entered, Fault, Shown, check_entered, first_entered, read_entered, render
from maskmine.pipelines.serve.service import Answer, Choice, Service, key_of
from maskmine.pipelines.web.site import bounded, is_from_another_site, is_utf8, make_site
from maskmine.schemas.errors import InputError
from maskmine.schemas.rows import Rejection

MAX_RESULTS = 64
MAX_RESULT_BYTES = 256_000_000
"""Recent results in memory: enough to download the files of each map, on a machine that also holds the models."""

_FORM_BYTES = 2_000_000  # of a request beside the image
_TEXT_BYTES = 1_000_000  # of a text field
_POLL_S = 0.5  # how soon a user who has left is noticed
_STATIC = ("serve.css", "serve.js")
_STATUS = {"image_too_large": 413, "decode_error": 415}
_DECODERS = 4  # images that are decoded at the same time, so that one that takes long keeps few waiting

Result = TypeVar("Result")
NamedFile = tuple[str, bytes]


def make_app(
    service: Service, *, hosts: tuple[str, ...] | None, stopping: Callable[[], bool] = lambda: False
) -> Starlette:
    """The application, for hosts as in `make_site`. Once it is `stopping`, those who wait are answered at once."""
    site = _Site(service, stopping)
    return make_site(
        [
            Route("/", site.form),
            Route("/", site.segment, methods=["POST"]),
            Route("/results/{key}/{file}", site.result),
            Route("/examples/{number}.jpg", site.example),
        ],
        hosts=hosts,
        package="maskmine.pipelines.serve",
        static=_STATIC,
        exception_handlers={_RefusedError: site.refused, 500: site.broken},
    )


class _RefusedError(Exception):
    """A request that is answered with faults and a status."""

    def __init__(self, status: int, *faults: Fault) -> None:
        super().__init__(status, *faults)
        self.status, self.faults = status, faults


class _Site:
    """The state of a server: the models, the queue in front of them, and recent answers."""

    def __init__(self, service: Service, stopping: Callable[[], bool]) -> None:
        self._service = service
        self._decoders = _Queue(service.settings.max_waiting, stopping, threads=_DECODERS)
        self._queue = _Queue(service.settings.max_waiting, stopping)
        self._recent = _Recent()

    async def form(self, request: Request) -> Response:
        return HTMLResponse(render(self._service, first_entered(self._service)))

    async def segment(self, request: Request) -> Response:
        """The form with a map."""
        _check_origin(request)
        form, upload = await _read_form(request, max_mb=self._service.settings.max_upload_mb)
        entered = request.state.entered = read_entered(form, self._service)
        checked = check_entered(entered, self._service)
        image = self._picture(upload, entered)
        if isinstance(image, Fault) or checked.choice is None:
            raise _RefusedError(422, *checked.faults, *([image] if isinstance(image, Fault) else []))
        shown = await self._segment(*image, checked.choice, request=request)
        return HTMLResponse(render(self._service, entered, notes=checked.notes, shown=shown))

    async def refused(self, request: Request, error: Exception) -> Response:
        """The form as it was entered, with one line for each fault."""
        assert isinstance(error, _RefusedError)
        entered = getattr(request.state, "entered", None) or first_entered(self._service)
        return HTMLResponse(render(self._service, entered, faults=error.faults), error.status)

    async def broken(self, request: Request, error: Exception) -> Response:
        """For an unexpected exception, which the server logs."""
        fault = Fault("", "Something went wrong in the server: its terminal says what")
        return HTMLResponse(render(self._service, first_entered(self._service), faults=[fault]), 500)

    async def result(self, request: Request) -> Response:
        key, file = request.path_params["key"], request.path_params["file"]
        answer = self._recent.get(key)
        if answer is None or file not in answer.files:
            raise HTTPException(404, "no such file; results are kept for a while only")
        return Response(answer.files[file], media_type=mimetypes.guess_type(file)[0])

    async def example(self, request: Request) -> Response:
        shown = {str(number): example.shown for number, example in enumerate(self._service.examples)}
        if request.path_params["number"] not in shown:
            raise HTTPException(404, "no such example")
        return Response(shown[request.path_params["number"]], media_type="image/jpeg")

    def _picture(self, upload: NamedFile | None, entered: Entered) -> NamedFile | Fault:
        if upload is not None and entered.example:
            return Fault("picture", "Two pictures are given: choose the example, or the picture of your own")
        if upload is not None:
            return upload
        if not entered.example:
            return Fault("picture", "No picture is chosen: upload one, or pick an example")
        examples = {str(number): (example.name, example.data) for number, example in enumerate(self._service.examples)}
        return examples.get(entered.example) or Fault("picture", "There is no such example: pick another one")

    async def _segment(self, name: str, data: bytes, choice: Choice, *, request: Request) -> Shown:
        """The map of an image, from memory where it was made recently."""
        recent = self._recent.get(key_of(data, name=name, choice=choice))
        if recent is not None:
            return Shown(name, recent, 0.0)
        self._queue.refuse_if_full()
        decode = partial(self._service.decode, data, choice=choice)
        uploaded, waited_to_decode_s = await self._decoders.run(decode, request=request)
        if isinstance(uploaded, Rejection):
            raise _RefusedError(_STATUS.get(uploaded.reason, 422), Fault("picture", _reason(uploaded)))
        work = partial(self._service.answer, uploaded, name=name, choice=choice)
        try:
            answer, waited_s = await self._queue.run(work, request=request)
        except InputError as error:
            line = str(error)
            raise _RefusedError(422, Fault("rule", line[:1].upper() + line[1:])) from error
        if isinstance(answer, Rejection):
            raise _RefusedError(_STATUS.get(answer.reason, 422), Fault("picture", _reason(answer)))
        self._recent.put(answer)
        return Shown(name, answer, waited_to_decode_s + waited_s)


class _Queue:
    """Runs some jobs at a time, in the order of arrival; further ones are refused where `max_waiting` wait already."""

    def __init__(self, max_waiting: int, stopping: Callable[[], bool], *, threads: int = 1) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="segment")
        self._threads, self._max_jobs = threads, max_waiting + threads
        self._stopping = stopping
        self._jobs = 0

    def refuse_if_full(self) -> None:
        """Raises _RefusedError where no further job is taken."""
        if self._jobs >= self._max_jobs:
            line = f"{self._jobs - self._threads} others are waiting already: try again in a minute"
            raise _RefusedError(503, Fault("", line))

    async def run(self, work: Callable[[], Result], *, request: Request) -> tuple[Result, float]:
        """The result and the seconds until the job started. A job is dropped when its user has left before that."""
        self.refuse_if_full()
        self._jobs += 1
        submitted = time.monotonic()
        job = self._pool.submit(lambda: (time.monotonic() - submitted, work()))
        future = asyncio.wrap_future(job)
        try:
            while not (await asyncio.wait([future], timeout=_POLL_S))[0]:
                if self._stopping():
                    raise _RefusedError(503, Fault("", "The server was stopped"))
                if await request.is_disconnected():
                    raise _RefusedError(499, Fault("", "Nobody waits for this any more"))
            waited_s, result = future.result()
            return result, waited_s
        finally:
            job.cancel()  # without effect on a job that has started
            self._jobs -= 1


class _Recent:
    """The most recently used answers by key, within MAX_RESULTS and MAX_RESULT_BYTES."""

    def __init__(self) -> None:
        self._answers: dict[str, Answer] = {}  # the least recently used one first

    def get(self, key: str) -> Answer | None:
        answer = self._answers.pop(key, None)
        if answer is not None:
            self._answers[key] = answer
        return answer

    def put(self, answer: Answer) -> None:
        self._answers[answer.key] = answer
        while len(self._answers) > MAX_RESULTS or (len(self._answers) > 1 and self._bytes() > MAX_RESULT_BYTES):
            del self._answers[next(iter(self._answers))]

    def _bytes(self) -> int:
        return sum(len(content) for answer in self._answers.values() for content in answer.files.values())


def _check_origin(request: Request) -> None:
    """Refuse forms that a browser submits from another site."""
    if is_from_another_site(request):
        raise _RefusedError(403, Fault("", "This came from a page of another site: open this page itself"))


async def _read_form(request: Request, *, max_mb: float) -> tuple[Mapping[str, object], NamedFile | None]:
    """The fields, and the uploaded image. A body with too large a content length is not read."""
    if not is_utf8(request):
        raise _RefusedError(400, Fault("", "The form cannot be read: send it in UTF-8"))
    max_bytes = int(max_mb * 1e6)
    too_large = _RefusedError(413, Fault("picture", f"The picture is too large: at most {max_mb:g} MB are taken"))
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > max_bytes + _FORM_BYTES:
        raise too_large
    request = Request(request.scope, bounded(request.receive, max_bytes + _FORM_BYTES, error=too_large))
    try:
        async with request.form(max_files=1, max_fields=20, max_part_size=_TEXT_BYTES) as form:
            if len(form.multi_items()) > len(form):
                twice = next(name for name in form if len(form.getlist(name)) > 1)
                raise _RefusedError(400, Fault("", f"The form cannot be read: it has `{twice[:40]}` more than once"))
            upload = form.get("picture")
            if not isinstance(upload, UploadFile) or not upload.filename:
                return form, None
            data = await upload.read()
    except HTTPException as error:
        raise _RefusedError(400, Fault("", f"The form cannot be read: {error.detail}")) from error
    if len(data) > max_bytes:
        raise too_large
    return form, (_file_name(upload.filename), data)


def _file_name(name: str) -> str:
    """The last part of a path, which some browsers send, in printable characters."""
    last = name.replace("\\", "/").rpartition("/")[2]
    return "".join(letter for letter in last if letter.isprintable())[:120] or "picture"


def _reason(rejection: Rejection) -> str:
    if rejection.reason == "image_too_large":
        return f"The picture is too large ({rejection.detail}): make it smaller"
    if rejection.reason == "decode_error":
        kinds = "JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF and JPEG 2000"
        return f"This cannot be read as a picture ({rejection.detail}): {kinds} are taken"
    if rejection.reason in ("record_timeout", "worker_crash"):
        return f"The picture takes more to decode than it is worth ({rejection.detail}): save it anew, as JPEG or PNG"
    return f"The picture came to nothing: {rejection.reason} ({rejection.detail})"
