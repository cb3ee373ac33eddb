"""The rules that every page follows: security headers, host names, the origin of forms, files of the package."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.resources import files
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from maskmine.pipelines.web.turns import TooSlowError, Turns, too_slow

_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; img-src 'self' blob:; style-src 'self'; script-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",  # with none, browsers would not say where a form comes from
    "cross-origin-resource-policy": "same-origin",
}
_UTF8 = re.compile(r";\s*charset=\"?utf-8\"?\s*(?=;|$)", re.IGNORECASE)
_WEB = "maskmine.pipelines.web"
_SHARED = ("web.css", "icon.svg")
_TYPES = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}


def make_site(
    routes: Iterable[BaseRoute],
    *,
    hosts: Sequence[str] | None,
    package: str,
    static: Sequence[str],
    exception_handlers: Mapping[Any, Callable[..., Any]],
) -> Starlette:
    """An application of these routes, and `/static/{file}` for the shared files and those of a package's `data`.

    `hosts` are the allowed host names; None allows any. The check stops DNS rebinding: another site could point its
    name at this machine and read the page. Responses are not kept by browsers unless they say so themselves.
    """
    owners = dict.fromkeys(_SHARED, _WEB) | dict.fromkeys(static, package)

    async def static_file(request: Request) -> Response:
        name = request.path_params["file"]
        if name not in owners:
            raise HTTPException(404, "no such file")
        content = files(owners[name]).joinpath("data", name).read_bytes()
        return Response(content, media_type=_TYPES[name.rpartition(".")[2]])

    allowed = [Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)] if hosts else []
    return Starlette(
        routes=[*routes, Route("/static/{file}", static_file)],
        middleware=[Middleware(_with_headers), Middleware(Turns), *allowed],
        exception_handlers={TooSlowError: too_slow, **exception_handlers},
    )


def is_from_another_site(request: Request) -> bool:
    """Whether a form may be of another page than this one: every browser says of a form whose page submits it.

    Its word is `Origin`, which this host has to be named in, and, of newer ones, `Sec-Fetch-Site`.
    """
    origins, host = request.headers.getlist("origin"), request.headers.get("host", "").lower()
    if not host or len(origins) != 1 or origins[0].lower() not in (f"http://{host}", f"https://{host}"):
        return True
    return any(site not in ("same-origin", "none") for site in request.headers.getlist("sec-fetch-site"))


def in_another_charset(request: Request) -> bool:
    """Whether a form names another encoding than UTF-8, which no browser does: Python would read it in any that it has,
    and some of them take a long time, or give what is no text."""
    kind = _UTF8.sub("", ",".join(request.headers.getlist("content-type")))
    return "charset" in kind.lower()


def bounded(receive: Receive, max_bytes: int, *, error: Exception) -> Receive:
    """The body of a request, which raises `error` once it has more than `max_bytes`."""
    left = max_bytes

    async def receive_and_count() -> Message:
        nonlocal left
        message = await receive()
        left -= len(message.get("body", b""))
        if left < 0:
            raise error
        return message

    return receive_and_count


def _with_headers(app: ASGIApp) -> ASGIApp:
    """Middleware that adds the security headers to every response."""

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(_HEADERS)
                headers.setdefault("cache-control", "no-store")
            await send(message)

        await app(scope, receive, send_with_headers)

    return call
