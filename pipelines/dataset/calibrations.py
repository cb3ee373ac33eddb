"""Whose scores a calibration was fitted to, and whether those of a run mean the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from maskmine.mining.pairs import ClipPairs
from maskmine.mining.scores.calibration import MadeBy, read_calibration
from maskmine.pipelines.settings.fingerprints import deciding
from maskmine.pipelines.settings.mining import Mining
from maskmine.schemas.errors import InputError
from maskmine.schemas.manifest import CalibrationEntry, ModelRecord

# The settings of `pairs` that decide which region a noun takes, with their values in runs that do not have them.
_RULE: Mapping[str, Any] = {"rule": None, "score": None, "proposal_weight": 0.0}


def made_by(settings: Mapping[str, Any], models: Sequence[ModelRecord]) -> MadeBy:
    """What makes the scores of a run, from its settings as the manifest has them, and its models."""
    by_role = {model.role: model.sha256 or model.name for model in models}
    rule = {f"pairs.{name}": settings["pairs"].get(name, default) for name, default in _RULE.items()}
    rule |= {"regions.crop": settings["regions"]["crop"], "vocabulary": deciding(settings["vocabulary"])}
    return MadeBy(clip=by_role.get("clip"), proposals=by_role.get("proposals"), rule=rule)


def calibration_of(
    settings: Mining, values: Mapping[str, Any], models: Sequence[ModelRecord]
) -> CalibrationEntry | None:
    """What a manifest says of the run's calibration; None without one. `values` are the settings as it has them."""
    if not isinstance(settings.pairs, ClipPairs) or settings.pairs.calibration is None:
        return None
    calibration = read_calibration(settings.pairs.calibration)
    measured = calibration.measured
    return CalibrationEntry(
        sha256=values["pairs"]["calibration"]["sha256"],
        run=calibration.run,
        folder=calibration.folder,
        measured_on=calibration.measured_on,
        judged_by=calibration.judged_by,
        verdicts=calibration.verdicts,
        reviewers=calibration.reviewers,
        precision=(measured.precision.value, measured.precision.low, measured.precision.high),
        calibration_error=measured.calibration_error,
        foreign=calibration.made_by.difference(made_by(values, models)),
    )


def check_calibration(settings: Mining, values: Mapping[str, Any]) -> None:
    """Raises InputError when the run's calibration cannot be read, or was made with other models or another rule."""
    entry = calibration_of(settings, values, settings.regions.records())
    if entry is None or entry.foreign is None:
        return
    assert isinstance(settings.pairs, ClipPairs)
    if not settings.pairs.foreign_calibration:
        raise InputError(
            f"pairs.calibration: {settings.pairs.calibration}: made with {entry.foreign}; audit this run for one of "
            "its own, or set `pairs.foreign_calibration: true`, which the dataset card then names"
        )
