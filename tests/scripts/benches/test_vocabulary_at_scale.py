"""The made-up run of many nouns: its steps are those of a run, and find every noun."""

from __future__ import annotations

from dataclasses import replace

import pytest

from maskmine.pipelines.steps.jobs import no_tick
from maskmine.schemas.rows import LevelRow
from maskmine.scripts.benches.scale import vocabulary
from maskmine.scripts.benches.scale.many_nouns import ManyNouns
from maskmine.scripts.benches.scale.vocabulary import STEPS, Taken, bench_vocabulary


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> ManyNouns:
    """A run of many nouns with something appended, all of whose steps were made."""
    run = ManyNouns(tmp_path_factory.mktemp("many"), nouns=5_000, dim=8)
    run.write()
    for step in STEPS:
        job, part = run.job(step)
        job.open()(part, no_tick)
    return run


def test_the_steps_of_the_bench_find_every_noun(made: ManyNouns) -> None:
    stored = {row.noun: row.embedding for row in replace(made.cells.vocabulary, run=made.earlier).read()}
    base, own = made.cells.vocabulary.read(), made.appended.vocabulary.read()
    assert (len(base), len(own)) == (5_000, 500)
    assert all(row.embedding == stored[row.noun] for row in (*base, *own))
    pairs = made.cells.pairs.read(1)
    assert {pair.noun for row in pairs for pair in row.pairs} <= {row.noun for row in base}
    assert sum(len(row.pairs) for row in pairs) == 5_000


def test_levels_of_what_is_appended_are_the_base_s_and_new_ones_in_the_order_of_the_vocabulary(
    made: ManyNouns,
) -> None:
    base = {row.noun: row for row in made.cells.levels.read()}
    own: list[LevelRow] = made.appended.levels.read()
    assert [row.noun for row in own] == [row.noun for row in made.appended.vocabulary.read()]
    assert [row for row in own if row.noun in base] == [base[row.noun] for row in own if row.noun in base]
    new = [row for row in own if row.noun not in base]
    assert len(new) == 250
    assert all(row.level is not None and row.said == 0 for row in new)


def test_memory_at_the_largest_vocabulary_is_reckoned_for_the_width_of_a_large_clip(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ManyNouns, "write", lambda run: None)
    taken = {(50_000, 64): (1, 100), (50_000, 768): (2, 180), (500_000, 64): (10, 200), (700_000, 64): (21, 1_450)}
    monkeypatch.setattr(vocabulary, "measure", lambda run, step: Taken(*taken[run.nouns, run.dim]))
    measures = {one.name: one for one in bench_vocabulary(most=700_000, steps=["pairs"])}
    memory = measures["pairs: own memory reckoned at 700,000 × 768"]
    assert (memory.value, memory.reached) == (1_530, False)
    of_a_noun = measures["pairs: time of a noun at 700,000 / 500,000"]
    assert (of_a_noun.value, of_a_noun.reached) == (pytest.approx(1.5), False)
