"""Connections to a page: who sends nothing, or sends and reads too slowly, keeps nobody out.

A connection waits for its client until the head of a request is whole, and again when it is answered. It waits for a
while only. Where there is no room for another one, whoever has waited longest of the client with the most connections
has to go.
"""

from __future__ import annotations

import resource
from asyncio import TimerHandle
from collections import Counter
from dataclasses import dataclass
from typing import Any

HEAD_S = 10.0
"""Seconds in which the head of a request has to come, also of the next one on a connection that stays open."""
MAX_CONNECTIONS = 2000

_READ_TURNS = 12  # times HEAD_S in which a client has to take its answer
_SPARED_S = 1.0  # a connection that waits for less is not closed for another one: its request may be under way
_OTHER_FILES = 256  # what the process has open besides
_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: text/plain; charset=utf-8\r\nretry-after: 1\r\n"
    b"connection: close\r\ncontent-length: 38\r\n\r\nToo many connections: try again later\n"
)


def room_for_connections() -> int:
    """The connections that this process may have, as its limit on open files, which is raised if it may be, allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return MAX_CONNECTIONS if soft == resource.RLIM_INFINITY else max(16, min(MAX_CONNECTIONS, soft - _OTHER_FILES))


@dataclass(slots=True)
class _Wait:
    """Since when a connection waits for its client, and what ends that."""

    since_s: float
    timer: TimerHandle
    turns: int = 0


class Gate:
    """The connections of a server, and which of them wait for their clients; used by its event loop alone."""

    def __init__(self, *, most: int = MAX_CONNECTIONS, head_s: float = HEAD_S) -> None:
        self._most, self._head_s = most, head_s
        self._clients: dict[Any, str] = {}
        self._waits: dict[Any, _Wait] = {}  # the longest first

    def enter(self, connection: Any) -> None:
        """A connection is there. It, or another one that waits, is closed where there is no room."""
        self._clients[connection] = connection.client[0] if connection.client else ""
        self._wait(connection)
        if len(self._clients) <= self._most:
            return
        given_up = self._to_give_up(connection.loop.time())
        if given_up is not None:
            given_up.transport.abort()
            self.leave(given_up)
        else:
            connection.transport.write(_FULL)
            connection.transport.close()

    def leave(self, connection: Any) -> None:
        """A connection is gone."""
        self._clients.pop(connection, None)
        self._stop_waiting(connection)

    def note(self, connection: Any, *, answering: bool) -> None:
        """A connection received something, or was answered; `answering`: the head of a request is whole."""
        if answering:
            self._stop_waiting(connection)
        elif connection in self._clients and connection not in self._waits:
            self._wait(connection)

    def _wait(self, connection: Any) -> None:
        timer = connection.loop.call_later(self._head_s, self._expire, connection)
        self._waits[connection] = _Wait(connection.loop.time(), timer)

    def _stop_waiting(self, connection: Any) -> None:
        wait = self._waits.pop(connection, None)
        if wait is not None:
            wait.timer.cancel()

    def _expire(self, connection: Any) -> None:
        """Close a connection; one whose client still reads its answer later, and then without its consent."""
        wait, transport = self._waits[connection], connection.transport
        if not transport.get_write_buffer_size():
            transport.close()
            return
        wait.turns += 1
        if wait.turns >= _READ_TURNS:
            transport.abort()
        else:
            wait.timer = connection.loop.call_later(self._head_s, self._expire, connection)

    def _to_give_up(self, now_s: float) -> Any:
        """The connection that has waited longest of the client with the most; None where none has waited for long."""
        old = [connection for connection, wait in self._waits.items() if now_s - wait.since_s >= _SPARED_S]
        connections = Counter(self._clients.values())
        return max(old, key=lambda one: connections[self._clients[one]], default=None)


def guarded(protocol: type[Any], gate: Gate) -> type[Any]:
    """uvicorn's protocol of a connection, which tells the gate what becomes of it."""

    class Guarded(protocol):  # type: ignore[misc]
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            gate.enter(self)

        def connection_lost(self, exc: Exception | None) -> None:
            gate.leave(self)
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            gate.note(self, answering=self._is_answering())

        def on_response_complete(self) -> None:
            super().on_response_complete()
            gate.note(self, answering=self._is_answering())

        def _is_answering(self) -> bool:
            return self.cycle is not None and not self.cycle.response_complete

    return Guarded
