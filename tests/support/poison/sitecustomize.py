"""Poison for tests: Python imports this file at its start when its folder is in PYTHONPATH (see `tests/conftest.py`).

Every process has a disk that may be full (`full_disk.py`). In the process that decodes pictures, and in no other, a PNG
whose text `poison` names one of these does it.
"""

import ctypes
import os
import sys
import time

from full_disk import install

install()

if "mining.decoder" in sys.orig_argv:
    from PIL import PngImagePlugin

    def _act(poison: object) -> None:
        if poison == "segfault":
            ctypes.string_at(0)
        if poison == "loop":
            while True:
                pass
        if poison == "sleep":
            time.sleep(1e6)
        if poison == "memory":
            bytearray(50 * 10**9)
        if poison == "exception":
            raise RuntimeError("nobody foresaw this")
        if isinstance(poison, str) and poison.startswith("once:") and not os.path.exists(poison[5:]):
            with open(poison[5:], "w"):
                os._exit(7)

    class _PoisonousPng(PngImagePlugin.PngImageFile):
        def _open(self) -> None:
            super()._open()
            if self.info.get("poison", "").startswith("header "):
                _act(self.info["poison"].removeprefix("header "))

        def load(self):  # type: ignore[no-untyped-def]
            _act(self.info.get("poison"))
            return super().load()

    PngImagePlugin.PngImageFile = _PoisonousPng  # type: ignore[misc]
