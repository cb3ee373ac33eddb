"""Pairs out to annotation tools and back: what people say and draw is in the set, to the pixel, and no model runs."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from maskmine.mining.evaluation.verdicts import read_verdicts
from maskmine.mining.exports.coco import whole_mask
from maskmine.pipelines.cli.main import run_app
from maskmine.pipelines.dataset.finished_run import FinishedRun
from maskmine.pipelines.dataset.verify import verify_run
from maskmine.pipelines.evaluate.pairs import evaluate_pairs
from maskmine.pipelines.export.export import Export, export_run
from maskmine.pipelines.review.import_verdicts import Imported, import_verdicts
from maskmine.pipelines.review.store import Store, read_stored
from maskmine.pipelines.run_folder.folder import VERDICTS_FOLDER, RunFolder
from maskmine.schemas.annotation_tools import PairId, pair_line, parse_pair_line
from maskmine.schemas.errors import Exit, InputError
from maskmine.schemas.mask import Mask
from maskmine.schemas.rows import SampleRow
from maskmine.schemas.sample import WHOLE_VERSION, record_keys
from maskmine.scripts.compare.annotation_tools import FORMS, Array, Form, Given, answer
from tests.support import toy
from tests.support.runs import hashes, run_toy, samples

pytestmark = pytest.mark.usefixtures("one_tagger")

DRAWN = np.zeros((toy.HEIGHT_PX, toy.WIDTH_PX), bool)
DRAWN[3:40, 5:50] = True
DRAWN[10:20, 10:20] = False


SHARDS = {"images_per_part": 3, "image_format": "png"}


@pytest.fixture(scope="module")
def mined(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world and the run that mined it."""
    folder = toy.write_toy_world(tmp_path_factory.mktemp("mined"))
    run_toy(toy.write_config(folder, shards=SHARDS))
    return folder


@pytest.fixture
def config(mined: Path, tmp_path: Path) -> Path:
    """The configuration of a copy of the run."""
    shutil.copytree(mined / "run", tmp_path / "run")
    return toy.write_config(mined, out=tmp_path / "run", shards=SHARDS)


def pair(image_id: str, noun: str, shape: str) -> PairId:
    return image_id, noun, Mask.from_array(toy.shape_mask(shape)).digest


GIVEN: Mapping[PairId, Given] = {
    pair("11", "square", "square"): Given("right"),
    pair("11", "disc", "disc"): Given("bad mask", mask_HW=DRAWN),
    pair("12", "bar", "bar"): Given("wrong noun", noun="Stick"),
    pair("13", "bar", "bar"): Given("wrong noun", noun="square"),
    pair("13", "square", "square"): Given("bad mask"),
    pair("14", "discs", "disc"): Given("wrong noun"),
}


def judge(pair: PairId, seen_HW: Array) -> Given | None:
    return GIVEN.get(pair)


def exported(run: RunFolder, form: str, to: Path, **pictures: Any) -> Path:
    name = "cvat" if form.startswith("cvat") else form
    export_run(run, Export.model_validate({"format": name, "pictures": pictures}), out=str(to))
    return to


def judged(run: RunFolder, form: Form, folder: Path, judge: Any = judge) -> Path:
    return answer(form, exported(run, form, folder / "export"), judge, to=folder / "answers")


def setting(run: RunFolder) -> str:
    return f"shards.verdicts={run.path(VERDICTS_FOLDER)}"


def written(run: RunFolder) -> dict[str, tuple[SampleRow, Mask]]:
    finished = FinishedRun.open(run)
    return {row.key: (row, whole_mask(finished.sample(row))) for row in samples(run)}


@pytest.mark.parametrize("form", FORMS)
def test_what_people_say_and_draw_is_in_the_set_to_the_pixel(config: Path, tmp_path: Path, form: Form) -> None:
    run, _, _ = run_toy(config)
    before = written(run)
    seen: dict[PairId, Array] = {}

    def look(pair: PairId, seen_HW: Array) -> Given | None:
        seen[pair] = seen_HW
        return GIVEN.get(pair)

    imported = import_verdicts(run, str(judged(run, form, tmp_path, look)))
    assert set(seen) == {pair(*one) for one in toy.PAIRS}
    for (_, _, digest), mask_HW in seen.items():
        assert Mask.from_array(mask_HW).digest == digest
    assert imported.taken == {"bad_mask": 2, "right": 1, "wrong_noun": 3}
    assert imported.corrected == {"mask": 1, "noun": 2}
    assert (imported.unknown, imported.unreadable, imported.contradictions, imported.refused) == (0, 0, 0, {})

    _, _, recorder = run_toy(config, setting(run))
    assert recorder.steps == ["shards"]
    after = written(run)
    assert {(row.image_id, row.noun) for row, _ in after.values()} == {
        ("11", "square"),
        ("11", "disc"),
        ("12", "stick"),
        ("13", "square"),
        ("14", "disc"),
    }
    by_noun = {(row.image_id, row.noun): (row, mask) for row, mask in after.values()}
    row, mask = by_noun["11", "disc"]
    np.testing.assert_array_equal(mask.to_array(), DRAWN)
    assert (row.corrected, row.box_xyxy, row.area_px) == (("mask",), (5, 3, 50, 40), int(DRAWN.sum()))
    assert row.caption[row.start : row.end] == "disc"
    stick, mask = by_noun["12", "stick"]
    assert (stick.corrected, stick.start, stick.end, stick.lemma) == (("noun",), 0, 0, "stick")
    assert mask == before[stick.key][1]
    said = by_noun["13", "square"][0]
    assert said.caption[said.start : said.end] == "square"
    for key in ("11-000", "14-001"):
        if key in after:
            assert after[key][0].corrected == ()
            assert after[key][1] == before[key][1]
    assert list(verify_run(run)) == []
    record = FinishedRun.open(run).sample(row).record
    assert record.keys() == record_keys(WHOLE_VERSION)
    assert (record["corrected"], record["similarity"], record["rank"]) == (["mask"], None, row.rank)


def test_the_card_and_the_manifest_count_verdicts_and_corrections(config: Path, tmp_path: Path) -> None:
    run, _, _ = run_toy(config)
    import_verdicts(run, str(judged(run, "cvat", tmp_path)))
    run_toy(config, setting(run))
    stored = FinishedRun.open(run).manifest
    assert stored.format_version == WHOLE_VERSION
    assert stored.settings["shards"]["verdicts"]["verdicts"] == {"bad_mask": 2, "right": 1, "wrong_noun": 3}
    assert stored.settings["shards"]["verdicts"]["corrected"] == {"mask": 1, "noun": 2}
    with run.open("README.md") as file:
        card = " ".join(file.read().decode().split())
    assert "People judged 6 pairs: 2 bad mask, 1 right, 3 wrong noun." in card
    assert "They replaced the mask of 1 and the noun of 2:" in card


def test_the_same_file_again_is_the_same_file_and_its_set_has_the_same_bytes(config: Path, tmp_path: Path) -> None:
    run, _, _ = run_toy(config)
    file = judged(run, "cvat-coco", tmp_path)
    import_verdicts(run, str(file))
    run_toy(config, setting(run))
    before, verdicts = hashes(run.path("shards")), hashes(run.path(VERDICTS_FOLDER))
    assert len(verdicts) == 1
    import_verdicts(run, str(file))
    assert hashes(run.path(VERDICTS_FOLDER)) == verdicts
    assert run_toy(config, setting(run))[2].steps == []
    run_toy(config)
    run_toy(config, setting(run))
    assert hashes(run.path("shards")) == before


def test_a_pair_that_was_corrected_before_is_shown_so_and_right_keeps_it(config: Path, tmp_path: Path) -> None:
    run, _, _ = run_toy(config)
    import_verdicts(run, str(judged(run, "label-studio", tmp_path / "first")))
    run_toy(config, setting(run))
    seen: dict[PairId, Array] = {}

    def agree(pair: PairId, seen_HW: Array) -> Given | None:
        seen[pair] = seen_HW
        return Given("right")

    before = {key: (row.noun, mask) for key, (row, mask) in written(run).items()}
    file = judged(run, "cvat", tmp_path / "second", agree)
    assert ("11", "disc", Mask.from_array(DRAWN).digest) in seen
    imported = import_verdicts(run, str(file))
    assert (imported.taken, imported.corrected, imported.unknown) == ({"right": 5}, {"mask": 1, "noun": 2}, 0)
    run_toy(config, setting(run))
    assert {key: (row.noun, mask) for key, (row, mask) in written(run).items()} == before

    # A later word in a review, which shows pairs as they were mined, takes the correction back.
    Store(run, read_stored(run)).add(pair("12", "bar", "bar"), "right", reviewer="bob", seconds=None)
    run_toy(config, setting(run))
    assert ("12", "bar", ()) in {(row.image_id, row.noun, row.corrected) for row, _ in written(run).values()}


def test_evaluations_are_of_pairs_as_they_are_in_the_set(config: Path, tmp_path: Path) -> None:
    run, _, _ = run_toy(config)
    truth = str(config.parent / "instances.json")
    assert evaluate_pairs(run, truth=truth).precision.count == 7
    import_verdicts(run, str(judged(run, "cvat", tmp_path)))
    run_toy(config, setting(run))
    found = evaluate_pairs(run, truth=truth)
    # The disc's new mask is of no object, a bar is no square, and nobody knows sticks.
    assert (found.precision_of_all.count, found.precision_of_all.of) == (2, 5)
    assert found.metrics.unlabelled_nouns == {"stick": 1}
    assert found.precision_of_rule.count == 7


def test_corrected_pairs_pass_the_thresholds_of_exports_and_ground_only_what_is_said(
    config: Path, tmp_path: Path
) -> None:
    run, _, _ = run_toy(config)
    import_verdicts(run, str(judged(run, "cvat", tmp_path)))
    run_toy(config, setting(run))
    some = Export.model_validate({"format": "odvg", "selection": {"min_evidence": 99.0}})
    export_run(run, some, out=str(tmp_path / "odvg"))
    lines = [json.loads(line) for line in (tmp_path / "odvg" / "train.jsonl").read_text().splitlines()]
    phrases = [region["phrase"] for line in lines for region in line["grounding"]["regions"]]
    assert sorted(phrases) == ["disc", "square"], "the caption does not say the stick"
    assert len(lines) == 3


def table(path: Path, rows: list[dict[str, str]], *, encoding: str = "utf-8") -> str:
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", encoding=encoding, newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def line(pair: PairId, verdict: str, **more: str) -> dict[str, str]:
    return {"image_id": pair[0], "noun": pair[1], "mask": pair[2], "verdict": verdict, **more}


BAR, DISC = pair("12", "bar", "bar"), pair("11", "disc", "disc")


def taken(run: RunFolder, imported: Imported) -> dict[PairId, Any]:
    return {name: (row.verdict, row.corrected_noun) for name, row in read_verdicts(imported.file).latest.items()}


def test_a_table_is_held_against_the_run_and_each_fault_is_counted(config: Path, tmp_path: Path) -> None:
    run, _, _ = run_toy(config)
    runs = json.dumps({"size": [4, 4], "counts": Mask.from_array(np.eye(4)).counts.decode()})
    rows = [
        line(BAR, "right"),
        line(("12", "zebra", BAR[2]), "right"),
        line(("99", "bar", BAR[2]), "right"),
        line(BAR, "wrong noun", corrected_noun="café"),
        line(DISC, "bad mask", corrected_mask=runs),
        line(pair("13", "bar", "bar"), "wrong noun", corrected_noun="x" * 101),
        line(pair("13", "bar", "bar"), "perhaps"),
        line(pair("14", "disc", "disc"), "right", corrected_noun="DISC"),
    ]
    file = table(tmp_path / "some verdicts.csv", rows, encoding="cp1252")
    imported = import_verdicts(run, file, encoding="cp1252", reviewer="ann")
    assert taken(run, imported) == {
        BAR: ("wrong_noun", "café"),
        DISC: ("bad_mask", None),
        pair("13", "bar", "bar"): ("wrong_noun", None),
        pair("14", "disc", "disc"): ("right", None),
    }
    assert (imported.answers, imported.unknown, imported.unreadable, imported.contradictions) == (8, 2, 1, 1)
    assert imported.refused == {"mask": 1, "noun": 1}
    assert "a mask for 4 × 4 pixels, the image has 48 × 64" in "; ".join(imported.told)
    assert {row.reviewer for row in read_verdicts(imported.file).rows} == {"ann"}
    with pytest.raises(InputError, match="none of 1 answer can be used"):
        import_verdicts(run, table(tmp_path / "one.csv", [rows[3]], encoding="cp1252"))


@pytest.mark.parametrize(
    "text",
    [
        '{"size": [48, 64], "counts": "abc"}',
        '{"size": [1e9, 1e9], "counts": [1, 2]}',
        '{"size": "x", "counts": {"a": 1}}',
        "[[1, 2, 3]]",
        "null",
        "no JSON",
    ],
)
def test_a_mask_in_a_table_that_cannot_be_costs_the_correction_and_not_the_verdict(
    config: Path, tmp_path: Path, text: str
) -> None:
    run, _, _ = run_toy(config)
    imported = import_verdicts(run, table(tmp_path / "one.csv", [line(DISC, "bad mask", corrected_mask=text)]))
    assert taken(run, imported) == {DISC: ("bad_mask", None)}
    assert (imported.unreadable, imported.refused) == (0, {"mask": 1})
    assert "line 2: `corrected_mask` is no run lengths (" in imported.told[0]
    assert "indices" not in imported.told[0]
    assert "unpack" not in imported.told[0]


def test_tasks_that_nobody_answered_are_without_a_verdict(config: Path, tmp_path: Path) -> None:
    run, _, _ = run_toy(config)
    tasks = [{"data": {"pair": pair_line(one)}, "predictions": []} for one in (BAR, DISC)]
    (tmp_path / "train.json").write_text(json.dumps(tasks))
    with pytest.raises(InputError, match=r"none of 2 answers can be used.*2 without a verdict"):
        import_verdicts(run, str(tmp_path / "train.json"))


def test_keys_of_samples_name_pairs_too(config: Path, tmp_path: Path) -> None:
    run, _, _ = run_toy(config)
    rows = [{"key": "12-000", "verdict": "bad mask"}, {"key": "12-007", "verdict": "right"}]
    imported = import_verdicts(run, table(tmp_path / "keys.csv", rows))
    assert taken(run, imported) == {BAR: ("bad_mask", None)}
    assert imported.unknown == 1


@pytest.mark.parametrize("noun", ["", "  ", "a\tb\x00", "x" * 101])
def test_a_noun_that_cannot_be_costs_the_correction_and_not_the_verdict(
    config: Path, tmp_path: Path, noun: str
) -> None:
    run, _, _ = run_toy(config)
    content = {
        "images": [],
        "annotations": [{"id": 1, "image_id": 1, "pair": pair_line(BAR), "verdict": "wrong_noun", "noun": noun}],
    }
    (tmp_path / "labels.json").write_text(json.dumps(content))
    imported = import_verdicts(run, str(tmp_path / "labels.json"))
    assert taken(run, imported) == {BAR: ("wrong_noun", None)}
    assert imported.refused == {"noun": 1}


def test_who_draws_without_a_verdict_says_that_the_mask_was_bad(config: Path, tmp_path: Path) -> None:
    run, _, _ = run_toy(config)
    mended = {BAR: Given("unjudged", mask_HW=DRAWN), DISC: Given("unjudged", noun="ball")}
    imported = import_verdicts(run, str(judged(run, "cvat", tmp_path, lambda pair, seen_HW: mended.get(pair))))
    assert taken(run, imported) == {BAR: ("bad_mask", None), DISC: ("wrong_noun", "ball")}
    assert imported.unjudged == len(toy.PAIRS) - 2


def test_nothing_is_written_where_nothing_can_be_used(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, _, _ = run_toy(config)
    file = table(tmp_path / "others.csv", [line(("99", "bar", BAR[2]), "right")])
    for path, words in (
        (file, "none of 1 answer can be used"),
        (str(tmp_path / "nowhere.zip"), "no such file; give what Label Studio, CVAT or FiftyOne exported, or a CSV"),
        (str(tmp_path), "a folder"),
    ):
        assert run_app(["import-verdicts", run.root, path]) == Exit.BAD_INPUT
        told = capsys.readouterr().err.strip()
        assert words in told
        assert "\n" not in told
    assert run.names(VERDICTS_FOLDER) == []


def test_the_command_says_what_became_of_the_answers_and_what_to_do_next(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, _, _ = run_toy(config)
    file = str(judged(run, "label-studio", tmp_path))
    assert run_app(["import-verdicts", run.root, file]) == Exit.COMPLETE
    told = capsys.readouterr().out
    assert "6 pairs judged (2 bad mask, 1 right, 3 wrong noun)" in told
    assert "corrected: the mask of 1 pair\ncorrected: the noun of 2 pairs" in told
    assert told.endswith(f"maskmine mine CONFIG --set {setting(run)}\n")
    assert run_app(["import-verdicts", run.root, file, "--json"]) == Exit.COMPLETE
    assert json.loads(capsys.readouterr().out)["pairs"] == 6


# --- the exports ------------------------------------------------------------------------------------------------------


def test_fiftyone_gets_a_folder_and_gives_it_back(config: Path, tmp_path: Path) -> None:
    run, _, _ = run_toy(config)
    folder = exported(run, "fiftyone", tmp_path / "out", photographs="copy") / "train"
    content = json.loads((folder / "labels.json").read_text())
    names = {one["id"]: one["name"] for one in content["categories"]}
    sizes = {one["id"]: (one["height"], one["width"], one["file_name"]) for one in content["images"]}
    for one in content["annotations"]:
        height_px, width_px, name = sizes[one["image_id"]]
        with Image.open(folder / "data" / name) as image:
            assert image.size == (width_px, height_px)
        shown = Mask.from_coco(one["segmentation"], height_px=height_px, width_px=width_px)
        assert parse_pair_line(one["pair"]) == (name.partition(".")[0], names[one["category_id"]], shown.digest)
        assert one["iscrowd"] == 1, "else FiftyOne gives polygons back"
        one["verdict"] = "right"
    content["annotations"][0] |= {"verdict": "bad_mask", "segmentation": Mask.from_array(DRAWN).as_json()}
    (tmp_path / "labels.json").write_text(json.dumps(content))
    imported = import_verdicts(run, str(tmp_path / "labels.json"))
    assert (imported.taken, imported.corrected) == ({"bad_mask": 1, "right": 6}, {"mask": 1})


def test_photographs_are_copied_upright_and_named_as_browsers_need_them(tmp_path: Path) -> None:
    config = toy.write_config(toy.write_toy_world(tmp_path), shards=SHARDS)
    with Image.open(tmp_path / "images" / "000000000012.png") as image:
        turned = image.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90° clockwise
    turned.save(tmp_path / "images" / "000000000012.png", exif=exif)
    run, _, _ = run_toy(config)
    (tmp_path / "images" / "000000000011.png").unlink()
    folder = exported(run, "label-studio", tmp_path / "out", photographs="copy", prefix="/data/?d=")
    tasks = json.loads((folder / "train.json").read_text())
    assert {task["data"]["image"] for task in tasks} == {f"/data/?d=images/{n}.jpg" for n in (11, 12, 13, 14)}
    for task in tasks:
        with Image.open(folder / "images" / task["data"]["image"].rpartition("/")[2]) as image:
            assert image.size == (toy.WIDTH_PX, toy.HEIGHT_PX)
            shown = np.asarray(image.convert("RGB")).astype(int)
        shape = {"discs": "disc"}.get(task["data"]["noun"], task["data"]["noun"])
        inside = shown[toy.shape_mask(shape)].mean(axis=0)
        assert np.abs(inside - toy.COLOURS[shape]).max() < 30, "a missing photograph is the crops of its samples"
    assert (folder / "labels.xml").exists()
    plain = exported(run, "label-studio", tmp_path / "plain", prefix="https://host/a b/")
    names = {task["data"]["image"] for task in json.loads((plain / "train.json").read_text())}
    assert "https://host/a b/000000000012.png" in names
    assert not (plain / "images").exists()


def test_cvats_labels_have_the_attributes_of_its_masks(config: Path, tmp_path: Path) -> None:
    run, _, _ = run_toy(config)
    folder = exported(run, "cvat", tmp_path / "out")
    (label,) = json.loads((folder / "labels.json").read_text())
    assert [one["name"] for one in label["attributes"]] == ["verdict", "noun", "pair"]
    assert label["attributes"][0]["values"][0] == label["attributes"][0]["default_value"] == "unjudged"
    assert (label["name"], label["type"]) == ("pair", "mask")
    root = ElementTree.parse(folder / "train.xml").getroot()
    (told,) = root.findall("meta/task/labels/label")
    names = ["verdict", "noun", "pair"]
    assert [one.text for one in told.findall("attributes/attribute/name")] == names
    assert {tuple(one.get("name") for one in mask) for mask in root.iter("mask")} == {("noun", "verdict", "pair")}
    assert root.findtext("meta/task/size") == str(len(root.findall("image"))) == "4"
