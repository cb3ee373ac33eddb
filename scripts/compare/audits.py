"""Audits simulated with a truth in place of reviewers: do their intervals hold, and do their calibrations carry over?

Shapes: N pairs of a world.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from maskmine.mining.evaluation.stratified import calibration_error, reliability
from maskmine.mining.scores.calibration import Calibration
from maskmine.pipelines.audit.audit import audit_run
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.schemas.errors import InputError
from maskmine.scripts.measures import Measure, at_least, at_most

Array = np.ndarray[Any, np.dtype[np.float64]]
ConfidenceOf = Callable[[Calibration], tuple[Array, Array]]

_TARGET = 0.95
_NEAR = 0.02  # how far from the target the precision of what is kept may be


def simulate_audits(
    runs: Sequence[tuple[RunFolder, str]], *, confidences: Sequence[ConfidenceOf], audits: int, verdicts: int
) -> Iterator[Measure]:
    """Audit the runs in turn, each `(run, truth)` by samples of different seeds; then apply what was fitted.

    `confidences[i]` gives the confidences that a calibration has for the pairs of run i, and which of them are right.
    Calibrations are judged on the run after the one that they were fitted on.
    """
    held, errors, own_targets, other_targets = 0, [], [], []
    for number in range(audits):
        place = number % len(runs)
        run, truth = runs[place]
        audit = audit_run(run, truth=truth, size=verdicts, seed=1 + number, target_precision=_TARGET)
        if audit.fitted is None:
            raise InputError(f"{run.root}: no calibration from {verdicts} verdicts, as {audit.no_calibration}")
        calibration = audit.fitted.calibration
        own, other = confidences[place], confidences[(place + 1) % len(runs)]
        confidence_N, right_N = own(calibration)
        held += audit.every.low <= right_N.mean() <= audit.every.high
        own_targets.append(_kept_precision(calibration, confidence_N, right_N))
        confidence_N, right_N = other(calibration)
        errors.append(calibration_error(reliability(confidence_N, right_N, np.ones(len(right_N)))))
        other_targets.append(_kept_precision(calibration, confidence_N, right_N))

    yield at_least(f"{audits} audits: the 95 % interval holds the true precision", 100 * held / audits, "%", 93)
    yield at_most("calibration error on another seed, mean", statistics.mean(errors), "", 0.03)
    yield Measure("… the worst of ten", float(np.quantile(errors, 0.9)), "")
    for where, found in (("the same", own_targets), ("another", other_targets)):
        reached = [value for value in found if value is not None]
        near = sum(abs(value - _TARGET) <= _NEAR for value in reached)
        name = f"--target-precision {_TARGET}: what is kept on {where} seed"
        yield Measure(f"{name}, mean", 100 * statistics.mean(reached), "% right")
        yield at_most(f"{name}, mean distance", 100 * statistics.mean(abs(v - _TARGET) for v in reached), "points", 2)
        yield Measure(f"{name}, within 2 points", 100 * near / len(found), "% of audits")


def _kept_precision(calibration: Calibration, confidence_N: Array, right_N: Array) -> float | None:
    """The share of right pairs above the threshold that an audit asks for; None where it asks for none."""
    if calibration.min_confidence is None:
        return None
    kept_N = confidence_N >= calibration.min_confidence
    return float(right_N[kept_N].mean()) if kept_N.any() else None
