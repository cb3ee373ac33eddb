"""Shares from stratified samples: intervals that hold the truth, and how well probabilities fit what was seen."""

from __future__ import annotations

import numpy as np
import pytest

from maskmine.mining.evaluation.pair_metrics import wilson_interval
from maskmine.mining.evaluation.stratified import (
    Stratum,
    brier_score,
    calibration_error,
    reliability,
    stratified_share,
)


def test_one_stratum_of_a_large_population_has_wilsons_interval() -> None:
    estimate = stratified_share([Stratum(pairs=10**9, judged=50, right=40)])
    assert (estimate.low, estimate.high) == pytest.approx(wilson_interval(40, of=50), abs=1e-6)


def test_the_share_weighs_each_stratum_by_its_pairs_in_the_run() -> None:
    estimate = stratified_share([Stratum(900, 10, 10), Stratum(100, 10, 0)])
    assert estimate.value == pytest.approx(0.9)
    assert estimate.judged == 20


def test_a_population_judged_whole_has_no_interval() -> None:
    estimate = stratified_share([Stratum(3, 3, 2), Stratum(5, 5, 5)])
    assert (estimate.value, estimate.low, estimate.high) == (7 / 8, 7 / 8, 7 / 8)


def test_strata_in_which_all_are_right_do_not_claim_to_be_certain() -> None:
    estimate = stratified_share([Stratum(1000, 20, 20), Stratum(1000, 20, 20)])
    assert estimate.value == estimate.high == 1
    assert estimate.low == pytest.approx(wilson_interval(40, of=40)[0], abs=0.01)


def test_of_strata_without_a_verdict_nothing_is_said() -> None:
    assert stratified_share([Stratum(10, 0, 0)]).value is None
    estimate = stratified_share([Stratum(1000, 10, 5), Stratum(500, 0, 0)])
    assert (estimate.value, estimate.unseen) == (0.5, 500)


@pytest.mark.parametrize("shares", [(0.02, 0.4, 0.9, 0.99), (0.9, 0.95, 0.98, 1.0), (0.99, 0.99, 0.99, 0.99)])
def test_the_interval_holds_the_truth_in_93_of_100_audits_of_300_verdicts(shares: tuple[float, ...]) -> None:
    generator, sizes = np.random.default_rng(0), (400, 800, 1200, 1600)
    right_H = [round(share * size) for share, size in zip(shares, sizes, strict=True)]
    truth = sum(right_H) / sum(sizes)
    judged_H = [30, 60, 90, 120]
    held = 0
    for _ in range(1000):
        found_H = [
            int(generator.hypergeometric(right, size - right, judged))
            for right, size, judged in zip(right_H, sizes, judged_H, strict=True)
        ]
        estimate = stratified_share([Stratum(*one) for one in zip(sizes, judged_H, found_H, strict=True)])
        held += estimate.low <= truth <= estimate.high
    assert held >= 930


def test_the_calibration_error_is_the_weighted_mean_distance_of_the_bins() -> None:
    probability_N, right_N = np.array([0.11, 0.19, 0.95, 1.0]), np.array([0.0, 1.0, 1.0, 1.0])
    bins = reliability(probability_N, right_N, np.array([1.0, 1.0, 1.0, 5.0]))
    assert [(one.count, one.weight, one.right) for one in bins] == [(2, 2.0, 0.5), (2, 6.0, 1.0)]
    # |0.15 − 0.5| for a quarter of the weight, and |5.95 / 6 − 1| for the rest
    assert calibration_error(bins) == pytest.approx((2 * 0.35 + 0.05) / 8)


def test_the_brier_score_is_the_weighted_mean_squared_difference() -> None:
    score = brier_score(np.array([0.5, 1.0]), np.array([1.0, 0.0]), np.array([3.0, 1.0]))
    assert score == pytest.approx((3 * 0.25 + 1) / 4)
