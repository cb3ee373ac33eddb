"""What a run with new captions costs where the regions of an earlier run are taken, and one by another CLIP, against
making all of it."""

from __future__ import annotations

import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from maskmine.pipelines.dataset.publish import RUN_SUMS_FILE, SUMS_FILE
from maskmine.pipelines.engines.engine import RunObserver
from maskmine.pipelines.engines.local import LocalEngine
from maskmine.pipelines.mine import mine
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.pipelines.settings.mining import Mining, load_mining
from maskmine.pipelines.steps.grid import Step
from maskmine.pipelines.steps.jobs import PartReport
from maskmine.schemas.errors import InputError
from maskmine.scripts.demo_world.on_disk import find_world
from maskmine.scripts.measures import Measure, at_most

_CONFIG = Path(__file__).resolve().parents[2] / "configs" / "demo-models.yaml"
_SCENES, _ROUNDS, _GOAL = 200, 3, 0.04
_REGENERATED_SCENES = 1000  # as many as `scripts/demo` mines
_WARM_UP_SCENES = 20  # what a first run imports is not a cost of its images
_STEPS = ("nouns", "vocabulary", "levels", "pairs", "shards")
_CLIP = Path(__file__).resolve().parents[1] / "models" / "clip"
_OF_ONE_RUN = ("mining.yaml", "shards/")  # times and folders


@dataclass
class Watched(RunObserver):
    """Separates loading models from work: seconds of each step, of start-up, and of the whole run."""

    seconds: dict[str, float] = field(default_factory=dict)
    start_up_s: float = 0.0
    total_s: float = 0.0
    _begun: float | None = None

    @property
    def work_s(self) -> float:
        """Seconds without start-up."""
        return self.total_s - self.start_up_s

    @property
    def rest_s(self) -> float:
        """Seconds of no step: the plan, what becomes of the earlier run, accounts and checksums at the end."""
        return self.work_s - sum(self.seconds.values())

    def on_step_start(self, step: Step, todo: Sequence[int]) -> None:
        self._begun = time.monotonic()

    def on_part_done(self, report: PartReport) -> None:
        if self._begun is not None:  # the first part of its step
            self.start_up_s += time.monotonic() - self._begun - report.seconds
            self._begun = None
        self.seconds[report.step] = self.seconds.get(report.step, 0.0) + report.seconds


def bench_regenerate(*, scenes: int = _REGENERATED_SCENES) -> list[Measure]:
    """Scenes of the demo world: a run with a caption each, then with other captions and its regions, three times.

    Each step of the second run is held against the whole of the first. Beside the sum stands what every image costs: a
    set this small does not have all its nouns yet, and each new one is embedded once.
    """
    with tempfile.TemporaryDirectory() as scratch:
        world = find_world(Path(scratch, "world"), scenes=scenes, seed=7)
        others = _other_captions(world / "captions.json", Path(scratch, "others.json"))
        small = find_world(Path(scratch, "small"), scenes=_WARM_UP_SCENES, seed=8)
        mine_watched(settings_of(small, out=f"{scratch}/warm-up"))
        full = mine_watched(settings_of(world, out=f"{scratch}/full"))
        again = [
            mine_watched(
                settings_of(world, captions=others, out=f"{scratch}/again-{number}"), regions=f"{scratch}/full"
            )
            for number in range(_ROUNDS)
        ]
        nouns, of_new = (_nouns_of(RunFolder(f"{scratch}/{name}")) for name in ("full", "again-0"))
    shares = {step: statistics.median(one.seconds[step] for one in again) / full.work_s for step in _STEPS}
    shares["rest"] = statistics.median(one.rest_s for one in again) / full.work_s
    share = sum(shares.values())
    return [
        Measure("scenes", scenes, "images"),
        Measure("full run, without start-up", full.work_s, "s"),
        *[Measure(f"  {step}", seconds, "s") for step, seconds in full.seconds.items()],
        Measure("start-up of the full run", full.start_up_s, "s"),
        Measure("start-up with new captions", statistics.median(one.start_up_s for one in again), "s"),
        Measure("nouns of the full run", len(nouns), "nouns"),
        Measure("nouns that only the new captions say", len(of_new - nouns), "nouns"),
        *[Measure(f"  new captions: {step}", 100 * part, "% of full") for step, part in shares.items()],
        Measure("new captions, without new nouns", 100 * (share - shares["vocabulary"]), "% of full"),
        Measure("new captions", 100 * share, "% of full", f"≤ {_GOAL:.0%}", share <= _GOAL),
    ]


def _nouns_of(run: RunFolder) -> set[str]:
    """The nouns that the captions of a run say."""
    return set(run.read_table("vocabulary.parquet")["noun"].to_pylist())


def _other_captions(captions: Path, to: Path) -> Path:
    """The second caption of each image alone."""
    content = json.loads(captions.read_text(encoding="utf-8"))
    by_image: dict[int, list[dict[str, Any]]] = {}
    for one in sorted(content["annotations"], key=lambda one: one["id"]):
        by_image.setdefault(one["image_id"], []).append(one)
    content["annotations"] = [captions[1] for captions in by_image.values()]
    to.write_text(json.dumps(content), encoding="utf-8")
    return to


def settings_of(world: Path, *, out: str, captions: Path | None = None, overrides: Sequence[str] = ()) -> Mining:
    """The settings of the demo world at a place; `captions` are its own by default."""
    places = [
        f"captions.annotations={captions or world / 'captions.json'}",
        f"captions.images={world / 'images'}",
        f"out={out}",
    ]
    return load_mining(str(_CONFIG), overrides=[*places, *overrides])


def mine_watched(settings: Mining, *, regions: str | None = None) -> Watched:
    """Mine, and say what took how long."""
    watch, start = Watched(), time.monotonic()
    mine(settings, engine=LocalEngine(), observer=watch, regions_from=regions)
    watch.total_s = time.monotonic() - start
    return watch


def bench_another_clip(*, scenes: int = _SCENES) -> list[Measure]:
    """Scenes of the demo world: mined by one CLIP, in the same folder by another, and by the first one again.

    Held against a fresh run by the other CLIP, whose bytes the second run must have, and against its own step
    `embeddings` alone.
    """
    with tempfile.TemporaryDirectory() as scratch:
        world = find_world(Path(scratch, "world"), scenes=scenes, seed=7)
        other = _other_clip(Path(scratch, "clip"))

        def mined(name: str, clip: Path) -> Watched:
            return mine_watched(settings_of(world, out=f"{scratch}/{name}", overrides=[f"regions.clip.model={clip}"]))

        mined("run", _CLIP)
        before = _sums(Path(scratch, "run"))
        fresh, again = mined("fresh", other), mined("run", other)
        _refuse_difference(_sums(Path(scratch, "run")), _sums(Path(scratch, "fresh")), "another CLIP")
        back = mined("run", _CLIP)
        _refuse_difference(_sums(Path(scratch, "run")), before, "the first CLIP again")
    if "proposals" in again.seconds or {"proposals", "embeddings"} & back.seconds.keys():
        raise InputError("bench: regions were looked for again")
    alone_s, spared_s = again.seconds["embeddings"], fresh.seconds["proposals"] + fresh.seconds["nouns"]
    return [
        Measure("fresh run by another CLIP, without start-up", fresh.work_s, "s"),
        *[Measure(f"  {step}", fresh.seconds[step], "s") for step in ("proposals", "embeddings")],
        Measure("another CLIP on the same folder", again.work_s, "s"),
        *[Measure(f"  {step}", seconds, "s") for step, seconds in again.seconds.items()],
        Measure("another CLIP / fresh run", again.work_s / fresh.work_s, "×"),
        at_most("  without its proposals and nouns", again.work_s / (fresh.work_s - spared_s), "×", 1.15),
        Measure("another CLIP / its embeddings alone", again.work_s / alone_s, "×"),
        Measure("embeddings alone / in one pass with proposals", alone_s / fresh.seconds["embeddings"], "×"),
        Measure("the first CLIP again / fresh run", back.work_s / fresh.work_s, "×"),
    ]


def _other_clip(folder: Path) -> Path:
    """The demo world's CLIP with other weights, so that it costs the same."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(_CLIP, folder)
    (weights,) = folder.glob("*.safetensors")
    save_file({name: tensor * 1.01 for name, tensor in load_file(weights).items()}, weights)
    return folder


def _sums(run: Path) -> set[str]:
    """Names and SHA-256 of what does not tell when and where a run was made."""
    of_set, of_rest = ((run / name).read_text().splitlines() for name in (SUMS_FILE, RUN_SUMS_FILE))
    return {*of_set, *(line for line in of_rest if not line.partition("  ")[2].startswith(_OF_ONE_RUN))}


def _refuse_difference(one: set[str], other: set[str], what: str) -> None:
    if one != other:
        raise InputError(f"bench: {what} does not give the bytes of a fresh run: {sorted(one ^ other)[:3]}")
