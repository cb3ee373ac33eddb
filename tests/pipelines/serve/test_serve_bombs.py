"""What is uploaded to `serve` and stands for very much: each picture is answered, and the next visitor has their map.

The bounds are those of the commands that read pictures, in `tests/faults/test_picture_bombs.py`.
"""

from __future__ import annotations

import time
from pathlib import Path

from maskmine.mining.images import child_decoder
from maskmine.pipelines.serve.service import Serving
from tests.support.hostile.measured import status_bytes
from tests.support.hostile.picture_bombs import PICTURE_BOMBS
from tests.support.web.browser import EXAMPLES, STREET, calling
from tests.support.web.served_page import ask

MAX_BYTES, MAX_S = 1_500_000_000, 60.0


def test_an_upload_takes_neither_all_memory_nor_for_ever(serving: Serving) -> None:
    service = serving.model_copy(update={"max_upload_mb": 20.0, "max_image_pixels": 16_000_000}).open()
    with calling(service) as client:
        assert ask(client, EXAMPLES / "street.jpg", classes=STREET).status == 200
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
        before = status_bytes("VmRSS")
        for name, make in PICTURE_BOMBS.items():
            begin = time.monotonic()
            assert ask(client, make(), name=name, classes=STREET).status in (200, 413, 415, 422), name
            assert time.monotonic() - begin < MAX_S, name
        assert status_bytes("VmHWM") - before < MAX_BYTES
        assert max(status_bytes("VmHWM", child.process.pid) for child in child_decoder._idle) < MAX_BYTES
        assert ask(client, EXAMPLES / "street.jpg", classes=STREET).status == 200
