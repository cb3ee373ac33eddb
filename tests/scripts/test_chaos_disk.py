"""What counts as a fault of a run whose disk was full."""

from __future__ import annotations

import pytest

from maskmine.scripts.crashes.disk import Filled, faults_of, table_of

FULL = "maskmine: /disk/run/shards/00001.tar: the disk is full; free some space and run the same command again"


@pytest.mark.parametrize(
    ("code", "lines", "left", "faults"),
    [
        (4, ["a note", FULL], [], []),
        (0, ["done"], [], ["ended with 0: done", "says in 0 lines why it ended: "]),
        (1, [], [], ["ended with 1: no output", "says in 0 lines why it ended: "]),
        (4, [FULL, FULL], [], ["says in 2 lines why it ended: " + f"{FULL} | {FULL}"[:200]]),
        (4, ["maskmine: something else"], [], ["says in 1 lines why it ended: maskmine: something else"]),
        (4, [FULL], ["run/nouns/.writing-x"], ["left run/nouns/.writing-x"]),
    ],
)
def test_a_run_on_a_full_disk_ends_with_4_and_one_line_and_leaves_nothing_half(
    code: int, lines: list[str], left: list[str], faults: list[str]
) -> None:
    assert faults_of(code, lines, left) == faults


def test_the_table_has_a_row_for_each_run() -> None:
    table = table_of([Filled("local", 0.5, 3.2), Filled("beam", 0.2, 1.0, ["left x"])])
    assert [str(cell) for cell in table.columns[-1].cells] == ["one line, nothing half, same bytes", "left x"]
