"""What cannot be mixed: one line that says what, where and what to do."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from maskmine.pipelines.cli.main import run_app
from maskmine.schemas.seal import own_metadata
from tests.support import mixes, toy_shards


def refused(capsys: pytest.CaptureFixture[str], *command: str, code: int = 2) -> str:
    """What `maskmine mix` says to this, which is one line."""
    assert run_app(["mix", *command]) == code
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("maskmine: ")]
    assert len(lines) == 1
    return lines[0].removeprefix("maskmine: ")


@pytest.mark.parametrize(
    ("weight", "why"),
    [
        (":0", "the weight is 0; leave the set out"),
        (":-0.5", "the weight is -0.5; give a number above 0, as in {set}:0.5"),
        (":nan", "the weight is nan; give a number above 0, as in {set}:0.5"),
        (":inf", "the weight is inf; give a number above 0, as in {set}:0.5"),
        (":1e-400", "the weight is 0; leave the set out"),
        (":half", "'half' is no weight; give a number above 0, as in {set}:0.5"),
        (":", "'' is no weight; give a number above 0, as in {set}:0.5"),
    ],
)
def test_a_weight_is_a_number_above_zero(
    sets: dict[str, Path], weight: str, why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    red, out = sets["red"], tmp_path / "mix"
    said = refused(capsys, f"{sets['blue']}:1", f"{red}{weight}", "--out", str(out))
    assert said == f"{red}{weight}: {why.format(set=red)}"
    assert not out.exists()


def test_a_set_has_a_weight(sets: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(capsys, "red", "--out", str(tmp_path / "mix")) == "red: has no weight; give it as red:0.5"


def test_weights_that_are_not_one_together_are_shares_and_it_says_so(
    sets: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["mix", f"{sets['red']}:3", f"{sets['blue']}:1", "--samples", "8", "--out", str(tmp_path / "mix")]
    assert run_app(command) == 0
    captured = capsys.readouterr()
    assert "the weights are 4 together, and taken as shares of it: red 75.0%, blue 25.0%" in captured.err
    assert "75.0% red: 6 pairs" in captured.out
    assert run_app([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [(one["folder"], one["share"], one["samples"]) for one in told["mixed_from"]] == [
        ("red", 0.75, 6),
        ("blue", 0.25, 2),
    ]


def test_no_set_is_mixed_with_itself(sets: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    red = sets["red"]
    shutil.copytree(red, tmp_path / "copy")
    for other in (red, Path(f"{red}/../red"), tmp_path / "copy"):
        said = refused(capsys, f"{red}:1", f"{other}:1", "--out", str(tmp_path / "mix"))
        assert said.startswith(f"{red} and {other}: the same set (fingerprint ")
        assert said.endswith("); give it once, with the weights added")
    assert not (tmp_path / "mix").exists()


def test_more_pairs_than_there_are_cannot_be_asked_for(
    sets: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = len(mixes.index(sets["blue"]))
    both = f"{sets['red']}:0.1", f"{sets['blue']}:0.9"
    said = refused(capsys, *both, "--samples", "10000", "--out", str(tmp_path / "mix"))
    most = int(there / 0.9)
    assert said == (
        f"--samples 10000: blue has {there} pairs for a share of 90.0%; ask for {most} at most, or give it a smaller "
        "weight"
    )
    assert not (tmp_path / "mix").exists()
    assert run_app(["mix", *both, "--samples", str(most), "--out", str(tmp_path / "mix")]) == 0
    said = refused(capsys, *both, "--samples", "0", "--out", str(tmp_path / "other"))
    assert said == "--samples: input should be greater than or equal to 1, not 0"


def test_a_refusal_after_the_images_were_read_says_that_this_stays_and_the_next_try_goes_on(
    sets: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, copies = tmp_path / "mix", f"{sets['copies']}:1"
    said = refused(capsys, f"{sets['red']}:2", copies, "--samples", "9", "--out", str(out))
    assert "every image of it is in red as well" in said
    assert said.endswith(f" (what is known of the images stays in {out} for that)")
    assert sorted(path.name for path in out.iterdir()) == [".work", "mix.json"]
    assert run_app(["mix", f"{sets['red']}:2", copies, "--samples", "9", "--keep-duplicates", "--out", str(out)]) == 0


def test_a_set_that_is_not_there_or_not_finished_is_named(
    sets: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = "--out", str(tmp_path / "mix")
    said = refused(capsys, f"{tmp_path}/nowhere:1", *out)
    assert said.startswith(f"{tmp_path}/nowhere: not a run folder")
    unfinished = shutil.copytree(sets["red"], tmp_path / "unfinished")
    (unfinished / "_SUCCESS").unlink()
    said = refused(capsys, f"{unfinished}:1", f"{sets['blue']}:1", *out, code=4)
    assert said == f"{unfinished}: not finished (no _SUCCESS); run `maskmine mine` again"
    begun = tmp_path / "begun"
    begun.mkdir()
    (begun / "mix.json").write_text("{}")
    said = refused(capsys, f"{begun}:1", *out, code=4)
    assert said == f"{begun}: not finished (no manifest.json); run the same `maskmine mix` again"
    assert not (tmp_path / "mix").exists()


def test_a_damaged_sample_ends_the_mix_with_its_name_and_nothing_is_published(
    sets: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    red = shutil.copytree(sets["red"], tmp_path / "red")
    whole = (red / "shards/00001.tar").read_bytes()
    row = next(row for row in mixes.index(red).to_pylist() if row["shard"] == "00001.tar")
    place = row["offset"] + 600
    (red / "shards/00001.tar").write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    command = f"{red}:1", "--out", str(tmp_path / "mix")
    said = refused(capsys, *command, code=4)
    assert said == (
        f"{red}/shards/00001.tar: sample {row['key']}: not what was written there; delete the tar and run `maskmine "
        "mine` again, which writes it again"
    )
    assert not (tmp_path / "mix/_SUCCESS").exists()
    (red / "shards/00001.tar").write_bytes(whole)
    assert run_app(["mix", *command]) == 0
    mixes.mix(tmp_path / "undisturbed", f"{sets['red']}:1")
    assert toy_shards.contents(tmp_path / "mix") == toy_shards.contents(tmp_path / "undisturbed")


@pytest.mark.parametrize("name", ["00001.tar", "00001.parquet"])
def test_a_damaged_shard_of_an_old_version_or_index_is_found_by_its_checksum(
    sets: dict[str, Path], name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = toy_shards.as_version(sets["red"], tmp_path / "old", 2)  # whose samples have no checksums of their own
    content = (old / "shards" / name).read_bytes()
    (old / "shards" / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    said = refused(capsys, f"{old}:1", "--out", str(tmp_path / "mix"), code=4)
    assert said.startswith(f"{old}/shards/{name}: its SHA-256 is not the one in manifest.json; delete it and run ")


def test_an_out_that_holds_something_else_is_left_alone(
    sets: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = f"{sets['red']}:1", f"{sets['blue']}:1"
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.tex").write_text("")
    said = refused(capsys, *both, "--out", str(tmp_path / "full"))
    assert said == f"--out {tmp_path}/full: not empty (thesis.tex lies there), and no mix; give another one"
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.tex"]
    (tmp_path / "file").write_text("")
    said = refused(capsys, *both, "--out", str(tmp_path / "file"))
    assert said == f"--out {tmp_path}/file: a file; give a folder that is empty or not there yet"
    for inner in (sets["red"], sets["red"] / "mix"):
        said = refused(capsys, *both, "--out", str(inner))
        assert said == f"--out {inner}: is in the folder of a set that is mixed ({sets['red']}); give another one"
        assert not (sets["red"] / "mix.json").exists()
    assert run_app(["mix", *both, "--out", str(tmp_path / "mix")]) == 0
    said = refused(capsys, *both, "--seed", "1", "--out", str(tmp_path / "mix"), code=5)
    assert said == f"{tmp_path}/mix: belongs to another mix (seed: 0 there, 1 here); give another --out"
    said = refused(capsys, both[0], "--out", str(tmp_path / "mix"), code=5)
    assert said == f"{tmp_path}/mix: belongs to another mix (other sets or weights); give another --out"


def test_crops_of_different_formats_are_refused_with_what_makes_them_alike(
    sets: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    png = mixes.mine(
        sets["red"].parent / "worlds/blue", tmp_path / "png", shards={"images_per_part": 10, "image_format": "png"}
    )
    said = refused(capsys, f"{sets['red']}:1", f"{png}:1", "--out", str(tmp_path / "mix"))
    assert said == (
        f"the crops are of different formats ({sets['red']} jpg, {png} png), which no loader takes for one set; mine "
        "again with one `shards.image_format`, which cuts anew and runs no model"
    )


def test_a_policy_names_every_part_that_it_refuses(
    sets: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = f"{sets['red']}:1", f"{sets['blue']}:1", "--out", str(tmp_path / "mix"), "--licence-policy", "commercial"
    said = refused(capsys, *command)
    assert "images all of blue: CC-BY-NC-4.0 is not for commercial use" in said
    assert "captions coco of red: licence unknown" in said
    assert not (tmp_path / "mix").exists()


def test_an_index_with_a_number_that_no_run_writes_is_one_line(
    sets: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in a set from elsewhere, whose checksums are right."""
    red = Path(shutil.copytree(sets["red"], tmp_path / "red"))
    path = red / "shards/00000.parquet"
    table = pq.read_table(path)
    keys = [f"{key}{'9' * 30}" for key in table["key"].to_pylist()]
    place = table.column_names.index("key")
    unsealed = table.replace_schema_metadata(own_metadata(table.schema.metadata))
    pq.write_table(unsealed.set_column(place, table.schema.field("key"), [keys]), path)
    manifest = json.loads((red / "manifest.json").read_text())
    manifest["shards"][0]["index_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (red / "manifest.json").write_text(json.dumps(manifest))
    said = refused(capsys, f"{red}:1", f"{sets['blue']}:1", "--out", str(tmp_path / "mix"), code=4)
    assert said.startswith("the indexes of the sets cannot be put together (")
    assert said.endswith("run `maskmine verify` on each of them, and run the same command again")
