"""Kill drivers and workers at random moments, run the same command again, and compare with an undisturbed run."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer

from maskmine.schemas.errors import InputError
from maskmine.scripts.crashes.trial import (
    DRIVER,
    VICTIMS,
    Course,
    Ending,
    Trial,
    await_agents,
    hashes,
    keep_where_failed,
    run_trial,
    undisturbed,
)
from maskmine.tuning.console import TextTable, plain_console

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
CONSOLE = plain_console(width=max(110, plain_console().width))
ENGINES: Mapping[str, tuple[str, ...]] = {"local": (), "ray": ("cpu_workers=2",), "beam": ("workers=2",)}
WORLDS = ("demo", "coco-mini", "mix")
PARTS = 9
_PAIRS_IN_SHARD = 20  # of a mix
_TRIES = 7  # a run that ends before its kill is tried again, the kill twice as early each time


@dataclass(frozen=True)
class World:
    """Images to mine in about `PARTS` parts, and the hashes of what an undisturbed run makes of them; or finished sets
    to mix, which no engine takes part in."""

    name: str
    config: Path
    expected: Mapping[str, str]
    sets: tuple[str, ...] = ()
    appended: Appended | None = None


@dataclass(frozen=True)
class Appended:
    """What is killed where appends are: those of these captions to copies of a finished run."""

    run: Path
    captions: Path
    images: Path


@dataclass(frozen=True)
class Kill:
    """What is to be killed: when it is due is a share (0–1) of the time in which such a process is there.

    With `among_cells` it is a share of the time that is left when there is a cell, for starting takes longest.
    """

    engine: str
    world: World
    victim: str
    among_cells: bool
    share: float
    choice: int


def main(
    kills: Annotated[int, typer.Option(min=1, help="Kills for each engine, over all worlds.")] = 30,
    engine: Annotated[list[str] | None, typer.Option(help="local, ray, beam; all without it.")] = None,
    world: Annotated[list[str] | None, typer.Option(help="demo, coco-mini, mix; all without it.")] = None,
    victim: Annotated[list[str] | None, typer.Option(help="driver, worker, decoder, raylet; all without it.")] = None,
    seed: Annotated[int, typer.Option(help="The same seed kills the same processes at the same moments.")] = 0,
    scenes: Annotated[int, typer.Option(min=1, help="Images of the demo world.")] = 80,
    coco_mini: Annotated[Path, typer.Option(help="The folder of the small COCO.")] = SHARED / "coco-mini",
    append: Annotated[
        bool, typer.Option("--append", help="Kill `append` of the last quarter of a world's images.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="A row for each kill.")] = False,
) -> None:
    """Kill, run again, compare. Exit code 1 when any run did not come to the bytes of an undisturbed one."""
    engines, worlds = _known(engine, tuple(ENGINES), "--engine"), _known(world, WORLDS, "--world")
    victims = _known(victim, VICTIMS, "--victim")
    scratch = Path(tempfile.mkdtemp(prefix="chaos-"))
    # Killed processes leave temporary files, and a killed Ray the folder of its session; they go with this one.
    os.environ["TMPDIR"] = os.environ["RAY_TMPDIR"] = str(scratch)
    failed = False
    try:
        courses: dict[tuple[str, str], Course] = {}
        made = _make_worlds(scratch, worlds, courses, scenes=scenes, coco_mini=coco_mini, append=append)
        _watch_undisturbed(scratch, engines, made, courses)
        planned = [
            kill
            for name in engines
            for kill in plan_kills(name, made, courses, kills=kills, victims=victims, seed=seed)
        ]
        _print_estimate(planned, courses)
        ended = list(_kill_each(scratch, planned, courses))
        await_agents([ending for _, ending in ended])
        failed = any(ending.faults for _, ending in ended)
        CONSOLE.print(trials_table(ended) if verbose else summary_table(ended))
    finally:
        keep_where_failed(scratch, failed=failed, console=CONSOLE)
    if failed:
        raise typer.Exit(1)


def plan_kills(
    engine: str,
    worlds: Sequence[World],
    courses: Mapping[tuple[str, str], Course],
    *,
    kills: int,
    victims: Sequence[str] = VICTIMS,
    seed: int,
) -> list[Kill]:
    """The kills of an engine: the worlds in turns, every second one the driver, the others its workers in turns.

    In turns, too, a kill comes when there are cells, or at any moment. Raises InputError when it has no such victim.
    """
    planned: list[Kill] = []
    worlds = [world for world in worlds if _takes_part(engine, world)]
    for number in range(kills if worlds else 0):
        world, turn = worlds[number % len(worlds)], number // len(worlds)
        there = [victim for victim in victims if victim in courses[engine, world.name].spans]
        others = [victim for victim in there if victim != DRIVER]
        if not there:
            raise InputError(f"chaos: the engine {engine} has no {' and no '.join(victims)}")
        victim = others[turn // 2 % len(others)] if others and (turn % 2 or DRIVER not in there) else DRIVER
        chance = random.Random(f"{seed} {engine} {world.name} {number}")
        among_cells = sum((k.world, k.victim) == (world, victim) for k in planned) % 2 == 0
        planned.append(Kill(engine, world, victim, among_cells, chance.random(), chance.randrange(100)))
    return planned


def summary_table(ended: Sequence[tuple[Kill, Ending]]) -> TextTable:
    """A row for each engine, world and victim; `written again` are cells that were there already, mean / most."""
    table = _table("engine", "world", "victim", "kills", "same bytes", "failed")
    for name in ("cells done", "written again", "half-written", "re-runs", "orphans", "seconds"):
        table.add_column(name, justify="right")
    groups: dict[tuple[str, str, str], list[Ending]] = {}
    for kill, ending in ended:
        groups.setdefault((kill.engine, kill.world.name, kill.victim), []).append(ending)
    for key, endings in groups.items():
        failed = sum(bool(ending.faults) for ending in endings)
        again = [ending.rewritten for ending in endings]
        table.add_row(
            *key,
            str(len(endings)),
            str(len(endings) - failed),
            str(failed),
            f"{min(e.cells_before for e in endings)}–{max(e.cells_before for e in endings)}",
            f"{statistics.mean(again):.2g} / {max(again)}",
            str(sum(ending.half_written for ending in endings)),
            f"≤ {max(ending.reruns for ending in endings)}",
            f"≤ {max(ending.orphans_s for ending in endings):.1f} s",
            f"{statistics.mean(ending.seconds for ending in endings):.1f}",
        )
    return table


def trials_table(ended: Sequence[tuple[Kill, Ending]]) -> TextTable:
    """A row for each kill."""
    table = _table("engine", "world", "victim", "at", "cells done", "written again", "half-written", "re-runs")
    for name in ("orphans", "seconds", "same bytes"):
        table.add_column(name, justify="left" if name == "same bytes" else "right")
    for kill, ending in ended:
        table.add_row(
            kill.engine,
            kill.world.name,
            kill.victim,
            f"{ending.killed_at_s:.2f} s",
            str(ending.cells_before),
            str(ending.rewritten),
            str(ending.half_written),
            str(ending.reruns),
            f"{ending.orphans_s:.1f} s",
            f"{ending.seconds:.1f}",
            "; ".join(ending.faults) or "yes",
        )
    return table


def _make_worlds(
    scratch: Path,
    names: Sequence[str],
    courses: dict[tuple[str, str], Course],
    *,
    scenes: int,
    coco_mini: Path,
    append: bool,
) -> list[World]:
    """Make the worlds, and mine each with the local engine, or append to it; its course is noted."""
    made = []
    for name in names:
        if name == "coco-mini" and not (coco_mini / "annotations").is_dir():
            CONSOLE.print(f"world coco-mini: skipped, {coco_mini} is not there; give --coco-mini")
            continue
        CONSOLE.print(f"world {name} …", style="dim")
        if name == "mix":
            sets = tuple(_mine_set(scratch, scenes=scenes, seed=seed) for seed in (8, 9))
            world = World(name, scratch, {}, sets=sets)
        elif name == "demo":
            world = World(name, _draw(scratch, name, scenes=scenes, seed=7), {})
        else:
            place, images = coco_mini.resolve(), coco_mini.resolve() / "train2017"
            annotations = [place / f"annotations/{kind}_train2017.json" for kind in ("captions", "instances")]
            world = World(name, _write_config(scratch, name, images, *annotations), {})
        if append and not world.sets:
            world = _begin_appended(scratch, world)
        expected = scratch / f"{name}-undisturbed"
        courses["local", name] = _undisturbed("local", world, expected)
        made.append(replace(world, expected=hashes(expected)))
    if not made:
        raise InputError("chaos: there is no world to mine")
    return made


def _draw(scratch: Path, name: str, *, scenes: int, seed: int) -> Path:
    """Draw a world; returns the configuration that mines it."""
    from maskmine.scripts.demo_world.draw import draw_world

    place = scratch / f"world-{name}"
    draw_world(place, scenes=scenes, seed=seed)
    return _write_config(scratch, name, place / "images", place / "captions.json", place / "instances.json")


def _write_config(scratch: Path, name: str, images: Path, *annotations: Path) -> Path:
    config = scratch / f"{name}.json"  # JSON is YAML
    config.write_text(json.dumps(_settings(images, *annotations)))
    return config


def _mine_set(scratch: Path, *, scenes: int, seed: int) -> str:
    """Mine a drawn world as a set to mix; returns its folder."""
    name = f"set-{seed}"
    out, config = scratch / name, _draw(scratch, name, scenes=scenes, seed=seed)
    command = _command("local", World(name, config, {}), out)
    undisturbed(command, out=out, log=scratch / f"{name}.log", limit_s=600)
    return str(out)


def _begin_appended(scratch: Path, world: World) -> World:
    """Mine the first three quarters of a world's images; the others are for appending."""
    settings = json.loads(world.config.read_text())
    captions, images = (Path(settings["captions"][name]) for name in ("annotations", "images"))
    whole = json.loads(captions.read_text(encoding="utf-8"))
    cut, files = len(whole["images"]) * 3 // 4, []
    for name, some in (("first", whole["images"][:cut]), ("last", whole["images"][cut:])):
        ids = {image["id"] for image in some}
        of_some = [one for one in whole["annotations"] if one["image_id"] in ids]
        files.append(scratch / f"{world.name}-{name}.json")
        files[-1].write_text(json.dumps({**whole, "images": some, "annotations": of_some}))
    settings["captions"]["annotations"] = str(files[0])
    world.config.write_text(json.dumps(settings))
    base = scratch / f"{world.name}-base"
    _undisturbed("local", world, base)
    return replace(world, appended=Appended(base, files[1], images))


def _undisturbed(engine: str, world: World, out: Path) -> Course:
    """Mine a world to its end, or append to it; returns how it went."""
    _prepare(world, out)
    return undisturbed(_command(engine, world, out), out=out, log=Path(f"{out}.log"), limit_s=600)


def _prepare(world: World, out: Path) -> None:
    """Put into a folder what is there before a run: nothing, but for appends."""
    if world.appended is not None:
        shutil.copytree(world.appended.run, out)


def _settings(images: Path, captions: Path, instances: Path) -> dict[str, object]:
    return {
        "captions": {"kind": "coco", "annotations": str(captions), "images": str(images), "per_image": "all"},
        "regions": {"proposals": {"kind": "ground_truth", "annotations": str(instances)}, "clip": None},
        "pairs": {"rule": "labels"},
        "shards": {"images_per_part": max(1, -(-sum(1 for _ in images.glob("*.jpg")) // PARTS))},
        "out": "given with --set",
    }


def _watch_undisturbed(
    scratch: Path, engines: Sequence[str], worlds: Sequence[World], courses: dict[tuple[str, str], Course]
) -> None:
    """Note how long each engine takes in each world, and which processes it has; the bytes are the same."""
    for engine in engines:
        for world in worlds:
            if not _takes_part(engine, world):
                continue
            if (engine, world.name) not in courses:
                out = scratch / f"{world.name}-{engine}"
                command = _command(engine, world, out)
                courses[engine, world.name] = undisturbed(command, out=out, log=Path(f"{out}.log"), limit_s=600)
                if hashes(out) != world.expected:
                    raise InputError(f"chaos: the engine {engine} has other bytes in world {world.name}")
                shutil.rmtree(out)
            course = courses[engine, world.name]
            CONSOLE.print(
                f"{engine}, {world.name}: undisturbed {course.seconds:.1f} s, the first cell at "
                f"{course.first_cell_s:.1f} s; with {', '.join(sorted(course.spans))}",
                style="dim",
            )


def _print_estimate(planned: Sequence[Kill], courses: Mapping[tuple[str, str], Course]) -> None:
    seconds = sum(1.7 * courses[kill.engine, kill.world.name].seconds for kill in planned)
    CONSOLE.print(f"{len(planned)} kills, about {max(1, round(seconds / 60))} minutes", style="dim")


def _kill_each(
    scratch: Path, planned: Sequence[Kill], courses: Mapping[tuple[str, str], Course]
) -> Iterator[tuple[Kill, Ending]]:
    for number, kill in enumerate(planned, start=1):
        ending = _kill(scratch / f"{number:03d}", kill, courses[kill.engine, kill.world.name])
        what = "; ".join(ending.faults) or f"same bytes, re-runs: {ending.reruns}, written again: {ending.rewritten}"
        CONSOLE.print(
            f"{number}/{len(planned)} {kill.engine}, {kill.world.name}: {kill.victim} at {ending.killed_at_s:.1f} s, "
            f"{ending.cells_before} cells done: {what}",
            style="red" if ending.faults else "dim",
            highlight=False,
        )
        yield kill, ending


def _kill(folder: Path, kill: Kill, course: Course) -> Ending:
    first_s, last_s = course.spans[kill.victim]
    if kill.among_cells:
        first_s = max(first_s, min(course.first_cell_s, last_s))
    for attempt in range(_TRIES):
        folder.mkdir()
        _prepare(kill.world, folder / "run")
        trial = Trial(
            command=_command(kill.engine, kill.world, folder / "run"),
            folder=folder,
            expected=kill.world.expected,
            victim=kill.victim,
            delay_s=kill.share * (last_s - first_s) * 0.5**attempt,
            after_first_cell=kill.among_cells,
            limit_s=60 + 5 * course.seconds,
            choice=kill.choice,
        )
        ending = run_trial(trial)
        if not ending.faults:
            shutil.rmtree(folder)
        if not ending.too_late:
            return ending
    ending.faults.append(f"the run ended before its {kill.victim} could be killed, {_TRIES} times")
    return ending


def _takes_part(engine: str, world: World) -> bool:
    return engine == "local" or not world.sets


def _command(engine: str, world: World, out: Path) -> list[str]:
    words = [sys.executable, "-m", "maskmine.pipelines.cli.main"]
    if world.sets:
        weights = [f"{folder}:{weight}" for folder, weight in zip(world.sets, (0.6, 0.4), strict=True)]
        return [*words, "mix", *weights, "--out", str(out), "--shard-size", str(_PAIRS_IN_SHARD)]
    options = [word for option in ENGINES[engine] for word in ("--engine-opt", option)]
    if (new := world.appended) is not None:
        words += ["append", str(out), "--captions", str(new.captions), "--images", str(new.images)]
    else:
        words += ["mine", str(world.config), "--set", f"out={out}"]
    return [*words, "--engine", engine, *options]


def _known(given: Sequence[str] | None, known: Sequence[str], option: str) -> list[str]:
    unknown = set(given or ()) - set(known)
    if unknown:
        raise InputError(f"chaos: {option} {', '.join(sorted(unknown))}: unknown; known: {', '.join(known)}")
    return [name for name in known if name in (given or known)]


def _table(*names: str) -> TextTable:
    return TextTable(*names, box=None, pad_edge=False)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that what it started ends with it
    try:
        typer.run(main)
    except InputError as error:
        sys.exit(str(error))
