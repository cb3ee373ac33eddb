"""`maskmine serve`: a local web page on which people name classes and see the map of a picture."""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Callable
from typing import NoReturn

from pipelines.serving import Serving
from schemas.errors import InputError

_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
_HIGHEST_PORT = 65_535
_BACKLOG = 64
_MOST_CONNECTIONS = 100
_LAST_ANSWERS_S = 5


def serve(settings: Serving, *, host: str, port: int, say: Callable[[str], None]) -> NoReturn:
    """Load the models and answer until an interrupt, which is raised as KeyboardInterrupt.

    The port is taken before the models are loaded; 0 takes a free one. Raises InputError when it cannot be had, when
    the libraries for it are not installed, or as `Serving.open`.
    """
    try:
        import uvicorn

        from pipelines.serve_app import make_app
    except ImportError as error:
        raise InputError(f"serve: needs {error.name}; pip install 'maskmine[serve]'") from error
    with _listen(host, port) as listener:
        say("loading the models …")
        served = settings.open()
        if not _is_loopback(listener):
            say(f"open to whoever can reach this machine, without a password (--host {host})")
        say(f"{_address(listener)}  (Ctrl-C stops it)")
        config = uvicorn.Config(
            make_app(served, hosts=_LOOPBACK if _is_loopback(listener) else None, stopping=lambda: server.should_exit),
            loop="asyncio",
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=_MOST_CONNECTIONS,
            timeout_graceful_shutdown=_LAST_ANSWERS_S,
        )
        server = uvicorn.Server(config)
        server.run(sockets=[listener])
    raise KeyboardInterrupt  # a signal ended it, also where this process was started with signals ignored


def _listen(host: str, port: int) -> socket.socket:
    """A socket at which others knock already, though nobody answers yet."""
    given = f"--host {host} --port {port}"
    if not 0 <= port <= _HIGHEST_PORT:
        raise InputError(f"--port {port}: ports go from 1 to {_HIGHEST_PORT}; give another one")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise InputError(f"{given}: this machine has no such address; use 127.0.0.1, or 0.0.0.0 for all") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise InputError(f"{given}: {_why(error, port)}") from error
    return listener


def _why(error: OSError, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        other = port + 1 if port < _HIGHEST_PORT else port - 1
        return f"the port is in use; stop what uses it, or give another one, such as --port {other}"
    if error.errno == errno.EACCES:
        return "only root may take this port; give one above 1023"
    return f"cannot be served ({error.strerror}); give another address"


def _is_loopback(listener: socket.socket) -> bool:
    return ipaddress.ip_address(str(listener.getsockname()[0]).partition("%")[0]).is_loopback


def _address(listener: socket.socket) -> str:
    host, port, *_ = listener.getsockname()
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
