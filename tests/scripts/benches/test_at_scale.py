"""What the bench of large runs says of a command follows from how its time and memory rise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from maskmine.schemas.errors import InputError
from maskmine.scripts.benches.scale.at_scale import Taken, bench_at_scale, measure, measures_of, sizes
from maskmine.scripts.benches.scale.commands import Command

PARTS = (1_000, 10_000, 100_000)


@pytest.mark.parametrize(
    ("seconds", "megabytes", "missed"),
    [
        (lambda n: 5 + n / 1e3, lambda n: 150, []),
        (lambda n: 5 + 0.2 * (n == 10_000), lambda n: 150, []),  # start-up alone, and noise
        (lambda n: 5 + n**1.5 / 1e5, lambda n: 150, ["time of a part from 10,000 / up to 10,000"]),
        (lambda n: 5 + n**2 / 1e8, lambda n: 150, ["time of a part from 10,000 / up to 10,000"]),
        (lambda n: 5 + n / 1e3, lambda n: 150 + n / 5e3, ["memory at 100,000 / 1,000 parts"]),
    ],
)
def test_time_in_proportion_and_memory_that_stays_reach_their_goals(
    seconds: Callable[[int], float], megabytes: Callable[[int], float], missed: list[str]
) -> None:
    taken = {parts: Taken(0.0, seconds(parts), int(megabytes(parts) * 2**20)) for parts in PARTS}
    measures = list(measures_of("c", taken, in_proportion=True))
    assert [one.name for one in measures if one.reached is False] == [f"c: {name}" for name in missed]
    assert sum(one.reached is not None for one in measures) == 2


@pytest.mark.parametrize(
    ("most", "expected"),
    [
        (2_000, (1_000, 1_500, 2_000)),
        (10_000, (1_000, 5_500, 10_000)),
        (100_000, PARTS),
        (20_000, (1_000, 10_000, 20_000)),
    ],
)
def test_there_are_three_runs_at_least(most: int, expected: tuple[int, ...]) -> None:
    assert sizes(most) == expected


def test_a_command_that_fails_or_does_something_else_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"status .*: .*not a run folder"):
        measure(Command(lambda run, out: ["status", str(run)]), tmp_path)
    with pytest.raises(InputError, match="bench: --version"):
        measure(Command(lambda run, out: ["--version"], says="nothing to do"), tmp_path)


def test_unknown_commands_and_a_folder_that_is_a_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="at-scale has no command verfy; known: status"):
        next(bench_at_scale(only=["verfy"]))
    with pytest.raises(InputError, match=r"--folder .*: not a folder"):
        next(bench_at_scale(folder=tmp_path / "file"))
