"""Requests written by hand to a server, for what no client of HTTP would send."""

from __future__ import annotations

import socket
from urllib.parse import urlencode, urlsplit


def connect(address: str, sends: bytes = b"") -> socket.socket:
    """A connection to the server at an address, on which these bytes are sent."""
    split = urlsplit(address)
    client = socket.create_connection((split.hostname or "", split.port or 0), timeout=10)
    client.sendall(sends)
    return client


def get(path: str = "/", *, more: bytes = b"") -> bytes:
    """A request that closes the connection, with further header lines."""
    return b"GET %s HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n" % path.encode() + more + b"\r\n"


def post(**fields: str) -> bytes:
    """A form, as a browser sends it to a server at 127.0.0.1."""
    body = urlencode(fields).encode()
    head = b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nOrigin: http://127.0.0.1\r\nConnection: close\r\n"
    kind = b"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: %d\r\n\r\n" % len(body)
    return head + kind + body


def status_of(client: socket.socket) -> int:
    """The status of an answer; 0 where the server closes without one."""
    try:
        with client, client.makefile("rb") as file:
            line = file.readline()
            file.read()
    except ConnectionError:
        return 0
    return int(line.split()[1]) if line else 0
