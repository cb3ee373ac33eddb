"""Pairs of finished runs against ground truth: the numbers, the files of the command, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from maskmine.mining.evaluation.annotations import Annotations, read_annotations
from maskmine.mining.evaluation.pair_metrics import PairMetrics
from maskmine.pipelines.cli.main import run_app
from maskmine.pipelines.evaluate.pairs import Evaluation, evaluate_pairs, find_curves
from maskmine.pipelines.evaluate.pairs_report import write_evaluation
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.schemas.errors import InputError
from maskmine.schemas.rows import Pair, PairsRow
from tests.support import toy
from tests.support.paths import COCO_MINI as COCO
from tests.support.runs import hashes, run_toy


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = toy.write_toy_world(tmp_path_factory.mktemp("evaluate"))
    run_toy(toy.write_config(folder))
    return folder


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written without --to, and a result that lies in the working folder, are no matter between tests."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run(world: Path, tmp_path: Path) -> RunFolder:
    return RunFolder(str(shutil.copytree(world / "run", tmp_path / "run")))


@pytest.fixture
def truth(world: Path) -> str:
    return str(world / "instances.json")


def change_pairs(run: RunFolder, change: Callable[[str, Pair], Pair]) -> None:
    """Rewrite the pairs cells: `change` is given the image id and each pair."""
    for part in range(3):
        name = f"{part:05d}.parquet"
        rows = [
            replace(row, pairs=tuple(change(row.image_id, one) for one in row.pairs))
            for row in run.read_rows("pairs", name, row_type=PairsRow)
        ]
        fingerprint = run.read_fingerprint("pairs", name)
        assert fingerprint is not None
        run.write_rows("pairs", name, rows=rows, row_type=PairsRow, fingerprint=fingerprint)


def changed_truth(truth: str, to: Path, change: Callable[[dict[str, Any]], None]) -> str:
    tree = json.loads(Path(truth).read_text())
    change(tree)
    to.write_text(json.dumps(tree))
    return str(to)


def shares(evaluation: Evaluation) -> dict[str, tuple[int, int]]:
    metrics = evaluation.metrics
    named = {
        "precision": evaluation.precision,
        "wrong_object": metrics.share("wrong_object"),
        "background": metrics.share("background"),
    }
    return {name: (share.count, share.of) for name, share in {**named, "recall": metrics.recall}.items()}


def test_the_toy_worlds_pairs_are_all_right(run: RunFolder, truth: str) -> None:
    evaluation = evaluate_pairs(run, truth=truth)
    assert shares(evaluation) == {"precision": (7, 7), "wrong_object": (0, 7), "background": (0, 7), "recall": (7, 7)}
    assert evaluation.metrics.mean_iou("correct") == 1
    assert evaluation.images == {"covered": 8}
    assert [(group.name, group.precision.of) for group in evaluation.frequency] == [
        ("1 image", 1),  # discs
        ("2–9 images", 6),
        ("10–99 images", 0),
        ("≥ 100 images", 0),
    ]


def test_a_pair_with_the_wrong_region_costs_precision_and_recall(run: RunFolder, truth: str) -> None:
    change_pairs(run, lambda image, one: replace(one, region=0) if image == "11" else one)
    evaluation = evaluate_pairs(run, truth=truth)
    assert shares(evaluation) == {"precision": (6, 7), "wrong_object": (1, 7), "background": (0, 7), "recall": (6, 7)}
    assert evaluation.metrics.mean_iou("correct", "wrong_object", "background") == pytest.approx(6 / 7, abs=1e-6)


def test_the_threshold_for_half_of_the_pairs_is_the_one_known_by_hand(run: RunFolder, truth: str) -> None:
    scores = {"11": 0.9, "12": 0.8, "13": 0.7, "14": 0.1}
    change_pairs(run, lambda image, one: replace(one, similarity=scores[image], margin=1 - scores[image], region=0))
    similarity, margin = evaluate_pairs(run, truth=truth).curves
    assert [(p.threshold, p.kept, p.correct) for p in similarity.points] == [
        (0.9, 2, 1),
        (0.8, 3, 2),
        (0.7, 5, 3),
        (0.1, 7, 5),
    ]
    assert (similarity.half.threshold, similarity.setting) == (0.7, "pairs.min_similarity")
    assert (margin.half.threshold, margin.half.kept) == (0.3, 4)


def test_curves_are_over_all_pairs_and_over_those_of_known_nouns(run: RunFolder, truth: str, tmp_path: Path) -> None:
    scores = {"11": 0.6, "12": 0.9, "13": 0.8, "14": 0.1}
    change_pairs(run, lambda image, one: replace(one, similarity=scores[image], margin=0.5))
    evaluation = evaluate_pairs(run, truth=changed_truth(truth, tmp_path / "truth.json", forget_bars))
    of_all, known = evaluation.curves_of_all[0], evaluation.curves[0]
    assert [(p.threshold, p.kept, p.correct) for p in of_all.points] == [
        (0.9, 1, 0),  # the bar of image 12
        (0.8, 3, 1),
        (0.6, 5, 3),
        (0.1, 7, 5),
    ]
    assert [(p.threshold, p.kept, p.correct) for p in known.points] == [(0.8, 1, 1), (0.6, 3, 3), (0.1, 5, 5)]
    assert [(curve.half.threshold, curve.half.kept) for curve in (of_all, known)] == [(0.6, 5), (0.6, 3)]
    assert write_evaluation(evaluation, tmp_path / "to", run=run) == ["evaluation.json", "precision-coverage.png"]
    with Image.open(tmp_path / "to" / "precision-coverage.png") as both:
        stored = json.loads((tmp_path / "to" / "evaluation.json").read_text())
        assert len(stored["curves_of_all_pairs"]["similarity"]["points"]) == 4
        assert len(stored["curves"]["similarity"]["points"]) == 3
        write_evaluation(evaluate_pairs(run, truth=truth), tmp_path / "one", run=run)
        with Image.open(tmp_path / "one" / "precision-coverage.png") as one:
            assert one.width < both.width  # a panel for each, where they are not the same


def test_only_pairs_that_passed_the_filters_are_judged_and_the_others_are_missed(
    world: Path, run: RunFolder, truth: str
) -> None:
    run_toy(toy.write_config(world, out=Path(run.root)), "pairs.min_count=2")  # discs is said of one image only
    assert shares(evaluate_pairs(run, truth=truth)) == {
        "precision": (6, 6),
        "wrong_object": (0, 6),
        "background": (0, 6),
        "recall": (6, 7),
    }


def forget_bars(tree: dict[str, Any]) -> None:
    bar = toy.CATEGORIES["bar"]
    tree["categories"] = [category for category in tree["categories"] if category["id"] != bar]
    tree["annotations"] = [one for one in tree["annotations"] if one["category_id"] != bar]


def test_nouns_that_the_truth_does_not_know_are_wrong_among_all_pairs_and_else_counted_apart(
    run: RunFolder, truth: str, tmp_path: Path
) -> None:
    evaluation = evaluate_pairs(run, truth=changed_truth(truth, tmp_path / "truth.json", forget_bars))
    assert shares(evaluation)["precision"] == (5, 5)
    assert (evaluation.precision_of_all.count, evaluation.precision_of_all.of) == (5, 7)
    assert evaluation.as_json()["precision_of_all_pairs"]["share"] == pytest.approx(5 / 7, abs=1e-6)
    assert evaluation.unlabelled_nouns(9) == [("bar", 2)]
    assert shares(evaluation)["recall"] == (5, 5)


def test_images_that_the_truth_lacks_or_has_in_another_size_are_counted_apart(
    run: RunFolder, truth: str, tmp_path: Path
) -> None:
    def change(tree: dict[str, Any]) -> None:
        tree["images"] = [image for image in tree["images"] if image["id"] != 11]
        (twelve,) = [image for image in tree["images"] if image["id"] == 12]
        twelve["width"] += 1

    evaluation = evaluate_pairs(run, truth=changed_truth(truth, tmp_path / "truth.json", change))
    assert evaluation.images == {"covered": 6, "missing": 1, "other_size": 1}
    assert (shares(evaluation)["precision"], evaluation.uncovered_pairs) == ((4, 4), 3)


def test_a_truth_in_other_sizes_is_refused_though_an_image_without_regions_fits_any(
    run: RunFolder, truth: str, tmp_path: Path
) -> None:
    def enlarge(tree: dict[str, Any]) -> None:
        for image in tree["images"]:
            image["width"] *= 2

    larger = changed_truth(truth, tmp_path / "truth.json", enlarge)
    with pytest.raises(InputError, match=r"covers none of the 7 images of .* \(7 have another size there\)"):
        evaluate_pairs(run, truth=larger)


def test_an_annotation_without_a_mask_is_counted(run: RunFolder, truth: str, tmp_path: Path) -> None:
    def break_one(tree: dict[str, Any]) -> None:
        tree["annotations"][0]["segmentation"] = []

    evaluation = evaluate_pairs(run, truth=changed_truth(truth, tmp_path / "truth.json", break_one))
    assert evaluation.unreadable == 1
    assert shares(evaluation)["precision"] == (6, 7)


def test_a_category_of_number_0_is_a_category(truth: str, tmp_path: Path) -> None:
    def renumber(tree: dict[str, Any]) -> None:
        for item in (*tree["categories"], *tree["annotations"]):
            item["id" if "name" in item else "category_id"] -= 1

    renumbered = read_annotations(changed_truth(truth, tmp_path / "truth.json", renumber))
    assert {one.category for one in renumbered.objects("11")} == {"square", "disc"}


def test_seen_nouns_are_those_of_the_list_and_of_its_categories(run: RunFolder, truth: str, tmp_path: Path) -> None:
    (tmp_path / "seen.txt").write_text("# what the proposer learnt\ndisc\n\nzebra # not here\n")
    seen, unseen = evaluate_pairs(run, truth=truth, seen=str(tmp_path / "seen.txt")).training
    assert (seen.name, seen.precision.of, seen.recall.of) == ("seen", 3, 3)  # disc twice, and discs
    assert (unseen.name, unseen.precision.of) == ("unseen", 4)


def test_a_noun_was_seen_when_a_category_that_it_names_was(run: RunFolder, truth: str, tmp_path: Path) -> None:
    def rename(tree: dict[str, Any]) -> None:
        (disc,) = [category for category in tree["categories"] if category["name"] == "disc"]
        disc["name"] = "circle"

    path = changed_truth(truth, tmp_path / "truth.json", rename)
    (tmp_path / "synonyms.yaml").write_text("circle: [disc]\n")
    for listed, seen in (("circle", 3), ("discs", 1)):  # who learnt discs did not learn every noun of circles
        (tmp_path / "seen.txt").write_text(listed)
        evaluation = evaluate_pairs(
            run, truth=path, seen=str(tmp_path / "seen.txt"), synonyms=str(tmp_path / "synonyms.yaml")
        )
        assert shares(evaluation)["precision"] == (7, 7)
        assert [group.precision.of for group in evaluation.training] == [seen, 7 - seen]


@pytest.mark.parametrize(
    ("similarity", "margin", "reason"), [(None, None, "no CLIP made them"), (0.5, 0.1, "the same similarity")]
)
def test_without_scores_that_differ_there_are_no_curves_and_a_line_says_why(
    run: RunFolder, truth: str, tmp_path: Path, similarity: float | None, margin: float | None, reason: str
) -> None:
    change_pairs(run, lambda _, one: replace(one, similarity=similarity, margin=margin))
    (tmp_path / "to").mkdir()
    (tmp_path / "to" / "precision-coverage.png").write_bytes(b"of an earlier evaluation")
    evaluation = evaluate_pairs(run, truth=truth)
    assert evaluation.curves == ()
    assert reason in str(evaluation.no_curves)
    assert shares(evaluation)["precision"] == (7, 7)
    assert write_evaluation(evaluation, tmp_path / "to", run=run) == ["evaluation.json"]
    assert [path.name for path in (tmp_path / "to").iterdir()] == ["evaluation.json"]


def test_without_a_known_pair_there_are_no_curves() -> None:
    assert find_curves(PairMetrics()) == ((), (), "no curves: there is no pair of a noun that the truth knows")


def test_the_command_prints_the_table_writes_the_files_and_leaves_the_run_alone(
    run: RunFolder, truth: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change_pairs(run, lambda image, one: replace(one, similarity=int(image) / 100, margin=len(one.noun) / 10))
    before = hashes(run.root)
    command = ["evaluate-pairs", run.root, "--truth", truth, "--to"]
    assert run_app([*command, str(tmp_path / "first")]) == 0
    told = capsys.readouterr()
    printed = told.out
    assert "precision" in printed
    assert "7 of 7" in printed
    assert not told.err
    assert "pairs.min_similarity: 0.1300" in printed
    assert run_app([*command, str(tmp_path / "second"), "--json"]) == 0
    as_json = json.loads(capsys.readouterr().out)
    assert as_json == json.loads((tmp_path / "second" / "evaluation.json").read_text())
    assert as_json["precision"]["share"] == 1
    assert as_json["curves"]["similarity"]["half_coverage"]["threshold"] == 0.13
    assert hashes(str(tmp_path / "first")) == hashes(str(tmp_path / "second"))
    assert hashes(run.root) == before
    with Image.open(tmp_path / "first" / "precision-coverage.png") as picture:
        assert picture.format == "PNG"
    capsys.readouterr()
    assert run_app([*command, str(tmp_path / "first")]) == 0
    assert f"{tmp_path / 'first' / 'evaluation.json'}: there already, and replaced" in capsys.readouterr().err


def test_the_notes_name_what_was_left_out(
    run: RunFolder, truth: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def change(tree: dict[str, Any]) -> None:
        tree["images"] = [image for image in tree["images"] if image["id"] != 11]
        tree["categories"][0]["name"] = "cube"

    path = changed_truth(truth, tmp_path / "truth.json", change)
    assert run_app(["evaluate-pairs", run.root, "--truth", path, "--to", str(tmp_path / "to")]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "1 of 8 images" in printed
    assert "square (1)" in printed
    assert "no curves" in printed
    assert "counted as wrong: 1 pair of nouns that truth.json does not know" in printed
    assert (
        "precision of all pairs is a lower bound, unless truth.json annotates every object that captions name"
        in printed
    )
    assert printed.index("precision of all pairs") < printed.index("precision of known nouns")


def test_a_folder_within_the_run_is_refused(run: RunFolder, truth: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = hashes(run.root)
    assert run_app(["evaluate-pairs", run.root, "--truth", truth, "--to", f"{run.root}/evaluation"]) == 2
    assert "in the run's own folder" in capsys.readouterr().err
    assert hashes(run.root) == before


def one_line_fault(capsys: pytest.CaptureFixture[str], *arguments: str, code: int) -> str:
    assert run_app(["evaluate-pairs", *arguments]) == code
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def test_an_unfinished_run_is_incomplete(run: RunFolder, truth: str, capsys: pytest.CaptureFixture[str]) -> None:
    run.delete("manifest.json")
    assert "not finished" in one_line_fault(capsys, run.root, "--truth", truth, code=4)


def test_a_run_whose_shards_are_being_made_anew_is_incomplete(
    run: RunFolder, truth: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run.delete("shards", "00001.parquet")
    assert "00001.parquet: missing" in one_line_fault(capsys, run.root, "--truth", truth, code=4)


def test_shards_of_other_settings_than_the_manifests_are_incomplete(
    run: RunFolder, truth: str, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = run.read_json("manifest.json")
    run.write_json("manifest.json", value=manifest | {"fingerprint": "0" * 64})
    assert "made from other settings" in one_line_fault(capsys, run.root, "--truth", truth, code=4)


def test_a_truth_of_other_images_is_refused_and_says_how_many_are_missing(
    run: RunFolder, truth: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def shift(tree: dict[str, Any]) -> None:
        for image in tree["images"]:
            image["id"] += 1000
            image["file_name"] = f"other-{image['file_name']}"  # else it would be found by that
        for annotation in tree["annotations"]:
            annotation["image_id"] += 1000

    path = changed_truth(truth, tmp_path / "truth.json", shift)
    line = one_line_fault(capsys, run.root, "--truth", path, code=2)
    assert "covers none of the 8 images" in line
    assert "(8 of them are not in it)" in line


def test_a_truth_of_other_sizes_is_refused_and_says_nothing_of_missing_images(
    run: RunFolder, truth: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Annotations, "coverage", lambda *_: "other_size")
    assert "(8 have another size there)" in one_line_fault(capsys, run.root, "--truth", truth, code=2)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (None, "no such file"),
        ("{", "not valid JSON"),
        ("[]", "no list `categories`"),
        ('{"images": [], "annotations": [], "categories": [{"id": 1, "name": "dog"}]}', "no list `images`"),
        (
            '{"categories": [{"id": 1}], "images": [{"id": 1, "height": 2, "width": 2}], '
            '"annotations": [{"image_id": 1}]}',
            "no entry of `categories` has a usable `id` and `name`",
        ),
    ],
)
def test_a_file_that_is_no_truth_is_refused_in_one_line(
    run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, fault: str
) -> None:
    path = tmp_path / "truth.json"
    if content is not None:
        path.write_text(content)
    assert fault in one_line_fault(capsys, run.root, "--truth", str(path), code=2)


def test_captions_panoptic_annotations_and_folders_are_no_truth(world: Path, truth: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no list `categories`"):
        read_annotations(str(world / "captions.json"))
    with pytest.raises(InputError, match="is a folder"):
        read_annotations(str(world))

    def make_panoptic(tree: dict[str, Any]) -> None:
        tree["annotations"] = [{"image_id": 11, "segments_info": []}]

    with pytest.raises(InputError, match="is panoptic"):
        read_annotations(changed_truth(truth, tmp_path / "panoptic.json", make_panoptic))


@pytest.mark.parametrize(("content", "fault"), [(None, "cannot be read"), ("# nothing\n", "holds no noun")])
def test_a_list_of_seen_nouns_that_is_none_is_refused(
    run: RunFolder, truth: str, tmp_path: Path, content: str | None, fault: str
) -> None:
    path = tmp_path / "seen.txt"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=fault):
        evaluate_pairs(run, truth=truth, seen=str(path))


@pytest.mark.skipif(not COCO.exists(), reason=f"no COCO photographs in {COCO}")
def test_on_coco_the_masks_that_people_drew_are_right_by_themselves(tmp_path: Path) -> None:
    instances = str(COCO / "annotations" / "instances_train2017.json")
    captions = {"annotations": str(COCO / "annotations" / "captions_train2017.json"), "images": str(COCO / "train2017")}
    config = toy.write_config(
        tmp_path,
        captions={"kind": "coco", **captions},
        regions={"proposals": {"kind": "ground_truth", "annotations": instances}, "clip": None},
        pairs={"rule": "labels", "synonyms": "coco"},
        shards={"images_per_part": 10},
    )
    run, _, _ = run_toy(config, limit=20)
    evaluation = evaluate_pairs(run, truth=instances)
    assert evaluation.images == {"covered": 20}
    assert evaluation.metrics.labelled >= 20
    assert evaluation.precision.value == 1
    assert evaluation.metrics.mean_iou("correct") == pytest.approx(1, abs=1e-3)
