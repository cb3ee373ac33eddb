"""The noun frequencies that an evaluation of a CLIP has of a mining run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from maskmine.pipelines.evaluate.clip import evaluate
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.schemas.errors import IncompleteError
from maskmine.schemas.rows import VocabularyRow
from maskmine.tuning.evaluation import region_accuracy
from maskmine.tuning.evaluation.region_accuracy import RegionEvaluation

IMAGES = {"cat": 7, "fire-hydrant": 1, "street": 3, "unheard": 9}


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The settings that were evaluated, on classes of no data set."""
    settings: list[Any] = []

    def examine(given: Any, *, tick: Callable[[int], None]) -> Any:
        settings.append(given)
        return SimpleNamespace(classes=("fire hydrant", "road, street", "yak", "cat"))

    monkeypatch.setattr(region_accuracy, "evaluate_regions", examine)
    return settings


def test_of_a_vocabulary_only_the_nouns_that_name_classes_are_kept(tmp_path: Path, evaluated: list[Any]) -> None:
    (tmp_path / "plan.json").write_text("{}")
    rows = [VocabularyRow(noun, images, images, None, noun) for noun, images in IMAGES.items()]
    RunFolder(str(tmp_path)).write_rows("vocabulary.parquet", rows=rows, row_type=VocabularyRow, fingerprint="")
    _, counts = evaluate(_mined(tmp_path))
    assert counts == {"cat": 7, "fire-hydrant": 1, "street": 3}
    assert evaluate(_mined(None))[1] is None


def test_a_run_without_a_vocabulary_is_told_before_anything_is_evaluated(tmp_path: Path, evaluated: list[Any]) -> None:
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(IncompleteError, match=r"vocabulary\.parquet: missing"):
        evaluate(_mined(tmp_path))
    assert evaluated == []


def _mined(run: Path | None) -> RegionEvaluation:
    return cast(RegionEvaluation, SimpleNamespace(mined=None if run is None else str(run)))
