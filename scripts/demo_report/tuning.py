"""What tuning on the pairs of a run won, as the page tells it: figures on held-out regions, the loss, pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from maskmine.mining.models.prompts_file import PromptsRecord, read_prompts
from maskmine.pipelines.dataset.finished_run import FinishedRun
from maskmine.pipelines.evaluate.clip import evaluate
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.schemas.errors import InputError
from maskmine.scripts.demo_report.images import data_uri
from maskmine.tuning.clip.data import open_sets
from maskmine.tuning.clip.settings import Data, Source
from maskmine.tuning.evaluation.region_accuracy import MASKED, UNMASKED, Example, RegionEvaluation, RegionResults
from maskmine.tuning.evaluation.report import group_by_frequency
from maskmine.tuning.training.log import LOG_FILE

_REGION_PX = 144


@dataclass(frozen=True, slots=True)
class ShownRegion:
    """A masked region as CLIP sees it, its class, and what CLIP took it for before and after tuning."""

    picture: str
    class_: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class NamedRow:
    """What a CLIP comes to on masked regions; `gain` is how many points a tuned one is above plain CLIP in top-1."""

    name: str
    top1: float | None
    top5: float | None
    by_class: float | None
    gain: float | None


@dataclass(frozen=True, slots=True)
class TuningReport:
    """What prompts learnt, and what plain CLIP and the tuned one, called `name`, make of regions.

    They learnt from `pairs` of the `mined` pairs. `losses` are steps with the loss of their batch; `frequencies` the
    classes by how often captions say them.
    """

    name: str
    pairs: int
    mined: int
    steps: int
    batch_size: int
    prompts: int
    findings: RegionResults
    frequencies: Mapping[str, Sequence[int]]
    losses: Sequence[tuple[int, float]]
    won: Sequence[ShownRegion]
    lost: Sequence[ShownRegion]

    @property
    def rows(self) -> list[NamedRow]:
        """Plain CLIP without and with masking, then what was tuned."""
        before = self.findings.masked[MASKED].accuracy() or 0.0
        return [
            NamedRow(
                name,
                hits.accuracy(),
                hits.accuracy(top=5),
                hits.macro(),
                None if name in (UNMASKED, MASKED) else 100 * ((hits.accuracy() or 0.0) - before),
            )
            for name, hits in self.findings.masked.items()
        ]


def report_tuning(examination: RegionEvaluation, *, run: RunFolder) -> TuningReport:
    """Examine the prompts that were tuned on the pairs of a finished run, the first ones that the examination names.

    Raises InputError when it names none, or when they learnt from other pairs.
    """
    name, path = _prompts_of(examination)
    prompts_PND, record = read_prompts(path)
    manifest = FinishedRun.open(run).manifest
    if record.shards != (manifest.fingerprint,):
        raise InputError(f"{path}: was tuned on other pairs than those of {run.root}; delete its folder and tune again")
    findings, said = evaluate(examination)
    losses = _read_losses(path.with_name(LOG_FILE))
    return TuningReport(
        name=name,
        pairs=_count_pairs(record, run=run),
        mined=manifest.totals.samples,
        steps=losses[-1][0] if losses else 0,
        batch_size=_batch_size(record),
        prompts=prompts_PND.numel(),
        findings=findings,
        frequencies=group_by_frequency(findings.classes, said) if said is not None else {},
        losses=losses,
        won=[_show(example) for example in findings.won],
        lost=[_show(example) for example in findings.lost],
    )


def _prompts_of(examination: RegionEvaluation) -> tuple[str, Path]:
    for name, tuned in examination.tuned.items():
        if tuned.prompts is not None:
            return name, Path(tuned.prompts)
    raise InputError("tuned: names no prompts; give some, as configs/evaluate-demo.yaml does")


def _count_pairs(record: PromptsRecord, *, run: RunFolder) -> int:
    """How many pairs of the run reach the thresholds of the tuning."""
    (source,) = record.settings["data"]["sources"]
    (pairs,) = open_sets(Data(sources=(Source(**source | {"folder": run.root}),)))
    return len(pairs.index)


def _batch_size(record: PromptsRecord) -> int:
    size: int = record.settings["prompts"]["batch_size"]
    return size


def _read_losses(path: Path) -> list[tuple[int, float]]:
    """Steps and losses of the last stage of a tuning's log."""
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); delete its folder and tune again") from error
    return [(row["step"], row["loss"]) for row in rows if row["stage"] == rows[-1]["stage"]]


def _show(example: Example) -> ShownRegion:
    picture = Image.fromarray(example.rgb_SS3).resize((_REGION_PX, _REGION_PX), Image.Resampling.BICUBIC)
    return ShownRegion(data_uri(picture), example.class_, example.plain, example.tuned)
