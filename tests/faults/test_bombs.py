"""Small files that stand for much go through every source in bounded memory and time, and cost themselves alone.

The bounds: the process that reads grows by less than a gigabyte, and the one that reads Parquet for it stays below the
two of `limits.table_memory_gb`.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.forking_server import serving, write_client
from tests.support.hostile.bomb_reader import TIMEOUT_S
from tests.support.hostile.bombs import BOMBS

MAX_GROWTH_BYTES, MAX_CHILD_BYTES = 1_000_000_000, 2_000_000_000


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A stand-in for `python` that starts at once."""
    folder = tmp_path_factory.mktemp("programs")
    with serving(folder / "server", ["tests.support.hostile.bomb_reader"]):
        yield write_client(folder / "python", folder / "server", "python")


@pytest.mark.parametrize("name", BOMBS)
def test_a_small_file_takes_neither_all_memory_nor_for_ever(name: str, python: Path, tmp_path: Path) -> None:
    write, expected = BOMBS[name]
    source = write(tmp_path)
    on_disk = sum(file.stat().st_blocks * 512 for file in tmp_path.rglob("*") if file.is_file())
    assert on_disk < 32_000_000
    command = [str(python), "-c", "from tests.support.hostile.bomb_reader import main; main()", json.dumps(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=2 * TIMEOUT_S)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found["peak_bytes"] < MAX_GROWTH_BYTES
    assert found["child_bytes"] < MAX_CHILD_BYTES
    if isinstance(expected, str):
        assert expected in (found["said"] or ""), found
        assert "\n" not in found["said"]
        return
    assert found["said"] is None
    assert {"good", "1", "t-0"} & set(found["good"])
    for detail in expected:
        assert any(detail in rejected for rejected in found["rejected"]), found["rejected"]
