"""Exports that hold the photographs: what is in them, and what becomes of photographs that are not there any more; and
where shards of exports end."""

from __future__ import annotations

import json
import re
import shutil
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from maskmine.mining.exports import photographs
from maskmine.mining.exports.filters import Selection
from maskmine.mining.exports.images import Pictures
from maskmine.pipelines.cli.main import run_app
from tests.support import toy
from tests.support.runs import run_toy
from tests.support.toy_shards import contents, export, halves

READERS_WARN = pytest.mark.filterwarnings("ignore")  # of much that is not ours


@pytest.fixture
def changing(tmp_path: Path) -> Path:
    """A finished run whose photographs a test may change; they lie in `images` beside it."""
    folder = toy.write_toy_world(tmp_path / "changing")
    run_toy(toy.write_config(folder))
    return folder / "run"


def read_labels(out: Path, split: str = "train") -> dict[str, list[tuple[str, np.ndarray[Any, Any]]]]:
    """The nouns and masks of each image, read as Ultralytics reads labels."""
    cv2 = pytest.importorskip("cv2", reason="OpenCV needs OpenGL's library (libgl1)", exc_type=ImportError)
    names = yaml.safe_load((out / "data.yaml").read_text())["names"]
    found: dict[str, list[tuple[str, np.ndarray[Any, Any]]]] = {}
    for path in sorted((out / "labels" / split).glob("*.txt")):
        (photograph,) = (out / "images" / split).glob(f"{path.stem}.*")
        with Image.open(photograph) as image:
            width_px, height_px = image.size
        for line in path.read_text().splitlines():
            number, *values = line.split()
            points_N2 = np.array(values, np.float32).reshape(-1, 2) * np.array([width_px, height_px], np.float32)
            mask_HW = np.zeros((height_px, width_px), np.uint8)
            cv2.fillPoly(mask_HW, [points_N2.astype(np.int32)], 1)
            found.setdefault(path.stem, []).append((names[int(number)], mask_HW > 0))
    return found


def test_yolo_labels_are_the_masks_and_the_photographs_lie_beside_them(mined: Path, tmp_path: Path) -> None:
    out = export(mined, tmp_path / "out", "yolo-seg")
    found = set()
    for image_id, pairs in read_labels(out).items():
        photograph = out / "images" / "train" / f"{image_id}.png"
        assert photograph.read_bytes() == (mined.parent / "images" / f"{int(image_id):012d}.png").read_bytes()
        for noun, mask_HW in pairs:
            shape = next(shape for _, known, shape in toy.PAIRS if known == noun)
            assert (mask_HW == toy.shape_mask(shape)).all()
            found.add((image_id, noun, shape))
    assert found == toy.PAIRS
    assert json.loads((out / "export.json").read_text())["counts"] == {
        "masks": len(toy.PAIRS),
        "masks_with_bridges": 0,
        "pixels_under_bridges": 0,
    }


def test_data_yaml_names_the_splits_and_each_photograph_lies_in_one(mined: Path, tmp_path: Path) -> None:
    out = export(mined, tmp_path / "out", "yolo-seg", selection=halves(), samples_per_piece=1)
    described = yaml.safe_load((out / "data.yaml").read_text())
    assert (described["train"], described["val"]) == ("images/train", "images/val")
    names = [path.stem for split in ("train", "val") for path in (out / "images" / split).iterdir()]
    assert sorted(names) == sorted({image_id for image_id, _, _ in toy.PAIRS})
    whole = yaml.safe_load((export(mined, tmp_path / "whole", "yolo-seg") / "data.yaml").read_text())
    assert whole["train"] == whole["val"] == "images/train"
    assert list(whole["names"].values()) == sorted({noun for _, noun, _ in toy.PAIRS})


@READERS_WARN
def test_hugging_face_shows_a_photograph_with_all_of_its_masks(mined: Path, tmp_path: Path) -> None:
    import datasets

    out = export(mined, tmp_path / "out", "hf-images", samples_per_piece=1)
    rows = datasets.load_dataset(str(out), cache_dir=str(tmp_path / "cache"))["train"]
    assert isinstance(rows.features["image"], datasets.Image)
    found = set()
    for row in rows:
        assert np.asarray(row["image"]).shape == (row["height_px"], row["width_px"], 3)
        for noun, mask, box, key in zip(row["nouns"], row["masks"], row["boxes"], row["keys"], strict=True):
            shape = next(shape for _, known, shape in toy.PAIRS if known == noun)
            assert ((np.asarray(mask) > 0) == toy.shape_mask(shape)).all()
            (ys,), (xs,) = np.nonzero(np.asarray(mask).any(1)), np.nonzero(np.asarray(mask).any(0))
            assert box == [xs[0], ys[0], xs[-1] + 1, ys[-1] + 1]
            assert key.startswith(f"{row['image_id']}-")
            found.add((row["image_id"], noun, shape))
    assert len(rows) == len({image_id for image_id, _, _ in toy.PAIRS})
    assert found == toy.PAIRS


def test_a_turned_photograph_is_stored_upright(tmp_path: Path) -> None:
    """As the proposals saw it: readers differ in whether they turn it."""
    folder = toy.write_toy_world(tmp_path / "world")
    path = folder / "images" / "000000000012.png"
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn to the right
    with Image.open(path) as image:
        turned = image.rotate(90, expand=True)
    turned.save(path, exif=exif)
    run_toy(toy.write_config(folder))
    out = export(folder / "run", tmp_path / "out", "yolo-seg", pictures=Pictures(image_format="png"))
    with Image.open(out / "images" / "train" / "12.png") as stored:
        assert stored.getexif() == {}
        assert (np.asarray(stored) == toy.draw(("bar",))).all()


def test_half_a_turn_which_the_sides_do_not_tell_is_made_too() -> None:
    exif, buffer = Image.Exif(), BytesIO()
    exif[0x0112] = 3
    Image.fromarray(toy.draw(("bar",))).rotate(180).save(buffer, "PNG", exif=exif)
    size = (toy.WIDTH_PX, toy.HEIGHT_PX)
    made = photographs._file(buffer.getvalue(), Pictures(image_format="png"), size, height_px=size[1], width_px=size[0])
    assert isinstance(made, tuple)
    assert (np.asarray(Image.open(BytesIO(made[1]))) == toy.draw(("bar",))).all()


def test_smaller_photographs_have_smaller_masks(mined: Path, tmp_path: Path) -> None:
    out = export(mined, tmp_path / "out", "yolo-seg", pictures=Pictures(max_side_px=32, image_format="png"))
    for image_id, pairs in read_labels(out).items():
        with Image.open(out / "images" / "train" / f"{image_id}.png") as image:
            image_HW3 = np.asarray(image).astype(int)
        for noun, mask_HW in pairs:
            shape = next(shape for _, known, shape in toy.PAIRS if known == noun)
            assert mask_HW.shape == (24, 32) == image_HW3.shape[:2]
            assert np.abs(image_HW3[mask_HW] - toy.COLOURS[shape]).mean() < 20


@pytest.mark.parametrize("to", ["yolo-seg", "hf-images"])
def test_a_photograph_that_is_gone_or_another_is_left_out_and_counted(changing: Path, tmp_path: Path, to: str) -> None:
    images = changing.parent / "images"
    (images / "000000000011.png").unlink()
    shutil.copy(images / "000000000013.png", images / "000000000012.png")
    (images / "000000000014.png").write_bytes(b"none")
    out = export(changing, tmp_path / "out", to)
    counts = json.loads((out / "export.json").read_text())["counts"]
    expected = {"images_left_out_missing_file": 1, "images_left_out_image_changed": 2, "pairs_left_out": 5}
    assert {name: counts[name] for name in counts if "left_out" in name} == expected
    assert "- images left out image changed: 2" in (out / "README.md").read_text()
    assert "000000000011" not in "".join(contents(out))


def test_without_any_photograph_it_is_one_line_and_no_folder(
    changing: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(changing.parent / "images")
    assert run_app(["export", str(changing), "--to", "hf-images", "--out", str(tmp_path / "out")]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.match(r"maskmine: --to hf-images: holds the photographs, .* \(missing_file: .*\); put them where", line)
    assert not (tmp_path / "out").exists()


def test_a_shard_for_each_part_leaves_the_others_alone_when_a_part_changes(scored: Path, tmp_path: Path) -> None:
    """And the shards of `webdataset` are then those of the run, byte for byte."""
    out = export(scored, tmp_path / "out", "webdataset", by_part=True)
    stored = sorted((scored / "shards").glob("*.tar"))
    assert [path.read_bytes() for path in sorted((out / "train").glob("*.tar"))] == [p.read_bytes() for p in stored]
    whole, less = (
        contents(export(scored, tmp_path / name, "hf", by_part=True, selection=Selection(min_similarity=least)))
        for name, least in (("whole", -1.0), ("less", 0.05))
    )
    shards = [f"data/train-{number:05d}-of-00003.parquet" for number in range(3)]
    assert [whole[name] == less[name] for name in shards] == [False, True, True]


def test_the_pairs_of_an_image_stay_in_one_shard(mined: Path, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    out = export(mined, tmp_path / "out", "hf-images", samples_per_piece=1)
    ids = [pq.read_table(path)["image_id"].to_pylist() for path in sorted((out / "data").iterdir())]
    assert [len(one) for one in ids] == [1, 1, 1, 1]


@READERS_WARN
def test_an_interrupted_export_of_photographs_comes_to_the_same_bytes(mined: Path, tmp_path: Path) -> None:
    from maskmine.pipelines.export.export import Export, export_run
    from maskmine.pipelines.run_folder.folder import read_folder

    whole = contents(export(mined, tmp_path / "whole", "yolo-seg", samples_per_piece=2))
    seen = 0

    def stop(more: int) -> None:
        nonlocal seen
        seen += more
        if seen >= 4:
            raise KeyboardInterrupt

    settings = Export(format="yolo-seg", samples_per_piece=2)
    with pytest.raises(KeyboardInterrupt):
        export_run(read_folder(str(mined)), settings, out=str(tmp_path / "out"), begin=lambda _: stop)
    assert not (tmp_path / "out" / "_SUCCESS").exists()
    assert contents(export(mined, tmp_path / "out", "yolo-seg", samples_per_piece=2)) == whole
