"""Regions of earlier versions stay those of the same settings, so that no model sees their images again."""

from __future__ import annotations

import json
from typing import Annotated, Any

import pytest
from pydantic import Field, TypeAdapter

from maskmine.mining.regions import AnyProposals, Regions
from maskmine.schemas.settings import AddedLater, Settings, plain_values
from tests.support.paths import ROOT

EARLIER = ROOT / "tests" / "golden" / "region_settings.json"
"""What counts of settings with their defaults, as earlier versions wrote it: of `regions`, and of each proposer."""

LEAST = {"detectron2": {"config": "c", "weights": "w"}, "ground_truth": {"annotations": "a"}}


def counted() -> dict[str, Any]:
    kinds = [kind for kind in json.loads(EARLIER.read_text()) if kind != "regions"]
    trees = {kind: {"kind": kind, **LEAST.get(kind, {"checkpoint": "c"})} for kind in kinds}
    proposals = {kind: TypeAdapter(AnyProposals).validate_python(tree) for kind, tree in trees.items()}
    regions = plain_values(Regions.model_validate({"proposals": trees["maskformer"], "clip": {"model": "m"}}))
    del regions["proposals"]
    return {"regions": regions, **{kind: plain_values(settings) for kind, settings in proposals.items()}}


def test_settings_that_are_new_leave_the_regions_of_earlier_versions_current() -> None:
    earlier, now = json.loads(EARLIER.read_text()), json.loads(json.dumps(counted()))
    assert now == earlier, "mark a new setting AddedLater(), with what earlier versions did as its default"


class Inner(Settings):
    factor: float = 2.0


class Newer(Settings):
    old: int = 1
    number: Annotated[float, AddedLater()] = 1.5
    switch: Annotated[bool, AddedLater()] = True
    words: Annotated[tuple[str, ...], AddedLater(), Field(default_factory=lambda: ("a",))]
    inner: Annotated[Inner, AddedLater()] = Inner()
    nothing: Annotated[str | None, AddedLater()] = None


@pytest.mark.parametrize(
    "changes",
    [{"number": 2.5}, {"switch": False}, {"words": ()}, {"inner": Inner(factor=3.0)}, {"nothing": "something"}],
    ids=str,
)
def test_a_setting_that_was_added_later_counts_where_it_is_not_its_default(changes: dict[str, Any]) -> None:
    assert plain_values(Newer()) == {"old": 1}
    assert plain_values(Newer(**changes)).keys() == {"old", *changes}
