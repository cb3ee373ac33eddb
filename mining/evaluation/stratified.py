"""Shares of a population from a stratified sample, with intervals, and how well probabilities fit what was seen.

Shapes: H strata, N judged pairs, B bins.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]

_CONFIDENCE = 0.95
_BINS = 10


@dataclass(frozen=True, slots=True)
class Stratum:
    """A stratum: pairs in the population, how many of them were judged, and how many of these are right."""

    pairs: int
    judged: int
    right: int


@dataclass(frozen=True, slots=True)
class Estimate:
    """A share, its 95 % interval, and the verdicts that it rests on. Without a verdict anything can be true.

    `unseen` counts pairs in strata without a verdict, of which nothing is said.
    """

    value: float | None
    low: float
    high: float
    judged: int
    unseen: int


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """The judged pairs whose probabilities lie in one bin: their count and weight, mean probability and share right."""

    count: int
    weight: float
    mean: float
    right: float


def stratified_share(strata: Sequence[Stratum]) -> Estimate:
    """The share of right pairs in the population, and an interval for it.

    The share is the mean of the strata's, weighted by their pairs (W. G. Cochran, "Sampling Techniques", 3rd edition,
    1977, § 5A). The interval is E. B. Wilson's (see `wilson_interval`) with the effective number of verdicts, that of
    a simple random sample of the same variance (E. L. Korn and B. I. Graubard, "Confidence intervals for proportions
    with small expected number of positive counts estimated from survey data", Survey Methodology 24, 1998). So that a
    stratum in which all are right does not claim to have no variance, each counts one more verdict, which is right by
    the share of all. A population that was judged whole has no interval.
    """
    seen = [stratum for stratum in strata if stratum.judged]
    unseen = sum(stratum.pairs for stratum in strata if not stratum.judged)
    pairs_H, judged_H, right_H = (
        np.array([getattr(stratum, name) for stratum in seen], np.float64) for name in ("pairs", "judged", "right")
    )
    judged, right, pairs = int(judged_H.sum()), int(right_H.sum()), pairs_H.sum()
    if not pairs:
        return Estimate(None, 0.0, 1.0, judged, unseen)
    weight_H = pairs_H / pairs
    share = 1.0 if right == judged else float(weight_H @ (right_H / judged_H))
    smooth_H = (right_H + (right + 0.5) / (judged + 1)) / (judged_H + 1)
    unjudged_H = 1 - judged_H / pairs_H  # the finite population correction
    variance = float((weight_H**2 * smooth_H * (1 - smooth_H) / judged_H * unjudged_H).sum())
    if variance <= 0:
        return Estimate(share, share, share, judged, unseen)
    smooth = float(weight_H @ smooth_H)
    low, high = _wilson(share, effective=smooth * (1 - smooth) / variance)
    return Estimate(share, low, high, judged, unseen)


def reliability(probability_N: Array, right_N: Array, weight_N: Array) -> list[ReliabilityBin]:
    """The judged pairs by their probability, in ten bins of equal width; empty bins are left out."""
    bin_N = np.minimum((probability_N * _BINS).astype(int), _BINS - 1)
    bins = []
    for number in range(_BINS):
        inside_N = bin_N == number
        weight = float(weight_N[inside_N].sum())
        if weight:
            mean = float(weight_N[inside_N] @ probability_N[inside_N]) / weight
            right = float(weight_N[inside_N] @ right_N[inside_N]) / weight
            bins.append(ReliabilityBin(int(inside_N.sum()), weight, mean, right))
    return bins


def calibration_error(bins: Sequence[ReliabilityBin]) -> float:
    """The expected calibration error: the weighted mean distance of the bins' mean probabilities and shares right.

    M. P. Naeini, G. F. Cooper and M. Hauskrecht, "Obtaining well calibrated probabilities using Bayesian binning",
    AAAI 2015. From few verdicts it is too large: the shares of a perfect calibration differ by chance, too.
    """
    total = sum(one.weight for one in bins)
    return sum(one.weight * abs(one.mean - one.right) for one in bins) / total


def brier_score(probability_N: Array, right_N: Array, weight_N: Array) -> float:
    """The weighted mean squared difference of probability and truth (G. W. Brier, Monthly Weather Review 78, 1950)."""
    return float(weight_N @ (probability_N - right_N) ** 2 / weight_N.sum())


def _wilson(share: float, *, effective: float) -> tuple[float, float]:
    """`wilson_interval` of a share of an effective number of trials, which is no whole number."""
    z = NormalDist().inv_cdf((1 + _CONFIDENCE) / 2)
    scale = 1 + z * z / effective
    centre = (share + z * z / (2 * effective)) / scale
    half_width = z / scale * math.sqrt(share * (1 - share) / effective + z * z / (4 * effective * effective))
    low, high = max(0.0, centre - half_width), min(1.0, centre + half_width)
    return (0.0 if share == 0 else low), (1.0 if share == 1 else high)
