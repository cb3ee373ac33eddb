"""Verdicts on pairs: what is read, which one counts, who disagrees, and which pairs of the cells they call wrong."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from maskmine.mining.evaluation.verdicts import Verdicts, read_verdicts, write_verdicts
from maskmine.mining.evaluation.wrong_pairs import find_judged_pairs
from maskmine.mining.pairs import Filters
from maskmine.mining.selection import cap_nouns, pair_hash
from maskmine.schemas.errors import InputError
from maskmine.schemas.mask import Mask
from maskmine.schemas.rows import Pair, PairsRow, Region, RegionsRow, Verdict, VerdictRow
from maskmine.schemas.tables import to_table, write_parquet

HEADER = "image_id,noun,mask,verdict,reviewer,at\n"


def row(
    verdict: Verdict, *, noun: str = "cat", reviewer: str = "ann", at: str = "2026-01-01T00:00:00.000000+00:00"
) -> VerdictRow:
    return VerdictRow(image_id="7", noun=noun, mask="a" * 16, verdict=verdict, reviewer=reviewer, at=at)


def day(number: int) -> str:
    return f"2026-01-{number:02d}T00:00:00.000000+00:00"


def csv(folder: Path, text: str) -> str:
    (folder / "verdicts.csv").write_text(text, encoding="utf-8")
    return str(folder / "verdicts.csv")


def test_a_folder_of_parquet_files_and_each_of_them_are_read(tmp_path: Path) -> None:
    rows = [row("right"), row("bad_mask", noun="dog"), row("cannot_say", noun="fox")]
    for name, some in (("ann-1.parquet", rows[:2]), ("bob-1.parquet", rows[2:])):
        with (tmp_path / name).open("wb") as file:
            write_verdicts(file, some)
    (tmp_path / "notes.txt").write_text("not a verdict")
    assert read_verdicts(str(tmp_path)).rows == tuple(rows)
    assert read_verdicts(str(tmp_path / "ann-1.parquet")).rows == tuple(rows[:2])


def test_the_last_verdict_counts_and_reviewers_who_differ_are_told() -> None:
    verdicts = Verdicts(
        (
            row("wrong_noun", at=day(3)),
            row("right", at=day(2)),
            row("right", reviewer="bob", at=day(1)),
            row("right", noun="dog", at=day(1)),
            row("bad_mask", noun="dog", at=day(2)),
            row("right", noun="fox", at=day(1)),
            row("right", noun="fox", reviewer="bob", at=day(2)),
        )
    )
    assert {pair[1]: last.verdict for pair, last in verdicts.latest.items()} == {
        "cat": "wrong_noun",
        "dog": "bad_mask",
        "fox": "right",
    }
    assert [pair[1] for pair in verdicts.disagreements] == ["cat"], "a change of mind is no disagreement"
    assert {pair[1] for pair in verdicts.wrong} == {"cat", "dog"}


def test_of_the_same_time_the_reviewer_and_then_the_verdict_decide() -> None:
    rows = (row("right", reviewer="bob"), row("wrong_noun"), row("bad_mask", reviewer="bob"))
    for some in (rows, rows[::-1]):
        (last,) = Verdicts(some).latest.values()
        assert (last.reviewer, last.verdict) == ("bob", "right")
    assert Verdicts((row("right"), row("bad_mask"))).disagreements, "nobody says two things at once"


def test_of_lines_without_a_time_the_last_one_counts(tmp_path: Path) -> None:
    lines = "image_id,noun,mask,verdict\n7,cat,a,wrong_noun\n7,cat,a,right\n7,dog,a,right\n7,dog,a,bad_mask\n"
    verdicts = read_verdicts(csv(tmp_path, lines))
    assert {pair[1]: last.verdict for pair, last in verdicts.latest.items()} == {"cat": "right", "dog": "bad_mask"}
    assert verdicts.disagreements == (), "they are of one reviewer"
    timed = Verdicts((row("right"), *verdicts.rows))
    assert len(timed.latest) == 3


def test_the_digest_is_of_the_wrong_pairs_alone() -> None:
    first = Verdicts((row("wrong_noun"), row("right", noun="dog")))
    assert first.digest == Verdicts((row("bad_mask", reviewer="bob", at=day(9)),)).digest
    assert first.digest != Verdicts((row("wrong_noun"), row("bad_mask", noun="dog"))).digest
    assert Verdicts((row("cannot_say"),)).digest == Verdicts(()).digest


def test_a_csv_has_times_of_any_zone_and_words_as_people_write_them(tmp_path: Path) -> None:
    text = HEADER + "7,cat,aa, Wrong noun ,ann,2026-01-01T02:00:00+02:00\n\n7,cat,aa,right,bob,2026-01-01\n"
    one, other = read_verdicts(csv(tmp_path, "\ufeff" + text)).rows
    assert (one.verdict, one.at) == ("wrong_noun", other.at) == ("wrong_noun", day(1))
    assert (other.reviewer, other.mask, other.seconds) == ("bob", "aa", None)


def test_a_csv_may_be_as_a_spreadsheet_saves_it(tmp_path: Path) -> None:
    lines = ["image_id,noun,mask,verdict", "7,café,aa,right", "8,cat,bb,bad mask"]
    plain = read_verdicts(csv(tmp_path, "\n".join(lines))).rows
    assert [row.noun for row in plain] == ["café", "cat"]
    semicolons = "\r\n".join(line.replace(",", ";") for line in lines)
    for text, encoding in (
        (semicolons, "utf-8-sig"),
        (f"sep=;\r\n{semicolons}\r\n", "utf-8"),
        ("\r\n".join(line.replace(",", "\t") for line in lines), "utf-16"),
        ("\r".join(lines), "utf-8"),
    ):
        (tmp_path / "saved.csv").write_bytes(text.encode(encoding))
        assert read_verdicts(str(tmp_path / "saved.csv")).rows == plain
    (tmp_path / "saved.csv").write_bytes(semicolons.encode("cp1252"))
    with pytest.raises(
        InputError, match=r"line 2 is no text in utf-8; mend the line, or save the table as CSV in UTF-8"
    ):
        read_verdicts(str(tmp_path / "saved.csv"))


def test_a_csv_of_keys_needs_to_know_their_pairs(tmp_path: Path) -> None:
    path = csv(tmp_path, "key,verdict\n7-000,bad_mask\n9-000,right\n")
    verdicts = read_verdicts(path, pair_of_key={"7-000": ("7", "cat", "aa")})
    assert verdicts.wrong == {("7", "cat", "aa")}
    assert verdicts.unknown_keys == ("9-000",)
    with pytest.raises(InputError, match="keys of samples mean nothing here"):
        read_verdicts(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no column `image_id`"),
        ("image_id,noun,verdict\n7,cat,right\n", "no column `mask`; expected image_id,noun,mask,verdict, or key"),
        (HEADER + "7,cat,aa,right,,\n7,dog,aa,maybe,,\n", "line 3: `maybe` is no verdict; expected right, wrong_noun"),
        (HEADER + "7,,aa,right,,\n", "line 2: no `noun`"),
        (HEADER + "7,cat,,right,,\n", "line 2: no `mask`"),
        (HEADER + "7,cat,aa,right\n", "line 2 has 4 fields, the header 6; mend the line"),
        (HEADER + "7,cat,aa,right,ann,yesterday\n", "line 2: Invalid isoformat string: 'yesterday'"),
        (HEADER + '7,"cat,aa,right\n', "line 2: a quote in it is not closed"),
    ],
)
def test_what_is_wrong_with_a_csv_is_said_with_its_line(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(InputError, match=re.escape(words)):
        read_verdicts(csv(tmp_path, text))


def test_files_that_are_none_of_verdicts_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere: no such file or folder"):
        read_verdicts(str(tmp_path / "nowhere"))
    (tmp_path / "ann-1.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(InputError, match=r"ann-1.parquet: not a whole Parquet file"):
        read_verdicts(str(tmp_path))
    with (tmp_path / "ann-1.parquet").open("wb") as file:
        write_parquet(to_table([PairsRow("7", (), None)], PairsRow), file)
    with pytest.raises(InputError, match=r"ann-1.parquet: holds no verdicts"):
        read_verdicts(str(tmp_path))
    with (tmp_path / "ann-1.parquet").open("wb") as file:
        write_verdicts(file, [row("maybe")])  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"ann-1.parquet: `maybe` is no verdict"):
        read_verdicts(str(tmp_path / "ann-1.parquet"))
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(InputError, match="neither Parquet nor a CSV"):
        read_verdicts(str(tmp_path / "photo.jpg"))


# --- the cells --------------------------------------------------------------------------------------------------------


def mask(number: int) -> Mask:
    array_HW = np.zeros((8, 8), np.uint8)
    array_HW[number, :] = 1
    return Mask.from_array(array_HW)


def write_cells(folder: Path, images: int) -> tuple[list[str], list[str]]:
    """Image n says `cat` of its region 1 and `dog` of region 0; all images have the same masks."""
    paths: tuple[list[str], list[str]] = ([], [])
    for part in range(2):
        ids = [f"image{n}" for n in range(images)][part::2]
        regions = tuple(
            Region(mask=mask(n), box_xyxy=(0, 0, 1, 1), area_px=8, score=0.5, label=None, embedding=b"x" * 8)
            for n in range(3)
        )
        pairs = tuple(
            Pair(noun=noun, lemma=noun, caption=0, start=0, end=3, region=r, similarity=0.2, margin=0.1, rank=0)
            for noun, r in (("dog", 0), ("cat", 1))
        )
        seen = [
            RegionsRow(image_id=i, sha256=None, height_px=8, width_px=8, regions=regions, rejection=None) for i in ids
        ]
        for to, name, rows, kind in (
            (paths[0], "pairs", [PairsRow(i, pairs, None) for i in ids], PairsRow),
            (paths[1], "proposals", seen, RegionsRow),
        ):
            to.append(str(folder / f"{name}-{part}.parquet"))
            with open(to[-1], "wb") as file:
                write_parquet(to_table(rows, kind), file)
    return paths


def test_wrong_pairs_are_found_by_image_noun_and_mask(tmp_path: Path) -> None:
    cells = write_cells(tmp_path, 5)
    wrong = {
        ("image0", "cat", mask(1).digest),
        ("image3", "dog", mask(0).digest),
        ("image1", "cat", mask(0).digest),  # that is the dog's
        ("image2", "fox", mask(1).digest),
        ("elsewhere", "cat", mask(1).digest),
    }
    found = find_judged_pairs(*cells, judged=wrong)
    assert found == {("image0", 1): ("image0", "cat", mask(1).digest), ("image3", 0): ("image3", "dog", mask(0).digest)}
    assert find_judged_pairs(["/nowhere"], ["/nowhere"], judged=()) == {}


def test_pairs_that_are_left_out_take_no_place_of_the_cap(tmp_path: Path) -> None:
    pairs, regions = write_cells(tmp_path, 6)
    in_order = sorted((f"image{n}" for n in range(6)), key=lambda image: pair_hash(image, 1))
    left_out = find_judged_pairs(pairs, regions, judged={(in_order[0], "cat", mask(1).digest)})
    cuts = {
        words: {cut.noun: cut.last for cut in cap_nouns(Filters(max_per_noun=3), pairs, left_out=some)}
        for words, some in (("all", ()), ("left out", left_out))
    }
    assert cuts["all"]["cat"] == pair_hash(in_order[2], 1)
    assert cuts["left out"]["cat"] == pair_hash(in_order[3], 1)
    assert cuts["left out"]["dog"] == cuts["all"]["dog"]
