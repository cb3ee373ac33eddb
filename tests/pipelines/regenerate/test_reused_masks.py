"""Masks that an earlier run has are taken where they are proven to be the same, and encoded anew everywhere else."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from maskmine.mining import shards
from maskmine.mining.evaluation.verdicts import write_verdicts
from maskmine.pipelines.engines.local import LocalEngine
from maskmine.pipelines.mine import mine
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.pipelines.settings.mining import load_mining
from maskmine.schemas.mask import Mask
from maskmine.schemas.rows import ImageRow, Pair, PairsRow, Proposal, ProposalsRow, VerdictRow
from tests.support import toy
from tests.support.conformance import hashes_of_data
from tests.support.runs import Recorder, run_toy

pytestmark = pytest.mark.usefixtures("one_tagger")

JPG = "shards.image_format=jpg"


@pytest.fixture
def world(tmp_path: Path) -> Path:
    world = toy.write_toy_world(tmp_path / "world")
    content = json.loads((world / "captions.json").read_text())
    for one in content["annotations"]:
        one["caption"] = f"Here: {one['caption'].lower()}"
    (world / "others.json").write_text(json.dumps(content))
    return world


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of all masks that were encoded for a shard."""
    found: list[tuple[int, ...]] = []
    encode = shards.encode_mask

    def encodes(mask_HW: np.ndarray[Any, Any]) -> bytes:
        found.append(mask_HW.shape)
        return encode(mask_HW)

    monkeypatch.setattr(shards, "encode_mask", encodes)
    return found


def again(world: Path, old: RunFolder, *overrides: str) -> RunFolder:
    others = f"captions.annotations={world / 'others.json'}"
    config = toy.write_config(world, out=world / "new")
    settings = load_mining(str(config), overrides=[others, JPG, *overrides])
    mine(settings, engine=LocalEngine(), observer=Recorder(), regions_from=old.root)
    return RunFolder(settings.out)


def plainly(world: Path, *overrides: str) -> RunFolder:
    """The same set without an earlier run."""
    others = f"captions.annotations={world / 'others.json'}"
    return run_toy(toy.write_config(world, out=world / "plain"), others, JPG, *overrides)[0]


def test_no_mask_of_the_same_cells_is_encoded_again(world: Path, encoded: list[tuple[int, ...]]) -> None:
    old = run_toy(toy.write_config(world, out=world / "old"), JPG)[0]
    plain = hashes_of_data(plainly(world))
    encoded.clear()
    assert hashes_of_data(again(world, old)) == plain
    assert encoded == []


@pytest.mark.parametrize("change", ["shards.images_per_part=8", "shards.expand_ratio=2.5"])
def test_masks_of_other_cells_or_crops_are_encoded_anew(
    world: Path, encoded: list[tuple[int, ...]], change: str
) -> None:
    old = run_toy(toy.write_config(world, out=world / "old"), JPG)[0]
    plain = hashes_of_data(plainly(world, change))
    encoded.clear()
    assert hashes_of_data(again(world, old, change)) == plain
    assert encoded


def test_masks_of_an_encoder_that_was_built_otherwise_are_encoded_anew(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def by_pillow(mask_HW: np.ndarray[Any, Any]) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(mask_HW * 255).save(buffer, "PNG")
        return buffer.getvalue()

    with monkeypatch.context() as patch:
        patch.setattr(shards, "encode_mask", by_pillow)
        old = run_toy(toy.write_config(world, out=world / "old"), JPG)[0]
    assert hashes_of_data(again(world, old)) == hashes_of_data(plainly(world))


def test_a_corrected_mask_is_not_taken_for_the_proposed_one_of_the_same_box_and_area(world: Path) -> None:
    disc = toy.shape_mask("disc").copy()
    y, x = np.nonzero(disc)
    inside = (y > y.min()) & (y < y.max()) & (x > x.min()) & (x < x.max())
    hole = (y[inside][0], x[inside][0])
    corner = (y.min(), x.min())
    assert not disc[corner]
    drawn = disc.copy()
    drawn[hole], drawn[corner] = False, True
    proposed, corrected = Mask.from_array(disc), Mask.from_array(drawn)
    assert (proposed.box_xyxy, proposed.area_px) == (corrected.box_xyxy, corrected.area_px)
    row = VerdictRow(
        image_id="14",
        noun="disc",
        mask=proposed.digest,
        verdict="bad_mask",
        reviewer="ann",
        at="2026-01-31T12:00:00.000000+00:00",
        corrected_mask=corrected,
    )
    file = world / "verdicts.parquet"
    with file.open("wb") as to:
        write_verdicts(to, [row])
    old = run_toy(toy.write_config(world, out=world / "old"), JPG, f"shards.verdicts={file}")[0]
    assert hashes_of_data(again(world, old)) == hashes_of_data(plainly(world))


def test_a_mask_whose_name_another_of_its_image_has_is_encoded_anew() -> None:
    one, other = np.zeros((8, 8), bool), np.zeros((8, 8), bool)
    one[[2, 5], [2, 5]], other[[2, 5], [5, 2]] = True, True
    regions = tuple(
        Proposal(mask=Mask.from_array(mask), box_xyxy=(2, 2, 6, 6), area_px=2, score=0.5, label=None)
        for mask in (one, other)
    )
    found = ProposalsRow(image_id="1", sha256="a", height_px=8, width_px=8, regions=regions, rejection=None)
    pair = Pair(noun="dot", lemma="dot", caption=0, start=0, end=3, region=1, similarity=None, margin=None, rank=0)
    item = shards.ImageToWrite(ImageRow("1", None), ("dot",), found, PairsRow("1", (pair,), None), None)
    chosen = [shards.ChosenPair(0, pair, regions[1], None)]
    box = (2, 2, 6, 6)
    known = shards.KnownSamples({box: b"crop"}, {(box, shards.region_name(regions[1])): b"mask"})

    def cut(item: shards.ImageToWrite) -> bytes:
        result = shards.cut_samples(
            item,
            chosen,
            shards=shards.Shards(expand_ratio=1.0),
            read=lambda path: pytest.fail("decoded"),
            known=shards.Known(lambda image_id, sha256: known, lambda path: b""),
        )
        assert isinstance(result, list)
        return result[0][0].mask_png

    whole = replace(found, sha256=hashlib.sha256(b"").hexdigest())
    assert cut(replace(item, regions=whole)) == shards.encode_mask(regions[1].mask.to_array()[2:6, 2:6])
    assert cut(replace(item, regions=replace(whole, regions=(regions[1],)))) == b"mask"
