"""What appending a tenth to a set costs against making the set, and that the old shards stay as they are."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Collection
from pathlib import Path

from maskmine.pipelines.append import append
from maskmine.pipelines.engines.local import LocalEngine
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.pipelines.settings.appended import captions_to_append
from maskmine.pipelines.settings.mining import load_mining
from maskmine.schemas.errors import InputError
from maskmine.scripts.benches.regenerate import Watched, mine_watched, settings_of
from maskmine.scripts.demo_world.on_disk import find_world
from maskmine.scripts.measures import Measure, at_most

_SCENES, _TENTHS, _GOAL = 600, 3, 15
"""Scenes that the set is mined of first; tenths of as many that are appended one after the other."""


def bench_append(*, scenes: int = _SCENES) -> list[Measure]:
    """Scenes of the demo world are mined, and a tenth as many appended, three times, each to what was there.

    Start-up, which is loading models, is the same for any number of images and measured apart; the shares stand with it
    and without.
    """
    tenth = scenes // 10
    with tempfile.TemporaryDirectory() as scratch:
        world = find_world(Path(scratch, "world"), scenes=scenes + _TENTHS * tenth, seed=7)
        run = Path(scratch, "run")
        first = _write_some(world, range(scenes), Path(scratch, "first.json"))
        base = mine_watched(settings_of(world, captions=first, out=str(run)))
        shards = _shards(run)
        appended = []
        for number in range(_TENTHS):
            start = scenes + number * tenth
            file = _write_some(world, range(start, start + tenth), Path(scratch, f"tenth-{number}.json"))
            appended.append(_append_watched(run, file, images=world / "images"))
        if any(_shards(run)[name] != identity for name, identity in shards.items()):
            raise InputError("bench: appending changed a shard that was there")
        versions = RunFolder(str(run)).read_json("manifest.json")["versions"]
    steps = {step: statistics.median(one.seconds.get(step, 0.0) for one in appended) for step in base.seconds}
    whole_s, work_s = (statistics.median(getattr(one, name) for one in appended) for name in ("total_s", "work_s"))
    return [
        Measure("scenes of the set", scenes, "images"),
        Measure("scenes appended, each time", versions[-1]["images"], "images"),
        Measure("making the set", base.total_s, "s"),
        Measure("  start-up", base.start_up_s, "s"),
        *[Measure(f"  {step}", seconds, "s") for step, seconds in base.seconds.items()],
        Measure("appending a tenth, median", whole_s, "s"),
        Measure("  start-up", statistics.median(one.start_up_s for one in appended), "s"),
        *[Measure(f"  {step}", seconds, "s") for step, seconds in steps.items()],
        Measure("  plan, accounts, checksums", statistics.median(one.rest_s for one in appended), "s"),
        Measure("the last time / the first", appended[-1].work_s / appended[0].work_s, "×"),
        at_most("appending a tenth / making the set", 100 * whole_s / base.total_s, "%", _GOAL),
        at_most("  without start-up", 100 * work_s / base.work_s, "%", _GOAL),
    ]


def _append_watched(run: Path, captions: Path, *, images: Path) -> Watched:
    """Append, and say what took how long."""
    settings = load_mining(str(run / "mining.yaml"))
    watch, start = Watched(), time.monotonic()
    sources = captions_to_append(settings, captions=str(captions), images=str(images))
    append(RunFolder(str(run)), sources, engine=LocalEngine(), observer=watch)
    watch.total_s = time.monotonic() - start
    return watch


def _write_some(world: Path, numbers: Collection[int], to: Path) -> Path:
    """The captions of some scenes of a world, by their numbers in its file."""
    whole = json.loads((world / "captions.json").read_text(encoding="utf-8"))
    images = [image for number, image in enumerate(whole["images"]) if number in numbers]
    ids = {image["id"] for image in images}
    captions = [one for one in whole["annotations"] if one["image_id"] in ids]
    to.write_text(json.dumps({**whole, "images": images, "annotations": captions}), encoding="utf-8")
    return to


def _shards(run: Path) -> dict[str, tuple[int, int]]:
    """The files of the shards, by what a rewritten one has differently."""
    files = [*(run / "shards").glob("[0-9]*.tar"), *(run / "shards").glob("[0-9]*.parquet")]
    return {file.name: (file.stat().st_ino, file.stat().st_mtime_ns) for file in files}
