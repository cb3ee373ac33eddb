"""An audit on the terminal, and its files: the calibration and a reliability diagram."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Group, RenderableType
from rich.text import Text

from maskmine.mining.evaluation.pair_metrics import wilson_interval
from maskmine.mining.evaluation.stratified import Estimate, ReliabilityBin
from maskmine.mining.storage.files import put_whole
from maskmine.pipelines.audit.audit import Audit, Fitted
from maskmine.pipelines.audit.population import Kept
from maskmine.pipelines.run_folder.claim import writing
from maskmine.schemas.wording import counted
from maskmine.tuning.console import TextTable
from maskmine.tuning.tables import number_table, percent
from maskmine.tuning.ticks import percent_ticks

_DOTS_PER_INCH = 150  # sharp in a document
_INK, _FAINT, _BLUE, _ORANGE = "#282a30", "#62656e", "#0072b2", "#d55e00"  # the colours are Okabe and Ito's


def write_audit(audit: Audit, to: Path) -> list[str]:
    """Write the calibration and its diagram beside it, a PNG of the same name; returns both names, or none.

    Raises InputError when they cannot be written.
    """
    if audit.fitted is None:
        return []
    diagram = to.with_suffix(".png")
    with writing(to, remedy="give another path"):
        put_whole(to, audit.fitted.calibration.as_text().encode())
        put_whole(diagram, draw_reliability(audit.fitted))
    return [to.name, diagram.name]


def render_audit(audit: Audit, *, says_why: bool = True) -> RenderableType:
    """The precision, by stratum too, what thresholds keep, and notes on what was left out.

    `says_why`: also why there is no calibration, which the caller else says as an error.
    """
    blocks: list[RenderableType] = [_precision(audit), Text(), _strata(audit)]
    if audit.fitted is not None:
        blocks += [Text(), _thresholds(audit.fitted)]
    return Group(*blocks, Text(), *(Text(note) for note in _lines(audit, says_why=says_why)))


def draw_reliability(fitted: Fitted) -> bytes:
    """A reliability diagram of the cross-fitted confidences as a PNG, with the judged pairs of each bin below."""
    from matplotlib.figure import Figure

    bins, measured = fitted.bins, fitted.calibration.measured
    figure = Figure(figsize=(5.4, 6.2), dpi=_DOTS_PER_INCH, layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(7, 2))
    # Shares that are right, with the intervals that so few verdicts leave.
    above.plot((0, 1), (0, 1), color=_FAINT, linewidth=1, linestyle="--", label="perfectly calibrated")
    means, shares = [one.mean for one in bins], [one.right for one in bins]
    intervals = [wilson_interval(round(one.right * one.count), of=one.count) for one in bins]
    around = [
        [max(0.0, one.right - low) for one, (low, _) in zip(bins, intervals, strict=True)],
        [max(0.0, high - one.right) for one, (_, high) in zip(bins, intervals, strict=True)],
    ]
    label = "cross-fitted, with 95% intervals"
    above.errorbar(means, shares, around, color=_BLUE, fmt="o", capsize=3, linewidth=1.2, label=label)
    above.set(xlim=(0, 1), ylim=(0, 1.02))
    above.set_ylabel("share of the pairs that is right", color=_INK)
    error = percent(measured.calibration_error)
    sources = ", ".join(fitted.calibration.measured_on)
    above.set_title(f"expected calibration error {error} on pairs of {sources}", loc="left", color=_INK, fontsize=10)
    above.legend(frameon=False, loc="upper left", bbox_to_anchor=(0, -0.03), borderaxespad=0, ncols=2, fontsize=9)
    # How many there are.
    counts = [one.count for one in bins]
    bars = below.bar([_middle(one) for one in bins], counts, width=0.09, color=_ORANGE, alpha=0.8)
    below.bar_label(bars, color=_FAINT, fontsize=8)
    below.margins(y=0.2)
    below.set_ylabel("verdicts", color=_INK)
    below.set_xlabel("confidence", color=_INK)
    percent_ticks(below.xaxis)
    percent_ticks(above.yaxis)
    for axes in (above, below):
        axes.grid(color=_FAINT, alpha=0.2, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["bottom", "left"]].set_color(_FAINT)
        axes.tick_params(colors=_FAINT)
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def _middle(one: ReliabilityBin) -> float:
    return min(int(one.mean * 10), 9) / 10 + 0.05


def _precision(audit: Audit) -> TextTable:
    written = sum(stratum.size.written for stratum in audit.strata)
    table = number_table("right among", "pairs", "precision", "95% interval", "verdicts")
    for name, pairs, share in (("every pair", audit.pairs, audit.every), ("the written set", written, audit.written)):
        table.add_row(name, f"{pairs:,}", percent(share.value), _interval(share), f"{share.judged:,}")
    return table


def _strata(audit: Audit) -> TextTable:
    table = number_table("by stratum", "pairs", "written", "precision", "95% interval", "verdicts")
    for stratum in audit.strata:
        size, share = stratum.size, stratum.right
        counts = (f"{size.pairs:,}", f"{size.written:,}", percent(share.value), _interval(share), f"{share.judged:,}")
        table.add_row(stratum.name, *counts)
    return table


def _thresholds(fitted: Fitted) -> TextTable:
    table = number_table("pairs.min_confidence", "keeps", "share", "expected precision", "right ones that stay")
    everything = fitted.kept[0]
    for kept in (*fitted.kept, *([fitted.target] if fitted.target else [])):
        chosen = " (for the target)" if kept is fitted.target else ""
        share = percent(kept.pairs / everything.pairs) if everything.pairs else "–"
        cells = (f"{kept.pairs:,}", share, percent(kept.precision), _stay(kept, everything))
        table.add_row(f"{kept.threshold:g}{chosen}", *cells)
    return table


def _stay(kept: Kept, everything: Kept) -> str:
    return percent(kept.expected_right / everything.expected_right) if everything.expected_right else "–"


def _lines(audit: Audit, *, says_why: bool) -> Iterator[str]:
    words = ", ".join(f"{word.replace('_', ' ')} {count:,}" for word, count in sorted(audit.words.items()))
    yield f"of {counted(audit.sample, 'pair')} drawn at random, judged by {audit.judged_by}: {words}"
    if audit.fitted is not None:
        measured = audit.fitted.calibration.measured
        yield (
            f"expected calibration error {percent(measured.calibration_error)} (10 bins; Naeini et al., 2015), "
            f"Brier score {measured.brier:.4f}, both cross-fitted"
        )
        if audit.fitted.without:
            yield f"without a confidence, as the noun has no level: {counted(audit.fitted.without, 'pair')}"
    if says_why and audit.no_calibration is not None:
        yield f"no calibration: {audit.no_calibration}"
    for share, of in ((audit.every, "pair"), (audit.written, "written pair")):
        if share.unseen:
            yield f"in strata without a verdict: {counted(share.unseen, of)}, of which the precision says nothing"
    yield from audit.notes


def _interval(share: Estimate) -> str:
    return f"{share.low:.1%} – {share.high:.1%}" if share.judged else "–"


def summary_lines(names: Sequence[str], fitted: Fitted) -> Iterator[str]:
    """What was written, and how it is used."""
    if names:
        yield f"{', '.join(names)}: use the JSON as `pairs.calibration`"
    if fitted.target is not None:
        yield (
            f"pairs.min_confidence: {fitted.target.threshold:g} keeps {counted(fitted.target.pairs, 'pair')}, of which "
            f"{percent(fitted.target.precision)} are expected to be right"
        )
