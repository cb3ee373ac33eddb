"""`maskmine evaluate`: an evaluation by a configuration, with the noun frequencies of a mining run."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from maskmine.mining.text.labels import label_names, plain_words
from maskmine.pipelines.dataset.finished_run import read_noun_counts
from maskmine.pipelines.run_folder.folder import read_folder

if TYPE_CHECKING:
    from maskmine.tuning.evaluation.region_accuracy import RegionEvaluation, RegionResults


def evaluate(
    settings: RegionEvaluation, *, tick: Callable[[int], None] = lambda regions: None
) -> tuple[RegionResults, dict[str, int] | None]:
    """The results, and in how many images the run `mined` says each noun that names a class (None without a run).

    Raises InputError for faults of the settings, IncompleteError when that run has no vocabulary yet.
    """
    from maskmine.tuning.evaluation.region_accuracy import evaluate_regions

    run = read_folder(settings.mined) if settings.mined else None
    if run is not None:  # first, because it is quick: a wrong folder is reported before hours of evaluation
        read_noun_counts(run, only=lambda noun: False)
    results = evaluate_regions(settings, tick=tick)
    if run is None:
        return results, None
    names = frozenset(name for class_ in results.classes for name in label_names(class_))
    return results, read_noun_counts(run, only=lambda noun: plain_words(noun) in names)
