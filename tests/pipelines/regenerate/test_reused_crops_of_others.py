"""Crops of earlier runs that were corrected, that have grown, and of runs that are killed while they take them."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from maskmine.mining import shards
from maskmine.mining.evaluation.verdicts import write_verdicts
from maskmine.mining.images.child_decoder import Decoding
from maskmine.mining.images.crops import grow_box
from maskmine.pipelines.engines.local import LocalEngine
from maskmine.pipelines.mine import mine
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.pipelines.settings.mining import load_mining
from maskmine.schemas.mask import Mask
from maskmine.schemas.rows import VerdictRow
from tests.support import toy
from tests.support.conformance import hashes_of_data
from tests.support.growing import append_file, base_config, write_pieces
from tests.support.runs import Recorder, run_toy

pytestmark = pytest.mark.usefixtures("one_tagger")

IMAGES = len({image_id for image_id, _, _ in toy.PAIRS})
DRAWN = Mask.from_array(np.pad(np.ones((16, 32), np.bool_), ((30, 2), (8, 24))))
"""What a reviewer drew in place of the bar."""


@pytest.fixture
def world(tmp_path: Path) -> Path:
    world = write_pieces(tmp_path / "world")
    content = json.loads((world / "captions.json").read_text())
    for one in content["annotations"]:
        one["caption"] = f"Here: {one['caption'].lower()}"
    (world / "others.json").write_text(json.dumps(content))
    return world


@pytest.fixture
def cut(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The boxes of all crops that were cut."""
    boxes: list[tuple[int, ...]] = []
    encode = shards.encode_crop

    def encodes(image: object, crop: tuple[int, int, int, int], **options: object) -> bytes:
        boxes.append(crop)
        return encode(image, crop, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(shards, "encode_crop", encodes)
    return boxes


def mined(world: Path, name: str, *overrides: str, old: RunFolder | None = None, watch: Recorder | None = None) -> str:
    """The toy world with other captions, by the regions and crops of a run."""
    config = toy.write_config(world, out=world / name, shards={"images_per_part": 3, "image_format": "jpg"})
    config = config.rename(world / f"{name}.yaml")
    others = f"captions.annotations={world / 'others.json'}"
    settings = load_mining(str(config), overrides=[others, *overrides])
    regions_from = None if old is None else old.root
    mine(settings, engine=LocalEngine(), observer=watch or Recorder(), regions_from=regions_from)
    return settings.out


def grown(mask: Mask) -> tuple[int, ...]:
    """The box of a mask's crop."""
    return grow_box(mask.box_xyxy, ratio=1.2, height_px=toy.HEIGHT_PX, width_px=toy.WIDTH_PX)


def corrections(world: Path) -> str:
    """The override of a review that gave one pair's mask another shape, and left out another pair."""
    row = VerdictRow(
        image_id="12",
        noun="bar",
        mask=Mask.from_array(toy.shape_mask("bar")).digest,
        verdict="bad_mask",
        reviewer="ann",
        at="2026-01-31T12:00:00.000000+00:00",
        corrected_mask=DRAWN,
    )
    disc = Mask.from_array(toy.shape_mask("disc")).digest
    wrong = replace(row, image_id="11", noun="disc", mask=disc, verdict="wrong_noun", corrected_mask=None)
    file = world / "verdicts.parquet"
    with file.open("wb") as to:
        write_verdicts(to, [row, wrong])
    return f"shards.verdicts={file}"


@pytest.mark.parametrize("corrected", ["earlier", "new"])
def test_corrected_pairs_take_the_crops_of_their_own_boxes(
    world: Path, cut: list[tuple[int, ...]], corrected: str
) -> None:
    verdicts = [corrections(world)]
    of_old, of_new = (verdicts if corrected == one else [] for one in ("earlier", "new"))
    old = RunFolder(mined(world, "old", *of_old))
    plain = hashes_of_data(RunFolder(mined(world, "plain", *of_new)))
    cut.clear()
    new = mined(world, "new", *of_new, old=old)
    assert hashes_of_data(RunFolder(new)) == plain
    bar, disc = (grown(Mask.from_array(toy.shape_mask(shape))) for shape in ("bar", "disc"))
    assert sorted(cut) == sorted({"earlier": [bar, disc], "new": [grown(DRAWN)]}[corrected])


def test_a_set_that_has_grown_gives_the_crops_of_what_was_appended_too(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = {"images_per_part": 2, "image_format": "jpg"}
    old = run_toy(base_config(world, world / "old", shards=small))[0]
    for name in ("second", "third"):
        append_file(Path(old.root), world / f"{name}.json")
    plain = hashes_of_data(RunFolder(mined(world, "plain")))
    decoded, decode = [], Decoding.decode

    def decodes(self: Decoding, data: bytes, **options: int) -> object:
        decoded.append(data)
        return decode(self, data, **options)

    monkeypatch.setattr(Decoding, "decode", decodes)
    new = RunFolder(mined(world, "new", old=old))
    assert hashes_of_data(new) == plain
    assert 0 < len(decoded) < IMAGES


class DiesInShards(Recorder):
    """Kills its process at one of the images of the shards."""

    def __init__(self, images: int) -> None:
        super().__init__()
        self.left = images

    def on_records(self, step: str, records: int) -> None:
        self.left -= records if step == "shards" else 0
        if self.left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # so Python 3.12 comments on any fork
def test_a_run_that_is_killed_while_it_takes_crops_comes_to_the_same_bytes(
    world: Path, cut: list[tuple[int, ...]]
) -> None:
    old = RunFolder(mined(world, "old"))
    plain = hashes_of_data(RunFolder(mined(world, "plain")))
    pid = os.fork()
    if not pid:  # nothing but a plain exit may leave this branch
        try:
            mined(world, "new", old=old, watch=DiesInShards(4))
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert not Path(world, "new", "_SUCCESS").exists()
    tars, accounts = ({one.stem for one in Path(world, "new", "shards").glob(f"0*.{kind}")} for kind in ("tar", "json"))
    assert tars == accounts  # the one that it was writing has no name yet
    assert 0 < len(tars) < 3
    cut.clear()
    again = mined(world, "new", old=old)
    assert hashes_of_data(RunFolder(again)) == plain
    assert cut == []
    assert not [*Path(again, "shards").glob(".writing*")]
