"""What scores are worth, on pairs whose answer is known by hand, and one small world from end to end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskmine.schemas.errors import InputError
from maskmine.scripts.compare.scores import STAYING, Line, advice, main, precision_at, render
from tests.support.progress import texts_of

RIGHT_N = np.array([1.0, 1.0, 0.0, 1.0, 0.0])
SCORE_N = np.array([0.9, 0.8, 0.7, 0.7, 0.1])


def test_pairs_of_one_score_are_kept_together() -> None:
    assert precision_at(SCORE_N, RIGHT_N, right=2) == 1.0
    assert precision_at(SCORE_N, RIGHT_N, right=2.1) == 0.75  # the third right one has the score of a wrong one
    assert precision_at(np.zeros(5), RIGHT_N, right=1) == 0.6


def test_a_rule_with_too_few_right_pairs_has_no_precision() -> None:
    assert precision_at(SCORE_N, RIGHT_N, right=4) is None
    assert precision_at(np.array([0.9, np.nan]), np.array([0.0, 1.0]), right=1) is None  # it reaches no threshold


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=30))
def test_the_precision_is_that_of_the_highest_threshold_that_keeps_enough(pairs: list[tuple[int, bool]]) -> None:
    score_N, right_N = np.array([s for s, _ in pairs], float), np.array([r for _, r in pairs], float)
    for wanted in range(1, int(right_N.sum()) + 1):
        kept = next(score_N >= t for t in range(5, -1, -1) if right_N[score_N >= t].sum() >= wanted)
        assert precision_at(score_N, right_N, right=wanted) == pytest.approx(right_N[kept].mean())


def line(rule: str, score: str, *values: float | None) -> Line:
    return Line(rule, score, [10] * len(values), [dict.fromkeys(STAYING, value) for value in values])


def test_the_advice_names_the_best_score_without_and_with_verdicts() -> None:
    lines = [
        line("paper", "lift", 0.9, 0.92),
        line("paper", "margin", 0.99, None),  # makes too few in one world
        line("clean", "evidence", 0.95, 0.93),
        line("clean", "confidence, verdicts of another seed", 0.96, 0.94),
    ]
    said = advice(lines)
    assert "without verdicts: clean by evidence, 94.0% right" in said
    assert "with verdicts: clean by confidence, verdicts of another seed, 95.0%" in said
    table = render(lines, [1, 2])
    assert texts_of(table, 0) == ["paper", "", "clean", ""]
    assert texts_of(table, -1) == ["90.0%", "–", "93.0%", "94.0%"]


def test_verdicts_come_from_another_world(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is one of the seeds"):
        main(seed=[40, 41], verdicts_of=40, to=tmp_path)
