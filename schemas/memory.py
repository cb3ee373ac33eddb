"""Memory of this process: what is freed goes back to the system, so that a long run needs no more than a short one."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from contextlib import suppress

import pyarrow as pa

_M_ARENA_MAX = -8  # of glibc's malloc.h
_ARENAS = 2


def share_memory() -> None:
    """Have all threads of this process, and Arrow, take memory from the same two places.

    Where each of many threads has a place of its own, as glibc gives it, and Arrow one for each size, what one frees no
    other takes: the process grows with the number of small files that it reads. Called before threads are started; who
    sets glibc's or Arrow's own variables in the environment decides, and a system without glibc keeps what it does.
    """
    if "MALLOC_ARENA_MAX" not in os.environ and "arena_max" not in os.environ.get("GLIBC_TUNABLES", ""):
        with suppress(AttributeError, OSError, TypeError):  # no mallopt; no library of that kind
            mallopt: Callable[[int, int], int] = ctypes.CDLL(None).mallopt
            mallopt(_M_ARENA_MAX, _ARENAS)
    if "ARROW_DEFAULT_MEMORY_POOL" not in os.environ:
        pa.set_memory_pool(pa.system_memory_pool())


def give_back_memory() -> None:
    """Give the system what Arrow keeps of freed memory: of many small tables that grows by tens of megabytes."""
    pa.default_memory_pool().release_unused()
