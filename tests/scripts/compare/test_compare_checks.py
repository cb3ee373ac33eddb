"""What checks are worth, on a small world whose verifier is known by heart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maskmine.mining.models.clip import Clip
from maskmine.mining.verifiers.checks import Check
from maskmine.mining.verifiers.open_maskformer import OpenMaskFormerVerifier
from maskmine.scripts.compare import checks
from maskmine.scripts.compare.checks import compare_checks, demo_verifiers, truth_says
from maskmine.scripts.compare.scores import World, find_mined, judge_images, judge_pairs


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return find_mined(tmp_path_factory.mktemp("checks"), seed=41, scenes=30)


def test_the_truth_knows_more_than_any_score(world: World) -> None:
    said = truth_says(list(judge_images(world, world.rule)))
    right_N = judge_pairs(world, world.rule).right_N == 1
    assert set(said.presence_N) == {0.0, 1.0}
    assert said.presence_N[right_N].all()
    assert not said.agreement_N[said.presence_N == 0].any()
    # boxes of masks that agree by half agree nearly always
    assert (said.agreement_N[right_N] >= 0.5).mean() > 0.95
    assert (said.agreement_N[~right_N] >= 0.5).mean() < 0.2


def test_a_verifier_that_knows_nothing_adds_nothing_and_one_that_says_all_is_right_has_no_threshold(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def verify(rgb_3HW: Any, *, nouns: list[str], **_: Any) -> list[Check]:
        return [Check(0.5, 1.0) for _ in nouns]

    monkeypatch.setattr(OpenMaskFormerVerifier, "open", lambda self, *, device: verify)
    monkeypatch.setattr(checks, "_fitted", lambda judged, *_: np.zeros(len(judged.pairs)))
    lines = {(line.rule, line.score): line.mean(0.9) for line in compare_checks([world], demo_verifiers(None))}
    assert lines["open MaskFormer", "presence"] == lines["no verifier", "none"]
    assert lines["open MaskFormer", "evidence, agreement ≥ 0.5"] == lines["no verifier", "evidence"]
    assert (lines["the truth (boxes)", "agreement"] or 0) > 0.9


def test_a_second_clip_is_one_of_the_verifiers(tmp_path: Path) -> None:
    second = Clip(model=str(tmp_path))
    assert [one.kind for one in demo_verifiers(second).values()] == ["open_maskformer", "clip"]
