"""Calibrations: what their coefficients come to, files that are none, and pairs that get their confidence."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maskmine.mining.models.embeddings import pack
from maskmine.mining.pairs import ClipPairs, TextSide
from maskmine.mining.scores.calibration import CALIBRATED, Calibration, calibrated_features, read_calibration
from maskmine.mining.selection import keep_pair
from maskmine.schemas.errors import InputError
from maskmine.schemas.mask import Mask
from maskmine.schemas.rows import Noun, NounsRow, Pair, Region, RegionsRow

MEASURED = {
    "precision": {"value": 0.7, "low": 0.6, "high": 0.8},
    "precision_written": None,
    "calibration_error": 0.02,
    "brier": 0.06,
}
STORED: dict[str, Any] = {
    "version": 1,
    "features": ["evidence", "score"],
    "means": [1.0, 0.5],
    "scales": [2.0, 0.25],
    "coefficients": [3.0, 1.0],
    "intercept": 0.5,
    "run": "0" * 64,
    "folder": "audited",
    "made_by": {"clip": "c", "proposals": "p", "rule": {"pairs.rule": "best_region_per_noun"}},
    "measured_on": ["coco"],
    "judged_by": "verdicts",
    "reviewers": ["ann"],
    "verdicts": {"right": 70, "wrong_noun": 30},
    "seed": 0,
    "measured": MEASURED,
    "target_precision": None,
    "min_confidence": None,
}
PAIR = Pair(
    noun="dog",
    lemma="dog",
    caption=0,
    start=0,
    end=3,
    region=0,
    similarity=0.3,
    margin=0.1,
    rank=0,
    lift=0.1,
    lead=0.1,
    gap=0.1,
    agreement=0.2,
    separability=0.9,
    evidence=2.0,
)


def stored(folder: Path, **changes: Any) -> str:
    path = folder / "calibration.json"
    path.write_text(json.dumps(STORED | changes))
    return str(path)


def test_the_confidence_is_the_logistic_function_of_the_standardised_features(tmp_path: Path) -> None:
    calibration = read_calibration(stored(tmp_path))
    (pair,) = calibration.add_confidence([PAIR], [0.75])
    log_odds = 0.5 + 3.0 * (2.0 - 1.0) / 2.0 + 1.0 * (0.75 - 0.5) / 0.25
    assert pair.confidence == round(1 / (1 + np.exp(-log_odds)), 6)


def test_a_pair_without_a_feature_has_no_confidence_and_extremes_are_finite(tmp_path: Path) -> None:
    calibration = read_calibration(stored(tmp_path))
    pairs = [replace(PAIR, evidence=None), replace(PAIR, evidence=1e9), replace(PAIR, lift=None)]
    without, certain, other = calibration.add_confidence(pairs, [0.5] * 3)
    assert (without.confidence, certain.confidence) == (None, 1.0)
    assert other.confidence is not None  # this calibration does not use lift


def test_the_columns_are_the_evidence_and_then_the_features() -> None:
    (row,) = calibrated_features([PAIR], [0.75])
    assert dict(zip(CALIBRATED, row.tolist(), strict=True)) == {
        "evidence": 2.0,
        "lift": 0.1,
        "lead": 0.1,
        "gap": 0.1,
        "agreement": 0.2,
        "separability": 0.9,
        "score": 0.75,
    }


def test_a_calibration_reads_what_it_writes(tmp_path: Path) -> None:
    calibration = read_calibration(stored(tmp_path))
    (tmp_path / "again.json").write_text(calibration.as_text())
    assert read_calibration(str(tmp_path / "again.json")) == calibration


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"version": 2}, "`version` is 2, this maskmine reads 1"),
        ({"features": ["evidence", "charm"]}, "feature `charm` is none of evidence, lift"),
        ({"means": [1.0]}, "`means` needs a number for each of the 2 features"),
        ({"scales": [0.0, 1.0]}, "`scales.0`: input should be greater than 0"),
        ({"intercept": "0.5"}, "`intercept`: input should be a valid number"),
        ({"surprise": 1}, "`surprise`: extra inputs are not permitted"),
    ],
)
def test_a_file_that_is_no_calibration_is_refused_in_one_line(
    tmp_path: Path, changes: dict[str, Any], fault: str
) -> None:
    with pytest.raises(InputError) as caught:
        read_calibration(path := stored(tmp_path, **changes))
    assert fault in str(caught.value)
    assert str(caught.value).startswith(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "fault"), [(b"{", "not valid JSON"), (b"[]", "not a calibration"), (b"\xff", "not valid JSON")]
)
def test_a_file_of_another_form_is_refused(tmp_path: Path, content: bytes, fault: str) -> None:
    (tmp_path / "calibration.json").write_bytes(content)
    with pytest.raises(InputError, match=fault):
        read_calibration(str(tmp_path / "calibration.json"))
    with pytest.raises(InputError, match="no such file"):
        read_calibration(str(tmp_path / "none.json"))


def test_the_rule_gives_its_pairs_a_confidence_where_they_have_evidence(tmp_path: Path) -> None:
    mask = Mask.from_array(np.ones((4, 4), np.uint8))
    vector = pack(np.array([1.0, 0.0], np.float32))
    region = Region(mask=mask, box_xyxy=(0, 0, 4, 4), area_px=16, score=1.0, label=None, embedding=vector)
    regions = RegionsRow(image_id="1", sha256="", height_px=4, width_px=4, regions=(region,), rejection=None)
    nouns = NounsRow("1", (Noun(text="dog", lemma="dog", caption=0, start=0, end=3),), (), None)
    settings = ClipPairs(calibration=stored(tmp_path, features=["score"], means=[0], scales=[1], coefficients=[2]))
    (row,) = settings.open()([nouns], [regions], TextSide({"dog": vector}))
    assert row.pairs[0].confidence == round(1 / (1 + np.exp(-2.5)), 6)


def test_pairs_below_the_least_confidence_or_without_one_are_not_written() -> None:
    settings = ClipPairs(calibration="calibration.json", min_confidence=0.8)
    keep = keep_pair(settings, images_of_noun={"dog": 1}, last_kept={})
    values = (0.8, 0.799999, None)
    assert [keep("1", 0, replace(PAIR, confidence=value)) for value in values] == [True, False, False]


def test_a_least_confidence_needs_a_calibration() -> None:
    with pytest.raises(ValueError, match=r"min_confidence` needs `pairs\.calibration`"):
        ClipPairs(min_confidence=0.5)


def test_scores_of_other_models_or_of_another_rule_are_told_apart() -> None:
    made_by = Calibration.model_validate_json(json.dumps(STORED)).made_by
    assert made_by.difference(made_by) is None
    assert made_by.difference(made_by.model_copy(update={"clip": "other"})) == "another CLIP"
    assert made_by.difference(made_by.model_copy(update={"proposals": None})) == "another proposer"
    assert made_by.difference(made_by.model_copy(update={"rule": {}})) == "another `pairs.rule`"
