"""Images from URLs, which strangers wrote: allowed only by the user, then with limits.

aiohttp does it because it has the two seams that this needs: one deadline over the whole exchange, however slowly the
bytes drip, and a say in each socket before it connects, so the address that is checked is the one that is connected
to, whatever names, redirects and DNS do in between.
"""

from __future__ import annotations

import asyncio
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, field_validator

from maskmine.mining.storage.addresses import Intranet, is_public
from maskmine.schemas.errors import InputError, how_to_install
from maskmine.schemas.rows import Rejection
from maskmine.schemas.settings import Settings

if TYPE_CHECKING:
    import aiohttp

URL_SCHEMES = ("http", "https")  # read only where the user allows it


class Fetch(Settings):
    """Whether images are read from URLs, and with which limits. Private addresses are not, but those of `intranet`."""

    allow: bool = False
    """Whether images are read from URLs at all; `maskmine mine --fetch allow` sets it."""
    timeout_s: float = Field(default=30.0, gt=0, le=3600)
    """Seconds for an image, with all its redirects and attempts."""
    most_megabytes: float = Field(default=50.0, gt=0, le=1000)
    """Largest file that is read, in units of 10⁶ bytes."""
    redirects: int = Field(default=5, ge=0, le=20)
    """Redirects that are followed."""
    attempts: int = Field(default=2, ge=1, le=10)
    """Attempts in all when a host answers 429 or 503, each after the pause that it names."""
    robots: Annotated[tuple[str, ...], Field(strict=False)] = ("noai", "noimageai", "noindex", "noimageindex")
    """Words of an `X-Robots-Tag` header, addressed to everybody or to `maskmine`, that keep an image from being
    read."""
    intranet: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Hosts that are read though their addresses are not public: names (`images.corp`, or `.corp` for all below it),
    addresses and networks (`10.1.0.0/16`)."""

    @field_validator("intranet")
    @classmethod
    def _known_forms(cls, entries: tuple[str, ...]) -> tuple[str, ...]:
        Intranet.parse(entries)
        return entries


def fetch_url(url: str, *, fetch: Fetch, is_allowed: Callable[[str], bool] = is_public) -> bytes | Rejection:
    """The bytes at a URL, or `fetch_failed` or `fetch_refused`; no longer than `fetch.timeout_s`.

    `is_allowed` says of an IP address whether it may be connected to. Raises InputError when aiohttp is not installed.
    """
    require_aiohttp()
    return asyncio.run(_within_time(url, fetch=fetch, is_allowed=is_allowed))


def require_aiohttp() -> None:
    """Raises InputError when the library for URLs is not installed."""
    try:
        import aiohttp  # noqa: F401
    except ImportError as error:
        raise InputError(f"URLs are read by aiohttp, which is not installed; {how_to_install('fetch')}") from error


_AGENT = "maskmine"  # how this program names itself to hosts
_READ_BYTES = 1 << 16  # of a piece, after which the size is checked
_TO_US = ("*", "robots", _AGENT)
_ADDRESSED = re.compile(r"\s*([*a-z_][\w./*-]*)\s*:")  # the name of a robot, or of a word with a value
_WITH_VALUES = ("unavailable_after", "max-snippet", "max-image-preview", "max-video-preview")
_FLAGS, _NUMERIC = socket.AI_ADDRCONFIG, socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
_REDIRECTS, _BUSY = (301, 302, 303, 307, 308), (429, 503)  # HTTP status codes
# Types of content that are certainly no image; others are decoded to see.
_NO_PICTURE = ("text/", "application/json", "application/xml", "application/xhtml", "video/", "audio/")


@dataclass(eq=False)
class _Gate:
    """Lets sockets be made for allowed addresses only, and remembers that one was not.

    `host_allowed`: the user allows the host that is connected to by its name, whatever its address is.
    """

    is_allowed: Callable[[str], bool]
    intranet: Intranet
    host_allowed: bool = False
    refused: list[str] = field(default_factory=list)

    def __call__(self, address: Any) -> socket.socket:
        family, kind, protocol, _, to = address
        host = str(to[0])
        if not (self.host_allowed or self.is_allowed(host) or self.intranet.has_address(host)):
            self.refused.append(host)
            raise OSError("not a public address")
        created = socket.socket(family, kind, protocol)
        created.setblocking(False)
        return created


async def _within_time(url: str, *, fetch: Fetch, is_allowed: Callable[[str], bool]) -> bytes | Rejection:
    import aiohttp

    gate = _Gate(is_allowed, Intranet.parse(fetch.intranet))
    connector = aiohttp.TCPConnector(resolver=_resolver(), socket_factory=gate, use_dns_cache=False, force_close=True)
    try:
        async with (
            asyncio.timeout(fetch.timeout_s),
            aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,  # what is packed is refused: a few bytes may become many
                timeout=aiohttp.ClientTimeout(total=None),
                headers={"User-Agent": _AGENT, "Accept": "image/*", "Accept-Encoding": "identity"},
            ) as session,
        ):
            return await _with_attempts(session, url, fetch=fetch, gate=gate)
    except TimeoutError:
        return Rejection("fetch_failed", f"took more than {fetch.timeout_s:g} s")


def _resolver() -> Any:
    """Asks the name server in a thread that nobody waits for once time is over, as one of a pool would be."""
    from aiohttp.abc import AbstractResolver, ResolveResult

    class Resolver(AbstractResolver):
        async def resolve(
            self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
        ) -> list[ResolveResult]:
            loop = asyncio.get_running_loop()
            answer: asyncio.Future[list[Any]] = loop.create_future()

            def tell(found: list[Any] | None, error: Exception | None) -> None:
                if not answer.done():
                    answer.set_exception(error) if error else answer.set_result(found or [])

            def ask() -> None:
                found: list[Any] | None = None
                fault: Exception | None = None
                try:
                    found = socket.getaddrinfo(host, port, family=family, type=socket.SOCK_STREAM, flags=_FLAGS)
                    fault = None if found else socket.gaierror(socket.EAI_NONAME, "it has no address")
                except (OSError, ValueError) as error:
                    fault = error
                with suppress(RuntimeError):  # the loop has ended
                    loop.call_soon_threadsafe(tell, found, fault)

            threading.Thread(target=ask, name="name server", daemon=True).start()
            return [
                ResolveResult(hostname=host, host=str(to[0]), port=port, family=kind, proto=protocol, flags=_NUMERIC)
                for kind, _, protocol, _, to in await answer
            ]

        async def close(self) -> None:
            """There is nothing to close."""

    return Resolver()


async def _with_attempts(session: aiohttp.ClientSession, url: str, *, fetch: Fetch, gate: _Gate) -> bytes | Rejection:
    for attempt in range(1, fetch.attempts + 1):
        answer = await _follow(session, url, fetch=fetch, gate=gate)
        if not isinstance(answer, float):
            return answer
        if attempt < fetch.attempts:
            await asyncio.sleep(answer)
    return Rejection("fetch_failed", f"the host is too busy, asked {fetch.attempts} times")


async def _follow(session: aiohttp.ClientSession, url: str, *, fetch: Fetch, gate: _Gate) -> bytes | Rejection | float:
    """What the URL leads to; seconds to wait when the host asks for patience."""
    import aiohttp
    from yarl import URL

    try:
        to = URL(url)
        for _ in range(fetch.redirects + 1):
            if to.scheme not in URL_SCHEMES or not to.host or to.user or to.password:
                return Rejection("fetch_refused", "leads to something else than a plain http or https URL")
            gate.host_allowed = gate.intranet.has_name(to.host)
            async with session.get(to, allow_redirects=False) as response:
                if response.status not in _REDIRECTS or "Location" not in response.headers:
                    return await _read(response, fetch=fetch)
                to = to.join(URL(response.headers["Location"]))
    except (aiohttp.ClientError, OSError, ValueError) as error:
        if isinstance(error, TimeoutError):
            raise
        if gate.refused:
            return Rejection("fetch_refused", "leads to an address that is not public")
        return Rejection("fetch_failed", _what_failed(error))
    return Rejection("fetch_failed", f"more than {fetch.redirects} redirects")


async def _read(response: aiohttp.ClientResponse, *, fetch: Fetch) -> bytes | Rejection | float:
    if response.status in _BUSY:
        return _pause_s(response.headers.get("Retry-After"))
    if response.status != 200:
        return Rejection("fetch_failed", f"the host answers {response.status}")
    if forbids(response.headers.getall("X-Robots-Tag", []), fetch.robots):
        return Rejection("fetch_refused", "X-Robots-Tag forbids it")
    kind = response.headers.get("Content-Type", "").lower()
    if kind.startswith(_NO_PICTURE):
        return Rejection("fetch_failed", f"not a picture: {ascii(kind.partition(';')[0])[1:-1][:40]}")
    if response.headers.get("Content-Encoding", "identity").lower() != "identity":
        return Rejection("fetch_failed", "packed, though it was asked for as it is")
    max_bytes = int(fetch.most_megabytes * 1e6)
    data = bytearray()
    if (response.content_length or 0) <= max_bytes:
        async for piece in response.content.iter_chunked(_READ_BYTES):
            data += piece
            if len(data) > max_bytes:
                break
        else:
            return bytes(data)
    return Rejection("fetch_failed", f"more than {max_bytes:,} bytes")


def forbids(tags: list[str], words: tuple[str, ...]) -> bool:
    """Whether `X-Robots-Tag` headers say one of the words to us or to all.

    A header may speak to several robots, each before its words, as in `otherbot: noindex, maskmine: noai, nofollow`;
    what stands before the first of them is for all. `none` is `noindex` and `nofollow`.
    """
    unwanted = {word.lower() for word in words}
    unwanted |= {"none"} if unwanted & {"noindex", "nofollow"} else set()
    return any(not unwanted.isdisjoint(_told_to_us(tag)) for tag in tags)


def _told_to_us(tag: str) -> Iterator[str]:
    to_us = True
    for piece in tag.lower().split(","):
        rest, named = piece, None
        while (named := _ADDRESSED.match(rest)) is not None and named[1] not in _WITH_VALUES:
            to_us, rest = named[1].partition("/")[0] in _TO_US, rest[named.end() :]
        if to_us:
            yield from re.split(r"[\s;]+", rest)


def _pause_s(retry_after: str | None) -> float:
    pause_s = 1.0
    with suppress(TypeError, ValueError):  # none, or a date: then a second
        pause_s = float(retry_after)  # type: ignore[arg-type]
    return min(max(0.0, pause_s), 3600.0)  # of nan, which compares with nothing, 0


def _what_failed(error: Exception) -> str:
    """A few fixed words: what libraries say of a fault names machines and changes between runs."""
    import aiohttp

    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "no such host"
    if isinstance(error, aiohttp.ClientSSLError | aiohttp.ClientConnectorCertificateError):
        return "its certificate is not valid"
    if isinstance(error, aiohttp.ClientPayloadError):
        return "the answer breaks off"
    if isinstance(error, aiohttp.ClientConnectorError):
        return "no connection"
    if isinstance(error, aiohttp.InvalidURL | ValueError):
        return "not a URL"
    return "the connection broke, or it speaks no HTTP"
