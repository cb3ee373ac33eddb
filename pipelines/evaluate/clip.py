"""`maskmine evaluate`: an evaluation by a configuration, with the noun frequencies of a mining run."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from maskmine.pipelines.dataset.finished_run import read_noun_counts
from maskmine.pipelines.run_folder.folder import read_folder

if TYPE_CHECKING:
    from maskmine.tuning.evaluation.region_accuracy import RegionEvaluation, RegionResults


def evaluate(
    settings: RegionEvaluation, *, tick: Callable[[int], None] = lambda regions: None
) -> tuple[RegionResults, dict[str, int] | None]:
    """The results, and the number of images of the run `mined` for each noun of its captions (None without a run).

    Raises InputError for faults of the settings, IncompleteError when that run has no vocabulary yet.
    """
    from maskmine.tuning.evaluation.region_accuracy import evaluate_regions

    # First, because it is quick: a wrong folder is reported before hours of evaluation.
    image_counts = read_noun_counts(read_folder(settings.mined)) if settings.mined else None
    return evaluate_regions(settings, tick=tick), image_counts
