"""The server of a page: one port on this machine, bound before anything is loaded, until an interrupt."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from collections.abc import Callable
from typing import Any, NoReturn

from maskmine.pipelines.web.connections import Gate, guarded, room_for_connections
from maskmine.schemas.errors import InputError, how_to_install

OpenApp = Callable[[tuple[str, ...] | None, Callable[[], bool]], Any]
"""From the allowed host names (None: any) and whether the server is stopping to the ASGI application."""

_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
_MAX_PORT = 65_535
_SHUTDOWN_S = 5  # for answers under way when the server is stopped


def run_server(open_app: OpenApp, *, host: str, port: int, say: Callable[[str], None], command: str) -> NoReturn:
    """Open the application and serve it until an interrupt, which is raised as KeyboardInterrupt.

    The port is bound before the application is opened; 0 binds a free one. Raises InputError when it cannot be bound,
    when the libraries of `maskmine {command}` are not installed, or as `open_app`.
    """
    try:
        import uvicorn

        import maskmine.pipelines.web.site  # noqa: F401
    except ImportError as error:
        raise InputError(f"{command}: needs {error.name}; {how_to_install('serve')}") from error
    with _listen(host, port) as listener:
        address, bound_port, *_ = listener.getsockname()
        is_loopback = ipaddress.ip_address(address.partition("%")[0]).is_loopback
        app = open_app(_LOOPBACK if is_loopback else None, lambda: server.should_exit)
        if not is_loopback:
            say(f"open to whoever can reach this machine, without a password (--host {host})")
        say(f"http://{f'[{address}]' if ':' in address else address}:{bound_port}  (Ctrl-C stops it)")
        server = uvicorn.Server(configure(app))
        server.run(sockets=[listener])
    raise KeyboardInterrupt  # uvicorn returns on a signal, also where the process was started with signals ignored


def configure(app: Any, *, gate: Gate | None = None) -> Any:
    """uvicorn's configuration of a page; `gate` watches its connections."""
    import uvicorn
    from uvicorn.protocols.http.h11_impl import H11Protocol

    gate = gate or Gate(most=room_for_connections())
    return uvicorn.Config(
        app,
        loop="asyncio",
        http=guarded(H11Protocol, gate),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=_SHUTDOWN_S,
    )


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket, so that connections queue before the server answers."""
    given = f"--host {host} --port {port}"
    if not 0 <= port <= _MAX_PORT:
        raise InputError(f"--port {port}: ports go from 1 to {_MAX_PORT}; give another one")
    try:
        family, *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server((host, port), family=family)
    except (socket.gaierror, UnicodeError) as error:
        raise InputError(f"{given}: this machine has no such address; use 127.0.0.1, or 0.0.0.0 for all") from error
    except OSError as error:
        raise InputError(f"{given}: {_reason(error, port)}") from error


def _reason(error: OSError, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        other = port + 1 if port < _MAX_PORT else port - 1
        return f"the port is in use; stop what uses it, or give another one, such as --port {other}"
    if error.errno == errno.EACCES:
        return "only root may take this port; give one above 1023"
    return f"cannot be served ({os.strerror(error.errno or 0)}); give another address"
