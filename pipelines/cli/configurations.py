"""The commands that take a configuration, and the settings of each, imported when needed: some load torch."""

from __future__ import annotations

import importlib
from collections.abc import Collection
from typing import Literal, get_args

from maskmine.schemas.settings import Settings

Configuration = Literal["mine", "tune", "evaluate", "segment", "serve", "train-proposals"]
CONFIGURATIONS: tuple[Configuration, ...] = get_args(Configuration)

_CLASSES: dict[Configuration, tuple[str, str]] = {
    "mine": ("maskmine.pipelines.settings.mining", "Mining"),
    "tune": ("maskmine.tuning.clip.settings", "Tuning"),
    "evaluate": ("maskmine.tuning.evaluation.region_accuracy", "RegionEvaluation"),
    "segment": ("maskmine.tuning.segmentation.segmenter", "Segmenter"),
    "serve": ("maskmine.pipelines.serve.service", "Serving"),
    "train-proposals": ("maskmine.tuning.open_vocabulary.settings", "ProposalTraining"),
}


def guess_configuration(names: Collection[str]) -> Configuration:
    """The command whose configuration has most of these settings at its top, and fewest that they are not."""
    fits = {kind: len(settings_of(kind).model_fields.keys() & set(names)) for kind in CONFIGURATIONS}
    return max(CONFIGURATIONS, key=fits.__getitem__)  # of several the first, which is `mine`


def settings_of(configuration: Configuration) -> type[Settings]:
    """The settings class of a command's configuration."""
    module, name = _CLASSES[configuration]
    of: type[Settings] = getattr(importlib.import_module(module), name)
    return of
