"""The calibrated probability that a pair is right: a small JSON file that `maskmine audit` writes, and its use.

Logistic regression: the log odds are a weighted sum of the pair's standardised features. What it was fitted to stands
in the file too, so that nothing measured on one kind of picture is taken for a fact about another.

Shapes: N pairs, F features as in `CALIBRATED`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any

import numpy as np
from pydantic import Field, ValidationError, model_validator

from maskmine.mining.scores.features import FEATURES, feature_matrix
from maskmine.mining.scores.statistics import Array
from maskmine.mining.storage.stores import fetch
from maskmine.schemas.errors import InputError
from maskmine.schemas.rows import Pair
from maskmine.schemas.settings import Settings

CALIBRATED = ("evidence", *FEATURES)
"""The columns of `calibrated_features`."""

CALIBRATION_VERSION = 1
_DIGITS = 6  # of a confidence, as of all scores in the cells
_MOST_LOGIT = 30.0  # beyond it a probability is 0 or 1 to all digits

Finite = Annotated[float, Field(allow_inf_nan=False)]
Probability = Annotated[float, Field(ge=0, le=1)]


class MadeBy(Settings):
    """What makes the scores of a run's pairs: scores of other models or another rule mean other things."""

    clip: str | None
    """SHA-256 of CLIP's weights, or its name where that is not known."""
    proposals: str | None
    """The same of the proposer."""
    rule: dict[str, Any]
    """The settings that decide which region a noun takes, and what CLIP sees of both."""

    def difference(self, other: MadeBy) -> str | None:
        """In words what another run has different; None where the scores mean the same."""
        if self.clip != other.clip:
            return "another CLIP"
        if self.proposals != other.proposals:
            return "another proposer"
        names = sorted({*self.rule, *other.rule})
        return next((f"another `{name}`" for name in names if self.rule.get(name) != other.rule.get(name)), None)


class MeasuredShare(Settings):
    """A share with its 95 % interval."""

    value: Probability
    """The estimate."""
    low: Probability
    """Lower end of the interval."""
    high: Probability
    """Upper end of the interval."""


class Measured(Settings):
    """What an audit found. All but the precision is of confidences that were cross-fitted."""

    precision: MeasuredShare
    """Share of right pairs among all that the rule made."""
    precision_written: MeasuredShare | None
    """The same among those in the shards; null where there is none."""
    calibration_error: Probability
    """Expected calibration error in ten bins."""
    brier: Probability
    """Mean squared difference of confidence and truth."""


class Calibration(Settings):
    """A calibration: the coefficients, and where they come from. No times: the same verdicts, the same file."""

    version: int
    """Version of this file's format."""
    features: Annotated[tuple[str, ...], Field(min_length=1)]
    """Features of a pair, in the order of the next three."""
    means: tuple[Finite, ...]
    """Mean of each feature among the judged pairs."""
    scales: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...]
    """Standard deviation of each."""
    coefficients: tuple[Finite, ...]
    """Coefficient of each standardised feature."""
    intercept: Finite
    """Log odds of a pair whose features are the means."""
    run: str
    """Fingerprint of the run whose pairs were judged."""
    folder: str
    """Name of its folder."""
    made_by: MadeBy
    """What made the scores of that run."""
    measured_on: tuple[str, ...]
    """Names of that run's caption sources."""
    judged_by: str
    """`verdicts`, or the name of the annotations."""
    reviewers: tuple[str, ...]
    """Who gave the verdicts."""
    verdicts: dict[str, int]
    """How many verdicts of each kind it was fitted to or could not use."""
    seed: int
    """Seed of the sample."""
    measured: Measured
    """What the audit found."""
    target_precision: Probability | None = None
    """The precision that was asked for."""
    min_confidence: Probability | None = None
    """Lowest threshold that is expected to give it, for `pairs.min_confidence`."""

    @model_validator(mode="after")
    def _holds_together(self) -> Calibration:
        if self.version != CALIBRATION_VERSION:
            raise ValueError(f"`version` is {self.version}, this maskmine reads {CALIBRATION_VERSION}")
        unknown = next((name for name in self.features if name not in CALIBRATED), None)
        if unknown is not None:
            raise ValueError(f"feature `{unknown}` is none of {', '.join(CALIBRATED)}")
        for name in ("means", "scales", "coefficients"):
            if len(getattr(self, name)) != len(self.features):
                raise ValueError(f"`{name}` needs a number for each of the {len(self.features)} features")
        return self

    def confidence(self, features_NF: Array) -> Array:
        """The probability that each pair is right, float64 [N], rounded to six digits.

        The columns are those of `calibrated_features`. NaN where a feature is.
        """
        used_NF = features_NF[:, [CALIBRATED.index(name) for name in self.features]]
        standard_NF = (used_NF - np.array(self.means)) / np.array(self.scales)
        logits_N = np.clip(self.intercept + standard_NF @ np.array(self.coefficients), -_MOST_LOGIT, _MOST_LOGIT)
        result: Array = np.round(1 / (1 + np.exp(-logits_N)), _DIGITS)
        return result

    def add_confidence(self, pairs: Sequence[Pair], scores: Sequence[float]) -> Iterator[Pair]:
        """The pairs with their confidence, given their proposals' `scores`; None where a feature is missing."""
        for pair, value in zip(pairs, self.confidence(calibrated_features(pairs, scores)), strict=True):
            yield replace(pair, confidence=None if np.isnan(value) else float(value))

    def as_text(self) -> str:
        """The content of its file."""
        return json.dumps(self.model_dump(mode="json"), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def calibrated_features(pairs: Sequence[Pair], scores: Sequence[float]) -> Array:
    """The features of pairs and of their proposals' `scores`, float64 [N, F] as in `CALIBRATED`; NaN for none."""
    evidence_N = np.array([np.nan if pair.evidence is None else pair.evidence for pair in pairs], np.float64)
    result: Array = np.column_stack([evidence_N, feature_matrix(pairs, scores)])
    return result


def read_calibration(path: str) -> Calibration:
    """The calibration in a file, here or on an object store.

    Raises InputError when it is absent or not a calibration that this maskmine reads.
    """
    remedy = "give a file that `maskmine audit --to` wrote"
    try:
        stored = json.loads(fetch(path))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"{path}: no such file; {remedy}") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); {remedy}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON; {remedy}") from error
    if not isinstance(stored, Mapping):
        raise InputError(f"{path}: not a calibration; {remedy}")
    try:
        return Calibration.model_validate_json(json.dumps(stored))  # lists become the tuples of a strict model
    except ValidationError as error:
        raise InputError(f"{path}: {_fault(error)}; {remedy}") from error


def _fault(error: ValidationError) -> str:
    first = error.errors()[0]
    place = ".".join(str(name) for name in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    return f"`{place}`: {message[0].lower()}{message[1:]}" if place else message
