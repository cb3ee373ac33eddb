"""Pairs held against the truth: verdicts on masks whose overlap is known, what they add up to, and whole runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import binomtest

from mining.judging import JudgedImage, JudgedPair, NameableMention, Outcome, judge_image
from mining.labels import load_synonyms
from mining.pairs import ClipPairs
from mining.precision import ScoreCounts, Tally, at_least, thin, wilson_interval
from mining.selection import keep_pair
from mining.truth import TruthObject, open_naming, read_truth
from pipelines.cli import run_app
from pipelines.evaluate_pairs import Evaluation, evaluate_pairs, find_curves
from pipelines.evaluation_report import write_evaluation
from pipelines.run_folder import RunFolder
from schemas.errors import InputError
from schemas.mask import Mask
from schemas.rows import Noun, NounsRow, Pair, PairsRow, Region, RegionsRow
from tests import toy
from tests.test_mine import hashes, run_toy

COCO = Path(__file__).resolve().parents[2] / "shared" / "data" / "coco-mini"
SIDE_PX = 10


def block(columns: slice, rows: slice = slice(None)) -> Mask:
    """A mask of whole columns of a picture of 10 × 10 pixels, or of some of their rows."""
    mask_HW = np.zeros((SIDE_PX, SIDE_PX), np.uint8)
    mask_HW[rows, columns] = 1
    return Mask.from_array(mask_HW)


def pair(noun: str, *, region: int = 0, similarity: float | None = None, margin: float | None = None) -> Pair:
    return Pair(noun, noun.removesuffix("s"), 0, 0, len(noun), region, similarity, margin, 0)


def judged(
    noun: str, mask: Mask, *objects: tuple[str, Mask] | tuple[str, Mask, bool], synonyms: str | None = None
) -> JudgedImage:
    """The verdict on one pair in a picture with some objects, where `dog`, `cat` and `person` are known."""
    said = NounsRow("1", (Noun(noun, noun.removesuffix("s"), 0, 0, len(noun)),), (), None)
    seen = RegionsRow("1", "", SIDE_PX, SIDE_PX, (Region(mask, mask.box_xyxy, mask.area_px, 1.0, None, None),), None)
    there = [TruthObject(one[0], one[1], crowd=len(one) > 2) for one in objects]
    naming = open_naming(("cat", "dog", "person"), load_synonyms(synonyms))
    return judge_image(said, seen, [pair(noun)], objects=there, naming=naming)


def outcome(*args: Any, **options: Any) -> Outcome:
    return judged(*args, **options).pairs[0].outcome


def test_a_pair_is_right_from_an_iou_of_one_half_on() -> None:
    object_40px = ("dog", block(slice(0, 4)))
    assert outcome("dog", block(slice(0, 2)), object_40px) == "right"
    (just_below,) = judged("dog", block(slice(0, 2), slice(0, 9)), object_40px).pairs
    assert (just_below.outcome, just_below.iou) == ("none", 18 / 40)


def test_a_plural_is_right_for_one_of_its_objects_and_for_all_of_them_together() -> None:
    dogs = [("dog", block(slice(0, 2))), ("dog", block(slice(4, 6))), ("dog", block(slice(8, 10)))]
    assert outcome("dogs", block(slice(4, 6)), *dogs) == "right"
    all_but_rows = Mask.from_array(np.max([mask.to_array() for _, mask in dogs], axis=0))
    assert outcome("dogs", all_but_rows, *dogs) == "right"
    assert outcome("dogs", block(slice(0, 10)), *dogs) == "right"  # 60 of 100 pixels
    assert outcome("dogs", block(slice(2, 4)), *dogs) == "none"


def test_the_mask_of_something_else_is_told_from_the_mask_of_nothing() -> None:
    cat, dog = ("cat", block(slice(0, 3))), ("dog", block(slice(5, 8)))
    assert outcome("dog", block(slice(0, 3)), cat, dog) == "other"
    assert outcome("dog", block(slice(8, 10)), cat, dog) == "none"
    cats = [("cat", block(slice(0, 1))), ("cat", block(slice(2, 3)))]
    assert outcome("dog", block(slice(0, 3)), dog, *cats) == "other"  # that of all cats


def test_a_noun_whose_object_is_not_in_the_image_cannot_be_right_and_is_no_mention_to_find() -> None:
    found = judged("dog", block(slice(0, 3)), ("cat", block(slice(0, 3))))
    assert [(one.outcome, one.absent) for one in found.pairs] == [("other", True)]
    assert found.mentions == ()


def test_a_mask_within_a_crowd_is_neither_right_nor_wrong_and_that_of_the_crowd_is_right() -> None:
    crowd = ("person", block(slice(0, 8)), True)
    inside, across = judged("person", block(slice(0, 3)), crowd), block(slice(6, 10))
    assert inside.pairs[0].outcome == "crowd"
    assert inside.mentions == ()
    assert outcome("person", block(slice(0, 8)), crowd) == "right"
    assert outcome("person", across, crowd) == "none"  # only half of it
    assert outcome("dog", block(slice(0, 3)), crowd) == "none"
    one_more = ("person", block(slice(9, 10)))
    assert [mention.found for mention in judged("person", block(slice(0, 3)), crowd, one_more).mentions] == [False]


def test_a_mention_is_found_when_one_of_its_pairs_is_right() -> None:
    dog = ("dog", block(slice(0, 3)))
    assert [mention.found for mention in judged("dog", block(slice(0, 3)), dog).mentions] == [True]
    assert [mention.found for mention in judged("dog", block(slice(5, 9)), dog).mentions] == [False]


@pytest.mark.parametrize(
    ("text", "lemma", "categories"),
    [
        ("dogs", "dog", {"dog"}),
        ("hot dogs", "hot dog", {"hot dog"}),  # and no dog
        ("oxen", "ox", {"ox"}),  # the table lists it under cow
        ("bulls", "bull", {"cow"}),
        ("sheep dog", "sheep dog", {"dog"}),
        ("glasses", "glass", {"glasses"}),  # the text comes before the lemma
        ("sunshine", "sunshine", set()),
    ],
)
def test_a_noun_that_is_a_category_names_that_one_alone(text: str, lemma: str, categories: set[str]) -> None:
    naming = open_naming(("cow", "dog", "glass", "glasses", "hot dog", "ox"), load_synonyms("coco"))
    assert naming(text, lemma) == categories


# What precision is made of


@given(of=st.integers(1, 2000), share=st.floats(0, 1))
def test_the_interval_is_scipys_wilson_interval(of: int, share: float) -> None:
    count = round(share * of)
    expected = binomtest(count, of).proportion_ci(0.95, method="wilson")
    assert wilson_interval(count, of=of) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_of_nothing_anything_can_be_true() -> None:
    assert wilson_interval(0, of=0) == (0.0, 1.0)


# With six digits as in the cells; often close together, and on the thresholds' own steps.
MILLIONTHS = st.integers(-1_000_000, 1_000_000) | st.integers(-30, 30).map(lambda steps: 50 * steps)
SCORES = MILLIONTHS.map(lambda millionths: millionths / 1_000_000)
SCORED = st.lists(st.tuples(SCORES, st.booleans()), min_size=1, max_size=40)


@given(SCORED)
def test_coverage_rises_to_one_where_precision_is_that_of_all_pairs(scored: list[tuple[float, bool]]) -> None:
    counts = ScoreCounts()
    for score, right in scored:
        counts.add(score, right=right)
    curve = counts.curve()
    coverage = [point.coverage for point in curve]
    assert coverage == sorted(set(coverage))
    assert coverage[-1] == 1
    assert curve[-1].precision.value == sum(right for _, right in scored) / len(scored)


@given(SCORED)
@example([(-0.523901, True), (-0.5239, True)])  # times a million the first is a little more than a whole number
def test_a_threshold_of_the_curve_keeps_just_its_pairs_when_it_is_set(scored: list[tuple[float, bool]]) -> None:
    counts = ScoreCounts()
    for score, right in scored:
        counts.add(score, right=right)
    for point in counts.curve():
        keep = keep_pair(ClipPairs(min_similarity=point.threshold), images_of_noun={"dog": 1}, last_kept={})
        kept = [right for score, right in scored if keep("1", 0, pair("dog", similarity=score, margin=0.0))]
        assert (len(kept), sum(kept)) == (point.kept, point.right)


@given(SCORED, st.integers(1, 10))
def test_a_thinned_curve_has_at_most_so_many_points_and_ends_where_the_whole_does(
    scored: list[tuple[float, bool]], most: int
) -> None:
    counts = ScoreCounts()
    for score, right in scored:
        counts.add(score, right=right)
    curve, thinned = counts.curve(), thin(counts.curve(), most=most)
    assert len(thinned) <= most
    assert thinned[-1] == curve[-1]
    assert set(thinned) <= set(curve)


def test_the_point_that_keeps_enough_has_the_highest_such_threshold() -> None:
    counts = ScoreCounts()
    for score, right in ((0.9, True), (0.7, True), (0.7, False), (0.2, False)):
        counts.add(score, right=right)
    half = at_least(counts.curve(), kept=2)
    assert half is not None
    assert (half.threshold, half.kept, half.right) == (0.7, 3, 2)
    assert at_least(counts.curve(), kept=5) is None


JUDGED = st.builds(
    lambda noun, outcome, iou, score: JudgedPair(pair(noun, similarity=score, margin=score / 2), outcome, iou, False),
    st.sampled_from(["dog", "cat", "sun"]),
    st.sampled_from(["right", "other", "none", "crowd", "unknown"]),
    st.floats(0, 1),
    SCORES,
)
IMAGES = st.lists(
    st.builds(
        lambda pairs, found: JudgedImage(
            tuple(pairs), tuple(NameableMention(Noun("dog", "dog", 0, 0, 3), one) for one in found)
        ),
        st.lists(JUDGED, max_size=4),
        st.lists(st.booleans(), max_size=2),
    ),
    max_size=8,
)


def tallied(images: list[JudgedImage]) -> Tally:
    tally = Tally()
    for image in images:
        tally.add(image, groups_of=lambda text, lemma: (text[0],))
    return tally


@given(IMAGES, st.randoms(use_true_random=False))
def test_the_order_of_images_does_not_matter(images: list[JudgedImage], random: Any) -> None:
    shuffled = list(images)
    random.shuffle(shuffled)
    assert tallied(shuffled) == tallied(images)


@given(IMAGES)
def test_nouns_that_the_truth_does_not_know_and_crowds_change_neither_precision_nor_curves(
    images: list[JudgedImage],
) -> None:
    known = [
        replace(image, pairs=tuple(one for one in image.pairs if one.outcome not in ("unknown", "crowd")))
        for image in images
    ]
    tally, without = tallied(images), tallied(known)
    assert tally.share("right") == without.share("right")
    assert tally.scores == without.scores
    assert tally.groups == without.groups
    assert tally.known == sum(len(image.pairs) for image in known)


# Whole runs of the toy world


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = toy.write_toy_world(tmp_path_factory.mktemp("evaluate"))
    run_toy(toy.write_config(folder))
    return folder


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
    tally = evaluation.tally
    named = {"precision": evaluation.precision, "other": tally.share("other"), "none": tally.share("none")}
    return {name: (share.count, share.of) for name, share in {**named, "recall": tally.recall}.items()}


def test_the_toy_worlds_pairs_are_all_right(run: RunFolder, truth: str) -> None:
    evaluation = evaluate_pairs(run, truth=truth)
    assert shares(evaluation) == {"precision": (7, 7), "other": (0, 7), "none": (0, 7), "recall": (7, 7)}
    assert evaluation.tally.mean_iou("right") == 1
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
    assert shares(evaluation) == {"precision": (6, 7), "other": (1, 7), "none": (0, 7), "recall": (6, 7)}
    assert evaluation.tally.mean_iou("right", "other", "none") == pytest.approx(6 / 7, abs=1e-6)


def test_the_threshold_for_half_of_the_pairs_is_the_one_known_by_hand(run: RunFolder, truth: str) -> None:
    scores = {"11": 0.9, "12": 0.8, "13": 0.7, "14": 0.1}
    change_pairs(run, lambda image, one: replace(one, similarity=scores[image], margin=1 - scores[image], region=0))
    similarity, margin = evaluate_pairs(run, truth=truth).curves
    assert [(p.threshold, p.kept, p.right) for p in similarity.points] == [
        (0.9, 2, 1),
        (0.8, 3, 2),
        (0.7, 5, 3),
        (0.1, 7, 5),
    ]
    assert (similarity.half.threshold, similarity.setting) == (0.7, "pairs.min_similarity")
    assert (margin.half.threshold, margin.half.kept) == (0.3, 4)


def test_only_pairs_that_passed_the_filters_are_judged_and_the_others_are_missed(
    world: Path, run: RunFolder, truth: str
) -> None:
    run_toy(toy.write_config(world, out=Path(run.root)), "pairs.min_count=2")  # discs is said of one image only
    assert shares(evaluate_pairs(run, truth=truth)) == {
        "precision": (6, 6),
        "other": (0, 6),
        "none": (0, 6),
        "recall": (6, 7),
    }


def test_nouns_that_the_truth_does_not_know_are_counted_apart(run: RunFolder, truth: str, tmp_path: Path) -> None:
    def forget_bars(tree: dict[str, Any]) -> None:
        bar = toy.CATEGORIES["bar"]
        tree["categories"] = [category for category in tree["categories"] if category["id"] != bar]
        tree["annotations"] = [one for one in tree["annotations"] if one["category_id"] != bar]

    evaluation = evaluate_pairs(run, truth=changed_truth(truth, tmp_path / "truth.json", forget_bars))
    assert shares(evaluation)["precision"] == (5, 5)
    assert evaluation.unknown_nouns(9) == [("bar", 2)]
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
    assert (shares(evaluation)["precision"], evaluation.pairs_apart) == ((4, 4), 3)


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

    renumbered = read_truth(changed_truth(truth, tmp_path / "truth.json", renumber))
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
    assert find_curves(Tally()) == ((), "no curves: there is no pair of a noun that the truth knows")


def test_the_command_prints_the_table_writes_the_files_and_leaves_the_run_alone(
    run: RunFolder, truth: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change_pairs(run, lambda image, one: replace(one, similarity=int(image) / 100, margin=len(one.noun) / 10))
    before = hashes(run.root)
    command = ["evaluate-pairs", run.root, "--truth", truth, "--to"]
    assert run_app([*command, str(tmp_path / "first")]) == 0
    printed = capsys.readouterr().out
    assert "precision" in printed
    assert "7 of 7" in printed
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

    path = changed_truth(truth, tmp_path / "truth.json", shift)
    line = one_line_fault(capsys, run.root, "--truth", path, code=2)
    assert "covers none of the 8 images" in line
    assert "8 of them are not in it" in line


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (None, "no such file"),
        ("{", "not valid JSON"),
        ("[]", "no list `categories`"),
        ('{"images": [], "annotations": [], "categories": [{"id": 1, "name": "dog"}]}', "no list `images`"),
        ('{"categories": [{"id": 1}]}', "entry 0 of `categories`"),
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
        read_truth(str(world / "captions.json"))
    with pytest.raises(InputError, match="is a folder"):
        read_truth(str(world))

    def make_panoptic(tree: dict[str, Any]) -> None:
        tree["annotations"] = [{"image_id": 11, "segments_info": []}]

    with pytest.raises(InputError, match="is panoptic"):
        read_truth(changed_truth(truth, tmp_path / "panoptic.json", make_panoptic))


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
    assert evaluation.tally.known >= 20
    assert evaluation.precision.value == 1
    assert evaluation.tally.mean_iou("right") == pytest.approx(1, abs=1e-3)
