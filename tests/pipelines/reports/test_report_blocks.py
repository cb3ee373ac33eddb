"""What a report counts block by block is what it would count of all at once."""

from __future__ import annotations

import hashlib
import random
from collections import Counter

import pyarrow as pa
import pytest

from maskmine.mining.storage import tally
from maskmine.mining.storage.query import query_tables
from maskmine.pipelines.reports.chosen_samples import SampleChooser
from maskmine.pipelines.reports.figures import NounCounter
from maskmine.pipelines.reports.spreads import Spreads, count_bins

Sample = tuple[str, str, str, float | None]
"""Key, shard, noun and similarity."""


def test_counts_of_values_have_the_quantiles_and_bins_of_the_values() -> None:
    rng = random.Random(5)
    with query_tables() as db:
        for size in (1, 2, 3, 10, 99, 100, 101, 250):
            values = [round(rng.gauss(0, 0.1), 2) for _ in range(size)]
            db.register("plain", pa.table({"value": values}))
            db.execute("DROP TABLE IF EXISTS spread")
            spreads = Spreads(db)
            for start in range(0, size, 40):
                db.register("block", pa.table({"value": [*values[start : start + 40], None]}, schema=_VALUES))
                spreads.add("score", value="value", source="block")
            spreads.sum_up()
            for share in (0.05, 0.1, 0.2, 0.5, 0.9, 0.95):
                wanted = db.execute(f"SELECT quantile_disc(value, {share}) FROM plain").fetchall()
                assert [(spreads.quantile("score", share),)] == wanted, (size, share)
            assert spreads.ends("score") == (
                (min(values), max(values)) if size > 1 else (values[0] - 0.01, values[0] + 0.01)
            )
            assert spreads.histogram("score", low=-0.5, high=0.5) == count_bins(
                db, "value", "plain", low=-0.5, high=0.5
            )
            assert spreads.at_least("score", values[0]) == sum(value >= values[0] for value in values)
        assert spreads.ends("another") is None
        assert spreads.quantile("another", 0.5) is None


_VALUES = pa.schema([pa.field("value", pa.float64())])


@pytest.mark.parametrize(("nouns", "search"), [(3, 12), (9, 12), (40, 12), (3, 0), (2, 500)])
def test_the_samples_to_show_are_those_of_the_whole_set(
    nouns: int, search: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tally, "_LEAST_ROWS", 8)
    rng = random.Random(nouns)
    names = [f"noun{number}" for number in range(nouns)]
    samples: list[Sample] = [
        (
            f"{number:04d}",
            f"{number // 20:05d}.tar",
            rng.choices(names, range(1, nouns + 1))[0],
            None if number % 7 == 0 else round(rng.random(), 1),
        )
        for number in range(200)
    ]
    with query_tables() as db:
        counter = NounCounter(db)
        chooser = SampleChooser(db, counter, pairs=4, gallery=5, search=search)
        for start in range(0, len(samples), 20):
            columns = zip(
                ("key", "shard", "noun", "similarity"), zip(*samples[start : start + 20], strict=True), strict=True
            )
            db.register("sample", pa.table({name: list(values) for name, values in columns}))
            counter.add()
            chooser.add()
        found = {name: [key for key, _ in places] for name, places in chooser.places().items()}
    assert found == {
        "best": _ends(samples, sign=-1),
        "worst": _ends(samples, sign=1),
        "gallery": sorted((key for key, *_ in samples), key=_hash)[:5],
        "search": _to_look_up(samples)[:search],
    }


def _ends(samples: list[Sample], *, sign: int) -> list[str]:
    """The pairs of the most or the least similarity, one of each noun."""
    scored = [(sign * similarity, key, noun) for key, _, noun, similarity in samples if similarity is not None]
    first = {noun: (similarity, key) for similarity, key, noun in sorted(scored, reverse=True)}
    return [key for _, key in sorted(first.values())][:4]


def _to_look_up(samples: list[Sample]) -> list[str]:
    pairs = Counter(noun for _, _, noun, _ in samples)
    turns: Counter[str] = Counter()
    ordered = []
    for key, _, noun, _ in sorted(samples, key=lambda sample: _hash(sample[0])):
        turns[noun] += 1
        ordered.append((turns[noun], -pairs[noun], noun, key))
    return [key for *_, key in sorted(ordered)]


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
