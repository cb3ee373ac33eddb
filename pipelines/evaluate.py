"""`maskmine evaluate`: an evaluation as a configuration describes it, with what a mining run knows of its nouns."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pipelines.run_folder import read_folder

if TYPE_CHECKING:
    from tuning.evaluation import Examination, Findings


def evaluate(
    settings: Examination, *, tick: Callable[[int], None] = lambda regions: None
) -> tuple[Findings, dict[str, int] | None]:
    """The findings, and in how many images of the run `mined` captions say each noun (None without such a run).

    Raises InputError for faults of the settings, IncompleteError when that run has no vocabulary yet.
    """
    from tuning.evaluation import examine

    said = _said(settings.mined) if settings.mined else None  # first: it is quick, and a wrong folder is told at once
    return examine(settings, tick=tick), said


def _said(folder: str) -> dict[str, int]:
    vocabulary = read_folder(folder).read_table("vocabulary.parquet")
    return dict(zip(vocabulary["noun"].to_pylist(), vocabulary["images"].to_pylist(), strict=True))
