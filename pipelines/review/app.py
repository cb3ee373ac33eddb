"""The web application of `maskmine review`: routes, the reviewer's cookie, and verdicts on their way to the disk.

GET  /                          who judges, or the next pair, or the end
POST /name                      takes the reviewer's name into a cookie
POST /verdict  /undo            then 303 to `/`; the verdict is on the disk before that
GET  /pairs/{token}/{which}.jpg the photograph or the crop
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote, unquote

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from maskmine.pipelines.review.page import Shown, render_end, render_fault, render_name, render_pair
from maskmine.pipelines.review.pictures import Drawer
from maskmine.pipelines.review.queue import Item, Order, Queue
from maskmine.pipelines.review.store import Store, check_reviewer
from maskmine.pipelines.web.site import bounded, is_from_another_site, is_utf8, make_site
from maskmine.schemas.errors import IncompleteError, InputError
from maskmine.schemas.rows import VERDICTS

COOKIE = "maskmine_reviewer"
_COOKIE_S = 30 * 24 * 60 * 60
_FORM_BYTES = 10_000
_KEPT_BY_BROWSERS = {"cache-control": "private, max-age=86400, immutable"}  # a token means one picture for ever


@dataclass(frozen=True)
class Review:
    """A review as the application serves it. With `reviewer` nobody is asked for a name."""

    run: str
    order: Order
    store: Store
    queue: Queue
    drawer: Drawer
    reviewer: str | None


def make_app(review: Review, *, hosts: tuple[str, ...] | None) -> Starlette:
    """The application, for hosts as in `make_site`."""
    site = _Site(review)
    return make_site(
        [
            Route("/", site.next_pair),
            Route("/name", site.name, methods=["POST"]),
            Route("/verdict", site.verdict, methods=["POST"]),
            Route("/undo", site.undo, methods=["POST"]),
            Route("/pairs/{token}/{which}.jpg", site.picture),
        ],
        hosts=hosts,
        package="maskmine.pipelines.review",
        static=("review.css", "review.js"),
        exception_handlers={
            _RefusedError: site.refused,
            IncompleteError: site.not_written,
            InputError: site.not_written,
            500: site.broken,
        },
    )


class _RefusedError(Exception):
    """A request that is answered with a line and a status."""

    def __init__(self, status: int, line: str) -> None:
        super().__init__(status, line)
        self.status, self.line = status, line


class _Site:
    """What the routes answer. Whatever touches the disk runs in a thread, so reviewers do not wait for each other."""

    def __init__(self, review: Review) -> None:
        self._review, self._queue, self._store = review, review.queue, review.store

    def next_pair(self, request: Request) -> Response:
        reviewer = self._reviewer(request)
        if reviewer is None:
            return HTMLResponse(render_name(self._shown()))
        item = self._queue.take(reviewer)
        last = self._store.last_of(reviewer)
        if item is None:
            return HTMLResponse(render_end(self._shown(), reviewer=reviewer, last=last))
        ahead = self._queue.after(item, reviewer=reviewer)
        page = render_pair(
            self._shown(),
            item,
            self._review.drawer.draw(item),
            reviewer=reviewer,
            last=last,
            ahead=[ahead] if ahead else [],
        )
        return HTMLResponse(page)

    async def name(self, request: Request) -> Response:
        form = await _read_form(request)
        entered = str(form.get("reviewer") or "")
        try:
            reviewer = check_reviewer(entered)
        except InputError as error:
            line = str(error)
            return HTMLResponse(render_name(self._shown(), fault=line[:1].upper() + line[1:], entered=entered), 422)
        response = RedirectResponse("./", 303)
        response.set_cookie(COOKIE, quote(reviewer), max_age=_COOKIE_S, httponly=True, samesite="strict")
        return response

    async def verdict(self, request: Request) -> Response:
        form = await _read_form(request)
        reviewer, item, word = self._must_judge(request), self._item(form.get("pair")), form.get("verdict")
        if word not in VERDICTS:
            raise _RefusedError(422, f"The form gives no verdict: one of {', '.join(VERDICTS)}")
        seconds = self._queue.looked_at_s(reviewer, item)
        await run_in_threadpool(self._store.add, item.pair, word, reviewer=reviewer, seconds=seconds)
        return RedirectResponse("./", 303)

    async def undo(self, request: Request) -> Response:
        await _read_form(request)
        reviewer = self._must_judge(request)
        row = await run_in_threadpool(self._store.undo, reviewer)
        if row is not None:
            self._queue.give_again(reviewer, (row.image_id, row.noun, row.mask))
        return RedirectResponse("./", 303)

    def picture(self, request: Request) -> Response:
        item, which = self._item(request.path_params["token"]), request.path_params["which"]
        if which not in ("photo", "crop"):
            raise HTTPException(404, "no such picture")
        pictures = self._review.drawer.draw(item)
        content = pictures.photo if which == "photo" else pictures.crop
        return Response(content, media_type="image/jpeg", headers=_KEPT_BY_BROWSERS)

    async def refused(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, _RefusedError)
        return self._fault(request, error.line, error.status)

    async def not_written(self, request: Request, error: Exception) -> Response:
        return self._fault(request, f"The verdict was not taken: {error}", 503)

    async def broken(self, request: Request, error: Exception) -> Response:
        """For an unexpected exception, which the server logs."""
        return self._fault(request, "Something went wrong in the server: its terminal says what", 500)

    def _fault(self, request: Request, line: str, status: int) -> Response:
        return HTMLResponse(render_fault(self._shown(), reviewer=self._reviewer(request) or "", line=line), status)

    def _shown(self) -> Shown:
        return Shown(run=self._review.run, order=self._review.order, progress=self._queue.progress())

    def _reviewer(self, request: Request) -> str | None:
        """The name of the option or of the cookie, which a user can have changed."""
        if self._review.reviewer is not None:
            return self._review.reviewer
        try:
            return check_reviewer(unquote(request.cookies.get(COOKIE, "")))
        except InputError:
            return None

    def _must_judge(self, request: Request) -> str:
        reviewer = self._reviewer(request)
        if reviewer is None:
            raise _RefusedError(403, "Nobody knows who judges: give your name first")
        return reviewer

    def _item(self, token: object) -> Item:
        item = self._queue.items.get(token) if isinstance(token, str) else None
        if item is None:
            raise _RefusedError(
                404, "This pair is not in the review, which may have been started anew: see the next one"
            )
        return item


async def _read_form(request: Request) -> FormData:
    """The fields of a form of this page, which is short."""
    if is_from_another_site(request):
        raise _RefusedError(403, "This came from a page of another site: open this page itself")
    if not is_utf8(request):
        raise _RefusedError(400, "The form cannot be read: send it in UTF-8")
    too_large = _RefusedError(413, "The form is too large")
    request = Request(request.scope, bounded(request.receive, _FORM_BYTES, error=too_large))
    try:
        async with request.form(max_files=0, max_fields=10, max_part_size=_FORM_BYTES) as form:
            return form
    except HTTPException as error:
        raise _RefusedError(400, f"The form cannot be read: {error.detail}") from error
