"""Mixing: shares, copies, keys, licences; the same bytes again, also after a kill and from a mix of mixes."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import duckdb
import pytest
from hypothesis import given
from hypothesis import strategies as st

import maskmine
from maskmine.pipelines.dataset.verify import verify_run
from maskmine.pipelines.mix import choice, images, mix
from maskmine.pipelines.mix.shares import most_samples, split_samples
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.schemas.errors import IncompleteError, InputError
from maskmine.schemas.sample import safe_id, sample_members
from tests.support import mixes
from tests.support.toy_shards import as_version, contents


@pytest.fixture(scope="module")
def mixed(sets: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two thirds red, one third blue, in shards of ten pairs."""
    out = tmp_path_factory.mktemp("mixed") / "mix"
    mixes.mix(out, f"{sets['red']}:2", f"{sets['blue']}:1", samples_per_shard=10)
    return out


def from_set(folder: Path) -> Counter[str]:
    """The pairs of a mix by the set that they are from."""
    of = {row["image_id"]: row["run"] for row in mixes.origins(folder)}
    return Counter(of[image_id] for image_id in mixes.index(folder)["image_id"].to_pylist())


# What is in it.


def test_a_mix_is_the_largest_that_meets_its_shares_and_verifies(mixed: Path, sets: dict[str, Path]) -> None:
    there = {name: len(mixes.index(sets[name])) for name in ("red", "blue")}
    most = min(there["red"] * 3 // 2, there["blue"] * 3)
    red, blue = from_set(mixed)["red"], from_set(mixed)["blue"]
    assert (red + blue, red, blue) == (most, round(most * 2 / 3), round(most / 3))
    assert list(verify_run(RunFolder(str(mixed)))) == []


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(1, 1000)), min_size=1, max_size=6), st.data())
def test_counts_are_their_shares_to_within_a_pair_and_never_more_than_there_is(
    sets: list[tuple[int, int]], data: st.DataObject
) -> None:
    total = sum(weight for weight, _ in sets)
    shares, there = [Fraction(weight, total) for weight, _ in sets], [pairs for _, pairs in sets]
    most = most_samples(shares, there)
    samples = data.draw(st.integers(0, most))
    counts = split_samples(samples, shares)
    assert sum(counts) == samples
    assert all(abs(count - samples * share) < 1 for count, share in zip(counts, shares, strict=True))
    assert all(count <= pairs for count, pairs in zip(counts, there, strict=True))
    assert any((most + 1) * share > pairs for share, pairs in zip(shares, there, strict=True))


def test_samples_are_the_bytes_of_their_sets_and_shards_hold_whole_images_of_both(
    mixed: Path, sets: dict[str, Path]
) -> None:
    of = {row["image_id"]: row for row in mixes.origins(mixed)}
    here, there = mixes.spans(mixed), {name: mixes.spans(sets[name]) for name in ("red", "blue")}
    renamed = 0
    for row in mixes.index(mixed).to_pylist():
        origin = of[row["image_id"]]
        old = f"{safe_id(origin['image_there'])}-{row['key'].rpartition('-')[2]}"
        span, before = here[row["key"]], there[origin["run"]][old]
        if row["key"] == old:
            assert span == before
            continue
        renamed += 1
        *parts, record = sample_members(span, row["key"])
        *parts_before, record_before = sample_members(before, old)
        assert parts == parts_before
        assert json.loads(record) == json.loads(record_before) | {"image_id": row["image_id"]}
    assert renamed  # both worlds have scenes of the same ids
    shards = (
        mixes.index(mixed).select(["image_id", "shard"]).group_by("image_id").aggregate([("shard", "count_distinct")])
    )
    assert set(shards["shard_count_distinct"].to_pylist()) == {1}
    assert all(len(Counter(of[i]["run"] for i in ids)) == 2 for ids in images_of_shards(mixed)[:2])


def images_of_shards(folder: Path) -> list[list[str]]:
    table = mixes.index(folder)
    names = sorted(set(table["shard"].to_pylist()))
    return [[row["image_id"] for row in table.to_pylist() if row["shard"] == name] for name in names]


def test_keys_stay_where_they_are_unique_and_are_told_apart_by_the_set_where_not(mixed: Path) -> None:
    keys = mixes.index(mixed)["key"].to_pylist()
    assert len(set(keys)) == len(keys)
    changed = {row["run"] for row in mixes.origins(mixed) if row["image_id"] != row["image_there"]}
    assert changed == {"blue"}  # the set with the smaller share
    manifest = json.loads((mixed / "manifest.json").read_text())
    blue = next(one["content"] for one in manifest["mixed_from"] if one["folder"] == "blue")
    assert all(
        row["image_id"] == f"{row['image_there']}-{blue[:8]}"
        for row in mixes.origins(mixed)
        if row["image_id"] != row["image_there"]
    )


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=80))
def test_ids_are_the_same_ends_of_keys_in_a_query_as_elsewhere(image_id: str) -> None:
    if "\0" in image_id:
        return
    found = duckdb.execute(f"SELECT {choice._STEM} FROM (SELECT ? AS new_id)", [image_id]).fetchall()
    assert found == [(safe_id(image_id),)]


def test_the_order_and_the_writing_of_weights_do_not_matter(mixed: Path, sets: dict[str, Path], tmp_path: Path) -> None:
    mixes.mix(tmp_path / "mix", f"{sets['blue']}:0.5", f"{sets['red']}:1.0", samples_per_shard=10)
    assert contents(tmp_path / "mix") == contents(mixed)


def test_another_seed_takes_other_images_of_the_same_shares(sets: dict[str, Path], tmp_path: Path) -> None:
    both = f"{sets['red']}:1", f"{sets['blue']}:1"
    mixes.mix(tmp_path / "a", *both, samples=12)
    mixes.mix(tmp_path / "b", *both, samples=12, seed=1)
    assert from_set(tmp_path / "a") == from_set(tmp_path / "b") == {"red": 6, "blue": 6}
    assert set(mixes.index(tmp_path / "a")["key"].to_pylist()) != set(mixes.index(tmp_path / "b")["key"].to_pylist())


def test_a_smaller_mix_is_a_part_of_a_larger_one(sets: dict[str, Path], tmp_path: Path) -> None:
    both = f"{sets['red']}:1", f"{sets['blue']}:1"
    for samples in (8, 16):
        mixes.mix(tmp_path / str(samples), *both, samples=samples)

    def pairs(folder: Path) -> set[tuple[str, ...]]:
        of = {row["image_id"]: (row["run"], row["image_there"]) for row in mixes.origins(folder)}
        return {(*of[row["image_id"]], row["key"][-3:]) for row in mixes.index(folder).to_pylist()}

    assert len(pairs(tmp_path / "8")) == 8
    assert pairs(tmp_path / "8") < pairs(tmp_path / "16")


# Images that several sets have.


@pytest.mark.parametrize("other", ["again", "copies"])
def test_of_copies_the_set_with_the_larger_share_keeps_its_pairs(
    sets: dict[str, Path], other: str, tmp_path: Path
) -> None:
    """The files of `again` are the same, those of `copies` look the same."""
    with pytest.raises(InputError, match=rf"{other}: every image of it is in red as well; .*--keep-duplicates"):
        mixes.mix(tmp_path / "none", f"{sets['red']}:2", f"{sets[other]}:1")
    both = mixes.mix(tmp_path / "both", f"{sets['red']}:2", f"{sets['blue']}:2", f"{sets[other]}:1", copy_bits=None)
    assert {one.folder: one.images_copied for one in both.manifest.mixed_from} == {"red": 0, "blue": 0, other: 0}
    digests = [row["sha256"] for row in mixes.origins(tmp_path / "both")]
    assert (len(set(digests)) < len(digests)) == (other == "again")


def test_files_of_the_same_bytes_are_copies_also_where_they_cannot_be_read_any_more(
    sets: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "look_of", lambda path, sha256: None)
    with pytest.raises(InputError, match="again: every image of it is in red as well"):
        mixes.mix(tmp_path / "none", f"{sets['red']}:2", f"{sets['again']}:1")
    mixed = mixes.mix(tmp_path / "mix", f"{sets['red']}:2", f"{sets['copies']}:1")  # the same images in other bytes
    assert {one.folder: one.images_copied for one in mixed.manifest.mixed_from} == {"red": 0, "copies": 0}
    assert all(one.not_compared for one in mixed.manifest.mixed_from)


def test_copies_are_counted_and_each_has_one_that_stays(sets: dict[str, Path], tmp_path: Path) -> None:
    """A mix of red and blue, in which a tenth are red scenes, has those of the other red run but for that tenth."""
    few = tmp_path / "few"
    mixes.mix(few, f"{sets['red']}:1", f"{sets['blue']}:3")
    red = {row["image_there"] for row in mixes.origins(few) if row["run"] == "red"}
    there = Counter(mixes.index(sets["copies"])["image_id"].to_pylist())
    mixed = mixes.mix(tmp_path / "mix", f"{few}:2", f"{sets['copies']}:1")
    copies = next(one for one in mixed.manifest.mixed_from if one.folder == "copies")
    gone = red & set(there)
    assert gone
    assert (copies.images_copied, copies.samples_copied) == (len(gone), sum(there[image_id] for image_id in gone))
    from_copies = {row["image_there"] for row in mixes.origins(tmp_path / "mix") if row["run"] == "copies"}
    assert not from_copies & red
    assert any("left out" in note and "copies" in note for note in mixed.notes)


def test_the_bits_decide_which_images_are_taken_for_copies(sets: dict[str, Path], tmp_path: Path) -> None:
    looks = {}
    for name in ("red", "copies"):
        mixes.mix(tmp_path / name, f"{sets[name]}:1")
        looks[name] = {row["image_there"]: int(row["look"], 16) for row in mixes.origins(tmp_path / name)}
    bits = {image_id: (look ^ looks["red"][image_id]).bit_count() for image_id, look in looks["copies"].items()}
    near = sum(distance <= 2 for distance in bits.values())
    mixed = mixes.mix(tmp_path / "mix", f"{sets['red']}:2", f"{sets['copies']}:1", copy_bits=2)
    assert 0 < near < len(bits)
    assert {one.folder: one.images_copied for one in mixed.manifest.mixed_from} == {"red": 0, "copies": near}


def test_what_cannot_be_compared_is_said_and_kept(sets: dict[str, Path], tmp_path: Path) -> None:
    """A set of which only the published files are left has no hashes of its images."""
    bare = tmp_path / "bare"
    shutil.copytree(sets["again"], bare)
    for step in ("images", "proposals", "captions", "nouns", "pairs"):
        shutil.rmtree(bare / step)
    mixed = mixes.mix(tmp_path / "mix", f"{sets['red']}:2", f"{bare}:1")
    entry = next(one for one in mixed.manifest.mixed_from if one.folder == "bare")
    assert entry.images_copied == 0
    assert entry.not_compared == len(set(mixes.index(bare)["image_id"].to_pylist()))
    assert any(note.startswith("bare: ") and "not compared" in note for note in mixed.notes)
    assert "not compared" in (tmp_path / "mix/README.md").read_text()


# Versions, crops, licences, ancestors.


def test_sets_of_older_format_versions_get_null_for_what_they_do_not_have(
    sets: dict[str, Path], tmp_path: Path
) -> None:
    old = as_version(sets["blue"], tmp_path / "old", 1)
    mixed = mixes.mix(tmp_path / "mix", f"{sets['red']}:1", f"{old}:1")
    assert mixed.manifest.format_version == 3
    assert any("format versions 1, 3" in note for note in mixed.notes)
    assert list(verify_run(RunFolder(str(tmp_path / "mix")))) == []
    of = {row["image_id"]: row["run"] for row in mixes.origins(tmp_path / "mix")}
    spans = mixes.spans(tmp_path / "mix")
    records = [json.loads(sample_members(span, key)[-1]) for key, span in spans.items()]
    added = [(r["source"], r["additional"], r["lift"]) for r in records if of[r["image_id"]] == "old"]
    assert set(added) == {(None, "{}", None)}


def test_unchecked_pairs_beside_checked_ones_have_null_checks(sets: dict[str, Path], tmp_path: Path) -> None:
    checked = mixes.as_checked(sets["blue"], tmp_path / "checked")
    mixed = mixes.mix(tmp_path / "mix", f"{sets['red']}:1", f"{checked}:1")
    assert mixed.manifest.format_version == 4
    assert list(verify_run(RunFolder(str(tmp_path / "mix")))) == []
    of = {row["image_id"]: row["run"] for row in mixes.origins(tmp_path / "mix")}
    found = {
        (of[row["image_id"]], row["presence"], row["agreement"]) for row in mixes.index(tmp_path / "mix").to_pylist()
    }
    assert found == {("red", None, None), ("checked", 0.75, 0.5)}
    assert "| `presence` |" in (tmp_path / "mix/README.md").read_text()


def test_readers_may_count_on_the_least_expansion_of_the_crops(sets: dict[str, Path], tmp_path: Path) -> None:
    mixed = mixes.mix(tmp_path / "mix", f"{sets['again']}:1", f"{sets['blue']}:1")
    assert mixed.manifest.setting("shards", "expand_ratio") == 1.2
    assert any("again 1.5" in note and "blue 1.2" in note for note in mixed.notes)


def test_one_record_has_the_licences_of_all_and_a_policy_refuses_them(
    mixed: Path, sets: dict[str, Path], tmp_path: Path
) -> None:
    manifest = json.loads((mixed / "manifest.json").read_text())
    found = {(source["role"], source["name"], source["licence"]) for source in manifest["sources"]}
    assert found == {
        ("captions", "coco", "unknown"),
        ("captions", "coco", "CC-BY-4.0"),
        ("images", "red", "unknown"),
        ("images", "blue", "CC-BY-NC-4.0"),
    }
    models = [(model["role"], model["sha256"]) for model in manifest["models"]]
    assert sorted(role for role, _ in models) == ["nouns", "proposals", "proposals"]  # one parser, two truths
    card, croissant = (mixed / "README.md").read_text(), json.loads((mixed / "croissant.json").read_text())
    assert "| images | blue | CC-BY-NC-4.0 |" in card
    assert any("CC-BY-NC-4.0" in url for url in croissant["license"])
    with pytest.raises(InputError, match=r"--licence-policy commercial refuses .*all of blue: CC-BY-NC-4.0"):
        mix.mix_sets([(str(sets["blue"]), Fraction(1))], choice.Mixing(), out=str(tmp_path / "no"), policy="commercial")
    assert not (tmp_path / "no").exists()


def test_a_mix_of_mixes_names_all_ancestors(mixed: Path, sets: dict[str, Path], tmp_path: Path) -> None:
    outer = mixes.mix(tmp_path / "outer", f"{mixed}:3", f"{sets['again']}:1", copy_bits=None)
    assert list(verify_run(RunFolder(str(tmp_path / "outer")))) == []
    inner = next(one for one in outer.manifest.mixed_from if one.folder == "mix")
    assert [one.folder for one in inner.mixed_from] == ["red", "blue"]
    card = (tmp_path / "outer/README.md").read_text()
    assert "| mix | 75.0% |" in card
    assert "| – red | 66.7% |" in card
    files = {row["file"] for row in mixes.origins(tmp_path / "outer")}
    assert {file.split("/")[0] for file in files} == {"mix", "again"}
    assert any(file.startswith("mix/blue/") for file in files)
    licensed = {source.name for source in outer.manifest.sources if source.role == "images"}
    assert licensed == {"red", "blue", "again"}


# The same bytes again.


@pytest.mark.parametrize("stage", ["facts", "first shard", "second shard", "manifest", "success"])
def test_a_mix_that_was_stopped_anywhere_ends_with_the_same_bytes(
    mixed: Path, sets: dict[str, Path], stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed processes are in `scripts/chaos --world mix`; here the write of one file fails."""
    names = {
        "facts": "a second part",
        "first shard": "shards/00000.parquet",
        "second shard": "shards/00001.json",
        "manifest": "manifest.json",
        "success": "_SUCCESS",
    }
    write, facts = RunFolder.write, list[bool]()

    def failing(self: RunFolder, *path: str) -> Any:
        facts.append(path[0] == ".work")
        if "/".join(path) == names[stage] or (stage == "facts" and sum(facts) == 4):
            raise IncompleteError("the power is off")
        return write(self, *path)

    given = f"{sets['red']}:2", f"{sets['blue']}:1"
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "write", failing)
        with pytest.raises(IncompleteError, match="power"):
            mixes.mix(tmp_path / "mix", *given, samples_per_shard=10)
    assert not (tmp_path / "mix/_SUCCESS").exists()
    before = {p: p.stat().st_ino for p in (tmp_path / "mix").glob("shards/*.tar") if p.with_suffix(".json").exists()}
    assert not mixes.mix(tmp_path / "mix", *given, samples_per_shard=10).was_complete
    assert contents(tmp_path / "mix") == contents(mixed)
    assert all(path.stat().st_ino == inode for path, inode in before.items())  # a shard that was there stays
    assert bool(before) == (stage not in ("facts", "first shard"))
    assert mixes.mix(tmp_path / "mix", *given, samples_per_shard=10).was_complete


@pytest.mark.parametrize("at_once", [1, 2])
def test_how_many_indexes_are_in_a_query_does_not_matter(
    mixed: Path, sets: dict[str, Path], at_once: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "_PARTS_AT_ONCE", at_once)
    mixes.mix(tmp_path / "mix", f"{sets['red']}:2", f"{sets['blue']}:1", samples_per_shard=10)
    assert contents(tmp_path / "mix") == contents(mixed)


def test_a_shard_that_was_deleted_is_made_again_and_leftovers_go(
    mixed: Path, sets: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(mixed, tmp_path / "mix")
    (tmp_path / "mix/shards/00001.tar").unlink()
    (tmp_path / "mix/shards/00099.tar").write_bytes(b"of an earlier choice")
    (tmp_path / "mix/.work").mkdir()
    (tmp_path / "mix/.work/000-00000.parquet").write_bytes(b"")
    again = mixes.mix(tmp_path / "mix", f"{sets['red']}:2", f"{sets['blue']}:1", samples_per_shard=10)
    assert not again.was_complete
    assert contents(tmp_path / "mix") == contents(mixed)


def test_python_mixes_as_the_command_does(mixed: Path, sets: dict[str, Path], tmp_path: Path) -> None:
    run = maskmine.mix({sets["red"]: 2, sets["blue"]: 1}, out=tmp_path / "mix", shard_size=10)
    assert contents(tmp_path / "mix") == contents(mixed)
    assert run.published
    pair = next(run.pairs())
    assert pair.noun == run.index()["noun"][0].as_py()
    assert pair.mask.any()
    assert run.manifest.mixed_from[0].folder == "red"
