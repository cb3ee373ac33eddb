"""Fitting a calibration to judged pairs: logistic regression on the evidence, and on what the features add to it.

Shapes: N judged pairs, F features, as in `CALIBRATED` or more, whose first is the evidence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from maskmine.schemas.errors import InputError, how_to_install
from maskmine.schemas.wording import counted

Array = np.ndarray[Any, np.dtype[np.float64]]

LEAST_VERDICTS = 30
"""Verdicts, right and wrong, that a fit needs."""
LEAST_OF_A_KIND = 5
"""Of these, right ones and wrong ones, so that every fold has both."""

_FOLDS = 5
# Standard deviations of the Gaussian priors of the coefficients. The evidence is hardly held back; how far the other
# features may correct it is chosen by cross-validation: where the evidence is good, hardly; where it is not, freely.
_PRIOR_EVIDENCE = 10.0
_PRIORS_FEATURES = (0.1, 0.3, 1.0, 3.0)
_LEAST_GAIN = 0.002  # of the log loss, for which a looser prior is taken
_DIGITS = 6  # of the coefficients: the rest depends on the machine
_TINY = 1e-6  # keeps the logarithm of a probability finite


@dataclass(frozen=True)
class Fit:
    """A fitted regression on standardised features: see `Calibration` for the fields."""

    means_F: Array
    scales_F: Array
    coefficients_F: Array
    intercept: float
    prior: float

    def predict(self, features_NF: Array) -> Array:
        """The probability that each pair is right, [N]."""
        logits_N = self.intercept + (features_NF - self.means_F) / self.scales_F @ self.coefficients_F
        result: Array = 1 / (1 + np.exp(-np.clip(logits_N, -30, 30)))
        return result


def fit_calibration(features_NF: Array, right_N: Array) -> Fit:
    """Fit to pairs without missing features, of which at least `LEAST_OF_A_KIND` are right and as many wrong.

    The strictest prior whose cross-validated log loss is not beaten by a looser one is taken.
    """
    best = _PRIORS_FEATURES[0]
    best_loss = _log_loss(_out_of_fold(features_NF, right_N, best), right_N)
    for prior in _PRIORS_FEATURES[1:]:
        loss = _log_loss(_out_of_fold(features_NF, right_N, prior), right_N)
        if loss < best_loss - _LEAST_GAIN:
            best, best_loss = prior, loss
    return _fit(features_NF, right_N, best)


def cross_fitted(features_NF: Array, right_N: Array) -> Array:
    """The probability of each pair by a calibration that was fitted, its prior chosen, without the pair's fold, [N]."""
    probability_N = np.empty(len(right_N))
    for out_N in _folds(right_N):
        probability_N[out_N] = fit_calibration(features_NF[~out_N], right_N[~out_N]).predict(features_NF[out_N])
    return probability_N


def _out_of_fold(features_NF: Array, right_N: Array, prior: float) -> Array:
    probability_N = np.empty(len(right_N))
    for out_N in _folds(right_N):
        probability_N[out_N] = _fit(features_NF[~out_N], right_N[~out_N], prior).predict(features_NF[out_N])
    return probability_N


def _folds(right_N: Array) -> list[np.ndarray[Any, np.dtype[np.bool_]]]:
    """Which pairs each fold leaves out: of the right and of the wrong ones, in their order, every fifth."""
    number_N = np.empty(len(right_N), int)
    for value in (0, 1):
        number_N[right_N == value] = np.arange(int((right_N == value).sum())) % _FOLDS
    return [number_N == number for number in range(_FOLDS) if (number_N == number).any()]


def _fit(features_NF: Array, right_N: Array, prior: float) -> Fit:
    """Ridge-penalised logistic regression; a column's prior is the factor that it is multiplied by."""
    means_F, deviations_F = features_NF.mean(axis=0), features_NF.std(axis=0)
    scales_F = np.where(deviations_F > 0, deviations_F, 1.0)
    priors_F = np.array([_PRIOR_EVIDENCE, *[prior] * (features_NF.shape[1] - 1)])
    model = _regression().fit((features_NF - means_F) / scales_F * priors_F, right_N)
    return Fit(
        np.round(means_F, _DIGITS),
        np.maximum(np.round(scales_F, _DIGITS), 10.0**-_DIGITS),
        np.round(model.coef_[0] * priors_F, _DIGITS),
        round(float(model.intercept_[0]), _DIGITS),
        prior,
    )


def _log_loss(probability_N: Array, right_N: Array) -> float:
    likely_N = np.where(right_N == 1, probability_N, 1 - probability_N)
    return float(-np.log(np.maximum(likely_N, _TINY)).mean())


def _regression() -> Any:
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise InputError(f"a calibration is fitted by scikit-learn; {how_to_install('audit')}") from error
    return LogisticRegression(C=1.0, solver="newton-cholesky", tol=1e-9, max_iter=1000)


def too_few(right: int, wrong: int) -> str | None:
    """Why nothing can be fitted to so many right and wrong pairs; None where it can."""
    if right + wrong < LEAST_VERDICTS:
        return f"{counted(right + wrong, 'usable verdict')}, and a calibration needs {LEAST_VERDICTS}; judge more pairs"
    if min(right, wrong) < LEAST_OF_A_KIND:
        kind, count = ("wrong", wrong) if wrong < right else ("right", right)
        found = f"all {right + wrong} verdicts say the same" if not count else f"{count} of {right + wrong} say {kind}"
        return f"{found}, and a calibration needs {LEAST_OF_A_KIND} right and {LEAST_OF_A_KIND} wrong pairs; judge more"
    return None
