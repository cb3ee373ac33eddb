"""Threads and Arrow take memory from the same places, unless the user's environment says otherwise."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

_PROGRAM = """
import ctypes, sys, threading
import pyarrow as pa
from maskmine.schemas.memory import share_memory

if "shared" in sys.argv:
    share_memory()
all_at_once = threading.Barrier(8)

def take():
    held = [bytes(600) for _ in range(1000)]
    all_at_once.wait()
    del held

threads = [threading.Thread(target=take) for _ in range(8)]
for one in threads: one.start()
for one in threads: one.join()
libc = ctypes.CDLL(None)
libc.fopen.restype = ctypes.c_void_p
file = libc.fopen(b"/dev/stdout", b"w")
libc.malloc_info(0, ctypes.c_void_p(file))
libc.fclose(ctypes.c_void_p(file))
print(pa.default_memory_pool().backend_name)
"""


def places(*words: str, **variables: str) -> tuple[int, str]:
    """How many arenas malloc has in a process with eight threads that take memory, and Arrow's pool."""
    env = {name: value for name, value in os.environ.items() if "MALLOC" not in name and "ARROW" not in name}
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, *words], env=env | variables, capture_output=True, text=True, check=True
    )
    return done.stdout.count("<heap nr="), done.stdout.split()[-1]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is glibc's")
def test_many_threads_share_two_places_and_arrow_takes_them_too() -> None:
    assert places("shared") == (2, "system")
    arenas, pool = places()
    assert arenas > 2  # else nothing is gained
    assert pool != "system"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is glibc's")
def test_who_says_otherwise_in_the_environment_decides() -> None:
    assert places("shared", MALLOC_ARENA_MAX="3", ARROW_DEFAULT_MEMORY_POOL="mimalloc") == (3, "mimalloc")
