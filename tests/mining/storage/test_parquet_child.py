"""The process that reads Parquet of strangers: one that others kill says nothing of a file."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from maskmine.mining.storage.bounded import parquet_child
from maskmine.mining.storage.bounded.parquet_child import StrangeParquet


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "table.parquet"
    pq.write_table(pa.table({"caption": ["A dog.", "A cat."]}), path)
    return path


def captions(path: Path) -> list[str]:
    with path.open("rb") as file:
        batches = [batch for batch, _ in StrangeParquet(file, str(path), ("caption",)).batches(10)]
    return [text for batch in batches for text in batch["caption"].to_pylist()]


def test_children_that_were_killed_while_they_waited_are_replaced(table: Path) -> None:
    assert captions(table) == ["A dog.", "A cat."]
    idle = list(parquet_child._idle)
    assert idle
    for child in idle:
        os.kill(child.process.pid, signal.SIGKILL)
        os.waitid(os.P_PID, child.process.pid, os.WEXITED | os.WNOWAIT)
    assert captions(table) == ["A dog.", "A cat."]
    assert not {child.process.pid for child in parquet_child._idle} & {child.process.pid for child in idle}
