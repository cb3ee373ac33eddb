"""File names that say which process a file belongs to, so that a later run knows which files are abandoned.

    .writing-{host}-{space}-{process}-{start}-{random}

A process id alone would not do: containers have their own under one host name, and ids are used again.
"""

from __future__ import annotations

import os
import platform
import re
from typing import Literal

# In a run folder: a file that is not whole yet, and what an engine has there for its workers. Among the system's
# temporary files: whatever is too large for memory for a while.
WRITING, BEAM, RAY, SCRATCH = ".writing", ".beam", ".ray", "maskmine"

_OWNED = re.compile(r"(?:\.writing|\.beam|\.ray|maskmine)-([\w.]+-\d+)-(\d+)-(\d+)-\w+")
_UNKNOWN = "0"


def owned_prefix(kind: str) -> str:
    """How the name of something begins that belongs to this process; what follows makes it unique."""
    return f"{kind}-{_machine()}-{os.getpid()}-{_start(os.getpid())}-"


def owner_state(name: str) -> Literal["alive", "dead", "elsewhere"] | None:
    """How the process is that something of this name belongs to; None when the name is of no process."""
    match = _OWNED.fullmatch(name)
    if match is None:
        return None
    machine, number, start = match.groups()
    if machine != _machine():
        return "elsewhere"
    return "alive" if _is_alive(int(number), start) else "dead"


def _machine() -> str:
    """The host, and on Linux the space that its process numbers are of."""
    host = re.sub(r"[^\w.]", "_", platform.node(), flags=re.ASCII)[:64] or "host"
    try:
        return f"{host}-{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return f"{host}-{_UNKNOWN}"


def _is_alive(number: int, start: str) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is there, and another user's
        pass
    return _start(number) in (start, _UNKNOWN)


def _start(number: int) -> str:
    """When a process began, in clock ticks on Linux; a zombie has no start that any name could hold."""
    try:
        with open(f"/proc/{number}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return _UNKNOWN
    return "zombie" if fields[0] in (b"Z", b"X") else fields[19].decode()
