"""An audit of a finished run: how many of its pairs are right, and a calibration that says how sure each pair is.

Shapes: N judged pairs, F features as in `CALIBRATED`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from maskmine.mining.evaluation.stratified import (
    Estimate,
    ReliabilityBin,
    Stratum,
    brier_score,
    calibration_error,
    reliability,
    stratified_share,
)
from maskmine.mining.evaluation.verdicts import PairId
from maskmine.mining.scores.calibration import (
    CALIBRATED,
    CALIBRATION_VERSION,
    Calibration,
    Measured,
    MeasuredShare,
    calibrated_features,
)
from maskmine.mining.scores.statistics import Array
from maskmine.pipelines.audit.fit import cross_fitted, fit_calibration, too_few
from maskmine.pipelines.audit.judge import Judgements, by_truth, by_verdicts, name_of
from maskmine.pipelines.audit.population import Confidences, Kept, count_confidences
from maskmine.pipelines.audit.sample import PairSample, PairToJudge, StratumSize, draw_sample
from maskmine.pipelines.dataset.calibrations import made_by
from maskmine.pipelines.dataset.finished_run import FinishedRun
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.schemas.errors import InputError
from maskmine.schemas.wording import counted
from maskmine.tuning.tables import rounded

THRESHOLDS = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
_DIGITS = 6
_FIRST_WITH_EVIDENCE = 3  # format version
_LEAST_JUDGED = 0.75  # of the pairs up to one of the sample, for it to count as judged in its order


@dataclass(frozen=True)
class StratumReport:
    """A stratum: its size in the run, and the share of its pairs that is right."""

    name: str
    size: StratumSize
    right: Estimate


@dataclass(frozen=True)
class Fitted:
    """A calibration and what it does: reliability of cross-fitted confidences, and what thresholds keep.

    `missed` says that no threshold is expected to reach the precision that was asked for.
    """

    calibration: Calibration
    bins: tuple[ReliabilityBin, ...]
    kept: tuple[Kept, ...]
    without: int
    target: Kept | None
    missed: str | None


@dataclass(frozen=True)
class Audit:
    """What was found. `fitted` is None where nothing could be, and `no_calibration` then says why."""

    run: str
    judged_by: str
    sample: int
    words: Counter[str]
    every: Estimate
    written: Estimate
    strata: tuple[StratumReport, ...]
    fitted: Fitted | None
    no_calibration: str | None
    notes: tuple[str, ...]

    @property
    def pairs(self) -> int:
        """All pairs that the rule made."""
        return sum(stratum.size.pairs for stratum in self.strata)

    def as_json(self) -> dict[str, Any]:
        """Plain values for `--json`: the same run and verdicts, the same values."""
        fitted = self.fitted
        return {
            "run": self.run,
            "judged_by": self.judged_by,
            "sample": self.sample,
            "verdicts": dict(sorted(self.words.items())),
            "precision": {"every_pair": _estimate(self.every), "written": _estimate(self.written)},
            "strata": [
                {"name": s.name, "pairs": s.size.pairs, "written": s.size.written, "precision": _estimate(s.right)}
                for s in self.strata
            ],
            "calibration": fitted.calibration.model_dump(mode="json") if fitted else None,
            "reliability": [asdict(one) for one in fitted.bins] if fitted else [],
            "thresholds": [_kept(one) for one in fitted.kept] if fitted else [],
            "pairs_without_confidence": fitted.without if fitted else self.pairs,
            "target": _kept(fitted.target) if fitted and fitted.target else None,
            "no_calibration": self.no_calibration,
            "notes": list(self.notes),
        }


def audit_run(
    run: RunFolder,
    *,
    verdicts: str | None = None,
    truth: str | None = None,
    synonyms: str = "auto",
    size: int = 300,
    seed: int = 0,
    target_precision: float | None = None,
) -> Audit:
    """Audit a finished run by verdicts (those in its folder unless a path is given), or by `truth`.

    `target_precision` asks for the threshold of confidence that gives it. Raises IncompleteError when the run is not
    finished; InputError when there are no verdicts on its sample.
    """
    finished = FinishedRun.open_complete(run)
    sample = draw_sample(finished, size=size, seed=seed)
    if truth is not None:
        judgements = by_truth(finished, truth, synonyms=synonyms, sample=sample)
    else:
        judgements = by_verdicts(finished, verdicts, sample=sample)
    drawn, sample = sample, _judged_in_order(sample, judgements)
    words = Counter(word for pair in sample.pairs if (word := judgements.words.get(name_of(pair))) is not None)
    decided = [pair for pair in sample.pairs if judgements.right(name_of(pair)) is not None]
    if not decided:
        raise InputError(
            f"{run.root}: no verdict says right or wrong of the first pairs of the sample of --size {size} --seed "
            f"{seed}; judge it in its order, or give size and seed of the review"
        )
    every, written = (
        _estimate_all(sample, decided, judgements),
        _estimate_all(sample, decided, judgements, written=True),
    )
    measured = (_share(every), _share(written) if written.value is not None else None)
    judged = _Judged.of(sample, judgements)
    no_calibration = _why_none(finished, judgements) or too_few(*judged.counts)
    fitted = None
    if no_calibration is None:
        calibration, bins = _calibrate(finished, sample, judged, judgements, measured=measured, seed=seed)
        fitted = _apply(calibration, bins, count_confidences(finished, calibration), target_precision)
    return Audit(
        run=finished.name,
        judged_by=judgements.judged_by,
        sample=len(sample.pairs),
        words=words,
        every=every,
        written=written,
        strata=tuple(_by_stratum(sample, decided, judgements)),
        fitted=fitted,
        no_calibration=no_calibration,
        notes=(*_notes(drawn, sample, words, judgements), *judgements.notes),
    )


@dataclass(frozen=True)
class _Judged:
    """The pairs to fit to: the sample's in its order, then others. `weight_N` is 0 outside the sample."""

    names: tuple[PairId, ...]
    features_NF: Array
    right_N: Array
    weight_N: Array

    @classmethod
    def of(cls, sample: PairSample, judgements: Judgements) -> _Judged:
        stratum_of = {name_of(pair): pair.stratum for pair in sample.pairs}
        candidates = [*stratum_of, *sorted(set(judgements.words) - set(stratum_of))]
        decided = [name for name in candidates if judgements.right(name) is not None]
        found = [judgements.found[name] for name in decided]
        features_NF = calibrated_features([one.pair for one in found], [one.score for one in found])
        whole_N = np.flatnonzero(~np.isnan(features_NF).any(axis=1))
        names = tuple(decided[number] for number in whole_N)
        in_stratum = Counter(stratum_of[name] for name in names if name in stratum_of)
        weights = [
            sample.strata[stratum_of[name]].pairs / in_stratum[stratum_of[name]] if name in stratum_of else 0.0
            for name in names
        ]
        right_N = np.array([judgements.right(name) for name in names], np.float64)
        return cls(names, features_NF[whole_N], right_N, np.array(weights, np.float64))

    @property
    def counts(self) -> tuple[int, int]:
        """How many are right, and how many are wrong."""
        right = int(self.right_N.sum())
        return right, len(self.names) - right


def _why_none(finished: FinishedRun, judgements: Judgements) -> str | None:
    """Why a run's pairs cannot have a confidence at all."""
    if finished.manifest.setting("regions", "clip") is None or finished.manifest.setting("pairs", "rule") == "labels":
        return "the run was made without CLIP, so its pairs have no scores"
    if all(one.pair.evidence is None for one in judgements.found.values()):
        version = finished.manifest.format_version
        if version < _FIRST_WITH_EVIDENCE:
            return (
                f"the run is of format version {version}, without lift; run `maskmine mine` again, which runs no model"
            )
        return "no judged pair has evidence, as no noun has a level"
    return None


def _calibrate(
    finished: FinishedRun,
    sample: PairSample,
    judged: _Judged,
    judgements: Judgements,
    *,
    measured: tuple[MeasuredShare, MeasuredShare | None],
    seed: int,
) -> tuple[Calibration, list[ReliabilityBin]]:
    """A calibration, and the reliability of confidences that were cross-fitted."""
    fit = fit_calibration(judged.features_NF, judged.right_N)
    inside_N = judged.weight_N > 0
    probability_N = cross_fitted(judged.features_NF, judged.right_N)[inside_N]
    right_N, weight_N = judged.right_N[inside_N], judged.weight_N[inside_N]
    bins = reliability(probability_N, right_N, weight_N)
    manifest = finished.manifest
    sources = tuple(source.name for source in manifest.sources if source.role == "captions")
    calibration = Calibration(
        version=CALIBRATION_VERSION,
        features=CALIBRATED,
        means=tuple(fit.means_F.tolist()),
        scales=tuple(fit.scales_F.tolist()),
        coefficients=tuple(fit.coefficients_F.tolist()),
        intercept=fit.intercept,
        run=manifest.fingerprint,
        folder=finished.name,
        made_by=made_by({name: manifest.setting(name) for name in ("pairs", "regions", "vocabulary")}, manifest.models),
        measured_on=sources,
        judged_by=judgements.judged_by,
        reviewers=judgements.reviewers,
        verdicts=dict(sorted(Counter(judgements.words.values()).items())),
        seed=seed,
        measured=Measured(
            precision=measured[0],
            precision_written=measured[1],
            calibration_error=round(calibration_error(bins), _DIGITS),
            brier=round(brier_score(probability_N, right_N, weight_N), _DIGITS),
        ),
    )
    return calibration, bins


def _apply(
    calibration: Calibration, bins: Sequence[ReliabilityBin], confidences: Confidences, target_precision: float | None
) -> Fitted:
    kept = tuple(confidences.kept(threshold) for threshold in THRESHOLDS)
    target = missed = None
    if target_precision is not None:
        target = confidences.lowest_threshold(target_precision)
    if target_precision is not None and target is None:
        best = max((one.precision or 0.0 for one in (*kept, confidences.highest())), default=0.0)
        missed = (
            f"--target-precision {target_precision}: no threshold is expected to reach it, the best gives {best:.6f}; "
            "ask for less"
        )
    elif target is not None:
        update = {"target_precision": target_precision, "min_confidence": target.threshold}
        calibration = calibration.model_copy(update=update)
    return Fitted(calibration, tuple(bins), kept, confidences.without, target, missed)


def _estimate_all(
    sample: PairSample, decided: Sequence[PairToJudge], judgements: Judgements, *, written: bool = False
) -> Estimate:
    """The share of right pairs among all, or among those that are written."""
    of_interest = [pair for pair in decided if pair.written or not written]
    judged = Counter(pair.stratum for pair in of_interest)
    right = Counter(pair.stratum for pair in of_interest if judgements.right(name_of(pair)))
    sizes = {name: size.written if written else size.pairs for name, size in sample.strata.items()}
    return stratified_share([Stratum(size, judged[name], right[name]) for name, size in sizes.items() if size])


def _by_stratum(sample: PairSample, decided: Sequence[PairToJudge], judgements: Judgements) -> list[StratumReport]:
    judged = Counter(pair.stratum for pair in decided)
    right = Counter(pair.stratum for pair in decided if judgements.right(name_of(pair)))
    return [
        StratumReport(name, size, stratified_share([Stratum(size.pairs, judged[name], right[name])]))
        for name, size in sample.strata.items()
    ]


def _judged_in_order(sample: PairSample, judgements: Judgements) -> PairSample:
    """The sample up to its last pair before which most were judged: so far it is random whatever else was judged.

    A review of the least certain pairs first judges some of the sample by the way, which are no random ones.
    """
    judged, end = 0, 0
    for number, pair in enumerate(sample.pairs, start=1):
        if name_of(pair) in judgements.words:
            judged += 1
            if judged >= _LEAST_JUDGED * number:
                end = number
    return PairSample(sample.pairs[:end], sample.strata)


def _notes(drawn: PairSample, sample: PairSample, words: Counter[str], judgements: Judgements) -> list[str]:
    notes = []
    if rest := len(drawn.pairs) - len(sample.pairs):
        notes.append(f"still to be judged: {rest:,} of {counted(len(drawn.pairs), 'pair')} drawn, the last ones")
    if unjudged := len(sample.pairs) - words.total():
        notes.append(f"left out: {unjudged:,} of the first {counted(len(sample.pairs), 'pair')}, without a verdict yet")
    if outside := len(judgements.words) - words.total():
        notes.append(f"{counted(outside, 'verdict')} on other pairs than these random ones: a help to fit, no more")
    for word, why in (("cannot_say", "of which reviewers cannot say"), ("crowd", "in groups that were drawn as one")):
        if words[word]:
            notes.append(f"left out: {counted(words[word], 'pair')} {why}")
    return notes


def _share(estimate: Estimate) -> MeasuredShare:
    value = 0.0 if estimate.value is None else estimate.value
    return MeasuredShare(
        value=round(value, _DIGITS), low=round(estimate.low, _DIGITS), high=round(estimate.high, _DIGITS)
    )


def _estimate(estimate: Estimate) -> dict[str, Any]:
    values = {name: rounded(getattr(estimate, name)) for name in ("value", "low", "high")}
    return {**values, "judged": estimate.judged, "pairs_unseen": estimate.unseen}


def _kept(kept: Kept) -> dict[str, Any]:
    return {
        "min_confidence": kept.threshold,
        "pairs": kept.pairs,
        "expected_right": rounded(kept.expected_right),
        "expected_precision": rounded(kept.precision),
    }
