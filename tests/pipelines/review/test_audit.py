"""Audits: a random sample of a run's pairs, their precision, and a calibration of how sure each pair is."""

from __future__ import annotations

import csv
import json
import shutil
from collections import Counter
from dataclasses import astuple, replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from maskmine.mining.scores.calibration import read_calibration
from maskmine.pipelines.audit.audit import audit_run
from maskmine.pipelines.audit.judge import name_of
from maskmine.pipelines.audit.sample import draw_pairs, draw_sample
from maskmine.pipelines.cli.main import run_app
from maskmine.pipelines.dataset.calibrations import calibration_of, check_calibration
from maskmine.pipelines.dataset.cards import render_card
from maskmine.pipelines.dataset.finished_run import FinishedRun
from maskmine.pipelines.run_folder.folder import RunFolder, read_folder
from maskmine.pipelines.settings.fingerprints import portable
from maskmine.pipelines.settings.mining import load_mining
from maskmine.schemas.errors import InputError
from maskmine.schemas.rows import (
    PairsRow,
)
from maskmine.schemas.sample import cell_name, sample_key
from tests.pipelines.made_up_run import (
    FINGERPRINT,
    MODELS,
    NOUNS,
    PARTS,
    PER_IMAGE,
    PER_PART,
    REGIONS,
    SETTINGS,
    Audited,
    OldPair,
    OldPairsRow,
    manifest,
    sampled,
    verdict,
    write_rows,
    write_run,
)
from tests.support import toy
from tests.support.paths import ROOT


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Audited:
    return write_run(tmp_path_factory.mktemp("audited") / "run")


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """The exit code of `maskmine audit`, and what it printed on stdout and stderr, each on one line."""
    code = run_app(["audit", *words])
    shown = capsys.readouterr()
    return code, " ".join(shown.out.split()), " ".join(shown.err.split())


# The sample


def test_a_sample_is_the_same_for_a_seed_and_another_for_another(run: Audited) -> None:
    finished = run.open()
    first = draw_pairs(finished, size=100, seed=0)
    assert first == draw_pairs(finished, size=100, seed=0)
    assert len({pair.key for pair in first}) == 100
    other = {pair.key for pair in draw_pairs(finished, size=100, seed=1)}
    assert len(other & {pair.key for pair in first}) < 40


def test_strata_get_their_share_in_the_whole_sample_and_in_its_beginning(run: Audited) -> None:
    sample = draw_sample(run.open(), size=200, seed=0)
    everything = sum(size.pairs for size in sample.strata.values())
    assert everything == PARTS * PER_PART * PER_IMAGE
    assert sum(size.written for size in sample.strata.values()) == len(run.written)
    for length in (50, 200):
        counts = Counter(pair.stratum for pair in islice(sample.pairs, length))
        for name, size in sample.strata.items():
            assert abs(counts[name] - size.pairs * length / everything) <= 1.5, name


def test_each_stratum_is_sampled_at_random(run: Audited) -> None:
    """Over many seeds each pair is drawn as often as another of its stratum."""
    drawn = Counter(pair.key for seed in range(10) for pair in draw_pairs(run.open(), size=450, seed=seed))
    counts = [drawn[key] for pair in draw_pairs(run.open(), size=10**6, seed=0) for key in [pair.key]]
    assert len(counts) == 900
    assert np.var(counts) == pytest.approx(10 / 4, rel=0.2)  # of a binomial distribution


def test_pairs_say_where_they_lie_and_whether_they_are_written(run: Audited) -> None:
    finished = run.open()
    for drawn in draw_pairs(finished, size=50, seed=0):
        row = finished.rows(drawn.part, PairsRow)[drawn.index]
        pair = row.pairs[drawn.number]
        assert (row.image_id, pair.noun, pair.region) == (drawn.image_id, drawn.noun, drawn.region)
        assert (pair.evidence, pair.similarity, None) == (drawn.evidence, drawn.similarity, drawn.confidence)
        assert drawn.written == (name_of(drawn) in run.written)
        assert drawn.key == sample_key(drawn.image_id, drawn.number)
        assert drawn.mask == REGIONS[drawn.region].mask.digest


def test_all_pairs_are_drawn_where_there_are_fewer(run: Audited) -> None:
    assert {name_of(pair) for pair in draw_pairs(run.open(), size=10**6, seed=0)} == set(run.right)


# Precision


def test_an_audit_finds_the_precision_and_a_calibration_that_holds(run: Audited, tmp_path: Path) -> None:
    audit = audit_run(read_folder(str(run.folder)), verdicts=str(run.verdicts(tmp_path / "verdicts.parquet")))
    assert audit.every.low <= run.precision <= audit.every.high
    assert audit.every.high - audit.every.low < 0.11
    assert audit.written.judged == sum(pair.written for pair in draw_pairs(run.open(), size=300, seed=0))
    assert audit.notes == ()
    assert audit.fitted is not None
    calibration = audit.fitted.calibration
    assert calibration.measured.calibration_error < 0.08
    # Evidence was the log odds, so its standardised coefficient is its standard deviation.
    assert calibration.coefficients[0] == pytest.approx(calibration.scales[0], rel=0.25)
    assert calibration.measured_on == ("made up",)
    kept = [one.pairs for one in audit.fitted.kept]
    assert kept[0] == 900
    assert kept == sorted(kept, reverse=True)
    assert audit.fitted.kept[0].precision == pytest.approx(run.precision, abs=0.05)


def test_everything_judged_is_known_and_has_no_interval(run: Audited, tmp_path: Path) -> None:
    verdicts = run.verdicts(tmp_path / "verdicts.parquet", size=900)
    audit = audit_run(read_folder(str(run.folder)), verdicts=str(verdicts), size=900)
    assert audit.every.value == audit.every.low == audit.every.high == pytest.approx(run.precision)
    written = [run.right[name] for name in run.written]
    assert audit.written.value == audit.written.low == audit.written.high == pytest.approx(sum(written) / len(written))


def test_what_is_left_out_is_told(run: Audited, tmp_path: Path) -> None:
    names = sampled(run, 300)
    rows = [verdict(name, run.right[name]) for name in names[:200]]
    rows[0] = replace(rows[0], verdict="cannot_say")
    rows += [replace(rows[1], verdict="bad_mask", at="2026-02-01T00:00:00.000000+00:00", reviewer="ben")]
    rows += [verdict(name, run.right[name]) for name in sorted(set(run.right) - set(names))[:4]]
    rows += [replace(rows[2], mask="0" * 16), replace(rows[3], image_id="elsewhere")]
    path = write_rows(tmp_path / "verdicts.parquet", rows)
    audit = audit_run(read_folder(str(run.folder)), verdicts=str(path))
    assert audit.every.judged == 199
    assert audit.words["cannot_say"] == 1
    assert audit.notes == (
        "still to be judged: 100 of 300 pairs drawn, the last ones",
        "4 verdicts on other pairs than these random ones: a help to fit, no more",
        "left out: 1 pair of which reviewers cannot say",
        "left out: 2 verdicts on pairs that this run does not have",
        "verdicts contradict each other on 1 pair, on 1 of them between reviewers; the last one counts",
    )
    assert audit.fitted is not None
    assert audit.fitted.calibration.reviewers == ("ann", "ben")


def test_pairs_that_were_not_judged_in_the_order_of_the_sample_do_not_tilt_its_figures(
    run: Audited, tmp_path: Path
) -> None:
    names = sampled(run, 300)
    gap = [*names[:40], *names[43:100]]
    wrong = [name for name in names[200:] if not run.right[name]]
    rows = [verdict(name, run.right[name]) for name in (*gap, *wrong)]
    audit = audit_run(read_folder(str(run.folder)), verdicts=str(write_rows(tmp_path / "verdicts.parquet", rows)))
    assert (audit.sample, audit.every.judged) == (100, 97)
    assert audit.every.low <= run.precision <= audit.every.high
    assert audit.notes[1:] == (
        "left out: 3 of the first 100 pairs, without a verdict yet",
        f"{len(wrong)} verdicts on other pairs than these random ones: a help to fit, no more",
    )


# The calibration that cannot be


def test_below_30_verdicts_precision_is_told_and_no_calibration_written(
    run: Audited, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, to = run.verdicts(tmp_path / "verdicts.parquet", size=29), tmp_path / "calibration.json"
    code, out, err = printed(capsys, str(run.folder), "--verdicts", str(path), "--to", str(to))
    assert code == 2  # as the file that was asked for is not there
    said = "29 usable verdicts, and a calibration needs 30"
    assert (said in out, err.count(said)) == (False, 1), "as an error, and once"
    code, asked_for_none, _ = printed(capsys, str(run.folder), "--verdicts", str(path))
    assert (code, asked_for_none.count(said)) == (0, 1)
    assert "every pair 900" in out
    assert not to.exists()
    code, _, err = printed(capsys, str(run.folder), "--verdicts", str(path), "--target-precision", "0.9")
    assert (code, "29 usable verdicts" in err) == (2, True)


def test_a_sample_that_may_hold_verdicts_is_never_overwritten(
    run: Audited, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "sample.csv"
    table.write_text("key,verdict\n1-000,right\n")
    for arguments, said in (
        (["--draw", str(table)], "is there already, perhaps with verdicts"),
        (["--draw", str(tmp_path / "sample.parquet")], "give a name that ends in .csv"),
        (["--draw", str(tmp_path / "new.csv"), "--verdicts", str(table)], "in a second command"),
        (["--draw", str(tmp_path / "nowhere" / "new.csv")], "--draw"),
    ):
        code, _, err = printed(capsys, str(run.folder), *arguments)
        assert (code, said in err) == (2, True), err
    assert table.read_text() == "key,verdict\n1-000,right\n"


def test_verdicts_that_are_all_alike_calibrate_nothing(run: Audited, tmp_path: Path) -> None:
    path = run.verdicts(tmp_path / "verdicts.parquet", verdict="right")
    audit = audit_run(read_folder(str(run.folder)), verdicts=str(path))
    assert audit.every.value == 1
    assert audit.every.low < 1
    assert audit.no_calibration == (
        "all 300 verdicts say the same, and a calibration needs 5 right and 5 wrong pairs; judge more"
    )


def test_verdicts_of_another_run_are_refused(run: Audited, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run.verdicts(tmp_path / "verdicts.parquet", size=40, verdict="right")
    rows = [verdict(("elsewhere", "noun 1", "0" * 16), True)]
    write_rows(path, rows)
    code, _, err = printed(capsys, str(run.folder), "--verdicts", str(path))
    assert (code, "none of its verdicts is of a pair of" in err) == (2, True)


def test_verdicts_outside_the_sample_alone_say_nothing_of_precision(
    run: Audited, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outside = sorted(set(run.right) - set(sampled(run, 300)))[:40]
    path = write_rows(tmp_path / "verdicts.parquet", [verdict(name, run.right[name]) for name in outside])
    code, _, err = printed(capsys, str(run.folder), "--verdicts", str(path))
    assert (code, "give size and seed of the review" in err) == (2, True)


def test_without_verdicts_the_line_says_how_to_get_them(
    run: Audited, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = printed(capsys, str(run.folder))
    assert (code, "judge pairs with `maskmine review`" in err) == (2, True)
    code, _, err = printed(capsys, str(run.folder), "--truth", "a.json", "--verdicts", "b.csv")
    assert (code, "give one of them" in err) == (2, True)
    write_rows(tmp_path / "none.parquet", [])
    code, _, err = printed(capsys, str(run.folder), "--verdicts", str(tmp_path / "none.parquet"))
    assert (code, "holds no verdict" in err) == (2, True)


def test_a_run_of_an_earlier_format_has_a_precision_and_no_calibration(run: Audited, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run.folder, folder)
    store = RunFolder(str(folder))
    finished = FinishedRun.open_complete(store)
    for part in finished.parts:
        old = [
            OldPairsRow(row.image_id, tuple(OldPair(*astuple(pair)[:9]) for pair in row.pairs), None)
            for row in finished.rows(part, PairsRow)
        ]
        store.write_rows("pairs", cell_name(part), rows=old, row_type=OldPairsRow, fingerprint=FINGERPRINT)
    store.write_json("manifest.json", value=manifest(format_version=2).model_dump(mode="json"))
    sample = draw_sample(finished, size=300, seed=0)
    assert all(name.partition(",")[0].count("similarity") == 1 for name in sample.strata)
    rows = [verdict(name_of(pair), run.right[name_of(pair)]) for pair in sample.pairs]
    audit = audit_run(store, verdicts=str(write_rows(tmp_path / "verdicts.parquet", rows)))
    assert audit.every.low <= run.precision <= audit.every.high
    assert audit.no_calibration is not None
    assert "format version 2, without lift" in audit.no_calibration


def test_the_truth_judges_in_place_of_people(run: Audited, tmp_path: Path) -> None:
    truth = write_truth(tmp_path / "instances.json", run, images=range(1, 180))
    audit = audit_run(read_folder(str(run.folder)), truth=str(truth), synonyms="none", size=900)
    known = [right for name, right in run.right.items() if name[0] != "0"]
    assert audit.every.value == pytest.approx(sum(known) / len(known), abs=0.002)
    assert (audit.words["correct"], audit.words["not_annotated"]) == (sum(known), PER_IMAGE)
    assert audit.words["background"] + audit.words["wrong_object"] == len(known) - sum(known)
    drawn = sum(right for name, right in run.right.items() if name[0] == "0")
    outside = f"{drawn} annotations of images that `images` does not have (the first: entry 0, image 0)"
    assert audit.notes == (
        "left out: 5 pairs of images that instances.json does not have",
        f"not used of instances.json: {outside}",
    )
    assert audit.fitted is not None
    assert audit.fitted.calibration.judged_by == audit.judged_by == "instances.json"
    elsewhere = write_truth(tmp_path / "elsewhere.json", run, images=range(1000, 1001))
    with pytest.raises(InputError, match=r"no entry of `annotations` can be used|has none of the sample's images"):
        audit_run(read_folder(str(run.folder)), truth=str(elsewhere), synonyms="none")


def write_truth(to: Path, run: Audited, *, images: range) -> Path:
    """An object for every right pair of some images, and for no wrong one."""
    masks = {region.mask.digest: region.mask for region in REGIONS}
    categories = {noun: number for number, noun in enumerate(NOUNS)}
    objects = [
        {
            "id": number,
            "image_id": int(image_id),
            "category_id": categories[noun],
            "segmentation": {"size": [8, 8], "counts": masks[mask].counts.decode()},
            "iscrowd": 0,
        }
        for number, ((image_id, noun, mask), right) in enumerate(run.right.items())
        if right
    ]
    content = {
        "images": [{"id": number, "file_name": f"{number}.jpg", "height": 8, "width": 8} for number in images],
        "annotations": objects,
        "categories": [{"id": number, "name": noun} for noun, number in categories.items()],
    }
    to.write_text(json.dumps(content))
    return to


def test_a_run_without_clip_has_a_precision_and_no_calibration(run: Audited, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run.folder, folder)
    regions = {**SETTINGS["regions"], "clip": None}
    without = manifest(settings={**SETTINGS, "regions": regions, "pairs": {"rule": "labels"}})
    RunFolder(str(folder)).write_json("manifest.json", value=without.model_dump(mode="json"))
    audit = audit_run(read_folder(str(folder)), verdicts=str(run.verdicts(tmp_path / "verdicts.parquet")))
    assert audit.every.low <= run.precision <= audit.every.high
    assert audit.no_calibration == "the run was made without CLIP, so its pairs have no scores"


# The files


def test_the_calibration_is_written_with_its_diagram_and_the_same_bytes_again(
    run: Audited, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, to = run.verdicts(tmp_path / "verdicts.parquet"), tmp_path / "calibration.json"
    words = [str(run.folder), "--verdicts", str(path), "--to", str(to), "--target-precision", "0.9"]
    code, out, _ = printed(capsys, *words)
    assert code == 0
    first = to.read_bytes(), to.with_suffix(".png").read_bytes()
    assert first[1].startswith(b"\x89PNG")
    assert printed(capsys, *words, "--json")[0] == 0
    assert (to.read_bytes(), to.with_suffix(".png").read_bytes()) == first
    calibration = read_calibration(str(to))
    assert calibration.min_confidence is not None
    assert f"pairs.min_confidence: {calibration.min_confidence:g} keeps" in out
    assert calibration.verdicts.keys() == {"right", "wrong_noun"}
    # What it keeps is right about as often as was asked.
    finished, kept = run.open(), list[bool]()
    for part in finished.parts:
        for row in finished.rows(part, PairsRow):
            pairs = calibration.add_confidence(row.pairs, [REGIONS[pair.region].score for pair in row.pairs])
            kept += [
                run.right[row.image_id, pair.noun, REGIONS[pair.region].mask.digest]
                for pair in pairs
                if (pair.confidence or 0) >= calibration.min_confidence
            ]
    assert sum(kept) / len(kept) == pytest.approx(0.9, abs=0.03)


def test_a_target_that_no_threshold_reaches_is_refused(
    run: Audited, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, to = run.verdicts(tmp_path / "verdicts.parquet"), tmp_path / "calibration.json"
    words = ("--target-precision", "1", "--to", str(to))
    code, out, err = printed(capsys, str(run.folder), "--verdicts", str(path), *words)
    assert (code, "no threshold is expected to reach it, the best gives 0.9" in err) == (2, True)
    assert "every pair 900" in out  # what was measured is told all the same
    assert not to.exists()
    code, _, err = printed(capsys, str(run.folder), "--verdicts", str(path), "--to", str(run.folder / "c.json"))
    assert (code, "is in the run's own folder" in err) == (2, True)


def test_a_sample_can_be_judged_in_a_spreadsheet(
    run: Audited, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "sample.csv"
    assert printed(capsys, str(run.folder), "--draw", str(table), "--size", "60")[0] == 0
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["caption"] == "A caption."
    assert {row["shard"] for row in rows} == {"", *(f"shards/{part:05d}.tar" for part in range(PARTS))}
    for row in rows[:50]:  # the others are left empty
        row["verdict"] = "right" if run.right[row["image_id"], row["noun"], row["mask"]] else "Bad mask"
    with table.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    words = (str(run.folder), "--verdicts", str(table), "--size", "60", "--json")
    assert run_app(["audit", *words]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["precision"]["every_pair"]["judged"] == 50
    assert found["notes"] == ["still to be judged: 10 of 60 pairs drawn, the last ones"]
    assert found["calibration"]["judged_by"] == "verdicts"


def test_a_calibration_of_other_models_is_refused_unless_it_is_asked_for(
    run: Audited, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, to = run.verdicts(tmp_path / "verdicts.parquet"), tmp_path / "calibration.json"
    assert printed(capsys, str(run.folder), "--verdicts", str(path), "--to", str(to))[0] == 0
    world = toy.write_toy_world(tmp_path)
    config = toy.write_config(world, pairs={"calibration": str(to)})
    clip = ROOT / "scripts" / "models" / "clip"
    settings = load_mining(str(config), overrides=[f"regions.clip={{model: {clip}}}"])
    with pytest.raises(
        InputError, match=r"made with another CLIP; audit this run .* `pairs\.foreign_calibration: true`"
    ):
        check_calibration(settings, portable(settings))
    forced = load_mining(str(config), overrides=[f"regions.clip={{model: {clip}}}", "pairs.foreign_calibration=true"])
    check_calibration(forced, portable(forced))


def test_the_card_says_what_a_calibration_was_measured_on(run: Audited, tmp_path: Path) -> None:
    path = run.verdicts(tmp_path / "verdicts.parquet")
    audit = audit_run(read_folder(str(run.folder)), verdicts=str(path))
    assert audit.fitted is not None
    (tmp_path / "calibration.json").write_text(audit.fitted.calibration.as_text())
    world = toy.write_toy_world(tmp_path)
    config = toy.write_config(world, pairs={"calibration": str(tmp_path / "calibration.json")})
    settings = load_mining(str(config), overrides=[f"regions.clip={{model: {ROOT / 'scripts' / 'models' / 'clip'}}}"])
    own = calibration_of(settings, {**portable(settings), **SETTINGS, "pairs": portable(settings)["pairs"]}, MODELS)
    foreign = calibration_of(settings, portable(settings), settings.regions.records())
    assert own is not None
    assert own.foreign is None
    assert foreign is not None
    assert foreign.foreign == "another CLIP"
    shown = {"shards": {"image_format": "jpg"}, "pairs": SETTINGS["pairs"]}
    cards = [
        render_card("dataset_card.md", manifest=manifest(settings=shown, calibration=one), shards="", filters={})
        for one in (None, own, foreign)
    ]
    told = ["measured on 300 pairs of made up (run `run`" in " ".join(card.split()) for card in cards]
    assert told == [False, True, True]
    assert ["That run had another CLIP" in card for card in cards] == [False, False, True]
