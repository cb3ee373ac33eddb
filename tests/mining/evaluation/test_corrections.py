"""What verdicts with corrections come to: which pairs stay, where a corrected noun is said, what a noun may be."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maskmine.mining.evaluation.corrections import Correction, checked_noun, span_of
from maskmine.mining.evaluation.verdicts import Verdicts, read_verdicts, write_verdicts
from maskmine.mining.evaluation.wrong_pairs import PairNumber
from maskmine.mining.pairs import ClipPairs, Filters
from maskmine.mining.selection import cap_nouns, keep_corrected, pair_hash
from maskmine.schemas.annotation_tools import pair_line, parse_pair_line
from maskmine.schemas.columns import arrow_schema
from maskmine.schemas.errors import InputError
from maskmine.schemas.mask import Mask
from maskmine.schemas.rows import Pair, PairsRow, PlainVerdictRow, VerdictRow
from maskmine.schemas.tables import read_parquet, to_table, write_parquet

OWN, OTHER = (Mask.from_array(np.eye(8) == n) for n in (0, 1))


def row(verdict: Any, *, noun: str = "cat", day: int = 1, **corrected: Any) -> VerdictRow:
    at = f"2026-01-{day:02d}T00:00:00.000000+00:00"
    return VerdictRow(image_id="7", noun=noun, mask=OWN.digest, verdict=verdict, reviewer="ann", at=at, **corrected)


def test_a_wrong_pair_stays_where_what_is_wrong_is_replaced() -> None:
    verdicts = Verdicts(
        (
            row("bad_mask", noun="a", corrected_mask=OTHER),
            row("bad_mask", noun="b", corrected_noun="bee"),
            row("wrong_noun", noun="c", corrected_noun="sea", corrected_mask=OTHER),
            row("wrong_noun", noun="d", corrected_mask=OTHER),
            row("right", noun="e", corrected_mask=OTHER),
            row("right", noun="f", corrected_mask=OWN, corrected_noun="f"),
            row("bad_mask", noun="g", corrected_mask=OWN),
            row("right", noun="h", corrected_noun="aitch"),
        )
    )
    decisions = verdicts.decisions
    assert {noun for _, noun, _ in decisions.wrong} == {"b", "d", "g"}
    assert {pair[1]: one for pair, one in decisions.corrections.items()} == {
        "a": Correction(None, OTHER),
        "c": Correction("sea", OTHER),
        "e": Correction(None, OTHER),
        "h": Correction("aitch", None),
    }
    assert verdicts.counts == {
        "verdicts": {"bad_mask": 3, "right": 3, "wrong_noun": 2},
        "corrected": {"mask": 3, "noun": 2},
    }


def test_the_last_word_takes_back_the_correction_before_it() -> None:
    rows = (row("bad_mask", corrected_mask=OTHER, day=2), row("right", day=3))
    assert not Verdicts(rows).decisions
    assert Verdicts(rows[:1]).digest != Verdicts(rows).digest
    renamed = Verdicts((row("wrong_noun", corrected_noun="dog"),)).digest
    assert renamed != Verdicts((row("wrong_noun", corrected_noun="fox"),)).digest != Verdicts((row("right"),)).digest


def test_corrections_survive_their_file_and_without_any_it_is_as_before(tmp_path: Path) -> None:
    rows = [row("bad_mask", corrected_mask=OTHER), row("wrong_noun", noun="dog", corrected_noun="fox"), row("right")]
    for some, kind in ((rows, VerdictRow), (rows[2:], PlainVerdictRow)):
        with (tmp_path / "rows.parquet").open("wb") as file:
            write_verdicts(file, some)
        assert read_verdicts(str(tmp_path / "rows.parquet")).rows == tuple(some)
        with (tmp_path / "rows.parquet").open("rb") as file:
            assert read_parquet(file).schema.names == arrow_schema(kind).names


@pytest.mark.parametrize(
    ("corrected", "words"),
    [
        ({"corrected_noun": "Two  Dogs"}, "not in the form of a run's nouns"),
        ({"corrected_noun": ""}, "is empty"),
        ({"corrected_mask": Mask(8, 8, b"0")}, "do not cover the image"),
        ({"corrected_mask": Mask.from_array(np.zeros((8, 8)))}, "has no pixel"),
        ({"corrected_mask": Mask(1 << 20, 1 << 20, b"0")}, "of no size that an image has"),
    ],
)
def test_a_file_with_a_correction_that_no_import_lets_through_is_told(
    tmp_path: Path, corrected: Any, words: str
) -> None:
    with (tmp_path / "rows.parquet").open("wb") as file:
        write_parquet(to_table([row("right", **corrected)], VerdictRow), file)
    with pytest.raises(InputError, match=rf"rows.parquet: .*{re.escape(words)}"):
        read_verdicts(str(tmp_path / "rows.parquet"))


def test_a_csv_may_correct(tmp_path: Path) -> None:
    runs = json.dumps({"size": [8, 8], "counts": OTHER.counts.decode()}).replace('"', '""')
    header = "image_id,noun,mask,verdict,corrected_noun,corrected_mask\n"
    line = f'7,cat,{OWN.digest},bad mask, Two  DOGS ,"{runs}"\n'
    (tmp_path / "some.csv").write_text(header + line)
    (found,) = read_verdicts(str(tmp_path / "some.csv")).rows
    assert (found.corrected_noun, found.corrected_mask) == ("two dogs", OTHER)
    (tmp_path / "some.csv").write_text(header + f"7,cat,{OWN.digest},bad mask,,[1]\n")
    with pytest.raises(InputError, match="line 2: `corrected_mask` is no run lengths"):
        read_verdicts(str(tmp_path / "some.csv"))


@pytest.mark.parametrize(
    ("noun", "caption", "span"),
    [
        ("dog", "A Dog and a dog.", (2, 5)),
        ("dog", "Two dogs.", (0, 0)),
        ("hot dog", "One hot\n dog", (4, 12)),
        ("café", "The CAFÉ.", (4, 8)),
        ("c++", "In c++ it", (3, 6)),
        ("fox", "", (0, 0)),
    ],
)
def test_a_corrected_noun_is_where_the_caption_says_it_first(noun: str, caption: str, span: tuple[int, int]) -> None:
    assert span_of(noun, caption) == span


def test_a_noun_is_made_one_of_a_run_or_refused() -> None:
    assert checked_noun("  Fire\thydrant ") == "fire hydrant"
    assert checked_noun("cafe\u0301") == "café"
    for noun in ("", " \n", "x" * 101, "a\x00b", "a\u200bb", "a\ud800"):
        with pytest.raises(ValueError, match="a corrected noun"):
            checked_noun(noun)


def test_a_pair_is_known_by_a_line_whatever_is_in_its_id_and_noun() -> None:
    pair = ("a/b c&é", "red couch", OWN.digest)
    line = pair_line(pair)
    assert "\n" not in line
    assert line.isascii()
    assert parse_pair_line(f" {line} ") == pair
    for other in ("", "7/cat", f"7/cat/{OWN.digest}/x", f"7//{OWN.digest}", "7/cat/not-a-digest", f"7/é/{OWN.digest}"):
        assert parse_pair_line(other) is None


def test_a_corrected_pair_takes_its_place_under_its_new_noun_whatever_its_scores(tmp_path: Path) -> None:
    rows = [
        PairsRow(
            str(n),
            tuple(
                Pair(
                    noun=noun,
                    lemma=noun,
                    caption=0,
                    start=0,
                    end=3,
                    region=0,
                    similarity=0.5,
                    margin=0.0,
                    rank=0,
                )
                for noun in ("cat", "dog")
            ),
            None,
        )
        for n in range(4)
    ]
    cell = str(tmp_path / "00000.parquet")
    with open(cell, "wb") as file:
        write_parquet(to_table(rows, PairsRow), file)
    corrected: dict[PairNumber, str] = {("2", 1): "cat"}
    cuts = {cut.noun: cut.last for cut in cap_nouns(Filters(max_per_noun=4), [cell], corrected=corrected)}
    hashes = sorted([*(pair_hash(str(n), 0) for n in range(4)), pair_hash("2", 1)])
    assert cuts == {"cat": hashes[3]}
    assert cap_nouns(Filters(max_per_noun=3), [cell], corrected=corrected)[1:] == [], "three dogs are left"
    strict = ClipPairs(rule="best_region_per_noun", min_similarity=0.9, max_per_noun=1)
    two: dict[PairNumber, str] = {("2", 1): "cat", ("3", 1): "cat"}
    (cut,) = cap_nouns(strict, [cell], corrected=two)
    assert (cut.noun, cut.last) == ("cat", min(pair_hash("2", 1), pair_hash("3", 1)))
    keep = keep_corrected(cuts)
    assert keep("2", 1, "cat") is (pair_hash("2", 1) <= hashes[3])
    assert keep("2", 1, "dog")
