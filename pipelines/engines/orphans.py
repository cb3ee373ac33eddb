"""Worker processes that end when their driver is gone, however that ended, and whatever they are doing then."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable

_WATCH_S = 0.5  # how soon a worker notices that it is not needed any more
_PR_SET_PDEATHSIG = 1


def end_with_driver(driver_pid: int, *, needed: Callable[[], bool] = lambda: True) -> None:
    """From here on this process, which `driver_pid` has started, ends with it, and when it is not `needed` any more.

    On Linux the kernel sees to it, also where a thread never gives Python's lock back. A driver may end while `needed`
    cannot tell, as where an object store does not answer: that is the next look's concern.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    threading.Thread(target=_watch, args=(driver_pid, needed), daemon=True).start()


def _watch(driver_pid: int, needed: Callable[[], bool]) -> None:
    while os.getppid() == driver_pid and _says(needed):  # it may have ended before the kernel was asked
        time.sleep(_WATCH_S)
    os._exit(0)


def _says(needed: Callable[[], bool]) -> bool:
    try:
        return needed()
    except Exception:  # noqa: BLE001, whatever a file system raises: a thread that ends watches no more
        return True
