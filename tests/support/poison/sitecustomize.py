"""Poison for tests: Python imports this file at its start when its folder is in PYTHONPATH (see `tests/conftest.py`).

Every process has a disk that may be full (`full_disk.py`). In the process that decodes pictures, and in no other, a PNG
whose private chunk `PoIS` names one of these does it.
"""

import ctypes
import os
import sys
import time

from full_disk import install

install()

if "maskmine.mining.images.decoder_process" in sys.orig_argv:
    from PIL import PngImagePlugin

    def _act(poison: str) -> None:
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
        if poison.startswith("once:") and not os.path.exists(poison[5:]):
            with open(poison[5:], "w"):
                os._exit(7)

    class _PoisonousPng(PngImagePlugin.PngImageFile):
        def _open(self) -> None:
            super()._open()
            self.poison = next((content.decode() for name, content, *_ in self.private_chunks if name == b"PoIS"), "")
            if self.poison.startswith("header "):
                _act(self.poison.removeprefix("header "))

        def load(self):  # type: ignore[no-untyped-def]
            _act(self.poison)
            return super().load()

    PngImagePlugin.PngImageFile = _PoisonousPng  # type: ignore[misc]
