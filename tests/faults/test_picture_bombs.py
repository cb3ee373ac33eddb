"""Every command that reads pictures, on small files that stand for very much: each costs itself, and nothing else.

A command is measured in a process of its own. That process grows by less than `MAX_GROWTH_BYTES`, no process that
decodes for it takes more than `MAX_CHILD_BYTES`, and nothing computes for longer than `MAX_S`. The settings' own limits
are 4 GB of address space and twice 25 s for a picture (`decoding.memory_gb`, `timeout_s`, `attempts`), and 50 million
pixels (`max_image_pixels`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from maskmine.mining.images import child_decoder
from maskmine.mining.images.child_decoder import Decoding
from maskmine.mining.images.decode import DecodedImage
from maskmine.schemas.errors import Exit
from maskmine.schemas.rows import Rejection
from tests.faults.forking_server import serving, write_client
from tests.support.hostile.bomb_worlds import COMMANDS, World
from tests.support.hostile.measured import measure, status_bytes
from tests.support.hostile.picture_bombs import PICTURE_BOMBS, make_bombs

MAX_GROWTH_BYTES = MAX_CHILD_BYTES = 1_500_000_000
MAX_S = 60.0
MAX_PIXELS = 50_000_000
_LIBRARIES = ("torch", "transformers", "open_clip", "maskmine.tuning.segmentation.segmenter")


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A stand-in for `python` that starts at once."""
    folder = tmp_path_factory.mktemp("programs")
    with serving(folder / "server", ["tests.support.hostile.measured", *_LIBRARIES]):
        yield write_client(folder / "python", folder / "server", "python")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"), make_bombs())


@pytest.mark.parametrize("name", PICTURE_BOMBS)
def test_a_picture_takes_neither_all_memory_nor_for_ever(name: str) -> None:
    data = PICTURE_BOMBS[name]()
    assert len(data) < 6_000_000
    decoding, begin = Decoding(), time.monotonic()
    assert isinstance(decoding.decode(data, max_pixels=MAX_PIXELS), DecodedImage | Rejection)
    decoding.decode_header(data)
    assert time.monotonic() - begin < MAX_S
    peaks = [status_bytes("VmHWM", child.process.pid) for child in child_decoder._idle]
    assert max(peaks, default=0) < MAX_CHILD_BYTES


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_goes_on_or_says_in_one_line_why_not(name: str, python: Path, world: World) -> None:
    command = COMMANDS[name](world)
    found = measure(python, *command.words, timeout_s=4 * MAX_S)  # on a machine that is busy
    assert found.code == command.code, found.said
    assert not [word for word in command.says if word not in found.said], found.said
    if command.code in (Exit.BAD_INPUT, Exit.INCOMPLETE) and "verify" not in name:
        assert len([line for line in found.said.splitlines() if line.startswith("maskmine: ")]) == 1, found.said
    assert found.seconds < MAX_S
    assert found.growth_bytes < MAX_GROWTH_BYTES
    assert found.child_bytes < MAX_CHILD_BYTES
